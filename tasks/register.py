"""Register the model, as champion where it is not worse than the present one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def register(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Register the model, as champion where it is not worse than the present one."""
    return run_stage("register", recipe, parent_run)
