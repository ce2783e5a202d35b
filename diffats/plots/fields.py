"""Samples drawn as pictures: galleries, forecasts beside their truth, reconstructions, the anchor sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffats.plots.coordinates import Coordinate, degrees
from diffats.plots.painter import Painter
from diffats.plots.sheet import Sheet, fitted
from diffats.plots.style import COLOURS, GREY, INK, PALE, WIDTH, Array, bare, new_figure, styled

MISSING = "#e4e8eb"  #: behind the hatching of missing points
#: Titles of the rows of a gallery, by kind.
TITLES = {
    "train": "real (training)",
    "test": "real (test): the model never saw them",
    "generated": "generated",
    "nearest": "nearest training sample of each generated one",
    "gaussian": "Gaussian reference",
    "truth": "truth (test)",
    "forecast": "one forecast",
}
#: Colours of these titles.
TINTS = COLOURS | {
    "nearest": COLOURS["train"],
    "train": COLOURS["anchor"],
    "truth": COLOURS["test"],
    "forecast": COLOURS["generated"],
}
_LINE, _GAP, _FOOT = 0.17, 0.05, 0.52  # inches: of a line of small text, between pictures, and for a colour bar
_TOP, _TITLE, _MAP_MARGIN, _MAP_FOOT = 0.03, 0.24, 0.34, 0.18


class Grid:
    """Where the pictures of a sheet stand: columns of samples, in groups, each of one picture for a slice.

    Parameters
    ----------
    painter
        How samples are shown.
    sample
        ``(*sizes)``: any of them.
    groups
        How many columns each group has; groups stand apart.
    """

    def __init__(self, painter: Painter, sample: Array, groups: Sequence[int]) -> None:
        self.painter, slices = painter, max(1, len(painter.slices))
        height, width = painter.paint(sample).shape[1:3]
        margin = _MAP_MARGIN if painter.is_map else 0.02
        starts = np.cumsum([0, *groups])
        gaps = np.full(slices * starts[-1], _GAP * (0.6 if slices > 1 else 1.0))
        gaps[::slices] = _GAP * (2.0 if slices > 1 else 1.0)
        gaps[starts[:-1] * slices] = 3.2 * _GAP
        gaps[0] = 0.0
        self.slices, self.columns = slices, int(starts[-1])
        self.width = float(WIDTH - margin - 0.02 - gaps.sum()) / len(gaps)
        self.height = self.width * float(np.clip(height / width, 0.4, 1.6))
        self.lefts = margin + np.cumsum(gaps) + self.width * np.arange(len(gaps))
        self.spans = [(self.lefts[a * slices], self.lefts[b * slices - 1] + self.width) for a, b in pairwise(starts)]

    def draw(self, sheet: Sheet, top: float, samples: Sequence[Array | None], *, last: bool, **options: Any) -> Any:
        """A row of pictures of samples ``(*sizes)``, one a column; the last row of a sheet has the longitudes."""
        image = None
        for column, sample in enumerate(samples):
            pictures = [] if sample is None else list(self.painter.paint(sample))
            image = self.pictures(sheet, top, column, pictures, last=last, **options) or image
        return image

    def pictures(
        self, sheet: Sheet, top: float, column: int, pictures: Sequence[Array | None], *, last: bool, **options: Any
    ) -> Any:
        """The pictures of one column."""
        image = None
        for i, picture in enumerate(pictures):
            if picture is not None:
                place = column * self.slices + i
                ax = sheet.axes(self.lefts[place], top, self.width, self.height)
                image = draw(ax, self.painter, picture, **options)
                if self.painter.is_map:
                    _map_axes(ax, self.painter, left=place == 0, bottom=last, width=self.width)
        return image

    def rows(
        self, sheet: Sheet, top: float, rows: Mapping[str, Sequence[Array | None]], *, last: bool
    ) -> tuple[Any, float]:
        """Rows of samples below their titles, by kind; an image of them, and where they end."""
        image = None
        for kind, samples in rows.items():
            row_title(sheet, top, kind, COLOURS["generated"])
            top += _TITLE
            for start in range(0, len(samples), self.columns):
                lowest = last and kind == [*rows][-1] and start + self.columns >= len(samples)
                image = self.draw(sheet, top, samples[start : start + self.columns], last=lowest) or image
                top += self.height + _GAP
        return image, top

    def room(self, samples: Sequence[Array | None]) -> float:
        """Inches that a row takes: its title, and a line for so many samples as there are columns."""
        return _TITLE + -(-len(samples) // self.columns) * (self.height + _GAP)

    def name_slices(self, sheet: Sheet, top: float) -> float:
        """Where each picture stands along the sliced mode, above all columns; the height that this took."""
        painter = self.painter
        if not painter.sliced:
            return 0.0
        for place, left in enumerate(self.lefts):
            index = painter.slices[place % self.slices]
            coordinate = painter.coordinates[painter.sliced]
            text = coordinate.name(index) if place == 0 or not coordinate.given else coordinate.text(index)
            sheet.text(left, top, text, width=self.width + 0.02, color=GREY, size=6.6, lines=1)
        return _LINE

    @property
    def foot(self) -> float:
        """Inches below the last row for its longitudes."""
        return _MAP_FOOT if self.painter.is_map else 0.0


def draw(ax: Axes, painter: Painter, picture: Array, *, aspect: Any = "auto", **options: Any) -> Any:
    """A picture of `Painter.paint` on axes; missing points are hatched."""
    bare(ax)
    missing = (picture[..., -1] == 0) if picture.ndim == 3 else np.isnan(picture)
    if missing.any():
        ax.patch.set(facecolor=MISSING, hatch="//////", edgecolor="#aeb7bf", linewidth=0.0)
    if picture.ndim == 3:
        return ax.imshow(picture, aspect=aspect, interpolation="nearest")
    low, high = painter.limits[0]
    shown = {"cmap": painter.colormap, "vmin": low, "vmax": high} | options
    return ax.imshow(picture, aspect=aspect, interpolation="nearest", **shown)


def _map_axes(ax: Axes, painter: Painter, *, left: bool, bottom: bool, width: float) -> None:
    """Latitudes and longitudes beside the outer pictures."""
    vertical, horizontal = (painter.coordinates[mode] for mode in painter.image)
    ax.tick_params(labelsize=6.2, length=2, width=0.5, pad=1.2, color=GREY)
    if left:
        ax.set_yticks(*_degrees(vertical, painter.flipped[0], 3))
    if bottom:
        places, names = _degrees(horizontal, painter.flipped[1], 3 if width > 1.1 else 2)
        close = len(places) > 1 and (places[1] - places[0]) * width < 0.36 * len(horizontal.values)
        ax.set_xticks(places[:: 2 if close else 1], names[:: 2 if close else 1])


def _degrees(coordinate: Coordinate, flipped: bool, most: int) -> tuple[list[float], list[str]]:
    """Places on an axis and their names: at most so many round numbers, none at the very edge."""
    values = coordinate.numbers[0][:: -1 if flipped else 1]
    low, high = np.sort(values[[0, -1]])
    inner = (low + 0.06 * (high - low), high - 0.06 * (high - low))
    for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 180):
        ticks = np.arange(np.ceil(inner[0] / step), np.floor(inner[1] / step) + 1) * step
        if len(ticks) <= most:
            break
    order = np.argsort(values)
    places = np.interp(ticks, values[order], np.arange(len(values))[order])
    return places.tolist(), [degrees(float(tick), coordinate.kind) for tick in ticks]


@styled
def gallery(
    rows: Mapping[str, Sequence[Array | None]],
    painter: Painter,
    *,
    columns: int | None = None,
    headings: Sequence[tuple[str, int]] = (),
) -> Figure:
    """Samples of several kinds below each other, all in the same colours.

    Parameters
    ----------
    rows
        By kind (a key of `TITLES`, or any title): samples ``(*sizes)``, line by line; None leaves a place empty.
    painter
        How to show them.
    columns
        How many stand side by side; all where left out.
    headings
        Groups of columns that belong together, such as classes: the name of each, and its columns.
    """
    columns = columns or max(len(samples) for samples in rows.values())
    example = next(sample for samples in rows.values() for sample in samples if sample is not None)
    grid = Grid(painter, example, [count for _, count in headings] or [columns])
    names = [fitted(name, right - left, 7.2) for (name, _), (left, right) in zip(headings, grid.spans, strict=False)]
    lines = max((name.count("\n") + 1 for name in names), default=0)
    head = _head(painter) + lines * 0.13 + (_LINE if painter.sliced else 0.0)
    bar = 0.0 if painter.coloured else _FOOT
    sheet = Sheet(head + sum(map(grid.room, rows.values())) + grid.foot + bar)
    top = _heading(sheet, painter)
    for (name, _), (left, right) in zip(headings, grid.spans, strict=False):
        sheet.text(left, top, name, size=7.2, width=right - left, color=INK)
    top += lines * 0.13
    top += grid.name_slices(sheet, top)
    image, top = grid.rows(sheet, top, rows, last=True)
    if not painter.coloured:
        sheet.colour_bar(image, top + grid.foot + 0.08, painter.value_label)
    return sheet.figure


def row_title(sheet: Sheet, top: float, kind: str, colour: str = INK) -> None:
    """The title of a row of samples, in its kind's colour."""
    colour = TINTS.get(kind, colour)
    sheet.text(0.02, top + 0.06, TITLES.get(kind, kind), size=8.6, lines=1, fontweight="bold", color=colour)


def _heading(sheet: Sheet, painter: Painter) -> float:
    """What all pictures of a sheet have in common, at its top; where it ends."""
    if painter.heading:
        sheet.text(0.02, _TOP, painter.heading, size=7.6, lines=1, color=INK)
    return _head(painter)


def _head(painter: Painter) -> float:
    return _TOP + (_LINE if painter.heading else 0.0)


@styled
def forecast(truth: Array, ensemble: Array, painter: Painter) -> Figure:
    """What came, below it one forecast of it, the mean of all, and how far the mean is off.

    Parameters
    ----------
    truth
        ``(k, n_1, .., n_N)``: a column each, or one for each slice.
    ensemble
        ``(k, members, n_1, .., n_N)``: forecasts under the same conditions.
    painter
        How to show them.
    """
    mean = ensemble.mean(axis=1)
    errors = np.abs(difference_pictures(painter, truth, mean))
    grid = Grid(painter, truth[0], [len(truth)])
    members = ensemble.shape[1]
    rows = {"truth": list(truth), "forecast": list(ensemble[:, 0]), f"mean of {members} forecasts": list(mean)}
    head = _head(painter) + (_LINE if painter.sliced else 0.0)
    sheet = Sheet(head + 4 * (_TITLE + grid.height + _GAP) + grid.foot + _FOOT)
    top = _heading(sheet, painter)
    top += grid.name_slices(sheet, top)
    image, top = grid.rows(sheet, top, rows, last=False)
    row_title(sheet, top, "absolute error of the mean", GREY)
    scale = _error_scale(errors, signed=False)
    for column, error in enumerate(errors):
        wrong = grid.pictures(sheet, top + _TITLE, column, list(error), last=True, **scale)
    top += _TITLE + grid.height + _GAP + grid.foot + 0.08
    half = WIDTH / 2
    if not painter.coloured:
        sheet.colour_bar(image, top, painter.value_label, left=0.0, width=half)
    sheet.colour_bar(wrong, top, f"error ({painter.unit})" if painter.unit else "error", left=half, width=half)
    return sheet.figure


@styled
def reconstruction_panels(original: Array, reconstruction: Array, painter: Painter, *, labels: Sequence[str]) -> Figure:
    """A row for each sample: original, reconstruction, and their difference.

    Parameters
    ----------
    original, reconstruction
        ``(k, *sizes)``, usually the best, the median and the worst sample.
    painter
        How to show them, of slices one.
    labels
        One for each row, such as ``"worst: 12 %"``.
    """
    painter = painter.cut()
    errors = difference_pictures(painter, original, reconstruction)[:, 0]
    grid = Grid(painter, original[0], [3])
    sheet = Sheet(_head(painter) + len(labels) * (_TITLE + grid.height + _GAP) + grid.foot + _FOOT)
    top = _heading(sheet, painter)
    scale = _error_scale(errors, signed=not painter.coloured)
    names = ("reconstruction", "error" if painter.coloured else "difference")
    image = None
    for row, (label, x, xhat, error) in enumerate(zip(labels, original, reconstruction, errors, strict=True)):
        last = row == len(labels) - 1
        sheet.text(grid.lefts[0], top + 0.07, label, size=8.4, lines=1, width=grid.width, fontweight="bold", color=INK)
        for left, title in zip(grid.lefts[1:], names if row == 0 else ("", ""), strict=True):
            sheet.text(left, top + 0.08, title, size=7.8, lines=1, width=grid.width, color=GREY)
        grid.draw(sheet, top + _TITLE, [x, xhat], last=last)
        image = grid.pictures(sheet, top + _TITLE, 2, [error], last=last, **scale)
        top += _TITLE + grid.height + _GAP
    name = f"root mean square over {painter.spectral}" if painter.coloured else "reconstruction minus original"
    sheet.colour_bar(image, top + grid.foot + 0.08, f"{name} ({painter.unit})" if painter.unit else name)
    return sheet.figure


def difference_pictures(painter: Painter, original: Array, other: Array) -> Array:
    """``(k, slices, height, width)``: other minus original as shown; in colours its root mean square over all bands."""
    if not painter.coloured:
        return np.asarray((painter.values(other) - painter.values(original))[..., 0])
    squares = (np.asarray(other, dtype=np.float64) - original) ** 2
    axis = painter.modes.index(painter.spectral) + 1
    spread = np.repeat(np.sqrt(squares.mean(axis=axis, keepdims=True)), original.shape[axis], axis=axis)
    return np.asarray(replace(painter, mixture=np.eye(original.shape[axis], 3)).values(spread)[..., 0])


def _error_scale(errors: Array, *, signed: bool) -> dict[str, Any]:
    """Colours of errors, and the values where they end."""
    finite = np.abs(errors[np.isfinite(errors)])
    edge = (float(np.quantile(finite, 0.995)) if finite.size else 0.0) or 1.0
    colours = matplotlib.colormaps["RdBu_r" if signed else "magma_r"].with_extremes(bad=(0, 0, 0, 0))
    return {"cmap": colours, "vmin": -edge if signed else 0.0, "vmax": edge}


@styled
def medoid(sample: Array, scores: Mapping[str, Array], index: int, painter: Painter) -> Figure:
    """The anchor sample, and how its similarity to all others compares with the other samples'.

    Parameters
    ----------
    sample
        ``(*sizes)``: the anchor sample.
    scores
        ``(samples,)`` by mode: the mean squared overlap with all other samples, larger is more typical.
    index
        The anchor's position in the scores.
    painter
        How to show the sample, of slices one.
    """
    painter = painter.cut()
    figure = new_figure(max(1.9, 0.95 * len(scores) + 0.5))
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(0.42, 0.58)))
    ax = left.subplots()
    picture = painter.paint(sample)[0]
    draw(ax, painter, picture, aspect="equal" if 0.4 <= picture.shape[0] / picture.shape[1] <= 1.6 else "auto")
    ax.set_xlabel(fitted(painter.heading, 0.4 * WIDTH, 7.0), fontsize=7.0, loc="left")
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
