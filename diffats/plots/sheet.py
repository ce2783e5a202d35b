"""A figure on which pictures and words are placed in inches, so that nothing overlaps or is cut off."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffats.plots.style import DPI, WIDTH


class Sheet:
    """A figure of the page's width; places are inches from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose upper left corner is at ``(left, top)``."""
        bottom = self.height - top - height
        return self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def text(
        self, left: float, top: float, text: str, *, size: float, width: float = WIDTH, lines: int = 2, **style: Any
    ) -> Any:
        """Text below ``top`` in at most so many lines of a width; the first line."""
        words = fitted(text, min(width, WIDTH - left), size, lines=lines).split("\n")
        drawn = []
        for i, line in enumerate(words):  # each on its baseline, so that what stands side by side is level
            base = top + (0.85 + 1.12 * i) * size / 72
            drawn.append(self.figure.text(left / WIDTH, 1 - base / self.height, line, fontsize=size, **style))
        return drawn[0]

    def colour_bar(self, image: Any, top: float, label: str, *, left: float = 0.0, width: float = WIDTH) -> None:
        """A slim bar in the middle of so much width."""
        place = self.axes(left + 0.14 * width, top, 0.72 * width, 0.08)
        bar = self.figure.colorbar(image, cax=place, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.set_label(fitted(label, width - 0.1, 7.5, lines=1), fontsize=7.5, labelpad=1.5)
        bar.ax.tick_params(labelsize=6.8, width=0.6, length=2, pad=1.5)
        bar.ax.locator_params(nbins=5 if width > WIDTH / 2 else 4)


def fitted(text: str, width: float, size: float, *, lines: int = 2) -> str:
    """Text in at most so many lines of a width in inches; what does not fit ends in dots.

    >>> fitted("grass_pasture_mowed", 0.8, 7.0)
    'grass_\\npasture_mowed'
    >>> fitted("sea water potential temperature", 0.8, 7.0, lines=1)
    'sea water ...'
    """
    room = max(4, int(width * 72 / (0.62 * size)))
    parts = _wrapped(" ".join(text.split()), room)
    if len(parts) > lines:
        parts = [*parts[: lines - 1], parts[lines - 1][: room - 3].rstrip() + " ..."]
    return "\n".join(parts)


def _wrapped(text: str, room: int) -> list[str]:
    """Lines of at most so many characters, broken after spaces and underscores where possible."""
    lines = [""]
    for word in text.replace(" ", " \0").replace("_", "_\0").split("\0"):
        while len(word.rstrip()) > room:
            lines, word = [*lines, word[:room]], word[room:]
        if len((lines[-1] + word).rstrip()) <= room:
            lines[-1] += word
        else:
            lines.append(word)
    return [line.rstrip() for line in lines if line.strip()]
