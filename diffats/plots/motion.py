"""Samples in motion: an animated PNG, which browsers show as they show pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from diffats.plots.fields import Grid, draw, row_title
from diffats.plots.painter import Painter
from diffats.plots.sheet import Sheet
from diffats.plots.style import GREY, Array, styled

FRAMES, BYTES = 60, 1_000_000  #: a film has at most so many
_SECONDS = 6.0
_SIZES = (
    (60, 150, 128),
    (60, 120, 64),
    (40, 110, 64),
    (30, 95, 48),
    (20, 80, 32),
    (12, 60, 16),
)  # frames, dpi, colours
_WHITE = [252] * 3  # what Pillow takes white for when it looks for the nearest entry of a palette


@styled
def film(rows: Mapping[str, Sequence[Array]], painter: Painter) -> bytes:
    """Samples of several kinds below each other, all slices one after the other.

    Parameters
    ----------
    rows
        By kind (a key of `TITLES`, or any title): samples ``(*sizes)``, one for each column.
    painter
        How to show them; its sliced mode is the film's time.

    Returns
    -------
    bytes
        An animated PNG of at most `BYTES`; fewer frames, points and colours where it would be larger.
    """
    size = painter.coordinates[painter.sliced].values.size
    out = b""
    for frames, dpi, colours in _SIZES:
        steps = np.unique(np.linspace(0, size - 1, min(frames, size)).round().astype(int))
        out = _encoded(_frames(rows, painter, steps.tolist(), dpi), colours)
        if len(out) <= BYTES:
            break
    return out


def _frames(rows: Mapping[str, Sequence[Array]], painter: Painter, steps: Sequence[int], dpi: int) -> list[Any]:
    """Pictures of all steps."""
    painter = painter.at(steps)
    first = next(iter(rows.values()))
    grid = Grid(painter.at(steps[:1]), first[0], [len(first)])
    line = 0.24
    sheet = Sheet(line + len(rows) * (line + grid.height + 0.05) + 0.02)
    sheet.figure.set_dpi(dpi)
    time = sheet.text(0.02, 0.04, "", size=8.0, color=GREY, parse_math=False)
    moving, top = [], line
    for kind, samples in rows.items():
        row_title(sheet, top, kind)
        for left, sample in zip(grid.lefts, samples, strict=True):
            pictures = painter.paint(sample)
            moving.append((draw(sheet.axes(left, top + line, grid.width, grid.height), painter, pictures[0]), pictures))
        top += line + grid.height + 0.05
    for artist in (time, *(image for image, _ in moving)):
        artist.set_animated(True)
    canvas: Any = FigureCanvasAgg(sheet.figure)
    canvas.draw()
    still, out = canvas.copy_from_bbox(sheet.figure.bbox), []
    for i, step in enumerate(steps):
        canvas.restore_region(still)
        time.set_text(painter.coordinates[painter.sliced].name(step))
        sheet.figure.draw_artist(time)
        for image, pictures in moving:
            image.set_data(pictures[i])
            image.axes.draw_artist(image)
        out.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return out


def _encoded(frames: Sequence[Any], colours: int) -> bytes:
    """An animated PNG with one palette."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 6).round().astype(int))]
    width, height = chosen[0].size
    sheet = Image.new("RGB", (width, height * len(chosen)))
    for i, frame in enumerate(chosen):
        sheet.paste(frame, (0, i * height))
    palette = sheet.quantize(colours - 1, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    entries = [*(palette.getpalette() or [])[: 3 * (colours - 1)], *_WHITE]
    palette.putpalette(entries)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    for frame in flat:  # as white as the page
        frame.putpalette([255 if entries[i - i % 3 : i - i % 3 + 3] == _WHITE else v for i, v in enumerate(entries)])
    out = io.BytesIO()
    duration = max(40, round(1000 * _SECONDS / len(flat)))
    flat[0].save(out, "PNG", save_all=True, append_images=flat[1:], duration=duration, loop=0, optimize=True)
    return out.getvalue()
