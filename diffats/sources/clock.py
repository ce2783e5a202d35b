"""The phase of times within the year or the day, of any calendar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import By, Data, is_phase
from diffats.errors import SourceError
from diffats.sources.cuts import Cuts
from diffats.sources.naming import unknown_name
from diffats.sources.unreadable import values_of

Array = np.ndarray[Any, Any]

_LARGEST_GAP = 1 / 12  # of a cycle: a month of a year, which the harmonics of a climatology bridge
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


@dataclass(frozen=True, eq=False)
class Clocks:
    """The phases of times that a recipe names.

    Attributes
    ----------
    data
        The recipe's section.
    known
        By name.
    shares
        The same at all points of their coordinates: over the dim of samples, then one mode, as far as they have these.
    """

    data: Data
    known: Mapping[str, Clock]
    shares: Mapping[str, xr.DataArray]

    @classmethod
    def find(cls, dataset: xr.Dataset, data: Data) -> Clocks:
        """Those of a source.

        Raises
        ------
        SourceError
            Where a coordinate is missing, holds no times, or has dims that do not do.
        """
        names = dict.fromkeys(data.condition.scalars, "data.condition.scalars")
        names = {name: key for name, key in names.items() if is_phase(name) and name not in dataset.variables}
        names |= dict.fromkeys(data.climatology, "data.center.by")
        known = {name: find_clock(key, name, dataset) for name, key in names.items()}
        return cls(data, known, {name: _shares(clock, dataset, data) for name, clock in known.items()})

    @property
    def cycles(self) -> dict[str, tuple[float, float]]:
        """How each counts."""
        return {name: clock.cycle for name, clock in self.known.items()}

    @property
    def time_mode(self) -> str | None:
        """The mode along which the times of the climatology run; None where a sample has one time."""
        return self._mode(self.data.climatology[0]) if self.data.climatology else None

    def _mode(self, name: str) -> str | None:
        return next((str(dim) for dim in self.shares[name].dims if dim != self.data.sample_dim), None)

    def phases(self, name: str, cuts: Cuts) -> Array:
        """Of samples, ``(k, points)``: of each point of the time's mode, or of one."""
        shares, mode = self.shares[name], self._mode(name)
        along = self.data.sample_dim in shares.dims
        values = shares.values if along else shares.values[None]
        values = values[:, None] if mode is None else values
        rows, start = np.zeros(cuts.n, np.int64), np.zeros(cuts.n, np.int64)
        if along:
            assert cuts.position is not None
            rows = cuts.position
        if mode is not None and mode in cuts.size:
            start = cuts.starts[mode]
        size = cuts.size.get(str(mode), int(values.shape[1]))
        return np.asarray(values[rows[:, None], start[:, None] + np.arange(size)])

    def counts(self, name: str, cuts: Cuts) -> Array:
        """The same in the numbers that users know."""
        first, length = self.known[name].cycle
        return first + length * self.phases(name, cuts)

    def check_climatology(self, cuts: Cuts, is_test: Array) -> None:
        """Refuse phases that no training sample comes near: nothing is known of a climatology there.

        Raises
        ------
        SourceError
            Also where modes contradict each other.
        """
        scale, mode = self.data.scale, self.time_mode
        if isinstance(scale, By) and mode in scale.by:
            raise SourceError(
                f'data.scale.by names "{mode}", along which the climatology of data.center runs. '
                "Take it from data.scale.by."
            )
        for name in self.data.climatology:
            if self._mode(name) != mode:
                raise SourceError("data.center.by names times along different modes. Name phases of one time.")
            phases = self.phases(name, cuts)
            gap = _largest_gap(np.unique(phases), np.unique(phases[~is_test]))
            if gap > _LARGEST_GAP:
                raise SourceError(
                    f'data.center.by "{name}": some samples are {gap:.0%} of a cycle from any time in the training '
                    "samples, so that no climatology is known there. Hold out other samples (data.split), or use "
                    'data.center = "point".'
                )


def _largest_gap(phases: Array, known: Array) -> float:
    """How far a phase is at most from the nearest known one, around the circle; both ascend.

    >>> _largest_gap(np.array([0.0, 0.5, 0.95]), np.array([0.1, 0.4])).__round__(3)
    0.15
    """
    around = np.concatenate([known[-1:] - 1, known, known[:1] + 1])
    after = np.searchsorted(around, phases)
    return float(np.minimum(around[after] - phases, np.abs(phases - around[after - 1])).max())


def _shares(clock: Clock, dataset: xr.Dataset, data: Data) -> xr.DataArray:
    """The phases of all points of a coordinate."""
    times = dataset[clock.coordinate]
    known = [str(dim) for dim in times.dims if dim == data.sample_dim or dim in data.modes]
    within = [dim for dim in known if dim != data.sample_dim]
    if len(known) < times.ndim or len(within) > 1:
        raise SourceError(
            f'"{clock.name}" is of a time with dims ({", ".join(map(str, times.dims))}), expected the dim of samples, '
            "one mode, or both. Name another time."
        )
    if not {*known} & {data.sample_dim, *data.windows.size} and clock.name in data.condition.scalars:
        raise SourceError(
            f'data.condition.scalars: "{clock.name}" is the same for all samples. Leave it out, or name a time that '
            "differs between them."
        )
    phases = xr.DataArray(clock.phases(values_of(times)), dims=times.dims)
    return phases.transpose(*(dim for dim in known if dim not in within), *within)


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
