"""Write the report: one HTML file that shows what was made and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def report(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Write the report: one HTML file that shows what was made and how good it is."""
    return run_stage("report", recipe, parent_run)
