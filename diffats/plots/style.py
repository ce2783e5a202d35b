"""The house style of all pictures: colours, type, widths, and how a figure becomes PNG bytes.

Figures are 4.1 inches wide with type that stays readable when a phone shrinks them to its width. Colours are Okabe and
Ito's, which colour-blind readers tell apart; one thing has one colour in all pictures.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

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
SEQUENCE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
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
    "hatch.linewidth": 0.5,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw with the house style, whatever the process's own matplotlib settings are."""

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            drawn = draw(*args, **kwargs)
        if isinstance(drawn, Figure):
            _take_literally(drawn)
        return drawn

    return drawing


def _take_literally(figure: Figure) -> None:
    """Have names and units with dollar signs be no mathematics, which might not even parse; ticks have theirs later."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)


@styled
def png(figure: Figure) -> bytes:
    """PNG bytes, the same for the same figure."""
    out = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(out, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return out.getvalue()


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def new_axes(figure: Figure, rows: int, columns: int, **options: Any) -> Array:
    """Axes of a figure ``(rows, columns)``."""
    return np.asarray(figure.subplots(rows, columns, squeeze=False, **options))


def new_panels(count: int, columns: int, height: float, extra: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in rows of ``height``, ``extra`` for a legend; what is left over stays empty."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(height * rows + extra)
    axes = list(new_axes(figure, rows, columns).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def finish(ax: Axes, title: str, xlabel: str, ylabel: str, *, grid: str = "y") -> None:
    """Title, names of the axes, and lines across where ``grid`` says."""
    ax.set_title(title)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if grid:
        chosen: Any = grid
        ax.grid(axis=chosen, color=PALE, linewidth=0.7)


def bare(ax: Axes) -> None:
    """An axes that holds a picture: no ticks, no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
