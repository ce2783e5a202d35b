"""Samples drawn as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffats.errors import InputError
from diffats.plots.curves import COLOURS, GREY, INK, PALE, WIDTH, Array, _bare, _figure, _styled

_SPECTRAL = ("band", "bands", "channel", "channels", "wavelength", "rgb", "colour", "color")
_VERTICAL = ("y", "lat", "latitude", "row", "north", "northing")
_HORIZONTAL = ("x", "lon", "longitude", "column", "col", "east", "easting")
_TIME = ("time", "t", "frame")


@dataclass(frozen=True)
class Painter:
    """Turns samples into pictures, all with the bands, slices and colour limits of one reference set.

    Two modes become the image. A spectral mode becomes false colour from three of its bands; otherwise the first mode
    left over becomes up to `frames` slices, shown side by side. Other modes, and ``component``, are cut at one index.

    Attributes
    ----------
    modes
        The samples' modes in tensor order.
    image
        The image's vertical and horizontal mode.
    bands
        Indices of red, green, blue; empty without false colour.
    spectral, sliced
        The spectral mode and the mode shown as slices; empty where there is none.
    slices
        Indices along the sliced mode.
    fixed
        Index of every other mode.
    limits
        ``(bands or 1, 2)``: the lowest and highest value shown.
    unit
        Of the values.
    """

    modes: tuple[str, ...]
    image: tuple[str, str]
    spectral: str
    bands: tuple[int, ...]
    sliced: str
    slices: tuple[int, ...]
    fixed: tuple[tuple[str, int], ...]
    limits: Array
    unit: str = ""

    @classmethod
    def fit(cls, reference: Array, modes: Sequence[str], *, frames: int = 3, unit: str = "") -> Painter:
        """Choose what to show from a reference set.

        Parameters
        ----------
        reference
            ``(k, n_1, .., n_N)`` with at least two modes besides ``component``.
        modes
            The N modes.
        frames
            At most so many slices.
        unit
            Of the values.
        """
        modes = tuple(modes)
        sizes = dict(zip(modes, reference.shape[1:], strict=True))
        free = [mode for mode in modes if mode != "component"]
        if len(free) < 2:
            raise InputError(f"a picture of a sample needs two modes besides component, got {', '.join(modes)}.")
        spectral = _spectral_mode(free, sizes)
        image = _image_modes([mode for mode in free if mode != spectral])
        rest = [mode for mode in free if mode not in (*image, spectral)]
        sliced = rest[0] if rest and not spectral else ""
        slices: tuple[int, ...] = ()
        if sliced:
            positions = np.linspace(0, sizes[sliced] - 1, min(frames, sizes[sliced]))
            slices = tuple(int(i) for i in positions.round())
        cut = [mode for mode in modes if mode not in (*image, spectral, sliced)]
        fixed = tuple((mode, 0 if mode == "component" else sizes[mode] // 2) for mode in cut)
        bands = _three_bands(reference, modes.index(spectral) + 1) if spectral else ()
        painter = cls(modes, image, spectral, bands, sliced, slices, fixed, np.zeros((1, 2)), unit)
        return cls(modes, image, spectral, bands, sliced, slices, fixed, _limits(painter, reference), unit)

    @property
    def coloured(self) -> bool:
        """Whether pictures are false colour (else one value per pixel)."""
        return bool(self.bands)

    @property
    def colormap(self) -> Any:
        """Diverging where values of both signs matter, sequential elsewhere; missing points are light grey."""
        low, high = self.limits[0]
        diverging = low < 0 < high and min(-low, high) > 0.3 * max(-low, high)
        return matplotlib.colormaps["RdBu_r" if diverging else "viridis"].with_extremes(bad="#d5d9dd")

    @property
    def description(self) -> str:
        """In words: what a picture shows."""
        parts = [f"{self.image[0]} down, {self.image[1]} across"]
        if self.coloured:
            parts.append(f"{self.spectral} {', '.join(map(str, self.bands))} as red, green, blue")
        if self.sliced:
            parts.append(f"{self.sliced} {', '.join(map(str, self.slices))} side by side")
        parts += [f"{mode} {index}" for mode, index in self.fixed]
        return "; ".join(parts)

    def values(self, x: Array) -> Array:
        """Values shown of samples ``(k, *sizes)``: ``(k, slices, height, width, bands)``, not yet scaled."""
        index: list[Any] = [slice(None)]
        fixed = dict(self.fixed)
        left = []
        for mode in self.modes:
            if mode in fixed:
                index.append(fixed[mode])
            else:
                index.append(slice(None))
                left.append(mode)
        shown = x[tuple(index)]
        for mode, chosen in ((self.spectral, self.bands), (self.sliced, self.slices)):
            if mode:
                shown = np.take(shown, chosen, axis=left.index(mode) + 1)
            else:
                shown, left = shown[..., None], [*left, ""]
        order = [left.index(self.sliced) if self.sliced else len(left) - 1]
        order += [left.index(mode) for mode in self.image]
        order += [left.index(self.spectral) if self.spectral else left.index("")]
        return np.asarray(shown.transpose([0, *(axis + 1 for axis in order)]))

    def paint(self, sample: Array) -> Array:
        """One sample ``(*sizes)`` as a picture ``(height, width)``, or ``(height, width, 3)`` in [0, 1]."""
        return self.assemble(self.values(sample[None])[0])

    def gaps(self, total: int) -> list[tuple[int, int]]:
        """First and last column between the slices of a picture of so many columns."""
        count = len(self.slices)
        width = next((w for w in range(1, total + 1) if count * w + (count - 1) * _gap(w) == total), total)
        step = width + _gap(width)
        return [(i * step + width, (i + 1) * step) for i in range(count - 1)]

    def assemble(self, shown: Array) -> Array:
        """Slices ``(slices, height, width, bands)`` side by side, with a gap, scaled to colours where false colour."""
        if self.coloured:
            span = np.maximum(self.limits[:, 1] - self.limits[:, 0], np.finfo(np.float64).tiny)
            shown = np.nan_to_num(np.clip((shown - self.limits[:, 0]) / span, 0.0, 1.0), nan=0.85)
            return np.asarray(_strip(shown, 1.0))
        return np.asarray(_strip(shown[..., 0], np.nan))


def _gap(width: int) -> int:
    return max(1, width // 16)


def _strip(slices: Array, blank: float) -> Array:
    """``(slices, height, width, ...)`` to ``(height, all widths, ...)``."""
    width = slices.shape[2]
    gap = _gap(width)
    parts: list[Array] = []
    for i, picture in enumerate(slices):
        if i:
            parts.append(np.full((picture.shape[0], gap, *picture.shape[2:]), blank))
        parts.append(picture)
    return np.concatenate(parts, axis=1)


def _spectral_mode(modes: Sequence[str], sizes: Mapping[str, int]) -> str:
    """The mode to show as colours; it needs three bands, and two other modes must remain."""
    named = [mode for mode in modes if mode.lower() in _SPECTRAL and sizes[mode] >= 3]
    return named[0] if named and len(modes) >= 3 else ""


def _image_modes(modes: Sequence[str]) -> tuple[str, str]:
    vertical = next((mode for mode in modes if mode.lower() in _VERTICAL), "")
    horizontal = next((mode for mode in modes if mode.lower() in _HORIZONTAL), "")
    if vertical and horizontal:
        return vertical, horizontal
    time = next((mode for mode in modes[:-1] if mode.lower() in _TIME), "")
    if time and len(modes) == 2:
        return time, modes[-1]
    return modes[-2], modes[-1]


def _three_bands(reference: Array, axis: int) -> tuple[int, ...]:
    """Of each third of the bands, the one that varies most; the longest wavelengths are red."""
    n = reference.shape[axis]
    spread = np.nanstd(np.moveaxis(reference, axis, -1).reshape(-1, n).astype(np.float64), axis=0)
    edges = [0, n // 3, 2 * n // 3, n]
    chosen = [start + int(np.argmax(spread[start:stop])) for start, stop in pairwise(edges)]
    return tuple(chosen) if n == 3 else tuple(chosen[::-1])


def _limits(painter: Painter, reference: Array) -> Array:
    """The 1 and 99 % quantiles of what is shown, by band; symmetric about zero where both signs matter."""
    shown = painter.values(reference)
    limits = np.nanquantile(shown.reshape(-1, shown.shape[-1]).astype(np.float64), (0.01, 0.99), axis=0).T
    low, high = limits[:, 0], limits[:, 1]
    if not painter.coloured and low[0] < 0 < high[0] and min(-low[0], high[0]) > 0.3 * max(-low[0], high[0]):
        edge = max(-low[0], high[0])
        return np.array([[-edge, edge]])
    return np.asarray(limits)


def _draw(ax: Axes, painter: Painter, picture: Array) -> Any:
    _bare(ax)
    for start, stop in painter.gaps(picture.shape[1]):
        ax.axvspan(start - 0.5, stop - 0.5, color="white", zorder=3, linewidth=0)
    aspect: Any = "equal" if _ratio(painter, picture) is not None else "auto"
    if painter.coloured:
        return ax.imshow(picture, aspect=aspect, interpolation="nearest")
    low, high = painter.limits[0]
    return ax.imshow(picture, cmap=painter.colormap, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")


def _ratio(painter: Painter, picture: Array) -> float | None:
    """Height over width of a picture; None where a slice is so long that it should stretch to leave others room."""
    slices = max(1, len(painter.slices))
    ratio = picture.shape[0] / picture.shape[1]
    return ratio if 0.4 <= ratio * slices <= 2.5 else None


def _shape(painter: Painter, sample: Array) -> tuple[float, int]:
    """Height over width of one picture as it is drawn, and how many fit side by side."""
    slices = max(1, len(painter.slices))
    ratio = _ratio(painter, painter.paint(sample))
    return (0.75 / slices if ratio is None else ratio), (4 if slices == 1 else 2)


def _colour_bar(figure: Any, image: Any, unit: str) -> None:
    """A slim bar in a (sub)figure of its own."""
    bar = figure.colorbar(image, cax=figure.add_axes((0.15, 0.72, 0.7, 0.14)), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_label(unit or "value", fontsize=7.5)
    bar.ax.tick_params(labelsize=7, width=0.6)


@_styled
def gallery(
    real: Array,
    generated: Array,
    modes: Sequence[str],
    *,
    gaussian: Array | None = None,
    unit: str = "",
    rows: int = 2,
    painter: Painter | None = None,
) -> Figure:
    """Real samples above generated ones (and above the Gaussian's), with the same colours.

    Parameters
    ----------
    real, generated, gaussian
        ``(k, *sizes)`` each; the first few are shown.
    modes
        The samples' modes.
    unit
        Of the values.
    rows
        Rows of pictures of each kind.
    painter
        How to show samples; fitted to the real ones where left out.
    """
    painter = painter or Painter.fit(real, modes, unit=unit)
    ratio, columns = _shape(painter, real[0])
    kinds = {"real (test)": (real, INK), "generated": (generated, COLOURS["generated"])}
    if gaussian is not None:
        kinds["Gaussian reference"] = (gaussian, GREY)
    heights = [rows * (WIDTH / columns * ratio) + 0.32] * len(kinds) + [0.0 if painter.coloured else 0.58]
    heights = [height for height in heights if height]
    figure = _figure(sum(heights))
    blocks = np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, hspace=0.02, height_ratios=heights)))
    image = None
    for block, (title, (samples, colour)) in zip(blocks, kinds.items(), strict=False):
        block.suptitle(title, x=0.01, ha="left", fontsize=9.2, fontweight="bold", color=colour)
        grid = np.asarray(block.subplots(rows, columns, squeeze=False))
        for i, ax in enumerate(grid.flat):
            if i < len(samples):
                image = _draw(ax, painter, painter.paint(samples[i]))
            else:
                ax.set_axis_off()
    if not painter.coloured:
        _colour_bar(blocks[-1], image, painter.unit)
    return figure


@_styled
def reconstruction_panels(
    original: Array,
    reconstruction: Array,
    modes: Sequence[str],
    *,
    labels: Sequence[str],
    unit: str = "",
    painter: Painter | None = None,
) -> Figure:
    """A row for each sample: original, reconstruction, and their difference.

    Parameters
    ----------
    original, reconstruction
        ``(k, *sizes)``, usually the best, the median and the worst sample.
    modes
        The samples' modes.
    labels
        One for each row, such as ``"worst: 12 %"``.
    unit
        Of the values.
    painter
        How to show samples; fitted to the originals where left out.
    """
    painter = painter or Painter.fit(original, modes, unit=unit, frames=1)
    ratio, _ = _shape(painter, original[0])
    errors = _difference_pictures(painter, original, reconstruction)
    finite = np.abs(errors[np.isfinite(errors)])
    edge = float(np.quantile(finite, 0.995)) if finite.size else 0.0
    edge = edge or 1.0
    heights = [len(labels) * (WIDTH / 3 * ratio + 0.24), 0.58]
    figure = _figure(sum(heights))
    panels, foot = np.asarray(figure.subfigures(2, 1, hspace=0.02, height_ratios=heights))
    grid = np.asarray(panels.subplots(len(labels), 3, squeeze=False))
    colormap = matplotlib.colormaps["magma_r" if painter.coloured else "RdBu_r"].with_extremes(bad="#d5d9dd")
    low = 0.0 if painter.coloured else -edge
    image = None
    for row, (label, x, xhat, error) in enumerate(zip(labels, original, reconstruction, errors, strict=True)):
        _draw(grid[row, 0], painter, painter.paint(x))
        _draw(grid[row, 1], painter, painter.paint(xhat))
        _bare(grid[row, 2])
        aspect: Any = grid[row, 0].get_aspect()
        image = grid[row, 2].imshow(error, cmap=colormap, vmin=low, vmax=edge, aspect=aspect, interpolation="nearest")
        grid[row, 0].set_title(label, loc="left", fontsize=8.4, fontweight="bold", color=INK)
        if row == 0:
            grid[row, 1].set_title("reconstruction", fontsize=8, color=GREY)
            grid[row, 2].set_title("error" if painter.coloured else "difference", fontsize=8, color=GREY)
    name = f"root mean square over {painter.spectral}" if painter.coloured else "reconstruction minus original"
    _colour_bar(foot, image, f"{name} ({unit})" if unit else name)
    return figure


def _difference_pictures(painter: Painter, original: Array, reconstruction: Array) -> Array:
    """``(k, height, width)``: over all bands where false colour, else of what is shown."""
    if not painter.coloured:
        shown = painter.values(reconstruction) - painter.values(original)
        return np.stack([painter.assemble(picture) for picture in shown])
    difference = (reconstruction.astype(np.float64) - original) ** 2
    modes = ["", *painter.modes]
    keep = [modes.index(mode) for mode in painter.image]
    over = tuple(axis for axis in range(1, difference.ndim) if axis not in keep)
    error: Array = np.asarray(np.sqrt(difference.mean(axis=over)))
    return error if keep[0] < keep[1] else error.transpose(0, 2, 1)


@_styled
def medoid(
    sample: Array,
    scores: Mapping[str, Array],
    index: int,
    modes: Sequence[str],
    *,
    unit: str = "",
    painter: Painter | None = None,
) -> Figure:
    """The anchor sample, and how its similarity to all others compares with the other samples'.

    Parameters
    ----------
    sample
        ``(*sizes)``: the anchor sample.
    scores
        ``(samples,)`` by mode: the mean squared overlap with all other samples, larger is more typical.
    index
        The anchor's position in the scores.
    modes
        The sample's modes.
    unit
        Of the values.
    painter
        How to show the sample; fitted to it where left out.
    """
    painter = painter or Painter.fit(sample[None], modes, unit=unit, frames=1)
    figure = _figure(max(1.9, 0.95 * len(scores) + 0.5))
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(0.42, 0.58)))
    ax = left.subplots()
    _draw(ax, painter, painter.paint(sample))
    ax.set_title("anchor sample", loc="left", fontsize=8.8, fontweight="bold", color=INK)
    grid = np.asarray(right.subplots(len(scores), 1, squeeze=False))
    for row, (mode, values) in enumerate(scores.items()):
        axis = grid[row, 0]
        axis.hist(values, bins=30, color=PALE)
        axis.axvline(values[index], color=COLOURS["generated"], linewidth=1.6)
        axis.tick_params(labelsize=7)
        axis.set_title(mode, loc="left", fontsize=8.2, fontweight="bold", color=INK)
        for spine in ("top", "right"):
            axis.spines[spine].set_visible(False)
        axis.set_ylabel("samples", fontsize=7.5)
    grid[-1, 0].set_xlabel("similarity to all samples", fontsize=7.5)
    return figure
