"""What the dims of a source stand for: samples, time, a place on a grid, a channel."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
import xarray as xr

from diffats.sources import spacing

Meaning = Literal["sample", "time", "longitude", "space", "channel", "unknown"]

_SAMPLE = (
    "sample samples run runs member members ens ensemble realization realisation case cases simulation simulations sim "
    "trajectory trajectories traj batch image images patch patches subject event draw experiment scenario shot clip"
)
_TIME = "time times t date datetime step steps frame frames lead day days hour month year epoch"
_LONGITUDE = "lon longitude rlon"
_SPACE = (
    "x y z lat latitude rlat row rows col cols column columns height width nx ny nz north south east west easting "
    "northing level levels lev depth plev pressure altitude layer sigma eta xi station site cell cells ncells node "
    "point points"
)
_CHANNEL = "channel channels band bands wavelength wavenumber frequency freq colour color rgb spectral component"
_WORDS: dict[str, Meaning] = {
    **dict.fromkeys(_SAMPLE.split(), "sample"),
    **dict.fromkeys(_TIME.split(), "time"),
    **dict.fromkeys(_LONGITUDE.split(), "longitude"),
    **dict.fromkeys(_SPACE.split(), "space"),
    **dict.fromkeys(_CHANNEL.split(), "channel"),
}
_WHOLE: dict[str, Meaning] = {  # words that mean this only where they are the whole name
    **dict.fromkeys(("n", "number", "index", "id", "idx", "item"), "sample"),
    **dict.fromkeys(("i", "j", "k", "ni", "nj", "xc", "yc"), "space"),
    "c": "channel",
}
_AXES: dict[str, Meaning] = {"T": "time", "X": "space", "Y": "space", "Z": "space", "E": "sample"}
_FULL_CIRCLE = 360.0


def meaning_of(dataset: xr.Dataset, dim: str) -> Meaning:
    """What a dim stands for, by its coordinate's attributes and type, else by the words of its name.

    >>> grid = xr.Dataset(coords={"lon": ("lon", [0, 120, 240], {"units": "degrees_east"}), "run": ["a", "b"]})
    >>> [meaning_of(grid, dim) for dim in ("lon", "run", "valid_time", "dim_0")]
    ['longitude', 'sample', 'time', 'unknown']
    """
    if dim in dataset.indexes:
        coordinate = dataset[dim]
        if is_time(coordinate):
            return "time"
        if is_longitude(coordinate):
            return "longitude"
        axis = str(coordinate.attrs.get("axis", "")).upper()
        if axis in _AXES:
            return _AXES[axis]
    name = dim.lower()
    words = [word for word in re.split(r"[^a-z]+", name) if word]
    found: Meaning | None = _WHOLE.get(name) or next((_WORDS[word] for word in words if word in _WORDS), None)
    if found is None and dim in dataset.indexes and dataset[dim].dtype.kind in "OUST":
        return "sample"  # names, of runs or of images
    return found or "unknown"


def is_time(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate holds times: of NumPy, of any calendar of cftime, or numbers that none of them can hold."""
    if coordinate.dtype.kind == "M" or "undecoded_units" in coordinate.attrs:
        return True
    index = coordinate.to_index() if coordinate.dtype.kind == "O" and coordinate.ndim == 1 else None
    return hasattr(index, "calendar") or coordinate.attrs.get("standard_name") == "time"


def is_longitude(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate is a longitude by its units or standard name, or by its name where it has no units."""
    units = str(coordinate.attrs.get("units", ""))
    if units in ("degrees_east", "degree_east", "degreesE", "degrees_E"):
        return True
    if coordinate.attrs.get("standard_name") == "longitude":
        return True
    return str(coordinate.name).lower() in ("lon", "longitude") and units in ("", "degrees", "degree")


def is_latitude(dataset: xr.Dataset, dim: str) -> bool:
    """Whether a dim is a latitude, by its coordinate's units or standard name, or by its name.

    >>> grid = xr.Dataset(coords={"y": ("y", [10.0, 20.0], {"units": "degrees_north"}), "lat": [1, 2], "x": [1, 2]})
    >>> is_latitude(grid, "y"), is_latitude(grid, "lat"), is_latitude(grid, "x")
    (True, True, False)
    """
    attrs = dataset[dim].attrs if dim in dataset.coords else {}
    named = str(attrs.get("units", "")) in ("degrees_north", "degree_north", "degreesN", "degrees_N")
    return named or attrs.get("standard_name") == "latitude" or dim.lower() in ("lat", "latitude", "rlat")


def is_full_circle(dataset: xr.Dataset, dim: str) -> bool:
    """Whether a longitude goes around the earth in equal steps, so that its ends meet.

    >>> lon = xr.Dataset(coords={"lon": np.arange(0, 360, 2.5)})
    >>> is_full_circle(lon, "lon"), is_full_circle(lon.isel(lon=slice(0, 100)), "lon")
    (True, False)
    """
    if dim not in dataset.indexes or dataset[dim].dtype.kind not in "fiu" or not is_longitude(dataset[dim]):
        return False
    values = dataset[dim].values.astype(np.float64)
    steps = np.diff(values)
    if len(values) < 3 or not spacing.even(steps):
        return False
    return bool(abs(abs(steps.mean()) * len(values) - _FULL_CIRCLE) <= abs(steps.mean()) / 2)


def hours_between(dataset: xr.Dataset, dim: str) -> float | None:
    """The usual step of a time in hours; None where it has no dates.

    >>> hours_between(xr.Dataset(coords={"time": np.arange("2000-01-01", "2000-01-05", dtype="M8[D]")}), "time")
    24.0
    """
    if dim not in dataset.indexes or dataset[dim].size < 2:
        return None
    values: Any = dataset[dim].values
    if values.dtype.kind not in "MO":
        return None
    steps = spacing.differences(values[:1000])
    if steps is None:
        return None
    return abs(float(np.median(steps / np.timedelta64(1, "s")))) / 3600


def seasons(dataset: xr.Dataset, dim: str) -> float:
    """How many years a time of steps of a month at most covers; 0 where it has no dates or longer steps.

    >>> days = xr.Dataset(coords={"time": np.arange("2000-01-01", "2004-01-01", dtype="M8[D]"), "step": [0, 1]})
    >>> round(seasons(days, "time"), 1), seasons(days, "step")
    (4.0, 0.0)
    """
    hours = hours_between(dataset, dim)
    return 0.0 if hours is None or hours > 31 * 24 else hours * dataset.sizes[dim] / (365.25 * 24)


def step_in_words(hours: float | None) -> str:
    """A time step for people.

    >>> [step_in_words(hours) for hours in (1.0, 6.0, 24.0, 730.0, None)]
    ['hour', '6 hours', 'day', 'month', 'step']
    """
    if hours is None:
        return "step"
    for length, name in ((8760.0, "year"), (730.0, "month"), (168.0, "week"), (24.0, "day"), (1.0, "hour")):
        count = round(hours / length)
        if count and abs(hours / length - count) < (0.06 if length > 700 else 0.01):
            return name if count == 1 else f"{count} {name}s"
    return f"{hours * 60:g} minutes"
