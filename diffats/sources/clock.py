"""The phase of times within the year or the day, of any calendar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import is_phase
from diffats.errors import SourceError
from diffats.sources.naming import unknown_name
from diffats.sources.unreadable import values_of

Array = np.ndarray[Any, Any]

# Days of an ordinary year; leap years are stretched to it.
_YEARS = {"360_day": 360, "all_leap": 366, "366_day": 366}


@dataclass(frozen=True)
class Clock:
    """What of a coordinate of times comes back every year or day: ``"time.dayofyear"``, ``"time.month"``, ...

    Attributes
    ----------
    name
        Coordinate and part.
    calendar
        Of the coordinate.
    """

    name: str
    calendar: str = "standard"

    @property
    def coordinate(self) -> str:
        """The coordinate of times."""
        return self.name.rpartition(".")[0]

    @property
    def part(self) -> str:
        """What of it: ``"dayofyear"``, ``"month"`` or ``"hour"``."""
        return self.name.rpartition(".")[2]

    @property
    def cycle(self) -> tuple[float, float]:
        """The first number that it counts, and how many there are until it begins anew."""
        return {"hour": (0.0, 24.0), "month": (1.0, 12.0), "dayofyear": (1.0, _YEARS.get(self.calendar, 365.0))}[
            self.part
        ]

    def phases(self, times: Array) -> Array:
        """The share of the year or day that is over, of each time: 0 or more, below 1. Months count whole.

        >>> Clock("time.hour").phases(np.array(["2001-03-01T18"], "M8[h]")).tolist()
        [0.75]
        """
        if times.dtype.kind == "M":
            return self._of_datetimes(times.astype("M8[us]"))
        flat = [self._of_date(time) for time in times.ravel()]
        return np.array(flat, np.float64).reshape(times.shape)

    def count(self, times: Array) -> Array:
        """The same in the numbers that users know, such as days of the year from 1 on.

        >>> Clock("time.dayofyear").count(np.array(["2001-01-31", "2000-12-31T12"], "M8[h]")).round(2).tolist()
        [31.0, 365.5]
        """
        first, length = self.cycle
        return first + length * self.phases(times)

    def _of_datetimes(self, times: Array) -> Array:
        if self.part == "month":
            return (times.astype("M8[M]").astype(np.int64) % 12) / 12
        unit = "Y" if self.part == "dayofyear" else "D"
        start = times.astype(f"M8[{unit}]")
        begin, end = start.astype(times.dtype), (start + 1).astype(times.dtype)
        return np.asarray((times - begin) / (end - begin))

    def _of_date(self, time: Any) -> float:
        if self.part == "month":
            return float((time.month - 1) / 12)
        day = time.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.part == "hour":
            return float((time - day).total_seconds() / 86400)
        begin = day.replace(month=1, day=1)
        return float((time - begin) / (begin.replace(year=time.year + 1) - begin))


def wanted_clock(name: str, dataset: xr.Dataset) -> bool:
    """Whether a name asks for the phase of a time, and is no variable of the source itself."""
    return is_phase(name) and name not in dataset.variables


def find_clock(key: str, name: str, dataset: xr.Dataset) -> Clock:
    """The clock that a recipe's key names, checked.

    Raises
    ------
    SourceError
        Where there is no such coordinate, or it holds no times, or lacks some.
    """
    clock = Clock(name)
    if clock.coordinate not in dataset.variables:
        raise unknown_name(key, clock.coordinate, dataset.variables, where="the source")
    values = values_of(dataset[clock.coordinate])
    calendar = calendar_of(values)
    if calendar is None:
        raise SourceError(
            f'{key} names "{name}", but "{clock.coordinate}" is {values.dtype} and holds no times. Give it units '
            'such as "days since 2000-01-01" in the source, or name another coordinate.'
        )
    if values.dtype.kind == "M" and np.isnat(values).any():
        raise SourceError(f'{key} names "{name}", but "{clock.coordinate}" lacks some times. Fill them in the source.')
    return Clock(name, calendar)


def calendar_of(values: Array) -> str | None:
    """The calendar of times; None of anything else."""
    if values.dtype.kind == "M":
        return "standard"
    first: Any = values.ravel()[0] if values.dtype.kind == "O" and values.size else None
    return str(first.calendar) if hasattr(first, "calendar") else None


def counted(given: Any, name: str, cycle: tuple[float, float]) -> Any:
    """Dates as the numbers that a clock counts; numbers as they are.

    Parameters
    ----------
    given
        One or several numbers, dates (of any kind) or texts such as "2001-07-19".
    name, cycle
        Of the clock.

    Raises
    ------
    ValueError
        Where a text is no date.

    >>> counted("2001-01-31", "time.dayofyear", (1.0, 365.0)), counted(200, "time.dayofyear", (1.0, 365.0))
    (np.float64(31.0), 200)
    """
    values = np.asarray(given)
    if values.dtype.kind in "OUT" and values.size and calendar_of(values) is None:
        if all(isinstance(value, (int, float, np.number)) for value in values.ravel()):
            return given
        values = values.astype("M8[us]")
    if calendar_of(values) is None:
        return given
    first, length = cycle
    return first + length * Clock(name).phases(values)


def counted_times(ds: xr.Dataset, name: str, cycle: tuple[float, float]) -> xr.DataArray | None:
    """What a clock counts at the times of samples: dates, or time differences from the origin of each; None without.

    Parameters
    ----------
    ds
        With the clock's coordinate, or ``<coordinate>_origin`` along samples and differences from it.
    name, cycle
        Of the clock.
    """
    clock = Clock(name)
    times = ds.get(clock.coordinate)
    origin = ds.get(f"{clock.coordinate}_origin")
    if times is not None and calendar_of(times.values) is None and origin is not None:
        times = _sums(origin, times) if times.dtype.kind == "m" else None
    if times is None or calendar_of(times.values) is None:
        return None
    first, length = cycle
    return times.copy(data=first + length * clock.phases(times.values))


def _sums(origin: xr.DataArray, steps: xr.DataArray) -> xr.DataArray:
    """The times ``(samples, points)`` at which samples are that begin at dates of any calendar."""
    differences = steps.values.astype("m8[us]")
    values = origin.values[..., None] + (differences.astype(object) if origin.dtype.kind == "O" else differences)
    return xr.DataArray(values, dims=(*origin.dims, *steps.dims), coords={steps.name: steps}, name=steps.name)
