"""Data sets that need no download, under ``data.source = "builtin:NAME"``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

from diffats.sources.naming import unknown_name

# Names of the 16 ground-truth classes; their pixel counts (46, 1428, 830, ...) were checked against the array.
_INDIAN_PINES_CLASSES = (
    "unlabelled alfalfa corn_notill corn_mintill corn grass_pasture grass_trees grass_pasture_mowed hay_windrowed oats "
    "soybean_notill soybean_mintill soybean_clean wheat woods buildings_grass_trees_drives stone_steel_towers"
)


def indian_pines() -> xr.Dataset:
    """AVIRIS Indian Pines: 145 x 145 pixels of 20 m, 200 bands, and the ground-truth class of each pixel.

    The numbers are at-sensor radiance, scaled and shifted to integers by JPL: ``1000 + 500 L`` (see the attributes);
    the variable keeps the name ``reflectance`` under which the scene is commonly distributed.
    """
    # The files are read as they are: load_indian_pines() returns the same numbers as float64, four times the memory.
    folder = _tensorly() / "datasets" / "data"
    image = np.ascontiguousarray(np.load(folder / "Indian_pines_corrected.npy", allow_pickle=False))
    label = np.load(folder / "Indian_pines_gt.npy", allow_pickle=False)
    digest = hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
    pixels = {"units": "m", "comment": "distance from the scene's first pixel centre; pixels are 20 m"}
    dataset = xr.Dataset(
        {
            "reflectance": (("y", "x", "band"), image, dict(_REFLECTANCE)),
            "label": (("y", "x"), label, _label_attrs()),
        },
        coords={
            "y": ("y", 20.0 * np.arange(image.shape[0]), {"long_name": "distance down the image", **pixels}),
            "x": ("x", 20.0 * np.arange(image.shape[1]), {"long_name": "distance along an image row", **pixels}),
            "band": (
                "band",
                np.arange(1, image.shape[2] + 1),
                {"long_name": "band of the corrected set", "units": "1"},
            ),
        },
        attrs=dict(_CREDITS),
    )
    dataset.encoding["digest"] = digest
    return dataset


def _tensorly() -> Path:
    """The folder of the package that brings the scene; importing it would load a good part of SciPy."""
    found = find_spec("tensorly")
    if found is None or found.origin is None:
        raise ModuleNotFoundError('"builtin:indian-pines" is read from the package tensorly, which is not installed.')
    return Path(found.origin).parent


_REFLECTANCE = {
    "long_name": "AVIRIS at-sensor measurement, scaled",
    "units": "1",
    "comment": "radiance in W cm-2 nm-1 sr-1 is (value - 1000) / 500, by the data provider's documentation",
}
_CREDITS = {
    "title": "AVIRIS Indian Pines, 200 corrected bands, 12 June 1992",
    "institution": "Purdue University; NASA/JPL AVIRIS",
    "source": "airborne imaging spectrometer, as shipped in the tensorly package (tensorly.datasets)",
    "references": "Baumgardner, M. F., Biehl, L. L., Landgrebe, D. A. (2015). "
    "220 Band AVIRIS Hyperspectral Image Data Set: June 12, 1992 Indian Pine Test Site 3. "
    "Purdue University Research Repository. doi:10.4231/R7RX991C",
    "license": "CC BY 3.0, https://creativecommons.org/licenses/by/3.0/",
}


def _label_attrs() -> dict[str, object]:
    return {
        "long_name": "ground-truth land cover",
        "flag_values": np.arange(17, dtype=np.uint8),
        "flag_meanings": _INDIAN_PINES_CLASSES,
    }


BUILTINS: dict[str, Callable[[], xr.Dataset]] = {"indian-pines": indian_pines}


def open_builtin(name: str) -> xr.Dataset:
    """The built-in data set of this name.

    Raises
    ------
    SourceError
        Where there is none.
    """
    if name not in BUILTINS:
        raise unknown_name("data.source", name, BUILTINS, where="the list of built-in data sets")
    return BUILTINS[name]()
