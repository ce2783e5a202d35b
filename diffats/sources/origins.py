"""Where each sample comes from, as coordinates that are stored beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from diffats.attributes import json_attrs, text_values
from diffats.config import Data
from diffats.sources.cuts import Cuts
from diffats.sources.unreadable import values_of

Array = np.ndarray[Any, Any]

_SMALL = 1024  # bytes for each sample


def sample_coords(
    dataset: xr.Dataset, data: Data, cuts: Cuts, numbers: Array, is_test: Array
) -> dict[str, xr.Variable]:
    """Coordinates of samples along ``sample``.

    Their number and their ``split``. For each windowed dim ``<dim>_start``, an index, and ``<name>_origin`` for the
    dim's coordinate and others along it: their value at the window's first point, in the sample's run where they differ
    between runs. And what the source says along its own dim of samples: its coordinates of at most 1 KiB a sample, so
    all that are one number or text each, but no fields; the entry's number under the dim's name where the dim has no
    coordinate. A source's own ``sample`` and ``split`` become ``source_sample`` and ``source_split``.

    Parameters
    ----------
    dataset
        The source.
    data
        The recipe's section.
    cuts
        Places of the ``k`` samples.
    numbers, is_test
        ``(k,)`` each.
    """
    names = np.array(["train", "test"], object)  # two strings for all; Zarr has none of fixed width
    coords = {
        "sample": xr.Variable("sample", numbers),
        "split": xr.Variable("sample", names[is_test.astype(np.int8)]),
    }
    for dim, start in cuts.starts.items():
        text = {"long_name": f"first point of the window along {dim}"}
        coords[f"{dim}_start"] = xr.Variable("sample", start, text)
        for name, coord in dataset.coords.items():
            if dim in coord.dims and set(coord.dims) <= {dim, data.sample_dim}:
                coords[f"{name}_origin"] = _at(coord.variable, _places(cuts, data.sample_dim, dim))
    return coords | _of_entries(dataset, data, cuts, coords)


def _of_entries(dataset: xr.Dataset, data: Data, cuts: Cuts, taken: dict[str, xr.Variable]) -> dict[str, xr.Variable]:
    """What the source says along its dim of samples."""
    dim, found = data.sample_dim, {}
    if dim is None:
        return {}
    places = _places(cuts, dim)
    for name, coord in dataset.coords.items():
        if dim in coord.dims and not set(cuts.size).intersection(coord.dims) and _is_small(coord, dim):
            found[str(name)] = _at(coord.variable, places)
    if dim not in dataset.indexes:
        found[dim] = xr.Variable("sample", places[dim], {"long_name": f"entry along {dim}"})
    return {f"source_{name}" if name in taken else name: variable for name, variable in found.items()}


def _places(cuts: Cuts, sample_dim: str | None, dim: str | None = None) -> dict[str, Array]:
    """Where samples lie along the dim of samples and a windowed dim."""
    places: dict[str, Array] = {} if dim is None else {dim: cuts.starts[dim]}
    if sample_dim is not None:
        assert cuts.position is not None
        places[sample_dim] = cuts.position
    return places


def _is_small(coord: xr.DataArray, sample_dim: str) -> bool:
    """Whether a coordinate along the dim of samples is one value for each, or at most 1 KiB."""
    return coord.ndim == 1 or coord.nbytes <= _SMALL * coord.sizes[sample_dim]


def _at(variable: xr.Variable, places: dict[str, Array]) -> xr.Variable:
    """A coordinate's values at some places, along ``sample``."""
    base = variable.to_base_variable()
    kept = {key: base.encoding[key] for key in ("units", "calendar") if key in base.encoding}
    attrs = {key: value for key, value in json_attrs(base.attrs).items() if key not in ("axis", "bounds")}
    whole = xr.Variable(base.dims, text_values(values_of(base)))
    index = {dim: xr.Variable("sample", place) for dim, place in places.items() if dim in base.dims}
    picked = whole.isel(index).transpose("sample", ...)
    return xr.Variable(picked.dims, picked.values, attrs, kept if base.dtype.kind in "MmO" else {})
