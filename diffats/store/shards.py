"""What a worker does: compute one shard, check it, write its chunks through a fork of the session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import icechunk
import numpy as np
from zarr import AsyncArray
from zarr.core.sync import sync
from zarr.storage import StorePath

from diffats.errors import StoreError
from diffats.icechunk_releases import quiet_icechunk
from diffats.store.schema import PENDING, STATUS, Array, array_digest, open_array

#: Computes the samples ``start`` to ``stop``: each filled variable, and ``status``.
Fill = Callable[[int, int], Mapping[str, Array]]


@dataclass(frozen=True)
class ShardJob:
    """One shard to be filled."""

    fork: icechunk.ForkSession
    group: str
    variables: tuple[str, ...]
    shard: int
    start: int
    stop: int
    size: int
    """Samples in a full shard, which is one chunk."""

    @property
    def where(self) -> str:
        """For messages."""
        return f"group {self.group}, shard {self.shard} (samples {self.start} to {self.stop - 1})"


@dataclass(frozen=True)
class WrittenShard:
    """A shard whose chunks are stored, but not yet part of any version."""

    fork: icechunk.ForkSession
    digests: Array
    """``(variables, 32)`` bytes."""
    status: Array
    """``(samples,)`` int8."""


class FillShard:
    """The function that workers call; carries the stage's own.

    Parameters
    ----------
    function
        Computes one shard.
    """

    def __init__(self, function: Fill) -> None:
        self.function = function

    def __call__(self, job: ShardJob) -> WrittenShard:
        """Compute, check and write one shard.

        Raises
        ------
        StoreError
            Where the function returns other variables, shapes or dtypes than the template has.
        """
        quiet_icechunk()
        arrays = dict(self.function(job.start, job.stop))
        status = _checked_status(arrays.pop("status", None), job)
        if set(arrays) != set(job.variables):
            raise StoreError(
                f"{job.where}: got variables {sorted(arrays)}, expected {list(job.variables)} and status, as in the "
                "template."
            )
        digests = write_shard(job, {name: np.asarray(arrays[name]) for name in job.variables})
        return WrittenShard(job.fork, np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1), status)


def write_shard(job: ShardJob, arrays: Mapping[str, Array]) -> list[bytes]:
    """Write the variables of a whole shard; return their digests.

    Parameters
    ----------
    job
        The shard.
    arrays
        By variable: ``(stop - start, ...)``, exactly one shard, in the stored dtype.

    Raises
    ------
    StoreError
        Where that is not so: nothing is written then.
    """
    known = _variables(_Group(job.fork, job.fork.snapshot_id, job.group, job.variables))
    targets = {
        name: AsyncArray(metadata, StorePath(job.fork.store, f"{job.group}/{name}"), config)
        for name, (metadata, config) in known.items()
        if name in arrays
    }
    for name, values in arrays.items():
        _check(job, name, values, targets[name])
    sync(_write(job, [(targets[name], values) for name, values in arrays.items()]))
    return [array_digest(values) for values in arrays.values()]


async def _write(job: ShardJob, pairs: list[tuple[Any, Array]]) -> None:
    """All variables at once: each waits for the storage, not for the others."""
    whole = slice(job.start, job.stop)
    # The first alone, because it makes the fork read its snapshot.
    for some in (pairs[:1], pairs[1:]):
        await asyncio.gather(*(target.setitem(whole, values) for target, values in some))


@dataclass(frozen=True)
class _Group:
    """The variables of a group in a snapshot, read through whichever fork asks first."""

    fork: icechunk.ForkSession = field(compare=False)
    snapshot: str
    name: str
    variables: tuple[str, ...]


@lru_cache(maxsize=8)
def _variables(group: _Group) -> dict[str, tuple[Any, Any]]:
    """Metadata of each variable, and how it is written; kept per process, since every shard needs them."""
    opened = {name: open_array(group.fork.store, group.name, name, write=True) for name in group.variables}
    return {name: (array.metadata, array.async_array.config) for name, array in opened.items()}


def _check(job: ShardJob, name: str, values: Array, target: Any) -> None:
    where = f"{job.where}, variable {name}"
    n, full = target.shape[0], target.chunks[0]
    whole = (job.size, min(job.size, n))  # the second where it can grow no more
    if job.start % job.size or job.stop != min(job.start + job.size, n) or full not in whole:
        raise StoreError(
            f"{where}: not a whole shard of {full} samples. Two workers writing one chunk would lose data: "
            "write from a multiple of the shard size to the next, or to the end."
        )
    expected = (job.stop - job.start, *target.shape[1:])
    if values.shape != expected:
        raise StoreError(
            f"{where}: got shape {values.shape}, expected {expected}. Return the whole shard in the template's dims."
        )
    if values.dtype != target.dtype:
        raise StoreError(
            f"{where}: got dtype {values.dtype}, expected {target.dtype}. Cast it, or change the template's dtype."
        )


def _checked_status(status: Array | None, job: ShardJob) -> Array:
    expected = job.stop - job.start
    if status is None or np.shape(status) != (expected,):
        got = "none" if status is None else f"shape {np.shape(status)}"
        raise StoreError(f"{job.where}: got status of {got}, expected ({expected},). Return a flag for each sample.")
    flags = np.asarray(status).astype(np.int8)
    known = [flag for flag in STATUS.values() if flag != PENDING]
    if not np.isin(flags, known).all():
        wrong = np.unique(flags[~np.isin(flags, known)]).tolist()
        raise StoreError(f"{job.where}: got status {wrong}, expected one of {known}.")
    return flags
