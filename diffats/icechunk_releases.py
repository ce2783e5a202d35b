"""Releases 1 and 2 of Icechunk behind one face: what a failure is, and what a repository is.

Icechunk 2 reads and writes repositories of formats 1 and 2; Icechunk 1 knows format 1. New ones are made in format 1,
which both releases read, and whose `prune` frees all: in format 2, every commit and tag leaves a copy of the list of
all commits, which no garbage collection removes (earth-mover/icechunk#1852).
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import icechunk
from zarr.core.sync import sync

from diffats.messages import KINDS_OF_ICECHUNK_1

# Kinds of failures, as Icechunk 2 calls them.
NOT_FOUND, NOT_CLEAN, LATER_FORMAT = "repository-not-found", "parent-directory-not-clean", "unsupported-spec-version"
TAG_TAKEN = ("tag-already-exists", "tag-previously-deleted")
CLOCK, SETTINGS_DAMAGED, THROTTLED = "snapshot-timestamp", "config-deserialization", "throttled"
#: What a damaged head is: in format 1 a JSON file, in format 2 a compressed one.
HEAD_1_DAMAGED, HEAD_2_DAMAGED = "serialization", ("invalid-file-format", "deserialization", "io")
_KNOWS_ONE_FORMAT = not hasattr(icechunk, "SpecVersion")
#: The file that names the newest commit, by format. Only for messages: what a repository is, Icechunk tells.
HEADS = {1: "refs/branch.main/ref.json", 2: "repo"}


@functools.cache
def quiet_icechunk() -> None:
    """Keep Icechunk from warning of concurrent commits on a local file system, which the writer lock prevents."""
    if "ICECHUNK_LOG" not in os.environ:
        icechunk.set_logs_filter("error")


def kind_of(error: BaseException) -> str:
    """Icechunk's code of a failure; ``unknown`` where it has none.

    >>> kind_of(icechunk.IcechunkError("tag already exists, tags are immutable: `a`"))
    'tag-already-exists'
    >>> kind_of(ValueError("tag already exists"))
    'unknown'
    """
    if not isinstance(error, icechunk.IcechunkError):
        return "unknown"
    told = str(getattr(error, "kind", "unknown"))
    if told != "unknown":
        return told
    return next((kind for kind, message in KINDS_OF_ICECHUNK_1.items() if message.is_in(error)), "unknown")


def reason(error: BaseException) -> str:
    """The first line of an error; Icechunk's go on with a trace."""
    return str(error).strip().partition("\n")[0].removeprefix("x ").strip() or type(error).__name__


def last_cause(error: BaseException) -> str:
    """The innermost cause that an error of Icechunk's names: release 1 has a line for each, release 2 one for all.

    >>> last_cause(icechunk.IcechunkError("  x dispatch failure\\n  |-> io error\\n  `-> Connection refused\\n"))
    'Connection refused'
    >>> last_cause(icechunk.IcechunkError("dispatch failure: io error: Connection refused\\n\\ncontext:\\n   0: refs"))
    'Connection refused'
    """
    last = str(error).strip().rpartition("\n")[2].strip()
    innermost = last.removeprefix("`-> ") if last.startswith("`-> ") else reason(error).rpartition(": ")[2]
    return innermost.rstrip(".")


def open_or_create(storage: icechunk.Storage) -> icechunk.Repository:
    """Open a repository of any format that the release knows, or make one of format 1."""
    options: dict[str, Any] = {} if _KNOWS_ONE_FORMAT else {"create_version": 1}
    return icechunk.Repository.open_or_create(storage, **options)


def format_of(repo: icechunk.Repository) -> int:
    """The format of an open repository."""
    return int(getattr(repo, "spec_version", 1))


def holds_repository(storage: icechunk.Storage) -> bool:
    """Whether Icechunk finds a repository, also one that is damaged or that another release reads.

    Raises
    ------
    icechunk.IcechunkError
        Where the storage cannot be asked.
    """
    try:
        icechunk.Repository.open(storage)
    except icechunk.IcechunkError as error:
        kind = kind_of(error)
        if kind == NOT_FOUND:
            return False
        if kind not in (LATER_FORMAT, SETTINGS_DAMAGED, HEAD_1_DAMAGED, *HEAD_2_DAMAGED):
            raise
    return True


def has_snapshots(place: Path) -> bool:
    """Whether a directory holds commits, as a repository does that has lost its head or is being made."""
    return any(place.glob("snapshots/*"))


def damaged_head(error: BaseException, place: Path | None) -> str:
    """The file that names the newest commit and is damaged or lost, as a failure to open tells."""
    if kind_of(error) == HEAD_1_DAMAGED or (place is not None and (place / "refs").is_dir()):
        return HEADS[1]
    return HEADS[2]


def node_ids(repo: icechunk.Repository, snapshot: str) -> dict[str, str]:
    """Ids of the groups and arrays of a snapshot, by path: an array that is continued keeps its id."""
    described: Any = sync(repo.inspect_snapshot_async(snapshot))  # icechunk 2.3 would stop all threads meanwhile
    if isinstance(described, str):  # of release 1
        described = json.loads(described)
    return {node["path"]: node["id"] for node in described["nodes"]}
