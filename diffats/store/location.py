"""Where a repository lies: a directory or an object store."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import icechunk

from diffats.errors import IntegrityError, StoreError, StoreNotFoundError
from diffats.storage import check_endpoint, explain, object_storage

_FAILURES = (icechunk.IcechunkError, ConnectionError)
_HEAD, _SETTINGS = "refs/branch.main/ref.json", "config.yaml"
_MAKING_SECONDS = 2  # in which a new repository gets its head, which one that has lost it does not
# Words of Icechunk's that tell which of a repository's own files is damaged.
_DAMAGED = {"ref json": _HEAD, "config deserialization": _SETTINGS}
_FIXES = {
    _HEAD: 'Bring it back: it holds {"snapshot": "ID"}, the id of the newest commit. Without a copy, remove the store '
    "and run the stages again.",
    _SETTINGS: "Remove it: it holds settings, and nothing of the data.",
}


def local_path(location: str | Path) -> Path | None:
    """The directory that a location names, or None for a URL.

    >>> local_path("runs/a").as_posix(), local_path("s3://bucket/a")
    ('runs/a', None)
    """
    text = str(location)
    if text.startswith("file://"):
        return Path(urlsplit(text).path)
    return None if "://" in text else Path(text)


def absolute(location: str | Path) -> str:
    """A location that means the same to workers in other directories."""
    path = local_path(location)
    return str(location) if path is None else str(path.absolute())


def storage_for(location: str | Path) -> icechunk.Storage:
    """Icechunk's storage for a location; credentials come from the environment.

    Parameters
    ----------
    location
        A directory, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    Raises
    ------
    StoreError
        Where Icechunk cannot keep a repository in such a place.
    """
    path = local_path(location)
    if path is not None:
        return icechunk.local_filesystem_storage(absolute(path))
    return object_storage(str(location))


def create_repository(location: str | Path) -> icechunk.Repository:
    """Open the repository at a location, or make one."""
    quiet_icechunk()
    try:
        check_endpoint(str(location))
        return icechunk.Repository.open_or_create(storage_for(location))
    except _FAILURES as error:
        _check_damage(str(location), str(error))
        raise StoreError(f"store {location}: cannot be opened or made {explain(error)}") from error


def open_repository(location: str, *, fresh: bool = False) -> icechunk.Repository:
    """Open the repository at a location, once for each process.

    Parameters
    ----------
    location
        Where it is.
    fresh
        Use nothing that this process has read of it before.

    Raises
    ------
    StoreNotFoundError
        Where there is none.
    """
    path = local_path(location)
    if path is not None and not path.is_dir():  # asking Icechunk would make the directory
        raise StoreNotFoundError(_MISSING.format(location))
    place = 0 if path is None else path.stat().st_ino  # another directory of the same name is another repository
    return _open.__wrapped__(location, place) if fresh else _open(location, place)


_MISSING = "there is no store at {}. Run the stage that makes it, or correct root or store."


@functools.lru_cache(maxsize=16)
def _open(location: str, _place: int) -> icechunk.Repository:
    quiet_icechunk()
    try:
        check_endpoint(location)
        storage = storage_for(location)
        if not icechunk.Repository.exists(storage) and not _is_being_made(location):
            _check_head(location)
            raise StoreNotFoundError(_MISSING.format(location))
        return icechunk.Repository.open(storage)
    except _FAILURES as error:
        _check_damage(location, str(error))
        raise StoreError(f"store {location}: cannot be opened {explain(error)}") from error


def _is_being_made(location: str) -> bool:
    """Whether another process makes the repository just now: its head, which Icechunk writes last, appears."""
    path = local_path(location)
    if path is None or not any(path.glob("snapshots/*")):
        return False
    for _ in range(_MAKING_SECONDS * 20):
        if (path / _HEAD).exists():
            return True
        time.sleep(0.05)
    return False


def _check_head(location: str) -> None:
    """Tell a repository that has lost its head from a place where there is none."""
    path = local_path(location)
    if path is not None and any(path.glob("snapshots/*")):
        raise _damaged(location, _HEAD)


def _check_damage(location: str, text: str) -> None:
    """Name the repository's file that a failure comes from, where its text tells."""
    if "clean prefixes" in text:  # where a repository shall be made
        _check_head(location)
    for words, file in _DAMAGED.items():
        if words in text:
            raise _damaged(location, file)


def _damaged(location: str, file: str) -> IntegrityError:
    return IntegrityError(f"store {location}: {file} is damaged or lost. {_FIXES[file]}")


def forget() -> None:
    """Open repositories anew from now on: what this process has read of them may be gone."""
    _open.cache_clear()


def reason(error: Exception) -> str:
    """The first line of an error; Icechunk's go on with a trace."""
    return str(error).strip().partition("\n")[0].removeprefix("x ").strip() or type(error).__name__


@functools.cache
def quiet_icechunk() -> None:
    """Keep Icechunk from warning of concurrent commits on a local file system, which the writer lock prevents."""
    if "ICECHUNK_LOG" not in os.environ:
        icechunk.set_logs_filter("error")
