"""The main job: from raw fields to a registered generative model. ``python -m flows.end_to_end RECIPE.toml``."""

from __future__ import annotations

from collections.abc import Sequence

from flows import preprocess, train
from flows.pipeline import Outcome, recipe_flow, run_stages

STAGES = (*preprocess.STAGES, *train.STAGES)


@recipe_flow
def end_to_end(recipe: str, overrides: Sequence[str] = ()) -> Outcome:
    """Run every stage; those whose result is there already say so, one that was interrupted continues.

    Args:
        recipe: Path of the recipe, a TOML file.
        overrides: Options that replace the recipe's, each "section.key=value".
    """
    return run_stages(recipe, overrides, STAGES)


if __name__ == "__main__":
    from flows.command import end

    end(end_to_end)
