"""Stage 9: one self-contained HTML page that shows what was made and how good it is."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from diffats import bundle
from diffats.config import By, Data, given
from diffats.digests import json_digest
from diffats.disk import put_in_place, replace_text
from diffats.errors import InputError
from diffats.primitives import HARMONICS
from diffats.report import ReportContent, render
from diffats.sources import sides
from diffats.stages import align, decompose, drift, evaluate, generate, register, select_anchor, train
from diffats.stages.workspace import Hooks, StageResult, Workspace
from diffats.store import STATUS, Version
from diffats.toml import toml

LIBRARIES = ("diffats", "numpy", "torch", "xarray", "zarr", "icechunk", "dask", "diffusers", "mlflow")
REPORTS, PAGE = "reports", "report.html"
SHARED_PICTURES = ("gallery", "forecast", "reconstruction")  # shown where the page cannot be, such as in Prefect


def report_folder(work: Workspace, evaluated: str) -> Path:
    """The folder of the report on one evaluation under one recipe: the one that is there, or a new one with the day."""
    key = json_digest([evaluated, train.recipe_fingerprint(work)])[:8]
    there = sorted((work.root / REPORTS).glob(f"*-{key}"))
    return there[0] if there else work.root / REPORTS / f"{datetime.now(UTC):%Y%m%d}-{key}"


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Draw the pictures and write the page into a folder of its own; ``report.html`` in the root links to it."""
    started = time.monotonic()
    model = train.require_bundle(work)
    found = evaluate.read_evaluation(work)
    if found is None:
        raise InputError(f"{work.root}: the model is not evaluated. Run `diffats evaluate RECIPE.toml` first.")
    metrics, evaluated = found
    folder, record = report_folder(work, evaluated), registered(work, model, evaluated)
    path, stamp = folder / PAGE, folder / "report.json"
    made_from = [evaluated, train.recipe_fingerprint(work), record, work.recipe.report.model_dump()]
    identity = json_digest(made_from)
    made = json.loads(stamp.read_text(encoding="utf-8"))["fingerprint"] if stamp.is_file() else None
    if made == identity and path.is_file() and not hooks.restart:
        link(work, path)
        return result(path, identity, started, skipped=True)
    content = gather(work, model, metrics, record)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for earlier in pictures.glob("*.png"):
        earlier.unlink()
    for name, picture in content.pictures.items():
        (pictures / f"{name}.png").write_bytes(picture)
    replace_text(path, render(content))
    replace_text(stamp, json.dumps({"fingerprint": identity}))
    link(work, path)
    return result(path, identity, started)


def link(work: Workspace, page: Path) -> None:
    """Have ``report.html`` in the root be this page: a relative link, or a copy where there are no links."""
    _keep_earlier(work)
    stable, partial, target = work.root / PAGE, work.root / "report.partial", page.relative_to(work.root)
    if stable.is_symlink() and stable.readlink() == target:
        return
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(target)
    except OSError:
        shutil.copyfile(page, partial)
    put_in_place(partial, stable)


def _keep_earlier(work: Workspace) -> None:
    """Move the page that an earlier release wrote into the root itself to a folder of its own."""
    page, stamp = work.root / PAGE, work.root / "report.json"
    if not stamp.is_file() or page.is_symlink() or not page.is_file():
        return
    day = datetime.fromtimestamp(page.stat().st_mtime, UTC)
    key = json.loads(stamp.read_text(encoding="utf-8"))["fingerprint"][:8]
    folder = work.root / REPORTS / f"{day:%Y%m%d}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pictures", PAGE, "report.json"):  # the stamp last: without it this is not tried again
        if (work.root / name).exists():
            os.replace(work.root / name, folder / name)


def registered(work: Workspace, model: bundle.Bundle, evaluated: str) -> dict[str, Any] | None:
    """The model's version in the registry as it stands now; None where it was not registered."""
    record = register.read_record(register.record_path(work, model))
    if record is None:
        return None
    from diffats import registry

    tracker = registry.Tracker.for_recipe(work.recipe)
    version, verdict = record["key"][2], record["verdict"]
    if record["key"][0] != evaluated:
        sampled = evaluated in record.get("sampled", [])
        verdict = (register.SAMPLED_OTHERWISE if sampled else register.ANOTHER_EVALUATION).format(version)
    return register.outcome(work, tracker, version, verdict, evaluated)


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
    from diffats import plots  # Matplotlib, which a page that is already there does without
    from diffats.stages import galleries, pictures

    tucker = select_anchor.require_tucker(work)
    anchor = align.require_anchor(work, tucker)
    primitives = work.require(align.primitives_version(work), "primitives", "align")
    generated = evaluate.require_samples(work, model)
    drawn_fields = evaluate.generated_fields(work, model, generated)
    times = evaluate.generated_times(work, model, generated)
    ensemble = evaluate.kept_ensemble(work, generated)
    forecast = work.recipe.makes_forecasts
    fields = evaluate.compared(work, model, drawn_fields, times, forecast=forecast, ensemble=ensemble)
    template = work.samples.template()
    unit = str(template[next(iter(template.data_vars))].attrs.get("units", "")).removeprefix("1")
    normalised = train.require_normalisation(work)
    history = train.history(work, train.model_fingerprint(work, *normalised))
    drawn = pictures.data_pictures(work, tucker, primitives, anchor)
    drawn |= pictures.model_pictures(work, fields, unit)
    drawn |= pictures.drawn({"training": plots.training_curves(history), "scorecard": plots.scorecard(metrics)})
    searched = generate.truth_indices(work, evaluate.gaussian_limit(model), "train")
    of_samples, captions = galleries.sample_pictures(work, fields, generated, anchor, primitives_searched=searched)
    drawn |= of_samples
    drawn |= pictures.deviations_picture(model, fields)
    drawn |= pictures.drift_picture(drift.measure(work, primitives, normalised[1]))
    shown = captions | pictures.distribution_captions(fields)
    return replace(numbers(work, model, metrics, record), pictures=drawn, captions=shown)


def numbers(
    work: Workspace, model: bundle.Bundle, metrics: Mapping[str, Any], record: Mapping[str, Any] | None
) -> ReportContent:
    """The same without pictures."""
    tucker = select_anchor.require_tucker(work)
    anchor = align.require_anchor(work, tucker)
    primitives = work.require(align.primitives_version(work), "primitives", "align")
    generated = evaluate.require_samples(work, model)
    normalised = train.require_normalisation(work)
    history = train.history(work, train.model_fingerprint(work, *normalised))
    drifted = drift.measure(work, primitives, normalised[1])
    settings = work.recipe.generate
    return replace(
        of_data(work, tucker),
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
            "initial_slice": model.imposing_described if work.recipe.imposes else "",
            "seed": work.recipe.seed,
            "orthonormality_defect": generate.defect_facts(model, generated.dataset()),
        },
        metrics=metrics,
        deciding=work.recipe.deciding_metric,
        model={"root": work.recipe.location} | {key: record[key] for key in register.PUBLIC} if record else {},
        provenance=provenance(work, model, {"tucker": tucker, "anchor": anchor, "primitives": primitives}, generated),
        seconds=work.seconds(),
        cautions=[*doubts(record), *sides.cautions(work.samples)],
    )


def of_data(work: Workspace, tucker: Version) -> ReportContent:
    """What is known before a model is trained: the data, what compression keeps of them, and the recipe."""
    return ReportContent(
        name=work.recipe.name,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        recipe=toml(given(work.recipe)),
        command=f"python -m flows.end_to_end {work.recipe.name}.toml",
        data=data_facts(work, tucker, work.samples.template()),
        compression=compression_facts(work, tucker),
        errors=error_facts(tucker),
    )


def doubts(record: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know of a registration: why it is no champion, or that it was not of these samples."""
    if record is None or (record["alias"] == "champion" and "champion" in record["verdict"]):
        return []
    verdict = str(record["verdict"]).replace("`", "")
    return [f"{verdict[0].upper()}{verdict[1:]}."]


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
        "held_out": sides.held_out_text(sides.held_out(samples)),
        "conditions": ", ".join(conditions) or "none",
        "prepared": preparation(data, template),
        "variables": {str(name): str(v.attrs.get("units", "")) for name, v in template.data_vars.items()},
        "sizes": dict(samples.sizes),
        "samples": len(status),
        "train": int((~samples.is_test).sum()),
        "test": int(samples.is_test.sum()),
        "failed": int((status != STATUS["ok"]).sum()),
        "dropped": samples.dropped,
    }
    return {name: value for name, value in facts.items() if value != ""}


def preparation(data: Data, template: xr.Dataset) -> str:
    """What is done to numbers beside the usual centring and scaling, and undone in what is generated; often nothing."""
    words = [f"{name} as {transform}" for name, transform in data.transform.items()]
    for option, done in ((data.center, "centred by"), (data.scale, "scaled by")):
        if isinstance(option, By):
            climatology = f"the climatology ({HARMONICS} harmonics) of " if option.phases else ""
            words.append(f"{done} {climatology}{' and '.join(option.by)}")
    words += [f"{name} kept within {low:g} to {high:g}" for name, (low, high) in data.bounds.items()]
    types = {str(n): v.encoding["dtype"] for n, v in template.data_vars.items() if "dtype" in v.encoding}
    return "; ".join([*words, *(f"{name} rounded to {dtype}" for name, dtype in types.items())])


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
    scored = [(row["heldout_loss"], int(row["step"])) for row in history if row.get("heldout_loss") is not None]
    parameters = sum(parameter.numel() for parameter in model.denoiser.parameters())
    facts: dict[str, Any] = {"steps": work.recipe.train.steps, "parameters": int(parameters)}
    if not scored:
        return facts
    best, step = min(scored)
    return facts | {"heldout_loss": scored[-1][0], "best_heldout_loss": best, "best_step": step}


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


def anchor_samples(chosen: Mapping[str, Sequence[int]]) -> str | None:
    """Numbers of the samples that each mode is aligned to; None where the anchor is no sample's."""
    if any(pick < 0 for picks in chosen.values() for pick in picks):
        return None
    return ", ".join(f"{mode}: {', '.join(map(str, picks))}" for mode, picks in chosen.items())


def newest_drift(work: Workspace) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What the comparison of new samples has found, and its picture; nothing where none was made."""
    from diffats.stages import pictures

    primitives = align.primitives_version(work)
    if primitives is None or not primitives.complete:
        return [], {}
    drifted = work.find("drift", drift.drift_fingerprint(primitives))
    return ([], {}) if drifted is None else (drift.entries(work, drifted), pictures.drift_picture(drifted))
