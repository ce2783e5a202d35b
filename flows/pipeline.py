"""What the flows share: stages in order under one MLflow run, their progress, and the report artifact."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import Flow, Task, flow, runtime
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from diffats.config import load_recipe
from diffats.errors import InputError
from flows.artifact import artifact_key, publish

if TYPE_CHECKING:
    from diffats.stages import StageResult

log = logging.getLogger("diffats.flows")
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
    return " ".join([runtime.flow_run.flow_name, Path(given["recipe"]).stem, *given["overrides"]])[:200]


def run_stages(recipe: str, overrides: Sequence[str], steps: Sequence[Task[..., StageResult]]) -> Outcome:
    """Run the stages one after the other.

    Raises
    ------
    InputError
        Where a launcher started several processes.
    DiffatsError
        From the first stage that fails; what was committed stays, and the next run continues there.
    """
    from diffats import stages
    from diffats.stages import processes

    if processes.count() > 1:
        raise InputError(
            "a flow runs in one process. Launch `diffats train RECIPE.toml` in several, then run the flow in one: "
            "it finds the model there."
        )
    if log.getEffectiveLevel() > logging.INFO:
        logging.getLogger("diffats").setLevel(logging.INFO)  # else Prefect's log shows only warnings
    resolved = load_recipe(recipe, overrides)
    results = []
    with stages.tracked(resolved) as parent_run:
        progress = cast(UUID, create_progress_artifact(0.0, artifact_key("progress", resolved.name), "Stages done"))
        for number, step in enumerate(steps, 1):
            log.info("[%d/%d] %s", number, len(steps), step.name)
            results.append(step(resolved, parent_run))
            update_progress_artifact(progress, 100 * number / len(steps), f"Stages done, last {step.name}")
        publish(resolved, results, parent_run)
    failed = sum(result.failed for result in results)
    return Outcome(stages.summary(resolved, results), stages.describe(resolved, results), failed)
