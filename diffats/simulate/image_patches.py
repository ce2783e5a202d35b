"""scikit-learn's two sample photographs, whole: the recipe cuts patches, and holds out strips of both.

Windows that touch both sides of a strip's edge are dropped by the split.
"""

from __future__ import annotations

import functools
from importlib.metadata import version

import numpy as np
import xarray as xr

from diffats.config import Simulate
from diffats.errors import RecipeError
from diffats.requirements import require
from diffats.simulate import drawing
from diffats.simulate.drawing import Array

VERSION = 1
DIMS = ("channel", "y", "x")
MOST_TOGETHER = 1
IN_PROCESSES = False
NAMES = ("china.jpg", "flower.jpg")


def solver() -> str:
    """Where the photographs come from."""
    return f"scikit-learn {version('scikit-learn')}: sklearn.datasets.load_sample_image"


def describe(settings: Simulate) -> xr.Dataset:
    """Coordinates of the photographs, and the variable that is still to be filled."""
    require("reading the photographs", "simulate")
    if settings.sizes or settings.held_out:
        raise RecipeError(
            'simulate: problem "image_patches" takes neither sizes nor held_out: the photographs have a size of their '
            "own, and simulate.test of the columns are held out. Set data.windows.size for the patches."
        )
    channels, height, width = _photograph(NAMES[0]).shape
    colours = {"flag_values": np.arange(channels, dtype=np.int8), "flag_meanings": "red green blue"}
    shape = (len(NAMES), channels, height, width)
    return xr.Dataset(
        {"photograph": drawing.empty(("sample", *DIMS), shape, {"long_name": "brightness"})},
        coords={
            "channel": ("channel", np.arange(channels, dtype=np.int8), {"long_name": "colour", **colours}),
            "y": drawing.coordinate("y", np.arange(height), "pixel down"),
            "x": drawing.coordinate("x", np.arange(width), "pixel to the right"),
            "held_out": drawing.sides("x", _held_out(width, settings), "new_region"),
        },
        attrs={
            "title": f"Photographs {' and '.join(NAMES)}",
            "references": "scikit-learn, sklearn/datasets/images/README.txt: photographs by danielbuechele (china) and "
            "vultilion (flower), flickr.com",
            "license": "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/",
        },
    )


def _held_out(width: int, settings: Simulate) -> Array:
    """1 for the last columns of each of ``strips`` equal parts of the photograph, ``test`` of all columns; else 0."""
    if settings.strips > settings.test * width:
        raise RecipeError(
            f"simulate.strips {settings.strips} leave less than a column for each: simulate.test {settings.test} of "
            f"{width} columns are held out. Use fewer strips, each as wide as a window."
        )
    held = np.zeros(width, dtype=np.int8)
    of_each = drawing.share_of(width, settings.test / settings.strips)
    for strip in range(1, settings.strips + 1):
        end = width * strip // settings.strips
        held[end - of_each : end] = 1
    return held


def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
    """Some photographs, float32 ``(k, channel, y, x)`` in 0 to 1."""
    return {"photograph": np.stack([_photograph(NAMES[int(i)]) for i in part["sample"].values])}


@functools.cache
def _photograph(name: str) -> Array:
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32) / np.float32(255)
