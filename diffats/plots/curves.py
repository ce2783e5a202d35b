"""Curves, bars and histograms: what the report shows beside samples. Each function returns a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffats import distributions, metrics
from diffats.plots.style import (
    COLOURS,
    GREY,
    INK,
    NAMES,
    PALE,
    SEQUENCE,
    Array,
    finish,
    new_axes,
    new_figure,
    new_panels,
    styled,
)

# --- compression and alignment ------------------------------------------------------------------------------------


@styled
def scree(spectra: Mapping[str, Array], ranks: Mapping[str, int]) -> Figure:
    """Energy left out against rank, by mode: median and the 5 to 95 % range over samples, and the rank chosen.

    Parameters
    ----------
    spectra
        ``(samples, r + 1)`` or ``(r + 1,)`` energies of a mode's kept columns, descending, and then of all others.
    ranks
        The ranks chosen.
    """
    figure, panels = new_panels(len(spectra), 2, 1.75, 0.35)
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
        finish(ax, title, "rank", "energy left out")
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


@styled
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
    figure = new_figure(3.3)
    grid = new_axes(figure, 2, count, sharex=True, sharey=True)
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
            finish(ax, name, xlabel, f"loading {title}" if column == 0 else "")
    handles = [
        Line2D([], [], color=COLOURS["anchor"], linewidth=1.6, label="anchor"),
        Line2D([], [], color=GREY, label="samples"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


def _first_batch(x: Array, ndim: int) -> Array:
    """``(k, ..., n, r)`` to ``(k, n, r)``: the first of every batch axis."""
    while x.ndim > ndim:
        x = x[:, 0]
    return x


@styled
def overlap_histograms(overlaps: Mapping[str, Array], *, minimum: float | None = None) -> Figure:
    """How well samples can be aligned: the smallest cosine between a sample's factor space and the anchor's, by mode.

    Parameters
    ----------
    overlaps
        ``(samples, ..., r)`` cosines by mode.
    minimum
        The recipe's ``align.min_overlap``.
    """
    figure = new_figure(1.05 * len(overlaps) + 0.5)
    grid = new_axes(figure, len(overlaps), 1, sharex=True)
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
        finish(ax, title, "smallest overlap with the anchor (1: same space)" if last else "", "samples")
    return figure


@styled
def drift(before: Mapping[str, Array], new: Mapping[str, Array], *, columns: int = 2) -> Figure:
    """Distributions of earlier and new samples: the share of samples below each value.

    Parameters
    ----------
    before, new
        ``(m,)`` and ``(k,)`` of each statistic.
    """
    rows = -(-len(new) // columns)
    figure = new_figure(1.05 * rows + 0.4)
    grid = new_axes(figure, rows, columns)
    for ax, name in zip(grid.flat, new, strict=False):
        for values, label, colour in ((before[name], "first", COLOURS["test"]), (new[name], "new", SEQUENCE[1])):
            ax.ecdf(values, label=label, color=colour, linewidth=1.2)
        finish(ax, name.replace("_", " "), "", "")
    for ax in list(grid.flat)[len(new) :]:
        ax.set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, handlelength=1.6)
    return figure


@styled
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
    figure = new_figure(1.6 * count + 0.3)
    grid = new_axes(figure, count, 1)
    handles: list[Any] = []
    labels: list[Any] = []
    for ax, (mode, factor) in zip(grid.flat, factors.items(), strict=True):
        shown = _first_batch(factor[None], 3)[0][:, :columns]
        for column, colour in zip(range(shown.shape[1]), SEQUENCE, strict=False):
            ax.plot(shown[:, column], color=colour, label=f"column {column + 1}")
        handles, labels = max((handles, labels), ax.get_legend_handles_labels(), key=lambda pair: len(pair[0]))
        finish(ax, f"anchor of {mode}", f"{mode} (index)", "loading")
    figure.legend(handles, labels, loc="outside upper right", ncols=2, columnspacing=1.0, handlelength=1.6)
    return figure


# --- training and generation --------------------------------------------------------------------------------------


@styled
def training_curves(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """Training and held-out loss against steps.

    Parameters
    ----------
    history
        Rows with ``step`` and any of ``loss`` and ``heldout_loss``.
    """
    figure = new_figure(2.1)
    ax = new_axes(figure, 1, 1)[0, 0]
    for key, label, colour in (("loss", "training", GREY), ("heldout_loss", "held-out", COLOURS["generated"])):
        rows = [(row["step"], value) for row in history if (value := row.get(key)) is not None and np.isfinite(value)]
        if not rows:
            continue
        steps, values = np.array(rows, dtype=np.float64).T
        if key == "loss" and len(values) > 30:
            ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            values = _smooth(values)
            label = "training (smoothed)"
        if key == "heldout_loss":
            label = f"held-out (ends at {values[-1]:.3g}, best {values.min():.3g})"
        ax.plot(steps, values, color=colour, label=label, marker="o" if len(values) == 1 else "", markersize=3)
    ax.set_yscale("log")
    finish(ax, "", "training step", "loss")
    if ax.lines:
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)
    return figure


def _smooth(values: Array, share: float = 0.04) -> Array:
    """Running median in a window of this share of all points; it does not lag as an exponential mean does."""
    half = max(1, int(len(values) * share / 2))
    padded = np.pad(values, half, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1))


@styled
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
    figure = new_figure(2.9)
    ax = new_axes(figure, 1, 1)[0, 0]
    for i, (kind, x) in enumerate(sets.items()):
        _, (low, middle, high) = metrics.band_statistics(x, axis, (0.05, 0.5, 0.95))
        position = np.arange(len(middle)) if coordinate is None else coordinate
        colour = COLOURS.get(kind, SEQUENCE[i % len(SEQUENCE)])
        if i == 0:
            ax.fill_between(position, low, high, color=colour, alpha=0.16, linewidth=0)
        else:
            ax.plot(position, low, color=colour, linewidth=0.9, linestyle=(0, (3, 1.5)))
            ax.plot(position, high, color=colour, linewidth=0.9, linestyle=(0, (3, 1.5)))
        ax.plot(position, middle, color=colour, label=NAMES.get(kind, kind))
    finish(ax, f"along {mode}: median and 5–95 %", label or f"{mode} (index)", unit or "value")
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.6)
    return figure


@styled
def quantiles(sets: Mapping[str, Array], *, unit: str = "") -> Figure:
    """Quantiles of sets against those of ``test``: of all values, and of each sample's smallest and largest one.

    Parameters
    ----------
    sets
        ``(k, *sizes)`` by kind, ``test`` among them.
    unit
        Of the values.
    """
    values, ends = distributions.value_quantiles(sets), distributions.extremes(sets)
    figure = new_figure(2.55)
    left, right = new_axes(figure, 1, 2).flat
    for kind in ("gaussian", "train", "generated"):
        if kind not in sets:
            continue
        colour, wide = COLOURS[kind], 2.2 if kind == "generated" else 1.2
        left.plot(values["test"], values[kind], color=colour, linewidth=wide * 0.7, label=NAMES[kind])
        for own, other in zip(ends["test"], ends[kind], strict=True):
            count = min(len(own), len(other))
            steps = (np.arange(count) + 0.5) / count
            pair = np.quantile(own, steps), np.quantile(other, steps)
            right.plot(*pair, ".", color=colour, markersize=wide * 1.4, alpha=0.8)
    name = f"test samples ({unit})" if unit else "test samples"
    finish(left, "all values", name, f"others ({unit})" if unit else "others", grid="both")
    finish(right, "extremes", name, "", grid="both")
    for ax in (left, right):
        ends_of = (*ax.get_xlim(), *ax.get_ylim())
        low, high = min(ends_of), max(ends_of)
        ax.plot([low, high], [low, high], color=INK, linewidth=0.9, zorder=0.5)
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        ax.locator_params(nbins=4)
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.6, columnspacing=1.2)
    return figure


@styled
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
    figure, panels = new_panels(len(shown), 2 if len(shown) != 3 else 3, 2.0, 0.4)
    for ax, (axis, mode) in zip(panels, shown, strict=True):
        for i, (kind, x) in enumerate(sets.items()):
            frequency, power = metrics.power_spectrum(np.nan_to_num(x), axis)
            colour = COLOURS.get(kind, SEQUENCE[i % len(SEQUENCE)])
            power, dashes = np.maximum(power, np.finfo(np.float64).tiny), "--" if kind == "gaussian" else "-"
            ax.loglog(frequency, power, color=colour, linestyle=dashes, label=NAMES.get(kind, kind))
        _frequency_ticks(ax, float(frequency[0]), 6 // len(shown) + 1)
        finish(ax, mode if len(shown) == 3 else f"along {mode}", "", "power" if ax is panels[0] else "")
    figure.supxlabel("cycles per grid step", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(labels)), columnspacing=1.2)
    return figure


@styled
def deviations(found: Mapping[str, Mapping[str, Array]]) -> Figure:
    """Deviation against position on the principal axes, for real and generated samples.

    Parameters
    ----------
    found
        By title of a panel, then by kind: ``(n,)``.
    """
    figure, panels = new_panels(len(found), 2, 1.9, 0.4)
    for ax, (title, curves) in zip(panels, found.items(), strict=True):
        for i, (kind, values) in enumerate(curves.items()):
            colour = COLOURS.get(kind, SEQUENCE[i % len(SEQUENCE)])
            position = np.arange(1, len(values) + 1)
            ax.semilogy(
                position, np.maximum(values, np.finfo(np.float64).tiny), color=colour, label=NAMES.get(kind, kind)
            )
        finish(ax, title, "principal axis", "deviation")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def _frequency_ticks(ax: Axes, lowest: float, most: int) -> None:
    """Few plain numbers: the logarithmic default overlaps on short modes and in narrow panels."""
    ticks = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]
    shown = [tick for tick in ticks if tick >= lowest * 0.95]
    shown = shown[:: -(-len(shown) // most)]
    ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
    ax.set_xticks([], minor=True)


@styled
def nearest_training(distances: Mapping[str, Array]) -> Figure:
    """Histograms of the distance to the nearest training sample: generated samples at zero would be copies.

    Parameters
    ----------
    distances
        ``(k,)`` by kind: ``test``, ``generated``, ``train`` (leaving itself out), ``gaussian``.
    """
    figure = new_figure(2.5)
    ax = new_axes(figure, 1, 1)[0, 0]
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
    finish(ax, "New samples or copies?", "distance to the nearest training sample (0: a copy)", "samples")
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.6)
    return figure


@styled
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
    figure = new_figure(0.34 * len(rows) + 1.15)
    ax = new_axes(figure, 1, 1)[0, 0]
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
    finish(ax, "", "", "", grid="x")
    figure.supxlabel("relative to the Gaussian reference (left of 1 beats it)", fontsize=8)
    figure.legend(loc="outside upper right", ncols=2)
    return figure
