"""Measure generated samples against real ones, next to reference models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def evaluate(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Measure generated samples against real ones, next to reference models."""
    return run_stage("evaluate", recipe, parent_run)
