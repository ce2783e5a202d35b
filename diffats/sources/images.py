"""Folders of images as one lazy data set, a class for each subfolder; read by Pillow, one image at a time."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image, ImageOps
from xarray.backends import BackendArray
from xarray.core import indexing

from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources.unreadable import reason, unreadable

logger = logging.getLogger("diffats.sources")

#: The formats that are read, by the endings of their files; Pillow knows others, some of which run programs.
FORMATS = {
    **dict.fromkeys((".png",), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".bmp",), "BMP"),
    **dict.fromkeys((".webp",), "WEBP"),
}
_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")  # folders that are no class
_CHANNELS = {"RGB": ("red", "green", "blue"), "RGBA": ("red", "green", "blue", "alpha")}
_DTYPES = {"L": np.uint8, "RGB": np.uint8, "RGBA": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: how the camera was held, and how if on its side


@dataclass(frozen=True)
class Header:
    """Height, width and mode of an image as it is read."""

    height: int
    width: int
    mode: str


def is_image(path: str | Path) -> bool:
    """Whether a name ends as one of an image does.

    >>> is_image("a/cat.JPG"), is_image("a/cat.nc")
    (True, False)
    """
    return Path(path).suffix.lower() in FORMATS


def find_images(folder: str | Path) -> list[Path]:
    """The images in a folder and its subfolders, in the order of their names; hidden ones are left out."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in files if is_image(name) and not name.startswith(".")]
    return sorted(found)


def holds_images(folder: str | Path) -> bool:
    """Whether at least half of the files in a folder and its subfolders are images: pictures beside data are none."""
    images = files = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        images, files = images + sum(map(is_image, shown)), files + len(shown)
    return 0 < files <= 2 * images


def open_images(path: str, data: Data) -> xr.Dataset:
    """Images as the lazy variable ``image``.

    Of a folder it has the dims ``sample``, ``y``, ``x`` and, in colour, ``channel``; ``file`` names each sample's file,
    ``label`` the subfolder that it is in, and ``subset`` a folder such as ``train`` or ``test`` above that. Of a single
    file it has no ``sample``. Images of different kinds are all read as RGB.

    Raises
    ------
    SourceError
        Where an image cannot be read, or has another size than the first one; only headers are read.
    """
    folder = Path(path)
    if not folder.is_dir():
        return _dataset([folder], stacked=False)
    paths = find_images(folder)
    if not paths:
        raise SourceError(f"data.source {path} holds no image ({', '.join(FORMATS)}). Check the folder.")
    dataset = _dataset(paths, stacked=True).assign_coords(_folders(folder, paths))
    dataset.encoding["parts"] = [(str(image), "sample", 1) for image in paths]
    return dataset


def _dataset(paths: Sequence[Path], *, stacked: bool) -> xr.Dataset:
    headers = [read_header(path) for path in paths]
    first, modes = headers[0], Counter(header.mode for header in headers)
    for path, header in zip(paths, headers, strict=True):
        if (header.height, header.width) != (first.height, first.width):
            raise SourceError(
                f"data.source: image {path} is {header.width} x {header.height} pixels, but {paths[0]} is "
                f"{first.width} x {first.height}, and samples have one size. Crop or scale them to one size, or take "
                "the others away."
            )
    mode = first.mode if len(modes) == 1 else "RGB"
    if len(modes) > 1:
        found = ", ".join(f"{count} {name}" for name, count in modes.most_common())
        logger.warning("data.source: images of several kinds (%s) are all read as RGB.", found)
    array = ImageArray(paths, first, mode)
    dims = ("sample", "y", "x", "channel")[: array.ndim]
    encoding = {"preferred_chunks": dict(zip(dims, (1, *array.shape[1:]), strict=True)), "source": str(paths[0])}
    variable = xr.Variable(dims, indexing.LazilyIndexedArray(array), {"long_name": "brightness"}, encoding)
    coords = {"channel": list(_CHANNELS[mode])} if mode in _CHANNELS else {}
    dataset = xr.Dataset({"image": variable}, coords)
    return dataset if stacked else dataset.isel(sample=0)


def _folders(folder: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """Coordinates of the samples from the names of their folders."""
    places = [path.relative_to(folder) for path in paths]
    coords: dict[str, Any] = {"file": ("sample", np.array([place.as_posix() for place in places], object))}
    above = [list(place.parts[:-1]) for place in places]
    if all(parts and parts[0].lower() in _PARTS for parts in above):
        coords["subset"] = ("sample", np.array([parts.pop(0) for parts in above], object))
    names = ["/".join(parts) for parts in above]
    if len(set(names)) > 1:
        coords["label"] = ("sample", np.array(names, object), {"long_name": "class, by folder"})
    return coords


def read_header(path: Path) -> Header:
    """Size and mode of an image, from its first bytes.

    Raises
    ------
    SourceError
        Where it is no image of a known format, has several frames, or is larger than Pillow reads.
    """
    try:
        with _open(path) as image:
            turned = _orientation(image) in _TURNED
            width, height = image.size[::-1] if turned else image.size
            frames = getattr(image, "n_frames", 1)
            mode = _read_as(image)
    except _damaged() as error:
        raise _unreadable(path, error) from error
    if frames > 1:
        raise SourceError(f"data.source: image {path} has {frames} frames, expected one. Save them as files each.")
    return Header(height, width, mode)


def _open(path: Path) -> Image.Image:
    return Image.open(path, formats=sorted(set(FORMATS.values())))


def _orientation(image: Image.Image) -> int | None:
    """How the camera was held; of a PNG only where it stands before the pixels, which would be decoded to look on."""
    if image.format == "PNG" and "exif" not in image.info:
        return None
    return image.getexif().get(_ORIENTATION)


def _read_as(image: Image.Image) -> str:
    """The mode in which an image is read: its own where its numbers stand for themselves."""
    if image.mode in _DTYPES:
        return image.mode
    if image.mode.startswith("I;16"):
        return "I;16"
    if image.mode in ("1", "LA"):
        return "L"
    return "RGBA" if image.has_transparency_data else "RGB"


def _damaged() -> tuple[type[Exception], ...]:
    """What Pillow raises for a file that it cannot read."""
    return (*unreadable(), SyntaxError, Image.DecompressionBombError)


def _unreadable(path: Path, error: BaseException) -> SourceError:
    return SourceError(
        f"data.source: image {path} cannot be read: {reason(error)}. Mend it, or take it out of the folder."
    )


class ImageArray(BackendArray):
    """Images of one size along a first axis; each is decoded when it is asked for.

    Parameters
    ----------
    paths
        Their files.
    header
        Of all of them.
    mode
        Pillow's, in which they are read.
    """

    def __init__(self, paths: Sequence[Path], header: Header, mode: str) -> None:
        self.paths, self.header, self.mode = list(paths), header, mode
        channels = (len(_CHANNELS[mode]),) if mode in _CHANNELS else ()
        self.shape = (len(self.paths), header.height, header.width, *channels)
        self.dtype = np.dtype(_DTYPES[mode])

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        first, *inside = key
        if not isinstance(first, slice):
            return np.asarray(self._decode(self.paths[int(first)])[tuple(inside)])
        empty = np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *inside)]
        return np.concatenate([empty, *(self._decode(path)[tuple(inside)][None] for path in self.paths[first])])

    def _decode(self, path: Path) -> np.ndarray[Any, Any]:
        try:
            with _open(path) as image:
                upright = image if _orientation(image) is None else ImageOps.exif_transpose(image)
                pixels = np.asarray(upright if upright.mode == self.mode else upright.convert(self.mode), self.dtype)
        except _damaged() as error:
            raise _unreadable(path, error) from error
        if pixels.shape != self.shape[1:]:
            raise SourceError(
                f"data.source: image {path} has shape {pixels.shape}, expected {self.shape[1:]}: it was changed after "
                "the folder was opened. Run the same command again."
            )
        return pixels
