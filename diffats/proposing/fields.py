"""Which variables of a source are fields on one grid, and what the others are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from diffats.errors import SourceError
from diffats.sources.naming import unknown_name

_CELL_BOUNDS = ("bnds", "bounds", "nv", "nbnd", "nvertex", "vertices", "vertex")
_KINDS = {"c": "complex", "M": "times", "m": "time differences", "O": "text or objects"}
_LISTED = 12


@dataclass(frozen=True)
class Fields:
    """The variables to learn from.

    Attributes
    ----------
    names
        In the order of the source; all on the dims of ``sizes``.
    sizes
        Their dims of more than one point, in order.
    others
        By other variable of the source: what it is instead.
    """

    names: tuple[str, ...]
    sizes: dict[str, int]
    others: dict[str, str]


def find_fields(dataset: xr.Dataset, source: str, wanted: Sequence[str] = ()) -> Fields:
    """The largest group of fields on one grid.

    Parameters
    ----------
    wanted
        Names that are asked for; the group is that of the first one.

    Raises
    ------
    SourceError
        Where there is none, with what there is instead.

    >>> air = {"t": (("time", "lat"), [[1.0, 2.0], [3.0, 4.0]]), "names": ("time", ["a", "b"])}
    >>> find_fields(xr.Dataset(air), "air.nc")
    Fields(names=('t',), sizes={'time': 2, 'lat': 2}, others={'names': 'text'})
    """
    for name in wanted:
        if name not in dataset.variables:
            raise unknown_name("data.variables", name, dataset.data_vars, where="the source")
    others: dict[str, str] = {}
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for name in map(str, wanted or dataset.data_vars):
        reason = why_no_field(dataset[name])
        if reason:
            others[name] = reason
        else:
            groups[frozenset(_sizes(dataset[name]))].append(name)
    if not groups:
        raise _nothing(source, others)
    chosen = max(groups.values(), key=lambda names: sum(math.prod(_sizes(dataset[name]).values()) for name in names))
    for names in groups.values():
        if names is not chosen:
            others |= {name: f"on another grid ({', '.join(_sizes(dataset[name]))})" for name in names}
    return Fields(tuple(chosen), _sizes(dataset[chosen[0]]), others)


def why_no_field(array: xr.DataArray) -> str:
    """What a variable is, if it is no field of real numbers; empty where it is one.

    >>> why_no_field(xr.DataArray([1.0, 2.0], dims="time")), why_no_field(xr.DataArray([[1j], [2j]]))
    ('one number for each time', 'complex')
    """
    if array.dtype.kind in "SUT" or array.dtype == object:
        return "text"
    if array.dtype.kind not in "fiub":
        return _KINDS.get(array.dtype.kind, str(array.dtype))
    if 0 in array.shape:
        return "empty"
    if any(str(dim).lower() in _CELL_BOUNDS for dim in array.dims):
        return "bounds of cells"
    if "flag_meanings" in array.attrs or "flag_values" in array.attrs:
        return "classes"
    if array.encoding.get("each_file"):
        return "one field for each file"
    dims = list(_sizes(array))
    if len(dims) < 2:
        return f"one number for each {dims[0]}" if dims else "a single number"
    return ""


def _sizes(array: xr.DataArray) -> dict[str, int]:
    return {str(dim): int(n) for dim, n in array.sizes.items() if n != 1}


def _nothing(source: str, others: dict[str, str]) -> SourceError:
    found = f"It has: {listed_others(others)}." if others else "It has no variables."
    fix = "Convert complex ones to their real and imaginary parts." if "complex" in others.values() else ""
    return SourceError(
        f"{source} has no field to learn from: no variable of real numbers along two dims or more. {found} "
        + (fix or "Give another source.")
    )


def listed_others(others: dict[str, str]) -> str:
    """Other variables and what they are, in one line."""
    shown = [f"{name} ({what})" for name, what in list(others.items())[:_LISTED]]
    return ", ".join(shown) + (f" and {len(others) - _LISTED} more" if len(others) > _LISTED else "")
