"""The repository under a store: sessions, commits, tags."""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import icechunk
import zarr

from diffats.errors import IntegrityError, StoreError
from diffats.icechunk_releases import CLOCK, TAG_TAKEN, kind_of, reason
from diffats.storage import explain
from diffats.store.location import absolute, open_repository
from diffats.store.lock import store_lock
from diffats.store.schema import RECORD, Record

BRANCH = "main"
HISTORY = "diffats_history"  # the root attribute that holds names of versions, and events
#: What damaged snapshots, manifests and array metadata raise.
METADATA_DAMAGE = (icechunk.IcechunkError, ValueError, KeyError, TypeError)
_RELEASE = importlib.metadata.version("diffats")
# Chunks along samples in one manifest. A commit writes the manifests that its shards are in, and lists all of them.
_MANIFEST_CHUNKS = 2048
# What a process keeps of manifests and snapshots, about 60 bytes a chunk and a few hundred an array.
_CACHED_CHUNKS, _CACHED_ARRAYS = 2**20, 2**14
_CLOCK_SECONDS = 10  # a step back of the clock that is waited for


class Repository:
    """One Icechunk repository.

    Parameters
    ----------
    location
        A directory or URL that holds one.
    fresh
        Do not use what this process has read of it before.

    Raises
    ------
    StoreNotFoundError
        Where there is none.
    """

    def __init__(self, location: str | Path, *, fresh: bool = False) -> None:
        self.location = absolute(location)
        self.repo = open_repository(self.location, fresh=fresh)

    @classmethod
    def open(cls, location: str | Path) -> Self:
        """Open what is there, for reading or writing."""
        return cls(location)

    def head(self) -> icechunk.Session:
        """A session that reads the newest commit."""
        return self.repo.readonly_session(BRANCH)

    @contextlib.contextmanager
    def readable(self, what: str = "a snapshot or manifest") -> Iterator[None]:
        """Say what to do where the repository's own files cannot be read: whether they are damaged, nothing tells.

        Raises
        ------
        IntegrityError
            In place of what damaged files raise.
        """
        try:
            yield
        except METADATA_DAMAGE as error:
            raise IntegrityError(
                f"store {self.location}: {what} cannot be read ({reason(error)}). Where a file is damaged or lost, "
                "bring it back. Without a copy, move the store aside (do not remove it), and run the stages again."
            ) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[icechunk.Session]:
        """A session that can be committed, while no other process writes here."""
        with store_lock(self.location):
            try:
                yield self.repo.writable_session(BRANCH)
            except icechunk.IcechunkError as error:
                raise StoreError(
                    f"store {self.location}: cannot be written {explain(error)} Then run the command again: what was "
                    "committed stays."
                ) from error

    def commit(self, session: icechunk.Session, message: str, metadata: dict[str, Any]) -> str:
        """Commit a session, signed; return the new snapshot.

        Raises
        ------
        StoreError
            Where another process has committed since the session began, or the storage fails.
        """
        try:
            return self._commit(session, message, {**signature(), **metadata})
        except icechunk.ConflictError as error:
            raise StoreError(
                f"store {self.location}: another process committed at the same time; nothing of this commit is kept. "
                "Let one process write at a time, and run the command again."
            ) from error
        except icechunk.IcechunkError as error:
            fix = "Set this machine's clock right, then run" if kind_of(error) == CLOCK else "Run"
            raise StoreError(
                f"store {self.location}: commit failed ({reason(error)}). {fix} the command again."
            ) from error

    def _commit(self, session: icechunk.Session, message: str, metadata: dict[str, Any]) -> str:
        """Commit; after a small step back of the clock, once it is later than the last commit: Icechunk insists."""
        for _ in range(_CLOCK_SECONDS):
            try:
                return session.commit(message, metadata=metadata)
            except icechunk.IcechunkError as error:
                if kind_of(error) != CLOCK:
                    raise
            time.sleep(1)
        return session.commit(message, metadata=metadata)

    def tag(self, group: str, fingerprint: str, snapshot: str) -> None:
        """Name a complete version, so that it stays readable when another takes its place."""
        prefix = f"{group}-{fingerprint[:16]}-"
        known = sum(tag.startswith(prefix) for tag in self.repo.list_tags())
        for number in itertools.count(known + 1):
            try:
                return self.repo.create_tag(f"{prefix}{number}", snapshot)
            except icechunk.IcechunkError as error:
                if kind_of(error) not in TAG_TAKEN:  # the name of a deleted tag is never free again
                    raise StoreError(f"store {self.location}: tag {prefix}{number}: {reason(error)}.") from error


def configured() -> icechunk.RepositoryConfig:
    """Settings by which neither a commit's time nor a process's memory grows with what is stored already.

    A repository keeps them from when it is made, so that all who open it use the same.
    """
    along_samples = ((icechunk.ManifestSplitDimCondition.Axis(0), _MANIFEST_CHUNKS),)
    split = icechunk.ManifestSplittingConfig(((icechunk.ManifestSplitCondition.AnyArray(), along_samples),))
    manifest = icechunk.ManifestConfig(
        splitting=split,
        # Otherwise every session, and so every commit, begins by reading manifests of all groups.
        preload=icechunk.ManifestPreloadConfig(preload_if=icechunk.ManifestPreloadCondition.false()),
    )
    caching = icechunk.CachingConfig(num_chunk_refs=_CACHED_CHUNKS, num_snapshot_nodes=_CACHED_ARRAYS)
    return icechunk.RepositoryConfig(manifest=manifest, caching=caching)


def signature() -> dict[str, str]:
    """Who commits: ``user@host``, or what ``DIFFATS_AUTHOR`` says, and the release; no digest depends on it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = str(os.getuid())
    return {"author": os.environ.get("DIFFATS_AUTHOR") or f"{user}@{socket.gethostname()}", "release": _RELEASE}


def commit_metadata(
    group: str, record: Record, done: int, failed: int, attrs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a commit says about a version, so that listing versions opens none.

    ``source`` is the group's attribute of that name: the digest of the data that the version comes from.
    """
    return {
        "source": (attrs or {}).get("source"),
        "group": group,
        "fingerprint": record.fingerprint,
        "complete": record.complete,
        "digest": record.digest,
        "done": done,
        "total": record.n,
        "failed": failed,
    }


def group_names(session: icechunk.Session) -> list[str]:
    """Groups that a session sees."""
    try:
        return sorted(zarr.open_group(session.store, mode="r", zarr_format=3).group_keys())
    except FileNotFoundError:  # nothing was ever written
        return []


def root_attrs(session: icechunk.Session) -> dict[str, Any]:
    """Attributes of the root."""
    try:
        return dict(zarr.open_group(session.store, mode="r", zarr_format=3).attrs)
    except FileNotFoundError:  # a repository nobody has written to
        return {}


def read_attrs(session: icechunk.Session, group: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A group's record, as stored, and its other attributes."""
    attrs: dict[str, Any] = dict(zarr.open_group(session.store, path=group, mode="r", zarr_format=3).attrs)
    return attrs.pop(RECORD, {}), attrs


def write_record(session: icechunk.Session, group: str, record: Record) -> None:
    """Set a group's record."""
    zarr.open_group(session.store, path=group, mode="r+", zarr_format=3).attrs[RECORD] = record.to_attr()
