"""Read stored content back and compare it with its digests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import icechunk
import numpy as np

from diffats.icechunk_releases import node_ids, reason
from diffats.store import schema
from diffats.store.reading import DAMAGE
from diffats.store.schema import Array
from diffats.store.version import Version


@dataclass(frozen=True)
class Problem:
    """Something stored is not what was written."""

    group: str
    snapshot: str
    reason: str
    variable: str | None = None
    shard: int | None = None
    samples: tuple[int, int] | None = None
    """The first and the one after the last."""

    def __str__(self) -> str:
        if not self.snapshot:
            return self.reason
        where = [f"group {self.group} ({self.snapshot})"]
        if self.shard is not None and self.samples is not None:
            where.append(f"shard {self.shard} (samples {self.samples[0]} to {self.samples[1] - 1})")
        if self.variable is not None:
            where.append(f"variable {self.variable}")
        return f"{', '.join(where)}: {self.reason}"


def verify_versions(versions: Iterable[Version], progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Everything that is damaged in some versions. What several share is read once, unless it is damaged.

    Parameters
    ----------
    versions
        Opened afresh, so that nothing comes from memory.
    progress
        Called with shards read and problems so far.
    """
    problems: list[Problem] = []
    done, good = 0, _Good()
    for version in versions:
        good.look_at(version)
        problems += _static(version, good)
        for shard in range(version.n_shards):
            problems += _shard(version, shard, good)
            done += 1
            if progress is not None:
                progress(done, len(problems))
        problems += _whole(version, problems)
    return problems


class _Good:
    """What was read and found good.

    An array that is continued in a later version is the same node of Icechunk's, and no shard of it is written twice
    with the same content: the same node, shard and digest are the same chunk.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}
        self._digests: dict[str, Array] = {}  # by node, (shards, 32) bytes; zeros where nothing is known

    def look_at(self, version: Version) -> None:
        """Go on with this version."""
        try:
            self._nodes = node_ids(version.store.repo, version.snapshot)
        except icechunk.IcechunkError:  # what is damaged shows when it is read
            self._nodes = {}

    def has(self, version: Version, name: str, shard: int | None, digest: bytes) -> bool:
        """Whether a shard (None: all) of a variable is known to be good."""
        known = self._digests.get(self._nodes.get(f"/{version.group}/{name}", ""))
        return known is not None and (shard or 0) < len(known) and known[shard or 0].tobytes() == digest

    def add(self, version: Version, name: str, shard: int | None, digest: bytes) -> None:
        """Remember that it is."""
        node = self._nodes.get(f"/{version.group}/{name}")
        if node is None:
            return
        known = self._digests.get(node, np.zeros((0, len(digest)), np.uint8))
        more = max(1, version.n_shards) - len(known)
        if more > 0:
            known = np.concatenate([known, np.zeros((more, len(digest)), np.uint8)])
        known[shard or 0] = np.frombuffer(digest, np.uint8)
        self._digests[node] = known


def _static(version: Version, good: _Good) -> Iterator[Problem]:
    """Variables written with the template."""
    for name, expected in version.record.static.items():
        yield from _variable(version, name, None, bytes.fromhex(expected), good)


def _variable(version: Version, name: str, shard: int | None, expected: bytes, good: _Good) -> Iterator[Problem]:
    if good.has(version, name, shard, expected):
        return
    bounds = None if shard is None else version.bounds(shard)
    got = _digest(version, name, bounds)
    if got == expected.hex():
        good.add(version, name, shard, expected)
    else:
        yield Problem(version.group, version.snapshot, _difference(got), name, shard, bounds)


def _shard(version: Version, shard: int, good: _Good) -> Iterator[Problem]:
    bounds = version.bounds(shard)
    try:
        expected = np.asarray(version.raw(schema.DIGESTS)[shard])
    except DAMAGE as error:
        text = f"unreadable ({reason(error)})"
        yield Problem(version.group, version.snapshot, text, schema.DIGESTS, shard, bounds)
        return
    if not expected.any():
        return  # pending
    for name, digest in zip(version.record.filled, expected, strict=True):
        yield from _variable(version, name, shard, digest.tobytes(), good)


def _whole(version: Version, known: Iterable[Problem]) -> Iterator[Problem]:
    """What only the digest of the whole version covers: status, and the variables' attributes."""
    mine = (version.group, version.snapshot)
    if not version.complete or any((problem.group, problem.snapshot) == mine for problem in known):
        return
    try:
        same = version.content_digest() == version.digest
        text = "status or attributes differ from the version's digest"
    except DAMAGE as error:
        same, text = False, f"status or attributes are unreadable ({reason(error)})"
    if not same:
        yield Problem(version.group, version.snapshot, text)


def _digest(version: Version, name: str, bounds: tuple[int, int] | None) -> str:
    """Digest of what is read, or what went wrong."""
    try:
        array = version.raw(name)
        values = array[...] if bounds is None else array[bounds[0] : bounds[1]]
        return schema.array_digest(np.asarray(values)).hex()
    except DAMAGE as error:
        return f"unreadable ({reason(error)})"


def _difference(got: str) -> str:
    return got if got.startswith("unreadable") else "content differs from its digest"
