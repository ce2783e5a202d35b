"""Where a repository lies: a directory or an object store."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path
from urllib.parse import urlsplit

import icechunk

from diffats.errors import DiffatsError, IntegrityError, StoreError, StoreNotFoundError
from diffats.icechunk_releases import (
    HEAD_1_DAMAGED,
    HEAD_2_DAMAGED,
    HEADS,
    NOT_CLEAN,
    NOT_FOUND,
    SETTINGS_DAMAGED,
    damaged_head,
    has_snapshots,
    kind_of,
    open_or_create,
    quiet_icechunk,
)
from diffats.messages import MESSAGES
from diffats.storage import check_endpoint, explain, object_storage

_FAILURES = (icechunk.IcechunkError, ConnectionError)
_SETTINGS = "config.yaml"  # of format 1; in format 2 they are part of the head
_MAKING_SECONDS = 2  # in which a new repository gets its head, which one that has lost it does not
_FIXES = {
    HEADS[1]: 'Bring it back: it holds {"snapshot": "ID"}, the id of the newest commit. Without a copy, move the '
    "store aside and run the stages again.",
    HEADS[2]: "Bring it back: overwritten/ holds it as it was before each of the last changes, the newest first by "
    "name. Then run diffats verify. Without a copy, move the store aside and run the stages again.",
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
        return open_or_create(storage_for(location))
    except _FAILURES as error:
        if kind_of(error) == NOT_CLEAN:  # of another's files, or of a repository that cannot be opened
            with contextlib.suppress(StoreNotFoundError):
                return _opened(str(location))
        raise _failure(str(location), error, "opened or made") from error


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
    return _opened(location) if fresh else _cached(location, place)


_MISSING = "there is no store at {}. Run the stage that makes it, or correct root or store."


@functools.lru_cache(maxsize=16)
def _cached(location: str, _place: int) -> icechunk.Repository:
    return _opened(location)


def _opened(location: str) -> icechunk.Repository:
    quiet_icechunk()
    try:
        check_endpoint(location)
        storage = storage_for(location)
        try:
            # Asked first: where S3 refuses this, it says why; what is opened at once, it only refuses.
            icechunk.Repository.exists(storage)
            return icechunk.Repository.open(storage)
        except icechunk.IcechunkError as error:
            if kind_of(error) != NOT_FOUND or not _has_snapshots(location):
                raise
        _wait_for_head(storage)
        return icechunk.Repository.open(storage)
    except _FAILURES as error:
        raise _failure(location, error, "opened") from error


def _has_snapshots(location: str) -> bool:
    path = local_path(location)
    return path is not None and has_snapshots(path)


def _wait_for_head(storage: icechunk.Storage) -> None:
    """Give another process that makes the repository just now the time to write its head, which comes last."""
    for _ in range(_MAKING_SECONDS * 20):
        if icechunk.Repository.exists(storage):
            return
        time.sleep(0.05)


def _failure(location: str, error: Exception, what: str) -> DiffatsError:
    """A failure to open as our error, with the repository's file that it comes from, where its kind tells."""
    kind = kind_of(error)
    if kind == NOT_FOUND and not _has_snapshots(location):
        return StoreNotFoundError(_MISSING.format(location))
    if kind == SETTINGS_DAMAGED:
        return _damaged(location, _SETTINGS)
    unreadable = kind in HEAD_2_DAMAGED and not MESSAGES["operating system"].is_in(error)
    if unreadable or kind in (NOT_FOUND, HEAD_1_DAMAGED):
        return _damaged(location, damaged_head(error, local_path(location)))
    return StoreError(f"store {location}: cannot be {what} {explain(error)}")


def _damaged(location: str, file: str) -> IntegrityError:
    return IntegrityError(f"store {location}: {file} is damaged or lost. {_FIXES[file]}")


def forget() -> None:
    """Open repositories anew from now on: what this process has read of them may be gone."""
    _cached.cache_clear()
