"""One lazy ``xarray.Dataset`` of any source, and a cheap digest of what it holds."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import h5py
import icechunk
import numpy as np
import xarray as xr
import zarr

from diffats.attributes import text_values
from diffats.config import Data
from diffats.errors import InputError, SourceError, StoreError
from diffats.icechunk_releases import holds_repository, quiet_icechunk
from diffats.requirements import require
from diffats.sources import missing
from diffats.sources.arrays import open_arrays
from diffats.sources.builtin import open_builtin
from diffats.sources.decoding import ReadableHDF5, open_readable, open_xarray, open_zarr
from diffats.sources.formats import foreign
from diffats.sources.grib import ENDINGS, open_grib
from diffats.sources.images import holds_images, is_image, open_images
from diffats.sources.joining import join
from diffats.sources.matches import beside_data, check_links, listed
from diffats.sources.naming import unknown_name
from diffats.sources.parents import with_parents
from diffats.sources.safety import check_hdf5, check_url, check_zarr, without_odd_names
from diffats.sources.text import with_lost_text, with_valid_text
from diffats.sources.unreadable import reason, unreadable
from diffats.storage import SCHEMES, check_endpoint, explain, object_storage

logger = logging.getLogger("diffats.sources")

_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata", ".zarray")
_MANY_FILES, _MANY_LISTINGS = 100_000, 200


def open_source(data: Data, *, every: bool = False) -> xr.Dataset:
    """Open what ``data.source`` names; metadata and index coordinates are read.

    Of a glob also what its files have beside the dim along which they are joined, as far as the recipe names it, or
    with ``every`` all of it: see `joining.join`.

    Raises
    ------
    SourceError
        Where it is missing or unreadable.
    """
    if data.source.startswith("builtin:"):
        return open_builtin(data.source.removeprefix("builtin:"))
    check_url(data.source, data.engine)
    paths, passed = _found(data)
    if passed:
        logger.warning("data.source: what other programs wrote beside the data is passed over: %s.", listed(passed))
    folder, _ = _folder_as_named(absolute(data.source))
    if len(paths) > 1 and _is_glob(folder):
        logger.info("data.source: brackets and stars in the name of the folder %s are no pattern.", folder)
    datasets = [without_odd_names(each) for each in with_valid_text(_open_one(path, data) for path in paths)]
    taken = missing.say(datasets)
    dataset = datasets[0] if len(datasets) == 1 else join(datasets, paths, data, every=every)
    dataset.encoding["taken"] = taken
    return dataset


def absolute(source: str) -> str:
    """The source with a local path made absolute; builtin names and URLs as they are."""
    plain = source.removeprefix("file://")
    return source if source.startswith("builtin:") or "://" in plain else os.path.abspath(os.path.expanduser(plain))


def locate(data: Data) -> list[str]:
    """The paths and URLs that ``data.source`` stands for.

    Raises
    ------
    SourceError
        Where there is none.
    """
    return _found(data)[0]


def _found(data: Data) -> tuple[list[str], list[str]]:
    """The paths and URLs of the data, and what else a pattern matches."""
    source = absolute(data.source)
    if not _is_glob(source) or ("://" not in source and _exists(source)):
        return [_existing(source, data)], []
    if "://" in source:
        found = _locate_url(source, data)
    else:
        folder, rest = _folder_as_named(source)
        pattern = os.path.join(glob.escape(folder), rest)
        _check_listable(pattern)
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise SourceError(f'data.source "{source}" matches no file. Check the pattern{_about_brackets(source)}.')
        check_links(source, found)
        found = _without_links(found)
    passed = beside_data(found)
    return [path for path in found if path not in set(passed)], passed


def _existing(source: str, data: Data) -> str:
    if "://" in source:
        return _locate_url(source, data)[0]
    if not _exists(source):
        check_links(source, [source])
        raise _missing(source)
    return source


def _folder_as_named(pattern: str) -> tuple[str, str]:
    """The folder that a pattern begins with, as far as one exists by this very name, and the rest of it."""
    first, *rest = Path(pattern).parts
    place = Path(first)
    while len(rest) > 1 and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    return str(place), os.path.join("", *rest)


def _about_brackets(pattern: str) -> str:
    return "; a bracket that is part of a name is written [[]" if "[" in pattern else ""


def _without_links(paths: list[str]) -> list[str]:
    """Paths without links to what is among them under another name: a file is read once."""
    folders = {folder: os.path.realpath(folder) for folder in {os.path.dirname(path) for path in paths}}
    real = {
        path: os.path.realpath(path)
        if os.path.islink(path)
        else os.path.join(folders[os.path.dirname(path)], os.path.basename(path))
        for path in paths
    }
    if len(set(real.values())) == len(paths):
        return paths
    kept = {real[path]: path for path in sorted(paths, key=_is_linked, reverse=True)}
    return [path for path in paths if kept[real[path]] == path]


def _is_linked(path: str) -> bool:
    return os.path.islink(path) or os.path.islink(os.path.dirname(path))


def _check_listable(pattern: str) -> None:
    """Refuse a pattern with a folder on its way that cannot be listed: ``glob`` leaves its files out without a word."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if _is_glob(part))
    for stop in range(first, len(parts)):
        for folder in glob.iglob(str(Path(*parts[:stop])), recursive=True):
            if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                raise SourceError(
                    f'data.source "{pattern}": the folder {folder} cannot be listed, so files may be missing. Check '
                    "its permissions, or narrow the pattern."
                )


def _exists(source: str) -> bool:
    try:
        os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # no permission, a name that is too long, a null in it
        raise SourceError(
            f'data.source "{source[:200]}" cannot be looked for: {getattr(error, "strerror", None) or error}. '
            "Check the path and its permissions."
        ) from error
    return True


def _missing(source: str) -> SourceError:
    path = Path(source)
    try:
        known = sorted(name for name in os.listdir(path.parent) if not name.startswith("."))
    except OSError:
        return SourceError(f'data.source "{source}" does not exist. Check the path, or give an fsspec URL.')
    return unknown_name("data.source", path.name, known, where=f"the folder {path.parent}")


def _locate_url(source: str, data: Data) -> list[str]:
    if data.engine is not None and not _is_glob(source):
        return [source]  # the engine knows the protocol, e.g. OPeNDAP
    try:
        check_endpoint(source, str(data.storage_options.get("endpoint_url", "")))
        system, path = fsspec.core.url_to_fs(source, **data.storage_options)
        if _is_glob(source):
            found = [system.unstrip_protocol(entry) for entry in sorted(system.glob(path))]
        else:
            found = [source] if system.exists(path) else []
    except unreadable() as error:
        raise SourceError(
            f'data.source "{source}" cannot be reached: {reason(error)}. {_fix(error, source)}'
        ) from error
    if not found:
        raise SourceError(f'data.source "{source}" does not exist. Check the URL.')
    return found


def _fix(error: BaseException, url: str) -> str:
    """What to do about a URL that cannot be reached."""
    if not url.startswith(("s3://", "s3a://")):
        return "Check the URL."
    if isinstance(error, ImportError):
        return "Run pip install 'diffats[s3]'."
    return "Check the URL, and AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."


def _is_glob(source: str) -> bool:
    return any(sign in source for sign in "*?[")


def _open_one(path: str, data: Data) -> xr.Dataset:
    name = data.engine or "any known format"
    try:
        name = data.engine or recognise(path, data)
        return next((kind.opens for kind in KINDS if kind.name == name), partial(_open_with, name))(path, data)
    except InputError:
        raise
    except unreadable() as error:
        what = None if name == "numpy" else _foreign(path, data)
        if what is not None:
            raise SourceError(f'data.source "{path}" cannot be read as {name}: {what}') from error
        group = f', group "{data.group}",' if data.group else ""
        raise SourceError(
            f'data.source "{path}"{group} cannot be read as {name}: {reason(error)}. '
            "Check the file and data.group, or set data.engine."
        ) from error


def _foreign(path: str, data: Data) -> str | None:
    """What a file is that could not be opened, where its first bytes tell."""
    try:
        place = Place.look(path, data)
    except unreadable():
        return None
    return None if place.is_folder else foreign(place.magic)


def recognise(path: str, data: Data) -> str:
    """Name of the first of ``KINDS`` that takes a place; "netcdf" where xarray shall guess an engine."""
    place = Place.look(path, data)
    for kind in KINDS:
        if kind.recognises(place):
            return kind.name
    if place.is_folder:
        raise SourceError(
            f'data.source "{path}" is a folder, but neither a Zarr store nor an Icechunk repository, and holds no '
            f'images. For files in it, give a glob such as "{Path(path) / "*.nc"}".'
        )
    return _GUESSED


@dataclass(frozen=True)
class Place:
    """What is looked at to tell what kind of source a path or URL is.

    Attributes
    ----------
    path
        As given.
    is_folder
        Whether it is a directory.
    magic
        A file's first eight bytes; none of a folder.
    is_zarr, is_repository
        Whether a folder is a Zarr store, and whether it is an Icechunk repository.
    """

    path: str
    is_folder: bool
    magic: bytes = b""
    is_zarr: bool = False
    is_repository: bool = False

    @classmethod
    def look(cls, path: str, data: Data) -> Place:
        """Look at a path or URL."""
        if "://" in path:
            system, inner = fsspec.core.url_to_fs(path, **data.storage_options)
            if not system.isfile(inner):
                repository = _is_remote_repository(path, system, inner)
                return cls(path, is_folder=True, is_zarr=not repository, is_repository=repository)
            return cls(path, is_folder=False, magic=system.cat_file(inner, 0, 8))
        if Path(path).is_dir():
            zarr_store = is_zarr_folder(Path(path))
            repository = not zarr_store and holds_repository(_storage(path))
            return cls(path, is_folder=True, is_zarr=zarr_store, is_repository=repository)
        with Path(path).open("rb") as file:
            return cls(path, is_folder=False, magic=file.read(8))


def _is_remote_repository(url: str, system: Any, path: str) -> bool:
    """Whether an object store holds an Icechunk repository there; what is a Zarr store is none, and seen sooner."""
    if url.partition("://")[0] not in SCHEMES or any(system.isfile(f"{path}/{name}") for name in _ZARR_FILES):
        return False
    return holds_repository(_storage(url))


def _storage(path: str) -> icechunk.Storage:
    """Icechunk's storage for a directory or URL that exists."""
    quiet_icechunk()
    return object_storage(path) if "://" in path else icechunk.local_filesystem_storage(path)


def _open_with(engine: str, path: str, data: Data) -> xr.Dataset:
    """Open with an engine of xarray."""
    target: Any = path
    if "://" in path and engine in ("h5netcdf", "scipy"):
        target = fsspec.open(path, "rb", **data.storage_options).open()
    if engine == "h5netcdf" or (os.path.isfile(path) and h5py.is_hdf5(path)):
        check_hdf5(target, path)
    return with_lost_text(_open_groups(partial(_open_group, engine, target, path, data), data), engine, path, data)


def _open_group(engine: str, target: Any, path: str, data: Data, group: str | None) -> xr.Dataset:
    options: dict[str, Any] = {"group": group} if group else {}
    if engine != "h5netcdf":
        return open_xarray(target, engine=None if engine == _GUESSED else engine, **options)
    options["phony_dims"] = "access"  # what the dims of arrays are called that name none
    opens = partial(open_xarray, target, engine=engine, **options)
    dataset = open_readable(opens, partial(ReadableHDF5.open, target, **options), path, data)
    _check_phony(dataset, path)
    return dataset


def _check_phony(dataset: xr.Dataset, path: str) -> None:
    """Refuse what h5netcdf takes for a coordinate of an unnamed dim, where some array of a NetCDF-4 file has those."""
    for name in set(dataset.variables).intersection(dataset.sizes):
        if any(str(dim).startswith("phony_dim_") for dim in dataset[name].dims):
            raise SourceError(
                f'data.source "{path}": coordinate "{name}" cannot be told from arrays beside it that name no dims. '
                "Attach dimension scales to them, or run pip install 'diffats[netcdf4]' and set "
                'data.engine = "netcdf4".'
            )


def _open_groups(opens: Callable[[str | None], xr.Dataset], data: Data) -> xr.Dataset:
    """The group that the recipe names, with the coordinates of those above it."""
    dataset = opens(data.group)
    return with_parents(dataset, data.group, opens) if data.group else dataset


def _open_netcdf4(path: str, data: Data) -> xr.Dataset:
    what = 'data.engine = "netcdf4"' if data.engine else f"data.source {path}, which is NetCDF in CDF-5,"
    require(what, "netcdf4")
    return _open_with("netcdf4", path, data)


def _open_zarr(path: str, data: Data) -> xr.Dataset:
    options: dict[str, Any] = {"storage_options": data.storage_options or None} if "://" in path else {}

    def opens(group: str | None) -> xr.Dataset:
        try:
            root = zarr.open_group(path, mode="r", path=group or "", **options)
        except zarr.errors.ContainsArrayError as error:
            raise SourceError(
                f'data.source "{path}" is an array of Zarr, whose dims have no names. Give a group that holds it, as '
                "xarray's to_zarr writes one."
            ) from error
        check_zarr(root, path)
        # consolidated is passed explicitly: otherwise a store without it is probed for, and warned about
        consolidated = root.metadata.consolidated_metadata is not None
        dataset = open_zarr(path, path, data, group=group, consolidated=consolidated, **options)
        dataset.encoding.setdefault("source", path)
        return dataset

    return _open_groups(opens, data)


def is_zarr_folder(path: Path) -> bool:
    """Whether a local folder is a Zarr store."""
    return path.is_dir() and not set(_ZARR_FILES).isdisjoint(os.listdir(path))


def read_icechunk(path: str) -> icechunk.Session:
    """A session that reads the branch ``main`` of an Icechunk repository as it is now.

    Raises
    ------
    SourceError
        Where it cannot be read.
    """
    try:
        return icechunk.Repository.open(_storage(path)).readonly_session("main")
    except icechunk.IcechunkError as error:
        raise SourceError(f'data.source "{path}" cannot be read as icechunk {explain(error)}') from error
    except StoreError as error:
        raise SourceError(f"data.source: {error}") from error


def _open_icechunk(path: str, data: Data) -> xr.Dataset:
    session = read_icechunk(path)

    def opens(group: str | None) -> xr.Dataset:
        return open_zarr(session.store, path, data, group=group, consolidated=False)

    dataset = _open_groups(opens, data)
    dataset.encoding["snapshot"] = session.snapshot_id
    return dataset


@dataclass(frozen=True)
class Kind:
    """A format of sources.

    Attributes
    ----------
    name
        Also for ``data.engine``.
    recognises, opens
        What its places look like, and how one is opened.
    about, example
        What it is, and a source of it, for ``diffats init --list``.
    """

    name: str
    recognises: Callable[[Place], bool]
    opens: Callable[[str, Data], xr.Dataset]
    about: str = ""
    example: str = ""


def _is_hdf5_further_on(place: Place) -> bool:
    """Whether an HDF5 file begins with something else, as those of MATLAB do."""
    if place.is_folder or "://" in place.path:
        return False
    with Path(place.path).open("rb") as file:  # the library says yes of what it has open, whatever it is now
        return any(file.seek(offset) and file.read(8) == b"\x89HDF\r\n\x1a\n" for offset in (512, 1024, 2048, 4096))


_GUESSED = "netcdf"
#: The formats that are recognised, first match first. A new one is a row here and the function that opens it.
KINDS: tuple[Kind, ...] = (
    Kind(
        "numpy",
        lambda place: place.path.lower().endswith((".npy", ".npz")),
        open_arrays,
        "NumPy arrays",
        "fields.npz",
    ),
    Kind("zarr", lambda place: place.is_zarr, _open_zarr, "a Zarr store, version 2 or 3", "simulations.zarr"),
    Kind(
        "icechunk", lambda place: place.is_repository, _open_icechunk, "an Icechunk repository", "s3://bucket/archive"
    ),
    Kind(
        "scipy",
        lambda place: place.magic.startswith((b"CDF\x01", b"CDF\x02")),
        partial(_open_with, "scipy"),
        "a NetCDF-3 file",
        "old_model.nc",
    ),
    Kind(
        "h5netcdf",
        lambda place: place.magic.startswith(b"\x89HDF") or _is_hdf5_further_on(place),
        partial(_open_with, "h5netcdf"),
        "NetCDF-4 or HDF5 files",
        '"ocean/*.nc"',
    ),
    Kind(
        "netcdf4",
        lambda place: place.magic.startswith(b"CDF\x05"),
        _open_netcdf4,
        "a NetCDF file in CDF-5, with diffats[netcdf4]",
        "cesm.nc",
    ),
    Kind(
        "cfgrib",
        lambda place: place.magic.startswith(b"GRIB") or (not place.is_folder and place.path.endswith(ENDINGS)),
        open_grib,
        "GRIB files, with diffats[grib]",
        '"forecast/*.grib2"',
    ),
    Kind(
        "images",
        lambda place: "://" not in place.path and (holds_images if place.is_folder else is_image)(place.path),
        open_images,
        "images, a class for each subfolder",
        "photographs/",
    ),
)


def stamp(data: Data, *, deep: bool = False) -> list[Any]:
    """What tells cheaply that a source has changed: names, sizes and times of its files.

    ``deep`` also walks into folders such as Zarr stores (100,000 files on disk, 200 listings of a URL); without it only
    their top level is looked at. A plain web server tells nothing of a folder, and an engine's own protocol (OPeNDAP)
    nothing at all: there a change shows in metadata and coordinates only.
    """
    if data.source.startswith("builtin:"):
        return [data.source]
    entries: list[Any] = []
    for path in locate(data):
        entries.append(stamp_of(path, data, deep=deep))
    return entries


def stamp_of(path: str, data: Data, *, deep: bool) -> list[Any]:
    """The same of one path or URL: its name, size and time."""
    return [Path(path).name, *(_url_stamp(path, data, deep) if "://" in path else _path_stamp(Path(path), deep))]


def _url_stamp(path: str, data: Data, deep: bool) -> list[Any]:
    try:
        system, inner = fsspec.core.url_to_fs(path, **data.storage_options)
        system.invalidate_cache(inner)  # listings may be kept for as long as the process lives
        if not system.isfile(inner) and _is_remote_repository(path, system, inner):
            return [icechunk.Repository.open(_storage(path)).lookup_branch("main")]
        info = system.info(inner)
        return _folder_stamp(system, inner, deep) if info.get("type") == "directory" else _seen(info)
    except unreadable():
        return []  # an engine's own protocol: there is nothing to look at


def _folder_stamp(system: Any, path: str, deep: bool) -> list[Any]:
    """Count, and digest of names, sizes and times, of the files of a remote folder."""
    sha, count = hashlib.sha256(), 0
    listings = system.walk(path, maxdepth=None if deep else 1, detail=True)
    for folder, _, files in itertools.islice(listings, _MANY_LISTINGS):
        for name, info in sorted(files.items()):
            sha.update(json.dumps([folder, name, *_seen(info)]).encode())
        count += len(files)
        if count > _MANY_FILES:
            break
    return [count, sha.hexdigest()]


def _seen(info: dict[str, Any]) -> list[str]:
    return [str(info.get(key)) for key in ("size", "mtime", "LastModified", "last_modified", "ETag", "etag", "created")]


def _path_stamp(path: Path, deep: bool) -> list[Any]:
    if not path.is_dir():
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    count = total = newest = 0
    for folder, folders, files in os.walk(path):
        for name in (*files, *(() if deep else folders)):
            stat = Path(folder, name).stat()
            count, total, newest = count + 1, total + stat.st_size, max(newest, stat.st_mtime_ns)
        if not deep or count > _MANY_FILES:
            break
    return [count, total, newest]


def digest(dataset: xr.Dataset, data: Data) -> str:
    """Digest of metadata, coordinates and the source's stamp: equal as long as the content is, short of tampering.

    It sees no more than ``stamp`` does, whose limits are said there.
    """
    content = dataset.encoding.get("snapshot") or dataset.encoding.get("digest") or stamp(data, deep=True)
    told = [content, dataset.to_dict(data=False)]
    told += [dataset.encoding[key] for key in ("order", "taken") if dataset.encoding.get(key)]
    sha = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name in sorted(dataset.indexes, key=str):
        values = dataset[name].values
        if values.dtype.kind in "TO":  # NumPy's text of any length, which does not become text of one length
            values = text_values(values)
        sha.update(values.astype(str).tobytes() if values.dtype.hasobject else np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()
