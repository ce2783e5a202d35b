"""Stage 7: generated samples held against test samples, training samples and a Gaussian, all figures in one file."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffats import bundle, evaluation
from diffats.config import METRICS
from diffats.disk import replace_file, replace_text
from diffats.errors import InputError
from diffats.imposing import Imposing
from diffats.simulate import residuals
from diffats.stages import decompose, fit_normalisation, generate, train
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
CASES = 16  # conditions for which an ensemble is drawn
GAUSSIAN_SAMPLES = 4096
SET_BYTES = 2**28  # each set that is compared is in memory at once, and there are about five


def evaluation_fingerprint(work: Workspace, generated: Version) -> str:
    """Identity of the figures."""
    config: dict[str, Any] = {"evaluate": {k: v for k, v in work.portable["evaluate"].items() if k != "metric"}}
    config |= {} if compares_sets(work) else {"as_sets": False}
    group = work.recipe.data.split.group
    config |= {} if group is None else {"group": group}
    return fingerprint("evaluation", config, generated.fingerprint, generated.digest)


def compares_sets(work: Workspace) -> bool:
    """Whether generated samples are compared with the test samples as a set: not forecasts, unless that decides."""
    of_sets = ("energy_distance", "energy_distance_within", "sliced_wasserstein")
    return not work.recipe.makes_forecasts or work.recipe.deciding_metric in of_sets


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
    model = train.ask_for_bundle(work)
    generated = require_samples(work, model)
    identity = evaluation_fingerprint(work, generated)
    path = evaluation_path(work, identity)
    if path.is_file() and not hooks.restart:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        check_metric(work, metrics)
        return result(work, metrics, identity, started, skipped=True)
    fields, times = generated_fields(work, model, generated), generated_times(work, model, generated)
    strata = generated_strata(work, model, generated)
    sets = compared(work, model, fields, times, strata)
    metrics = evaluation.evaluate(sets)
    path.parent.mkdir(parents=True, exist_ok=True)
    keep_ensemble(path, sets.ensemble)
    replace_text(path, json.dumps(metrics, indent=1))
    check_metric(work, metrics)
    return result(work, metrics, identity, started)


def keep_ensemble(path: Path, ensemble: Array | None) -> None:
    """Keep the ensembles of an evaluation for its report's pictures, and those of no other."""
    for other in path.parent.glob("*.npy"):
        other.unlink()
    if ensemble is not None:
        kept = ensemble.astype(np.float32)
        replace_file(path.with_suffix(".npy"), lambda file: _save(file, kept))


def _save(file: Path, array: Array) -> None:
    with file.open("wb") as opened:
        np.save(opened, array, allow_pickle=False)


def kept_ensemble(work: Workspace, generated: Version) -> Array | None:
    """What `keep_ensemble` kept of this evaluation; None where it is another's, or there are no forecasts."""
    path = evaluation_path(work, evaluation_fingerprint(work, generated)).with_suffix(".npy")
    return np.load(path, allow_pickle=False) if path.is_file() else None


def check_metric(work: Workspace, metrics: dict[str, Any]) -> None:
    """Refuse a recipe whose decisive metric these data do not have."""
    name = work.recipe.deciding_metric
    if metrics.get(name, {}).get("value") is None:
        there = ", ".join(key for key in METRICS if metrics.get(key, {}).get("value") is not None)
        raise InputError(f'evaluate.metric "{name}" cannot be computed for these samples. Use one of: {there}.')


def sample_limit(work: Workspace, model: bundle.Bundle) -> int:
    """How many samples of each kind are compared: as the recipe says, within 256 MiB a set."""
    return max(2, min(work.recipe.evaluate.samples, SET_BYTES // (4 * model.layout.raw_numbers)))


def generated_fields(work: Workspace, model: bundle.Bundle, generated: Version) -> Array:
    """Good generated samples ``(k, *sizes)`` from the repository."""
    dataset, good = generated.dataset(), good_numbers(work, model, generated)
    names = [str(name) for name in model.template.data_vars]
    real = np.result_type(np.float32, *(dataset[name].dtype for name in names))  # differences of whole numbers overflow
    arrays = [dataset[name].isel(sample=good).values.astype(real, copy=False) for name in names]
    return np.stack(arrays, axis=1) if "component" in work.recipe.tensor_modes else arrays[0]


def good_numbers(work: Workspace, model: bundle.Bundle, generated: Version) -> Array:
    """Numbers of the good generated samples that are compared."""
    status = generated.dataset()["status"].values
    return np.asarray(np.flatnonzero(status == STATUS["ok"])[: sample_limit(work, model)])


def generated_strata(work: Workspace, model: bundle.Bundle, generated: Version) -> Array | None:
    """Which condition each of them belongs to; None where the recipe has no labels or scalars."""
    numbers = good_numbers(work, model, generated)
    return drawn_strata(work, model, numbers, generate.condition_sources(work, work.recipe.generate.count))


def drawn_strata(work: Workspace, model: bundle.Bundle, numbers: Array, chosen: Array) -> Array | None:
    """Which condition generated samples belong to, ``(k,)``, when ``model`` draws their labels."""
    names = stratifying(work)
    if not names:
        return None
    return strata(work, generate.sample_conditions(work, model, numbers, chosen, names))


def stratifying(work: Workspace) -> list[str]:
    """Conditions within which samples are compared: the label, else the first two scalars; none for forecasts."""
    condition = work.recipe.data.condition
    if not compares_sets(work):
        return []
    return ["label"] if condition.labels else [f"scalar_{name}" for name in condition.scalars[:2]]


def strata(work: Workspace, raw: Mapping[str, Array]) -> Array:
    """Numbers of conditions ``(k,)``: of a label its class, of scalars the part of the training samples' range.

    One scalar's range is cut at its quartiles over the training samples, the ranges of two at their medians.
    """
    if "label" in raw:
        return np.asarray(raw["label"], dtype=int)
    out, cuts = np.zeros(len(next(iter(raw.values()))), dtype=int), 4 // len(raw)
    for name, values in raw.items():
        out = cuts * out + np.searchsorted(scalar_edges(work, name, cuts), values, side="right")
    return out


def generated_times(work: Workspace, model: bundle.Bundle, generated: Version) -> dict[str, Array]:
    """Of the same samples, the raw phases of the times at which they were decoded; nothing without a climatology."""
    dataset, good = generated.dataset(), good_numbers(work, model, generated)
    return {f"phase_{n}": dataset[bundle.clock_name(n)].values[good] for n in model.recipe.data.climatology}


def stored_times(work: Workspace, model: bundle.Bundle, indices: Array) -> dict[str, Array]:
    """Raw phases of the times of raw samples; nothing without a climatology."""
    names = [f"condition_phase_{name}" for name in model.recipe.data.climatology]
    return fit_normalisation.raw_conditions(fit_normalisation.require_primitives(work).dataset()[names], indices)


def condition_names(work: Workspace, model: bundle.Bundle) -> dict[int, str]:
    """What the numbers of `strata` stand for."""
    names = stratifying(work)
    if names == ["label"]:
        return dict(enumerate(map(str, model.label_names)))
    found, cuts = {0: ""}, 4 // max(1, len(names))
    for name in names:
        edges = scalar_edges(work, name, cuts)
        ranges = [f"below {edges[0]:.3g}"]
        ranges += [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)] + [f"from {edges[-1]:.3g}"]
        words = [f"{name.removeprefix('scalar_')} {text}" for text in ranges]
        found = {
            cuts * number + part: f"{text}, {word}".removeprefix(", ")
            for number, text in found.items()
            for part, word in enumerate(words)
        }
    return found if names else {}


def scalar_edges(work: Workspace, name: str, cuts: int) -> Array:
    """Where the range of a scalar is cut: quantiles of the training samples."""
    primitives = fit_normalisation.require_primitives(work).dataset()
    training = primitives[f"condition_{name}"].values[fit_normalisation.good_samples(primitives, "train")]
    return np.asarray(np.quantile(training, np.arange(1, cuts) / cuts))


def compared(
    work: Workspace,
    model: bundle.Bundle,
    generated: Array,
    times: dict[str, Array] | None = None,
    strata: Array | None = None,
    *,
    forecast: bool = True,
    ensemble: Array | None = None,
) -> evaluation.Fields:
    """Equal counts of test, training, generated and Gaussian samples, in physical units.

    Parameters
    ----------
    generated
        ``(k, *sizes)``.
    times
        Their raw phases, where the model has a climatology.
    strata
        ``(k,)``: which condition each belongs to, where samples are compared within conditions, too.
    forecast
        Whether to draw ensembles under test conditions, for recipes that are conditioned on fields or scalars.
    ensemble
        These, where they were drawn before.
    """
    plain = physical(work, model, generated, strata)
    k = len(plain.test)
    test_indices = generate.truth_indices(work, k, "test")
    z_train = normalised(work, model, generate.truth_indices(work, gaussian_limit(model), "train"))
    z_gaussian = evaluation.gaussian_pca(z_train, k, seed=work.recipe.seed)
    training = generate.truth_indices(work, k, "train")  # at whose times the Gaussian's samples are
    within: dict[str, Any] = {}
    if plain.strata is not None:
        stored = stored_strata(work, generate.truth_indices(work, len(z_train), "train"))
        drawn = evaluation.gaussian_within(z_train, stored, plain.strata["generated"], seed=work.recipe.seed)
        within["gaussian_within"] = model.fields(unnormalised(model, drawn), stored_times(work, model, training))
    ensembles = forecasts(work, model, ensemble) if forecast else {}
    if ensembles:
        cases = case_indices(work, len(ensembles["truth"]))
        reconstruction = model.fields(stored_streams(work, model, cases), stored_times(work, model, cases))
        ensembles["truth_reconstruction"] = with_initial_slice(work, reconstruction, ensembles["truth"])
    shown = {name: value[:k] for name, value in (times or {}).items()}
    return replace(
        plain,
        gaussian=model.fields(unnormalised(model, z_gaussian), stored_times(work, model, training)),
        reconstruction=model.fields(stored_streams(work, model, test_indices), stored_times(work, model, test_indices)),
        z_train=z_train,
        z_test=normalised(work, model, test_indices),
        z_generated=encoded(model, plain.generated, model.phases(shown)),
        z_gaussian=z_gaussian,
        **within,
        **ensembles,
    )


def stored_strata(work: Workspace, indices: Array) -> Array:
    """Which condition samples of the store belong to."""
    stored = fit_normalisation.require_primitives(work).dataset()
    wanted = stored[[f"condition_{name}" for name in stratifying(work)]]
    return strata(work, fit_normalisation.raw_conditions(wanted, indices))


def physical(work: Workspace, model: bundle.Bundle, generated: Array, strata: Array | None = None) -> evaluation.Fields:
    """Equal counts of test, training and generated samples, and nothing that depends on how a model encodes them."""
    limit = min(len(generated), sample_limit(work, model))
    test, training = (generate.truth_indices(work, limit, split) for split in ("test", "train"))
    k = min(limit, len(test), len(training))
    if k < 2:
        raise InputError(
            f"evaluation compares at least 2 good test, training and generated samples, got {len(test)}, "
            f"{len(training)} and {len(generated)}. Raise data.split.test or generate.count."
        )
    scaling, training_mean = decompose.read_scaling(work.store_location, decompose.scaling_version(work).snapshot)
    primitives = fit_normalisation.require_primitives(work).dataset()
    compared_samples, trained_on = (generate.truth_indices(work, k, split) for split in ("test", "train"))
    numbers = None
    if strata is not None:
        numbers = {"train": stored_strata(work, trained_on), "test": stored_strata(work, compared_samples)}
        numbers["generated"] = strata[:k]
    return evaluation.Fields(
        modes=work.recipe.tensor_modes,
        train=work.samples.read(trained_on),
        test=work.samples.read(compared_samples),
        generated=generated[:k],
        mean=training_mean,
        scale=scaling.unit,
        n_train=len(fit_normalisation.good_samples(primitives, "train")),
        seed=work.recipe.seed,
        as_sets=compares_sets(work),
        groups=work.samples.groups(compared_samples),
        strata=numbers,
        condition_names=None if numbers is None else condition_names(work, model),
    )


def gaussian_limit(model: bundle.Bundle) -> int:
    """Training primitives to which the Gaussian is fitted, within 256 MiB."""
    return max(2, min(GAUSSIAN_SAMPLES, SET_BYTES // (4 * model.layout.numbers)))


def stored_streams(work: Workspace, model: bundle.Bundle, indices: Array) -> dict[str, Array]:
    """Primitives of the given samples from the store."""
    dataset = fit_normalisation.require_primitives(work).dataset()
    return {stream.name: dataset[stream.name].isel(sample=indices).values for stream in model.layout.streams}


def normalised(work: Workspace, model: bundle.Bundle, indices: Array) -> Array:
    """Normalised primitives ``(k, D)`` of the given samples."""
    streams = model.normalisation.plain.apply(stored_streams(work, model, indices))
    return np.asarray(model.layout.flatten(streams))


def unnormalised(model: bundle.Bundle, z: Array) -> dict[str, Array]:
    """Streams of normalised primitives ``z`` ``(k, D)``."""
    streams = model.normalisation.plain.undo(model.layout.unflatten(z))
    return {name: np.asarray(value) for name, value in streams.items()}


def encoded(model: bundle.Bundle, fields: Array, phases: Array | None) -> Array:
    """Normalised primitives ``(k, D)`` of fields, as a fresh encoding would give them."""
    from diffats.primitives import encode

    scaled = model.scaling.apply(fields, phases)
    streams, _ = encode(scaled, model.anchors, model.layout, model.recipe.decompose.method)
    return np.asarray(model.layout.flatten(model.normalisation.plain.apply(streams)))


def case_indices(work: Workspace, count: int) -> Array:
    """Test samples for whose conditions ensembles are drawn, seeded, increasing: of as many groups as there are."""
    good = fit_normalisation.good_samples(fit_normalisation.require_primitives(work).dataset(), "test")
    order = np.random.default_rng(work.recipe.seed).permutation(good)
    groups = work.samples.groups(order)
    rounds = pd.Series(groups).groupby(groups).cumcount().to_numpy()  # of each group the first one first
    return np.sort(order[np.argsort(rounds, kind="stable")][:count])


def forecasts(work: Workspace, model: bundle.Bundle, ensemble: Array | None = None) -> dict[str, Any]:
    """Ensembles under the conditions of test samples, their truth and, with an initial slice, persistence.

    They are drawn where they are not given.
    The model samples with its own options: the recipe's for this recipe's model, the registered ones for a champion.
    """
    if not generate.conditioned_on_fields(work):
        return {}
    members = work.recipe.evaluate.members
    cases = max(1, min(CASES, SET_BYTES // (4 * members * model.layout.raw_numbers)))
    indices = case_indices(work, cases)
    raw = fit_normalisation.raw_conditions(fit_normalisation.require_primitives(work).dataset(), indices)
    truth = work.samples.read(indices)
    if ensemble is None:
        repeated = {name: np.repeat(value, members, axis=0) for name, value in raw.items()}
        numbers = np.arange(len(indices) * members)
        # Another seed than the stored samples', so that the ensemble does not repeat their noise.
        streams = model.generate(numbers, work.recipe.seed + 1, repeated)
        fields = model.fields(streams, repeated, model.to_impose(repeated))
        ensemble = fields.reshape(len(indices), members, *fields.shape[1:])
    out: dict[str, Any] = {"case_groups": work.samples.groups(indices), "ensemble": ensemble, "truth": truth}
    initial = work.recipe.data.condition.initial
    if initial is not None:
        axis = 1 + work.recipe.tensor_modes.index(initial.dim)
        out["persistence"] = np.broadcast_to(truth.take([initial.index], axis=axis), truth.shape)
    return out | equation(work, raw)


def with_initial_slice(work: Workspace, reconstruction: Array, truth: Array) -> Array:
    """Decoded test samples with what no forecast has to guess: the given slice, where that is imposed on them."""
    initial = work.recipe.data.condition.initial
    if initial is None or not work.recipe.imposes:
        return reconstruction
    axis = 1 + work.recipe.tensor_modes.index(initial.dim)
    alone = Imposing.alone(axis, initial.index, truth.shape[1:])
    return alone.impose(reconstruction, truth.take(alone.index, axis=axis))


def equation(work: Workspace, raw: dict[str, Array]) -> dict[str, Any]:
    """The residual of the simulated equation under raw conditions; empty where these lack one of its parameters."""
    simulate, samples = work.recipe.simulate, work.samples
    known = residuals.EQUATIONS.get(simulate.problem) if simulate is not None else None
    if simulate is None or known is None or not all(f"scalar_{name}" in raw for name in known.parameters):
        return {}
    whole = all(samples.sizes.get(dim) == size for dim, size in simulate.sizes.items())
    if not whole or samples.modes != known.dims or samples.variables != known.variables:
        return {}  # an equation of other fields
    parameters = {name: raw[f"scalar_{name}"] for name in known.parameters}
    return {"residual": functools.partial(residuals.residual, simulate.problem, parameters=parameters)}


def result(
    work: Workspace, metrics: dict[str, Any], identity: str, started: float, *, skipped: bool = False
) -> StageResult:
    """What the tracker and the summary show of an evaluation."""
    numbers = {
        name if column == "value" else f"{name}_{column}": float(row[column])
        for name, row in metrics.items()
        for column in evaluation.COLUMNS
        if row.get(column) is not None
    }
    decisive = work.recipe.deciding_metric
    row = metrics.get(decisive, {})
    there = [column for column in row if isinstance(row[column], float)]
    columns = [f"{column.replace('_', ' ')} {evaluation.written(row, column)}" for column in there]
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
