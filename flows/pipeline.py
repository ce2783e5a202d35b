"""What the flows share: stages in order under one MLflow run, their progress, and the report artifact."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import Flow, Task, flow, runtime
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Running, State

from diffats.cli import progress_bar
from diffats.config import Recipe, load_recipe
from diffats.errors import DriftError, InputError, LockedError
from diffats.store import is_being_written
from flows.artifact import artifact_key, publish, publish_drift

if TYPE_CHECKING:
    from diffats.stages import StageResult

log = logging.getLogger("diffats.flows")
NOTE = ".flow_run"  # in a root: id of the flow run that works there, or did last
LOOK_AGAIN = 2.0  # seconds
RECIPE_TAG = "recipe:"
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome:
    """What a flow made.

    Attributes
    ----------
    summary
        The object that ``--json`` prints.
    description
        The same for people, with the commands that open the pages.
    failed
        Samples that failed, all stages together.
    """

    summary: dict[str, Any]
    description: str
    failed: int


def recipe_flow(function: Callable[P, R]) -> Flow[P, R]:
    """Make a function of ``recipe`` and ``overrides`` a flow whose run names say what and which."""
    return flow(name=function.__name__, flow_run_name=run_name, persist_result=False)(function)


def run_name() -> str:
    """Flow, recipe and overrides, such as ``"train indian_pines train.steps=20"``."""
    given = runtime.flow_run.parameters
    overrides = given.get("overrides") or []
    return " ".join([runtime.flow_run.flow_name, Path(given["recipe"]).stem, *overrides])[:200]


def run_stages(recipe: str, overrides: Sequence[str], steps: Sequence[Task[..., StageResult]]) -> Outcome:
    """Run the stages one after the other.

    Raises
    ------
    InputError
        Where a launcher started several processes.
    DiffatsError
        From the first stage that fails; what was committed stays, and the next run continues there.
    """
    from diffats import processes, stages
    from diffats.stages.outlook import outlook

    if processes.count() > 1:
        raise InputError(
            "a flow runs in one process, and WORLD_SIZE says that several run this. Launch `diffats train RECIPE.toml` "
            "in several, then run the flow in one: it finds the model there. Nobody launched several? Unset WORLD_SIZE."
        )
    if log.getEffectiveLevel() > logging.INFO:
        logging.getLogger("diffats").setLevel(logging.INFO)  # else Prefect's log shows only warnings
    resolved = load_recipe(recipe, overrides)
    results = []
    with ExitStack() as stack:
        with progress_bar(resolved.name):
            parent_run = begin(stack, resolved)
            page = RunPage(resolved)
        if expected := outlook(stages.Workspace(resolved), [step.name for step in steps]):
            log.info("%s: %s", resolved.name, expected)
        for number, step in enumerate(steps, 1):
            log.info("[%d/%d] %s", number, len(steps), step.name)
            try:
                results.append(step(resolved, parent_run))
            except DriftError:
                page.tell(lambda: publish_drift(resolved))
                raise
            page.tell_progress(100 * number / len(steps), f"Stages done, last {step.name}")
        page.tell(lambda: publish(resolved, results, parent_run))
        page.tell(lambda: publish_drift(resolved))
    failed = sum(result.failed for result in results)
    return Outcome(stages.summary(resolved, results), stages.describe(resolved, results), failed)


def begin(stack: ExitStack, recipe: Recipe) -> str:
    """The MLflow run of a recipe, until the stack ends. A run of a deployment first waits for others of its root.

    Raises
    ------
    LockedError
        Where something else writes to the root and nobody asked Prefect to run this later: a command ends.
    """
    from diffats import stages

    waited = False
    while True:
        try:
            parent_run = stack.enter_context(stages.tracked(recipe))
        except LockedError as error:
            if runtime.deployment.id is None:
                raise
            if not waited:
                tell_waiting(Path(recipe.location), error)
            waited = True
            while is_being_written(Path(recipe.location)):
                time.sleep(LOOK_AGAIN)
            continue
        if waited:
            tell_state(Running(message="The run that it waited for has ended."))
        return parent_run


def tell_waiting(root: Path, error: LockedError) -> None:
    """Show on the flow run's page which run of the same root it waits for."""
    text = f"{at_work(root) or str(error).partition(' Wait for')[0]} This run begins when that one ends."
    log.info("%s", text)
    tell_state(Running(name="Waiting", message=text))


def at_work(root: Path) -> str:
    """Which flow run works on a root; empty where it is no flow run of this server."""
    note = root / NOTE
    try:
        with get_client(sync_client=True) as client:
            other = client.read_flow_run(UUID(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, ObjectNotFound, httpx.HTTPError):
        return ""
    running = other.state is not None and other.state.is_running()
    return f"Flow run {other.name!r} ({other.id}) is at work on {root}." if running else ""


def tell_state(state: State[Any]) -> None:
    """Show a state on the flow run's page; a server that is away misses it."""
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(runtime.flow_run.id), state, force=True)


class RunPage:
    """What Prefect shows of a flow run. It stops no stage: a server that is away is waited for once, for a minute."""

    def __init__(self, recipe: Recipe) -> None:
        self.there = True
        self.progress: UUID | None = None
        self.tell(lambda: self._begin(recipe))

    def tell_progress(self, percent: float, text: str) -> None:
        """Show how far it is."""
        if self.progress is not None:
            progress = self.progress
            self.tell(lambda: update_progress_artifact(progress, percent, text))

    def tell(self, send: Callable[[], object]) -> None:
        """Send something to the server."""
        if not self.there:
            return
        try:
            send()
        except httpx.HTTPError as error:
            self.there = False
            log.warning("the Prefect server does not answer (%s). The stages go on, its page stays as it is", error)

    def _begin(self, recipe: Recipe) -> None:
        follow_predecessor(Path(recipe.location))
        tags = {tag for tag in runtime.flow_run.tags if not tag.startswith(RECIPE_TAG)}  # a deployment's may be another
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(runtime.flow_run.id), tags={*tags, RECIPE_TAG + recipe.name})
        made = create_progress_artifact(0.0, artifact_key("progress", recipe.name), "Stages done")
        self.progress = cast(UUID, made)


def follow_predecessor(root: Path) -> None:
    """Note that this flow run works on a root, and tell Prefect of one before it that could not tell its own end.

    After kill -9 or a power failure a flow run would stay "Running" for ever. Called with the root's lock held, so
    nobody else is at work on it.
    """
    note, own = root / NOTE, str(runtime.flow_run.id)
    before = note.read_text(encoding="utf-8") if note.is_file() else own
    if before != own:
        with get_client(sync_client=True) as client:
            _tell_crash(client, before, own)
    with suppress(OSError):  # of a full disk, which the stages tell
        note.write_text(own, encoding="utf-8")


def _tell_crash(client: SyncPrefectClient, before: str, own: str) -> None:
    try:
        state = client.read_flow_run(UUID(before)).state
    except (ObjectNotFound, ValueError):  # of another server, or half written
        return
    if state is not None and state.is_running():
        text = f"Its process ended without a word; flow run {own} continues its work."
        client.set_flow_run_state(UUID(before), Crashed(message=text), force=True)
