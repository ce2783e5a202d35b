"""Stage 6: samples drawn from the trained model, decoded to fields with units (repository ``samples``)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import bundle, sources
from diffats.errors import InputError
from diffats.primitives import orthonormality_defect
from diffats.stages import decompose, fit_normalisation, train
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint
from diffats.store import SOURCE_TEXT, STATUS, Version

SHARD_BYTES = 2**28
log = logging.getLogger("diffats.generate")
Array = npt.NDArray[Any]


class InProcess:
    """Runs shards one after another in this process, where the accelerator is."""

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], **options: Any
    ) -> Generator[tuple[Any, Any], None, None]:
        """Results of ``function``, in order."""
        for item in items:
            yield item, function(item)


def samples_fingerprint(work: Workspace, model: bundle.Bundle) -> str:
    """Identity of the generated samples.

    The bundle is in it by name, which is the training's identity: equal weights with another scaling, mask or unit give
    other fields.
    """
    options = {key: value for key, value in work.portable["generate"].items() if key != "max_extrapolation"}
    config = {"generate": options, "seed": work.recipe.seed, "fields": conditioned_on_fields(work)}
    if work.recipe.imposes and model.imposing is not None:
        config["shares"] = model.imposing.shares.tolist()
    config |= {key: work.portable["data"][key] for key in ("bounds",) if key in work.portable["data"]}
    return fingerprint("samples", config, model.directory.name, train.weights_digest(model.directory))


def samples_version(work: Workspace, model: bundle.Bundle) -> Version | None:
    """The generated samples of this recipe, finished or not."""
    return work.find("samples", samples_fingerprint(work, model))


def conditioned_on_fields(work: Workspace) -> bool:
    """Whether a sample's condition singles it out, so that a generated one can be held against its truth."""
    condition = work.recipe.data.condition
    return bool(condition.initial or condition.fields or condition.scalars)


def condition_sources(work: Workspace, count: int) -> Array:
    """The test samples from which ``count`` conditions are; -1: drawn from the training samples' labels."""
    if not conditioned_on_fields(work):
        return np.full(count, -1)
    test = fit_normalisation.good_samples(fit_normalisation.require_primitives(work).dataset(), "test")
    if not test.size:
        raise InputError("no test sample is good, and conditions come from test samples. Raise data.split.test.")
    order = np.random.default_rng(work.recipe.seed).permutation(test)
    return np.asarray(order[np.arange(count) % len(order)])


def sample_conditions(
    work: Workspace, model: bundle.Bundle, indices: Array, chosen: Array, names: Iterable[str] | None = None
) -> dict[str, Array]:
    """Raw conditions (``names``, or all) of the generated samples ``indices``, one row each.

    Labels are drawn from the examples of ``model``.
    """
    if not conditioned_on_fields(work):
        return model.drawn_conditions(indices, work.recipe.seed)
    stored = fit_normalisation.require_primitives(work).dataset()
    wanted = stored[[f"condition_{name}" for name in (model.examples if names is None else names)]]
    unique, back = np.unique(chosen[indices], return_inverse=True)
    return {name: value[back] for name, value in fit_normalisation.raw_conditions(wanted, unique).items()}


def template(model: bundle.Bundle, work: Workspace, chosen: Array) -> xr.Dataset:
    """The whole group of samples as metadata and zeros that take no memory."""
    count = len(chosen)
    data: dict[str, Any] = {
        str(name): (("sample", *v.dims), decompose.lazy_zeros((count, *v.shape), stored_type(v.variable)), v.attrs)
        for name, v in model.template.data_vars.items()
    }
    for stream in model.layout.streams:
        if stream.mode is not None:
            text = {"long_name": f"distance of {stream.name} from orthonormal columns, |U^T U - I|_F"}
            data[f"defect_{stream.name}"] = ("sample", decompose.lazy_zeros((count,), np.float64), text)
    one = {name: value[:1] for name, value in model.examples.items() if value.ndim > 1}
    fields: dict[str, Any] = model.condition_variables(one)
    for name, (dims, value, *attrs) in fields.items():
        data[name] = (dims, decompose.lazy_zeros((count, *value.shape[1:]), value.dtype), *attrs)
    numbers = [name for name, value in model.examples.items() if value.ndim == 1]
    drawn = sample_conditions(work, model, np.arange(count), chosen, numbers)
    rows = {name: drawn[name] for name in numbers}
    data["status"] = ("sample", decompose.lazy_zeros((count,), np.int8))
    source = {"long_name": "test sample of the condition; -1: a training sample's label"}
    data["of_sample"] = ("sample", decompose.lazy_zeros((count,), np.int64), source)
    imposed = {"initial_slice": model.imposing_described} if work.recipe.imposes else {}
    dataset = xr.Dataset(data, attrs=dict(model.template.attrs) | imposed)
    coords: dict[Any, Any] = {**model.template.coords, "sample": np.arange(count), **model.condition_variables(rows)}
    return dataset.assign_coords({**condition_origins(work, chosen), **coords})


def condition_origins(work: Workspace, chosen: Array) -> dict[str, xr.Variable]:
    """Where the conditions' test samples come from: their coordinates as ``of_<name>``; nothing of drawn labels."""
    if (chosen < 0).any():
        return {}
    stored = fit_normalisation.require_primitives(work).dataset()
    along = {str(name): coord.variable for name, coord in stored.coords.items() if coord.dims == ("sample",)}
    return {f"of_{name}": variable[chosen] for name, variable in along.items() if name not in ("sample", "split")}


def stored_type(variable: xr.Variable) -> np.dtype[Any]:
    """In which type generated values of a template's variable are stored."""
    whole: np.dtype[Any] | None = variable.encoding.get("dtype")
    return np.dtype(np.float32) if whole is None else whole


def shard_size(work: Workspace, model: bundle.Bundle) -> int:
    """Samples generated and written at once: a network batch, as long as its fields fit 256 MiB."""
    bytes_each = 4 * model.layout.raw_numbers
    return max(1, min(work.recipe.generate.batch, work.recipe.generate.count, SHARD_BYTES // bytes_each))


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Generate ``generate.count`` samples; continue where an earlier run stopped."""
    started = time.monotonic()
    model = train.ask_for_bundle(work)
    count = work.recipe.generate.count
    version = None if hooks.restart else samples_version(work, model)
    there = version is not None and version.complete
    chosen = condition_sources(work, count)
    if not there or work.recipe.generate.max_extrapolation is not None:
        check_ranges(work, model, chosen)
    if version is not None and there:
        return result(work, model, version, started, skipped=True)
    if version is None:
        version = work.generated.begin(
            "samples",
            template(model, work, chosen),
            fingerprint=samples_fingerprint(work, model),
            shard=shard_size(work, model),
            attrs=work.attrs(weights=train.weights_digest(model.directory), **source_text(model)),
            restart=hooks.restart,
        )

    def generate_shard(start: int, stop: int) -> dict[str, Array]:
        return shard_arrays(model, work, np.arange(start, stop), chosen)

    version.fill(
        generate_shard,
        InProcess(),
        commit_every=1,
        progress=lambda done, failed: hooks.progress(done, count, failed),
    )
    return result(work, model, work.keep(version.finish()), started)


def source_text(model: bundle.Bundle) -> dict[str, str]:
    """What the data set calls its ``source``, whose name the group needs for the digest of what was encoded."""
    text = model.template.attrs.get("source")
    return {} if text is None else {SOURCE_TEXT: str(text)}


def check_ranges(work: Workspace, model: bundle.Bundle, chosen: Array) -> None:
    """Warn of test conditions outside of the range of training, once, and refuse those too far outside."""
    if not conditioned_on_fields(work):
        return
    stored = fit_normalisation.require_primitives(work).dataset()
    unique, size, parts = np.unique(chosen), shard_size(work, model), []
    for start in range(0, len(unique), size):
        raw = fit_normalisation.raw_conditions(stored, unique[start : start + size])
        parts.append(model.conditions.places(raw))
    model.check_range({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def shard_arrays(model: bundle.Bundle, work: Workspace, indices: Array, chosen: Array) -> dict[str, Array]:
    """Fields, conditions that are fields, defects and status of one batch of generated samples."""
    raw = sample_conditions(work, model, indices, chosen)
    streams = model.generate(indices, work.recipe.seed, raw)
    fields = model.fields(streams, raw, model.to_impose(raw))
    decoded = sources.decoded_dataset(fields, model.template)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and marked below
        out: dict[str, Array] = {
            str(n): decoded[n].values.astype(stored_type(v.variable), copy=False)
            for n, v in model.template.data_vars.items()
        }
        fields = fields.astype(np.float32)
    given = model.condition_variables({name: value for name, value in raw.items() if value.ndim > 1})
    out |= {name: value for name, (_, value, *_) in given.items()}
    for name, defect in orthonormality_defect(streams, model.layout).items():
        out[f"defect_{name}"] = np.asarray(defect, dtype=np.float64)
    mask = model.scaling.mask
    known = np.isfinite(fields if mask is None else np.where(mask, 0.0, fields))
    finite = bundle.finite_rows(streams) & known.all(axis=tuple(range(1, fields.ndim)))
    out["status"] = np.where(finite, STATUS["ok"], STATUS["non_finite"]).astype(np.int8)
    out["of_sample"] = np.asarray(chosen[indices], dtype=np.int64)
    return out


def result(
    work: Workspace, model: bundle.Bundle, version: Version, started: float, *, skipped: bool = False
) -> StageResult:
    """What the tracker and the summary show of the generated samples."""
    dataset = version.dataset()
    status = dataset["status"].values
    good = status == STATUS["ok"]
    defects = {f"defect_{name}": value for name, value in defect_facts(model, dataset).items()} if good.any() else {}
    text = ", ".join(f"{name.removeprefix('defect_factor_')} {value:.3f}" for name, value in defects.items())
    if not skipped and not good.all():
        log.warning(
            "%d of %d generated samples are not finite and are left out: train longer or with a lower train.lr, or "
            "take more generate.steps",
            (~good).sum(),
            len(good),
        )
    settings = work.recipe.generate
    return StageResult(
        stage="generate",
        fingerprint=version.fingerprint,
        version=version.snapshot,
        location=work.samples_location,
        skipped=skipped,
        done=len(status),
        total=len(status),
        failed=int((~good).sum()),
        seconds=time.monotonic() - started,
        metrics=defects,
        facts={"digest": version.digest},
        summary=f"{len(status)} samples in {settings.steps} {settings.sampler} steps; orthonormality defect: {text}",
    )


def defect_facts(model: bundle.Bundle, generated: xr.Dataset) -> dict[str, float]:
    """Median orthonormality defect of each generated factor, over the root of its rank: that of a factor of zeros."""
    good = generated["status"].values == STATUS["ok"]
    factors = [stream for stream in model.layout.streams if f"defect_{stream.name}" in generated]
    return {
        stream.name: float(np.median(generated[f"defect_{stream.name}"].values[good])) / stream.shape[-1] ** 0.5
        for stream in factors
    }


def truth_indices(work: Workspace, count: int, split: str) -> Array:
    """At most ``count`` good raw samples of a split, seeded, increasing."""
    good = fit_normalisation.good_samples(fit_normalisation.require_primitives(work).dataset(), split)
    return np.sort(np.random.default_rng(work.recipe.seed).permutation(good)[:count])
