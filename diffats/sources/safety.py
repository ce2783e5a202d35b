"""What a source may not do to whoever opens it: run code, read other files, or give names that are paths."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import IO, Any

import h5py
import xarray as xr
import zarr
from zarr.core.sync import sync

from diffats.config import check_name
from diffats.errors import SourceError
from diffats.sources.unreadable import reason, unreadable

logger = logging.getLogger("diffats.sources")

_RUNS_CODE = ("pickle",)  # codecs of Zarr version 2 whose decoding calls what the chunk names
_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
_LARGEST_DEFLATED = 2**32  # bytes of an array that has to be in memory at once
_LINKS = ("reference", "kerchunk")


def check_zarr(group: zarr.Group, where: str) -> None:
    """Refuse a Zarr group with an array whose chunks are programs.

    Raises
    ------
    SourceError
        Where an array is stored with a codec that runs code when it decodes.
    """
    members, _ = zarr_members(group)
    for name, array in members.items():
        if not isinstance(array, zarr.Array):
            continue
        metadata: Any = array.metadata.to_dict()
        found = _codec_names([metadata.get(key) for key in ("codecs", "filters", "compressor", "object_codec_id")])
        bad = sorted(found.intersection(_RUNS_CODE))
        if bad:
            raise SourceError(
                f'data.source "{where}": array "{name}" is stored with the codec "{bad[0]}", which runs code when it '
                "is read. Write it anew without it, where you trust it."
            )


def zarr_members(group: zarr.Group) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays and groups in a Zarr group, and of those whose metadata cannot be read, why."""
    try:
        return dict(group.members()), {}
    except unreadable():
        found, failed = {}, {}
        for name in sync(_names(group)):
            try:
                found[name] = group[name]
            except unreadable() as error:
                failed[name] = reason(error)
        return found, failed


async def _names(group: zarr.Group) -> list[str]:
    return [name async for name in group.store.list_dir(group.path) if name not in _METADATA]


def _codec_names(tree: Any) -> set[str]:
    """Every text in a codec's description by which it, or one inside it, could be called."""
    if isinstance(tree, dict):
        names = {str(tree[key]).rpartition(".")[2] for key in ("id", "name") if key in tree}
        return names.union(*map(_codec_names, tree.values()))
    if isinstance(tree, list | tuple):
        return set().union(*map(_codec_names, tree))
    return {tree} if isinstance(tree, str) else set()


def check_hdf5(file: str | IO[bytes], where: str) -> None:
    """Refuse an HDF5 file that reads other files: external links, external storage, virtual data sets.

    The library would open whatever is named there, anywhere on this machine.

    Raises
    ------
    SourceError
        Which names the data set.
    """
    with h5py.File(file, "r") as opened:
        try:
            others = [(name, other) for name, other in _other_files(opened, set()) if other != "."]  # the file itself
        except UnicodeDecodeError as error:  # h5py hands on text that is not UTF-8, but no names
            raise SourceError(
                f'data.source "{where}": the name {error.object!r} in it is not UTF-8. Rename it, for example with '
                "h5copy, or write the data anew."
            ) from error
    if others:
        name, other = others[0]
        raise SourceError(
            f'data.source "{where}": "{name}" is kept in another file ("{other}"), which could be any on this machine. '
            "Copy the data into one file, for example with xarray's to_netcdf, where you trust it."
        )


def _other_files(group: h5py.Group, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Members of a group, and of those in it, that are kept in other files, with these files' names."""
    seen.add(h5py.h5o.get_info(group.id).addr)  # hard links may make circles
    for name in group:
        link, path = group.get(name, getlink=True), f"{group.name.rstrip('/')}/{name}"
        if isinstance(link, h5py.ExternalLink):
            yield path, link.filename
        elif isinstance(link, h5py.HardLink):
            entry = group[name]
            if isinstance(entry, h5py.Dataset):
                yield from ((path, file[0]) for file in entry.external or ())
                yield from (
                    (path, source.file_name) for source in (entry.virtual_sources() if entry.is_virtual else ())
                )
            elif isinstance(entry, h5py.Group) and h5py.h5o.get_info(entry.id).addr not in seen:
                yield from _other_files(entry, seen)


def check_url(url: str, engine: str | None) -> None:
    """Refuse files of references: what they name, on this machine or elsewhere, would be read."""
    if engine == "kerchunk" or any(link.partition("://")[0] in _LINKS for link in url.split("::")):
        raise SourceError(
            f'data.source "{url}" is a list of references to other files, which could be any on this machine. '
            "Write the data as Zarr, NetCDF or Icechunk."
        )


def check_member(expected: int, held: int, where: str, *, deflated: bool = False) -> None:
    """Refuse an array in an archive that claims another size than it has, or one too large to be read whole.

    Parameters
    ----------
    expected, held
        Bytes by the array's header, and by the archive.
    deflated
        Whether it is compressed, and so has to be in memory as a whole.
    """
    if expected != held:
        raise SourceError(
            f"data.source {where}: the array's header tells of {expected} bytes, the archive of {held}. Save it anew."
        )
    if deflated and held > _LARGEST_DEFLATED:
        raise SourceError(
            f"data.source {where}: {held} bytes, at most {_LARGEST_DEFLATED} can be read of a compressed array. "
            "Save it with numpy.savez, without compression, or as Zarr."
        )


def without_odd_names(dataset: xr.Dataset) -> xr.Dataset:
    """A data set without the coordinates whose names no store can take; recipes cannot name them either."""
    odd = []
    for name in dataset.coords:
        try:
            check_name(str(name))
        except ValueError as error:
            logger.warning("data.source: a coordinate is left out, because its %s", error)
            odd.append(name)
    return dataset.drop_vars(odd) if odd else dataset
