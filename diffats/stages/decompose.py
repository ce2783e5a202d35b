"""Stage 1: raw samples -> centred and scaled -> Tucker form of each sample (group ``tucker``)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import sources
from diffats.compute import Cluster, open_cluster
from diffats.config import Data
from diffats.errors import SourceError, TooManyFailedError
from diffats.primitives import (
    FieldScaling,
    Layout,
    Moments,
    decompose,
    decomposed_modes,
    find_ranks,
    relative_error,
)
from diffats.stages.workspace import (
    Hooks,
    StageResult,
    Workspace,
    fingerprint,
    in_order,
    read_group,
    shard_bounds,
    shard_samples,
)
from diffats.store import STATUS, Version

PILOT_SAMPLES = 256
# Relative to the field, to its difference from the training mean, and to the centred and scaled field (which is what
# a tolerance limits).
ERRORS = ("relative_error", "anomaly_error", "truncation_error")
Array = npt.NDArray[Any]
log = logging.getLogger("diffats.decompose")


# --- identity ---------------------------------------------------------------------------------------------------


def scaling_fingerprint(work: Workspace) -> str:
    """Identity of the training mean, scale and mask."""
    data = work.portable["data"]
    config = {key: value for key, value in data.items() if key not in ("condition", "max_failed", "storage_options")}
    return fingerprint("scaling", {"data": config, "seed": work.recipe.seed}, work.samples.fingerprint())


def tucker_fingerprint(work: Workspace) -> str:
    """Identity of the Tucker forms."""
    recipe = work.recipe
    condition = {k: v for k, v in work.portable["data"]["condition"].items() if k != "dropout"}
    config = {
        "primitive": work.portable["primitive"],
        "decompose": work.portable["decompose"],
        "decomposed": decomposed_modes(recipe) if recipe.primitive.kind == "tgp" else (),
        "condition": condition,
        "shard": recipe.compute.shard_samples,
    }
    return fingerprint("tucker", config, scaling_fingerprint(work))


def tucker_version(work: Workspace) -> Version | None:
    """The stored Tucker forms of this recipe, finished or not."""
    return work.store.version("tucker", tucker_fingerprint(work))


def layout_of(version: Version) -> Layout:
    """The layout that a group was written with."""
    return Layout.from_dict(version.attrs["layout"])


# --- the training part's mean, scale and mask ---------------------------------------------------------------------


def shard_moments(bounds: tuple[int, int], *, data: Data, seed: int) -> dict[str, Any]:
    """Moments of a shard's good training samples, with the mask they share.

    The mask is where every readable sample of the shard is missing; a sample with more missing values than that
    is left out here, and recorded as bad when it is decomposed.
    """
    samples = sources.open_samples(data, seed)
    indices = np.arange(*bounds)
    indices = indices[~samples.is_test[indices]]
    moments = Moments()
    if not indices.size:
        return {"moments": moments, "mask": None, "missing": 0, "values": 0}
    x = samples.read(indices)
    missing = ~np.isfinite(x)
    masked = data.missing == "mask"
    nan: Array = np.isnan(x)
    readable = ~nan.reshape(len(x), -1).all(axis=1)
    mask = np.asarray(nan[readable].all(axis=0)) if masked and readable.any() else np.zeros(x.shape[1:], bool)
    good = status_of(x, mask) == STATUS["ok"]
    moments.add(x[good])  # NaN where masked
    return {
        "moments": moments,
        "mask": mask if readable.any() else None,
        "missing": int(missing.sum()),
        "values": int(x.size),
    }


def fit_scaling(work: Workspace, cluster: Cluster, shard: int, hooks: Hooks) -> tuple[FieldScaling, Array]:
    """Scaling and training mean, in one pass over the raw data."""
    n = work.samples.n
    moments, mask, missing, values, unequal = Moments(), None, 0, 0, False
    function = partial(shard_moments, data=work.data, seed=work.recipe.seed)
    for (_, stop), part in in_order(cluster.map(function, shard_bounds(n, shard))):
        moments.merge(part["moments"])
        missing, values = missing + part["missing"], values + part["values"]
        if part["mask"] is not None:
            unequal |= mask is not None and not np.array_equal(mask, part["mask"])
            mask = part["mask"] if mask is None else mask & part["mask"]
        hooks.progress(stop, n, 0)
    share = missing / max(values, 1)
    if unequal:
        raise SourceError(
            f"{work.recipe.data.source}: {share:.1%} of the training values are missing, and not at the same points in "
            'all samples, as data.missing = "mask" expects. Fill them first, or cut windows without them.'
        )
    if moments.count == 0:
        raise SourceError(
            f"{work.recipe.data.source}: no training sample is usable ({share:.1%} of the values are missing or "
            'infinite, the others zero). Set data.missing = "mask" if the same points are missing in every sample.'
        )
    return fitted_scaling(work, moments)


def fitted_scaling(work: Workspace, moments: Moments) -> tuple[FieldScaling, Array]:
    """What ``data.center`` and ``data.scale`` ask for, and the training mean with masked points filled."""
    data, component = work.recipe.data, "component" in work.recipe.tensor_modes
    scaling = FieldScaling.fit(moments, data.center, data.scale, component=component)
    by_variable = FieldScaling.fit(moments, "variable", "none", component=component)
    return scaling, np.where(np.isnan(moments.mean), by_variable.mean, moments.mean)


def put_scaling(work: Workspace, cluster: Cluster, shard: int, hooks: Hooks) -> Version:
    """The ``scaling`` group of this recipe, fitted where it is not there yet."""
    identity = scaling_fingerprint(work)
    version = work.store.version("scaling", identity)
    if version is not None and version.complete and not hooks.restart:
        return version
    log.info("reading the training samples once for their mean and scale")
    scaling, training_mean = fit_scaling(work, cluster, shard, hooks)
    modes = work.recipe.tensor_modes
    arrays = dict(scaling.to_arrays(), training_mean=training_mean)
    dataset = xr.Dataset({name: (_dims(name, array, modes), array) for name, array in arrays.items()})
    return work.store.put("scaling", dataset, fingerprint=identity, attrs=work.attrs())


def _dims(name: str, array: Array, modes: Sequence[str]) -> tuple[str, ...]:
    # A mean of one number has axes of length 1 where the field has its sizes.
    return tuple(m if n > 1 or name in ("mask", "training_mean") else f"{m}_one" for m, n in zip(modes, array.shape, strict=True))


@lru_cache(maxsize=4)
def read_scaling(location: str, snapshot: str) -> tuple[FieldScaling, Array]:
    """The stored scaling and training mean; kept per process, since every shard of a worker needs them."""
    dataset = read_group(location, "scaling", snapshot).load()
    arrays = {str(name): dataset[name].values for name in dataset.data_vars}
    training_mean = arrays.pop("training_mean")
    return FieldScaling.from_arrays(arrays), training_mean


# --- one shard --------------------------------------------------------------------------------------------------


def scaling_version(work: Workspace) -> Version:
    """The stored scaling of this recipe."""
    return work.require(work.store.version("scaling", scaling_fingerprint(work)), "scaling", "decompose")


def status_of(x: Array, mask: npt.NDArray[Any] | None) -> npt.NDArray[np.int8]:
    """Status flag of each sample of ``x`` ``(k, *sizes)``: ok, non_finite or all_zero."""
    axes = tuple(range(1, x.ndim))
    valid = np.isfinite(x) if mask is None else np.isfinite(x) ^ mask
    zero = (x == 0).all(axis=axes) if mask is None else ((x == 0) | mask).all(axis=axes)
    status = np.full(len(x), STATUS["ok"], np.int8)
    status[zero] = STATUS["all_zero"]
    status[~valid.all(axis=axes)] = STATUS["non_finite"]
    return status


def decompose_shard(
    start: int, stop: int, *, data: Data, seed: int, location: str, scaling: str, layout: Layout, method: str
) -> dict[str, Array]:
    """Tucker forms, errors, spectra, conditions and status of samples ``start..stop``; bad samples are zeros."""
    samples = sources.open_samples(data, seed)
    fields, training_mean = read_scaling(location, scaling)
    indices = np.arange(start, stop)
    x = samples.read(indices)
    status = status_of(x, fields.mask)
    good = status == STATUS["ok"]
    filled = x if fields.mask is None else np.where(np.isnan(x) & fields.mask, training_mean, x)
    conditions = samples.conditions(indices, filled.astype(x.dtype, copy=False))
    status[good & ~_finite_conditions(conditions, len(x))] = STATUS["non_finite"]
    good = status == STATUS["ok"]
    out: dict[str, Array] = {"status": status}
    if good.any():
        out |= {name: _scatter(v, good) for name, v in _forms(x[good], fields, training_mean, layout, method).items()}
    else:
        out |= {name: np.zeros((len(x), *shape), dtype) for name, (_, shape, dtype) in variables(layout, x.dtype).items()}
    for name, value in conditions.items():
        out[f"condition_{name}"] = np.where(_rows(good, value), value, 0).astype(value.dtype)
    return out


def _forms(x: Array, scaling: FieldScaling, training_mean: Array, layout: Layout, method: str) -> dict[str, Array]:
    fields = np.asarray(scaling.apply(x), dtype=x.dtype)
    streams, tucker = decompose(fields, layout, method)
    truncated = layout.restore(tucker.to_tensor())
    restored = scaling.undo(truncated)
    out = {name: np.asarray(value, dtype=x.dtype) for name, value in streams.items()}
    out["truncation_error"] = relative_error(fields, truncated)
    out["relative_error"] = relative_error(x, restored)
    out["anomaly_error"] = relative_error(x, restored, training_mean)
    decomposed = [axis for axis, rank in enumerate(layout.working_ranks) if rank is not None]
    batch = tuple(range(1, 1 + len(layout.labelled)))  # the labelled modes of a matrix primitive
    out["numerical_rank"] = tucker.numerical_ranks[..., decomposed].min(axis=batch).astype(np.int32)
    for axis in decomposed:
        energies = np.asarray(tucker.spectra[axis])
        out[f"spectrum_{layout.working_modes[axis]}"] = energies.sum(axis=batch).astype(np.float32)
    return out


def _scatter(values: Array, good: npt.NDArray[np.bool_]) -> Array:
    out = np.zeros((len(good), *values.shape[1:]), values.dtype)
    out[good] = values
    return out


def _rows(good: npt.NDArray[np.bool_], value: Array) -> npt.NDArray[np.bool_]:
    return good.reshape(-1, *(1,) * (value.ndim - 1))


def _finite_conditions(conditions: dict[str, Array], k: int) -> npt.NDArray[np.bool_]:
    finite = np.ones(k, bool)
    for name, value in conditions.items():
        if value.dtype.kind == "f" and name != "initial":  # an initial slice is part of the sample, checked with it
            finite &= np.isfinite(value).reshape(k, -1).all(axis=1)
    return finite


# --- the stage --------------------------------------------------------------------------------------------------


def variables(layout: Layout, dtype: npt.DTypeLike) -> dict[str, tuple[tuple[str, ...], tuple[int, ...], np.dtype[Any]]]:
    """Per-sample variables of group ``tucker``: dims and shape without ``sample``, and dtype."""
    real = np.dtype(dtype)
    out = {stream.name: (stream.dims, stream.shape, real) for stream in layout.tucker_streams}
    out |= {name: ((), (), np.dtype(np.float64)) for name in ERRORS}
    out["numerical_rank"] = (("decomposed_mode",), (len(layout.ranks),), np.dtype(np.int32))
    for mode in layout.ranks:
        out[f"spectrum_{mode}"] = ((f"component_{mode}",), (layout.working_sizes[mode],), np.dtype(np.float32))
    return out


def template(work: Workspace, layout: Layout, shard: int) -> xr.Dataset:
    """The whole group ``tucker`` as metadata and zeros that take no memory."""
    samples = work.samples
    specs = variables(layout, samples.dtype)
    probe = np.arange(1)
    for name, value in samples.conditions(probe, samples.read(probe)).items():
        dims = tuple(f"{name}_{axis}" for axis in range(value.ndim - 1))
        specs[f"condition_{name}"] = (dims, value.shape[1:], value.dtype)
    specs["status"] = ((), (), np.dtype(np.int8))
    dataset = xr.Dataset(
        {name: (("sample", *dims), lazy_zeros((samples.n, *shape), dtype)) for name, (dims, shape, dtype) in specs.items()},
        coords=sample_coords(samples),
    )
    return dataset.assign_coords(decomposed_mode=list(layout.ranks))


def sample_coords(samples: sources.Samples) -> dict[str, Any]:
    """Number, split and place of each sample."""
    coords: dict[str, Any] = {
        "sample": ("sample", np.arange(samples.n)),
        "split": ("sample", np.where(samples.is_test, "test", "train").astype(object)),
    }
    for dim, start in samples.starts.items():
        coords[f"{dim}_start"] = ("sample", start, {"long_name": f"index along {dim} where the window starts"})
    return coords


def lazy_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
    """Zeros of any size that take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def pilot_fields(work: Workspace, scaling: str) -> Array:
    """Centred and scaled good samples of the pilot ``(k, *sizes)``."""
    fields, _ = read_scaling(work.store_location, scaling)
    x = work.samples.read(pilot_indices(work))
    return np.asarray(fields.apply(x[status_of(x, fields.mask) == STATUS["ok"]]), dtype=x.dtype)


def pilot_indices(work: Workspace) -> Array:
    """At most 256 training samples, seeded, within 256 MiB."""
    samples = work.samples
    train = np.flatnonzero(~samples.is_test)
    count = min(len(train), PILOT_SAMPLES, max(2, 2**28 // samples.bytes_per_sample))
    return np.sort(np.random.default_rng(work.recipe.seed).choice(train, count, replace=False))


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Decompose every sample into group ``tucker``; continue where an earlier run stopped."""
    started = time.monotonic()
    version = None if hooks.restart else tucker_version(work)
    if version is not None and version.complete:
        return result(work, version, started, skipped=True)
    samples, recipe = work.samples, work.recipe
    shard = shard_samples(recipe, samples.sizes, np.dtype(samples.dtype).itemsize)
    with open_cluster(recipe.compute) as cluster:
        scaling = put_scaling(work, cluster, shard, hooks).snapshot
        if version is None:
            ranks = None
            if recipe.decompose.tolerance is not None:
                ranks = find_ranks(pilot_fields(work, scaling), recipe)
                log.info("ranks for tolerance %g: %s", recipe.decompose.tolerance, ranks)
            layout = Layout.from_recipe(recipe, samples.sizes, ranks)
            version = work.store.begin(
                "tucker",
                template(work, layout, shard),
                fingerprint=tucker_fingerprint(work),
                shard=shard,
                attrs=work.attrs(
                    layout=layout.to_dict(),
                    template=sources.template_to_json(samples.template()),
                    label_names=list(samples.label_names),
                    n_dropped=samples.dropped,
                ),
                restart=hooks.restart,
            )
        function = partial(
            decompose_shard,
            data=work.data,
            seed=recipe.seed,
            location=work.store_location,
            scaling=scaling,
            layout=layout_of(version),
            method=recipe.decompose.method,
        )
        version.fill(function, cluster, progress=lambda done, failed: hooks.progress(done, samples.n, failed))
    check_failures(work, version)
    return result(work, version.finish({}), started)


def check_failures(work: Workspace, version: Version) -> None:
    """Raise where more samples are bad than ``data.max_failed`` allows, or too few good ones are left."""
    status = version.dataset()["status"].values
    bad = np.flatnonzero(status != STATUS["ok"])
    allowed = max(1, math.floor(work.recipe.data.max_failed * len(status)))
    meaning = {flag: name for name, flag in STATUS.items()}
    listed = ", ".join(f"{i} ({meaning[int(status[i])]})" for i in bad[:10]) + (" ..." if len(bad) > 10 else "")
    if len(bad) > allowed:
        raise TooManyFailedError(
            f"decompose: {len(bad)} of {len(status)} samples failed, {allowed} are allowed by data.max_failed = "
            f"{work.recipe.data.max_failed}: {listed}. {_share_missing(work, status)}Mend the source, set "
            'data.missing = "mask" if the same points are missing in all samples, or raise data.max_failed.'
        )
    if bad.size:
        log.warning("%d of %d samples failed and are left out: %s", len(bad), len(status), listed)


def _share_missing(work: Workspace, status: Array) -> str:
    bad = np.flatnonzero(status == STATUS["non_finite"])[:8]
    if not bad.size:
        return ""
    return f"In the first of them {1 - np.isfinite(work.samples.read(bad)).mean():.1%} of the values are missing. "


def result(work: Workspace, version: Version, started: float, *, skipped: bool = False) -> StageResult:
    """What the tracker and the summary show of group ``tucker``."""
    dataset = version.dataset()
    layout = layout_of(version)
    good = dataset["status"].values == STATUS["ok"]
    errors = {key: dataset[key].values[good] for key in ERRORS}
    metrics = {f"{key}_{name}": float(getattr(v, name)()) for key, v in errors.items() for name in ("mean", "max")}
    metrics["compression"] = layout.compression
    tolerance = work.recipe.decompose.tolerance
    beyond = int((errors["truncation_error"] > tolerance).sum()) if tolerance is not None else 0
    noise = gauge_noise_share(dataset, layout, good)
    if not skipped and noise > 0.05:
        log.warning("%.0f %% of the samples have a numerical rank below the ranks kept: lower the ranks", 100 * noise)
    if not skipped and beyond:
        log.warning("%d samples are beyond the tolerance %g", beyond, tolerance)
    n, failed = len(good), int((~good).sum())
    return StageResult(
        stage="decompose",
        fingerprint=version.fingerprint,
        version=version.snapshot,
        location=work.store_location,
        skipped=skipped,
        done=n,
        total=n,
        failed=failed,
        seconds=time.monotonic() - started,
        metrics={**metrics, "n_failed": float(failed), "beyond_tolerance": float(beyond), "gauge_noise_share": noise},
        facts={"ranks": dict(layout.ranks), "n_dropped": int(version.attrs["n_dropped"]), "digest": version.digest},
        summary=(
            f"{n - failed} of {n} samples, {layout.compression:.1f}x fewer numbers; error relative to the anomaly "
            f"{metrics['anomaly_error_mean']:.4f} (mean), to the field {metrics['relative_error_mean']:.4f}"
        ),
    )


def gauge_noise_share(dataset: xr.Dataset, layout: Layout, good: npt.NDArray[np.bool_]) -> float:
    """Share of samples with columns past the numerical rank, which are arbitrary."""
    ranks = np.array(list(layout.ranks.values()))
    below = (dataset["numerical_rank"].values[good] < ranks).any(axis=1)
    return float(below.mean()) if below.size else 0.0
