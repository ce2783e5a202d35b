"""Pictures: every function returns a matplotlib `Figure`, without pyplot; `png` makes bytes of it.

Figures are 4.1 inches wide with type that stays readable when a phone shrinks them to its width. Colours are Okabe and
Ito's, which colour-blind readers tell apart; one thing has one colour in all pictures.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from diffats import metrics
from diffats.errors import InputError

Array = npt.NDArray[Any]
P = ParamSpec("P")
R = TypeVar("R")
INK, GREY, PALE = "#22303c", "#8a949e", "#e3e7eb"
COLOURS = {
    "test": INK,
    "train": "#56b4e9",
    "generated": "#d55e00",
    "gaussian": GREY,
    "anchor": "#0072b2",
    "good": "#009e73",
}
NAMES = {"test": "real (test)", "train": "real (training)", "generated": "generated", "gaussian": "Gaussian reference"}
WIDTH, DPI = 4.1, 210
_SEQUENCE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.5,
    "axes.formatter.use_mathtext": True,
}
_SPECTRAL = ("band", "bands", "channel", "channels", "wavelength", "rgb", "colour", "color")
_VERTICAL = ("y", "lat", "latitude", "row", "north", "northing")
_HORIZONTAL = ("x", "lon", "longitude", "column", "col", "east", "easting")
_TIME = ("time", "t", "frame")


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw with the house style, whatever the process's own matplotlib settings are."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            drawn = draw(*args, **kwargs)
        if isinstance(drawn, Figure):
            _take_literally(drawn)
        return drawn

    return styled


def _take_literally(figure: Figure) -> None:
    """Have names and units with dollar signs be no mathematics, which might not even parse; ticks have theirs later."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)


@_styled
def png(figure: Figure) -> bytes:
    """PNG bytes, the same for the same figure."""
    out = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(out, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return out.getvalue()


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _axes(figure: Figure, rows: int, columns: int, **options: Any) -> Array:
    return np.asarray(figure.subplots(rows, columns, squeeze=False, **options))


def _panels(count: int, columns: int, height: float, extra: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in rows of ``height``, ``extra`` for a legend; what is left over stays empty."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = _figure(height * rows + extra)
    axes = list(_axes(figure, rows, columns).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _finish(ax: Axes, title: str, xlabel: str, ylabel: str, *, grid: str = "y") -> None:
    ax.set_title(title)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if grid:
        chosen: Any = grid
        ax.grid(axis=chosen, color=PALE, linewidth=0.7)


def _legend(ax: Axes, **options: Any) -> None:
    ax.legend(handlelength=1.6, **options)


def _bare(ax: Axes) -> None:
    """An axes that holds a picture: no ticks, no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


# --- samples as pictures ------------------------------------------------------------------------------------------


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


# --- compression and alignment ------------------------------------------------------------------------------------


@_styled
def scree(spectra: Mapping[str, Array], ranks: Mapping[str, int]) -> Figure:
    """Energy left out against rank, by mode: median and the 5 to 95 % range over samples, and the rank chosen.

    Parameters
    ----------
    spectra
        ``(samples, r + 1)`` or ``(r + 1,)`` energies of a mode's kept columns, descending, and then of all others.
    ranks
        The ranks chosen.
    """
    figure, panels = _panels(len(spectra), 2, 1.75, 0.35)
    for ax, (mode, energies) in zip(panels, spectra.items(), strict=True):
        left = _energy_left(np.atleast_2d(energies))[:, :-1]
        rank = np.arange(1, left.shape[1] + 1)
        low, middle, high = np.quantile(left, (0.05, 0.5, 0.95), axis=0)
        ax.fill_between(rank, low, high, color=COLOURS["anchor"], alpha=0.18, linewidth=0)
        ax.plot(rank, middle, color=COLOURS["anchor"])
        ax.set_yscale("log")
        ax.set_ylim(max(float(middle[middle > 0].min(initial=1.0)) / 3, 1e-12), 1.4)
        title = f"{mode}: kept whole"
        if mode in ranks:
            chosen = ranks[mode]
            kept = 100 * (1 - float(middle[chosen - 1]))
            ax.axvline(chosen, color=COLOURS["generated"], linewidth=1.1)
            ax.plot([chosen], [max(float(middle[chosen - 1]), 1e-12)], "o", color=COLOURS["generated"], markersize=4)
            title = f"{mode}: rank {chosen}, {_percent(kept)}"
        _finish(ax, title, "rank", "energy left out")
    return figure


def _energy_left(energies: Array) -> Array:
    """Share of the energy that is lost when keeping 1, 2, .. columns; summed from the end."""
    energies = np.maximum(energies.astype(np.float64), 0.0)
    tail = np.cumsum(energies[:, ::-1], axis=1)[:, ::-1]
    total = np.where(tail[:, :1] > 0, tail[:, :1], 1.0)
    return np.concatenate([tail[:, 1:], np.zeros((len(tail), 1))], axis=1) / total


def _percent(kept: float) -> str:
    """As many nines as are true: 99.98 % and not 100 %."""
    for digits in range(1, 6):
        text = f"{kept:.{digits}f}"
        if kept == 100.0 or float(text) < 100.0:
            return f"{text} %"
    return "> 99.999 %"


@_styled
def factors_before_after(
    before: Array, after: Array, anchor: Array, mode: str, *, columns: int = 3, lines: int = 60, coordinate: str = ""
) -> Figure:
    """The first factor columns of many samples, before and after alignment, with the anchor's.

    Parameters
    ----------
    before, after
        ``(samples, ..., n, r)``; of batch axes the first index is shown.
    anchor
        ``(..., n, r)``.
    mode
        Its name.
    columns, lines
        At most so many columns and samples.
    coordinate
        Label of the horizontal axis; the mode's index where left out.
    """
    before, after = (_first_batch(x, 3)[:lines] for x in (before, after))
    anchor = _first_batch(anchor[None], 3)[0]
    count = min(columns, anchor.shape[1])
    figure = _figure(3.3)
    grid = _axes(figure, 2, count, sharex=True, sharey=True)
    position = np.arange(anchor.shape[0])
    alpha = float(np.clip(14 / len(before), 0.12, 0.6))
    edge = 1.1 * max(float(np.quantile(np.abs(before[..., :count]), 0.998)), float(np.abs(anchor[:, :count]).max()))
    for row, (samples, title, colour) in enumerate(
        ((before, "before", GREY), (after, "after", COLOURS["generated"])),
    ):
        for column in range(count):
            ax = grid[row, column]
            ax.plot(position, samples[:, :, column].T, color=colour, alpha=alpha, linewidth=0.8)
            ax.plot(position, anchor[:, column], color=COLOURS["anchor"], linewidth=1.6)
            ax.set_ylim(-edge, edge)
            name = f"column {column + 1}" if row == 0 else ""
            xlabel = (coordinate or f"{mode} (index)") if row == 1 else ""
            _finish(ax, name, xlabel, f"loading {title}" if column == 0 else "")
    handles = [
        matplotlib.lines.Line2D([], [], color=COLOURS["anchor"], linewidth=1.6, label="anchor"),
        matplotlib.lines.Line2D([], [], color=GREY, label="samples"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


def _first_batch(x: Array, ndim: int) -> Array:
    """``(k, ..., n, r)`` to ``(k, n, r)``: the first of every batch axis."""
    while x.ndim > ndim:
        x = x[:, 0]
    return x


@_styled
def overlap_histograms(overlaps: Mapping[str, Array], *, minimum: float | None = None) -> Figure:
    """How well samples can be aligned: the smallest cosine between a sample's factor space and the anchor's, by mode.

    Parameters
    ----------
    overlaps
        ``(samples, ..., r)`` cosines by mode.
    minimum
        The recipe's ``align.min_overlap``.
    """
    figure = _figure(1.25 * len(overlaps) + 0.55)
    grid = _axes(figure, len(overlaps), 1, sharex=True)
    edges = np.linspace(0, 1, 41)
    for row, (mode, cosines) in enumerate(overlaps.items()):
        ax = grid[row, 0]
        smallest = np.clip(cosines.reshape(len(cosines), -1).min(axis=1), 0.0, 1.0)
        ax.hist(smallest, bins=edges, color=COLOURS["anchor"], alpha=0.85)
        ax.set_xlim(0, 1)
        if minimum is not None:
            ax.axvline(minimum, color=COLOURS["generated"], linewidth=1.1, linestyle="--")
        last = row == len(overlaps) - 1
        title = f"{mode}: median {np.median(smallest):.2f}, smallest {smallest.min():.2g}"
        _finish(ax, title, "smallest overlap with the anchor (1: same space)" if last else "", "samples")
    return figure


@_styled
def drift(before: Mapping[str, Array], new: Mapping[str, Array], *, columns: int = 2) -> Figure:
    """Distributions of earlier and new samples: the share of samples below each value.

    Parameters
    ----------
    before, new
        ``(m,)`` and ``(k,)`` of each statistic.
    """
    rows = -(-len(new) // columns)
    figure = _figure(1.05 * rows + 0.4)
    grid = _axes(figure, rows, columns)
    for ax, name in zip(grid.flat, new, strict=False):
        for values, label, colour in ((before[name], "first", COLOURS["test"]), (new[name], "new", _SEQUENCE[1])):
            ax.ecdf(values, label=label, color=colour, linewidth=1.2)
        _finish(ax, name.replace("_", " "), "", "")
    for ax in list(grid.flat)[len(new) :]:
        ax.set_visible(False)
    _legend(grid[0, 0], loc="lower right")
    return figure


@_styled
def anchors(factors: Mapping[str, Array], *, columns: int = 4) -> Figure:
    """The anchors themselves: the first columns of every aligned mode, by mode.

    Parameters
    ----------
    factors
        ``(..., n, r)`` by mode.
    columns
        At most so many columns.
    """
    count = len(factors)
    figure = _figure(1.6 * count + 0.3)
    grid = _axes(figure, count, 1)
    handles: list[Any] = []
    labels: list[Any] = []
    for ax, (mode, factor) in zip(grid.flat, factors.items(), strict=True):
        shown = _first_batch(factor[None], 3)[0][:, :columns]
        for column, colour in zip(range(shown.shape[1]), _SEQUENCE, strict=False):
            ax.plot(shown[:, column], color=colour, label=f"column {column + 1}")
        handles, labels = max((handles, labels), ax.get_legend_handles_labels(), key=lambda pair: len(pair[0]))
        _finish(ax, f"anchor of {mode}", f"{mode} (index)", "loading")
    figure.legend(handles, labels, loc="outside upper right", ncols=2, columnspacing=1.0, handlelength=1.6)
    return figure


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


# --- training and generation --------------------------------------------------------------------------------------


@_styled
def training_curves(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """Training and held-out loss against steps.

    Parameters
    ----------
    history
        Rows with ``step`` and any of ``loss`` and ``heldout_loss``.
    """
    figure = _figure(2.5)
    ax = _axes(figure, 1, 1)[0, 0]
    best = ""
    for key, label, colour in (("loss", "training", GREY), ("heldout_loss", "held-out", COLOURS["generated"])):
        rows = [(row["step"], value) for row in history if (value := row.get(key)) is not None and np.isfinite(value)]
        if not rows:
            continue
        steps, values = np.array(rows, dtype=np.float64).T
        if key == "loss" and len(values) > 30:
            ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            values = _smooth(values)
            label = "training (smoothed)"
        ax.plot(steps, values, color=colour, label=label, marker="o" if len(values) == 1 else "", markersize=3)
        if key == "heldout_loss":
            best = f": held-out loss ends at {values[-1]:.3g}, best {values.min():.3g}"
    ax.set_yscale("log")
    _finish(ax, f"Training{best}", "training step", "loss")
    if ax.lines:
        _legend(ax)
    return figure


def _smooth(values: Array, share: float = 0.04) -> Array:
    """Running median in a window of this share of all points; it does not lag as an exponential mean does."""
    half = max(1, int(len(values) * share / 2))
    padded = np.pad(values, half, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1))


@_styled
def spectra_bands(
    sets: Mapping[str, Array], axis: int, mode: str, *, coordinate: Array | None = None, unit: str = "", label: str = ""
) -> Figure:
    """Median and the 5 to 95 % range of the values along one mode, for real and generated samples.

    Parameters
    ----------
    sets
        ``(k, *sizes)`` by kind: ``test``, ``generated``, ``gaussian``; the first is drawn below the others.
    axis
        The mode's axis in the arrays.
    mode
        Its name.
    coordinate
        ``(n,)`` values along it; the index where left out.
    unit
        Of the values.
    label
        Of the horizontal axis, with its unit.
    """
    figure = _figure(2.9)
    ax = _axes(figure, 1, 1)[0, 0]
    for i, (kind, x) in enumerate(sets.items()):
        _, (low, middle, high) = metrics.band_statistics(x, axis, (0.05, 0.5, 0.95))
        position = np.arange(len(middle)) if coordinate is None else coordinate
        colour = COLOURS.get(kind, _SEQUENCE[i % len(_SEQUENCE)])
        if i == 0:
            ax.fill_between(position, low, high, color=colour, alpha=0.16, linewidth=0)
        else:
            ax.plot(position, low, color=colour, linewidth=0.9, linestyle=(0, (3, 1.5)))
            ax.plot(position, high, color=colour, linewidth=0.9, linestyle=(0, (3, 1.5)))
        ax.plot(position, middle, color=colour, label=NAMES.get(kind, kind))
    _finish(ax, f"Values along {mode}: median and 5–95 % range", label or f"{mode} (index)", unit or "value")
    _legend(ax)
    return figure


@_styled
def power_spectra(sets: Mapping[str, Array], modes: Sequence[str], *, least: int = 8) -> Figure | None:
    """Mean power spectrum along each mode, for real and generated samples.

    Parameters
    ----------
    sets
        ``(k, *sizes)`` by kind, centred or not: line means are removed. NaN count as zero.
    modes
        The samples' modes.
    least
        Shorter modes are left out.

    Returns
    -------
    Figure or None
        None where no mode is long enough.
    """
    first = next(iter(sets.values()))
    shown = [
        (axis, mode) for axis, mode in enumerate(modes, start=1) if mode != "component" and first.shape[axis] >= least
    ]
    if not shown:
        return None
    figure, panels = _panels(len(shown), 2, 2.0, 0.4)
    for ax, (axis, mode) in zip(panels, shown, strict=True):
        for i, (kind, x) in enumerate(sets.items()):
            frequency, power = metrics.power_spectrum(np.nan_to_num(x), axis)
            colour = COLOURS.get(kind, _SEQUENCE[i % len(_SEQUENCE)])
            ax.loglog(
                frequency, np.maximum(power, np.finfo(np.float64).tiny), color=colour, label=NAMES.get(kind, kind)
            )
        _frequency_ticks(ax, float(frequency[0]))
        _finish(ax, f"along {mode}", "cycles per grid step", "power")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


@_styled
def deviations(found: Mapping[str, Mapping[str, Array]]) -> Figure:
    """Deviation against position on the principal axes, for real and generated samples.

    Parameters
    ----------
    found
        By title of a panel, then by kind: ``(n,)``.
    """
    figure, panels = _panels(len(found), 2, 1.9, 0.4)
    for ax, (title, curves) in zip(panels, found.items(), strict=True):
        for i, (kind, values) in enumerate(curves.items()):
            colour = COLOURS.get(kind, _SEQUENCE[i % len(_SEQUENCE)])
            position = np.arange(1, len(values) + 1)
            ax.semilogy(
                position, np.maximum(values, np.finfo(np.float64).tiny), color=colour, label=NAMES.get(kind, kind)
            )
        _finish(ax, title, "principal axis", "deviation")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def _frequency_ticks(ax: Axes, lowest: float) -> None:
    """Few plain numbers: the logarithmic default overlaps on short modes."""
    ticks = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]
    shown = [tick for tick in ticks if tick >= lowest * 0.95][:: 1 if lowest > 0.02 else 2]
    ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
    ax.set_xticks([], minor=True)


@_styled
def nearest_training(distances: Mapping[str, Array]) -> Figure:
    """Histograms of the distance to the nearest training sample: generated samples at zero would be copies.

    Parameters
    ----------
    distances
        ``(k,)`` by kind: ``test``, ``generated``, ``train`` (leaving itself out), ``gaussian``.
    """
    figure = _figure(2.5)
    ax = _axes(figure, 1, 1)[0, 0]
    top = max(float(np.quantile(d, 0.99)) for d in distances.values()) * 1.05 or 1.0
    edges = np.linspace(0, top, 41)
    for kind, values in distances.items():
        colour = COLOURS.get(kind, GREY)
        filled = kind == "test"
        ax.hist(
            np.clip(values, 0, top),
            bins=edges,
            histtype="stepfilled" if filled else "step",
            color=colour,
            alpha=0.25 if filled else 1.0,
            linewidth=1.5,
            label=NAMES.get(kind, kind),
        )
    ax.set_xlim(0, top)
    _finish(ax, "New samples or copies?", "distance to the nearest training sample (0: a copy)", "samples")
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.6)
    return figure


@_styled
def scorecard(table: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Each metric of the model and of honest data relative to the Gaussian reference: left of the line is better.

    Parameters
    ----------
    table
        As `evaluation.evaluate` returns it. Only metrics where lower is better and a Gaussian exists are drawn.

    Returns
    -------
    Figure or None
        None where no metric has all columns.
    """
    rows = [
        (metric["label"], metric["value"] / metric["gaussian"], metric["train_vs_test"] / metric["gaussian"])
        for metric in table.values()
        if metric["better"] == "lower"
        and all(metric.get(column) is not None for column in ("value", "train_vs_test", "gaussian"))
        and metric["gaussian"] > 0
    ]
    if not rows:
        return None
    figure = _figure(0.34 * len(rows) + 1.15)
    ax = _axes(figure, 1, 1)[0, 0]
    position = np.arange(len(rows))[::-1]
    lowest = max(0.02, 0.7 * min(min(row[1:]) for row in rows))
    model = np.maximum([row[1] for row in rows], lowest)
    honest = np.maximum([row[2] for row in rows], lowest)
    ax.axvline(1.0, color=GREY, linewidth=1.2)
    ax.hlines(position, honest, model, color=PALE, linewidth=2.5)
    ax.plot(honest, position, "o", color=COLOURS["train"], markersize=6, label="training data (an honest draw)")
    ax.plot(model, position, "D", color=COLOURS["generated"], markersize=5.5, label="model")
    ax.set_xscale("log")
    highest = max(1.5, float(max(model.max(), honest.max())) * 1.3)
    ax.set_xlim(lowest * 0.9, highest)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100) if lowest <= t <= highest]
    ax.set_xticks(ticks, [f"≤ {t:g}" if t == 0.02 else f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set_yticks(position, [row[0] for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    _finish(ax, "", "", "", grid="x")
    figure.supxlabel("relative to the Gaussian reference (left of 1 beats it)", fontsize=8)
    figure.legend(loc="outside upper right", ncols=2)
    return figure
