"""Stage 7: generated samples held against test samples, training samples and a Gaussian, all figures in one file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats import bundle, evaluation
from diffats.errors import InputError
from diffats.stages import decompose, fit_normalisation, generate, train
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
CASES = 16  # conditions for which an ensemble is drawn
GAUSSIAN_SAMPLES = 4096


def evaluation_fingerprint(work: Workspace, generated: Version) -> str:
    """Identity of the figures."""
    config = {"evaluate": {k: v for k, v in work.portable["evaluate"].items() if k != "metric"}}
    return fingerprint("evaluation", config, generated.fingerprint, generated.digest)


def evaluation_path(work: Workspace, identity: str) -> Path:
    """The file of figures."""
    return work.root / "evaluation" / f"{identity[:16]}.json"


def require_samples(work: Workspace, model: bundle.Bundle) -> Version:
    """The finished generated samples of this recipe."""
    return work.require(generate.samples_version(work, model), "samples", "generate")


def read_evaluation(work: Workspace) -> tuple[dict[str, Any], str] | None:
    """The figures of this recipe and their fingerprint, where they are there."""
    model = train.require_bundle(work)
    identity = evaluation_fingerprint(work, require_samples(work, model))
    path = evaluation_path(work, identity)
    return (json.loads(path.read_text(encoding="utf-8")), identity) if path.is_file() else None


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Compute every figure that the recipe allows."""
    started = time.monotonic()
    found = None if hooks.restart else read_evaluation(work)
    if found is not None:
        return result(work, *found, started, skipped=True)
    model = train.require_bundle(work)
    generated = require_samples(work, model)
    metrics = evaluation.evaluate(compared(work, model, generated_fields(work, model, generated)))
    identity = evaluation_fingerprint(work, generated)
    path = evaluation_path(work, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    os.replace(partial, path)
    return result(work, metrics, identity, started)


def generated_fields(work: Workspace, model: bundle.Bundle, generated: Version) -> Array:
    """Good generated samples ``(k, *sizes)`` from the repository."""
    dataset = generated.dataset()
    good = np.flatnonzero(dataset["status"].values == STATUS["ok"])[: work.recipe.evaluate.samples]
    names = [str(name) for name in model.template.data_vars]
    arrays = [dataset[name].isel(sample=good).values for name in names]
    return np.stack(arrays, axis=1) if "component" in work.recipe.tensor_modes else arrays[0]


def compared(work: Workspace, model: bundle.Bundle, generated: Array, *, forecast: bool = True) -> evaluation.Fields:
    """Equal counts of test, training, generated and Gaussian samples, in physical units.

    Parameters
    ----------
    generated
        ``(k, *sizes)``.
    forecast
        Whether to draw ensembles under test conditions, for recipes that are conditioned on fields or scalars.
    """
    seed = work.recipe.seed
    limit = min(len(generated), work.recipe.evaluate.samples)
    test_indices = generate.truth_indices(work, limit, "test")
    train_indices = generate.truth_indices(work, limit, "train")
    k = min(len(generated), len(test_indices), len(train_indices))
    if k < 2:
        raise InputError(
            f"evaluation compares at least 2 test, training and generated samples, got {len(test_indices)}, "
            f"{len(train_indices)} and {len(generated)}. Raise data.split.test or generate.count."
        )
    test_indices = test_indices[:k]
    truth, training = work.samples.read(test_indices), work.samples.read(train_indices[:k])
    z_train = normalised(work, model, generate.truth_indices(work, GAUSSIAN_SAMPLES, "train"))
    z_gaussian = evaluation.gaussian_pca(z_train, k, seed=seed)
    _, training_mean = decompose.read_scaling(work.store_location, decompose.scaling_version(work).snapshot)
    ensembles = forecasts(work, model, test_indices[:CASES]) if forecast else {}
    return evaluation.Fields(
        modes=work.recipe.tensor_modes,
        train=training,
        test=truth,
        generated=generated[:k],
        gaussian=model.fields(unnormalised(model, z_gaussian)),
        reconstruction=model.fields(stored_streams(work, model, test_indices)),
        mean=training_mean,
        scale=np.asarray(model.scaling.scale),
        z_train=z_train,
        z_test=normalised(work, model, test_indices),
        z_generated=encoded(model, generated[:k]),
        z_gaussian=z_gaussian,
        seed=seed,
        **ensembles,
    )


def stored_streams(work: Workspace, model: bundle.Bundle, indices: Array) -> dict[str, Array]:
    """Primitives of the given samples from the store."""
    dataset = fit_normalisation.require_primitives(work).dataset()
    return {stream.name: dataset[stream.name].isel(sample=indices).values for stream in model.layout.streams}


def normalised(work: Workspace, model: bundle.Bundle, indices: Array) -> Array:
    """Normalised primitives ``(k, D)`` of the given samples."""
    streams = model.normalisation.apply(stored_streams(work, model, indices))
    return np.asarray(model.layout.flatten(streams))


def unnormalised(model: bundle.Bundle, z: Array) -> dict[str, Array]:
    """Streams of normalised primitives ``z`` ``(k, D)``."""
    streams = model.normalisation.undo(model.layout.unflatten(z))
    return {name: np.asarray(value) for name, value in streams.items()}


def encoded(model: bundle.Bundle, fields: Array) -> Array:
    """Normalised primitives ``(k, D)`` of fields, as a fresh encoding would give them."""
    from diffats.primitives import encode

    streams, _ = encode(model.scaling.apply(fields), model.anchors, model.layout, "sthosvd")
    return np.asarray(model.layout.flatten(model.normalisation.apply(streams)))


def forecasts(work: Workspace, model: bundle.Bundle, indices: Array) -> dict[str, Array]:
    """Ensembles under the conditions of test samples, their truth and, with an initial slice, persistence."""
    if not generate.conditioned_on_fields(work):
        return {}
    members = work.recipe.evaluate.members
    dataset = fit_normalisation.require_primitives(work).dataset()
    raw = fit_normalisation.raw_conditions(dataset, indices)
    repeated = {name: np.repeat(value, members, axis=0) for name, value in raw.items()}
    numbers = np.arange(len(indices) * members)
    # Another seed than the stored samples', so that the ensemble does not repeat their noise.
    fields = model.fields(model.generate(numbers, work.recipe.seed + 1, repeated))
    truth = work.samples.read(indices)
    out = {"ensemble": fields.reshape(len(indices), members, *fields.shape[1:]), "truth": truth}
    initial = work.recipe.data.condition.initial
    if initial is not None:
        axis = 1 + work.recipe.tensor_modes.index(initial.dim)
        out["persistence"] = np.broadcast_to(truth.take([initial.index], axis=axis), truth.shape)
    return out


def result(
    work: Workspace, metrics: dict[str, Any], identity: str, started: float, *, skipped: bool = False
) -> StageResult:
    """What the tracker and the summary show of an evaluation."""
    numbers = {
        name if column == "value" else f"{name}_{column}": float(row[column])
        for name, row in metrics.items()
        for column in ("value", "train_vs_test", "gaussian", "persistence", "training_mean")
        if row.get(column) is not None
    }
    decisive = work.recipe.evaluate.metric
    row = metrics.get(decisive, {})
    columns = [f"{column.replace('_', ' ')} {row[column]:.4g}" for column in row if isinstance(row[column], float)]
    return StageResult(
        stage="evaluate",
        fingerprint=identity,
        version=identity[:16],
        location=str(evaluation_path(work, identity)),
        skipped=skipped,
        seconds=time.monotonic() - started,
        metrics=numbers,
        facts={"metrics": metrics},
        summary=f"{decisive.replace('_', ' ')}: " + ", ".join(columns),
    )
