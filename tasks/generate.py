"""Draw samples from the trained model and write their decoded fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def generate(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Draw samples from the trained model and write their decoded fields."""
    return run_stage("generate", recipe, parent_run)
