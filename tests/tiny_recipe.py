"""The smallest data set and recipe that go through every stage, in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

RECIPE = """
name = "tiny"
root = "{root}"
[data]
source = "{source}"
variables = ["u"]
modes = ["time", "x"]
sample_dim = "sample"
split = {{ test = 0.25 }}
condition = {{ initial = {{ dim = "time", index = 0 }} }}
[decompose]
ranks = {{ time = 3, x = 3 }}
[model]
width = 16
depth = 1
heads = 2
[train]
steps = 4
batch = 8
warmup = 1
log_every = 2
checkpoint_every = 2
calibrate = false
[generate]
count = 6
steps = 2
[evaluate]
members = 2
samples = 6
[compute]
workers = 1
"""


def waves(n: int = 24) -> xr.Dataset:
    """Random standing waves ``u`` (sample, time, x), a little noisy."""
    rng = np.random.default_rng(0)
    number = np.arange(1, 4)
    time, x = np.arange(6), np.arange(8) / 2
    field = np.einsum(
        "nk,kt,kx->ntx", rng.normal(size=(n, 3)), np.cos(np.outer(number, time) / 3), np.sin(np.outer(number, x))
    )
    field += 0.05 * rng.normal(size=field.shape)
    variables = {"u": (("sample", "time", "x"), field.astype("float32"), {"units": "m s-1"})}
    return xr.Dataset(variables, coords={"time": time, "x": x})


def write_recipe(directory: Path, data: xr.Dataset | None = None) -> Path:
    """Data, recipe and, later, everything made from them, in one directory."""
    source, recipe = directory / "tiny.nc", directory / "tiny.toml"
    (waves() if data is None else data).to_netcdf(source)
    recipe.write_text(RECIPE.format(root=directory / "root", source=source), encoding="utf-8")
    return recipe
