"""From primitives to a registered model with its report. ``python -m flows.train RECIPE.toml``."""

from __future__ import annotations

from collections.abc import Sequence

from flows.pipeline import Outcome, recipe_flow, run_stages
from tasks.evaluate import evaluate
from tasks.generate import generate
from tasks.register import register
from tasks.report import report
from tasks.train import train as train_stage

# A model is registered with its figures, and these need samples.
STAGES = (train_stage, generate, evaluate, register, report)


@recipe_flow
def train(recipe: str, overrides: Sequence[str] = ()) -> Outcome:
    """Train on the primitives that preprocess left, generate samples, evaluate them, register the model and report.

    Args:
        recipe: Path of the recipe, a TOML file; a relative one starts at the checkout of the worker.
        overrides: Options that replace the recipe's, each "section.key=value", such as "train.steps=500";
            `diffats config RECIPE.toml` lists them. In the form one an item; on the command line
            prefect deployment run FLOW/NAME --param 'overrides=["train.steps=500"]'.
    """
    return run_stages(recipe, overrides, STAGES)


if __name__ == "__main__":
    from flows.command import end

    end(train)
