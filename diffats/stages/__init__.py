"""The pipeline's stages as plain functions of a recipe, in order, one module each.

``run`` executes one of them under the root's lock, tracked where a parent run is given. A stage whose result is
already there does nothing; one that was interrupted continues.

Where a launcher started several processes, the first one alone locks, tracks and writes: the others take their part
of the training, and do nothing in other stages.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diffats import processes
from diffats.config import Recipe
from diffats.digests import text_digest
from diffats.errors import InputError, StoreNotFoundError, redact
from diffats.progress import LoggedProgress, ProgressLine, waiting
from diffats.requirements import require
from diffats.stages.workspace import Hooks, Progress, StageResult, Workspace, find_store
from diffats.store import writer_lock

if TYPE_CHECKING:
    from diffats.registry import StageRun, Tracker

__all__ = [
    "STAGES",
    "StageResult",
    "Workspace",
    "describe",
    "finish_tracking",
    "pages",
    "run",
    "start_tracking",
    "summary",
    "tracked",
]

STAGES = (
    "decompose",
    "select_anchor",
    "align",
    "fit_normalisation",
    "train",
    "generate",
    "evaluate",
    "register",
    "report",
)
#: The extras without which a stage cannot run.
_EXTRAS = {
    "train": ("train",),
    "generate": ("train",),
    "evaluate": ("train",),
    "register": ("train", "track"),
    "report": ("train", "track"),
}
#: What is waited for in stages that count nothing.
_DOES = {
    "evaluate": "comparing samples",
    "register": "registering in MLflow",
    "report": "drawing pictures and writing the page",
}
_NOTE_EVERY = 30.0  # seconds
# Telemetry is off in what a user is told to start, too.
_NO_REPORTS = "DO_NOT_TRACK=true PREFECT_SERVER_ANALYTICS_ENABLED=false"
log = logging.getLogger("diffats.stages")  # one line for each finished stage


def run(
    stage: str,
    recipe: Recipe,
    *,
    parent_run: str | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> StageResult:
    """Run one stage of a recipe.

    Parameters
    ----------
    stage
        One of ``STAGES``.
    parent_run
        MLflow run under which the stage is tracked; untracked where left out.
    restart
        Make the result anew even where it is there.
    progress
        Called with (done, total, failed), and a `ProgressLine` told the loss; logged where left out.

    Raises
    ------
    DiffatsError
        Whose message says what to do; committed work stays.
    """
    if stage not in STAGES:
        raise InputError(f'there is no stage "{stage}". Stages: {", ".join(STAGES)}.')
    check(stage, recipe)
    module = importlib.import_module(f"diffats.stages.{stage}")
    work = Workspace(recipe)
    if not processes.is_main():
        return _take_part(stage, module, work, restart)
    with writer_lock(work.root):
        records = _Records(work, stage, parent_run)
        shown = progress or LoggedProgress(stage)
        clock = _Stopwatch(work, stage, restart)

        def log_metrics(metrics: dict[str, float], step: int) -> None:
            records.log(metrics, step)
            if isinstance(shown, ProgressLine):
                shown.note(metrics)

        try:
            if stage == "train" and (restart or module.find_bundle(work) is None):
                records.open()  # not in the middle of the training loop
            hooks = Hooks(log=log_metrics, progress=clock.watching(shown), restart=restart)
            arguments = (parent_run,) if stage == "register" else ()
            with waiting(_DOES.get(stage, "preparing")):
                result: StageResult = module.run(work, hooks, *arguments)
            if not result.skipped:
                clock.note(done=True)
            records.add(result)
        except BaseException as error:
            clock.interrupted()
            records.close(error)
            raise
        records.close(None)
    state = "already there" if result.skipped else f"{result.seconds:.1f} s"
    log.info("%s: %s (%s)", stage, result.summary, state)
    return result


class _Stopwatch:
    """What a stage's work has taken so far, noted every half minute: a kill loses no more."""

    def __init__(self, work: Workspace, stage: str, restart: bool) -> None:
        self.work, self.stage, self.fresh = work, stage, restart
        self.since = time.monotonic()
        self.identity = ""  # of the work; empty until something of it is done

    def watching(self, shown: Progress) -> Progress:
        """The same progress, with a look at the clock."""

        def progress(done: int, total: int, failed: int) -> None:
            self.identity = self.identity or self._identify()
            shown(done, total, failed)
            if time.monotonic() - self.since > _NOTE_EVERY:
                self.note(done=False)

        return progress

    def note(self, *, done: bool) -> None:
        """Add the time since the last note."""
        self.identity, now = self.identity or self._identify(), time.monotonic()
        add = self.stage == "train"  # more steps continue a training that had ended
        self.work.note_seconds(self.stage, now - self.since, self.identity, done=done, add=add, fresh=self.fresh)
        self.since, self.fresh = now, False

    def interrupted(self) -> None:
        """Note the time of work that was begun and did not end, where the disk takes it."""
        if self.identity:
            with suppress(OSError):
                self.note(done=False)

    def _identify(self) -> str:
        """A training's directory, which more steps continue whatever the recipe says; else the recipe."""
        from diffats.stages import train

        if self.stage != "train":
            return train.recipe_fingerprint(self.work)
        identity = train.model_fingerprint(self.work, *train.require_normalisation(self.work))
        return train.training_directory(self.work, identity).name


def _take_part(stage: str, module: ModuleType, work: Workspace, restart: bool) -> StageResult:
    """What a process does that is not the main one."""
    if stage != "train":
        return StageResult(stage, "", "", "", skipped=True, summary="left to the main process")
    result: StageResult = module.run(work, Hooks(restart=restart))
    return result


def check(stage: str, recipe: Recipe) -> None:
    """Refuse, before anything is made, a recipe that cannot work or a stage without the store it reads.

    Raises
    ------
    InputError
        Whose message says what to do.
    """
    require(f"diffats {stage}", *_EXTRAS.get(stage, ()))
    work = Workspace(recipe)
    if stage == "decompose":
        from diffats.stages import plan

        plan.check_encoding(work)
    elif find_store(work.store_location) is None:
        raise StoreNotFoundError(
            f"{work.root} holds nothing that {stage} could start from. Run `diffats decompose RECIPE.toml` first."
        )


class _Records:
    """What a stage leaves in MLflow: its run, begun at the first thing there is to record.

    A tracker that is away by then does not stop the stage: numbers are kept, and the run is tried again at the end.
    """

    def __init__(self, work: Workspace, stage: str, parent_run: str | None) -> None:
        self.work, self.stage, self.parent_run = work, stage, parent_run
        self._run: StageRun | None = None
        self._started = time.time_ns() // 1_000_000
        self._away = False
        self._kept: list[tuple[dict[str, float], int]] = []

    def open(self) -> StageRun | None:
        """The stage's run; ``None`` where it is not tracked or the tracker is away."""
        if self._run is not None or self.parent_run is None:
            return self._run
        from diffats.registry import TrackingError

        try:
            self._run = _tracker(self.work.recipe).stage(self.parent_run, self.stage, started=self._started)
        except (TrackingError, OSError) as error:
            self._warn("its run is begun at its end, if MLflow is back", error)
            return None
        for metrics, step in self._kept:
            self._send(self._run, metrics, step)
        self._kept.clear()
        return self._run

    def _send(self, run: StageRun, metrics: dict[str, float], step: int) -> None:
        from diffats.stages import descriptions

        run.log(metrics, step)
        run.curves(descriptions.curve(metrics), step)

    def _warn(self, then: str, error: Exception) -> None:
        if not self._away:
            log.warning('stage "%s" goes on without MLflow; %s: %s', self.stage, then, redact(str(error)))
        self._away = True

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record numbers."""
        run = self._run if self._away else self.open()
        if run is not None:
            self._send(run, metrics, step)
        elif self.parent_run is not None:
            self._kept.append((metrics, step))

    def add(self, result: StageResult) -> None:
        """Record what a stage made; of one that was done already, what the parent run shows of it."""
        if self.parent_run is None:
            return
        if result.skipped:
            return self._note_inputs(result, self.parent_run)
        run = self.open()
        if run is None:
            return
        from diffats.stages import descriptions, inputs

        run.log({**result.metrics, "seconds": result.seconds}, step=result.done if self.stage == "train" else 0)
        run.headline(descriptions.headline_metrics(result))
        run.params({"fingerprint": result.fingerprint[:16], "version": result.version})
        for dataset in (*inputs.read(self.work, self.stage), *inputs.made(self.work, result)):
            run.dataset(**dataset)
        run.text("summary.md", result.summary)
        descriptions.tell_run(self.work, run, result)

    def _note_inputs(self, result: StageResult, parent_run: str) -> None:
        """Give the parent run what a stage that was done already would have given it."""
        from diffats.registry import TrackingError
        from diffats.stages import descriptions, inputs

        datasets, metrics = inputs.read(self.work, self.stage), descriptions.known_metrics(self.work, result)
        if not (datasets or metrics):
            return
        try:
            tracker = _tracker(self.work.recipe)
            tracker.log(parent_run, metrics)
            for dataset in datasets:
                tracker.dataset(parent_run, **dataset)
        except (TrackingError, OSError) as error:
            self._warn("its data versions and numbers are not recorded", error)

    def close(self, error: BaseException | None) -> None:
        """End the run."""
        if self._run is not None:
            self._run.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


def _tracker(recipe: Recipe) -> Tracker:
    from diffats import registry

    return registry.Tracker.for_recipe(recipe)


@contextmanager
def tracked(recipe: Recipe, *, latest: bool = False) -> Iterator[str]:
    """The MLflow run of a recipe for a ``with`` block, whose end says how the block ended.

    The block holds the root's lock, so a run that is continued is nobody else's.

    Parameters
    ----------
    latest
        Continue the recipe's newest run even where it is finished, as the verbs of one recipe do, one after the other;
        without it, as in flows, only a run that was interrupted or failed.

    Raises
    ------
    InputError
        Where the recipe cannot work.
    LockedError
        Where another process is writing to the root; its run stays as it is.
    TrackingError
        Where the tracker cannot be reached at the start.
    """
    from diffats.stages import plan

    require("tracking", "track")
    work = Workspace(recipe)
    plan.check(work)  # before anything is made
    with writer_lock(work.root):
        with waiting("starting MLflow"):
            parent_run, _ = start_tracking(recipe, latest=latest)
        status = "KILLED"  # by what is no Exception: Ctrl-C, or Prefect's signals
        try:
            yield parent_run
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            finish_tracking(recipe, parent_run, status)


def start_tracking(recipe: Recipe, *, latest: bool = False) -> tuple[str, str]:
    """The MLflow run of this recipe, continued as in :func:`tracked`, and the tracking URI.

    Raises
    ------
    LockedError
        Where another process is writing to the root.
    """
    from diffats import registry
    from diffats.stages.train import recipe_fingerprint

    work = Workspace(recipe)
    with writer_lock(work.root):
        if own := registry.keeps_its_own(recipe):
            log.info("%s", own)
        tracker = _tracker(recipe)
        # On a shared server, a run of the same recipe may be another root's, on which this root's lock says nothing.
        tags = {"diffats.root": _place(work.root)} if recipe.tracking.uri else {}
        identity = recipe_fingerprint(work)
        run_id = tracker.start(recipe.name, tags, work.portable, fingerprint=identity, latest=latest)
    return run_id, tracker.uri


def _place(root: Path) -> str:
    return text_digest(f"{socket.gethostname()}:{root.resolve()}")[:16]


def finish_tracking(recipe: Recipe, parent_run: str, status: str = "FINISHED") -> None:
    """End the MLflow run: "FINISHED", "FAILED" or "KILLED". One under which nothing was to do is not kept.

    A tracker that is away is logged, not raised: the work is done.
    """
    from diffats import registry

    def finish() -> None:
        try:
            tracker = _tracker(recipe)
            tracker.finish(parent_run, status)
            if status == "FINISHED":
                tracker.discard_if_empty(parent_run)
        except (registry.TrackingError, OSError) as error:
            log.warning("run %s could not be marked %s: %s", parent_run, status, redact(str(error)))

    if status == "KILLED":
        registry.soon(finish, f"the end of run {parent_run}")
    else:
        finish()


def summary(recipe: Recipe, results: Iterable[StageResult]) -> dict[str, Any]:
    """One JSON-able object that says what a run made."""
    by_stage = {result.stage: result for result in results}
    work = Workspace(recipe)
    out: dict[str, Any] = {"store": work.store_location, "seconds": {s: r.seconds for s, r in by_stage.items()}}
    for stage, fill in _SUMMARIES.items():
        if stage in by_stage:
            out |= fill(by_stage[stage])
    return out


def _decompose_summary(result: StageResult) -> dict[str, Any]:
    metrics = result.metrics
    errors = {
        key: {name: metrics[f"{key}_{name}"] for name in ("mean", "max")} for key in ("relative_error", "anomaly_error")
    }
    return {
        "version": result.version,
        "n_samples": result.total,
        "n_failed": int(metrics["n_failed"]),
        "n_dropped": result.facts["n_dropped"],
        "compression": metrics["compression"],
        "reconstruction_error": errors["relative_error"],
        "anomaly_error": errors["anomaly_error"],
    }


_SUMMARIES: dict[str, Callable[[StageResult], dict[str, Any]]] = {
    "decompose": _decompose_summary,
    "align": lambda r: {"version": r.version, "overlap_sigma_min": r.facts["overlap_sigma_min"]},
    "generate": lambda r: {"generated": {"location": r.location, "version": r.version, "count": r.total}},
    "evaluate": lambda r: {"metrics": r.facts["metrics"]},
    "register": lambda r: {"model": r.facts["model"], "tracking_uri": r.facts["tracking_uri"]},
    "report": lambda r: {"report": r.location},
}


def describe(recipe: Recipe, results: Iterable[StageResult]) -> str:
    """What a run made, and how to look at it, for people."""
    made = summary(recipe, results)
    lines = []
    if "report" in made:
        lines.append(f"Report:      {made['report']}")
    if "model" in made:
        model = made["model"]
        lines.append(f"Model:       {model['name']} version {model['version']}, alias {model['alias']}")
        lines.append(f"             {model['verdict']}")
    if "compression" in made:
        anomaly, relative = made["anomaly_error"]["mean"], made["reconstruction_error"]["mean"]
        lines.append(
            f"Primitives:  {made['n_samples'] - made['n_failed']} samples, {made['compression']:.1f}x fewer numbers, "
            f"error {anomaly:.1%} of the anomaly, {relative:.1%} of the field"
        )
    lines.append(f"Store:       {made['store']}")
    if "tracking_uri" in made:
        from diffats import registry

        program = f"import diffats; print(diffats.load('{recipe.location}').sample(8))"
        lines.append(f'Use it:      {installed("python")} -c "{program}"')
        lines.append(f"MLflow:      {registry.ui_command(made['tracking_uri'])}")
        lines.append(f"Prefect:     {_NO_REPORTS} {installed('prefect')} server start --host 127.0.0.1")
    return "\n".join(lines)


def pages(recipe: Recipe, parent_run: str | None) -> dict[str, str]:
    """Addresses in MLflow's pages by what they show: the report, the run, the model. Empty where it is away."""
    from diffats import registry

    try:
        return _tracker(recipe).pages(recipe.name, parent_run)
    except (registry.TrackingError, OSError) as error:
        log.warning("no links to MLflow: %s", redact(str(error)))
        return {}


def installed(command: str) -> str:
    """A command of this environment as it can be typed here: by name where the environment is active, else by path."""
    path = Path(sys.executable).with_name(command)
    if shutil.which(command) == str(path) or not path.exists():
        return command
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
