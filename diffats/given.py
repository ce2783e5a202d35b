"""Conditions as users give them: xarray objects on the model's grid as plain arrays, and what training has not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import grids
from diffats.errors import InputError
from diffats.primitives import ConditionLayout

log = logging.getLogger("diffats.given")
_SLIGHT = 0.05  # of the width of a range: outside by so much is no reason to worry
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """What a given field must be like.

    Attributes
    ----------
    name
        Of the condition.
    sizes
        Of its dims, in the model's order, without a mode of variables.
    units
        By variable, where they are known: several of the initial state, else one.
    grid
        Has the model's coordinates.
    windowed
        Dims along which only the steps of a coordinate must agree.
    gone
        The dim along which an initial state is one slice; None for others.
    """

    name: str
    sizes: Mapping[str, int]
    units: Mapping[str, object]
    grid: xr.Dataset
    windowed: frozenset[str] = frozenset()
    gone: str | None = None


def as_array(given: xr.DataArray | xr.Dataset, expected: Expected, n: int) -> Array:
    """A given field ``(*sizes)`` for all samples, or ``(n, *sizes)``; several variables come before ``sizes``.

    Raises
    ------
    InputError
        Which says what was expected.

    Examples
    --------
    >>> state = xr.DataArray(np.zeros((4, 3)), dims=("x", "y"))
    >>> as_array(state, Expected("initial", {"y": 3, "x": 4}, {"u": "m"}, xr.Dataset(), gone="time"), 2).shape
    (3, 4)
    """
    parts = [_placed(array, expected, unit, n) for array, unit in _by_variable(given, expected)]
    if len({part.shape for part in parts}) > 1:
        raise InputError(
            f'condition "{expected.name}": its variables have shapes {[part.shape for part in parts]}, not one. '
            "Give one state for all samples, or one a sample, in all of them."
        )
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=parts[0].ndim - len(expected.sizes))


def _by_variable(given: xr.DataArray | xr.Dataset, expected: Expected) -> list[tuple[xr.DataArray, object]]:
    """Each variable and the model's unit of it."""
    names = list(expected.units)
    if isinstance(given, xr.Dataset):
        for name in names:
            if name not in given:
                there = ", ".join(map(str, given.data_vars)) or "none"
                raise InputError(
                    f'condition "{expected.name}": the dataset has no variable "{name}" (it has {there}). '
                    f"Expected {', '.join(names)}."
                )
        return [(given[name], expected.units[name]) for name in names]
    if len(names) == 1:
        return [(given, expected.units[names[0]])]
    if "component" not in given.dims or given.sizes["component"] != len(names):
        raise InputError(
            f'condition "{expected.name}" has the variables {", ".join(names)}; got one array of {_sizes(given)}. '
            f'Give an xarray.Dataset with them, or an array with a dim "component" of size {len(names)}.'
        )
    if "component" not in given.coords:
        return [(given.isel(component=i), expected.units[name]) for i, name in enumerate(names)]
    known = [str(name) for name in given["component"].values]
    if sorted(known) != sorted(names):
        raise InputError(f'condition "{expected.name}" has components {", ".join(known)}, expected {", ".join(names)}.')
    return [(given.isel(component=known.index(name)), expected.units[name]) for name in names]


def _placed(array: xr.DataArray, expected: Expected, unit: object, n: int) -> Array:
    """One variable on the model's grid: ``(*sizes)``, or ``(n, *sizes)``."""
    what, dims = f'condition "{expected.name}"', tuple(expected.sizes)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} holds {array.dtype} values, expected real numbers.")
    gone = expected.gone
    if gone in array.dims:
        if array.sizes[gone] != 1:
            raise InputError(
                f'{what} has {array.sizes[gone]} points along "{gone}", expected one slice. Select it first: '
                f".isel({gone}=...)."
            )
        array = array.isel({gone: 0}, drop=True)
    array = _without_short(array, dims, what, n)
    grids.check_units(array, unit, what=what)
    for dim in dims:
        array = grids.in_order(array, dim, expected.grid, offsets=dim in expected.windowed, what=what)
    if {dim: array.sizes[dim] for dim in dims} != dict(expected.sizes):
        wanted = ", ".join(f"{dim}={size}" for dim, size in expected.sizes.items())
        raise InputError(f"{what} has sizes {_sizes(array)}, expected {wanted}. Interpolate or select these points.")
    return np.ascontiguousarray(array.transpose(..., *dims).values)  # sums of other layouts round in another way


def _without_short(array: xr.DataArray, dims: Sequence[str], what: str, n: int) -> xr.DataArray:
    """A field over its dims and at most one of samples; other dims of size one are in no one's way."""
    others = [dim for dim in array.dims if dim not in dims]
    long = [dim for dim in others if array.sizes[dim] > 1]
    if set(dims) - set(array.dims) or len(long) > 1:
        raise InputError(
            f"{what} has {_sizes(array)}, expected dims {', '.join(dims)}, and one more where each sample has its own. "
            "Rename dims, or select what is meant."
        )
    if long and array.sizes[long[0]] != n:
        raise InputError(
            f'{what} has {array.sizes[long[0]]} states along "{long[0]}" for {_samples(n)}. '
            "Give one for all of them, or one each."
        )
    return array.isel({dim: 0 for dim in others if dim not in long}, drop=True)


def _samples(n: int) -> str:
    return "1 sample" if n == 1 else f"{n} samples"


def _sizes(array: xr.DataArray) -> str:
    return ", ".join(f"{dim}={size}" for dim, size in array.sizes.items()) or "no dims"


def known_points(name: str, value: Array, examples: Array) -> Array:
    """A condition without values where training has none, such as land; it must be finite elsewhere.

    Parameters
    ----------
    name
        Of the condition.
    value
        ``(n, *shape)``.
    examples
        ``(k, *shape)`` of training; points that are NaN in some may be missing, points that are NaN in all are.

    Raises
    ------
    InputError
        Where it is not.
    """
    missing = np.isnan(examples)
    if not np.isfinite(np.where(missing.any(axis=0), 0, value)).all():
        raise InputError(f'condition "{name}" holds NaN or infinite values. Give finite numbers.')
    never = missing.all(axis=0)
    extra = int((never & ~np.isnan(value)).any(axis=0).sum())
    if not extra:
        return value
    text = 'condition "%s" has values at %d of the %d points that are missing in all of training (land, say): left out'
    log.warning(text, name, extra, int(never.sum()))
    return np.where(never, np.nan, value).astype(value.dtype)


def check_range(layout: ConditionLayout, places: Mapping[str, Array], limit: float | None) -> None:
    """Warn of conditions outside of the range of training; refuse those further outside than ``limit`` of its widths.

    Being outside by a twentieth of the width, as new samples of the same kind are, is remarked on and not warned of.

    Parameters
    ----------
    places
        From ``layout.places``; conditions whose range is not known are not judged.

    Raises
    ------
    InputError
        Which names the condition and its range.
    """
    for name, excess in layout.beyond(places).items():
        worst = int(excess.argmax())
        if excess[worst] == 0:
            continue
        text = _outside(name, float(places[name][worst]), layout.ranges[name], int((excess > 0).sum()), len(excess))
        far = f"by {excess[worst]:.3g} of its width" if np.isfinite(excess[worst]) else "which is one value"
        if limit is not None and excess[worst] > limit:
            raise InputError(f"{text} ({far}; max_extrapolation is {limit:g}). Give one that is nearer, or raise it.")
        slight = excess[worst] <= _SLIGHT
        log.log(logging.INFO if slight else logging.WARNING, "%s (%s): the model extrapolates", text, far)


def _outside(name: str, place: float, span: tuple[float, float], count: int, of: int) -> str:
    """Where a condition is, of how many samples, and the range of training."""
    kind, _, rest = name.partition("_")
    public = rest if kind in ("scalar", "field") else name
    some = "" if of == 1 else f" of {count} of {of} samples"
    to = "" if count == 1 else "up to " if place > span[1] else "down to "
    inside = f"outside of the range of training, {span[0]:.6g} to {span[1]:.6g}"
    if kind == "scalar":
        return f'condition "{public}"{some} is {to}{place:.6g}, {inside}'
    return (
        f'condition "{public}"{some} deviates from the training mean by {to}{place:.4g} training deviations, {inside}'
    )
