"""A schedule that runs by itself, as `deployments/` sets it up, while its server, worker and database fail.

``python -m benchmarks.soak_schedule --minutes 60``. Prefect's server and a worker start with the settings of the
systemd units; a flow is due every minute. In the first half of the time the server is stopped and started again
twice, the worker and all that it runs are killed twice, and the database is locked once; the rest is left alone. At
the end every run that was due must have completed, other than those that were killed with the worker; in the quiet time
memory and open files of server and worker must not have grown, and Prefect's old events must be gone.
A run that was killed holds its deployment's place for five minutes, so that a short soak ends later than it was told.
The exit code is 1 where one of this is not so. What grows with the data is `benchmarks.soak`'s to find.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml

from benchmarks.soak import grow, small_recipe
from diffats.cli import terminated_as_interrupted
from diffats.config import Recipe
from diffats.toml import toml

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = ROOT / "deployments"
PREFECT = Path(sys.executable).with_name("prefect")
EVERY = 60  # seconds
LOOK_EVERY = 5.0  # seconds
LOCKED = 20.0  # seconds that the database is locked
SAMPLES = 64
_PAGE = 200  # flow runs in one answer
#: When what fails, as shares of the time.
FAILURES = (
    (0.08, "restart the server"),
    (0.16, "kill the worker"),
    (0.24, "lock the database"),
    (0.32, "restart the server"),
    (0.40, "kill the worker"),
)
QUIET = 0.6  # of the time, from which on nothing may grow
#: Most that each may grow in the quiet time, server and worker together: MiB and open files.
BOUNDS = {"memory": 64.0, "files": 12.0}
TOLD = ("COMPLETED", "CRASHED", "FAILED", "CANCELLED")


def main(argv: Sequence[str] | None = None) -> int:
    """Run for some minutes; print what was found; 1 where something is not as it must be."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=60.0, help="how long; six at least say anything")
    minutes = options.parse_args(argv).minutes
    folders = tempfile.TemporaryDirectory(prefix="diffats-soak-")
    with terminated_as_interrupted(), folders as folder, ExitStack() as stack:
        soak = Soak(Path(folder), 60 * minutes)
        stack.callback(soak.stop)
        soak.run()
        wrong = soak.findings()
    for line in wrong:
        print(f"WRONG: {line}")
    return int(bool(wrong))


def unit_settings(unit: str) -> dict[str, str]:
    """What a systemd unit sets in the environment."""
    text = (DEPLOYMENTS / "systemd" / f"diffats-{unit}.service").read_text(encoding="utf-8")
    lines = (line.removeprefix("Environment=") for line in text.splitlines() if line.startswith("Environment="))
    return dict(each.split("=", 1) for line in lines for each in line.split())


@dataclass
class Look:
    """What server and worker hold at a moment: MiB and open files, each with the processes that it started."""

    at: float
    memory: float
    files: float


@dataclass
class Soak:
    """The processes, what was done to them, and what they held."""

    folder: Path
    seconds: float
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=60, trust_env=False)
        self.kept = max(60.0, self.seconds / 4)  # seconds that events are kept, so that the run sees them go
        shared = {"PREFECT_HOME": str(self.folder / "prefect"), "PWD": str(ROOT)}
        address = {"PREFECT_API_URL": str(self.api.base_url).rstrip("/")}
        faster = {
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"PT{self.kept:.0f}S",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "20",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "20",
        }
        self.surroundings = {
            "server": os.environ | shared | unit_settings("server") | faster,
            "worker": os.environ | shared | unit_settings("worker") | address,
        }

    # what runs

    def run(self) -> None:
        """The whole of it."""
        self.prepare()
        self.started = time.monotonic()
        waiting = list(FAILURES)
        while (passed := time.monotonic() - self.started) < self.seconds:
            if waiting and passed >= waiting[0][0] * self.seconds:
                self.fail(waiting.pop(0)[1])
            self.look()
            time.sleep(LOOK_EVERY)
        self.pause()
        self.wait_until(lambda: not self.alive(), 300)

    def prepare(self) -> None:
        """Make data, start server and worker, and deploy."""
        recipe, path = small_recipe(self.folder), self.folder / "soak.toml"
        grow(self.folder, SAMPLES)
        path.write_text(toml(_given(recipe)), encoding="utf-8")
        self.start_server()
        self.prefect("work-pool", "create", "diffats", "--type", "process")
        content = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text(encoding="utf-8"))
        weekly = next(each for each in content["deployments"] if each["name"] == "weekly")
        weekly |= {"schedules": [{"interval": EVERY}], "parameters": {"recipe": str(path), "overrides": []}}
        changed = self.folder / "prefect.yaml"
        changed.write_text(yaml.safe_dump(content | {"deployments": [weekly]}), encoding="utf-8")
        self.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(changed))
        self.start("worker", "worker", "start", "--pool", "diffats", "--type", "process")

    def prefect(self, *line: str) -> None:
        """A command of Prefect's, to its end."""
        subprocess.run([PREFECT, *line], env=self.surroundings["worker"], cwd=ROOT, check=True, capture_output=True)

    def start(self, name: str, *line: str) -> None:
        """Start a Prefect process; what it prints goes to a file."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [PREFECT, *line],
                env=self.surroundings[name],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_server(self) -> None:
        """Start the server, and wait for it."""
        self.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        if not self.wait_until(self.answers, 300):
            raise RuntimeError((self.folder / "server.log").read_text(encoding="utf-8"))

    def fail(self, how: str) -> None:
        """Have something fail, and mend it as systemd does."""
        print(f"{time.monotonic() - self.started:6.0f} s: {how}", flush=True)
        if how == "restart the server":
            self.end("server")
            self.start_server()
        elif how == "kill the worker":
            self.wait_until(self.alive, 180)
            self.dead |= set(self.alive())
            for process in _tree(self.processes["worker"].pid):  # as systemd kills all that a unit has started
                process.kill()
            self.processes["worker"].wait()
            time.sleep(30)  # RestartSec of the unit
            self.start("worker", "worker", "start", "--pool", "diffats", "--type", "process")
        else:
            with sqlite3.connect(self.folder / "prefect" / "prefect.db", timeout=60) as database:
                database.execute("begin immediate")
                time.sleep(LOCKED)
            database.close()

    def end(self, name: str) -> None:
        """Stop a process as systemd does."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            for each in _tree(process.pid):
                each.kill()
            process.wait()

    def stop(self) -> None:
        """Stop all, the worker first."""
        for name in ("worker", "server"):
            if name in self.processes:
                self.end(name)

    # what is asked

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            return self.api.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def runs(self, *states: str) -> list[dict[str, Any]]:
        """The flow runs, or those in states of these types or names."""
        body = {"sort": "EXPECTED_START_TIME_ASC", "limit": _PAGE}
        found: list[dict[str, Any]] = []
        while True:
            page = self.api.post("/flow_runs/filter", json=body | {"offset": len(found)}).raise_for_status().json()
            found += page
            if len(page) < _PAGE:
                break
        return [run for run in found if not states or {run["state_type"], run["state_name"].upper()} & set(states)]

    def alive(self) -> list[str]:
        """The runs at work: one that was killed is said to run until the next one begins."""
        return [run["id"] for run in self.runs("RUNNING") if run["id"] not in self.dead]

    def pause(self) -> None:
        """Schedule no more; what is due stays due."""
        deployment = self.api.get("/deployments/name/end_to_end/weekly").raise_for_status().json()["id"]
        self.due = datetime.now().astimezone() - timedelta(seconds=EVERY)
        self.planned = {run["id"]: run for run in self.runs() if _time(run["expected_start_time"]) <= self.due}
        due = self.planned.keys() - self.dead
        self.wait_until(lambda: all(run["state_type"] in TOLD for run in self.now(dict.fromkeys(due))), 900)
        self.api.post(f"/deployments/{deployment}/pause_deployment").raise_for_status()

    def now(self, planned: Mapping[str, object]) -> list[dict[str, Any]]:
        """These runs as they are now."""
        return [run for run in self.runs() if run["id"] in planned]

    def wait_until(self, reached: Callable[[], object], limit: float) -> bool:
        """Wait for something, so many seconds at most; whether it came."""
        end = time.monotonic() + limit
        while not reached():
            if time.monotonic() > end:
                return False
            time.sleep(1)
        return True

    def look(self) -> None:
        """Note what server and worker hold; the runs themselves come and go."""
        memory = files = 0.0
        for name, process in self.processes.items():
            own = psutil.Process(process.pid)
            with own.oneshot():
                memory += own.memory_info().rss / 2**20
                files += own.num_fds()
            for child in own.children() if name == "server" else ():  # a server's own processes
                memory += child.memory_info().rss / 2**20
        self.looks.append(Look(time.monotonic() - self.started, memory, files))

    # what is found

    def findings(self) -> list[str]:
        """What is not as it must be."""
        return [*self.lost_runs(), *self.grown(), *self.old_events()]

    def lost_runs(self) -> list[str]:
        """Runs that were due, were not killed, and did not complete; and where too few were due."""
        runs = self.now(self.planned)
        completed = [run for run in runs if run["state_type"] == "COMPLETED"]
        killed = [run["state_name"] for run in runs if run["id"] in self.dead and run not in completed]
        expected = int(self.seconds / EVERY) - 2
        print(f"{len(runs)} runs were due, {len(completed)} completed; of those that were killed Prefect says {killed}")
        lost = [run for run in runs if run not in completed and run["id"] not in self.dead]
        wrong = [f"run {run['name']} is {run['state_name']}" for run in lost]
        if len(runs) < expected:
            wrong.append(f"{expected} runs had to be due, and {len(runs)} were")
        return wrong

    def grown(self) -> list[str]:
        """What grew in the quiet time: the slope of the line through it, times its length."""
        quiet = [look for look in self.looks if look.at >= QUIET * self.seconds]
        at = [look.at for look in quiet]
        wrong = []
        for name, bound in BOUNDS.items():
            values = [getattr(look, name) for look in quiet]
            grown = float(np.polyfit(at, values, 1)[0]) * (at[-1] - at[0])
            print(f"{name:<8} {values[-1]:8.1f}, grew by {grown:8.2f} in {at[-1] - at[0]:.0f} s, at most {bound:g}")
            if grown > bound:
                wrong.append(f"{name} grew by {grown:.1f}, at most {bound:g}")
        return wrong

    def old_events(self) -> list[str]:
        """Events that should have gone."""
        with sqlite3.connect(self.folder / "prefect" / "prefect.db", timeout=60) as database:
            count, oldest = database.execute("select count(*), min(occurred) from events").fetchone()
        database.close()
        age = (datetime.now() - datetime.fromisoformat(oldest)).total_seconds() if oldest else 0.0
        print(f"events   {count}, the oldest of {age:.0f} s ago, kept for {self.kept:.0f} s")
        return [f"events of {age:.0f} s ago are there"] if age > self.kept + 120 else []


def _given(recipe: Recipe) -> dict[str, Any]:
    """A recipe's options that are not the defaults."""
    return recipe.model_dump(mode="json", exclude_defaults=True)


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    own = psutil.Process(pid)
    return [*own.children(recursive=True), own]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


if __name__ == "__main__":
    sys.exit(main())
