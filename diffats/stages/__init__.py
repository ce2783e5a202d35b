"""The pipeline's stages as plain functions of a recipe, in order, one module each.

``run`` executes one of them under the root's lock, tracked where a parent run is given. A stage whose result is
already there does nothing; one that was interrupted continues.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffats.config import Recipe
from diffats.errors import InputError, StoreNotFoundError
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
    "run",
    "start_tracking",
    "summary",
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
log = logging.getLogger("diffats.stages")  # one line for each finished stage
progress_log = logging.getLogger("diffats.progress")


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
        Called with (done, total, failed); logged where left out.

    Raises
    ------
    DiffatsError
        Whose message says what to do; committed work stays.
    """
    if stage not in STAGES:
        raise InputError(f'there is no stage "{stage}". Stages: {", ".join(STAGES)}.')
    module = importlib.import_module(f"diffats.stages.{stage}")
    check(stage, recipe)
    work = Workspace(recipe)
    with writer_lock(work.root):
        tracked = _Tracked(work, stage, parent_run)
        try:
            hooks = Hooks(log=tracked.log, progress=progress or LoggedProgress(stage), restart=restart)
            arguments = (parent_run,) if stage == "register" else ()
            result: StageResult = module.run(work, hooks, *arguments)
            if not result.skipped:
                work.note_seconds(stage, result.seconds)
            tracked.record(result)
        except BaseException as error:
            tracked.close(error)
            raise
        tracked.close(None)
    state = "already there" if result.skipped else f"{result.seconds:.1f} s"
    log.info("%s: %s (%s)", stage, result.summary, state)
    return result


def check(stage: str, recipe: Recipe) -> None:
    """Refuse, before anything is made, a recipe that cannot work or a stage without the store it reads.

    Raises
    ------
    InputError
        Whose message says what to do.
    """
    work = Workspace(recipe)
    if stage == "decompose":
        from diffats.stages import plan

        plan.check_encoding(work)
    elif find_store(work.store_location) is None:
        raise StoreNotFoundError(
            f"{work.root} holds nothing that {stage} could start from. Run `diffats decompose RECIPE.toml` first."
        )


class LoggedProgress:
    """Progress as log lines, at most one in ten seconds."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.started = self.shown = time.monotonic()

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Log where ten seconds have passed."""
        now = time.monotonic()
        if now - self.shown < 10 or not done:
            return
        self.shown = now
        rate = done / (now - self.started)
        eta = (total - done) / rate
        text = "%s: %d/%d, %.3g a second, %.0f s to go, %d failed"
        progress_log.info(text, self.stage, done, total, rate, eta, failed)


class _Tracked:
    """A stage's MLflow run, begun at the first thing there is to log."""

    def __init__(self, work: Workspace, stage: str, parent_run: str | None) -> None:
        self.work, self.stage, self.parent_run = work, stage, parent_run
        self._context: Any = None
        self._run: StageRun | None = None

    @property
    def run(self) -> StageRun | None:
        if self._run is None and self.parent_run is not None:
            self._context = _tracker(self.work.recipe).stage(self.parent_run, self.stage)
            self._run = self._context.__enter__()
        return self._run

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self.run is not None:
            self.run.log(metrics, step)

    def record(self, result: StageResult) -> None:
        """Log what a stage made; nothing where it was there already."""
        if result.skipped or self.run is None:
            return
        self.run.log({**result.metrics, "seconds": result.seconds}, step=result.done if self.stage == "train" else 0)
        self.run.params({"fingerprint": result.fingerprint[:16], "version": result.version})
        for dataset in _datasets(self.work, result):
            self.run.dataset(**dataset)
        self.run.text("summary.md", result.summary)
        if result.stage == "report":
            self.run.artifact(result.location)

    def close(self, error: BaseException | None) -> None:
        if self._context is not None:
            self._context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


def _datasets(work: Workspace, result: StageResult) -> Iterable[dict[str, Any]]:
    if result.stage == "decompose":
        digest = work.samples.fingerprint()
        source = str(work.portable["data"]["source"])
        yield {
            "name": f"{work.recipe.name}-raw",
            "location": source,
            "group": None,
            "snapshot": None,
            "digest": digest,
            "context": "raw",
        }
    if result.stage in ("decompose", "align", "generate"):
        group = {"decompose": "tucker", "align": "primitives", "generate": "samples"}[result.stage]
        yield {
            "name": f"{work.recipe.name}-{group}",
            "location": result.location,
            "group": group,
            "snapshot": result.version,
            "digest": str(result.facts["digest"]),
            "context": group,
        }


def _tracker(recipe: Recipe) -> Tracker:
    from diffats import registry

    return registry.Tracker.for_recipe(recipe)


def start_tracking(recipe: Recipe) -> tuple[str, str]:
    """The MLflow run of this recipe, continued where an earlier one was interrupted, and the tracking URI."""
    from diffats.stages import plan
    from diffats.stages.train import recipe_fingerprint

    work = Workspace(recipe)
    plan.check(work)  # before anything is made
    work.root.mkdir(parents=True, exist_ok=True)
    tracker = _tracker(recipe)
    identity = recipe_fingerprint(work)
    run_id = tracker.start(recipe.name, params=work.portable, fingerprint=identity)
    return run_id, tracker.uri


def finish_tracking(recipe: Recipe, parent_run: str, status: str = "FINISHED") -> None:
    """End the MLflow run: "FINISHED", "FAILED" or "KILLED". One under which nothing was to do is not kept."""
    tracker = _tracker(recipe)
    tracker.finish(parent_run, status)
    if status == "FINISHED":
        tracker.discard_if_empty(parent_run)


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
        "n_failed": result.failed,
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
        lines.append(f"Prefect:     {installed('prefect')} server start --host 127.0.0.1")
    return "\n".join(lines)


def installed(command: str) -> str:
    """A command of this environment as it can be typed here: by name where the environment is active, else by path."""
    path = Path(sys.executable).with_name(command)
    if shutil.which(command) == str(path) or not path.exists():
        return command
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
