"""About how long a run will take, from what is known before it begins."""

from __future__ import annotations

from collections.abc import Collection

from diffats.progress import duration
from diffats.stages import align, fit_normalisation, growth, pilot, plan, train
from diffats.stages.workspace import Workspace, find_store


def outlook(work: Workspace, stages: Collection[str]) -> str:
    """One line for people; empty where neither encoding nor training is among the stages.

    Parameters
    ----------
    stages
        Names of ``diffats.stages.STAGES``.
    """
    parts = [_encoding(work)] if "decompose" in stages else []
    parts += [_training(work)] if "train" in stages else []
    return ", then ".join(parts)


def _encoding(work: Workspace) -> str:
    n = f"{work.samples.n:,} samples"
    if find_store(work.store_location) is not None:
        primitives = align.primitives_version(work)
        if primitives is not None and primitives.complete:
            return f"{n}, which are encoded already"
        known = plan.known_samples(work)
        if known is not None:
            new = growth.new_samples(work, known)
            return f"about {duration(plan.rough_seconds(work) * new / work.samples.n)} to encode {new:,} new of {n}"
    return f"about {duration(plan.rough_seconds(work))} to encode {n}"


def _training(work: Workspace) -> str:
    steps, done = work.recipe.train.steps, pilot.training_steps_done(work)
    if done == steps:
        return f"{steps:,} steps of training, which are done already"
    left = f"{steps - done:,} of {steps:,} steps" if done else f"{steps:,} steps"
    rate = _rate(work) if done else None
    if rate is None:
        return f"{left} of training, which are timed when they begin"
    return f"about {duration((steps - done) * work.recipe.train.batch / rate)} to train {left}"


def _rate(work: Workspace) -> float | None:
    """Samples a second, as the newest steps of this training took them."""
    primitives, normalisation = align.primitives_version(work), fit_normalisation.normalisation_version(work)
    assert primitives is not None
    assert normalisation is not None
    rows = train.history(work, train.model_fingerprint(work, primitives, normalisation))
    return rows[-1].get("rate") if rows else None
