"""Choose, for each aligned mode, the factors that all others are aligned to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def select_anchor(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Choose, for each aligned mode, the factors that all others are aligned to."""
    return run_stage("select_anchor", recipe, parent_run)
