"""What tells samples of a source apart: digests of their content, and stamps of the files and chunks that hold them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import xxhash

from diffats.config import Data
from diffats.sources import opening

Array = np.ndarray[Any, Any]

DIGEST_BYTES = 16
# What says how stored numbers become values; a change of it is one of all of them.
_DECODING = ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned", "units", "calendar")


@dataclass(frozen=True)
class Part:
    """Something that is written at once: a file, or a chunk of a Zarr store.

    Attributes
    ----------
    stamp
        Its name, size and time.
    start, stop
        What it holds of the dim along which the source grows; all of it where there is no ``stop``.
    """

    stamp: str
    start: int = 0
    stop: int | None = None


def find_parts(dataset: xr.Dataset, data: Data, names: Sequence[str], dim: str) -> list[Part]:
    """The parts of some variables of a source: files of a glob, chunks of a local Zarr store, else the whole source.

    Parameters
    ----------
    dataset
        The opened source.
    data
        The section of the recipe that it was opened with.
    names
        Its variables that samples are read from.
    dim
        Along which it grows.
    """
    files = dataset.encoding.get("parts")  # of a glob, in the order in which they are joined
    if files and all(along == dim for _, along, _ in files):
        return list(_file_parts(files, data))
    decoding = {
        name: {k: dataset[name].encoding[k] for k in _DECODING if k in dataset[name].encoding} for name in names
    }
    whole = [Part(json.dumps(decoding, default=str, sort_keys=True))]
    if "snapshot" in dataset.encoding:
        return [*whole, Part(str(dataset.encoding["snapshot"]))]
    folder = Path(data.source)
    if "://" in data.source or files or not opening.is_zarr_folder(folder):
        return [*whole, Part(json.dumps(opening.stamp(data, deep=True)))]
    place = folder / (data.group or "")
    return [*whole, *(part for name in names for part in _chunk_parts(place / name, dataset[name], dim))]


def _file_parts(files: Iterable[tuple[str, str, int]], data: Data) -> Iterator[Part]:
    start = 0
    for path, _, length in files:
        yield Part(json.dumps(opening.stamp_of(path, data, deep=True)), start, start + length)
        start += length


def _chunk_parts(folder: Path, array: xr.DataArray, dim: str) -> Iterator[Part]:
    """A part for each stored chunk (or shard of chunks) of a Zarr array."""
    sizes = array.encoding.get("shards") or array.encoding.get("chunks") or array.shape
    axis = array.dims.index(dim) if dim in array.dims else None
    for path, _, files in os.walk(folder):
        for name in files:
            place = Path(path, name).relative_to(folder).as_posix()
            if not re.fullmatch(r"(c[/.])?\d+([/.]\d+)*", place):
                continue  # metadata, whose part that matters is in the decoding
            seen = Path(path, name).stat()
            stamp = json.dumps([array.name, place, seen.st_size, seen.st_mtime_ns])
            if axis is None:
                yield Part(stamp)
            else:
                number, size = int(re.findall(r"\d+", place)[axis]), int(sizes[axis])
                yield Part(stamp, number * size, (number + 1) * size)


def files_along(dataset: xr.Dataset, dim: str) -> list[tuple[str, int]]:
    """Names of the files of a glob that are joined along a dim, each with its length; none of any other source."""
    files = dataset.encoding.get("parts") or []
    return [(Path(path).name, length) for path, along, length in files if along == dim]


def sample_digests(x: Array, conditions: Mapping[str, Array]) -> Array:
    """A digest ``(k, 16)`` uint8 of each sample ``x`` ``(k, ...)`` and its conditions, as they were read.

    XXH3 of 128 bits: it finds damage and does not stop forgery, and runs at the speed of memory: 0.6 ms for 16 MiB.

    >>> sample_digests(np.zeros((2, 3)), {"label": np.array([0, 1])}).shape
    (2, 16)
    """
    arrays = [np.ascontiguousarray(array) for array in (x, *(conditions[name] for name in sorted(conditions)))]
    out = np.empty((len(x), DIGEST_BYTES), np.uint8)
    for i in range(len(x)):
        found = xxhash.xxh3_128()
        for array in arrays:
            found.update(array[i : i + 1].reshape(-1).view(np.uint8).data)
        out[i] = np.frombuffer(found.digest(), np.uint8)
    return out


def stamps(parts: Sequence[Part], ranges: Iterable[tuple[int, int]]) -> Array:
    """A digest ``(k, 16)`` uint8 of all parts that touch each of ``k`` ranges of the dim along which a source grows.

    >>> before = stamps([Part("all"), Part("a", 0, 4), Part("b", 4, 8)], [(0, 4), (4, 6)])
    >>> after = stamps([Part("all"), Part("a", 0, 4), Part("c", 4, 9)], [(0, 4), (4, 6)])
    >>> (before == after).all(axis=1).tolist()
    [True, False]
    """
    whole = "\n".join(sorted(part.stamp for part in parts if part.stop is None))
    placed = sorted((part.start, part.stop, part.stamp) for part in parts if part.stop is not None)
    starts = np.array([start for start, _, _ in placed], dtype=np.int64)
    longest = max((stop - start for start, stop, _ in placed), default=0)
    out = []
    for low, high in ranges:
        first, last = np.searchsorted(starts, [low - longest, high])
        touching = [f"{start} {stamp}" for start, stop, stamp in placed[first:last] if stop > low]
        out.append(hashlib.blake2b("\n".join([whole, *touching]).encode(), digest_size=DIGEST_BYTES).digest())
    return np.frombuffer(b"".join(out), np.uint8).reshape(-1, DIGEST_BYTES)
