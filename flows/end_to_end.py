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
        recipe: Path of the recipe, a TOML file; a relative one starts at the checkout of the worker.
        overrides: Options that replace the recipe's, each "section.key=value", such as "train.steps=500";
            `diffats config RECIPE.toml` lists them. In the form one an item; on the command line
            prefect deployment run FLOW/NAME --param 'overrides=["train.steps=500"]'.
    """
    return run_stages(recipe, overrides, STAGES)


if __name__ == "__main__":
    from flows.command import end

    end(end_to_end)
