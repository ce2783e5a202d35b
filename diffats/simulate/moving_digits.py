"""Moving handwritten digits: two real ones cross a square and bounce off its walls.

The digits are scikit-learn's 1797 (the test set of the UCI collection), enlarged. Those of test samples occur in no
training sample.
"""

from __future__ import annotations

import functools
import math
from importlib.metadata import version

import numpy as np
import xarray as xr

from diffats.config import Simulate
from diffats.errors import RecipeError
from diffats.requirements import require
from diffats.simulate import drawing
from diffats.simulate.drawing import Array

VERSION = 1
DIMS = ("time", "y", "x")
MOST_TOGETHER = 64
IN_PROCESSES = False
REFERENCE = "Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, doi:10.24432/C50P49"
LICENSE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
_SIZE = 28 / 64  # of a digit, and its path in one frame, in sides of the square (as in Moving MNIST)
_SPEED = (2 / 64, 5 / 64)


def solver() -> str:
    """Where the digits come from."""
    return f"diffats.simulate.moving_digits {VERSION}, with {source_of_digits()}"


def describe(settings: Simulate) -> xr.Dataset:
    """Coordinates and parameters of all samples, and variables that are still to be made."""
    frames, n = _sizes(settings)
    if settings.held_out:
        raise RecipeError('simulate.held_out: problem "moving_digits" holds out digits; set simulate.test instead.')
    labels, stream = original_digits()[1], drawing.parameter_stream(settings)
    order = stream.permutation(len(labels))
    tests = drawing.share_of(len(labels), settings.test)
    side = np.zeros(settings.count, dtype=np.int8)
    side[: drawing.share_of(settings.count, settings.test)] = 1
    side = stream.permutation(side)
    chosen = np.where(
        side[:, None] == 1,
        order[stream.integers(0, tests, (settings.count, 2))],
        order[stream.integers(tests, len(order), (settings.count, 2))],
    )
    digits = {
        f"{what}_{which}": drawing.coordinate("sample", values[:, i], f"{name} of the {which} digit")
        for what, name, values in (("image", "number", chosen), ("digit", "class", labels[chosen]))
        for i, which in enumerate(("first", "second"))
    }
    field = {"long_name": "brightness"}
    return xr.Dataset(
        {"brightness": drawing.empty(("sample", *DIMS), (settings.count, frames, n, n), field)},
        coords={
            "time": drawing.coordinate("time", np.arange(frames), "frame"),
            "y": drawing.coordinate("y", np.arange(n), "pixel down"),
            "x": drawing.coordinate("x", np.arange(n), "pixel to the right"),
            **digits,
            "held_out": drawing.sides("sample", side, "new_digits"),
        },
        attrs={
            "title": "Moving handwritten digits, two at a time",
            "references": f"{REFERENCE}; Srivastava, Mansimov and Salakhutdinov (2015), arXiv:1502.04681",
            "license": f"{LICENSE} (the digits)",
        },
    )


def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
    """Some films, float32 ``(k, time, y, x)`` in 0 to 1; where digits meet, the brighter pixel shows."""
    frames, n = _sizes(settings)
    size = round(_SIZE * n)
    pictures = _enlarged(size)
    films = np.zeros((part.sizes["sample"], frames, n, n), dtype=np.float32)
    pairs = np.stack([part["image_first"].values, part["image_second"].values], axis=1)
    for film, number, pair in zip(films, part["sample"].values, pairs, strict=True):
        stream = drawing.state_stream(settings, int(number))
        for image in pair:
            for frame, (y, x) in enumerate(path(stream, frames, n - size, speed=n)):
                window = film[frame, y : y + size, x : x + size]
                np.maximum(window, pictures[image], out=window)
    return {"brightness": films}


def path(stream: np.random.Generator, frames: int, room: int, *, speed: float) -> Array:
    """Corners ``(frames, 2)`` of a digit that starts anywhere, goes straight, and is reflected at 0 and ``room``.

    >>> corners = path(np.random.default_rng(0), 50, 36, speed=64)
    >>> int(corners.min()) >= 0, int(corners.max()) <= 36
    (True, True)
    """
    start = stream.uniform(0, room, 2)
    angle, length = stream.uniform(0, 2 * math.pi), speed * stream.uniform(*_SPEED)
    straight = start + np.outer(np.arange(frames), length * np.array([math.sin(angle), math.cos(angle)]))
    folded = np.abs((straight + room) % (2 * room) - room)
    corners: Array = np.rint(folded).astype(np.int64)
    return corners


def source_of_digits() -> str:
    """The package that has the digits, and its release."""
    return f"the digits of scikit-learn {version('scikit-learn')}"


@functools.cache
def original_digits() -> tuple[Array, Array]:
    """Pictures ``(1797, 8, 8)`` in 0 to 1, and classes."""
    require("reading the digits", "simulate")
    from sklearn.datasets import load_digits  # scikit-learn takes a second

    found = load_digits()
    return np.asarray(found.images / 16.0), np.asarray(found.target.astype(np.int64))


@functools.lru_cache(maxsize=2)
def _enlarged(size: int) -> Array:
    from scipy import ndimage

    pictures = original_digits()[0]
    factor = size / pictures.shape[1]
    return np.asarray(ndimage.zoom(pictures, (1, factor, factor), order=1), dtype=np.float32)


def _sizes(settings: Simulate) -> tuple[int, int]:
    frames, ny, nx = drawing.check_sizes(settings, DIMS)
    if ny != nx or ny < 16:
        raise RecipeError(
            f'simulate.sizes: problem "moving_digits" is on a square of at least 16 pixels, got y = {ny}, x = {nx}.'
        )
    return frames, nx
