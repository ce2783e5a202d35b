"""How the points of a coordinate lie: evenly, with gaps, repeated or out of order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_EVEN = 1e-3  # spacing may vary by this share: longitudes are often stored as float32
_GAP = 1.5  # of the median step: months and years vary by less


def differences(values: Array) -> Array | None:
    """Steps between neighbouring points, of numbers, times and cftime dates; None of anything else."""
    if values.dtype.kind == "O":  # cftime dates differ by datetime.timedelta
        if not all(hasattr(value, "calendar") for value in values):
            return None
        return np.array([b - a for a, b in itertools.pairwise(values)], dtype="timedelta64[us]")
    if values.dtype.kind in "USTbc":
        return None
    if values.dtype.kind == "u":
        values = values.astype(np.int64)
    return np.diff(values)


def even(steps: Array) -> bool:
    """Whether all steps are equal.

    >>> even(np.diff([0.0, 2.0, 4.0])), even(np.diff([0.0, 2.0, 5.0]))
    (True, False)
    """
    if not len(steps):
        return True
    sizes = steps.astype(np.float64)
    return bool(np.isfinite(sizes).all() and sizes[0] != 0 and np.ptp(sizes) <= _EVEN * abs(sizes[0]))


def broken_windows(values: Array, starts: Array, size: int) -> int:
    """How many windows hold a gap, a repeated, a missing or an unsorted point of their coordinate.

    A gap is a step of more than 1.5 times the median one, along time or an axis that is even otherwise.

    >>> broken_windows(np.array([0.0, 1, 2, 9, 10, 11]), np.array([0, 2, 4]), 2)
    1
    """
    steps = differences(values)
    if steps is None or not len(steps):
        return 0
    is_time = values.dtype.kind in "MmO"
    sizes = np.where(np.isnat(steps), np.nan, steps.astype(np.float64)) if is_time else steps.astype(np.float64)
    if not np.isfinite(sizes).any():
        return len(starts) if size > 1 else 0
    usual = float(np.nanmedian(sizes))
    regular = is_time or np.mean(np.abs(sizes - usual) <= _EVEN * abs(usual)) > 0.5
    broken = ~(sizes * np.sign(usual) > 0)  # NaN, too
    if regular:
        broken |= np.abs(sizes) > _GAP * abs(usual)
    before = np.concatenate([[0], np.cumsum(broken)])
    return int((before[starts + size - 1] > before[starts]).sum())


def repeated(values: Array) -> int:
    """How many entries are equal to an earlier one.

    >>> repeated(np.array(["a", "b", "a"]))
    1
    """
    return len(values) - len({str(value) for value in values})
