"""Raw fields as users bring them: seeded samples, the formats and codecs they are stored in, and each cost alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from numcodecs import blosc, shuffle, zstd
from zarr.codecs import BloscCodec

Array = npt.NDArray[np.float32]
DIMS = ("run", "time", "y", "x")
CHUNK = 4  # samples in a chunk of the source
_BLOCK = 8 * 2**20
_BLOSC = {"blosc lz4": ("lz4", "shuffle"), "blosc zstd": ("zstd", "bitshuffle")}


@dataclass(frozen=True)
class Codec:
    """A format with a codec.

    Attributes
    ----------
    name
        As shown.
    suffix
        Of the source.
    encoding
        What xarray is given.
    decode
        Decompresses one stored chunk; ``None`` where nothing is compressed.
    """

    name: str
    suffix: str
    encoding: dict[str, Any]
    decode: Callable[[bytes], object] | None


def _unzip(chunk: bytes) -> object:
    return shuffle.Shuffle(4).decode(zlib.decompress(chunk))


def _codecs() -> Iterator[Codec]:
    yield Codec("zarr, none", ".zarr", {"compressors": ()}, None)
    yield Codec("zarr, default (zstd)", ".zarr", {}, zstd.Zstd().decode)
    for name, (inner, order) in _BLOSC.items():
        codec = BloscCodec(cname=inner, clevel=5, shuffle=order)  # type: ignore[arg-type]
        yield Codec(f"zarr, {name} + {order}", ".zarr", {"compressors": codec}, blosc.Blosc().decode)
    yield Codec("netcdf, none", ".nc", {}, None)
    yield Codec("netcdf, zlib 1 + shuffle", ".nc", {"zlib": True, "complevel": 1, "shuffle": True}, _unzip)


CODECS = {codec.name: codec for codec in _codecs()}


def fields(n: int, sizes: tuple[int, ...], *, rank: int = 12, noise: float = 0.01, seed: int = 0) -> Array:
    """Smooth waves of low rank with some noise, float32 ``(n, *sizes)``: they compress as little as measurements do."""
    rng = np.random.default_rng(seed)
    out = np.empty((n, *sizes), np.float32)
    ranks = [min(rank, size) for size in sizes]
    waves = [
        np.cos(np.outer(np.arange(size), np.arange(r)) * np.pi / size) for size, r in zip(sizes, ranks, strict=True)
    ]
    decay = 1 / (1 + np.indices(ranks).sum(axis=0)) ** 1.5
    for sample in out:
        form = (rng.normal(size=ranks) * decay).astype(np.float32)
        for axis, wave in enumerate(waves):
            form = np.moveaxis(np.tensordot(form, wave.astype(np.float32), (axis, 1)), -1, axis)
        sample[...] = form + noise * rng.standard_normal(sizes, np.float32)
    return out


def write(x: Array, codec: Codec, folder: Path, name: str, *, chunk: int = CHUNK) -> Path:
    """Store samples ``(n, *sizes)`` as a user would, ``chunk`` of them in one chunk."""
    path = folder / f"{name}{codec.suffix}"
    dims = (DIMS[0], *DIMS[-x.ndim + 1 :])
    dataset = xr.Dataset({"u": (dims, x)})
    chunks = (min(chunk, len(x)), *x.shape[1:])
    if codec.suffix == ".zarr":
        dataset.to_zarr(path, zarr_format=3, consolidated=False, encoding={"u": {"chunks": chunks, **codec.encoding}})
    else:
        compressed = {"chunksizes": chunks, **codec.encoding} if codec.decode else {}
        dataset.to_netcdf(path, engine="h5netcdf", encoding={"u": compressed})
    return path


def files(source: Path) -> list[Path]:
    """The files that hold the samples."""
    return [source] if source.is_file() else sorted(path for path in (source / "u" / "c").rglob("*") if path.is_file())


def stored_bytes(source: Path) -> int:
    """What the samples take on disk."""
    return sum(path.stat().st_size for path in files(source))


def read(source: Path) -> None:
    """Read every byte once, into one buffer."""
    buffer = memoryview(bytearray(_BLOCK))
    for path in files(source):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def chunks(source: Path) -> list[bytes]:
    """The compressed chunks, in memory."""
    if source.is_dir():
        return [path.read_bytes() for path in files(source)]
    with h5py.File(source) as file:
        stored = file["u"].id
        places = [stored.get_chunk_info(i).chunk_offset for i in range(stored.get_num_chunks())]
        return [stored.read_direct_chunk(place)[1] for place in places]


def decode(compressed: Iterable[bytes], decode_chunk: Callable[[bytes], object]) -> None:
    """Decompress chunks on one thread."""
    blosc.use_threads = False  # of numcodecs: Blosc would take all cores, unlike the other codecs
    for chunk in compressed:
        decode_chunk(chunk)
