"""The groups inside a NetCDF-4, Zarr or Icechunk source, from metadata alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import fsspec
import h5py
import zarr

from diffats.config import Data
from diffats.sources import opening
from diffats.sources.safety import zarr_members

_MANY = 1000  # members that are looked at


def groups_with_arrays(data: Data) -> list[str]:
    """The groups below the root that hold arrays of two dims or more, by path; of a glob, those of its first file.

    None of a source of another format.

    >>> groups_with_arrays(Data(source="builtin:indian-pines", modes=["y"], sample_dim="sample"))
    []
    """
    if data.source.startswith("builtin:"):
        return []
    path = opening.locate(data)[0]
    kind = data.engine or opening.recognise(path, data)
    found: dict[str, None] = {}
    for name, ndim in _arrays(path, kind, data):
        folder, _, _ = name.strip("/").rpartition("/")
        if folder and ndim > 1:
            found.setdefault(folder)
    return sorted(found)


def _arrays(path: str, kind: str, data: Data) -> list[tuple[str, int]]:
    """Paths of the arrays in a source, and how many dims they have."""
    if kind == "h5netcdf":
        found: list[tuple[str, int]] = []
        with fsspec.open(path, "rb", **data.storage_options) as file, h5py.File(file, "r") as opened:
            opened.visititems(lambda name, entry: found.append((name, getattr(entry, "ndim", 0))))
        return found
    if kind not in ("zarr", "icechunk"):
        return []
    store: Any = path if kind == "zarr" else opening.read_icechunk(path).store
    options: dict[str, Any] = {"storage_options": data.storage_options} if kind == "zarr" and "://" in path else {}
    members = itertools.islice(_members(zarr.open_group(store, mode="r", **options)), _MANY)
    return [(name, getattr(member, "ndim", 0)) for name, member in members]


def _members(group: zarr.Group, above: str = "") -> Iterator[tuple[str, Any]]:
    """What can be read in a group and in those below it, by path."""
    members, _ = zarr_members(group)
    for name, member in members.items():
        yield above + name, member
        if isinstance(member, zarr.Group):
            yield from _members(member, f"{above}{name}/")
