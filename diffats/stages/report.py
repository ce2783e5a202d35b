"""Stage 9: one self-contained HTML page that shows what was made and how good it is."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import bundle, evaluation, plots
from diffats.errors import InputError
from diffats.primitives import relative_error
from diffats.report import ReportContent, render
from diffats.stages import align, decompose, drift, evaluate, fit_normalisation, register, select_anchor, train
from diffats.stages.workspace import Hooks, StageResult, Workspace
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
SHOWN = 256  # samples behind a plot of many samples
LIBRARIES = ("diffats", "numpy", "torch", "xarray", "zarr", "icechunk", "dask", "diffusers", "mlflow")
SHARED_PICTURES = ("gallery", "reconstruction")  # shown where the page cannot be, such as in Prefect


def report_path(work: Workspace) -> Path:
    """The page of this recipe."""
    return work.root / "report.html"


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Draw the pictures and write the page."""
    started = time.monotonic()
    model = train.require_bundle(work)
    found = evaluate.read_evaluation(work)
    if found is None:
        raise InputError(f"{work.root}: the model is not evaluated. Run `diffats evaluate RECIPE.toml` first.")
    metrics, evaluated = found
    path, record = report_path(work), registered(work, model, evaluated)
    identity = hashlib.sha256(json.dumps([evaluated, train.recipe_fingerprint(work), record]).encode()).hexdigest()
    stamp = path.with_suffix(".json")
    made = json.loads(stamp.read_text(encoding="utf-8"))["fingerprint"] if stamp.is_file() else None
    if made == identity and path.is_file() and not hooks.restart:
        return result(path, identity, started, skipped=True)
    content = gather(work, model, metrics, record)
    pictures = work.root / "pictures"
    pictures.mkdir(exist_ok=True)
    for name, picture in content.pictures.items():
        (pictures / f"{name}.png").write_bytes(picture)
    for file, text in ((path, render(content)), (stamp, json.dumps({"fingerprint": identity}))):
        partial = file.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    return result(path, identity, started)


def registered(work: Workspace, model: bundle.Bundle, evaluated: str) -> dict[str, Any] | None:
    """The model's version in the registry as it stands now; None where it was not registered."""
    record = register.read_record(register.record_path(work, model))
    if record is None:
        return None
    from diffats import registry

    tracker = registry.Tracker.for_recipe(work.recipe)
    return register.outcome(work, tracker, record["key"][2], record["verdict"], evaluated)


def result(path: Path, identity: str, started: float, *, skipped: bool = False) -> StageResult:
    """What the summary shows of a page."""
    files = {name: path.parent / "pictures" / f"{name}.png" for name in SHARED_PICTURES}
    return StageResult(
        stage="report",
        fingerprint=identity,
        version=identity[:16],
        location=str(path),
        skipped=skipped,
        seconds=time.monotonic() - started,
        summary=f"{path}",
        pictures={name: file.read_bytes() for name, file in files.items() if file.is_file()},
    )


# --- what the page says ---------------------------------------------------------------------------------------------


def gather(
    work: Workspace, model: bundle.Bundle, metrics: Mapping[str, Any], record: Mapping[str, Any] | None
) -> ReportContent:
    """Numbers and pictures of everything that this recipe made."""
    tucker = select_anchor.require_tucker(work)
    anchor = align.require_anchor(work, tucker)
    primitives = work.require(align.primitives_version(work), "primitives", "align")
    generated = evaluate.require_samples(work, model)
    fields = evaluate.compared(work, model, evaluate.generated_fields(work, model, generated), forecast=False)
    template = work.samples.template()
    unit = str(template[next(iter(template.data_vars))].attrs.get("units", "")).removeprefix("1")
    history = train.history(work, train.model_fingerprint(work, *train.require_normalisation(work)))
    painter = plots.Painter.fit(fields.test, work.recipe.tensor_modes, unit=unit)
    pictures = data_pictures(work, tucker, primitives, anchor) | model_pictures(work, fields, painter, unit)
    pictures |= _drawn({"training": plots.training_curves(history), "scorecard": plots.scorecard(metrics)})
    pictures |= medoid_picture(work, anchor, painter)
    drifted = drift.measure(work, primitives, train.require_normalisation(work)[1])
    pictures |= drift_picture(drifted)
    settings = work.recipe.generate
    return ReportContent(
        name=work.recipe.name,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        data=data_facts(work, tucker, template),
        compression=compression_facts(work, tucker),
        errors=error_facts(tucker),
        alignment={
            "strategy": anchor.attrs["strategy"],
            "sample": anchor_samples(anchor.attrs["chosen"]),
            "overlap_sigma_min": align.overlap_quantiles(primitives.dataset()),
            "low_share": align.low_overlap_share(work, primitives.dataset()),
            "min_overlap": work.recipe.align.min_overlap,
        },
        drift=[] if drifted is None else drift.entries(work, drifted),
        training=training_facts(work, model, history),
        generation={
            "count": settings.count,
            "sampler": settings.sampler,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "seed": work.recipe.seed,
            "orthonormality_defect": defect_facts(generated.dataset()),
        },
        metrics=metrics,
        deciding=work.recipe.evaluate.metric,
        model={"root": work.recipe.location} | {key: record[key] for key in register.PUBLIC} if record else {},
        provenance=provenance(work, model, {"tucker": tucker, "anchor": anchor, "primitives": primitives}, generated),
        seconds=work.seconds(),
        pictures=pictures,
        captions={"gallery": painter.description},
        cautions=[record["verdict"].capitalize() + "."] if record and record["alias"] != "champion" else [],
    )


def data_facts(work: Workspace, tucker: Version, template: xr.Dataset) -> dict[str, Any]:
    """What the data are, in the source's own words where it has them."""
    samples, data = work.samples, work.recipe.data
    status = tucker.dataset()["status"].values
    condition = data.condition
    conditions = [f"initial slice ({condition.initial.dim} = {condition.initial.index})"] if condition.initial else []
    conditions += [
        *condition.fields,
        *condition.scalars,
        *([f"{condition.labels} (class)"] if condition.labels else []),
    ]
    facts = {
        "title": str(template.attrs.get("title", work.recipe.name)),
        "description": str(template.attrs.get("summary", template.attrs.get("comment", ""))),
        "source": str(work.portable["data"]["source"]),
        "credit": str(template.attrs.get("references", template.attrs.get("institution", ""))),
        "licence": str(template.attrs.get("license", "")),
        "split": f"by {data.split.by}",
        "conditions": ", ".join(conditions) or "none",
        "variables": {str(name): str(v.attrs.get("units", "")) for name, v in template.data_vars.items()},
        "sizes": dict(samples.sizes),
        "samples": len(status),
        "train": int((~samples.is_test).sum()),
        "test": int(samples.is_test.sum()),
        "failed": int((status != STATUS["ok"]).sum()),
        "dropped": samples.dropped,
    }
    return {name: value for name, value in facts.items() if value != ""}


def compression_facts(work: Workspace, tucker: Version) -> dict[str, Any]:
    """How many numbers a sample and its primitive have."""
    layout = decompose.current_layout(work, tucker)
    facts = {
        "ratio": layout.compression,
        "raw_numbers": layout.raw_numbers,
        "primitive_numbers": layout.numbers,
        "ranks": dict(layout.ranks),
        "aligned": list(layout.aligned),
        "kind": layout.kind,
    }
    return facts | ({"patch": dict(layout.patch or {})} if layout.kind == "mgp" else {})


def error_facts(tucker: Version) -> dict[str, Any]:
    """Both errors over all good samples."""
    dataset = tucker.dataset()
    good = dataset["status"].values == STATUS["ok"]
    facts: dict[str, Any] = {"over": f"all {int(good.sum())} good samples"}
    for name in ("anomaly", "relative"):
        values = dataset[f"{name}_error"].values[good]
        facts[name] = {"mean": float(values.mean()), "median": float(np.median(values)), "max": float(values.max())}
    return facts


def training_facts(work: Workspace, model: bundle.Bundle, history: list[dict[str, float]]) -> dict[str, Any]:
    """Steps, size and held-out loss."""
    heldout = [row["heldout_loss"] for row in history if row.get("heldout_loss") is not None]
    parameters = sum(parameter.numel() for parameter in model.denoiser.parameters())
    facts: dict[str, Any] = {"steps": work.recipe.train.steps, "parameters": int(parameters)}
    return facts | ({"heldout_loss": heldout[-1], "best_heldout_loss": min(heldout)} if heldout else {})


def defect_facts(generated: xr.Dataset) -> dict[str, float]:
    """Median orthonormality defect of each generated factor."""
    names = [str(name) for name in generated.data_vars if str(name).startswith("defect_")]
    good = generated["status"].values == STATUS["ok"]
    return {name.removeprefix("defect_"): float(np.median(generated[name].values[good])) for name in names}


def provenance(
    work: Workspace, model: bundle.Bundle, versions: Mapping[str, Version], generated: Version
) -> dict[str, dict[str, Any]]:
    """Which version of what this was made from and with."""
    data = {f"{name} snapshot": version.snapshot for name, version in versions.items()}
    data |= {f"{name} fingerprint": version.fingerprint for name, version in versions.items()}
    data |= {"samples snapshot": generated.snapshot, "weights sha256": train.weights_digest(model.directory)}
    data |= {"recipe fingerprint": train.recipe_fingerprint(work), "seed": str(work.recipe.seed)}
    software = {name: installed(name) for name in LIBRARIES} | {"python": platform.python_version()}
    return {"Data and stores": data, "Software": software}


# --- pictures -------------------------------------------------------------------------------------------------------


def _drawn(figures: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG bytes of the figures that there are."""
    return {name: plots.png(figure) for name, figure in figures.items() if figure is not None}


def data_pictures(work: Workspace, tucker: Version, primitives: Version, anchor: Version) -> dict[str, bytes]:
    """Energy against rank, alignment, overlaps and the anchors."""
    layout = decompose.current_layout(work, tucker)
    forms, aligned, chosen = tucker.dataset(), primitives.dataset(), anchor.dataset()
    status = forms["status"].values
    good = np.flatnonzero(status == STATUS["ok"])[:SHOWN]
    spectra = {mode: forms[f"spectrum_{mode}"].isel(sample=good).values for mode in layout.ranks}
    figures: dict[str, Any] = {"scree": plots.scree(spectra, dict(layout.ranks))}
    for mode in layout.aligned:
        figures[f"factors_{mode}"] = plots.factors_before_after(
            forms[f"factor_{mode}"].isel(sample=good).values,
            aligned[f"factor_{mode}"].isel(sample=good).values,
            chosen[f"anchor_{mode}"].values,
            mode,
        )
    every = status == STATUS["ok"]
    overlaps = {mode: aligned["overlap"].values[every, axis][:, None] for axis, mode in enumerate(layout.aligned)}
    figures["overlaps"] = plots.overlap_histograms(overlaps, minimum=work.recipe.align.min_overlap)
    figures["anchors"] = plots.anchors({mode: chosen[f"anchor_{mode}"].values for mode in layout.aligned})
    return _drawn(figures)


def drift_picture(drifted: Version | None) -> dict[str, bytes]:
    """The newest samples of a source that has grown against its first ones."""
    if drifted is None or not drifted.attrs["growths"]:
        return {}
    return _drawn({"drift": plots.drift(*drift.compared(drifted))})


def newest_drift(work: Workspace) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What the comparison of new samples has found, and its picture; nothing where none was made."""
    primitives, normalisation = align.primitives_version(work), fit_normalisation.normalisation_version(work)
    if primitives is None or normalisation is None or not primitives.complete:
        return [], {}
    drifted = work.find("drift", drift.drift_fingerprint(primitives, normalisation))
    return ([], {}) if drifted is None else (drift.entries(work, drifted), drift_picture(drifted))


def anchor_samples(chosen: Mapping[str, Sequence[int]]) -> str | None:
    """Numbers of the samples that each mode is aligned to; None where the anchor is no sample's."""
    if any(pick < 0 for picks in chosen.values() for pick in picks):
        return None
    return ", ".join(f"{mode}: {', '.join(map(str, picks))}" for mode, picks in chosen.items())


def medoid_picture(work: Workspace, anchor: Version, painter: plots.Painter) -> dict[str, bytes]:
    """The sample that the first aligned mode is aligned to; nothing where the anchor is no sample's."""
    dataset, chosen = anchor.dataset(), anchor.attrs["chosen"]
    mode, picks = next(iter(chosen.items()))
    if picks[0] < 0:
        return {}
    values = dataset[f"score_{mode}"].values[:, 0]
    usable = np.isfinite(values)
    sample = work.samples.read(np.array([picks[0]]))[0]
    scores = {mode: values[usable] / usable.sum()}
    figure = plots.medoid(sample, scores, int(usable[: picks[0]].sum()), work.recipe.tensor_modes, painter=painter)
    return _drawn({"medoid": figure})


def model_pictures(work: Workspace, fields: evaluation.Fields, painter: plots.Painter, unit: str) -> dict[str, bytes]:
    """Galleries, reconstructions, spectra and distances to the training samples."""
    modes = work.recipe.tensor_modes
    # Neighbouring windows look alike, so the real ones shown are far apart.
    spread = np.random.default_rng(work.recipe.seed).permutation(len(fields.test))
    sets = {"test": fields.test, "generated": fields.generated}
    if fields.gaussian is not None:
        sets["gaussian"] = fields.gaussian
    profile = evaluation.profile_mode(modes, work.samples.sizes)
    coordinate = work.samples.template().coords.get(profile)
    numeric = coordinate is not None and coordinate.dtype.kind in "fiu"
    return _drawn(
        {
            "gallery": plots.gallery(
                fields.test[spread], fields.generated, modes, gaussian=fields.gaussian, unit=unit, painter=painter
            ),
            "reconstruction": reconstruction_figure(work, fields, unit),
            "profiles": plots.spectra_bands(
                sets,
                1 + modes.index(profile),
                profile,
                coordinate=coordinate.values if coordinate is not None and numeric else None,
                unit=unit,
                label=profile,
            ),
            "power_spectra": plots.power_spectra({name: x - fields.mean for name, x in sets.items()}, modes),
            "nearest": plots.nearest_training(evaluation.nearest_training(fields)),
        }
    )


def reconstruction_figure(work: Workspace, fields: evaluation.Fields, unit: str) -> Any:
    """Best, median and worst test sample beside what its primitive decodes to."""
    assert fields.reconstruction is not None
    errors = relative_error(fields.test, fields.reconstruction, fields.mean)
    order = np.argsort(errors)
    picks = [int(order[0]), int(order[len(order) // 2]), int(order[-1])]
    labels = [f"{name}: {errors[i]:.0%}" for name, i in zip(("best", "median", "worst"), picks, strict=True)]
    return plots.reconstruction_panels(
        fields.test[picks], fields.reconstruction[picks], work.recipe.tensor_modes, labels=labels, unit=unit
    )
