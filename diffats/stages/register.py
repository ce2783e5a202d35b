"""Stage 8: the model as a version in MLflow's registry; candidate always, champion where it is not worse."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from diffats import bundle, evaluation
from diffats.errors import DiffatsError, InputError
from diffats.stages import evaluate, generate, train
from diffats.stages.workspace import Hooks, StageResult, Workspace

log = logging.getLogger("diffats.register")


def record_path(work: Workspace, model: bundle.Bundle) -> Path:
    """Where the outcome of registering this bundle is kept, so that the same command does not register it twice."""
    return work.root / "registered" / f"{model.directory.name}.json"


def run(work: Workspace, hooks: Hooks, parent_run: str | None) -> StageResult:
    """Register the bundle as candidate, compare it with the champion now, and move the alias where it holds."""
    from diffats import registry

    started = time.monotonic()
    model = train.require_bundle(work)
    found = evaluate.read_evaluation(work)
    if found is None:
        raise InputError(f"{work.root}: the model is not evaluated. Run `diffats evaluate RECIPE.toml` first.")
    metrics, identity = found
    path = record_path(work, model)
    tracker = registry.Tracker.for_recipe(work.recipe)
    if path.is_file() and not hooks.restart:
        outcome = json.loads(path.read_text(encoding="utf-8"))
        if outcome["evaluation"] == identity and outcome["tracking_uri"] == tracker.uri:
            return result(outcome, started, skipped=True)
    if parent_run is None:
        raise InputError("registering needs an MLflow run. Use `diffats register RECIPE.toml` or the flow.")
    version = tracker.register(
        model.directory,
        work.recipe.name,
        parent_run,
        tags=tags(work, model, metrics),
        summary=f"Diffusion model on aligned tensor primitives of {work.recipe.name}.",
    )
    verdict, champion = decide(work, tracker, model, metrics)
    if champion:
        tracker.set_alias(work.recipe.name, "champion", version)
    outcome = {
        "name": work.recipe.name,
        "version": version,
        "alias": "champion" if champion else "candidate",
        "uri": f"models:/{work.recipe.name}@{'champion' if champion else 'candidate'}",
        "verdict": verdict,
        "tracking_uri": tracker.uri,
        "evaluation": identity,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(outcome, indent=1), encoding="utf-8")
    os.replace(partial, path)
    return result(outcome, started)


def tags(work: Workspace, model: bundle.Bundle, metrics: dict[str, Any]) -> dict[str, str]:
    """What links a model version to its data, anchors, recipe and code."""
    from diffats import __version__

    decisive = work.recipe.evaluate.metric
    provenance = model.provenance
    return {
        "diffats.data_version": str(provenance["primitives_snapshot"]),
        "diffats.data_digest": str(provenance["primitives_digest"]),
        "diffats.anchor": str(provenance["anchor_fingerprint"])[:16],
        "diffats.recipe_fingerprint": train.recipe_fingerprint(work),
        "diffats.code_version": __version__,
        f"diffats.metric.{decisive}": str(metrics[decisive]["value"]),
    }


def decide(work: Workspace, tracker: Any, model: bundle.Bundle, metrics: dict[str, Any]) -> tuple[str, bool]:
    """Whether the candidate becomes champion, and why, in a sentence.

    Both are evaluated now, on the current test split with the same seeds; a first model must beat the Gaussian.
    """
    name = work.recipe.evaluate.metric
    if tracker.alias(work.recipe.name, "champion") is None:
        better = evaluation.beats(metrics[name])
        if better or better is None:
            return f"first champion: {_compare(metrics[name], 'gaussian')}", True
        return f"not champion: {_compare(metrics[name], 'gaussian')}", False
    champion = bundle.load(tracker.download(f"models:/{work.recipe.name}@champion"))
    if not comparable(champion, model):
        return (
            "not champion: the champion was made for other sample sizes or conditions: they cannot be compared",
            False,
        )
    old, new = (current_metric(work, each, name) for each in (champion, model))
    reason = f"{name.replace('_', ' ')} {new:.4g} against the champion's {old:.4g} on the current test split"
    return (f"champion: {reason}", True) if new <= old else (f"not champion: {reason}", False)


def comparable(champion: bundle.Bundle, model: bundle.Bundle) -> bool:
    """Whether two models generate samples of the same modes and sizes under the same conditions."""
    same_layout = (champion.layout.modes, champion.layout.sizes) == (model.layout.modes, model.layout.sizes)
    shapes = [{name: v.shape[1:] for name, v in each.examples.items()} for each in (champion, model)]
    return same_layout and shapes[0] == shapes[1] and champion.label_names == model.label_names


def _compare(row: dict[str, Any], reference: str) -> str:
    if row.get(reference) is None:
        return f"{row['label']} {row['value']:.4g}, no Gaussian reference"
    verb = "beats" if evaluation.beats(row, reference) else "does not beat"
    return f"{row['label'].lower()} {row['value']:.4g} {verb} the Gaussian's {row[reference]:.4g}"


def current_metric(work: Workspace, model: bundle.Bundle, name: str) -> float:
    """Distance from the ideal of a model's metric on the current test split."""
    count = work.recipe.generate.count
    raw, _ = generate.sample_conditions(work, model, count)
    fields = model.fields(model.generate(np.arange(count), work.recipe.seed, raw))
    forecast = name in ("relative_l2", "crps")
    row = evaluation.evaluate(evaluate.compared(work, model, fields, forecast=forecast))[name]
    distance = evaluation.distance_from_ideal(row)
    if distance is None:
        raise DiffatsError(f"metric {name} of {model.directory} is not finite. Choose another evaluate.metric.")
    return distance


def result(outcome: dict[str, Any], started: float, *, skipped: bool = False) -> StageResult:
    """What the summary shows of a registration."""
    return StageResult(
        stage="register",
        fingerprint=outcome["evaluation"],
        version=str(outcome["version"]),
        location=outcome["uri"],
        skipped=skipped,
        seconds=time.monotonic() - started,
        facts={"model": outcome, "tracking_uri": outcome["tracking_uri"]},
        summary=f"{outcome['name']} version {outcome['version']} is {outcome['alias']}; {outcome['verdict']}",
    )
