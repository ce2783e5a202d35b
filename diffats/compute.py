"""Dask over shards: one way to run a function on many items, on this machine or on a cluster.

Work is one call per shard, submitted a few at a time, so that a run of any length holds little memory: neither Dask's
graph nor what waits to be collected grows with what is done or to do. Local workers are threads of this process (the
kernels are BLAS, which releases the interpreter lock) or processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import dask.config
import distributed
import threadpoolctl
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from diffats.config import Compute
from diffats.errors import DiffatsError, InputError
from diffats.messages import MESSAGES
from diffats.progress import waiting

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONNECT_SECONDS = 30
_WORKER_SECONDS = 60
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8  # of mallopt(3)
_KEPT_BYTES, _OLD_LIMIT = 2**27, 2**25
_LOOPBACK = "127.0.0.1:0"
_MOST_IN_TASK, _TASKS_A_SLOT = 8, 16  # items of a task, at most; tasks of a worker, at least, where they have several
_SETTINGS: dict[str, Any] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # Otherwise a profile of each second of the last hour is kept, some tens of MB.
    "distributed.worker.profile.enabled": False,
    # Nothing waits on a worker that could be spilled, and one that pauses above a share of its memory, which Python
    # does not give back, would pause for ever. Its nanny still ends it at the limit.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # It drops copies of what is shared, for which the next task must ask another worker.
    "distributed.scheduler.active-memory-manager.start": False,
}


class Cluster:
    """Workers that run one function on many items; they start at the first use.

    Parameters
    ----------
    compute
        Where the work runs, and on how many workers.

    Examples
    --------
    >>> with open_cluster(Compute(workers=2)) as cluster:
    ...     sorted(result for item, result in cluster.map(abs, [-3, 1, -2]))
    [1, 2, 3]
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self._resources = contextlib.ExitStack()
        self._client: Any = None
        self._starting = threading.Lock()

    @property
    def in_process(self) -> bool:
        """Whether the workers are threads of this process."""
        return self.compute.scheduler == "local" and not self.compute.processes

    def start(self) -> None:
        """Start or reach the workers now rather than at the first use.

        Raises
        ------
        InputError
            Where no scheduler answers at the given address, or it has no worker.
        """
        with self._starting:
            if self._client is None:
                local = self.compute.scheduler == "local"
                with waiting("starting Dask" if local else f"connecting to Dask at {self.compute.scheduler}"):
                    self._client = self._start_local() if local else self._connect()

    def close(self) -> None:
        """Stop what was started; an external scheduler and its workers stay up."""
        with self._starting:
            self._client = None
            self._resources.close()

    @property
    def slots(self) -> int:
        """How many items run at the same time."""
        self.start()
        return max(1, sum(int(threads) for threads in self._client.nthreads().values()))

    def map(
        self,
        function: Callable[..., Result],
        items: Iterable[Item],
        *,
        ordered: bool = False,
        shared: Any = None,
        in_flight: int | None = None,
        total: int | None = None,
    ) -> Generator[tuple[Item, Result]]:
        """Run ``function`` on each item; yield ``(item, result)`` as they complete.

        Parameters
        ----------
        function
            Importable on the workers, which need nothing but ``diffats`` installed.
        items
            Taken from lazily: at most ``in_flight`` tasks are submitted and not yet yielded.
        ordered
            Yield in the order of the items, whichever completes first. A slow item then holds up the others, rather
            than let their results pile up.
        shared
            Where given, ``function`` gets it as ``shared``. It goes to each worker process once, and to threads of this
            process as it is, so it must not be changed.
        in_flight
            Where left out, four for each worker, and two where ``ordered``.
        total
            How many items there are, to be given where results are small: then a task has several items, as long as
            there are many tasks for each worker. Dask needs milliseconds for a task, on one core for all workers.

        Raises
        ------
        Exception
            The first error of a call, as it was raised there; what has not started is cancelled.
        InputError
            Where the scheduler or its workers lack this library.
        DiffatsError
            Where workers die again and again, or the scheduler goes away.
        """
        self.start()
        limit = in_flight or (2 if ordered else 4) * self.slots
        batch = min(_MOST_IN_TASK, max(1, (total or 0) // (_TASKS_A_SLOT * self.slots)))
        with contextlib.ExitStack() as stack:
            if self.in_process:
                # Process-wide, so set once around the loop: set by each call, overlapping calls would restore wrongly.
                stack.enter_context(threadpoolctl.threadpool_limits(1, user_api="blas"))
                keep_memory()
            try:
                yield from self._stream(function, items, limit, batch, ordered, shared)
            except KilledWorker as error:
                self._wait_for_replacements()
                raise DiffatsError(
                    f"a worker process died repeatedly in the same piece of work, mostly for lack of memory "
                    f"(limit {self.compute.memory} a worker). Lower compute.shard_samples or raise compute.memory."
                ) from error
            except RuntimeError as error:
                if not MESSAGES["other environment"].is_in(error):
                    raise
                raise InputError(
                    f'the Dask scheduler or a worker at "{self.compute.scheduler}" cannot import the work '
                    f"({error.__cause__ or error}). In their environments, install this release of diffats and the "
                    "same versions of dask and distributed."
                ) from error
            except distributed.client.FutureCancelledError as error:
                if self._answers():  # what was shared with workers that have died is lost
                    raise DiffatsError(
                        f"worker processes died, mostly for lack of memory (limit {self.compute.memory} a worker). "
                        "Run the command again: committed shards are kept. Lower compute.shard_samples or raise "
                        "compute.memory if it happens again."
                    ) from error
                raise self._lost(error) from error
            except CommClosedError as error:
                raise self._lost(error) from error

    def _answers(self) -> bool:
        return self._client is not None and self._client.status == "running"

    def _lost(self, error: Exception) -> DiffatsError:
        return DiffatsError(
            f'lost the Dask scheduler at "{self.compute.scheduler}" during the work ({error}). '
            "Run the command again when it is back: committed shards are kept."
        )

    def _wait_for_replacements(self) -> None:
        """Let dead worker processes come up again: closing them half started would print their tracebacks."""
        if self.compute.scheduler == "local":
            with contextlib.suppress(TimeoutError):
                self._client.wait_for_workers(self.compute.workers, timeout=_CONNECT_SECONDS)

    def _stream(
        self, function: Callable[..., Result], items: Iterable[Item], limit: int, batch: int, ordered: bool, shared: Any
    ) -> Generator[tuple[Item, Result]]:
        call = _Each(function if self.in_process else _OneBlasThread(function))
        # In a list, because what is scattered is taken apart. Broadcast, so that no worker asks another for it.
        extra = {} if shared is None else {"shared": self._client.scatter([shared], broadcast=True, hash=False)[0]}
        waiting, running = iter(items), dict[Any, list[Item]]()
        batches = iter(lambda: list(itertools.islice(waiting, batch)), [])
        completed: Any = distributed.as_completed(loop=self._client.loop)  # type: ignore[no-untyped-call]

        def submit() -> None:
            chosen = list(itertools.islice(batches, limit - len(running)))
            if chosen:
                futures = self._client.map(call, chosen, pure=False, **extra)
                running.update(zip(futures, chosen, strict=True))
                if not ordered:
                    completed.update(futures)

        submit()
        try:
            while running:
                future = next(iter(running)) if ordered else next(completed)
                results = future.result()
                some = running.pop(future)
                del future  # the results leave the worker now, not when the loop comes round
                # Several at a time: Dask needs longer for a submission than for a task in it.
                if len(running) <= limit - max(1, limit // 4):
                    submit()
                for item in some:
                    yield item, results.pop(0)
        finally:
            self._client.cancel(list(running))

    def _start_local(self) -> Any:
        compute = self.compute
        layout = (
            {"n_workers": compute.workers, "threads_per_worker": 1, "memory_limit": compute.memory_bytes}
            if compute.processes
            # One in-process worker with many threads. No limit: Dask would measure this whole process, not the worker.
            else {"n_workers": 1, "threads_per_worker": compute.workers, "memory_limit": None}
        )
        # What a site or a user has set for clusters (encryption, preloads, a folder for scratch) is not meant for this
        # machine's threads and processes, and could stop them, also while they run.
        self._resources.enter_context(dask.config.set(dask.config.merge(*dask.config.defaults)))
        self._resources.enter_context(dask.config.set(_SETTINGS))
        cluster = distributed.LocalCluster(  # type: ignore[no-untyped-call]
            **layout,
            processes=compute.processes,
            host="127.0.0.1" if compute.processes else None,
            # Dask always opens a web server; without an address, one that other machines reach.
            worker_dashboard_address=_LOOPBACK,
            scheduler_kwargs={"dashboard": False, "dashboard_address": _LOOPBACK},
            silence_logs=logging.CRITICAL,
        )
        self._resources.enter_context(cluster)
        log.debug("local Dask cluster with %d workers at %s", compute.workers, cluster.scheduler_address)
        client = distributed.Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
        return self._resources.enter_context(client)

    def _connect(self) -> Any:
        address = self.compute.scheduler
        # What it prints of a scheduler that has gone, with tracebacks, is raised as our error.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        try:
            client = distributed.Client(  # type: ignore[no-untyped-call]
                address, timeout=_CONNECT_SECONDS, set_as_default=False
            )
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: Dask's settings ask for TLS
            raise InputError(
                f'no Dask scheduler answers at "{address}" ({error}). Start one with "dask scheduler", '
                'correct compute.scheduler, or set it to "local".'
            ) from error
        self._resources.enter_context(client)
        try:
            client.wait_for_workers(1, timeout=_WORKER_SECONDS)
        except TimeoutError as error:
            self._resources.close()
            raise InputError(
                f'the Dask scheduler at "{address}" has no worker. Start one with "dask worker {address}" '
                "in an environment where diffats is installed."
            ) from error
        return client


@functools.cache
def keep_memory() -> None:
    """Have this process keep memory that it has freed, for the next shard, where its C library can.

    glibc gives large blocks back at once, and new ones come from the system page by page: a third of the time of a
    shard of 16 MiB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)  # each pool of a thread would keep its own
        # glibc before 2.35 takes at most the second; to set only the other one would switch its own adapting off
        if mallopt(_MMAP_THRESHOLD, _KEPT_BYTES) or mallopt(_MMAP_THRESHOLD, _OLD_LIMIT):
            mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


class _Each:
    """A function of one item, for all items of a task."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, items: list[Any], **shared: Any) -> list[Any]:
        return [self.function(item, **shared) for item in items]


class _OneBlasThread:
    """A function that leaves the other cores to the other workers of its machine."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, item: Any, **shared: Any) -> Any:
        # Not undone: in a worker with several threads the end of one call must not free the BLAS of another.
        threadpoolctl.threadpool_limits(1, user_api="blas")
        keep_memory()
        return self.function(item, **shared)


_open: dict[tuple[object, ...], tuple[Cluster, int]] = {}
_opening = threading.Lock()


@contextlib.contextmanager
def open_cluster(compute: Compute) -> Iterator[Cluster]:
    """Workers for a ``with`` block; a block inside it with the same setting shares them.

    Parameters
    ----------
    compute
        Where the work runs. Nothing starts before the first use.

    Examples
    --------
    >>> with open_cluster(Compute()) as outer, open_cluster(Compute()) as inner:
    ...     inner is outer
    True
    """
    key = (compute.scheduler, compute.workers, compute.processes, compute.memory)
    with _opening:
        cluster, users = _open.get(key) or (Cluster(compute), 0)
        _open[key] = (cluster, users + 1)
    try:
        yield cluster
    finally:
        with _opening:
            users = _open[key][1] - 1
            if users:
                _open[key] = (cluster, users)
            else:
                del _open[key]
        if not users:
            cluster.close()
