"""Stage 1: raw samples -> centred and scaled -> Tucker form of each sample (group ``tucker``)."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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
    reconstruction_errors,
)
from diffats.spectrum import as_numpy, as_torch, encoding_device, norm2
from diffats.stages.workspace import (
    Hooks,
    StageResult,
    Workspace,
    fingerprint,
    read_group,
    shard_bounds,
    shard_runs,
    source_chunk,
)
from diffats.store import STATUS, Version

PILOT_SAMPLES = 256
# Relative to the field, to its difference from the training mean, and to the centred and scaled field (which is what
# a tolerance limits).
ERRORS = ("relative_error", "anomaly_error", "truncation_error")
MASK_SAMPLES = 64
PILOT_BYTES = 2**28
# Where the source is and how it is opened: its digest tells what it holds. The condition belongs to the next group.
_NOT_CONTENT = ("source", "engine", "storage_options", "condition", "max_failed")
Array = npt.NDArray[Any]
Spec = tuple[tuple[str, ...], tuple[int, ...], np.dtype[Any]]  # dims, shape, dtype
log = logging.getLogger("diffats.decompose")


# --- identity ---------------------------------------------------------------------------------------------------


def scaling_fingerprint(work: Workspace) -> str:
    """Identity of the training mean, scale and mask."""
    config = {key: value for key, value in work.portable["data"].items() if key not in _NOT_CONTENT}
    return fingerprint("scaling", {"data": config, "seed": work.recipe.seed}, work.source_digest)


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
    return work.find("tucker", tucker_fingerprint(work))


def layout_of(version: Version) -> Layout:
    """The layout that a group was written with."""
    return Layout.from_dict(version.attrs["layout"])


def current_layout(work: Workspace, tucker: Version) -> Layout:
    """The layout of the primitives: ``align.modes`` may have changed since the Tucker forms were written."""
    layout = layout_of(tucker)
    return layout if layout.kind == "mgp" else replace(layout, aligned=work.recipe.aligned_modes)


# --- the training part's mean, scale and mask ---------------------------------------------------------------------


def find_mask(work: Workspace) -> Array | None:
    """The points that are missing in every sample: the most common pattern among some training samples."""
    if work.recipe.data.missing != "mask":
        return None
    missing = np.isnan(work.samples.read(training_choice(work, MASK_SAMPLES)))
    patterns = [pattern.tobytes() for pattern in np.packbits(missing.reshape(len(missing), -1), axis=1)]
    readable = [i for i, pattern in enumerate(missing) if not pattern.all()]
    if not readable:
        return None
    counts = Counter(patterns[i] for i in readable)
    mask = missing[max(readable, key=lambda i: (counts[patterns[i]], -i))]
    return mask if mask.any() else None


def run_moments(
    bounds: tuple[int, int], *, data: Data, seed: int, shard: int, shared: Array | None = None
) -> tuple[Moments, Counter[str]]:
    """Moments of the good training samples of a run of shards, and how much is missing beside the mask ``shared``."""
    mask = shared
    samples = sources.open_samples(data, seed, fresh=False)
    moments, counts = Moments(), Counter[str]()
    for start, stop in shard_bounds(bounds[1] - bounds[0], shard):
        indices = np.arange(bounds[0] + start, bounds[0] + stop)
        indices = indices[~samples.is_test[indices]]
        x = samples.read(indices)
        status, _ = checked(samples, indices, x, mask)
        good = status == STATUS["ok"]
        counts.update(values=x.size)
        if mask is None and good.all():
            moments.add(x)
            continue
        moments.add(x[good])  # NaN where masked
        nan = np.isnan(x)
        other = (nan if mask is None else nan != mask).any(axis=tuple(range(1, x.ndim)))
        counts.update(other=int(other.sum()), missing=int((~np.isfinite(x)).sum()))
    return moments, counts


def fit_scaling(work: Workspace, cluster: Cluster, shard: int, hooks: Hooks) -> tuple[FieldScaling, Array]:
    """Scaling and training mean, in one pass over the raw data."""
    samples = work.samples
    moments, counts = Moments(), Counter[str]()
    function = partial(run_moments, data=work.data, seed=work.recipe.seed, shard=shard)
    one = samples.bytes_per_sample
    # Of each number, its mean and its sum of squares come back, in float64.
    runs = shard_runs(samples.n, shard, sample_bytes=one, result_bytes=16 * one // samples.dtype.itemsize)
    for (_, stop), (part, counted) in cluster.map(function, runs, ordered=True, shared=find_mask(work)):
        moments.merge(part)
        counts.update(counted)
        hooks.progress(stop, samples.n, 0)
    share = counts["missing"] / max(counts["values"], 1)
    if work.recipe.data.missing == "mask" and counts["other"] > allowed_failures(work, samples.n):
        raise SourceError(
            f"{work.recipe.data.source}: {share:.1%} of the training values are missing, and in {counts['other']} "
            'samples not at the same points as in the others, which data.missing = "mask" expects. Fill them first, or '
            "cut windows without them."
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
    version = None if hooks.restart else work.find("scaling", identity)
    if version is not None and version.complete:
        return version
    log.info("reading the training samples once for their mean and scale")
    scaling, training_mean = fit_scaling(work, cluster, shard, hooks)
    modes = work.recipe.tensor_modes
    arrays = dict(scaling.to_arrays(), training_mean=training_mean)
    dataset = xr.Dataset({name: (_dims(name, array, modes), array) for name, array in arrays.items()})
    return work.keep(work.store.put("scaling", dataset, fingerprint=identity, attrs=work.attrs()))


def _dims(name: str, array: Array, modes: Sequence[str]) -> tuple[str, ...]:
    # A mean of one number has axes of length 1 where the field has its sizes.
    whole = name in ("mask", "training_mean")
    return tuple(mode if whole or n > 1 else f"{mode}_one" for mode, n in zip(modes, array.shape, strict=True))


@lru_cache(maxsize=4)
def read_scaling(location: str, snapshot: str) -> tuple[FieldScaling, Array]:
    """The stored scaling and training mean; kept per process, since every shard of a worker needs them."""
    dataset = read_group(location, "scaling", snapshot).load()
    arrays = {str(name): dataset[name].values for name in dataset.data_vars}
    training_mean = arrays.pop("training_mean")
    return FieldScaling.from_arrays(arrays), training_mean


@lru_cache(maxsize=4)
def scaling_in(dtype: np.dtype[Any], location: str, snapshot: str) -> tuple[FieldScaling, Array]:
    """``read_scaling`` in the dtype of the samples, so that no shard converts whole fields."""
    fields, training_mean = read_scaling(location, snapshot)
    converted = FieldScaling(fields.mean.astype(dtype), fields.scale.astype(dtype), fields.mask)
    return converted, training_mean.astype(dtype)


# --- one shard --------------------------------------------------------------------------------------------------


def scaling_version(work: Workspace) -> Version:
    """The stored scaling of this recipe."""
    return work.require(work.find("scaling", scaling_fingerprint(work)), "scaling", "decompose")


def status_of(x: Array, mask: npt.NDArray[Any] | None) -> npt.NDArray[np.int8]:
    """Status flag of each sample of ``x`` ``(k, *sizes)``: ok, non_finite or all_zero.

    Where there is a mask, a good sample is NaN there and nowhere else.
    """
    status = np.full(len(x), STATUS["ok"], np.int8)
    if mask is None:  # mostly, one sum of squares shows that all is well
        squares = norm2(x, x.ndim - 1)
        doubtful = ~(np.isfinite(squares) & (squares > 0))
        if not doubtful.any():
            return status
    axes = tuple(range(1, x.ndim))
    valid = np.isfinite(x) if mask is None else np.where(mask, np.isnan(x), np.isfinite(x))
    zero = (x == 0).all(axis=axes) if mask is None else ((x == 0) | mask).all(axis=axes)
    status[zero] = STATUS["all_zero"]
    status[~valid.all(axis=axes)] = STATUS["non_finite"]
    return status


def checked(
    samples: sources.Samples, indices: Array, x: Array, mask: Array | None
) -> tuple[npt.NDArray[np.int8], dict[str, Array]]:
    """Status of samples ``x`` with regard to their conditions too, and these conditions."""
    status, conditions = status_of(x, mask), samples.conditions(indices, x)
    usable = finite_conditions(conditions, len(x), masked=samples.data.missing == "mask")
    status[(status == STATUS["ok"]) & ~usable] = STATUS["non_finite"]
    return status, conditions


def decompose_shard(
    start: int,
    stop: int,
    *,
    data: Data,
    seed: int,
    location: str,
    scaling: str,
    layout: Layout,
    method: str,
    device: str = "cpu",
) -> dict[str, Array]:
    """Tucker forms, errors, spectra, conditions and status of samples ``start..stop``; bad samples are zeros."""
    samples = sources.open_samples(data, seed, fresh=False)
    fields, training_mean = scaling_in(samples.dtype, location, scaling)
    indices = np.arange(start, stop)
    x = samples.read(indices)
    status, conditions = checked(samples, indices, x, fields.mask)
    good = np.flatnonzero(status == STATUS["ok"])
    forms, converged = converged_forms(
        x if len(good) == len(x) else x[good],
        lambda some: _forms(some, fields, training_mean, layout, method, device),
    )
    status[good[~converged]] = STATUS["not_converged"]
    good = status == STATUS["ok"]
    out: dict[str, Array] = {"status": status}
    if good.any():
        out |= {name: _scatter(values, good) for name, values in forms.items()}
    else:
        specs = variables(layout, x.dtype)
        out |= {name: np.zeros((len(x), *shape), dtype) for name, (_, shape, dtype) in specs.items()}
    return out | {f"condition_{name}": _scatter(value[good], good) for name, value in conditions.items()}


def converged_forms(
    x: Array, forms: Callable[[Array], dict[str, Array]]
) -> tuple[dict[str, Array], npt.NDArray[np.bool_]]:
    """Forms of the samples that the decomposition converges on, and which these are; all at once where it can."""
    if not len(x):
        return {}, np.ones(0, bool)
    try:
        return forms(x), np.ones(len(x), bool)
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        if len(x) == 1:
            return {}, np.zeros(1, bool)
    halves = [converged_forms(half, forms) for half in np.array_split(x, 2)]
    found = [half for half, _ in halves if half]
    names = found[0] if found else ()
    return {n: np.concatenate([h[n] for h in found]) for n in names}, np.concatenate([ok for _, ok in halves])


def _forms(
    x: Array, scaling: FieldScaling, training_mean: Array, layout: Layout, method: str, device: str
) -> dict[str, Array]:
    raw = as_torch(x).to(encoding_device(device))
    fields = scaling.apply(raw)
    streams, tucker = decompose(fields, layout, method)
    out = {name: as_numpy(value).astype(x.dtype, copy=False) for name, value in streams.items()}
    residual = fields.sub_(layout.restore(tucker.to_tensor()))  # in place: the fields have served
    norms = tucker.norm2.reshape(len(x), -1).sum(-1)
    errors = reconstruction_errors(raw, residual, norms, scaling, training_mean)
    out |= {name: as_numpy(values) for name, values in zip(ERRORS, errors, strict=True)}
    decomposed = [axis for axis, rank in enumerate(layout.working_ranks) if rank is not None]
    batch = tuple(range(1, 1 + len(layout.labelled)))  # the labelled modes of a matrix primitive
    numerical = as_numpy(tucker.numerical_ranks)
    out["numerical_rank"] = numerical[..., decomposed].min(axis=batch).astype(np.int32)
    for axis in decomposed:
        # of the kept columns one by one, and of all others together
        lost = as_numpy(tucker.discarded)[..., axis, None]
        energies = np.concatenate([as_numpy(tucker.spectra[axis]), lost], axis=-1)
        out[f"spectrum_{layout.working_modes[axis]}"] = energies.sum(axis=batch).astype(np.float32)
    return out


def _scatter(values: Array, good: npt.NDArray[np.bool_]) -> Array:
    out = np.zeros((len(good), *values.shape[1:]), values.dtype)
    out[good] = values
    return out


def finite_conditions(conditions: dict[str, Array], k: int, *, masked: bool) -> npt.NDArray[np.bool_]:
    """Which of ``k`` samples have usable conditions; with a mask, fields may be missing at some points."""
    finite = np.ones(k, bool)
    for name, value in conditions.items():
        if value.dtype.kind != "f" or name == "initial":  # an initial slice is part of the sample, checked with it
            continue
        flat = value.reshape(k, -1)
        if masked and name.startswith("field_"):
            finite &= ~np.isinf(flat).any(axis=1) & ~np.isnan(flat).all(axis=1)
        else:
            finite &= np.isfinite(flat).all(axis=1)
    return finite


# --- the stage --------------------------------------------------------------------------------------------------


def variables(layout: Layout, dtype: npt.DTypeLike) -> dict[str, Spec]:
    """Per-sample variables of group ``tucker``: dims and shape without ``sample``, and dtype."""
    real = np.dtype(dtype)
    out: dict[str, Spec] = {stream.name: (stream.dims, stream.shape, real) for stream in layout.tucker_streams}
    out |= {name: ((), (), np.dtype(np.float64)) for name in ERRORS}
    out["numerical_rank"] = (("decomposed_mode",), (len(layout.ranks),), np.dtype(np.int32))
    for mode in layout.ranks:
        out[f"spectrum_{mode}"] = ((f"component_{mode}",), (layout.ranks[mode] + 1,), np.dtype(np.float32))
    return out


def template(work: Workspace, layout: Layout) -> xr.Dataset:
    """The whole group ``tucker`` as metadata and zeros that take no memory."""
    samples = work.samples
    n = samples.n
    specs = variables(layout, samples.dtype)
    blank = np.zeros((1, *samples.sizes.values()), samples.dtype)  # its shape is all that is asked for
    for name, value in samples.conditions(np.arange(1), blank).items():
        own = tuple(f"{name}_{axis}" for axis in range(value.ndim - 1))
        specs[f"condition_{name}"] = (own, value.shape[1:], value.dtype)
    specs["status"] = ((), (), np.dtype(np.int8))
    data = {name: (("sample", *dims), lazy_zeros((n, *shape), dtype)) for name, (dims, shape, dtype) in specs.items()}
    taken = {"decomposed_mode", *specs, *(dim for dims, _, _ in specs.values() for dim in dims)}
    coords = {
        f"source_{name}" if name in taken else name: coord
        for name, coord in samples.sample_coords(np.arange(n)).items()
    }
    dataset = xr.Dataset(data, coords=coords).assign_coords(decomposed_mode=list(layout.ranks))
    return dataset.assign_coords({k: v for k, v in mode_coords(work).items() if k in dataset.dims})


def mode_coords(work: Workspace) -> dict[str, Any]:
    """Coordinates of the modes of a sample: the source's, offsets within a window, and the variables' names."""
    modes = work.recipe.tensor_modes
    found: dict[str, Any] = {
        str(name): coord.variable
        for name, coord in work.samples.template().coords.items()
        if name in modes and coord.dims == (name,)
    }
    return found | ({"component": list(work.recipe.data.variables)} if "component" in modes else {})


def say_uneven(work: Workspace) -> None:
    """Log which windowed dims have no common coordinate: their points are not evenly spaced, as months are not."""
    samples, template = work.samples, work.samples.template()
    for dim in work.recipe.data.windows.size:
        if dim in samples.dataset.coords and dim not in template.coords:
            text = "points along %s are not evenly spaced: generated samples have no coordinate there, only an order"
            log.warning(text, dim)


def say_read_again(work: Workspace) -> None:
    """Log where chunks of the source are so large that several shards read the same one."""
    chunk, shard = source_chunk(work.samples), work.shard
    if chunk > shard:
        text = "a chunk of the source holds %d samples, a shard %d: each chunk is read %d times"
        fix = "store the source in smaller chunks, or raise compute.shard_samples and compute.memory"
        log.warning(f"{text}; {fix}", chunk, shard, math.ceil(chunk / shard))


def say_resumed(version: Version) -> None:
    """Log where an interrupted version continues."""
    there = version.n_shards - len(version.pending())
    if there:
        log.info("continuing: %d of %d shards of group %s are there", there, version.n_shards, version.group)


def condition_dims(work: Workspace) -> dict[str, list[str]]:
    """Dims of the conditions that are fields, without that of samples."""
    condition, data = work.recipe.data.condition, work.recipe.data
    dims = {f"field_{name}": work.samples.dataset[name].dims for name in condition.fields}
    out = {name: [str(dim) for dim in each if dim != data.sample_dim] for name, each in dims.items()}
    if condition.initial is not None:
        out["initial"] = [mode for mode in work.recipe.tensor_modes if mode != condition.initial.dim]
    return out


def lazy_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
    """Zeros of any size that take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def training_choice(work: Workspace, count: int) -> Array:
    """At most ``count`` training samples, seeded, within 256 MiB, increasing."""
    samples = work.samples
    train = np.flatnonzero(~samples.is_test)
    count = min(len(train), count, max(2, PILOT_BYTES // samples.bytes_per_sample))
    return np.sort(np.random.default_rng(work.recipe.seed).choice(train, count, replace=False))


def pilot_indices(work: Workspace) -> Array:
    """The samples from which ranks are found."""
    return training_choice(work, PILOT_SAMPLES)


def pilot_fields(work: Workspace, scaling: str) -> Array:
    """Centred and scaled good samples of the pilot ``(k, *sizes)``."""
    fields, _ = read_scaling(work.store_location, scaling)
    indices = pilot_indices(work)
    x = work.samples.read(indices)
    good = checked(work.samples, indices, x, fields.mask)[0] == STATUS["ok"]
    if not good.any():
        raise SourceError(
            f"{work.recipe.data.source}: none of {len(x)} training samples chosen to find ranks is usable. Mend the "
            "source, or give decompose.ranks instead of a tolerance."
        )
    return np.asarray(fields.apply(x[good]), dtype=x.dtype)


def found_layout(work: Workspace, scaling: str) -> Layout:
    """The recipe's layout, with ranks found from the pilot where it has a tolerance."""
    recipe, ranks = work.recipe, None
    if recipe.decompose.tolerance is not None:
        ranks = find_ranks(pilot_fields(work, scaling), recipe)
        log.info("ranks for tolerance %g: %s", recipe.decompose.tolerance, ranks)
    return Layout.from_recipe(recipe, work.samples.sizes, ranks)


def begin(work: Workspace, scaling: str, shard: int, hooks: Hooks) -> Version:
    """The version to be filled: new, or the unfinished one."""
    identity, samples = tucker_fingerprint(work), work.samples
    version = None if hooks.restart else work.find("tucker", identity)
    if version is not None:
        return version
    layout = found_layout(work, scaling)
    attrs = work.attrs(
        layout=layout.to_dict(),
        template=sources.template_to_json(samples.template()),
        label_names=list(samples.label_names),
        condition_dims=condition_dims(work),
        n_dropped=samples.dropped,
        scaling=scaling,
    )
    filled = template(work, layout)
    return work.store.begin("tucker", filled, fingerprint=identity, shard=shard, attrs=attrs, restart=hooks.restart)


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Decompose every sample into group ``tucker``; continue where an earlier run stopped."""
    started = time.monotonic()
    version = None if hooks.restart else tucker_version(work)
    if version is not None and version.complete:
        return result(work, version, started, skipped=True)
    samples, recipe = work.samples, work.recipe
    say_uneven(work)
    shard = work.shard
    say_read_again(work)
    if recipe.decompose.tolerance is None:
        Layout.from_recipe(recipe, samples.sizes)  # refuses ranks that cannot be, before anything is read
    with open_cluster(recipe.compute) as cluster:
        scaling = put_scaling(work, cluster, shard, hooks).snapshot
        version = begin(work, scaling, shard, hooks)
        say_resumed(version)
        function = partial(
            decompose_shard,
            data=work.data,
            seed=recipe.seed,
            location=work.store_location,
            scaling=version.attrs["scaling"],
            layout=layout_of(version),
            method=recipe.decompose.method,
            device=recipe.compute.device,
        )
        version.fill(function, cluster, progress=lambda done, failed: hooks.progress(done, samples.n, failed))
    check_failures(work, version)
    return result(work, work.keep(version.finish()), started)


def allowed_failures(work: Workspace, n: int) -> int:
    """How many of ``n`` samples may be bad."""
    return max(1, math.floor(work.recipe.data.max_failed * n))


def check_failures(work: Workspace, version: Version) -> None:
    """Raise where more samples are bad than ``data.max_failed`` allows, or too few good ones are left."""
    status = version.dataset()["status"].values
    bad = np.flatnonzero(status != STATUS["ok"])
    allowed = allowed_failures(work, len(status))
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
