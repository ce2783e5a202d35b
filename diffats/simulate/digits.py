"""Handwritten digits, enlarged: pictures of ten classes.

They are scikit-learn's 1797, 8 x 8 pixels each (the test set of the UCI collection). A cubic spline enlarges them.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from diffats.config import Simulate
from diffats.errors import RecipeError
from diffats.requirements import require
from diffats.simulate import drawing
from diffats.simulate.drawing import Array
from diffats.simulate.moving_digits import LICENSE, REFERENCE, original_digits, source_of_digits

VERSION = 1
DIMS = ("y", "x")
MOST_TOGETHER = 256
IN_PROCESSES = False


def solver() -> str:
    """Where the digits come from."""
    return f"diffats.simulate.digits {VERSION}, from {source_of_digits()}"


def describe(settings: Simulate) -> xr.Dataset:
    """Coordinates and classes of all pictures, and the variable that is still to be made."""
    require("reading the digits", "simulate")
    n = _edge(settings)
    classes = original_digits()[1][: settings.count]
    if settings.held_out or settings.count > len(classes):
        raise RecipeError(
            f'simulate: problem "digits" has {len(classes)} pictures and takes no held_out; set simulate.test for the '
            "share of them that is held out."
        )
    chosen = drawing.parameter_stream(settings).permutation(settings.count)
    side = np.zeros(settings.count, dtype=np.int8)
    side[chosen[: drawing.share_of(settings.count, settings.test)]] = 1
    return xr.Dataset(
        {"ink": drawing.empty(("sample", *DIMS), (settings.count, n, n), {"long_name": "ink"})},
        coords={
            "y": drawing.coordinate("y", np.arange(n), "pixel down"),
            "x": drawing.coordinate("x", np.arange(n), "pixel to the right"),
            "digit": drawing.coordinate("sample", classes, "class of the digit"),
            "held_out": drawing.sides("sample", side, "new_digits"),
        },
        attrs={"title": "Handwritten digits", "references": REFERENCE, "license": LICENSE},
    )


def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
    """Some pictures, float32 ``(k, y, x)`` in 0 to 1."""
    from scipy import ndimage

    pictures = original_digits()[0][part["sample"].values]
    factor = _edge(settings) / pictures.shape[1]
    larger = ndimage.zoom(pictures, (1, factor, factor), order=3, mode="grid-constant", grid_mode=True)
    return {"ink": np.clip(larger, 0, 1).astype(np.float32)}


def _edge(settings: Simulate) -> int:
    ny, nx = drawing.check_sizes(settings, DIMS)
    if ny != nx or ny < 8:
        raise RecipeError(
            f'simulate.sizes: problem "digits" has square pictures of at least 8 pixels, got y = {ny}, x = {nx}.'
        )
    return ny
