"""NumPy files (``.npy``, ``.npz``) as lazy variables, on disk or behind an fsspec URL."""

from __future__ import annotations

import itertools
import math
import os
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources.naming import unknown_name
from diffats.sources.safety import check_member

_SMALL = 2**20  # bytes: below this, reading a little too much is cheaper than another seek


@dataclass(frozen=True)
class _Plain:
    """Where an uncompressed array lies in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def nbytes(self) -> int:
        """Length of the array in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class PlainArray(BackendArray):
    """An uncompressed array in a file: slices become range reads.

    Nothing is memory-mapped: a file that is cut while it is read would end the process (SIGBUS), and a URL has no map.
    """

    def __init__(self, opener: Callable[[], IO[bytes]], place: _Plain) -> None:
        self.opener, self.place = opener, place
        self.shape, self.dtype = place.shape, place.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        with self.opener() as file:

            def span(start: int, count: int) -> np.ndarray[Any, Any]:
                file.seek(self.place.offset + start * self.dtype.itemsize)
                read = np.empty(count, self.dtype)
                if cast(Any, file).readinto(read.view(np.uint8)) < read.nbytes:
                    raise EOFError("the file ends before its array does")
                return read

            if self.place.fortran:  # the same bytes, read as the transposed array in C order
                return np.asarray(_pick(span, self.shape[::-1], key[::-1], 0, self.dtype.itemsize)).T
            return np.asarray(_pick(span, self.shape, key, 0, self.dtype.itemsize))


def _pick(
    span: Callable[[int, int], np.ndarray[Any, Any]],
    shape: tuple[int, ...],
    key: tuple[Any, ...],
    start: int,
    size: int,
) -> np.ndarray[Any, Any]:
    """Elements ``key`` of a C-ordered array: contiguous pieces are read at once, others row by row."""
    if not shape:
        return span(start, 1)[0]  # type: ignore[no-any-return]
    inner, single = math.prod(shape[1:]), not isinstance(key[0], slice)
    rows = [int(key[0])] if single else list(range(*key[0].indices(shape[0])))
    whole = all(isinstance(k, slice) and k.indices(n) == (0, n, 1) for k, n in zip(key[1:], shape[1:], strict=True))
    if not rows:
        return np.empty((0, *shape[1:]), dtype=span(0, 0).dtype)[(slice(None), *key[1:])]
    if whole or inner * size <= _SMALL // len(rows):
        low, high = min(rows), max(rows)
        block = span(start + low * inner, (high - low + 1) * inner).reshape(-1, *shape[1:])
        step = rows[1] - rows[0] if len(rows) > 1 else 1
        picked = block[::step][(slice(None), *key[1:])]
    else:
        picked = np.stack([_pick(span, shape[1:], key[1:], start + row * inner, size) for row in rows])
    return picked[0] if single else picked


@dataclass
class CompressedArray(BackendArray):
    """A deflated member of an ``.npz``: it has no random access, so it is read whole, once, when first needed."""

    opener: Callable[[], IO[bytes]]
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _values: np.ndarray[Any, Any] | None = None

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        with self._lock:
            if self._values is None:
                with self.opener() as file, zipfile.ZipFile(file) as archive, archive.open(self.member) as stream:
                    self._values = np.lib.format.read_array(stream, allow_pickle=False)
        return np.asarray(self._values[key])


def open_arrays(path: str, data: Data) -> xr.Dataset:
    """The arrays of a ``.npy`` or ``.npz`` file as lazy variables, their dims named by the recipe.

    The main arrays have the dims ``sample_dim`` (where given) and then ``modes``, in array order. Other arrays in an
    ``.npz`` get those of these dims, in order, that fit their shape; one named like a dim is its coordinate.

    Raises
    ------
    SourceError
        Where an array is missing, the number of dims does not fit the recipe, or an array holds Python objects.
    """
    arrays = _arrays(path, data)
    if not path.lower().endswith(".npz") and len(data.variables) == 1:
        arrays = dict(zip(data.variables, arrays.values(), strict=True))  # a lone array has no name of its own
    for name in data.variables:
        if name not in arrays:
            raise unknown_name("data.variables", name, arrays, where=f"data.source {path}")
    dims = ([data.sample_dim] if data.sample_dim else []) + list(data.modes)
    main = [name for name in (data.variables or arrays) if name in arrays and len(arrays[name].shape) == len(dims)]
    if not main:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
        raise SourceError(
            f"data.source {path}: the recipe names {len(dims)} dims ({', '.join(dims)}), but the arrays are: {shapes}. "
            "Name one mode for each array axis, in array order (data.sample_dim comes first)."
        )
    sizes = dict(zip(dims, arrays[main[0]].shape, strict=True))
    for name, size in sizes.items():
        if name in arrays and arrays[name].shape != (size,):
            raise SourceError(
                f'data.source {path}: array "{name}" has shape {tuple(arrays[name].shape)}, but dim "{name}" has '
                f"{size} points in {main[0]} {tuple(arrays[main[0]].shape)}. Name the modes in array order, or rename "
                "this array."
            )
    variables = {name: (_dims_of(name, tuple(array.shape), sizes), array) for name, array in arrays.items()}
    coords = {name: variables.pop(name) for name in list(variables) if name in sizes}
    return xr.Dataset(variables, coords=coords)


def array_shapes(path: str, data: Data) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array of a ``.npy`` or ``.npz`` file, whose axes have no names yet.

    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/u.npy"
    >>> np.save(path, np.zeros((5, 4), np.float32))
    >>> array_shapes(path, Data(source=path, modes=["x"], sample_dim="sample"))
    {'u': ((5, 4), dtype('float32'))}
    """
    return {name: (tuple(array.shape), array.dtype) for name, array in _arrays(path, data).items()}


def _arrays(path: str, data: Data) -> dict[str, Any]:
    return (_npz_arrays if path.lower().endswith(".npz") else _npy_array)(path, _opener(path, data))


def _opener(path: str, data: Data) -> Callable[[], IO[bytes]]:
    if "://" not in path:
        return lambda: Path(path).open("rb")
    return lambda: fsspec.open(path, "rb", **data.storage_options).open()


def _dims_of(name: str, shape: tuple[int, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    if name in sizes and shape == (sizes[name],):
        return (name,)
    for dims in itertools.combinations(sizes, len(shape)):
        if tuple(sizes[dim] for dim in dims) == shape:
            return dims
    return tuple(f"{name}_dim{axis}" for axis in range(len(shape)))


def _npy_array(path: str, opener: Callable[[], IO[bytes]]) -> dict[str, Any]:
    with opener() as file:
        place = _header(file, path)
        missing = place.offset + place.nbytes - file.seek(0, os.SEEK_END)
    if missing > 0:
        raise SourceError(f"data.source {path}: the file ends {missing} bytes before its array does. Copy it anew.")
    return {Path(path).stem: indexing.LazilyIndexedArray(PlainArray(opener, place))}


def _npz_arrays(path: str, opener: Callable[[], IO[bytes]]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    with opener() as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            where = f"{path}, {name}"
            if info.compress_type == zipfile.ZIP_STORED:
                file.seek(
                    info.header_offset + 26
                )  # the lengths of the name and of the extra field, in the local header
                lengths = np.frombuffer(file.read(4), dtype="<u2")
                start = info.header_offset + 30 + int(lengths.sum(dtype=np.int64))
                file.seek(start)
                place = _header(file, where)
                check_member(place.offset - start + place.nbytes, info.file_size, where)
                arrays[name] = indexing.LazilyIndexedArray(PlainArray(opener, place))
            else:
                with archive.open(info) as stream:
                    place = _header(stream, where)
                check_member(place.offset + place.nbytes, info.file_size, where, deflated=True)
                packed = CompressedArray(opener, info.filename, place.shape, place.dtype)
                arrays[name] = indexing.LazilyIndexedArray(packed)
    return arrays


def _header(file: IO[bytes], where: str) -> _Plain:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise SourceError(f"data.source {where}: .npy format {version} has field names. Save a plain array.")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise SourceError(f"data.source {where}: shape {shape} is negative. The file is damaged.")
    if dtype.hasobject or dtype.names:
        raise SourceError(
            f"data.source {where}: dtype {dtype} holds objects or records. Leave it out of the file, or save an array "
            "of numbers."
        )
    return _Plain(file.tell(), shape, dtype, fortran)
