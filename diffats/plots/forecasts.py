"""Forecasts along time: at a few points, and how their error grows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from diffats import metrics
from diffats.plots.coordinates import Coordinate
from diffats.plots.painter import Painter
from diffats.plots.sheet import fitted
from diffats.plots.style import COLOURS, GREY, Array, finish, new_figure, new_panels, styled

_LINES = {"persistence": (GREY, "--"), "codec": (COLOURS["good"], ":"), "training_mean": (COLOURS["train"], "-.")}
_NAMES = {"persistence": "persistence", "codec": "compression alone", "training_mean": "training mean"}


def time_mode(painter: Painter) -> str:
    """The mode of time; empty where a sample has none."""
    return next((mode for mode, known in painter.coordinates.items() if known.kind == "time"), "")


@styled
def plume(
    truth: Array, ensemble: Array, painter: Painter, *, persistence: Array | None = None, points: int = 4
) -> Figure | None:
    """Forecasts of one case against time, at the points where the truth varies most.

    Parameters
    ----------
    truth, persistence
        ``(*sizes)``.
    ensemble
        ``(members, *sizes)``.
    painter
        Which variable is shown, and where the modes' points are.
    points
        So many.

    Returns
    -------
    Figure or None
        None without a mode of time.
    """
    mode = time_mode(painter)
    if not mode:
        return None
    series, modes = _series(painter, truth[None], mode)
    places = spread_points(series[0].std(axis=-1), points)
    members = _series(painter, ensemble, mode)[0]
    still = None if persistence is None else _series(painter, persistence[None], mode)[0][0]
    time, _ = painter.coordinates[mode].numbers
    figure, panels = new_panels(len(places), 2, 1.45, 0.55)
    for number, (ax, place) in enumerate(zip(panels, places, strict=True)):
        own = np.stack([member[place] for member in members])
        for low, high, alpha in ((0.05, 0.95, 0.2), (0.25, 0.75, 0.35)):
            edges = np.quantile(own, (low, high), axis=0)
            label = f"{low:.0%} to {high:.0%}".replace("%", " %") if number == 0 else None
            ax.fill_between(time, *edges, color=COLOURS["generated"], alpha=alpha, linewidth=0, label=label)
        ax.plot(
            time,
            np.median(own, axis=0),
            color=COLOURS["generated"],
            linewidth=1.1,
            label=f"median of {len(own)} forecasts",
        )
        if still is not None:
            colour, style = _LINES["persistence"]
            ax.plot(time, still[place], color=colour, linestyle=style, linewidth=1.0, label="persistence")
        ax.plot(time, series[0][place], color=COLOURS["test"], linewidth=1.1, label="truth (test)")
        name = ", ".join(painter.coordinates[each].name(i) for each, i in zip(modes, place, strict=True))
        last = number >= len(places) - 2
        finish(ax, fitted(name, 1.6, 8.8), painter.coordinates[mode].label if last else "", "")
    figure.supylabel(painter.value_label, fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, columnspacing=1.0, handlelength=1.4)
    return figure


def _series(painter: Painter, x: Array, mode: str) -> tuple[Array, list[str]]:
    """``(k, .., time)`` of one variable, and the modes between."""
    fixed = dict(painter.fixed)
    modes = [each for each in painter.modes if each != "component"]
    if "component" in painter.modes:
        x = np.take(x, fixed["component"], axis=painter.modes.index("component") + 1)
    moved = np.moveaxis(x, modes.index(mode) + 1, -1).astype(np.float64)
    return moved, [each for each in modes if each != mode]


def spread_points(spread: Array, count: int) -> list[tuple[int, ...]]:
    """The points with the largest values of an array that are at least a fifth of its sides apart.

    >>> spread_points(np.array([1.0, 9.0, 8.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 2)
    [(1,), (4,)]
    """
    found: list[tuple[int, ...]] = []
    left = np.where(np.isfinite(spread), spread, -np.inf)
    while len(found) < count and np.isfinite(left).any():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(left)), left.shape))
        found.append(place)
        near = tuple(slice(max(0, i - n // 5), i + n // 5 + 1) for i, n in zip(place, left.shape, strict=True))
        left[near] = -np.inf
    return found


@styled
def error_in_time(
    truth: Array, ensemble: Array, modes: tuple[str, ...], time: Coordinate, references: Mapping[str, Array]
) -> Figure:
    """Relative error of the ensemble's mean at each time, beside what needs no model.

    Parameters
    ----------
    truth
        ``(cases, *sizes)``.
    ensemble
        ``(cases, members, *sizes)``.
    modes
        The samples' modes.
    time
        The mode of time.
    references
        ``(cases, *sizes)`` by name: ``persistence``, ``codec``, ``training_mean``.
    """
    axis = modes.index(time.mode) + 1
    figure = new_figure(2.6)
    ax = figure.subplots()
    hours, _ = time.numbers
    mean = errors_by_step(ensemble.mean(axis=1), truth, axis)
    ax.plot(hours, mean, color=COLOURS["generated"], label=f"mean of {ensemble.shape[1]} forecasts")
    for name, x in references.items():
        colour, style = _LINES[name]
        ax.plot(hours, errors_by_step(x, truth, axis), color=colour, linestyle=style, linewidth=1.3, label=_NAMES[name])
    ax.set_ylim(bottom=0.0)
    finish(ax, f"Error of the forecast, mean over {len(truth)} cases", time.label, "relative L2 error")
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.8)
    return figure


def errors_by_step(x: Array, truth: Array, axis: int) -> Array:
    """``(n,)``: the relative L2 error along one axis, as a mean over samples; NaN where all truth is zero.

    >>> errors_by_step(np.array([[2.0, 3.0]]), np.array([[1.0, 2.0]]), 1).tolist()
    [1.0, 0.5]
    """
    steps = range(truth.shape[axis])
    errors = np.stack([metrics.relative_l2(x.take(i, axis), truth.take(i, axis)) for i in steps], axis=1)
    known = np.isfinite(errors)
    return np.where(
        known.any(axis=0), np.where(known, errors, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1), np.nan
    )
