"""From raw fields to normalised primitives in a versioned store. ``python -m flows.preprocess RECIPE.toml``."""

from __future__ import annotations

from collections.abc import Sequence

from flows.pipeline import Outcome, recipe_flow, run_stages
from tasks.align import align
from tasks.decompose import decompose
from tasks.fit_normalisation import fit_normalisation
from tasks.select_anchor import select_anchor

STAGES = (decompose, select_anchor, align, fit_normalisation)


@recipe_flow
def preprocess(recipe: str, overrides: Sequence[str] = ()) -> Outcome:
    """Decompose every sample, choose the anchors, align, and fit the normalisation.

    Args:
        recipe: Path of the recipe, a TOML file; a relative one starts at the checkout of the worker.
        overrides: Options that replace the recipe's, each "section.key=value", such as "train.steps=500";
            `diffats config RECIPE.toml` lists them. In the form one an item; on the command line
            prefect deployment run FLOW/NAME --param 'overrides=["train.steps=500"]'.
    """
    return run_stages(recipe, overrides, STAGES)


if __name__ == "__main__":
    from flows.command import end

    end(preprocess)
