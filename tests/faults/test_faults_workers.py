"""Dask workers that die or take too much memory, and a scheduler that goes away and comes back."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from commands import SEED, Command, Unbroken, Zygote
from ledger import tried

from diffats.config import Recipe
from diffats.errors import StoreNotFoundError
from diffats.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
CHANGES = ("commit_every_shard", "slow_shards")
PROCESSES = ("--set", "compute.processes=true", "--set", "compute.workers=2")
REST = ("anchor", "align", "normalise", "train", "generate")
Ready = Callable[[str], tuple[Recipe, Path]]


def shards_done(recipe: Recipe) -> int:
    """Committed shards of the Tucker forms."""
    try:
        entries = Store(f"{recipe.root}/store", fresh=True).versions()
    except StoreNotFoundError:
        return 0
    return max((entry["done"] for entry in entries if entry["group"] == "tucker"), default=0)


def wait_for_shards(recipe: Recipe, command: Command) -> None:
    """Until the first shards are committed."""
    end = time.monotonic() + 120
    while not shards_done(recipe):
        assert time.monotonic() < end, command.log.read_text()
        time.sleep(0.1)


def workers(session: int) -> list[int]:
    """The worker processes of a command."""
    found = []
    for process in psutil.Process(session).children(recursive=True):
        words = " ".join(process.cmdline())
        if "spawn_main" in words:
            found.append(process.pid)
    return sorted(found)


def finish(zygote: Zygote, unbroken: Unbroken, recipe: Recipe, file: Path, *options: str) -> None:
    """The same command, then the rest, and all as of an unbroken run."""
    for verb in ("decompose", *REST):
        done = zygote.run(verb, file, *(options if verb == "decompose" else ()), log=file.with_suffix(f".{verb}"))
        assert done.code == 0, done.said
    unbroken.check(recipe)


def test_a_worker_is_killed(zygote: Zygote, unbroken: Unbroken, ready: Ready) -> None:
    recipe, file = ready("decompose")
    rng = random.Random(SEED)
    outcome = "the run goes on with the others, or ends with a message; the same command finished"
    with tried("SIGKILL of a worker process", "decompose", outcome, seed=SEED) as fault:
        for turn in range(3):
            command = zygote.start("decompose", file, *PROCESSES, log=file.with_suffix(f".{turn}"), changes=CHANGES)
            wait_for_shards(recipe, command)
            time.sleep(rng.uniform(0, 0.5))
            os.kill(rng.choice(workers(command.pid)), signal.SIGKILL)
            ended = command.end()
            fault.count = turn + 1
            assert ended.left == []
            assert "Traceback" not in ended.said, ended.said
            assert ended.code in (0, 1), ended.said
            if ended.code == 0:
                break
            assert "worker process" in ended.said, ended.said
        finish(zygote, unbroken, recipe, file, *PROCESSES)


def test_a_worker_out_of_memory(zygote: Zygote, unbroken: Unbroken, ready: Ready) -> None:
    recipe, file = ready("decompose")
    limited = (*PROCESSES, "--set", "compute.memory=1GiB")
    with tried(
        "a worker out of its memory limit", "decompose", "ended with a message that names the limit; then finished"
    ):
        ended = zygote.run("decompose", file, *limited, log=file.with_suffix(".0"), changes=["hungry_shard"])
        assert ended.code == 1, ended.said
        assert "lack of memory (limit 1GiB a worker)" in ended.said, ended.said
        assert "Traceback" not in ended.said
        assert ended.left == []
        finish(zygote, unbroken, recipe, file, *limited)


class Elsewhere:
    """A scheduler with one worker, as started by hand on another machine."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder, self.address = folder, f"tcp://127.0.0.1:{self.port}"
        self.started: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler()
        self.start_worker()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        return self._dask("scheduler", "--port", str(self.port), "--no-dashboard")

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._dask("worker", self.address, "--nthreads", "1", "--no-nanny")

    def _dask(self, *arguments: str) -> subprocess.Popen[bytes]:
        program = shutil.which("dask", path=str(Path(sys.executable).parent))
        assert program is not None
        path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        command = [program, *arguments, *local]
        one = subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.DEVNULL)
        self.started.append(one)
        return one

    def stop(self) -> None:
        for one in self.started:
            one.kill()
            one.wait()


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    started = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    yield started
    started.stop()


def test_the_scheduler_goes_away_and_returns(
    zygote: Zygote, unbroken: Unbroken, ready: Ready, elsewhere: Elsewhere
) -> None:
    recipe, file = ready("decompose")
    there = ("--set", f'compute.scheduler="{elsewhere.address}"')
    with tried("the Dask scheduler goes away and returns", "decompose", "ended with a message; then finished"):
        command = zygote.start("decompose", file, *there, log=file.with_suffix(".0"), changes=CHANGES)
        wait_for_shards(recipe, command)
        elsewhere.scheduler.kill()
        ended = command.end()
        assert ended.code == 1, ended.said
        assert "lost the Dask scheduler" in ended.said, ended.said
        assert "Traceback" not in ended.said, ended.said
        assert ended.left == []
        for one in elsewhere.started:
            one.kill()
            one.wait()
        refused = zygote.run("plan", file, *there, log=file.with_suffix(".plan"))
        assert refused.code == 2, refused.said
        assert "no Dask scheduler answers" in refused.said
        elsewhere.start_scheduler()
        elsewhere.start_worker()
        finish(zygote, unbroken, recipe, file, *there)


def test_an_external_worker_is_killed(zygote: Zygote, unbroken: Unbroken, ready: Ready, elsewhere: Elsewhere) -> None:
    recipe, file = ready("decompose")
    there = ("--set", f'compute.scheduler="{elsewhere.address}"')
    with tried("SIGKILL of an external worker", "decompose", "the run goes on with its replacement"):
        command = zygote.start("decompose", file, *there, log=file.with_suffix(".0"), changes=CHANGES)
        wait_for_shards(recipe, command)
        elsewhere.started[-1].kill()
        elsewhere.start_worker()
        ended = command.end()
        assert "Traceback" not in ended.said, ended.said
        assert ended.code in (0, 1), ended.said
        finish(zygote, unbroken, recipe, file, *there)
