"""What a worker does: compute one shard, check it, write its chunks through a fork of the session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import icechunk
import numpy as np

from diffats.errors import StoreError
from diffats.store.location import quiet_icechunk
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
        digests = [write_shard(job, name, np.asarray(arrays[name])) for name in job.variables]
        return WrittenShard(job.fork, np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1), status)


def write_shard(job: ShardJob, name: str, values: Array) -> bytes:
    """Write one variable of a whole shard; return its digest.

    Parameters
    ----------
    job
        The shard.
    name
        The variable.
    values
        ``(stop - start, ...)``, exactly one shard, in the stored dtype.

    Raises
    ------
    StoreError
        Where that is not so: nothing is written then.
    """
    array = open_array(job.fork.store, job.group, name, write=True)
    where = f"{job.where}, variable {name}"
    n, full = array.shape[0], array.chunks[0]
    if job.start % job.size or job.stop != min(job.start + job.size, n) or full != min(job.size, n):
        raise StoreError(
            f"{where}: not a whole shard of {full} samples. Two workers writing one chunk would lose data: "
            "write from a multiple of the shard size to the next, or to the end."
        )
    expected = (job.stop - job.start, *array.shape[1:])
    if values.shape != expected:
        raise StoreError(
            f"{where}: got shape {values.shape}, expected {expected}. Return the whole shard in the template's dims."
        )
    if values.dtype != array.dtype:
        raise StoreError(
            f"{where}: got dtype {values.dtype}, expected {array.dtype}. Cast it, or change the template's dtype."
        )
    array[job.start : job.stop] = values
    return array_digest(values)


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
