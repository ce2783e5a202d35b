"""What stands along a mode of a sample: numbers with a unit, times, or texts; and how a picture names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

Array = npt.NDArray[Any]

_NAMES = {
    "latitude": ("lat", "latitude"),
    "longitude": ("lon", "longitude"),
    "time": ("time", "t", "frame"),
    "spectral": ("band", "bands", "channel", "channels", "wavelength", "rgb", "rgba", "colour", "color"),
}
_CARDINAL = {"latitude": ("N", "S"), "longitude": ("E", "W")}
_DEGREES = {"latitude": ("degrees_north", "degree_north", "degreesN", "degree_N")}
_DEGREES["longitude"] = ("degrees_east", "degree_east", "degreesE", "degree_E")
_NANOMETRES = {"nm": 1.0, "nanometer": 1.0, "nanometre": 1.0} | dict.fromkeys(
    ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1000.0
)
_PERIODS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}


@dataclass(frozen=True)
class Coordinate:
    """Positions along a mode; the index where the data have no others.

    Attributes
    ----------
    mode
        Its name.
    values
        ``(n,)`` numbers, times or texts.
    unit
        Of numbers; empty where there is none.
    kind
        ``"latitude"``, ``"longitude"``, ``"time"``, ``"spectral"`` or nothing.
    given
        Whether the data have it (else it is the index).

    Examples
    --------
    >>> depth = xr.Dataset({"t": ("depth", [9.0, 8.0])}, coords={"depth": ("depth", [5.0, 50.0], {"units": "m"})})
    >>> Coordinate.of(depth, "depth", 2).text(1)
    '50 m'
    """

    mode: str
    values: Array
    unit: str = ""
    kind: str = ""
    given: bool = False

    @classmethod
    def of(cls, template: xr.Dataset | None, mode: str, size: int) -> Coordinate:
        """What a sample's template says of a mode with so many points."""
        found = None if template is None else template.coords.get(mode)
        if found is None or found.shape != (size,):
            return cls(mode, np.arange(size), kind=_kind(mode, {}))
        unit, values = str(found.attrs.get("units", "")), found.values
        kind = _kind(mode, found.attrs, values)
        if kind == "longitude":
            values = np.unwrap(values.astype(np.float64), period=360.0)  # across the date line
        return cls(mode, values, "" if unit == "1" else unit, kind, given=True)

    @property
    def numbers(self) -> tuple[Array, str]:
        """``(n,)`` float64 and their unit: times from the first one on; the index of what has no numbers."""
        if self.values.dtype.kind in "fiu":
            return self.values.astype(np.float64), self.unit
        try:
            steps = np.asarray(self.values - self.values[0])
            seconds = steps.astype("timedelta64[us]").astype(np.float64) / 1e6
        except (TypeError, ValueError):  # texts
            return np.arange(len(self.values), dtype=np.float64), ""
        if self.values.dtype.kind == "m":
            seconds = self.values.astype("timedelta64[us]").astype(np.float64) / 1e6
        step = float(np.min(np.abs(np.diff(seconds)), initial=86400.0)) or 1.0
        unit = next((name for name, length in _PERIODS.items() if step >= length), "ms")
        return seconds / _PERIODS[unit], unit

    def text(self, index: int) -> str:
        """One position with its unit: ``"50 m"``, ``"30°N"``, ``"2001-03-04"``; the index where there is no other."""
        value = self.values[index]
        if self.kind in _CARDINAL:
            return degrees(float(value), self.kind)
        if self.values.dtype.kind in "fium":
            numbers, unit = self.numbers
            return f"{_number(numbers[index])} {unit}".strip()
        if self.values.dtype.kind == "M":
            return str(np.datetime_as_string(value, "auto")).replace("T", " ")
        return str(value)

    def name(self, index: int) -> str:
        """The same with the mode's name, which latitudes and longitudes do without."""
        if self.kind in _CARDINAL:
            return self.text(index)
        return f"{self.mode} {self.text(index)}"

    @property
    def label(self) -> str:
        """Of an axis: the mode with its unit."""
        unit = self.numbers[1]
        plain = self.mode if self.given else f"{self.mode} (index)"
        return f"{plain} ({unit})" if unit else plain

    @property
    def ascends(self) -> bool:
        """Whether the numbers grow along the mode."""
        values = self.numbers[0]
        return bool(values[-1] >= values[0])


def degrees(value: float, kind: str) -> str:
    """A latitude or longitude as maps write it.

    >>> degrees(-30.0, "latitude"), degrees(210.0, "longitude"), degrees(180.0, "longitude")
    ('30°S', '150°W', '180°')
    """
    positive, negative = _CARDINAL[kind]
    if kind == "longitude":
        value = (value + 180.0) % 360.0 - 180.0
    side = "" if abs(value) in (0.0, 180.0) else positive if value > 0 else negative
    return f"{abs(value):.3g}°{side}"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def wavelengths(template: xr.Dataset | None, mode: str) -> Array | None:
    """Wavelengths along a mode ``(n,)`` in nm, by the name or the unit of one of its coordinates; None without any.

    >>> bands = xr.Dataset(coords={"band": [1, 2], "wavelength": ("band", [0.49, 0.665], {"units": "um"})})
    >>> wavelengths(bands, "band").tolist()
    [490.0, 665.0]
    """
    for name, coordinate in {} if template is None else template.coords.items():
        unit = str(coordinate.attrs.get("units", ""))
        if coordinate.dims != (mode,) or coordinate.dtype.kind not in "fiu":
            continue
        values = coordinate.values.astype(np.float64)
        if unit.lower() in _NANOMETRES:
            return np.asarray(values * _NANOMETRES[unit.lower()])
        if "wavelength" in (str(name).lower(), coordinate.attrs.get("standard_name", "")) and unit in ("", "1"):
            return np.asarray(values if values.max() > 100 else 1000.0 * values)  # without a unit: nm or µm by size
    return None


def _kind(mode: str, attrs: Any, values: Array | None = None) -> str:
    """What a coordinate is, by CF attributes and its values first, then by its name."""
    standard = str(attrs.get("standard_name", ""))
    for kind, units in _DEGREES.items():
        if standard == kind or str(attrs.get("units", "")) in units:
            return kind
    if standard == "time" or attrs.get("axis") == "T" or (values is not None and _holds_times(values)):
        return "time"
    return next((kind for kind, names in _NAMES.items() if mode.lower() in names), "")


def _holds_times(values: Array) -> bool:
    return values.dtype.kind in "mM" or bool(values.size and hasattr(values.ravel()[0], "calendar"))
