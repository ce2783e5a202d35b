"""The flows through Prefect: their order, names, retries, artifacts, and what the commands tell."""

from __future__ import annotations

import errno
import json
import logging
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

import icechunk
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from prefect import Flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed, Running
from prefect.testing.utilities import prefect_test_harness
from tiny_recipe import waves, write_recipe

from diffats import stages
from diffats.config import Recipe
from diffats.errors import LockedError, RecipeError, SourceError, StoreError, StoreNotFoundError
from diffats.registry import TrackingError
from diffats.stages import StageResult
from flows import artifact, command, pipeline, server
from flows.end_to_end import end_to_end
from flows.generate import generate
from flows.pipeline import Outcome
from flows.preprocess import preprocess
from flows.train import train
from tasks.decompose import decompose
from tasks.stage import io_failed

ROOT = Path(__file__).parents[1]
FLOWS = (preprocess, train, generate, end_to_end)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def quiet() -> Iterator[None]:
    """Undo what a command does to this process's logging."""
    handlers = logging.getLogger().handlers
    before, shown = [handler.level for handler in handlers], list(logging.getLogger("diffats").handlers)
    yield
    for handler, level in zip(handlers, before, strict=False):
        handler.setLevel(level)
    logging.getLogger("diffats").handlers[:] = shown


class FakeStages:
    """Stands for the library: notes what is called, and fails where it is told to."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, failures: dict[str, list[BaseException]], failed: int = 0
    ) -> None:
        self.failures, self.failed = failures, failed
        self.called: list[str] = []
        self.status = ""
        monkeypatch.setattr(stages, "run", self.run)
        monkeypatch.setattr(stages, "start_tracking", lambda recipe, **options: ("0123", "http://tracker"))
        monkeypatch.setattr(stages, "finish_tracking", self.finish)
        monkeypatch.setattr(stages, "summary", lambda recipe, results: {"store": "s", "tracking_uri": "http://tracker"})
        monkeypatch.setattr(stages, "pages", lambda recipe, parent_run: {"Run": f"http://tracker/#/runs/{parent_run}"})
        monkeypatch.setattr(stages, "describe", lambda recipe, results: "made it")

    def run(self, stage: str, recipe: Recipe, *, parent_run: str | None, progress: object) -> StageResult:
        self.called.append(stage)
        if self.failures.get(stage):
            raise self.failures[stage].pop(0)
        return StageResult(stage, "f", "v", "there", failed=self.failed, summary="well", pictures={"A line": b"png"})

    def finish(self, recipe: Recipe, parent_run: str, status: str) -> None:
        self.status = status


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path))


def last_artifact(key: str) -> str:
    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=chosen)
    return str(max(found, key=lambda artifact: artifact.created).data)


def last_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(), key=lambda run: run.created)


def test_end_to_end_is_every_stage_in_order() -> None:
    from flows import end_to_end as module

    assert tuple(stage.name for stage in module.STAGES) == stages.STAGES


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_flows_have_described_parameters(flow: Flow[..., Outcome]) -> None:
    properties = flow.parameters.properties
    assert list(properties) == ["recipe", "overrides"]
    assert all(entry["description"] for entry in properties.values())
    assert properties["recipe"]["type"] == "string"
    assert properties["overrides"]["items"] == {"type": "string"}
    assert flow.description


@pytest.mark.usefixtures("prefect_server")
def test_tiny_data_through_every_stage(recipe: str) -> None:
    made = end_to_end(recipe, ["train.steps=3"])
    assert made.failed == 0
    assert made.summary["n_samples"] == 24
    assert made.summary["model"]["name"] == "tiny"
    assert Path(made.summary["report"]).is_file()
    json.dumps(made.summary)
    run = last_run()
    assert run.name == "end_to_end tiny train.steps=3"
    assert run.state is not None
    assert run.state.is_completed()
    text = last_artifact("report-tiny")
    assert all(f"| {stage} |" in text for stage in stages.STAGES)
    assert "data:image/png;base64," in text
    assert len(text) < 1_200_000
    again = end_to_end(recipe, ["train.steps=3"])
    assert again.summary["version"] == made.summary["version"]
    assert last_artifact("report-tiny").count("| was there |") >= 8
    assert needless_imports(recipe, "train.steps=3") == []


def needless_imports(recipe: str, override: str) -> list[str]:
    """What the command imports in a process of its own, of all that only makes results, where everything is there."""
    heavy = (
        "accelerate",
        "diffusers",
        "diffats.training",
        "matplotlib",
        "ot",
        "scipy.signal",
        "scipy.stats",
        "sklearn",
    )
    code = (
        "import sys\nfrom flows import command\nfrom flows.end_to_end import end_to_end\n"
        f"assert command.main(end_to_end, [{recipe!r}, '--set', {override!r}, '--json']) == 0\n"
        f"print('imported:', *[name for name in {heavy!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PREFECT_API_URL": server.address()}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("already there") == len(stages.STAGES), done.stderr
    label, *found = done.stdout.splitlines()[-1].split()
    assert label == "imported:"
    return found


@pytest.mark.usefixtures("prefect_server")
def test_the_parts_are_the_whole(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeStages(monkeypatch, {})
    preprocess(recipe)
    train(recipe)
    assert tuple(fake.called) == stages.STAGES
    generate(recipe)
    assert fake.called[-1] == "generate"


@pytest.mark.usefixtures("prefect_server", "quiet")
def test_retry_on_failing_input_or_output_only(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompose, "retry_delay_seconds", 0)
    fake = FakeStages(monkeypatch, {"decompose": [OSError(5, "Input/output error"), ConnectionResetError()]})
    assert command.main(preprocess, [recipe]) == 0
    assert fake.called[:4] == ["decompose"] * 3 + ["select_anchor"]
    assert fake.status == "FINISHED"


def chained(error: Exception, *causes: Exception) -> Exception:
    """An error that was raised from others, as ``raise ... from`` or inside ``except`` leaves it."""
    if causes:
        error.__context__ = chained(causes[0], *causes[1:])
        if len(causes) == 1:
            error.__cause__ = causes[0]
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(), True),
        (TimeoutError(), True),
        (StoreNotFoundError("no store"), False),
        (ValueError(), False),
        (FileNotFoundError(2, "gone"), False),
        (PermissionError(13, "no"), False),
        (chained(SourceError("a.nc cannot be read"), ConnectionResetError()), True),
        (chained(SourceError("a.nc cannot be read"), OSError(errno.EIO, "Input/output error")), True),
        (chained(SourceError("a.nc cannot be read"), OSError("file signature not found")), False),
        (chained(SourceError("a.nc cannot be read"), FileNotFoundError(2, "gone")), False),
        (chained(SourceError("no repository"), icechunk.IcechunkError("it is none")), False),
        (chained(SourceError("a"), icechunk.IcechunkError("dispatch failure")), True),
        (chained(StoreError("commit failed"), icechunk.IcechunkError("object store error")), True),
        (chained(StoreError("commit failed"), icechunk.ConflictError("a", "b")), False),
        (chained(TrackingError("MLflow"), MlflowException("refused"), requests.ConnectionError("refused")), True),
        (chained(TrackingError("MLflow"), MlflowException("locked", TEMPORARILY_UNAVAILABLE)), True),
        (chained(TrackingError("MLflow"), MlflowException("no such experiment")), False),
        (chained(LockedError("written by another"), TimeoutError()), False),
    ],
)
def test_what_is_worth_a_retry(error: Exception, again: bool) -> None:
    from prefect.client.schemas.objects import TaskRun

    run = TaskRun(task_key="decompose", dynamic_key="0", run_count=1)
    assert io_failed(decompose, run, Failed(data=error)) is again


@pytest.mark.usefixtures("prefect_server", "quiet")
@pytest.mark.parametrize(
    ("error", "code"), [(SourceError('a.nc has no variable "u".'), 2), (FileNotFoundError(2, "gone", "a.nc"), 1)]
)
def test_an_error_is_one_message(
    error: Exception, code: int, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decompose, "retry_delay_seconds", 0)
    fake = FakeStages(monkeypatch, {"decompose": [error] * 3})
    assert command.main(end_to_end, [recipe]) == code
    printed = capsys.readouterr()
    assert f"error: {error}\n" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert fake.status == "FAILED"


@pytest.mark.usefixtures("prefect_server", "quiet")
def test_failed_samples_have_their_own_exit_code(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeStages(monkeypatch, {}, failed=1)
    assert command.main(preprocess, [recipe, "--json"]) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["store"] == "s"


@pytest.mark.usefixtures("prefect_server", "quiet")
def test_an_interrupt_says_how_to_continue(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeStages(monkeypatch, {"align": [KeyboardInterrupt()]})
    before = signal.getsignal(signal.SIGTERM)
    assert command.main(end_to_end, [recipe]) == 130
    assert "Run the same command to continue" in capsys.readouterr().err
    assert fake.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


@contextmanager
def written_by_another(root: Path) -> Iterator[Callable[[], None]]:
    """Another process holds the root's lock, until it is told to end."""
    code = (
        "import sys; from diffats.store import writer_lock\nwith writer_lock(sys.argv[1]): print(1); sys.stdin.read()"
    )
    line = [sys.executable, "-u", "-c", code, str(root)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "1\n"
        yield owner.communicate
        owner.communicate()


@pytest.mark.usefixtures("prefect_server")
def test_a_run_of_a_deployment_waits_for_the_run_at_work_and_names_it(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, root = FakeStages(monkeypatch, {}), Path(recipe).parent / "root"
    told: list[State[Any]] = []

    def tell(state: State[Any]) -> None:
        told.append(state)
        end_the_other()

    monkeypatch.setattr(pipeline, "tell_state", tell)
    monkeypatch.setattr(pipeline, "LOOK_AGAIN", 0.05)
    with get_client(sync_client=True) as client:
        other = client.create_flow_run(preprocess, parameters={"recipe": recipe}, name="nightly", state=Running())
    with written_by_another(root) as end_the_other:
        (root / ".flow_run").write_text(str(other.id))
        with pytest.raises(LockedError, match="is being written by process"):  # a command does not wait
            preprocess(recipe)
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
        preprocess(recipe)
    assert fake.called == ["decompose", "select_anchor", "align", "fit_normalisation"]
    waiting, running = told
    assert (waiting.name, waiting.is_running(), running.name) == ("Waiting", True, "Running")
    assert f"Flow run 'nightly' ({other.id}) is at work on {root}." in str(waiting.message)
    assert (root / ".flow_run").read_text() == str(last_run().id)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_has_its_recipe_as_tag_and_its_error_as_message(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeStages(monkeypatch, {"decompose": [SourceError('a.nc has no variable "u".')]})
    with tags("recipe:another", "mine"), pytest.raises(SourceError):
        preprocess(recipe)
    run = last_run()
    assert set(run.tags) == {"recipe:tiny", "mine"}
    assert run.state is not None
    assert str(run.state.message).endswith('SourceError: a.nc has no variable "u".')
    with pytest.raises(RecipeError):
        preprocess(recipe, ["train.steps"])
    state = last_run().state
    assert state is not None
    assert "\n" not in str(state.message)
    assert 'override "train.steps" is not of the form section.key=value' in str(state.message)


def test_report_artifact_has_links_and_small_pictures_only(recipe: str) -> None:
    made: dict[str, Any] = {"store": "s", "version": "v1", "tracking_uri": "http://tracker/", "report": "r.html"}
    pages = {"Run": "http://tracker/#/experiments/1/runs/0123"}
    text = "\n".join(artifact.links(made, pages, changed=True))
    assert "- In MLflow: [Run](http://tracker/#/experiments/1/runs/0123)" in text
    assert "make mlflow-ui" not in text
    assert "`v1`" in text
    local = "\n".join(artifact.links(made | {"tracking_uri": "sqlite:///mlflow.db"}, pages, changed=False))
    assert "make mlflow-ui" in local
    assert "no new run" in local
    big = StageResult("a", "f", "v", "there", pictures={"small": b"x", "big": b"x" * (artifact.MAX_PICTURE + 1)})
    assert len(artifact.pictures([big])) == 1
    many = StageResult("a", "f", "v", "there", pictures={str(i): b"x" * artifact.MAX_PICTURE for i in range(9)})
    assert len(artifact.pictures([many])) == artifact.MAX_PICTURES // artifact.MAX_PICTURE
    row = {"distance": {"label": "Energy | distance", "value": 0.12345, "gaussian": 0.5, "better": "lower"}}
    assert artifact.metric_table(row).splitlines()[-1] == r"| Energy \| distance | 0.1235 | 0.5 | lower |"


def test_a_server_that_does_not_answer_is_one_message(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"  # nobody listens there any more
    monkeypatch.setattr(command, "show_log", lambda: None)
    with temporary_settings({PREFECT_API_URL: url}):
        assert command.main(preprocess, [recipe]) == 2
    assert f"no Prefect server answers at {url}" in capsys.readouterr().err


def test_a_bad_recipe_is_told_before_anything_starts(tmp_path: Path) -> None:
    started = time.monotonic()
    done = run_command("train", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe ")
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
    assert run_command("train").returncode == 2


def run_command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"flows.{name}", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, env=own_environment())


def own_environment() -> dict[str, str]:
    """Without the address of the test's server: the command starts its own."""
    return {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}


@pytest.mark.slow
def test_the_command_as_a_user_runs_it(tmp_path: Path) -> None:
    data = waves()
    data["u"][3] = float("nan")
    recipe = str(write_recipe(tmp_path, data))
    done = run_command("end_to_end", recipe, "--json")
    assert done.returncode == 3, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["n_failed"] == 1
    assert "Traceback" not in done.stderr
    assert "prefect" not in done.stderr.lower().replace("prefect's private server", "")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_command_leaves_nothing_running_and_continues(tmp_path: Path, number: signal.Signals) -> None:
    recipe = str(write_recipe(tmp_path))
    line = [sys.executable, "-m", "flows.end_to_end", recipe, "--set", "train.steps=100000"]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            line, cwd=ROOT, stdout=log, stderr=log, env=own_environment(), start_new_session=True
        )
    wait_until(lambda: "[5/9]" in (tmp_path / "log").read_text() or running.poll() is not None)
    children = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
    os.killpg(running.pid, number)  # as a terminal does
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert running.wait(60) == expected, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    done = run_command("end_to_end", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already there") >= 4


def wait_until(reached: Any, limit: float = 180) -> None:
    end = time.monotonic() + limit
    while not reached():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def test_the_private_server_records_and_does_not_look_often(tmp_path: Path) -> None:
    """Its services are those that record; its task queue does at once what comes, and rarely looks for what is due."""
    code = """
import asyncio, datetime, docket, os, flows
from prefect.server.services.base import RunInEphemeralServers
from flows import server

made = []
server.LOOK_EVERY = datetime.timedelta(hours=1)  # else what came would be found soon anyway

class Noted(docket.Worker):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        made.append(self)

docket.Worker = Noted

async def main():
    app = server.private_app()
    async with app.router.lifespan_context(app):
        [worker] = made
        assert worker.minimum_check_interval == worker.scheduling_resolution == server.LOOK_EVERY
        done = asyncio.Event()

        async def work():
            done.set()

        await worker.docket.add(work)()
        await done.wait()
        print(*[service.__name__ for service in RunInEphemeralServers.enabled_services()], flush=True)
        os._exit(0)  # some of Prefect's services cannot be stopped before they have started

asyncio.run(main())
"""
    environment = {**own_environment(), "PREFECT_HOME": str(tmp_path)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {"TaskRunRecorder", "EventPersister"} <= set(done.stdout.split())


@pytest.mark.slow
def test_a_private_server_serves_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import flows; from flows.server import *; s = PrivateServer(); s.ready(); print(needed()); s.stop()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=own_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
