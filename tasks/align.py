"""Rotate every sample's factors to the anchors, which gives the primitives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def align(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Rotate every sample's factors to the anchors, which gives the primitives."""
    return run_stage("align", recipe, parent_run)
