"""Stage 5: a denoiser trained on the normalised primitives, saved as a bundle."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats import bundle, processes
from diffats.config import NOT_LEARNED
from diffats.digests import file_digest, json_digest
from diffats.errors import IntegrityError, StoreNotFoundError
from diffats.imposing import Imposing
from diffats.primitives import transformed
from diffats.progress import waiting
from diffats.stages import align, decompose, drift, fit_normalisation, select_anchor
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint
from diffats.store import Version

Array = npt.NDArray[Any]
log = logging.getLogger("diffats.train")
VALIDATION = 0.1  # of the training samples, scored for keep = "best"
EXAMPLES = 256
EXAMPLE_BYTES = 16 * 2**20
IMPOSED_SAMPLES, IMPOSED_BYTES = 64, 2**28


def require_normalisation(work: Workspace) -> tuple[Version, Version]:
    """The finished primitives and their statistics."""
    primitives = fit_normalisation.require_primitives(work)
    identity = fit_normalisation.normalisation_fingerprint(work, primitives)
    version = work.require(work.find("normalisation", identity), "normalisation", "normalise")
    return primitives, version


def model_fingerprint(work: Workspace, primitives: Version, normalisation: Version) -> str:
    """Identity of the training, whatever its number of steps: more of them continue it.

    The primitives' digest is of their numbers. Scaling, mask, units and coordinates, which a bundle takes to fields,
    are in the normalisation's fingerprint, which holds those of all groups before it.
    """
    recipe = work.portable
    config = {
        "model": recipe["model"],
        "diffusion": recipe["diffusion"],
        "train": {key: value for key, value in recipe["train"].items() if key not in NOT_LEARNED},
        "dropout": recipe["data"]["condition"]["dropout"],
        "seed": work.recipe.seed,
    }
    return fingerprint("model", config, primitives.digest, normalisation.fingerprint, normalisation.digest)


def bundle_path(work: Workspace, identity: str) -> Path:
    """Where the bundle of this training at this number of steps is, calibrated or not."""
    train = work.recipe.train
    return work.root / "bundles" / f"{identity[:16]}-{train.steps}{'-calibrated' if train.calibrate else ''}"


def find_bundle(work: Workspace) -> Path | None:
    """The finished model of this recipe."""
    version = fit_normalisation.normalisation_version(work)
    primitives = align.primitives_version(work)
    if version is None or primitives is None or not version.complete:
        return None
    path = bundle_path(work, model_fingerprint(work, primitives, version))
    return path if (path / "bundle.json").is_file() else None


def require_bundle(work: Workspace) -> bundle.Bundle:
    """The finished model of this recipe, or an error that names the command which makes it.

    It samples as this recipe says, also where the bundle was saved with other ``generate`` options or bounds; nothing
    is written.
    """
    path = find_bundle(work)
    if path is None:
        raise StoreNotFoundError(
            f"{work.root} has no trained model for this recipe. "
            "Run `diffats train RECIPE.toml` first, or the whole flow."
        )
    model = bundle.load(path, device=work.recipe.compute.device)
    data = model.recipe.data.model_copy(update={"bounds": work.recipe.data.bounds})
    model.recipe = model.recipe.model_copy(update={"generate": work.recipe.generate, "data": data})
    return model


def ask_for_bundle(work: Workspace) -> bundle.Bundle:
    """The same; from now on it stands for the root, saved with this recipe's sampling options."""
    model = require_bundle(work)
    bundle.ask_for(model.directory, work.portable, recipe_fingerprint(work))
    return model


def training_directory(work: Workspace, identity: str) -> Path:
    """Checkpoints and history of a training.

    More steps continue in the directory of fewer. A training with fewer steps than were done already has one of its
    own, since its weights cannot be had from later ones.
    """
    longest = work.root / "training" / identity[:16]
    own = shorter_directory(work, longest)
    return own if own.is_dir() or steps_done(longest) > work.recipe.train.steps else longest


def shorter_directory(work: Workspace, longest: Path) -> Path:
    """Where a training is that ends before another of the same settings."""
    return longest.with_name(f"{longest.name}-{work.recipe.train.steps}")


def steps_done(directory: Path) -> int:
    """Steps of the newest checkpoint."""
    steps = [path.name.partition("-")[2] for path in directory.glob("checkpoint-*")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Train, or continue a training, up to ``train.steps``; then save the bundle."""
    started = time.monotonic()
    primitives, normalisation = require_normalisation(work)
    drift.check(work, primitives)
    identity = model_fingerprint(work, primitives, normalisation)
    path = bundle_path(work, identity)
    if (path / "bundle.json").is_file() and not hooks.restart and _asked_for(work, path):
        return result(work, path, identity, started, skipped=True)

    with waiting("loading PyTorch"):
        from diffats.loader import PrimitiveSet
        from diffats.training import train

    layout = decompose.layout_of(primitives)
    statistics, conditions = fit_normalisation.read_normalisation(normalisation)
    stored = primitives.dataset()
    given = {str(n): str(n).removeprefix("condition_") for n in stored.data_vars if str(n).startswith("condition_")}
    data = PrimitiveSet(
        stored.drop_vars([name for name in given.values() if name in stored.coords]).rename(given),  # say, a class
        layout,
        statistics,
        conditions,
        shifts=fit_normalisation.random_shifts(work, layout, primitives),
        validation=VALIDATION if work.recipe.train.keep == "best" else 0.0,
    )
    directory = training_directory(work, identity)
    if hooks.restart and processes.is_main():
        shutil.rmtree(directory, ignore_errors=True)
    trained = train(
        data,
        work.recipe,
        directory,
        log=hooks.log,
        progress=lambda step, steps: hooks.progress(step, steps, 0),
        device=work.recipe.compute.device,
        threads=work.recipe.compute.threads,
    )
    if not processes.is_main():  # the main process saves the bundle
        return StageResult("train", identity, "", str(path), seconds=time.monotonic() - started)
    save_bundle(work, path, primitives, normalisation, trained.weights, trained.calibration)
    bundle.ask_for(path, work.portable, recipe_fingerprint(work))
    return result(work, path, identity, started)


def _asked_for(work: Workspace, path: Path) -> bool:
    """Have the finished model stand for the root; False where it is damaged and must be made again."""
    try:
        if processes.is_main():
            bundle.ask_for(path, work.portable, recipe_fingerprint(work))
    except IntegrityError as error:
        log.warning("%s It is made again from the last checkpoint", error)
        shutil.rmtree(path)
        return False
    return True


def save_bundle(
    work: Workspace, path: Path, primitives: Version, normalisation: Version, weights: Path, calibration: Path | None
) -> None:
    """Gather everything that the model needs to run elsewhere."""
    tucker = select_anchor.require_tucker(work)
    anchor = align.require_anchor(work, tucker)
    scaling, _ = decompose.read_scaling(work.store_location, decompose.scaling_version(work).snapshot)
    statistics, conditions = fit_normalisation.read_normalisation(normalisation)
    bundle.save(
        path,
        recipe=work.portable,
        layout=decompose.layout_of(primitives),
        conditions=conditions,
        scaling=scaling,
        anchors=align.read_anchors(work.store_location, anchor.snapshot),
        normalisation=statistics,
        template=primitives.attrs["template"],
        label_names=list(primitives.attrs["label_names"]),
        condition_dims=primitives.attrs["condition_dims"],
        condition_units=primitives.attrs.get("condition_units", {}),
        examples=condition_examples(work, primitives),
        weights=weights,
        calibration=calibration,
        measure_imposing=lambda model: measured_imposing(work, primitives, model),
        provenance={
            "data_fingerprint": tucker.fingerprint,
            "primitives_snapshot": primitives.snapshot,
            "primitives_digest": primitives.digest,
            "anchor_fingerprint": anchor.fingerprint,
            "anchor_chosen": anchor.attrs["chosen"],
            "recipe_fingerprint": recipe_fingerprint(work),
        },
    )


def measured_imposing(work: Workspace, primitives: Version, model: bundle.Bundle) -> Imposing | None:
    """How far a given initial slice tells the errors of the others, from some training samples generated again."""
    initial = work.recipe.data.condition.initial
    if initial is None:
        return None
    model.device = work.recipe.compute.device
    dataset = primitives.dataset()
    train = fit_normalisation.good_samples(dataset, "train")
    count = max(2, min(IMPOSED_SAMPLES, IMPOSED_BYTES // (4 * model.layout.raw_numbers)))
    chosen = np.sort(np.random.default_rng(work.recipe.seed).permutation(train)[:count])
    raw = fit_normalisation.raw_conditions(dataset, chosen)
    streams = model.generate(np.arange(len(chosen)), work.recipe.seed, raw)
    good = bundle.finite_rows(streams)
    if not good.any():
        return None
    finite, given = ({name: values[good] for name, values in each.items()} for each in (streams, raw))
    generated = model.fields(finite, given)
    modes = work.recipe.tensor_modes
    axis = 1 + modes.index(initial.dim)
    truth = work.samples.read(chosen[good])
    made, true = (transformed(x, model.scaling.transforms) for x in (generated, truth))
    return Imposing.fit(made, true, axis, initial.index, component="component" in modes)


def condition_examples(work: Workspace, primitives: Version) -> dict[str, Array]:
    """At most 256 raw training conditions, within 16 MiB."""
    dataset = primitives.dataset()
    train = fit_normalisation.good_samples(dataset, "train")
    one = fit_normalisation.raw_conditions(dataset, train[:1])
    size = sum(value.nbytes for value in one.values())
    count = min(EXAMPLES, max(1, EXAMPLE_BYTES // max(size, 1)))
    chosen = np.random.default_rng(work.recipe.seed).permutation(train)[:count]
    return fit_normalisation.raw_conditions(dataset, np.sort(chosen))


def recipe_fingerprint(work: Workspace) -> str:
    """Digest of the whole portable recipe."""
    return json_digest(work.portable)


def history(work: Workspace, identity: str) -> list[dict[str, float]]:
    """The training's logged metrics, by step."""
    longest = work.root / "training" / identity[:16]
    own = shorter_directory(work, longest)
    path = (own if own.is_dir() else longest) / "history.jsonl"
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut by a kill; training writes the file anew when it continues
            break
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows) if step <= work.recipe.train.steps]


def result(work: Workspace, path: Path, identity: str, started: float, *, skipped: bool = False) -> StageResult:
    """What the tracker and the summary show of a training."""
    rows = history(work, identity)
    last = {key: row[key] for row in rows for key in ("loss", "heldout_loss") if row.get(key) is not None}
    text = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in last.items())
    return StageResult(
        stage="train",
        fingerprint=identity,
        version=weights_digest(path),
        location=str(path),
        skipped=skipped,
        done=work.recipe.train.steps,
        total=work.recipe.train.steps,
        seconds=time.monotonic() - started,
        metrics={f"final_{key}": float(value) for key, value in last.items()},
        facts={"bundle": str(path)},
        summary=f"{work.recipe.train.steps} steps; {text}",
    )


def weights_digest(path: Path) -> str:
    """SHA-256 of the averaged weights."""
    return file_digest(path / "weights.safetensors")
