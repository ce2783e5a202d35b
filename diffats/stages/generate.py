"""Stage 6: samples drawn from the trained model, decoded to fields with units (repository ``samples``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import bundle, sources
from diffats.primitives import orthonormality_defect
from diffats.stages import align, decompose, fit_normalisation, train
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]


class InProcess:
    """Runs shards one after another in this process, where the accelerator is."""

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], *, in_flight: int | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Results of ``function``, in order."""
        for item in items:
            yield item, function(item)


def samples_fingerprint(work: Workspace, model: bundle.Bundle) -> str:
    """Identity of the generated samples."""
    config = {"generate": work.portable["generate"], "seed": work.recipe.seed, "fields": conditioned_on_fields(work)}
    return fingerprint("samples", config, train.weights_digest(model.directory), model.provenance["primitives_digest"])


def samples_version(work: Workspace, model: bundle.Bundle) -> Version | None:
    """The generated samples of this recipe, finished or not."""
    return work.generated.version("samples", samples_fingerprint(work, model))


def conditioned_on_fields(work: Workspace) -> bool:
    """Whether a sample's condition singles it out, so that a generated one can be held against its truth."""
    condition = work.recipe.data.condition
    return bool(condition.initial or condition.fields or condition.scalars)


def sample_conditions(work: Workspace, model: bundle.Bundle, count: int) -> tuple[dict[str, Array], Array]:
    """Raw conditions of ``count`` samples, and the test samples they are from (-1: drawn from training labels)."""
    if not conditioned_on_fields(work):
        return model.condition_rows(count, work.recipe.seed, None), np.full(count, -1)
    primitives = fit_normalisation.require_primitives(work)
    dataset = primitives.dataset()
    good = (dataset["status"].values == STATUS["ok"]) & (dataset["split"].values == "test")
    order = np.random.default_rng(work.recipe.seed).permutation(np.flatnonzero(good))
    chosen = order[np.arange(count) % len(order)]
    unique, back = np.unique(chosen, return_inverse=True)
    rows = fit_normalisation.raw_conditions(dataset, unique)
    return {name: value[back] for name, value in rows.items()}, chosen


def template(model: bundle.Bundle, raw: dict[str, Array], count: int) -> xr.Dataset:
    """The whole group of samples as metadata and zeros that take no memory."""
    one = sources.decoded_dataset(np.zeros((1, *model.layout.sizes.values()), np.float32), model.template).isel(sample=0)
    data: dict[str, Any] = {
        str(name): (("sample", *v.dims), decompose.lazy_zeros((count, *v.shape), v.dtype), v.attrs)
        for name, v in one.data_vars.items()
        if name in model.template.data_vars
    }
    kept = {str(name): v for name, v in one.variables.items() if name not in data and name != "sample"}
    for stream in model.layout.streams:
        if stream.mode is not None:
            text = {"long_name": f"distance of {stream.name} from orthonormal columns, |U^T U - I|_F"}
            data[f"defect_{stream.name}"] = ("sample", decompose.lazy_zeros((count,), np.float64), text)
    data["status"] = ("sample", decompose.lazy_zeros((count,), np.int8))
    data["of_sample"] = ("sample", decompose.lazy_zeros((count,), np.int64), {"long_name": "test sample of the condition"})
    conditions = model.condition_variables(raw)
    dataset = xr.Dataset(data, attrs=dict(model.template.attrs))
    return dataset.assign_coords({"sample": np.arange(count), **kept, **conditions})


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Generate ``generate.count`` samples; continue where an earlier run stopped."""
    started = time.monotonic()
    model = train.require_bundle(work)
    settings = work.recipe.generate
    identity = samples_fingerprint(work, model)
    version = None if hooks.restart else work.generated.version("samples", identity)
    if version is not None and version.complete:
        return result(work, version, started, skipped=True)
    raw, chosen = sample_conditions(work, model, settings.count)
    if version is None:
        version = work.generated.begin(
            "samples",
            template(model, raw, settings.count),
            fingerprint=identity,
            shard=settings.batch,
            attrs=work.attrs(weights=train.weights_digest(model.directory)),
            restart=hooks.restart,
        )

    def generate_shard(start: int, stop: int) -> dict[str, Array]:
        rows = {name: value[start:stop] for name, value in raw.items()}
        return shard_arrays(model, work, np.arange(start, stop), rows, chosen[start:stop])

    version.fill(
        generate_shard,
        InProcess(),
        commit_every=1,
        progress=lambda done, failed: hooks.progress(done, settings.count, failed),
    )
    return result(work, version.finish({}), started)


def shard_arrays(
    model: bundle.Bundle, work: Workspace, indices: Array, raw: dict[str, Array], chosen: Array
) -> dict[str, Array]:
    """Fields, defects and status of one batch of generated samples."""
    settings = work.recipe.generate
    streams = model.generate(
        indices,
        work.recipe.seed,
        raw,
        steps=settings.steps,
        guidance=settings.guidance,
        sampler=settings.sampler,
    )
    decoded = sources.decoded_dataset(model.fields(streams), model.template)
    out: dict[str, Array] = {str(name): decoded[name].values for name in model.template.data_vars}
    for name, defect in orthonormality_defect(streams, model.layout).items():
        out[f"defect_{name}"] = np.asarray(defect, dtype=np.float64)
    finite = np.stack([np.isfinite(v).reshape(len(v), -1).all(axis=1) for v in streams.values()]).all(axis=0)
    out["status"] = np.where(finite, STATUS["ok"], STATUS["non_finite"]).astype(np.int8)
    out["of_sample"] = np.asarray(chosen, dtype=np.int64)
    return out


def result(work: Workspace, version: Version, started: float, *, skipped: bool = False) -> StageResult:
    """What the tracker and the summary show of the generated samples."""
    dataset = version.dataset()
    status = dataset["status"].values
    defects = {str(n): float(dataset[n].mean()) for n in dataset.data_vars if str(n).startswith("defect_")}
    text = ", ".join(f"{name.removeprefix('defect_factor_')} {value:.3f}" for name, value in defects.items())
    settings = work.recipe.generate
    return StageResult(
        stage="generate",
        fingerprint=version.fingerprint,
        version=version.snapshot,
        location=work.samples_location,
        skipped=skipped,
        done=len(status),
        total=len(status),
        failed=int((status != STATUS["ok"]).sum()),
        seconds=time.monotonic() - started,
        metrics=defects,
        facts={"digest": version.digest},
        summary=f"{len(status)} samples in {settings.steps} {settings.sampler} steps; orthonormality defect: {text}",
    )


def truth_indices(work: Workspace, count: int, split: str) -> Array:
    """At most ``count`` good raw samples of a split, seeded, increasing."""
    primitives = work.require(align.primitives_version(work), "primitives", "align")
    dataset = primitives.dataset()
    good = (dataset["status"].values == STATUS["ok"]) & (dataset["split"].values == split)
    return np.sort(np.random.default_rng(work.recipe.seed).permutation(np.flatnonzero(good))[:count])
