from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
import xarray as xr

import diffats
from diffats.compute import open_cluster
from diffats.config import Compute
from diffats.errors import DiffatsError, InputError
from diffats.store import Store, status_attrs

THREADS, PROCESSES = Compute(workers=2), Compute(workers=2, processes=True)


def blas_threads(_: int) -> list[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def process(_: int) -> int:
    return os.getpid()


def die(_: int) -> None:
    os._exit(1)


def identity(_: int, *, shared: dict[str, np.ndarray]) -> int:
    return id(shared)


def default(_: int, *, shared: object = None) -> object:
    return shared


def process_and_identity(_: int, *, shared: dict[str, np.ndarray]) -> tuple[int, int]:
    return os.getpid(), id(shared)


def total(_: int, *, shared: dict[str, np.ndarray]) -> float:
    return float(shared["sum"].sum())


class Odd(Exception):
    """An error of a stage."""


def odd(x: int) -> int:
    if x % 2:
        raise Odd(x)
    return x


@pytest.fixture(scope="module")
def processes() -> Iterator[Compute]:
    with open_cluster(PROCESSES) as cluster:
        cluster.start()
        yield PROCESSES


def test_every_item_comes_back_with_its_result():
    with open_cluster(THREADS) as cluster:
        assert dict(cluster.map(lambda x: x * x, range(20))) == {x: x * x for x in range(20)}
        assert list(cluster.map(abs, [])) == []
        assert cluster.slots == 2


def test_items_are_taken_a_few_at_a_time():
    taken: list[int] = []
    with open_cluster(THREADS) as cluster:
        for number, _ in enumerate(cluster.map(abs, (taken.append(x) or x for x in range(50))), start=1):
            assert len(taken) <= number + 8
        taken.clear()
        results = cluster.map(abs, (taken.append(x) or x for x in range(50)), in_flight=7)
        next(results)
        assert len(taken) == 8
        results.close()


def test_in_order_a_slow_item_holds_up_the_others():
    taken: list[int] = []

    def function(x: int) -> int:
        time.sleep(0.3 if x == 0 else 0)
        return x

    with open_cluster(THREADS) as cluster:
        results = cluster.map(function, (taken.append(x) or x for x in range(50)), ordered=True)
        assert next(results) == (0, 0)
        assert len(taken) == 5  # four in flight, and one for the item that is done
        assert list(results) == [(x, x) for x in range(1, 50)]
        assert list(cluster.map(function, [], ordered=True)) == []


def test_what_is_shared_goes_to_threads_as_it_is_and_to_processes_once(processes):
    thing = {"sum": np.arange(6.0)}
    with open_cluster(THREADS) as cluster:
        assert {found for _, found in cluster.map(identity, range(6), shared=thing)} == {id(thing)}
        assert dict(cluster.map(default, [1, 2])) == {1: None, 2: None}
    with open_cluster(processes) as cluster:
        found = {(pid, seen) for _, (pid, seen) in cluster.map(process_and_identity, range(20), shared=thing)}
        assert len(found) == len({pid for pid, _ in found}) <= 2
        assert {total for _, total in cluster.map(total, range(4), shared=thing, ordered=True)} == {15.0}


def test_an_error_comes_as_it_was_raised_and_ends_the_work():
    calls: list[int] = []

    def function(x: int) -> int:
        calls.append(x)
        time.sleep(0.01)
        return odd(x)

    with open_cluster(THREADS) as cluster:
        with pytest.raises(Odd):
            list(cluster.map(function, [0, *range(1, 1000, 2)], in_flight=2))
        assert len(calls) < 10
        assert dict(cluster.map(abs, [1])) == {1: 1}


def test_a_block_inside_shares_the_workers():
    with open_cluster(THREADS) as outer:
        outer.start()
        with open_cluster(THREADS.model_copy(update={"device": "cpu"})) as inner:
            assert inner is outer
        assert dict(outer.map(abs, [1])) == {1: 1}
        with open_cluster(Compute(workers=1)) as other:
            assert other is not outer


def test_one_blas_thread_for_each_worker_and_as_before_afterwards():
    before = blas_threads(0)
    with open_cluster(THREADS) as cluster:
        found = [threads for _, threads in cluster.map(blas_threads, range(4))]
    assert found
    assert all(set(threads) == {1} for threads in found)
    assert blas_threads(0) == before


def test_local_workers_listen_on_loopback_only():
    def listening() -> set[str]:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        mine = {os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and fd.exists()}
        rows = [line.split() for line in lines]
        return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}

    if not Path("/proc/net/tcp").exists():
        pytest.skip("needs Linux")
    with open_cluster(THREADS) as cluster:
        cluster.start()
        assert listening() <= {"0100007F"}


def test_worker_processes(processes):
    with open_cluster(processes) as cluster:
        found = {pid for _, pid in cluster.map(process, range(8))}
        assert os.getpid() not in found
        assert all(set(threads) == {1} for _, threads in cluster.map(blas_threads, range(4)))
        with pytest.raises(Odd):
            list(cluster.map(odd, range(4)))


def test_a_worker_that_dies_again_and_again_is_named(processes):
    with (
        open_cluster(processes) as cluster,
        pytest.raises(DiffatsError, match=r"died repeatedly.*raise compute.memory"),
    ):
        list(cluster.map(die, [0]))


def test_no_scheduler_there(monkeypatch):
    monkeypatch.setattr("diffats.compute._CONNECT_SECONDS", 0.5)
    with (
        open_cluster(Compute(scheduler="tcp://127.0.0.1:9")) as cluster,
        pytest.raises(InputError, match=r'no Dask scheduler answers at "tcp://127\.0\.0\.1:9"'),
    ):
        list(cluster.map(abs, [0]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dask(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    """A Dask command in another directory, with this installation; ``test_wheel.py`` does without the checkout."""
    program = shutil.which("dask", path=str(Path(sys.executable).parent))
    assert program is not None
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["DASK_TEMPORARY_DIRECTORY"] = str(cwd)
    return subprocess.Popen([program, *arguments], cwd=cwd, env=environment, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("elsewhere")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    local = ("--host", "127.0.0.1", "--no-dashboard")
    started = [dask("scheduler", *local, "--port", str(port), "--dashboard-address", "127.0.0.1:0", cwd=directory)]
    try:
        worker = ("--nthreads", "2", "--no-nanny", "--dashboard-address", "127.0.0.1:0")
        started.append(dask("worker", address, *worker, *local, cwd=directory))
        yield address
    finally:
        for one in started:
            one.kill()  # asked to end, a worker may wait long for a scheduler that has gone
            one.wait()


def test_workers_started_elsewhere_fill_a_store(scheduler, tmp_path):
    # Local functions travel by value, as this file cannot be imported there.
    def library(_: int) -> tuple[str, str]:
        return os.getcwd(), sys.modules["diffats"].__file__ or ""

    def make(start: int, stop: int) -> dict[str, np.ndarray]:
        core = np.arange(start, stop, dtype=np.float64)[:, None] * np.ones(3)
        return {"core": core, "status": np.ones(stop - start, np.int8)}

    sample = xr.Dataset(
        {
            "core": (("sample", "x"), np.broadcast_to(np.float64(0), (20, 3))),
            "status": ("sample", np.zeros(20, np.int8), status_attrs()),
        }
    )
    store = Store.create_or_open(tmp_path / "store")
    version = store.begin("tucker", sample, fingerprint="f", shard=3)
    with open_cluster(Compute(scheduler=scheduler)) as cluster:
        ((_, (directory, file)),) = cluster.map(library, [0])
        assert directory != os.getcwd()
        assert file == diffats.__file__
        assert cluster.slots == 2
        version.fill(make, cluster)
    version.finish()
    np.testing.assert_array_equal(version.dataset().core, make(0, 20)["core"])


def test_errors_come_from_workers_elsewhere_and_closing_leaves_them_up(scheduler):
    compute = Compute(scheduler=scheduler)
    with open_cluster(compute) as cluster, pytest.raises(ZeroDivisionError):
        list(cluster.map(lambda x: 1 // x, range(4)))
    with open_cluster(compute) as cluster:
        assert dict(cluster.map(abs, [-1])) == {-1: 1}


def test_a_function_that_workers_cannot_import_is_explained(scheduler):
    with open_cluster(Compute(scheduler=scheduler)) as cluster, pytest.raises(InputError, match="install this release"):
        list(cluster.map(odd, range(4)))


def test_many_small_items_go_several_to_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[int] = []
    with open_cluster(Compute(workers=2)) as cluster:
        cluster.start()
        submit = cluster._client.map
        monkeypatch.setattr(cluster._client, "map", lambda *a, **k: (tasks.append(len(a[1])), submit(*a, **k))[1])
        n = 16 * 2 * 3
        assert dict(cluster.map(abs, range(-n, 0), total=n)) == {-i: i for i in range(1, n + 1)}
        assert sum(tasks) == n // 3
        tasks.clear()
        assert [result for _, result in cluster.map(abs, range(n), total=n, ordered=True)] == list(range(n))
        assert sum(tasks) == n // 3
        tasks.clear()
        assert len(list(cluster.map(abs, range(n)))) == n  # nobody said that results are small
        assert sum(tasks) == n
