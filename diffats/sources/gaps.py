"""Points that some samples lack and others do not, and numbers that stand for missing ones without a word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Numbers, without sign and to six digits, by which writers mark what is missing: 999.9, 1e20, netCDF's default, ...
_USUAL = re.compile(r"9{2,6}(\.9+)?|1e\+[1-5]\d|9\.96921e\+36|3\.40282e\+38|3276[78]|65535|2\.14748e\+09")
_FAR, _FAR_USUAL = 10.0, 0.2  # from all other numbers, relative to the range of these; and where the number is usual
_MANY = 8  # variables that are told of


def repeated_extremes(x: Array, names: Sequence[str]) -> Counter[tuple[str, float]]:
    """How often the least or largest number of a variable comes, where it comes repeatedly and is far from all others.

    Parameters
    ----------
    x
        ``(k, *sizes)``, of several variables ``(k, variables, *sizes)``; NaN where missing.

    >>> repeated_extremes(np.array([[1.5, -999.0, 2.0], [-999.0, 3.0, 2.5]]), ["u"])
    Counter({('u', -999.0): 2})
    """
    found: Counter[tuple[str, float]] = Counter()
    for i, name in enumerate(names):
        values = x[:, i] if len(names) > 1 else x
        if values.size:
            ends = {float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))}
            found.update({(name, end): _repeats(values, end) for end in ends if np.isfinite(end)})
    return Counter({key: count for key, count in found.items() if count})


def _repeats(values: Array, end: float) -> int:
    """How often an extreme comes; 0 where it comes once, or is near to others, or these are all equal."""
    count = int(np.count_nonzero(values == end))
    if count < 2:
        return 0
    others = np.isfinite(values) & (values != end)
    low, high = (
        float(reduce(values, where=others, initial=start)) for reduce, start in ((np.min, np.inf), (np.max, -np.inf))
    )
    if low >= high:
        return 0
    far = _FAR_USUAL if _USUAL.fullmatch(f"{abs(end):.6g}") else _FAR
    return count if min(abs(end - low), abs(end - high)) > far * (high - low) else 0


def repeated_in_words(found: Mapping[tuple[str, float], int], total: int) -> list[str]:
    """A sentence for each number that `repeated_extremes` found among ``total`` numbers of each variable.

    >>> repeated_in_words({("u", -999.0): 2}, 6)[0][:70]
    '"u": 2 of 6 values are exactly -999, far from all others. If this stan'
    """
    return [
        f'"{name}": {count} of {total} values are exactly {value:.7g}, far from all others. If this stands for missing '
        f"ones, set the attribute _FillValue = {value:.7g} of the variable in the source"
        for (name, value), count in list(found.items())[:_MANY]
    ]


def differing_points(missing: npt.NDArray[np.bool_], sizes: Mapping[str, int], names: Sequence[str]) -> str:
    """Which points some samples lack and others do not, and how many, in words; empty where all lack the same.

    Parameters
    ----------
    missing
        ``(k, *sizes)``; samples that lack everything do not count.
    names
        Of the variables, along the mode ``component`` where there are several.

    >>> gone = np.zeros((3, 4, 5), bool); gone[0, 1, 2:4] = True
    >>> differing_points(gone, {"y": 4, "x": 5}, ["u"])
    '2 of 20 points are missing in some samples only (y 1, x 2 to 3, from 0), and 0 in all'
    """
    readable = missing[~missing.all(axis=tuple(range(1, missing.ndim)))]
    if not len(readable):
        return ""
    always = np.asarray(readable.all(axis=0))
    some = np.asarray(readable.any(axis=0) & ~always)
    if not some.any():
        return ""
    count = f"{int(some.sum())} of {some.size} points are missing in some samples only"
    if len(names) > 1:
        by = {name: int(part.sum()) for name, part in zip(names, some, strict=True)}
        count += f" ({', '.join(f'{name} {n}' for name, n in list(by.items())[:_MANY])})"
    places = []
    for axis, mode in enumerate(sizes):
        if not (mode == "component" and len(names) > 1):
            along = np.flatnonzero(some.any(axis=tuple(a for a in range(some.ndim) if a != axis)))
            places.append(f"{mode} {along[0]}" + (f" to {along[-1]}" if len(along) > 1 else ""))
    return f"{count} ({', '.join(places)}, from 0), and {int(always.sum())} in all"


def ways_out(windowed: Sequence[str]) -> str:
    """What to do where samples lack other points each.

    Parameters
    ----------
    windowed
        Dims of space along which windows are cut.
    """
    if windowed:
        whole = f"cut no windows along {' and '.join(windowed)}, where coasts move from window to window"
    else:
        whole = "give a part of the source where all samples lack the same points"
    return f"Either fill them in the source, with xarray's interpolate_na or fillna; or {whole}."
