"""What of a sample a picture shows, and in which colours: chosen once from real samples, then the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.errors import InputError
from diffats.plots.coordinates import Coordinate, wavelengths

Array = npt.NDArray[Any]

_VERTICAL = ("y", "row", "north", "northing")
_HORIZONTAL = ("x", "column", "col", "east", "easting")
_IMAGES = ("channel", "channels", "rgb", "rgba", "colour", "color", "band", "bands")
_VISIBLE = (665.0, 560.0, 490.0)  # nm: red, green and blue of Sentinel-2, say
_NEAR = 60.0  # nm


@dataclass(frozen=True)
class Painter:
    """Turns samples into pictures, all with the bands, slices and colour limits of one reference set.

    Two modes become the image; maps have latitude upwards and longitude to the right. A spectral mode becomes colour.
    Of the modes left over, time or else the first becomes up to `frames` slices; the others, and ``component``, are cut
    at one index.

    Attributes
    ----------
    modes
        The samples' modes in tensor order.
    image
        The image's vertical and horizontal mode.
    flipped
        Whether each of these runs against its order in the sample.
    spectral, sliced
        The spectral mode and the mode shown as slices; empty where there is none.
    mixture
        ``(n, 3)``: the spectral mode's weights in red, green and blue; None without it.
    slices
        Indices along the sliced mode.
    fixed
        Index of every other mode.
    coordinates
        Of every mode but ``component``.
    limits
        ``(3 or 1, 2)``: the lowest and highest value shown.
    variable, unit
        What is shown, and its unit.
    colours, note
        In words: what red, green and blue are; what else the heading says.
    """

    modes: tuple[str, ...]
    image: tuple[str, str]
    flipped: tuple[bool, bool]
    spectral: str
    mixture: Array | None
    sliced: str
    slices: tuple[int, ...]
    fixed: tuple[tuple[str, int], ...]
    coordinates: Mapping[str, Coordinate]
    limits: Array
    variable: str = ""
    unit: str = ""
    colours: str = ""
    note: str = ""

    @classmethod
    def fit(
        cls,
        reference: Array,
        modes: Sequence[str],
        *,
        template: xr.Dataset | None = None,
        rgb: Sequence[float] = (),
        frames: int = 3,
        component: int | None = None,
        unit: str = "",
        note: str = "",
    ) -> Painter:
        """Choose what to show from a reference set.

        Parameters
        ----------
        reference
            ``(k, n_1, .., n_N)`` real samples, with at least two modes besides ``component``.
        modes
            The N modes.
        template
            A sample's coordinates, names and units (`diffats.sources.Samples.template`).
        rgb
            Three values of the spectral mode's coordinate (indices where it has none) for red, green and blue.
        frames
            At most so many slices.
        component
            Which variable; the one that varies most where left out.
        unit
            Of the values, where there is no template.
        note
            What else the pictures' heading says.

        Raises
        ------
        InputError
            Where there are too few modes, or ``rgb`` names no band.
        """
        modes = tuple(modes)
        sizes = dict(zip(modes, reference.shape[1:], strict=True))
        free = [mode for mode in modes if mode != "component"]
        if len(free) < 2:
            raise InputError(f"a picture of a sample needs two modes besides component, got {', '.join(modes)}.")
        coordinates = {mode: Coordinate.of(template, mode, sizes[mode]) for mode in free}
        if component is None:
            component = largest_component(reference, modes)
        spectral = _spectral_mode(free, sizes, coordinates, template)
        image = _image_modes([mode for mode in free if mode != spectral], coordinates)
        rest = [mode for mode in free if mode not in (*image, spectral)]
        sliced = next((mode for mode in rest if coordinates[mode].kind == "time"), rest[0] if rest else "")
        slices = tuple(
            np.linspace(0, sizes[sliced] - 1, min(frames, sizes[sliced])).round().astype(int).tolist() if sliced else ()
        )
        cut = [mode for mode in modes if mode not in (*image, spectral, sliced)]
        fixed = tuple((mode, component if mode == "component" else sizes[mode] // 2) for mode in cut)
        names = [] if template is None else [str(name) for name in template.data_vars]
        variable = names[component] if component < len(names) else ""
        unit = str(template[variable].attrs.get("units", "")) if template is not None and variable else unit
        painter = cls(
            modes,
            image,
            (_flips(coordinates[image[0]], vertical=True), _flips(coordinates[image[1]], vertical=False)),
            spectral,
            None,
            sliced,
            slices,
            fixed,
            coordinates,
            np.zeros((1, 2)),
            variable,
            "" if unit == "1" else unit,
            note=note,
        )
        if spectral:
            painter = _coloured(painter, reference, template, rgb)
        return painter if painter.limits.any() else replace(painter, limits=_limits(painter, reference))

    @property
    def coloured(self) -> bool:
        """Whether pictures are in colours (else one value per pixel)."""
        return self.mixture is not None

    @property
    def is_map(self) -> bool:
        """Whether a picture is of latitudes and longitudes with numbers to them."""
        return all(self.coordinates[mode].given and self.coordinates[mode].kind in _MAP for mode in self.image)

    @property
    def colormap(self) -> Any:
        """Diverging where values of both signs matter, sequential elsewhere; nothing where values are missing."""
        low, high = self.limits[0]
        return matplotlib.colormaps["RdBu_r" if _is_signed(low, high) else "viridis"].with_extremes(bad=(0, 0, 0, 0))

    @property
    def heading(self) -> str:
        """What is the same in all pictures: the variable among several, and where the other modes are cut."""
        parts = [self.variable] if "component" in self.modes and self.variable else []
        parts += [self.coordinates[mode].name(i) for mode, i in self.fixed if mode != "component"]
        return ", ".join([*parts, *([self.note] if self.note else [])])

    @property
    def value_label(self) -> str:
        """Of a colour bar: the variable with its unit."""
        name = self.variable or "value"
        return f"{name} ({self.unit})" if self.unit else name

    @property
    def description(self) -> str:
        """In words: what a picture shows."""
        parts = [f"{self.image[0]} {'up' if self.flipped[0] else 'down'}, {self.image[1]} across"]
        if self.is_map:
            parts = ["Latitude upwards, longitude to the right"]
        parts += [self.colours] if self.coloured else []
        if self.sliced:
            positions = ", ".join(self.coordinates[self.sliced].text(i) for i in self.slices)
            parts.append(f"{self.sliced} {positions} side by side")
        parts += [self.heading] if self.heading else []
        text = "; ".join(parts)
        return text[0].upper() + text[1:] + "."

    def at(self, slices: Sequence[int]) -> Painter:
        """The same with other slices."""
        return replace(self, slices=tuple(slices))

    def cut(self) -> Painter:
        """The same with one slice only: the middle of a time, the first of all others."""
        if not self.sliced:
            return self
        chosen = self.slices[len(self.slices) // 2 if self.coordinates[self.sliced].kind == "time" else 0]
        return replace(self, sliced="", slices=(), fixed=(*self.fixed, (self.sliced, chosen)))

    def values(self, x: Array) -> Array:
        """Values shown of samples ``(k, *sizes)``: ``(k, slices, height, width, 3 or 1)``, as drawn, not yet scaled."""
        index: list[Any] = [slice(None)]
        fixed = dict(self.fixed)
        left = [mode for mode in self.modes if mode not in fixed]
        index += [fixed.get(mode, slice(None)) for mode in self.modes]
        shown = np.asarray(x)[tuple(index)]
        order = [mode for mode in (self.sliced, *self.image, self.spectral) if mode]
        shown = shown.transpose([0, *(left.index(mode) + 1 for mode in order)])
        shown = shown[:, list(self.slices)] if self.sliced else shown[:, None]
        if self.mixture is None:
            shown = shown[..., None]
        else:
            used = np.flatnonzero(self.mixture.any(axis=1))
            shown = shown[..., used] @ self.mixture[used]
        steps = [slice(None, None, -1 if flip else 1) for flip in self.flipped]
        return np.asarray(shown[:, :, steps[0], steps[1]])

    def paint(self, sample: Array) -> Array:
        """One sample ``(*sizes)`` as pictures ``(slices, height, width)``.

        In colours they are ``(slices, height, width, 4)``: red, green, blue in [0, 1], and 0 where values are missing.
        """
        shown = self.values(np.asarray(sample)[None])[0]
        if not self.coloured:
            return np.asarray(shown[..., 0])
        span = np.maximum(self.limits[:, 1] - self.limits[:, 0], np.finfo(np.float64).tiny)
        missing = np.isnan(shown).any(axis=-1, keepdims=True)
        scaled = np.clip((np.where(missing, 0.0, shown) - self.limits[:, 0]) / span, 0.0, 1.0)
        return np.concatenate([scaled, ~missing], axis=-1)


_MAP = ("latitude", "longitude")


def largest_component(reference: Array, modes: Sequence[str]) -> int:
    """The variable with the largest variance; 0 without a mode ``component``.

    >>> largest_component(np.array([[[0.0, 0.0], [1.0, 5.0]]]), ("component", "x"))
    1
    """
    if "component" not in modes:
        return 0
    axis = modes.index("component") + 1
    flat = np.moveaxis(reference, axis, 0).reshape(reference.shape[axis], -1).astype(np.float64)
    return int(np.argmax(np.nanvar(flat, axis=1)))


def _spectral_mode(
    modes: Sequence[str], sizes: Mapping[str, int], coordinates: Mapping[str, Coordinate], template: xr.Dataset | None
) -> str:
    """The mode to show as colours; it needs three bands, and two other modes must remain."""
    named = [mode for mode in modes if coordinates[mode].kind == "spectral" or wavelengths(template, mode) is not None]
    named = [mode for mode in named if sizes[mode] >= 3]
    return named[0] if named and len(modes) >= 3 else ""


def _image_modes(modes: Sequence[str], coordinates: Mapping[str, Coordinate]) -> tuple[str, str]:
    def find(kind: str, names: Sequence[str]) -> str:
        by_kind = [mode for mode in modes if coordinates[mode].kind == kind]
        return next(iter([*by_kind, *(mode for mode in modes if mode.lower() in names)]), "")

    vertical, horizontal = find("latitude", _VERTICAL), find("longitude", _HORIZONTAL)
    if vertical and horizontal:
        return vertical, horizontal
    time = next((mode for mode in modes[:-1] if coordinates[mode].kind == "time"), "")
    return (time, modes[-1]) if time and len(modes) == 2 else (modes[-2], modes[-1])


def _flips(coordinate: Coordinate, *, vertical: bool) -> bool:
    """Whether a map must turn an axis: the first row of a picture is its upper one."""
    return coordinate.given and coordinate.kind in _MAP and coordinate.ascends == vertical


def _coloured(painter: Painter, reference: Array, template: xr.Dataset | None, rgb: Sequence[float]) -> Painter:
    """The painter with red, green and blue: chosen bands, an image's own channels, visible bands, or components."""
    coordinate = painter.coordinates[painter.spectral]
    n, known = len(coordinate.values), wavelengths(template, painter.spectral)
    if rgb:
        bands, words = _chosen(coordinate, rgb), ""
    elif limits := _image_range(painter, reference, n):
        named = replace(painter, mixture=np.eye(n, 3), colours=f"{painter.spectral} in its own colours")
        return replace(named, limits=np.array([limits] * 3))
    elif known is not None and (bands := _visible(known)):
        words = f"{', '.join(f'{known[band]:.0f}' for band in bands)} nm"
    else:
        mixture = _leading_components(reference, painter.modes.index(painter.spectral) + 1)
        return replace(
            painter, mixture=mixture, colours=f"the three leading components of {painter.spectral} as red, green, blue"
        )
    words = words or f"{painter.spectral} {', '.join(coordinate.text(band) for band in bands)}"
    mixture = np.zeros((n, 3))
    mixture[list(bands), range(3)] = 1.0
    return replace(painter, mixture=mixture, colours=f"{words} as red, green, blue")


def _chosen(coordinate: Coordinate, rgb: Sequence[float]) -> tuple[int, ...]:
    """The bands that ``report.rgb`` names."""
    values = coordinate.numbers[0]
    nearest = tuple(int(np.argmin(np.abs(values - value))) for value in rgb)
    step = float(np.max(np.abs(np.diff(values))))
    for value, band in zip(rgb, nearest, strict=True):
        if abs(values[band] - value) > step:
            raise InputError(
                f"report.rgb: {value:g} is outside {coordinate.mode}, whose values are {values.min():g} to "
                f"{values.max():g}. Name three of them."
            )
    return nearest


def _visible(nanometres: Array) -> tuple[int, ...]:
    """The bands nearest to red, green and blue light; nothing where one of them is too far."""
    bands = tuple(int(np.argmin(np.abs(nanometres - wanted))) for wanted in _VISIBLE)
    off = max(abs(float(nanometres[band]) - wanted) for band, wanted in zip(bands, _VISIBLE, strict=True))
    return bands if off <= _NEAR and len(set(bands)) == 3 else ()


def _image_range(painter: Painter, reference: Array, n: int) -> tuple[float, float] | None:
    """The range of an image's channels, 0 to 1 or whole numbers to 255; None of what is no image."""
    if n not in (3, 4) or painter.spectral.lower() not in _IMAGES:
        return None
    low, high = float(np.nanmin(reference)), float(np.nanmax(reference))
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    whole = low >= 0 and high <= 255 and bool(np.all(np.nan_to_num(reference) % 1 == 0))
    return (0.0, 255.0) if whole else None


def _leading_components(reference: Array, axis: int) -> Array:
    """``(n, 3)``: the principal axes along a mode on which values vary most, each with a positive sum."""
    n = reference.shape[axis]
    rows = np.moveaxis(reference, axis, -1).reshape(-1, n).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    centred = rows - rows.mean(axis=0) if len(rows) else np.zeros((1, n))
    leading = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :3]
    return np.asarray(leading * np.where(leading.sum(axis=0) < 0, -1.0, 1.0))


def _is_signed(low: float, high: float) -> bool:
    return low < 0 < high and min(-low, high) > 0.3 * max(-low, high)


def _limits(painter: Painter, reference: Array) -> Array:
    """The 1 and 99 % quantiles of what is shown, by colour; symmetric about zero where both signs matter."""
    shown = painter.values(reference)
    limits = np.nanquantile(shown.reshape(-1, shown.shape[-1]).astype(np.float64), (0.01, 0.99), axis=0).T
    low, high = limits[0]
    if not painter.coloured and _is_signed(low, high):
        edge = max(-low, high)
        return np.array([[-edge, edge]])
    return np.asarray(limits)
