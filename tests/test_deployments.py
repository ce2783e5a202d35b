"""The deployments, against a real local server and worker: what is scheduled runs and completes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tiny_recipe import write_recipe

from benchmarks import soak_schedule

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deployments" / "prefect.yaml"
PREFECT = Path(sys.executable).with_name("prefect")


def test_deployments_name_flows_and_recipes_that_exist() -> None:
    from prefect.utilities.importtools import import_object

    for deployment in read_deployments()["deployments"]:
        assert import_object(deployment["entrypoint"]).name
        assert (ROOT / deployment["parameters"]["recipe"]).is_file()


def test_services_listen_on_this_machine_only() -> None:
    for path in (ROOT / "deployments" / "systemd").glob("*.service"):
        text = path.read_text(encoding="utf-8")
        assert "--host 127.0.0.1" in text or "http://127.0.0.1" in text, path.name
        assert "0.0.0.0" not in text, path.name


def read_deployments() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
def test_a_scheduled_run_completes(tmp_path: Path) -> None:
    content = read_deployments()
    nightly = next(entry for entry in content["deployments"] if entry["name"] == "nightly")
    nightly["schedules"] = [{"interval": 10}]
    nightly["parameters"] = {"recipe": str(write_recipe(tmp_path)), "overrides": ["decompose.method=hooi"]}
    changed = tmp_path / "prefect.yaml"
    changed.write_text(yaml.safe_dump(content), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PWD": str(ROOT),
    }
    with (
        running(["server", "start", "--host", "127.0.0.1", "--port", str(port)], environment, tmp_path / "server.log"),
        httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=60) as api,
    ):
        wait_until(lambda: answers(api), tmp_path / "server.log")
        for line in (
            ["work-pool", "create", "diffats", "--type", "process"],
            ["--no-prompt", "deploy", "--all", "--prefect-file", str(changed)],
        ):
            done = subprocess.run(
                [PREFECT, *line], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        weekly = api.get("/deployments/name/end_to_end/weekly").raise_for_status().json()
        assert weekly["schedules"][0]["schedule"]["cron"] == "0 4 * * 0"
        line = ["worker", "start", "--pool", "diffats", "--type", "process"]
        with running(line, environment, tmp_path / "worker.log"):
            wait_until(lambda: runs(api, "COMPLETED") + runs(api, "FAILED", "CRASHED"), tmp_path / "worker.log")
            pause(api)
            log = (tmp_path / "worker.log").read_text(encoding="utf-8")
            assert not runs(api, "FAILED", "CRASHED"), log
            completed = runs(api, "COMPLETED")[0]
            wait_until(lambda: not runs(api, "RUNNING", "PENDING"), tmp_path / "worker.log")
    assert completed["auto_scheduled"]
    assert completed["name"] == "preprocess tiny decompose.method=hooi"
    assert (tmp_path / "root" / "store").is_dir()


def answers(api: httpx.Client) -> bool:
    try:
        return api.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def runs(api: httpx.Client, *states: str) -> list[dict[str, Any]]:
    """The flow runs in these states."""
    chosen = {"flow_runs": {"state": {"type": {"any_": list(states)}}}}
    found: list[dict[str, Any]] = api.post("/flow_runs/filter", json=chosen).raise_for_status().json()
    return found


def pause(api: httpx.Client) -> None:
    deployment = api.get("/deployments/name/preprocess/nightly").raise_for_status().json()["id"]
    api.post(f"/deployments/{deployment}/pause_deployment").raise_for_status()


@contextmanager
def running(line: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A Prefect process, which is waited for at the end: a worker then never outlives its server."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen([PREFECT, *line], env=environment, cwd=ROOT, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(reached: Callable[[], object], log: Path, limit: float = 300) -> None:
    end = time.monotonic() + limit
    while not reached():
        assert time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.5)


@pytest.mark.parametrize("unit", ["server", "worker"])
def test_prefect_takes_what_the_units_set(unit: str) -> None:
    """One that it cannot read would keep it from starting."""
    settings = soak_schedule.unit_settings(unit)
    code = (
        "from prefect.settings import get_current_settings\n"
        "server = get_current_settings().server\n"
        "vacuum = server.services.db_vacuum\n"
        "print(server.events.retention_period.days, vacuum.retention_period.days, *sorted(vacuum.enabled_vacuum_types))"
    )
    surroundings = os.environ | settings
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["7", "90"]
    assert "events" in done.stdout
    assert ("flow_runs" in done.stdout) == (unit == "server")
    assert settings["DO_NOT_TRACK"] == "true"
    assert {"127.0.0.1", "localhost"} <= set(settings["NO_PROXY"].split(","))


@pytest.mark.parametrize(
    ("states", "killed", "count"),
    [
        (["COMPLETED"] * 4, set(), 0),
        (["COMPLETED", "CRASHED", "COMPLETED", "COMPLETED"], {"1"}, 0),
        (["COMPLETED", "CRASHED", "CRASHED", "COMPLETED"], {"1"}, 1),
        (["COMPLETED", "RUNNING", "COMPLETED", "COMPLETED"], {"1"}, 0),
        (["COMPLETED", "RUNNING", "COMPLETED", "COMPLETED"], set(), 1),
        (["COMPLETED"] * 2, set(), 1),
    ],
)
def test_a_soak_finds_runs_that_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[str], killed: set[str], count: int
) -> None:
    soak = soak_schedule.Soak(tmp_path, 6 * 60)
    found = [{"id": str(i), "name": "a", "state_type": state, "state_name": state} for i, state in enumerate(states)]
    monkeypatch.setattr(soak, "runs", lambda: found)
    soak.planned, soak.dead = {run["id"]: run for run in found}, killed
    assert len(soak.lost_runs()) == count


def test_a_soak_finds_what_grows(tmp_path: Path) -> None:
    soak = soak_schedule.Soak(tmp_path, 100)
    soak.looks = [soak_schedule.Look(at, memory=500.0 + 3 * at, files=40.0) for at in range(100)]
    (wrong,) = soak.grown()
    assert wrong.startswith("memory grew by 117.0")
