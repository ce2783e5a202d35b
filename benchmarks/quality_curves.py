"""The plots of the page on generation quality: all methods beside each other, and error against network calls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

OURS, OTHER, FLOOR = "#d95f02", "#1f3a5f", "#7f7f7f"
COLUMNS = 3

#: By method, the mean of an error and half the width of its interval (NaN: one seed).
Errors = Mapping[str, tuple[float, float]]


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    lines = math.ceil(count / COLUMNS)
    figure = Figure(figsize=(11, height * lines), layout="constrained")
    axes = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, axes


def _few_labels(axis: Any) -> None:
    """Few plain labels on a log axis, whose numbers may lie within one decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 1.8 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ends(mean: float, width: float) -> tuple[float, float]:
    """Of an interval on a log axis, which has no room for zero."""
    return (mean, mean) if math.isnan(width) else (max(mean - width, 0.1 * mean), mean + width)


def methods(panels: Mapping[str, tuple[str, Errors, float]]) -> Any:
    """A figure with a panel for each task: an error on a log axis, a dot with its interval for each method, best first.

    An estimate at or below zero, which an unbiased one may be, is an arrow at the left edge.

    Parameters
    ----------
    panels
        By task: the error's name, each method's, and what training samples or the codec have (NaN: unknown).
    """
    figure, axes = _panels(len(panels), 2.9)
    for ax, (task, (label, errors, floor)) in zip(axes, panels.items(), strict=False):
        names = sorted(errors, key=lambda name: -errors[name][0])
        ends = {name: _ends(*errors[name]) for name in names if errors[name][0] > 0}
        shown = [*(end for each in ends.values() for end in each), *([floor] if floor > 0 else [])]
        left, right = min(shown) / 1.3, max(shown) * 1.3
        for y, name in enumerate(names):
            color, ends_of = OURS if name == "ours" else OTHER, ends.get(name, (left, left))
            ax.plot(errors[name][0] if name in ends else left, y, "o" if name in ends else "<", ms=5, color=color)
            ax.plot(ends_of, (y, y), color=color)
        if floor > 0:
            ax.axvline(floor, color=FLOOR, ls=":", lw=1)
        ax.set(xscale="log", xlim=(left, right))
        _few_labels(ax.xaxis)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_title(task, fontsize=10)
        ax.set_xlabel(label, fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
    return figure


def calls(panels: Mapping[str, tuple[str, Mapping[str, Mapping[int, float]]]]) -> Any:
    """A figure with a panel for each task: an error against network calls on log axes, a line for each sampler.

    Estimates at or below zero are left out.

    Parameters
    ----------
    panels
        By task: the error's name, and by sampler its values by number of calls.
    """
    figure, axes = _panels(len(panels), 2.6)
    samplers = list(dict.fromkeys(name for _, lines in panels.values() for name in lines))
    numbers = sorted({n for _, lines in panels.values() for values in lines.values() for n in values})
    for ax, (task, (label, lines)) in zip(axes, panels.items(), strict=False):
        for name, values in lines.items():
            there = {n: error for n, error in sorted(values.items()) if error > 0}
            ax.plot(list(there), list(there.values()), "o-", ms=4, label=name, color=f"C{samplers.index(name)}")
        ax.set(xscale="log", yscale="log")
        low, high = ax.get_ylim()
        ax.set_ylim(low / 1.5, high * 1.5)  # a few percent look like a few percent
        _few_labels(ax.yaxis)
        ax.set_xticks(numbers, [str(n) for n in numbers])
        ax.minorticks_off()
        ax.set_title(task, fontsize=10)
        ax.set_xlabel("network calls a sample", fontsize=8)
        ax.set_ylabel(label, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.legend(fontsize=7)
    return figure
