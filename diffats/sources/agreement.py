"""Whether the numbers of many files mean the same: units, calendars, reference times, encodings, coordinates."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from diffats.errors import SourceError
from diffats.sources.clock import calendar_of
from diffats.sources.unreadable import values_of

logger = logging.getLogger("diffats.sources")

Array = np.ndarray[Any, Any]

_NEAR = 1e-2  # of the distance of two points: coordinates that differ by less are of the same places
_ROUNDED = 1e-3  # of it: what is more than this is no round-off, and is told
_FIELD_BYTES, _COORDINATE_BYTES = 2**28, 2**25  # that are read of a variable to find out if it is the same in all files
_UNITS = {  # spellings that differ by more than signs
    **dict.fromkeys(("degC", "deg_C", "degreeC", "degrees_C", "degrees_celsius", "celsius", "Celsius"), "degC"),
    **dict.fromkeys(("kelvin", "Kelvin", "degK"), "K"),
    **dict.fromkeys(("degree_north", "degreeN", "degrees_N", "degreesN"), "degrees_north"),
    **dict.fromkeys(("degree_east", "degreeE", "degrees_E", "degreesE"), "degrees_east"),
    **dict.fromkeys(("", "-", "dimensionless", "none"), "1"),
    **dict.fromkeys(("metre", "meter", "metres", "meters"), "m"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("hour", "hours", "hr"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
}


def check_agreement(datasets: Sequence[xr.Dataset], names: Sequence[str], dim: str) -> None:
    """Refuse files whose numbers mean something else than those of the first one, or lie elsewhere.

    Parameters
    ----------
    datasets, names
        Files with the same variables and, but for ``dim``, the same sizes.
    dim
        Along which they are joined.

    Raises
    ------
    SourceError
        Which names a variable, what differs, and two files.
    """
    for name in datasets[0].variables:
        variables = [dataset.variables[name] for dataset in datasets]
        for what, fact in _MUST_AGREE.items():
            _refuse_other(str(name), what, [fact(variable) for variable in variables], names)
        for what, fact in _SHOULD_BE_IN_ALL.items():
            facts = [fact(variable) for variable in variables]
            _tell_other(str(name), what, facts, [(one is None) != (facts[0] is None) for one in facts], names)
        for what, fact in _SHOULD_AGREE.items():
            facts = [fact(variable) for variable in variables]
            _tell_other(
                str(name), what, facts, [None not in (one, facts[0]) and one != facts[0] for one in facts], names
            )
        if name in datasets[0].indexes and dim not in variables[0].dims:
            _check_points(str(name), variables, names, dim)


# --- what is said of the numbers ----------------------------------------------------------------------------------


def kind(variable: xr.Variable) -> str:
    """What decides whether values of two files can stand in one array: kinds of numbers do, calendars do not."""
    if variable.dtype.kind in "fiub":
        return "real numbers"
    if variable.dtype.kind == "O" and variable.ndim < 2 and variable.size:
        calendar = calendar_of(values_of(variable))
        if calendar:
            return f"dates of calendar {calendar}"
    return "text" if variable.dtype.kind in "OUT" else str(variable.dtype.type.__name__)


def plain_units(text: object) -> str:
    """Units in one spelling.

    >>> [plain_units(text) for text in ("m s-1", "m/s", "m s**-1", "m.s^-1", "s-1 m")]
    ['m s-1', 'm s-1', 'm s-1', 'm s-1', 'm s-1']
    >>> plain_units("celsius"), plain_units("kg/(m2 s)"), plain_units("hours since 1900-01-01")
    ('degC', 'kg/(m2 s)', 'hours since 1900-01-01')
    """
    plain = " ".join(str(text).split())
    if plain in _UNITS:
        return _UNITS[plain]
    if " since " in plain or re.search(r"[()%]", plain):
        return plain
    powers: dict[str, int] = {}
    signed = plain.replace("**", "").replace("^", "").replace("/", " / ").replace("*", " ")
    sign = 1
    for word in re.sub(r"\.(?=[A-Za-z])", " ", signed).split():
        found = re.fullmatch(r"([A-Za-z_]+)([+-]?\d+)?", word)
        if word == "/":
            sign = -1
            continue
        if word != "1" and found is None:
            return plain
        if found is not None:
            unit = _UNITS.get(found[1], found[1])
            powers[unit] = powers.get(unit, 0) + sign * int(found[2] or 1)
        sign = 1
    return " ".join(unit if power == 1 else f"{unit}{power}" for unit, power in sorted(powers.items()) if power) or "1"


def _units(variable: xr.Variable) -> str | None:
    units = variable.attrs.get("units")
    return None if units is None else plain_units(units)


def _attribute(key: str) -> Callable[[xr.Variable], str | None]:
    return lambda variable: None if key not in variable.attrs else str(np.asarray(variable.attrs[key]).tolist())


def _whole_or_real(variable: xr.Variable) -> str | None:
    """Whole numbers beside real ones may be packed, and their scale_factor lost; None of what is no field."""
    if variable.ndim < 2 or variable.dtype.kind not in "fiu":
        return None
    return "real" if variable.dtype.kind == "f" else "whole"


def _missing_value(variable: xr.Variable) -> str | None:
    """The number that stands for missing values, where there is one besides NaN."""
    for key in ("_FillValue", "missing_value"):
        value = np.asarray(variable.encoding.get(key, np.nan)).ravel()[:1]
        if value.dtype.kind in "fiu" and not np.isnan(value).any():
            return f"{value[0]:g}"
    return None


#: What differs only between files that cannot be joined; None is said by nobody.
_MUST_AGREE: dict[str, Callable[[xr.Variable], Any]] = {
    "dims": lambda variable: variable.dims,
    "values that are": kind,
    "units": _units,
    "times in": _attribute("undecoded_units"),
    "flag_values": _attribute("flag_values"),
    "flag_meanings": _attribute("flag_meanings"),
}
#: What may be a slip of the pen where only some have it, and where some have another.
_SHOULD_BE_IN_ALL: dict[str, Callable[[xr.Variable], str | None]] = {
    "units": _units,
    "missing value": _missing_value,
}
_SHOULD_AGREE: dict[str, Callable[[xr.Variable], str | None]] = {
    **{key: _attribute(key) for key in ("standard_name", "cell_methods", "positive")},
    "numbers that are": _whole_or_real,
}


def _refuse_other(variable: str, what: str, facts: Sequence[Any], names: Sequence[str]) -> None:
    known = [i for i, fact in enumerate(facts) if fact is not None]
    other = next((i for i in known if facts[i] != facts[known[0]]), None)
    if other is not None:
        raise SourceError(
            f'data.source: variable "{variable}" has {what} {facts[known[0]]} in {names[known[0]]} but {facts[other]} '
            f"in {names[other]}. Narrow the glob to files of one kind, or convert them."
        )


def _tell_other(
    variable: str, what: str, facts: Sequence[str | None], is_other: Sequence[bool], names: Sequence[str]
) -> None:
    """Tell of files that say something else than the first one."""
    others = [i for i, other in enumerate(is_other) if other]
    if others:
        here, there = (f"no {what}" if fact is None else f"{what} {fact}" for fact in (facts[0], facts[others[0]]))
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        logger.warning(
            'data.source: variable "%s" has %s in %s but %s in %s%s; its numbers are taken as they are.',
            *(variable, here, names[0], there, names[others[0]], more),
        )


# --- what lies where ----------------------------------------------------------------------------------------------


def _check_points(coordinate: str, variables: Sequence[xr.Variable], names: Sequence[str], dim: str) -> None:
    """Refuse a coordinate of other places; tell of one that differs by more than round-off."""
    furthest, where = 0.0, 0
    for i, variable in enumerate(variables[1:], start=1):
        off = offset(values_of(variables[0]), values_of(variable))
        if off > _NEAR:
            raise SourceError(
                f'data.source: coordinate "{coordinate}" has other values in {names[i]} than in {names[0]}, and only '
                f'those of "{dim}", along which files are joined, may differ. Narrow the glob, or bring them onto one '
                "grid."
            )
        furthest, where = max((furthest, where), (off, i))
    if furthest > _ROUNDED:
        logger.warning(
            'data.source: coordinate "%s" in %s is off that in %s by %.2g of the distance of two points; the latter is '
            "taken for all files.",
            *(coordinate, names[where], names[0], furthest),
        )


def offset(a: Array, b: Array) -> float:
    """How far two arrays of coordinates are apart at most, as a share of their least step; round-off counts as none.

    Round-off is of float32, where one of them has been that: its numbers are no longer than that. Infinite for values
    of other shapes, for text and times that differ, and for single numbers beyond round-off.

    >>> x = np.linspace(0, 1, 5)
    >>> offset(x, x.astype("f4")), round(offset(x, x + 0.0025), 3), offset(np.array([1e-9]), np.array([2e-9]))
    (0.0, 0.01, inf)
    """
    if a.shape != b.shape:
        return np.inf
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        return 0.0 if a.dtype.kind == b.dtype.kind and bool((a == b).all()) else np.inf
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, np.abs(x - y))
    far = float(apart.max(initial=0))
    if not far:
        return 0.0
    step = _least_step(x)
    if far <= min(_rounding(a, b) * float(np.nanmax(np.abs(x))), step / 4):
        return 0.0
    return far / step if np.isfinite(step) and not np.isnan(far) else np.inf


def _least_step(x: Array) -> float:
    """The least distance of neighbours along any axis, of those that are apart; infinite where none are."""
    steps = [np.abs(np.diff(x, axis=axis)).ravel() for axis in range(x.ndim)]
    apart = np.concatenate([step[step > 0] for step in steps]) if steps else np.zeros(0)
    return float(apart.min(initial=np.inf))


def _rounding(a: Array, b: Array) -> float:
    """The relative error of the shorter one of two arrays of numbers."""
    whole = a.dtype.kind in "iub" and b.dtype.kind in "iub"
    return 0.0 if whole else max(_precision(a), _precision(b))


def _precision(a: Array) -> float:
    """That of float32 for numbers that it holds, unless they are whole or one alone: these say nothing."""
    short = a.dtype.kind == "f" and a.dtype.itemsize < 8
    if a.dtype.kind == "f" and not short and a.size > 1:
        short = bool((a == a.astype(np.float32)).all() and (a != np.round(a)).any())
    return float(np.finfo(np.float32 if short else np.float64).eps) * (1 if short else 4)


def near(a: Array, b: Array) -> bool:
    """Whether two arrays of coordinates are of the same places: see `offset`."""
    return offset(a, b) <= _NEAR


def same_in_all(variables: Sequence[xr.Variable], name: str, names: Sequence[str], *, is_field: bool) -> bool:
    """Whether a variable is the same in all files.

    Coordinates with dims may differ by round-off; fields and single values may not. Of one that is too large, some
    files are looked at, and that is told.
    """
    first, others = variables[0], np.arange(1, len(variables))
    most = max(2, (_FIELD_BYTES if is_field else _COORDINATE_BYTES) // max(1, first.nbytes))
    if most < len(others):
        others = np.unique(np.linspace(1, len(variables) - 1, most).round().astype(int))
    values = values_of(first)
    same = near if first.ndim and not is_field and values.dtype.kind == "f" else equal
    if not all(same(values, values_of(variables[int(i)])) for i in others):
        return False
    if len(others) < len(variables) - 1:
        logger.log(
            logging.WARNING if is_field else logging.INFO,
            'data.source: "%s" is taken from %s for all files; for its size, only %d of %d others were compared.',
            *(name, names[0], len(others), len(variables) - 1),
        )
    return True


def equal(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same numbers, dates or texts, missing ones alike.

    >>> equal(np.array([1.0, np.nan]), np.array([1.0, np.nan])), equal(np.array(1e-9), np.array(2e-9))
    (True, False)
    """
    if a.shape != b.shape:
        return False
    same = np.asarray(a == b)
    missing = np.asarray(a != a) & np.asarray(b != b)
    return bool((same | missing).all())
