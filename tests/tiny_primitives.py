"""A tiny set of primitives, and a denoiser that is exact for Gaussian data: shared by the tests of the model side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from torch import Tensor

from diffats.config import Recipe, parse_recipe
from diffats.diffusion import Diffusion
from diffats.loader import PrimitiveSet
from diffats.primitives import ConditionLayout, Layout, Moments, Normalisation

LAYOUT = Layout("tgp", ("y", "x"), {"y": 6, "x": 5}, {"y": 3, "x": 3}, ("y", "x"))
LABELS = ConditionLayout(n_labels=3, label_names=("a", "b", "c"))


def tiny_recipe(**sections: dict[str, object]) -> Recipe:
    base: dict[str, dict[str, object]] = {
        "data": {"source": "x.zarr", "modes": ["y", "x"], "sample_dim": "time"},
        "decompose": {"ranks": {"y": 3, "x": 3}},
        "model": {"width": 16, "depth": 1, "heads": 2},
        "train": {
            "steps": 12,
            "batch": 8,
            "checkpoint_every": 4,
            "log_every": 2,
            "warmup": 2,
            "lr": 3e-3,
            "calibrate": False,
        },
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return parse_recipe({"name": "tiny", **base})


def tiny_dataset(n: int = 24, *, layout: Layout = LAYOUT, labels: bool = False, seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    data = {s.name: (("sample", *s.dims), rng.normal(1.0, 2.0, (n, *s.shape)).astype("f4")) for s in layout.streams}
    ds = xr.Dataset(data, coords={"split": ("sample", np.where(np.arange(n) % 6 == 5, "test", "train"))})
    ds["status"] = ("sample", np.ones(n, dtype="i1"))
    if labels:
        ds["label"] = ("sample", np.arange(n) % 3)
    return ds


def normalisation_of(ds: xr.Dataset, layout: Layout = LAYOUT) -> Normalisation:
    moments = {stream.name: Moments() for stream in layout.streams}
    for name, moment in moments.items():
        moment.add(ds[name].values[ds["split"].values == "train"])
    return Normalisation.fit(moments)


def tiny_set(n: int = 24, *, labels: bool = False, shard: int = 5) -> PrimitiveSet:
    ds = tiny_dataset(n, labels=labels)
    return PrimitiveSet(ds, LAYOUT, normalisation_of(ds), LABELS if labels else ConditionLayout(), shard=shard)


class GaussianDenoiser:
    """The exact prediction for data N(mean, std^2), element by element; the label, where given, shifts the mean."""

    def __init__(self, diffusion: Diffusion, mean: Tensor, std: Tensor) -> None:
        self.diffusion, self.mean, self.std = diffusion, mean, std

    def __call__(self, z: Tensor, t: Tensor, cond: Mapping[str, Tensor], drop: Tensor | None) -> Tensor:
        alpha, sigma = self.diffusion.coefficients(t)
        mean = self.mean.expand(z.shape)
        if "label" in cond:
            shift = cond["label"].float() if drop is None else cond["label"].float() * ~drop
            mean = mean + shift[:, None]
        x0 = mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (z - alpha * mean)
        eps = (z - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[self.diffusion.config.target]
