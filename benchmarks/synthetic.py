"""Recipes with random primitives of their shapes: the networks that training and sampling are measured on.

Nothing is simulated or decomposed, and what a step costs does not depend on the numbers in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import Recipe, load_recipe
from diffats.loader import PrimitiveSet
from diffats.primitives import ConditionLayout, Coordinates, Layout, Moments, Normalisation, Shifts, turned_axes

Array = np.ndarray[Any, Any]

#: The demo's network, that of a small problem, and one of the paper's size.
NETWORKS = {"demo": "indian_pines.toml", "small": "small/burgers_2d.toml", "paper": "paper/burgers_2d.toml"}
_RECIPES = Path(__file__).parents[1] / "deployments" / "recipes"
_DEMO_SIZES = {"y": 16, "x": 16, "band": 200}
_DEMO_LABELS = 17
_EVERY_TEST = 8


def network_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of one of ``NETWORKS``, with settings replaced as by ``--set``."""
    return load_recipe(_RECIPES / NETWORKS[name], overrides)


def sample_sizes(recipe: Recipe) -> dict[str, int]:
    """Sizes of a sample by tensor mode: the simulation's, or the demo's."""
    given = _DEMO_SIZES if recipe.simulate is None else recipe.simulate.sizes
    sizes = {mode: given[mode] for mode in recipe.tensor_modes if mode != "component"}
    return {mode: sizes.get(mode, len(recipe.data.variables)) for mode in recipe.tensor_modes}


def primitives(recipe: Recipe, samples: int, *, shard: int, folder: Path | None = None) -> PrimitiveSet:
    """Random primitives of a recipe; read lazily from a Zarr store in ``folder``, where one is given."""
    layout = Layout.from_recipe(recipe, sample_sizes(recipe))
    rng = np.random.default_rng(0)
    streams = {s.name: _stream(rng, samples, s.shape, factor=s.mode is not None) for s in layout.streams}
    given, conditions = _conditions(rng, recipe, layout, samples)
    variables = {s.name: (("sample", *s.dims), streams[s.name]) for s in layout.streams}
    variables |= {name: (("sample", *(f"{name}_{i}" for i in range(1, x.ndim))), x) for name, x in given.items()}
    dataset = xr.Dataset(variables, coords={"split": _split(samples)})
    shifts = _shifts(recipe, layout, streams, conditions)
    if folder is not None:
        dataset = _stored(dataset, folder / f"{recipe.name}.zarr", shard)
    return PrimitiveSet(
        dataset, layout, _normalisation(recipe, layout, streams), conditions, shard=shard, shifts=shifts
    )


def _stream(rng: np.random.Generator, samples: int, shape: tuple[int, ...], *, factor: bool) -> Array:
    x = rng.normal(size=(samples, *shape))
    return (np.linalg.qr(x)[0] if factor else x).astype(np.float32)


def _conditions(
    rng: np.random.Generator, recipe: Recipe, layout: Layout, samples: int
) -> tuple[dict[str, Array], ConditionLayout]:
    condition = recipe.data.condition
    raw: dict[str, Array] = {}
    dims: tuple[str, ...] = ()
    if condition.initial is not None:
        dims = tuple(mode for mode in layout.modes if mode != condition.initial.dim)
        raw["initial"] = rng.normal(size=(samples, *(layout.sizes[mode] for mode in dims))).astype(np.float32)
    raw |= {f"scalar_{name}": rng.uniform(1, 2, samples).astype(np.float32) for name in condition.scalars}
    names = tuple(map(str, range(_DEMO_LABELS))) if condition.labels else ()
    if names:
        raw["label"] = rng.integers(len(names), size=samples)
    return raw, ConditionLayout.fit(raw, initial_dims=dims, label_names=names)


def _split(samples: int) -> tuple[str, Array, dict[str, Any]]:
    values = (np.arange(samples) % _EVERY_TEST == _EVERY_TEST - 1).astype(np.int8)
    return "sample", values, {"flag_values": [0, 1], "flag_meanings": "train test"}


def _shifts(recipe: Recipe, layout: Layout, streams: dict[str, Array], conditions: ConditionLayout) -> Shifts | None:
    if not recipe.train.shift:
        return None
    anchors = {mode: streams[f"factor_{mode}"][0] for mode in layout.aligned}
    dims = {} if conditions.initial is None else {"initial": conditions.initial_dims}
    return Shifts(layout, tuple(recipe.train.shift), anchors, dims)


def _normalisation(recipe: Recipe, layout: Layout, streams: dict[str, Array]) -> Normalisation:
    moments = {name: Moments() for name in streams}
    for name, x in streams.items():
        moments[name].add(x)
    plain = Normalisation.fit(moments)
    if recipe.normalise.coordinates == "stream":
        return plain
    rng, beta = np.random.default_rng(1), recipe.normalise.beta
    return replace(
        plain, coordinates={s.name: Coordinates.random(s, beta, rng) for s in layout.streams if turned_axes(s)}
    )


def _stored(dataset: xr.Dataset, place: Path, shard: int) -> xr.Dataset:
    chunks = {n: {"chunks": (min(shard, x.shape[0]), *x.shape[1:])} for n, x in dataset.data_vars.items()}
    dataset.to_zarr(place, zarr_format=3, consolidated=False, encoding=chunks)
    return xr.open_dataset(place, engine="zarr", consolidated=False, chunks=None)


def batch_bytes(data: PrimitiveSet, size: int) -> int:
    """Bytes of a training batch: primitives and noise, and the conditions."""
    _, cond = data.read(data.train[:1])
    return size * (2 * 4 * data.numbers + sum(math.prod(x.shape[1:]) * x.itemsize for x in cond.values()))
