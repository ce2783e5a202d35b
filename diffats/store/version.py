"""One version of a group: read it, fill it, finish it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol

import icechunk
import numpy as np
import xarray as xr
import zarr
from xarray.coders import CFTimedeltaCoder
from zarr.core.sync import sync

from diffats.errors import IntegrityError, StoreError, StoreNotFoundError
from diffats.icechunk_releases import reason
from diffats.store import schema
from diffats.store.reading import guarded, reading
from diffats.store.repository import METADATA_DAMAGE, Repository, commit_metadata, group_names, read_attrs, write_record
from diffats.store.schema import DIGESTS, OK, PENDING, RECORD, Array, Record
from diffats.store.shards import Fill, FillShard, ShardJob, WrittenShard

Progress = Callable[[int, int], None]

_LONGEST_SECONDS = 300.0  # between commits


class Mapper(Protocol):
    """What `Version.fill` needs of a cluster."""

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], *, total: int | None = None
    ) -> Generator[tuple[Any, Any]]:
        """Run a function on ``total`` items, some at a time; yield each with its result, as they complete."""


class Version:
    """One version of a group.

    Parameters
    ----------
    store
        Where it is.
    group
        Its group.
    snapshot
        Any snapshot that holds it.

    Raises
    ------
    StoreNotFoundError
        Where the snapshot has no such group.
    IntegrityError
        Where the snapshot is lost or damaged.
    """

    def __init__(self, store: Repository, group: str, snapshot: str) -> None:
        self.store = store
        self.group = group
        self.move(snapshot)

    def move(self, snapshot: str) -> None:
        """Look at another snapshot that holds this version."""
        where = self._where
        try:
            self._session = self.store.repo.readonly_session(snapshot_id=snapshot)
            record, self.attrs = read_attrs(self._session, self.group)
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"{where}: not in snapshot {snapshot}. See diffats inspect.") from error
        except METADATA_DAMAGE as error:
            raise IntegrityError(f"{where}: snapshot {snapshot} is damaged or lost ({reason(error)}).") from error
        self.snapshot = snapshot
        self._arrays: dict[str, Any] = {}
        self.record = Record.from_attr(record, where)
        if self.record.attributes not in ("", schema.attributes_digest(self.attrs)):
            raise IntegrityError(
                f"{where}: the attributes in snapshots/{snapshot} are not what was written. Bring the file back, or "
                "move the store aside and run the stages again."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to workers as an address."""
        return _reopen, (self.store.location, self.group, self.snapshot)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return f"<Version {self.group} {self.fingerprint[:16]} {self.snapshot} {state}>"

    @property
    def fingerprint(self) -> str:
        """What determines its content."""
        return self.record.fingerprint

    @property
    def complete(self) -> bool:
        """Whether all is written and nothing will change."""
        return self.record.complete

    @property
    def digest(self) -> str:
        """Digest of a complete version's names, dims, dtypes, variables' attributes and content; else empty."""
        return self.record.digest

    @property
    def n_shards(self) -> int:
        """How many shards there are; none in a group written whole."""
        return self.record.n_shards

    def bounds(self, shard: int) -> tuple[int, int]:
        """First sample of a shard and the one after its last."""
        return self.record.bounds(shard)

    def dataset(self, *, indexes: bool = True) -> xr.Dataset:
        """The content, lazily: nothing is read before it is indexed, and nothing read is kept.

        Parameters
        ----------
        indexes
            Read the coordinates along dims of their own name, that of all samples too, so that ``sel`` finds values.
        """
        store: Any = self._session.store
        with reading(self._where):
            ds = xr.open_dataset(
                store,
                engine="zarr",
                group=self.group,
                consolidated=False,
                cache=False,
                chunks=None,
                create_default_indexes=indexes,
                # A variable in days is a quantity, not a time span.
                decode_timedelta=CFTimedeltaCoder(decode_via_units=False),
            )
        ds.attrs.pop(RECORD)
        return guarded(ds.drop_vars(DIGESTS, errors="ignore"), self._where)

    @property
    def _where(self) -> str:
        return f"store {self.store.location}, group {self.group}"

    def raw(self, name: str) -> Any:
        """An array as stored, without decoding."""
        return schema.open_array(self._session.store, self.group, name)

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Array]:
        """Samples ``start`` to ``stop`` of some variables, as stored; all are read at once.

        Faster than `dataset` by a variable's fixed costs, which a worker would have for every shard.
        """
        wanted = list(names)
        with reading(f"{self._where}, samples {start} to {stop - 1}"):
            for name in wanted:
                if name not in self._arrays:
                    self._arrays[name] = self.raw(name).async_array
            arrays = sync(_together([self._arrays[name] for name in wanted], start, stop))
        return dict(zip(wanted, arrays, strict=True))

    def shard_digests(self) -> Array:
        """``(shards, variables, 32)`` bytes, zeros for a pending shard."""
        with reading(f"{self._where}, variable {DIGESTS}"):
            return np.asarray(self.raw(DIGESTS)[...])

    def content_digest(self) -> str:
        """What `digest` is, computed anew."""
        return schema.content_digest(self._session.store, self.group, self.record)

    def status(self) -> Array:
        """``(samples,)`` int8 flags; empty for a group written whole."""
        if not self.record.filled:
            return np.zeros(0, np.int8)
        with reading(f"{self._where}, variable status"):
            return np.asarray(self.raw("status")[...])

    def pending(self) -> list[int]:
        """Shards that no commit has yet."""
        if self.complete:
            return []
        return np.flatnonzero(~self.shard_digests().any(axis=(1, 2))).tolist()

    def summary(self) -> dict[str, Any]:
        """As in `Store.versions`, without tag and time."""
        status = self.status()
        done, failed = int((status != PENDING).sum()), int((status > OK).sum())
        return {**commit_metadata(self.group, self.record, done, failed, self.attrs), "snapshot": self.snapshot}

    def check_template(self, template: xr.Dataset) -> None:
        """Refuse a template that cannot continue this version.

        Raises
        ------
        StoreError
            Where names, dims, sizes or dtypes differ.
        """
        mine = self.dataset()
        for name in self.record.filled or ():
            expected = _described(mine.get(name))
            got = _described(template.get(name))
            if got != expected:
                raise StoreError(
                    f"store {self.store.location}, group {self.group}, variable {name}: the template has {got}, the "
                    f"version of the same fingerprint has {expected}. Begin anew with --restart."
                )

    def fill(
        self,
        function: Fill,
        cluster: Mapper,
        *,
        commit_every: int = 4096,
        commit_seconds: float = 10.0,
        progress: Progress | None = None,
    ) -> None:
        """Compute and commit what is pending.

        Parameters
        ----------
        function
            Called on workers with the first sample and the one after the last; returns the filled variables, whole
            shards in the stored dtypes, and ``status``.
        cluster
            Has the workers.
        commit_every, commit_seconds
            A commit follows after so many shards, or so much time, which is what a crash loses. In a run of more than a
            hundred times as long, it follows after a hundredth of the run so far (but 5 minutes at most): some
            hundreds of commits in a day, and their number does not make the history useless.
        progress
            Called with samples done and failed, at the start and after each shard.

        Raises
        ------
        StoreError
            Where the function returns something else than whole shards of the template.
        Exception
            What the function raises; shards that were complete by then are committed.
        """
        if self.complete:
            return
        with self.store.writing() as base, contextlib.ExitStack() as stack:
            self.check_at_head(base)
            self.move(base.snapshot_id)
            committer = _Committer(self, commit_every, commit_seconds, progress)
            stack.callback(committer.commit)
            pending = self.pending()
            made = cluster.map(FillShard(function), self._jobs(base, pending), total=len(pending))
            results = stack.enter_context(contextlib.closing(made))
            for job, written in results:
                committer.add(job, written)

    def _jobs(self, base: icechunk.Session, pending: Iterable[int]) -> Iterator[ShardJob]:
        """The pending shards, each with a fork of its own (a fork that two calls share would mix their changes)."""
        for shard in pending:
            start, stop = self.bounds(shard)
            yield ShardJob(base.fork(), self.group, self.record.filled, shard, start, stop, self.record.shard)

    def finish(self, attrs: Mapping[str, Any] | None = None) -> Version:
        """Declare the version complete and tag it; nothing where it is.

        Parameters
        ----------
        attrs
            JSON-able attributes of the group, besides those it has.

        Raises
        ------
        StoreError
            Where shards are pending.
        """
        if self.complete:
            return self
        pending = self.pending()
        where = f"store {self.store.location}, group {self.group}"
        if pending:
            raise StoreError(
                f"{where}: {len(pending)} of {self.n_shards} shards are pending, the first is {pending[0]}. "
                "Fill them before finish."
            )
        with self.store.writing() as session:
            self.check_at_head(session)
            counts = self.summary()
            zarr.open_group(session.store, path=self.group, mode="r+", zarr_format=3).attrs.update(schema.plain(attrs))
            content = schema.content_digest(session.store, self.group, self.record)
            record = self.record.completed(content, read_attrs(session, self.group)[1])
            write_record(session, self.group, record)
            metadata = commit_metadata(self.group, record, counts["done"], counts["failed"], self.attrs)
            snapshot = self.store.commit(session, f"{self.group}: complete", metadata)
            self.store.tag(self.group, self.fingerprint, snapshot)
        self.move(snapshot)
        return self

    def check_at_head(self, session: icechunk.Session) -> None:
        """Refuse to write into a version that another one has replaced."""
        known = group_names(session)
        record = read_attrs(session, self.group)[0] if self.group in known else {}
        if record != self.record.to_attr():
            raise StoreError(
                f"store {self.store.location}, group {self.group}: another version has taken the place of "
                f"{self.fingerprint[:16]}. Run the command again."
            )
        if session.snapshot_id == self.snapshot or not self.record.filled:
            return
        theirs = np.asarray(schema.open_array(session.store, self.group, DIGESTS)[...])
        if not np.array_equal(theirs, self.shard_digests()):  # no lock reaches another machine
            raise StoreError(
                f"store {self.store.location}, group {self.group}: another process, perhaps on another machine, has "
                "written shards of it meanwhile. Let one write at a time, and run the command again."
            )


class _Committer:
    """Collects written shards and commits them with their status and digests, some at a time."""

    def __init__(self, version: Version, every: int, seconds: float, progress: Progress | None) -> None:
        self.version = version
        self.every, self.seconds, self.progress = every, seconds, progress
        self.status = version.status()
        self.digests = version.shard_digests()
        self.done, self.failed = int((self.status != PENDING).sum()), int((self.status > OK).sum())
        self.shards: list[int] = []  # written and not committed
        self.fork: icechunk.ForkSession | None = None  # all their chunks
        self.started = self.last = time.monotonic()
        self._tell()

    def add(self, job: ShardJob, written: WrittenShard) -> None:
        """Take one shard, which was pending; commit if it is time."""
        self.shards.append(job.shard)
        if self.fork is None:
            self.fork = written.fork
        else:
            self.fork.merge(written.fork)  # now, because every fork that waits takes some 100 KB
        known = self.status[job.start : job.stop]  # of samples that the version had before it grew
        self.done += int((known == PENDING).sum())
        self.failed += int((written.status > OK).sum()) - int((known > OK).sum())
        self.status[job.start : job.stop] = written.status
        self.digests[job.shard] = written.digests
        if len(self.shards) >= self.every or time.monotonic() - self.last >= self._pause():
            self.commit()
        self._tell()

    def _pause(self) -> float:
        """Seconds between commits."""
        return max(self.seconds, min(_LONGEST_SECONDS, 0.01 * (self.last - self.started)))

    def commit(self) -> None:
        """Commit what has come since the last commit."""
        self.last = time.monotonic()
        if self.fork is None:
            return
        # Taken first: what an interrupt leaves here would be committed a second time at the end.
        fork, shards, version = self.fork, self.shards, self.version
        self.fork, self.shards = None, []
        with version.store.writing() as session:
            version.check_at_head(session)
            session.merge(fork)
            self._write(session, "status", self.status, [version.bounds(shard)[0] for shard in shards])
            self._write(session, DIGESTS, self.digests, shards)
            metadata = commit_metadata(version.group, version.record, self.done, self.failed, version.attrs)
            message = f"{version.group}: {len(shards)} of {version.n_shards} shards"
            version.move(version.store.commit(session, message, {**metadata, "shards": sorted(shards)}))

    def _write(self, session: icechunk.Session, name: str, values: Array, touched: Iterable[int]) -> None:
        """Write the whole chunks that hold some entries."""
        array = schema.open_array(session.store, self.version.group, name, write=True)
        size = array.chunks[0]
        for chunk in sorted({entry // size for entry in touched}):
            array[chunk * size : (chunk + 1) * size] = values[chunk * size : (chunk + 1) * size]

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.failed)


async def _together(arrays: list[Any], start: int, stop: int) -> list[Array]:
    return list(await asyncio.gather(*(array.getitem(slice(start, stop)) for array in arrays)))


def _reopen(location: str, group: str, snapshot: str) -> Version:
    return Version(Repository.open(location), group, snapshot)


def _described(array: xr.DataArray | None) -> str:
    if array is None:
        return "nothing"
    return f"{array.dtype} ({', '.join(f'{dim}={size}' for dim, size in array.sizes.items())})"
