"""Tucker-decompose every sample of the raw fields into factors and a core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def decompose(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Tucker-decompose every sample of the raw fields into factors and a core."""
    return run_stage("decompose", recipe, parent_run)
