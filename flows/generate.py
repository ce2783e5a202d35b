"""Samples from the trained model, as decoded fields in a store. ``python -m flows.generate RECIPE.toml``."""

from __future__ import annotations

from collections.abc import Sequence

from flows.pipeline import Outcome, recipe_flow, run_stages
from tasks.generate import generate as generate_stage

STAGES = (generate_stage,)


@recipe_flow
def generate(recipe: str, overrides: Sequence[str] = ()) -> Outcome:
    """Draw samples from the model that train left; ``generate.count=1000`` as an override draws more.

    Args:
        recipe: Path of the recipe, a TOML file; a relative one starts at the checkout of the worker.
        overrides: Options that replace the recipe's, each "section.key=value", such as "train.steps=500";
            `diffats config RECIPE.toml` lists them. In the form one an item; on the command line
            prefect deployment run FLOW/NAME --param 'overrides=["train.steps=500"]'.
    """
    return run_stages(recipe, overrides, STAGES)


if __name__ == "__main__":
    from flows.command import end

    end(generate)
