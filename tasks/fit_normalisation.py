"""Fit the mean and scale of each stream on the training part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def fit_normalisation(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Fit the mean and scale of each stream on the training part."""
    return run_stage("fit_normalisation", recipe, parent_run)
