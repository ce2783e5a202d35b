"""Train the denoiser on the normalised primitives, from its last checkpoint where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffats.config import Recipe
from tasks.stage import run_stage, stage_task

if TYPE_CHECKING:
    from diffats.stages import StageResult


@stage_task
def train(recipe: Recipe, parent_run: str | None = None) -> StageResult:
    """Train the denoiser on the normalised primitives, from its last checkpoint where there is one."""
    return run_stage("train", recipe, parent_run)
