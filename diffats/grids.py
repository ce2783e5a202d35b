"""Fields that users give, held against a model's grid: units, and the points of each dim in any order."""

from __future__ import annotations

from typing import Any

import cftime
import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.attributes import valid_attrs
from diffats.errors import InputError

Array = npt.NDArray[Any]


def check_units(array: xr.DataArray, expected: object, *, what: str) -> None:
    """Refuse a field in another unit than the model's, where both are known.

    >>> check_units(xr.DataArray([1.0], attrs={"units": "degC"}), "K", what='variable "t"')
    Traceback (most recent call last):
    ...
    diffats.errors.InputError: variable "t" is in "degC", the model is of "K". Convert it first.
    """
    units = valid_attrs(array.attrs).get("units")  # the model's were made valid when its source was opened
    if None not in (units, expected) and units != expected:
        raise InputError(f'{what} is in "{units}", the model is of "{expected}". Convert it first.')


def in_order(array: xr.DataArray, dim: str, ours: xr.Dataset, *, offsets: bool, what: str) -> xr.DataArray:
    """A field with the points of a dim in the order of the model's coordinate.

    Parameters
    ----------
    array
        The field. Where it or the model has no coordinate there, or another number of points, it comes back as it is.
    dim
        One of its dims.
    ours
        What has the model's coordinates.
    offsets
        Whether only distances from the first point must agree: along a window.
    what
        Its name in messages.

    Raises
    ------
    InputError
        Where the points are others.
    """
    if dim not in ours.coords or dim not in array.coords:
        return array
    expected, theirs = ours.coords[dim], array.coords[dim]
    if expected.shape != theirs.shape or expected.dims != (dim,):
        return array  # refused with all sizes; or no coordinate of the dim, though it has its name
    order = matching_order(expected.values, theirs.values, offsets=offsets)
    if order is None:
        differ = "steps" if offsets else "values"
        raise InputError(
            f'coordinate "{dim}" of {what} has other {differ} than the model\'s: {_few(theirs.values)}, expected '
            f"{_few(expected.values)}. Interpolate or select these points first."
        )
    return array.isel({dim: order})


def matching_order(ours: Array, theirs: Array, *, offsets: bool) -> Array | None:
    """Where in ``theirs`` each point of ``ours`` is; None where the points are others.

    Parameters
    ----------
    offsets
        Whether only distances from the first point must agree.

    >>> matching_order(np.array([60.0, 0.0, -60.0]), np.array([-60.0, 0.0, 60.0]), offsets=False).tolist()
    [2, 1, 0]
    >>> matching_order(np.array([0.0, 5.0]), np.array([90.0, 95.0]), offsets=True).tolist()
    [0, 1]
    >>> matching_order(np.array([0.0, 5.0]), np.array([0.0, 6.0]), offsets=True) is None
    True
    """
    a, b = _as_numbers(ours), _as_numbers(theirs)
    if a is None or b is None:
        equal = sorted(map(str, ours)) == sorted(map(str, theirs))
        return np.array([list(map(str, theirs)).index(str(point)) for point in ours]) if equal else None
    ranked = np.argsort(b, kind="stable")[np.argsort(np.argsort(a, kind="stable"), kind="stable")]
    if offsets:
        a, b = a - a[0], b - b[ranked[0]]
    near = 1e-5 * max(float(np.abs(a).max()), 1e-30)
    return ranked if np.allclose(a, b[ranked], rtol=1e-5, atol=near) else None


def _as_numbers(values: Array) -> Array | None:
    """Coordinate values as float64, times in seconds; None for text."""
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    if values.dtype.kind == "m":
        return np.asarray(values / np.timedelta64(1, "s"))
    if values.dtype.kind == "M":
        return values.astype("M8[ns]").astype(np.int64) / 1e9
    if values.dtype.kind == "O" and hasattr(values[0], "calendar"):
        return np.asarray(cftime.date2num(values, "seconds since 0001-01-01", values[0].calendar), dtype=np.float64)
    return None


def _few(values: Array) -> str:
    """The first and the last of some values."""
    return f"{values[0]} .. {values[-1]}"
