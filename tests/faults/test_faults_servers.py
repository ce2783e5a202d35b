"""MLflow and Prefect servers that go away in the middle of a run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from commands import STEPS, STOP_SECONDS, STOPPED, VERBS, Command, Unbroken, Zygote, checkpoint_content, start_real
from ledger import tried
from mlflow import MlflowClient

from diffats.config import Recipe

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

Ready = Callable[[str], tuple[Recipe, Path]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """An MLflow server that can be killed and started again on the same port, with the same database."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            str(self.folder),
        ]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, *address],
            cwd=self.folder,
            env={**os.environ, **settings},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(f"{self.uri}/health")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(url: str, limit: float = 180) -> None:
    end = time.monotonic() + limit
    while True:
        try:
            requests.get(url, timeout=5).raise_for_status()
            return
        except requests.RequestException:
            assert time.monotonic() < end, url
            time.sleep(0.3)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield made
    made.kill()


def wait_until_said(log: Path, text: str, limit: float = 120) -> None:
    end = time.monotonic() + limit
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < end, log.read_text() if log.exists() else "nothing said"
        time.sleep(0.1)


def wait_for_checkpoint(root: Path, limit: float = 120) -> None:
    end = time.monotonic() + limit
    while not list(root.glob("training/*/checkpoint-*")):
        assert time.monotonic() < end
        time.sleep(0.05)


def metric_steps(server: MlflowServer) -> list[int]:
    """Steps of the training loss that MLflow has, in the newest run of a training."""
    client = MlflowClient(server.uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "tiny"]
    run = client.search_runs([experiment.experiment_id], "tags.`diffats.stage` = 'train'", max_results=1)[0]
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]


def check_checkpoints(unbroken: Unbroken, recipe: Recipe) -> None:
    expected = {name: digest for name, digest in unbroken.content.items() if name.startswith("checkpoint")}
    assert checkpoint_content(Path(recipe.root)) == expected


def test_mlflow_goes_away_and_returns(
    zygote: Zygote, unbroken: Unbroken, ready: Ready, mlflow_server: MlflowServer
) -> None:
    recipe, file = ready("train")
    there = ("--set", f'tracking.uri="{mlflow_server.uri}"')
    outcome = "training goes on; its metrics are delivered when the server is back"
    with tried("the MLflow server goes away and returns", "train", outcome):
        command = zygote.start("train", file, *there, log=file.with_suffix(".log"), changes=["slow_steps"])
        wait_for_checkpoint(Path(recipe.root))
        mlflow_server.kill()
        wait_until_said(command.log, "is away")
        mlflow_server.start()
        ended = command.end()
        assert ended.code == 0, ended.said
        assert "Traceback" not in ended.said
        assert metric_steps(mlflow_server) == list(range(5, STEPS + 1, 5))
        check_checkpoints(unbroken, recipe)


def test_mlflow_stays_away(zygote: Zygote, unbroken: Unbroken, ready: Ready, mlflow_server: MlflowServer) -> None:
    recipe, file = ready("train")
    there = ("--set", f'tracking.uri="{mlflow_server.uri}"')
    outcome = "training ends well and says what was not delivered; the next verb that needs MLflow is refused; then all"
    with tried("the MLflow server goes away for good", "train", outcome):
        command = zygote.start("train", file, *there, log=file.with_suffix(".log"), changes=["slow_steps"])
        wait_for_checkpoint(Path(recipe.root))
        mlflow_server.kill()
        ended = command.end()
        assert ended.code == 0, ended.said
        assert "could not be delivered to MLflow" in ended.said
        assert "Traceback" not in ended.said
        check_checkpoints(unbroken, recipe)
        refused = zygote.run("generate", file, *there, log=file.with_suffix(".away"))
        assert refused.code == 1, refused.said
        assert "the server is up" in refused.said
        assert "Traceback" not in refused.said
        mlflow_server.start()
        for verb in VERBS[VERBS.index("generate") :]:
            done = zygote.run(verb, file, *there, log=file.with_suffix(f".{verb}"))
            assert done.code == 0, done.said
        unbroken.check(recipe)


def test_sigterm_while_mlflow_is_away(
    zygote: Zygote, unbroken: Unbroken, ready: Ready, mlflow_server: MlflowServer
) -> None:
    recipe, file = ready("train")
    there = ("--set", f'tracking.uri="{mlflow_server.uri}"')
    outcome = f"ended within {STOP_SECONDS:.0f} s with a checkpoint; then finished"
    with tried("SIGTERM while the MLflow server is away", "train", outcome):
        command = zygote.start("train", file, *there, log=file.with_suffix(".log"), changes=["slow_steps"])
        wait_for_checkpoint(Path(recipe.root))
        mlflow_server.kill()
        time.sleep(0.5)
        ended = command.kill(signal.SIGTERM)
        assert ended.code == STOPPED, ended.said
        assert ended.seconds < STOP_SECONDS
        assert ended.left == []
        mlflow_server.start()
        done = zygote.run("train", file, *there, log=file.with_suffix(".last"))
        assert done.code == 0, done.said
        check_checkpoints(unbroken, recipe)


# --- Prefect ----------------------------------------------------------------------------------------------------


class PrefectServer:
    """A Prefect server that can be killed and started again on the same port, with the same database."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": self.url}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "prefect",
                "server",
                "start",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--no-ui",
            ],
            cwd=self.folder,
            env={**os.environ, **self.environment, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(f"{self.url}/health")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def flow_runs(self) -> list[str]:
        """States of all flow runs, oldest first."""
        body = {"sort": "START_TIME_ASC"}
        found = requests.post(f"{self.url}/flow_runs/filter", json=body, timeout=30).json()
        return [run["state"]["type"] for run in found]


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    made = PrefectServer(tmp_path_factory.mktemp("prefect"))
    yield made
    made.kill()


def flow(server: PrefectServer, name: str, file: Path, *options: str) -> Command:
    """A flow as it is run by hand: ``python -m flows.NAME RECIPE.toml``."""
    log = file.with_suffix(f".{time.monotonic_ns()}")
    return start_real(f"flows.{name}", file, *options, log=log, environment=server.environment)


def test_a_killed_flow_run_is_told_of_by_the_next(
    unbroken: Unbroken, ready: Ready, prefect_server: PrefectServer
) -> None:
    _, file = ready("decompose")
    outcome = "the next flow run of the root marks it as crashed, and finishes"
    with tried("SIGKILL of a flow", "preprocess", outcome):
        running = flow(prefect_server, "preprocess", file)
        wait_until_said(running.log, "[2/4]")
        running.kill(signal.SIGKILL)
        assert prefect_server.flow_runs() == ["RUNNING"]
        done = flow(prefect_server, "preprocess", file).end()
        assert done.code == 0, done.said
        assert prefect_server.flow_runs() == ["CRASHED", "COMPLETED"]


def test_sigterm_of_a_flow(unbroken: Unbroken, ready: Ready, prefect_server: PrefectServer) -> None:
    recipe, file = ready("train")
    outcome = (
        f"ended within {STOP_SECONDS:.0f} s, exit code {STOPPED}, with a checkpoint, told to Prefect; then finished"
    )
    with tried("SIGTERM of a flow", "train", outcome):
        running = flow(prefect_server, "train", file, "--set", "train.steps=100000")
        wait_for_checkpoint(Path(recipe.root))
        ended = running.kill(signal.SIGTERM)
        assert ended.code == STOPPED, ended.said
        assert ended.seconds < STOP_SECONDS
        assert ended.left == []
        assert "saving a checkpoint, then stopping" in ended.said
        assert "Traceback" not in ended.said, ended.said
        assert prefect_server.flow_runs()[-1] == "CRASHED"


def test_prefect_goes_away(unbroken: Unbroken, ready: Ready, prefect_server: PrefectServer) -> None:
    recipe, file = ready("train")
    outcome = "the stages go on to their end; then a message; the same command finds all done"
    with tried("the Prefect server goes away", "train", outcome):
        running = flow(prefect_server, "train", file)
        wait_for_checkpoint(Path(recipe.root))
        prefect_server.kill()
        ended = running.end()
        assert ended.code == 1, ended.said
        assert "error: the Prefect server at" in ended.said
        assert ended.left == []
        unbroken.check(recipe)
        prefect_server.start()
        done = flow(prefect_server, "train", file).end()
        assert done.code == 0, done.said
        assert done.said.count("already there") == 5, done.said
        unbroken.check(recipe)
