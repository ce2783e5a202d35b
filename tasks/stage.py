"""What the stage tasks share: a task retries where input or output failed, and never uses Prefect's cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from diffats.config import Recipe
from diffats.errors import InputError

if TYPE_CHECKING:
    from diffats.stages import StageResult

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("diffats.tasks")
RETRY_AFTER = (5.0, 30.0)  # seconds before the second and the third try


def io_failed(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a network or disk that failed, not what the user gave and not our mistakes."""
    error = state.data
    again = isinstance(error, OSError) and not isinstance(error, InputError)
    if again:
        delay = RETRY_AFTER[min(run.run_count, len(RETRY_AFTER)) - 1]
        log.warning("%s: %s; trying again in %.0f s", task.name, error, delay)
    return again


def stage_task(function: Callable[P, R]) -> Task[P, R]:
    """Make a stage's function a task that is named like it.

    Prefect's cache is off: it cannot see a change in the library behind a task. The stages themselves know, by
    fingerprint, what is already there, so a retry continues from the last commit.
    """
    as_task = task(
        task_run_name=function.__name__ + " {recipe.name}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_AFTER),
        retry_delay_seconds=list(RETRY_AFTER),
        retry_condition_fn=io_failed,
    )
    return as_task(function)


def run_stage(stage: str, recipe: Recipe, parent_run: str | None) -> StageResult:
    """Run one stage of the library, which is imported only now: it takes seconds."""
    from diffats import stages
    from diffats.cli import progress_bar as progress_bar

    with progress_bar(stage) as progress:
        return stages.run(stage, recipe, parent_run=parent_run, progress=progress)
