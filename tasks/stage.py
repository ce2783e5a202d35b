"""What the stage tasks share: a task retries where input or output failed, and never uses Prefect's cache."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import icechunk
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from diffats.config import Recipe
from diffats.errors import InputError, LockedError
from diffats.icechunk_releases import THROTTLED, kind_of
from diffats.messages import MESSAGES

if TYPE_CHECKING:
    from diffats.stages import StageResult

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("diffats.tasks")
RETRY_AFTER = (5.0, 30.0)  # seconds before the second and the third try
PASSING = (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)
MLFLOW_BUSY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")


def io_failed(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a network or disk that failed, not what the user gave and not our mistakes."""
    error = state.data
    again = isinstance(error, Exception) and can_pass(error)
    if again:
        delay = RETRY_AFTER[min(run.run_count, len(RETRY_AFTER)) - 1]
        log.warning("%s: %s; trying again in %.0f s", task.name, error, delay)
    return again


def can_pass(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is of a network or disk and may be gone in a while.

    >>> try:
    ...     raise ValueError("a.nc cannot be read") from ConnectionResetError()
    ... except ValueError as error:
    ...     can_pass(error)
    True
    >>> can_pass(FileNotFoundError("a.nc")), can_pass(ValueError("a.nc has no variable u"))
    (False, False)
    """
    if isinstance(error, LockedError):  # comes from a lock's timeout
        return False
    given = isinstance(error, InputError)  # then an unnamed cause is what is wrong with the input
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if _failed_link(link, given):
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False


def _failed_link(error: BaseException, given: bool) -> bool:
    """One error of a chain; where the input is to blame, only one that names a connection or device."""
    if isinstance(error, InputError | FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):
        # HDF5 says with a bare OSError that a file is none; libraries of the network have types of their own.
        return not given or error.errno in PASSING or type(error) is not OSError
    if isinstance(error, icechunk.ConflictError):
        return False
    if isinstance(error, icechunk.IcechunkError):
        return not given or kind_of(error) == THROTTLED or MESSAGES["request not sent"].is_in(error)
    return getattr(error, "error_code", None) in MLFLOW_BUSY  # MLflow takes seconds to import


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
    from diffats.cli import progress_bar

    with progress_bar(stage) as progress:
        return stages.run(stage, recipe, parent_run=parent_run, progress=progress)
