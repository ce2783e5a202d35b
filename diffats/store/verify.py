"""Read stored content back and compare it with its digests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import icechunk
import numpy as np

from diffats.store import schema
from diffats.store.location import reason
from diffats.store.version import Version

#: What a damaged file raises on its way through Icechunk, the codecs and NumPy.
_DAMAGE = (icechunk.IcechunkError, OSError, RuntimeError, ValueError, KeyError)


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
    """Everything that is damaged in some versions.

    Parameters
    ----------
    versions
        Opened afresh, so that nothing comes from memory.
    progress
        Called with shards read and problems so far.
    """
    problems: list[Problem] = []
    done = 0
    for version in versions:
        problems += _static(version)
        for shard in range(version.n_shards):
            problems += _shard(version, shard)
            done += 1
            if progress is not None:
                progress(done, len(problems))
        problems += _whole(version, problems)
    return problems


def _static(version: Version) -> Iterator[Problem]:
    """Variables written with the template."""
    for name, expected in version.record.static.items():
        got = _digest(version, name, None)
        if got != expected:
            yield Problem(version.group, version.snapshot, _difference(got), name)


def _shard(version: Version, shard: int) -> Iterator[Problem]:
    bounds = version.bounds(shard)
    try:
        expected = np.asarray(version.raw(schema.DIGESTS)[shard])
    except _DAMAGE as error:
        text = f"unreadable ({reason(error)})"
        yield Problem(version.group, version.snapshot, text, schema.DIGESTS, shard, bounds)
        return
    if not expected.any():
        return  # pending
    for name, digest in zip(version.record.filled, expected, strict=True):
        got = _digest(version, name, bounds)
        if got != digest.tobytes().hex():
            yield Problem(version.group, version.snapshot, _difference(got), name, shard, bounds)


def _whole(version: Version, known: Iterable[Problem]) -> Iterator[Problem]:
    """What only the digest of the whole version covers: status, and the variables' attributes."""
    if not version.complete or any(problem.group == version.group for problem in known):
        return
    try:
        same = version.content_digest() == version.digest
        text = "status or attributes differ from the version's digest"
    except _DAMAGE as error:
        same, text = False, f"status or attributes are unreadable ({reason(error)})"
    if not same:
        yield Problem(version.group, version.snapshot, text)


def _digest(version: Version, name: str, bounds: tuple[int, int] | None) -> str:
    """Digest of what is read, or what went wrong."""
    try:
        array = version.raw(name)
        values = array[...] if bounds is None else array[bounds[0] : bounds[1]]
        return schema.array_digest(np.asarray(values)).hex()
    except _DAMAGE as error:
        return f"unreadable ({reason(error)})"


def _difference(got: str) -> str:
    return got if got.startswith("unreadable") else "content differs from its digest"
