"""Tiny data sets as users bring them, each with the recipe that runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from diffats import stages
from diffats.bundle import CALIBRATION, WEIGHTS
from diffats.compute import open_cluster
from diffats.config import Recipe, parse_recipe
from diffats.digests import file_digest
from diffats.stages import (
    StageResult,
    Workspace,
    align,
    decompose,
    fit_normalisation,
    generate,
    select_anchor,
    train,
)
from diffats.store import Version

PRIMITIVES = ("decompose", "select_anchor", "align", "fit_normalisation")
MODEL = (*PRIMITIVES, "train", "generate")
ALL = (*MODEL, "evaluate")
SMALL: dict[str, Any] = {
    "model": {"width": 16, "depth": 1, "heads": 2},
    "train": {"steps": 5, "batch": 8, "warmup": 1, "log_every": 2, "checkpoint_every": 2, "calibrate": False},
    "generate": {"count": 6, "steps": 2, "batch": 4},
    "evaluate": {"members": 2, "samples": 6},
    "compute": {"workers": 1, "shard_samples": 7, "device": "cpu"},
}


def small_recipe(root: Path, data: dict[str, Any], **sections: Any) -> Recipe:
    """A recipe of minimal sizes; sections given are merged into them."""
    tree: dict[str, Any] = {"name": "tiny", "root": str(root), **SMALL, "data": data}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_recipe(tree)


def changed(recipe: Recipe, **sections: Any) -> Recipe:
    """The same recipe with some keys of some sections changed."""
    tree = recipe.model_dump(mode="json")
    for name, section in sections.items():
        tree[name] = {**tree[name], **section} if isinstance(section, dict) else section
    return parse_recipe(tree)


def run(recipe: Recipe, names: Iterable[str] = ALL, **options: Any) -> dict[str, StageResult]:
    """Stages of a recipe, in order, with one set of workers."""
    with open_cluster(recipe.compute):
        return {name: stages.run(name, recipe, **options) for name in names}


def waves(n: int, *sizes: int, seed: int = 0, rank: int = 3, noise: float = 0.05) -> np.ndarray:
    """Smooth random fields ``(n, *sizes)`` of low rank, a little noisy."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank))
    letters = "abcdef"[: len(sizes)]
    modes = [
        np.sin(np.outer(np.arange(size) + 1, np.arange(1, rank + 1)) * (0.4 + 0.1 * i)) for i, size in enumerate(sizes)
    ]
    field = np.einsum(f"nr,{','.join(f'{c}r' for c in letters)}->n{letters}", x, *modes)
    return field + noise * rng.normal(size=field.shape)


def trajectories(place: Path | str, n: int, *sizes: int) -> dict[str, Any]:
    """Waves ``u(run, t, x)`` with a number for each run, in a Zarr store unless it is there, and its recipe section."""
    if not Path(place).exists():
        field = waves(n, *sizes).astype("f4")
        ds = xr.Dataset({"u": (("run", "t", "x"), field), "nu": ("run", np.geomspace(1e-3, 1, n))})
        ds.to_zarr(place, zarr_format=3, consolidated=False)
    return {
        "source": str(place),
        "variables": ["u"],
        "modes": ["t", "x"],
        "sample_dim": "run",
        "split": {"test": 0.2},
        "condition": {"initial": {"dim": "t"}, "scalars": ["nu"]},
    }


def content(recipe: Recipe) -> dict[str, str]:
    """What tells every result of a recipe from another, to the bit."""
    work = Workspace(recipe)
    tucker = select_anchor.require_tucker(work)
    model = train.require_bundle(work)
    versions: dict[str, Version | None] = {
        "scaling": decompose.scaling_version(work),
        "tucker": tucker,
        "anchor": select_anchor.anchor_version(work, tucker),
        "primitives": align.primitives_version(work),
        "normalisation": fit_normalisation.normalisation_version(work),
        "samples": generate.samples_version(work, model),
    }
    digests = {name: version.digest if version is not None else "" for name, version in versions.items()}
    files = [path for path in (model.directory / WEIGHTS, model.directory / CALIBRATION) if path.is_file()]
    return {**digests, **{path.name: file_digest(path) for path in files}}


class Remembered(logging.Handler):
    """Every record of every library, with its traceback, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@dataclass(frozen=True)
class Case:
    """A data set on disk, its recipe, and its samples ``(n, *sizes)`` as plain arithmetic cuts them."""

    recipe: Recipe
    raw: np.ndarray
    dataset: xr.Dataset


def climate(folder: Path) -> Case:
    """Monthly temperatures of a 360-day calendar in three files, with land missing; windows over time."""
    n, ny, nx, window = 96, 6, 8, 8
    field = 280 + 5 * waves(1, n, ny, nx, rank=4)[0]
    field += 3 * np.sin(2 * np.pi * np.arange(n) / 12)[:, None, None]
    field[:, :2, :3] = np.nan
    time = xr.date_range("1900-01-01", periods=n, freq="MS", calendar="360_day", use_cftime=True)
    ds = xr.Dataset(
        {
            "tos": (
                ("time", "lat", "lon"),
                field.astype("f4"),
                {"units": "K", "standard_name": "sea_surface_temperature"},
            )
        },
        coords={
            "time": time,
            "lat": ("lat", np.linspace(-50, 50, ny), {"units": "degrees_north"}),
            "lon": ("lon", np.linspace(0, 315, nx), {"units": "degrees_east"}),
        },
        attrs={"institution": "Somewhere"},
    )
    for i in range(3):
        ds.isel(time=slice(32 * i, 32 * i + 32)).to_netcdf(folder / f"tos_{i}.nc", encoding={"time": {"dtype": "f8"}})
    data = {
        "source": str(folder / "tos_*.nc"),
        "variables": ["tos"],
        "modes": ["time", "lat", "lon"],
        "missing": "mask",
        "center": "point",
        "windows": {"size": {"time": window}, "stride": {"time": 4}},
        "split": {"by": "block", "test": 0.25, "block": {"time": 16}},
        "condition": {"initial": {"dim": "time", "index": 0}},
    }
    recipe = small_recipe(folder / "root", data, decompose={"ranks": {"time": 3, "lat": 3, "lon": 4}})
    raw = np.stack([field[start : start + window] for start in range(0, n - window + 1, 4)])
    return Case(recipe, raw, ds)


def runs(folder: Path) -> Case:
    """Simulations over a parameter that spans decades, in a Zarr v3 store; some values of a coordinate held out."""
    n = 30
    nu = np.geomspace(1e-4, 1.0, n)
    field = waves(n, 6, 10) * (1 + np.log10(nu))[:, None, None]
    ds = xr.Dataset(
        {"u": (("run", "t", "x"), field.astype("f4"), {"units": "m s-1"}), "nu": ("run", nu)},
        coords={"group": ("run", np.arange(n) // 5), "x": np.linspace(0, 1, 10), "t": ("t", np.arange(6) * 0.1)},
    )
    ds.to_zarr(folder / "runs.zarr", zarr_format=3, consolidated=False)
    data = {
        "source": str(folder / "runs.zarr"),
        "variables": ["u"],
        "modes": ["t", "x"],
        "sample_dim": "run",
        "split": {"by": "coordinate", "coordinate": "group", "values": [1]},
        "condition": {"scalars": ["nu"]},
    }
    recipe = small_recipe(folder / "root", data, decompose={"ranks": {"t": 3, "x": 3}}, evaluate={"metric": "crps"})
    return Case(recipe, field.astype("f4").astype("f8"), ds)


def images(folder: Path) -> Case:
    """Images with channels and a class, some of it missing, in a Zarr v2 store: patch-SVD by channel."""
    n = 24
    field = waves(n, 3, 8, 8)
    kind = np.array(["cat", "dog", ""])[np.arange(n) % 3].astype(object)
    ds = xr.Dataset(
        {"rgb": (("image", "channel", "y", "x"), field.astype("f4"), {"units": "1"}), "kind": ("image", kind)}
    )
    ds = ds.assign_coords(channel=["r", "g", "b"])
    ds["kind"] = ds["kind"].astype("U3")
    ds["channel"] = ds["channel"].astype("U1")
    ds.to_zarr(folder / "images.zarr", zarr_format=2, consolidated=False)
    data = {
        "source": str(folder / "images.zarr"),
        "variables": ["rgb"],
        "modes": ["channel", "y", "x"],
        "sample_dim": "image",
        "split": {"test": 0.25},
        "condition": {"labels": "kind"},
    }
    primitive = {"kind": "mgp", "patch": {"y": 4, "x": 4}, "rank": 2}
    recipe = small_recipe(folder / "root", data, primitive=primitive)
    return Case(recipe, field.astype("f4").astype("f8"), ds)


def winds(folder: Path) -> Case:
    """Two variables of four-dimensional samples in an Icechunk repository; one mode merged with a rank, one without."""
    import icechunk

    n = 20
    u, v = waves(n, 4, 3, 5, 6, seed=1), 10 * waves(n, 4, 3, 5, 6, seed=2)
    dims = ("member", "time", "level", "lat", "lon")
    ds = xr.Dataset(
        {"u": (dims, u, {"units": "m s-1"}), "v": (dims, v, {"units": "m s-1"}), "land": (("lat", "lon"), u[0, 0, 0])},
        coords={"level": ("level", [1000.0, 850.0, 500.0], {"units": "hPa"})},
    )
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder / "winds")))
    session = repository.writable_session("main")
    ds.to_zarr(session.store, consolidated=False, zarr_format=3)
    session.commit("winds")
    data = {
        "source": str(folder / "winds"),
        "variables": ["u", "v"],
        "modes": ["time", "level", "lat", "lon"],
        "sample_dim": "member",
        "split": {"test": 0.2},
        "condition": {"fields": ["land"]},
    }
    recipe = small_recipe(
        folder / "root",
        data,
        decompose={"ranks": {"component": 2, "time": 3, "lat": 3, "lon": 3}},
        align={"modes": ["time", "lat", "lon"]},
    )
    return Case(recipe, np.stack([u, v], axis=1), ds)


def counts(folder: Path) -> Case:
    """Integers in an .npz file, unconditional, ranks from a tolerance."""
    field = np.round(50 * waves(26, 9, 7)).astype("i2")
    np.savez(folder / "counts.npz", counts=field)
    data = {"source": str(folder / "counts.npz"), "modes": ["dim_1", "dim_2"], "sample_dim": "dim_0", "center": "none"}
    recipe = small_recipe(folder / "root", data, decompose={"tolerance": 0.05})
    return Case(recipe, field.astype("f8"), xr.Dataset({"counts": (("dim_0", "dim_1", "dim_2"), field)}))


def doubles(folder: Path) -> Case:
    """Float64 with nothing subtracted or divided: a merged mode, kept whole."""
    field = waves(20, 6, 5, 7)
    ds = xr.Dataset({"f": (("case", "a", "b", "c"), field)}, coords={"case": np.arange(100, 120)})
    ds.to_netcdf(folder / "f.nc")
    data = {
        "source": str(folder / "f.nc"),
        "modes": ["a", "b", "c"],
        "sample_dim": "case",
        "center": "none",
        "scale": "none",
        "split": {"test": 0.2},
    }
    return Case(small_recipe(folder / "root", data, decompose={"ranks": {"a": 3, "c": 3}}), field, ds)


CASES: dict[str, Callable[[Path], Case]] = {
    make.__name__: make for make in (climate, runs, images, winds, counts, doubles)
}


@contextmanager
def calls(owner: Any, name: str, monkeypatch: Any) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of every call of a function, while it does what it did."""
    made: list[tuple[Any, ...]] = []
    original = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(arguments)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield made
