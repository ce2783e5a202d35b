"""Opening a source of which nothing is known but its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import Data
from diffats.errors import SourceError
from diffats.proposing.dims import is_time
from diffats.sources import opening
from diffats.sources.arrays import array_shapes
from diffats.sources.builtin import BUILTINS
from diffats.sources.groups import groups_with_arrays

SAMPLE = "sample"  # the dim along which files are stacked, and the first axis of arrays
_AXES = {1: ("x",), 2: ("y", "x"), 3: ("time", "y", "x"), 4: ("time", "z", "y", "x")}
_COLOURS = (3, 4)  # of a last axis so short, the pixels of an image
_FEW = 8  # a first axis this short, of an array of three axes or more, holds no samples
_HOW = ("group", "engine", "concat_dim", "storage_options")  # keys of [data] that say how a source is opened


@dataclass(frozen=True)
class Opened:
    """A lazy data set, and what the recipe must say to open it again.

    Attributes
    ----------
    how
        Keys of the section ``[data]``.
    notes
        By key: why.
    files, along
        How many files are joined along ``along``; 0 where there is one.
    beside
        What else there is.
    """

    dataset: xr.Dataset
    how: dict[str, Any]
    notes: dict[str, str]
    files: int = 0
    along: str = ""
    beside: str = ""


def open_unknown(source: str, given: Mapping[str, Any]) -> Opened:
    """Open a source by its place and what is given of the recipe's section ``[data]``.

    Raises
    ------
    SourceError
        Where it is missing or unreadable.
    """
    how = {key: given[key] for key in _HOW if key in given}
    data = _data(source, how)
    if _is_numpy(data):
        names, why = name_axes(array_shapes(opening.locate(data)[0], data), given)
        dataset = opening.open_source(data.model_copy(update=names), every=True)
        return Opened(dataset, how, {"modes": why})
    opened = _with_group(Opened(opening.open_source(data, every=True), how, {}), data)
    return _with_files(opened, source)


def _data(source: str, how: Mapping[str, Any]) -> Data:
    """A section that opens a source, whatever its dims."""
    return Data(source=source, **{"modes": ["x"], "sample_dim": SAMPLE, **how})


def _is_numpy(data: Data) -> bool:
    if data.source.startswith("builtin:"):
        return False
    return (data.engine or opening.recognise(opening.locate(data)[0], data)) == "numpy"


def _with_group(opened: Opened, data: Data) -> Opened:
    """The only group with arrays, where the root has none."""
    groups = [] if data.group else groups_with_arrays(data)
    if not groups:
        return opened
    if any(array.ndim > 1 for array in opened.dataset.data_vars.values()):
        return replace(opened, beside=f"Other groups with arrays, for --group: {', '.join(groups[:12])}.")
    if len(groups) > 1:
        raise SourceError(
            f"{data.source} has its fields in {len(groups)} groups ({', '.join(groups[:12])}). Choose one with --group."
        )
    how = {**opened.how, "group": groups[0]}
    dataset = opening.open_source(data.model_copy(update={"group": groups[0]}), every=True)
    return Opened(dataset, how, {"group": "the only group with fields"})


def _with_files(opened: Opened, source: str) -> Opened:
    """Tell along which dim files are joined; files of one time each are joined along that time."""
    parts = opened.dataset.encoding.get("parts") or []
    if len(parts) < 2 or Path(source).is_dir():
        return opened
    along = str(parts[0][1])
    if along == SAMPLE and "concat_dim" not in opened.how:
        first = opening.open_source(_data(parts[0][0], opened.how))
        times = [str(name) for name, coord in first.coords.items() if not coord.ndim and is_time(coord)]
        if len(times) == 1:
            how = {**opened.how, "concat_dim": times[0]}
            dataset = opening.open_source(_data(source, how), every=True)
            note = f"each of the {len(parts)} files holds one"
            return Opened(dataset, how, {**opened.notes, "concat_dim": note}, len(parts), times[0], opened.beside)
    return replace(opened, files=len(parts), along=along)


def name_axes(
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], given: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Names for the axes of unnamed arrays: ``variables``, ``sample_dim`` and ``modes``, and why.

    An array of one axis as long as one of the main array's names it. The other axes are called by what is usual:
    samples first, then time, y and x; a short last axis of an array of pixels is its colours.

    >>> name_axes({"u": ((20, 40, 64), np.dtype("f4")), "t": ((40,), np.dtype("f4"))}, {})[0]
    {'variables': ['u'], 'modes': ['t', 'x'], 'sample_dim': 'sample'}
    >>> name_axes({"photos": ((500, 32, 32, 3), np.dtype("u1"))}, {})[0]["modes"]
    ['y', 'x', 'channel']
    """
    main = _main_arrays(shapes, list(given.get("variables") or shapes))
    shape = shapes[main[0]][0]
    if given.get("modes"):
        sample_dim = given.get("sample_dim")
        return {"variables": main, "modes": list(given["modes"]), "sample_dim": sample_dim}, "as given"
    dims, sample = _axis_names(shape), str(given.get("sample_dim") or SAMPLE)
    for name, (other, _) in shapes.items():
        if len(other) == 1 and shape.count(other[0]) == 1 and re.fullmatch(r"\w+", name):
            axis = shape.index(other[0])
            if dims[axis] != SAMPLE:  # what is known of each sample is no name of its dim
                dims[axis] = name
    dims = [sample if dim == SAMPLE else dim for dim in dims]
    shown = ", ".join(f"{dim} {n}" for dim, n in zip(dims, shape, strict=True))
    why = (
        f"the axes of an array have no names: taken as ({shown}); rename them here, in this order, where that is wrong"
    )
    sample_dim = sample if sample in dims else None
    return {"variables": main, "modes": [dim for dim in dims if dim != sample], "sample_dim": sample_dim}, why


def _axis_names(shape: Sequence[int]) -> list[str]:
    colours = len(shape) > 2 and shape[-1] in _COLOURS and min(shape[-3:-1]) > _FEW
    if len(shape) == 3 and shape[0] in _COLOURS and not colours:
        return ["channel", "y", "x"]
    places = list(shape[:-1] if colours else shape)
    samples = len(places) > 1 and (len(places) < 3 or places[0] > _FEW)
    inner = len(places) - samples
    names = list(_AXES.get(inner, tuple(f"axis_{axis}" for axis in range(inner))))
    return [SAMPLE] * samples + names + ["channel"] * colours


def _main_arrays(shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], names: Sequence[str]) -> list[str]:
    """Arrays of the largest shape among those of numbers."""
    numbers = [name for name in names if name in shapes and shapes[name][1].kind in "fiub" and len(shapes[name][0]) > 1]
    if not numbers:
        listed = ", ".join(f"{name} {shape} {dtype}" for name, (shape, dtype) in shapes.items())
        raise SourceError(
            f"the source has no array of real numbers with two axes or more (it has: {listed}). Convert complex ones "
            "to their real and imaginary parts."
        )
    largest = max((shapes[name][0] for name in numbers), key=lambda shape: (len(shape), int(np.prod(shape))))
    return [name for name in numbers if shapes[name][0] == largest]


def kinds_of_sources() -> list[dict[str, str]]:
    """What can be a source: ``kind``, ``about`` and ``example``, in the order in which they are recognised."""
    made = [{"kind": kind.name, "about": kind.about, "example": kind.example} for kind in opening.KINDS if kind.about]
    made += [{"kind": "builtin", "about": "data that need no download", "example": f"builtin:{n}"} for n in BUILTINS]
    other = {"kind": "xarray", "about": "what another engine of xarray opens"}
    return [*made, {**other, "example": "image.tif --set data.engine=rasterio"}]
