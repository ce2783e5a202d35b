"""Stage 1: raw samples -> centred and scaled -> Tucker form of each sample (group ``tucker``)."""

from __future__ import annotations

import logging
import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import sources
from diffats.compute import Cluster, open_cluster
from diffats.config import Data
from diffats.digests import text_digest
from diffats.errors import DiffatsError, InputError, NonFiniteError, SourceError, TooManyFailedError
from diffats.primitives import (
    CyclicMoments,
    FieldMoments,
    FieldScaling,
    Layout,
    decompose,
    find_ranks,
    outside_domain,
    reconstruction_errors,
)
from diffats.requirements import missing
from diffats.sources import gaps, sides, spacing
from diffats.sources.missing import counts_as_missing
from diffats.sources.parts import sample_digests
from diffats.spectrum import as_numpy, norm2, on_device
from diffats.stages import growth
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
_MISSED = 1.5  # times its tolerance, which the error over all samples may reach without a word
# Relative to the field, to its difference from the training mean, and to the centred and scaled field.
ERRORS = ("relative_error", "anomaly_error", "truncation_error")
MASK_SAMPLES = 64
# Squares of numbers between these, and sums of them, are float64 numbers that have all their digits.
SMALLEST, LARGEST = 1e-100, 1e100
DEFAULT_FILL = 9.969209968386869e36  # what the netCDF library leaves where nothing was written
PILOT_BYTES = 2**28
_NOT_CONVERGED: tuple[type[Exception], ...] = (np.linalg.LinAlgError, NonFiniteError)
Array = npt.NDArray[Any]
Spec = tuple[tuple[str, ...], tuple[int, ...], np.dtype[Any]]  # dims, shape, dtype
log = logging.getLogger("diffats.decompose")


# --- identity ---------------------------------------------------------------------------------------------------


def tucker_fingerprint(work: Workspace) -> str | None:
    """Identity of the Tucker forms; of a growing source, None before it has a mean and a scale.

    Of a growing source, the first half is the same whatever samples it has: that of its lineage, which begins anew
    with another mean and scale.
    """
    if not work.recipe.data.grows:
        return fingerprint("tucker", work.encoding, work.scaling_fingerprint)
    scaling = work.find("scaling", work.scaling_fingerprint)
    if scaling is None:
        return None
    half = len(scaling.fingerprint) // 2
    lineage = fingerprint("tucker", work.encoding, work.scaling_fingerprint, scaling.digest)
    return lineage[:half] + text_digest(work.source_digest)[:half]


def tucker_version(work: Workspace) -> Version | None:
    """The stored Tucker forms of this recipe, finished or not."""
    identity = tucker_fingerprint(work)
    return None if identity is None else work.find("tucker", identity)


def grown_from(work: Workspace) -> Version | None:
    """Of a growing source, the newest finished Tucker forms, of whatever samples it had then."""
    identity = tucker_fingerprint(work) if work.recipe.data.grows else None
    return None if identity is None else work.store.newest("tucker", identity[: len(identity) // 2])


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


def no_moments(samples: sources.Samples) -> FieldMoments:
    """What the statistics of the training samples are gathered in."""
    mode = samples.clocks.time_mode
    axis = None if mode is None else samples.modes.index(mode)
    return FieldMoments(samples.transforms, CyclicMoments(axis) if samples.data.climatology else None)


def run_moments(
    bounds: tuple[int, int],
    *,
    data: Data,
    seed: int,
    shard: int,
    boundary: int | None = None,
    pass_name: str = "",
    shared: Array | None = None,
) -> tuple[FieldMoments, Counter[Any]]:
    """Moments of the good training samples of a run of shards, and how much is missing beside the mask ``shared``.

    Also counted, by name and number, are numbers that may stand for missing ones: `gaps.repeated_extremes`.
    """
    mask, counts = shared, Counter[Any]()
    with steady(data, pass_name):
        moments = no_moments(sources.open_samples(data, seed, boundary, fresh=False))
    for start, stop in shard_bounds(bounds[1] - bounds[0], shard):
        with steady(data, pass_name):
            samples = sources.open_samples(data, seed, boundary, fresh=False)
            indices = np.arange(bounds[0] + start, bounds[0] + stop)
            indices = indices[~samples.is_test[indices]]
            x = samples.read(indices)
            status, _ = checked(samples, indices, x, mask)
            phases = samples.climatology_phases(indices)
        good = status == STATUS["ok"]
        if samples.transforms:
            check_domain(samples, indices[good], x[good])
        counts.update(values=x.size)
        counts.update(gaps.repeated_extremes(x, samples.variables))
        if mask is None and good.all():
            moments.add(x, phases)
            continue
        moments.add(x[good], None if phases is None else phases[good])  # NaN where masked
        nan = np.isnan(x)
        other = (nan if mask is None else nan != mask).any(axis=tuple(range(1, x.ndim)))
        counts.update(other=int(other.sum()), missing=int((~usable(x)).sum()))
    return moments, counts


def check_domain(samples: sources.Samples, indices: Array, x: Array) -> None:
    """Refuse good samples ``x`` with values that their variable's transform does not take."""
    found = outside_domain(x, samples.transforms, samples.variables)
    if found is not None:
        raise SourceError(
            f"{samples.data.source}, sample {indices[found[0]]}: data.transform cannot be done: {found[1]}, "
            "or mend the source."
        )


def fit_scaling(work: Workspace, cluster: Cluster, shard: int, hooks: Hooks) -> tuple[FieldScaling, Array]:
    """Scaling and training mean, in one pass over the raw data."""
    samples = work.samples
    moments, counts = no_moments(samples), Counter[Any]()
    function = partial(
        run_moments,
        data=work.data,
        seed=work.recipe.seed,
        shard=shard,
        boundary=samples.boundary,
        pass_name=uuid.uuid4().hex,
    )
    one = samples.bytes_per_sample
    # Of each number, its mean and its sum of squares come back, in float64.
    returned = 16 * one // samples.dtype.itemsize * moments.parts
    runs = shard_runs(samples.n, shard, sample_bytes=one, result_bytes=returned)
    for (_, stop), (part, counted) in cluster.map(function, runs, ordered=True, shared=find_mask(work)):
        moments.merge(part)
        counts.update(counted)
        hooks.progress(stop, samples.n, 0)
    share = counts["missing"] / max(counts["values"], 1)
    say_repeated({key: n for key, n in counts.items() if isinstance(key, tuple)}, counts["values"], samples)
    if work.recipe.data.missing == "mask" and counts["other"] > allowed_failures(work, samples.n):
        raise SourceError(
            f"{work.recipe.data.source}: {share:.1%} of the training values are missing, and in {counts['other']} "
            f'samples not at the same points as in the others, which data.missing = "mask" expects. '
            f"{_points_in_words(work, training_choice(work, MASK_SAMPLES))}"
        )
    if moments.raw.count == 0:
        raise SourceError(
            f"{work.recipe.data.source}: no training sample is usable ({share:.1%} of the values are missing, infinite "
            'or excessive, the others zero). Set data.missing = "mask" if the same points are missing in every sample.'
            + _of_missing(samples)
        )
    return fitted_scaling(work, moments)


def say_repeated(found: Mapping[tuple[str, float], int], values: int, samples: sources.Samples) -> None:
    """Warn of numbers that may stand for missing ones, among this many values of all variables."""
    for text in gaps.repeated_in_words(found, values // len(samples.variables)):
        log.warning(text)


def _of_missing(samples: sources.Samples) -> str:
    """What counts as missing, as a sentence; empty where nothing does."""
    said = [text for name in samples.variables[:4] if (text := counts_as_missing(samples.dataset[name]))]
    return f" Missing are: {', '.join(said)}." if said else ""


def _points_in_words(work: Workspace, indices: Array) -> str:
    """Which points some of these samples lack and others do not, and what to do; empty where they lack the same."""
    samples = work.samples
    points = gaps.differing_points(np.isnan(samples.read(indices)), samples.sizes, samples.variables)
    windowed = [dim for dim in samples.starts if not sides.is_time(samples, dim)]
    return f"In {len(indices)} samples, {points}. {gaps.ways_out(windowed)}" if points else ""


def fitted_scaling(work: Workspace, moments: FieldMoments) -> tuple[FieldScaling, Array]:
    """What ``data.center`` and ``data.scale`` ask for, and the training mean with masked points filled."""
    data, component = work.recipe.data, "component" in work.recipe.tensor_modes
    center, scale = work.recipe.axes_of(data.center), work.recipe.axes_of(data.scale)
    if component:
        _check_each(work, moments.raw.mean)
    scaling = FieldScaling.of_fields(moments, center, scale, component=component)
    by_variable = FieldScaling.fit(moments.raw, "variable", "variable", component=component)
    check_range(work, by_variable)
    mean = moments.raw.mean
    return scaling, np.where(np.isnan(mean), by_variable.mean, mean)


def _check_each(work: Workspace, mean: Array) -> None:
    """Refuse a variable without any value."""
    for name, values in zip(work.samples.variables, mean, strict=True):
        if np.isnan(values).all():
            raise SourceError(
                f'{work.recipe.data.source}: every value of variable "{name}" is missing in the training samples. '
                "Remove it from data.variables, or mend the source."
            )


def check_range(work: Workspace, by_variable: FieldScaling) -> None:
    """Refuse magnitudes that float32, in which models compute and samples are stored, does not have."""
    mean, deviation = np.abs(by_variable.mean.ravel()), by_variable.scale.ravel()
    with np.errstate(over="ignore"):
        lost = ~np.isclose(deviation.astype(np.float32), deviation, rtol=1e-3, atol=0) | np.isinf(
            mean.astype(np.float32)
        )
    if lost.any():
        worst = int(lost.argmax())
        raise SourceError(
            f"{work.recipe.data.source}: values of mean {mean[worst]:.3g} and deviation {deviation[worst]:.3g} are "
            "beyond float32 (1e-38 to 3e38), in which samples are generated. Convert them to other units."
        )


def put_scaling(work: Workspace, cluster: Cluster, shard: int, hooks: Hooks) -> Version:
    """The ``scaling`` group of this recipe, fitted where it is not there yet."""
    identity = work.scaling_fingerprint
    version = None if hooks.restart else work.find("scaling", identity)
    if version is not None and version.complete and not outdated(work, version):
        return version
    log.info("reading the training samples once for their mean and scale")
    scaling, training_mean = fit_scaling(work, cluster, shard, hooks)
    check_steady(work)
    modes = work.recipe.tensor_modes
    arrays = dict(scaling.to_arrays(), training_mean=training_mean)
    dataset = xr.Dataset({name: (_dims(name, array, modes), array) for name, array in arrays.items()})
    attrs = work.attrs()
    if work.recipe.data.grows:
        attrs |= {"source": work.source_digest, "boundary": work.samples.boundary}
    return work.keep(work.store.put("scaling", dataset, fingerprint=identity, attrs=attrs))


def outdated(work: Workspace, scaling: Version) -> bool:
    """Whether a growing source has changed since its mean and scale were fitted, and nothing was encoded with them."""
    if not work.recipe.data.grows or scaling.attrs["source"] == work.source_digest or grown_from(work) is not None:
        return False
    work.rebase()
    return True


_OWN_DIMS: dict[str, tuple[str, ...]] = {"transforms": ("variable",), "climatology": ("harmonic",), "time_axis": ()}


def _dims(name: str, array: Array, modes: Sequence[str]) -> tuple[str, ...]:
    # A mean of one number has axes of length 1 where the field has its sizes.
    if name in _OWN_DIMS:
        return (*_OWN_DIMS[name], *_dims("", array[0], modes)) if array.ndim > 1 else _OWN_DIMS[name]
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
    converted = replace(fields, mean=fields.mean.astype(dtype), scale=fields.scale.astype(dtype))
    return converted, training_mean.astype(dtype)


# --- one shard --------------------------------------------------------------------------------------------------


def scaling_version(work: Workspace) -> Version:
    """The stored scaling of this recipe."""
    return work.require(work.find("scaling", work.scaling_fingerprint), "scaling", "decompose")


def status_of(x: Array, mask: npt.NDArray[Any] | None) -> npt.NDArray[np.int8]:
    """Status flag of each sample of ``x`` ``(k, *sizes)``: ok, non_finite or all_zero.

    Where there is a mask, a good sample is NaN there and nowhere else. Values too large to be squared count as not
    finite, a sample of values too small for it as zero.
    """
    status = np.full(len(x), STATUS["ok"], np.int8)
    if mask is None:  # mostly, one sum of squares shows that all is well
        squares = norm2(x, x.ndim - 1)
        doubtful = ~((squares < DEFAULT_FILL**2) & (squares > SMALLEST**2))
        if not doubtful.any():
            return status
    axes = tuple(range(1, x.ndim))
    valid = usable(x) if mask is None else np.where(mask, np.isnan(x), usable(x))
    zero = np.abs(x) <= SMALLEST if mask is None else (np.abs(x) <= SMALLEST) | mask
    status[zero.all(axis=axes)] = STATUS["all_zero"]
    status[~valid.all(axis=axes)] = STATUS["non_finite"]
    return status


def usable(x: Array) -> npt.NDArray[np.bool_]:
    """Which values are numbers that can be squared and are no default fill value."""
    largest = min(LARGEST, float(np.finfo(x.dtype).max))
    return np.asarray(np.isfinite(x) & (np.abs(x) <= largest) & (x != x.dtype.type(DEFAULT_FILL)))


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
    boundary: int | None = None,
    pass_name: str = "",
) -> dict[str, Array]:
    """Tucker forms, errors, spectra, conditions and status of samples ``start..stop``; bad samples are zeros."""
    with steady(data, pass_name):
        samples = sources.open_samples(data, seed, boundary, fresh=False)
        fields, training_mean = scaling_in(samples.dtype, location, scaling)
        indices = np.arange(start, stop)
        x = samples.read(indices)
        status, conditions = checked(samples, indices, x, fields.mask)
    good = np.flatnonzero(status == STATUS["ok"])
    if samples.transforms:
        check_domain(samples, indices[good], x[good])
    forms, converged = converged_forms(
        x if len(good) == len(x) else x[good],
        samples.climatology_phases(indices[good]),
        lambda some, phases: _forms(some, phases, fields, training_mean, layout, method, device),
    )
    healthy = sound(forms, layout) if forms else np.ones(0, bool)
    if not healthy.all():
        forms, converged[converged] = {name: values[healthy] for name, values in forms.items()}, healthy
    status[good[~converged]] = STATUS["not_converged"]
    good = status == STATUS["ok"]
    out: dict[str, Array] = {"status": status, growth.DIGEST: sample_digests(x, conditions)}
    if good.any():
        out |= {name: _scatter(values, good) for name, values in forms.items()}
    else:
        specs = variables(layout, x.dtype)
        out |= {name: np.zeros((len(x), *shape), dtype) for name, (_, shape, dtype) in specs.items()}
    return out | {f"condition_{name}": _scatter(value[good], good) for name, value in conditions.items()}


@lru_cache(maxsize=8)
def _first_look(text: str, _pass_name: str) -> str:
    return sources.look(Data.model_validate_json(text))


@contextmanager
def steady(data: Data, pass_name: str) -> Iterator[None]:
    """Refuse what was read from files that have changed since this process first saw them in this pass over the data.

    A source that grows may get more; which of its samples have changed is found by their digests.
    """
    if data.grows:
        yield
        return
    before = _first_look(data.model_dump_json(), pass_name)
    try:
        yield
    except (
        DiffatsError,
        OSError,
        LookupError,
        ValueError,
        RuntimeError,
    ) as error:  # such as of an index that is no more
        if sources.look(data) != before:
            raise changed(data.source) from error
        raise
    if sources.look(data, fresh=False) != before:
        raise changed(data.source)


def check_steady(work: Workspace) -> None:
    """Refuse to finish what was read from a source that changed meanwhile."""
    if work.recipe.data.grows:
        return
    samples = work.samples
    if "snapshot" in samples.dataset.encoding:  # an open repository stays at it
        samples = sources.Samples(work.data, work.recipe.seed)
    if samples.fingerprint() != work.source_digest:
        raise changed(work.recipe.data.source)


def changed(source: str) -> SourceError:
    """The error for a source that is not what it was."""
    return SourceError(
        f'data.source "{source}" was changed while it was read. When it is complete, run the same command: it begins '
        "anew with the source as it is then."
    )


def sound(forms: dict[str, Array], layout: Layout) -> npt.NDArray[np.bool_]:
    """Which Tucker forms ``(k, ...)`` are finite numbers on orthonormal columns."""
    k = len(forms["core"])
    good = np.ones(k, bool)
    for values in forms.values():
        good &= np.isfinite(values.reshape(k, -1)).all(axis=1)
    for stream in layout.tucker_streams[1:]:
        U = forms[stream.name]
        excess = np.matmul(U.swapaxes(-1, -2), U) - np.eye(U.shape[-1], dtype=U.dtype)
        departure = np.abs(excess).reshape(k, -1).max(axis=1)
        good &= departure < math.sqrt(np.finfo(U.dtype).eps)  # NaN is not
    return good


def converged_forms(
    x: Array, phases: Array | None, forms: Callable[[Array, Array | None], dict[str, Array]]
) -> tuple[dict[str, Array], npt.NDArray[np.bool_]]:
    """Forms of the samples that the decomposition converges on, and which these are; all at once where it can."""
    if not len(x):
        return {}, np.ones(0, bool)
    try:
        return forms(x, phases), np.ones(len(x), bool)
    except _NOT_CONVERGED + _errors_of_torch():
        if len(x) == 1:
            return {}, np.zeros(1, bool)
    times = [None, None] if phases is None else np.array_split(phases, 2)
    halves = [converged_forms(half, time, forms) for half, time in zip(np.array_split(x, 2), times, strict=True)]
    found = [half for half, _ in halves if half]
    names = found[0] if found else ()
    return {n: np.concatenate([h[n] for h in found]) for n in names}, np.concatenate([ok for _, ok in halves])


def _errors_of_torch() -> tuple[type[Exception], ...]:
    """What its decompositions raise where they do not converge; nothing where no sample has gone to a GPU."""
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.linalg.LinAlgError,)


def _forms(
    x: Array,
    phases: Array | None,
    scaling: FieldScaling,
    training_mean: Array,
    layout: Layout,
    method: str,
    device: str,
) -> dict[str, Array]:
    raw = on_device(x, device)
    fields = scaling.apply(raw, phases)
    streams, tucker = decompose(fields, layout, method)
    out = {name: as_numpy(value).astype(x.dtype, copy=False) for name, value in streams.items()}
    restored = layout.restore(tucker.to_tensor())
    fields -= restored  # in place: they have served
    norms = tucker.norm2.reshape(len(x), -1).sum(-1)
    decoded = scaling.undo(restored, phases) if scaling.transforms else None
    errors = reconstruction_errors(raw, fields, norms, scaling, training_mean, decoded)
    out |= {name: as_numpy(values) for name, values in zip(ERRORS, errors, strict=True)}
    decomposed = [axis for axis, rank in enumerate(layout.working_ranks) if rank is not None]
    batch = tuple(range(1, 1 + len(layout.labelled)))  # the labelled modes of a matrix primitive
    numerical = as_numpy(tucker.numerical_ranks)
    out["numerical_rank"] = numerical[..., decomposed].min(axis=batch).astype(np.int32)
    for axis in decomposed:
        # of the kept columns one by one, and of all others together
        lost = as_numpy(tucker.discarded)[..., axis, None]
        energies = np.concatenate([as_numpy(tucker.spectra[axis]), lost], axis=-1)
        out[f"spectrum_{layout.working_modes[axis]}"] = energies.sum(axis=batch)
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
        flat = value.reshape(k, math.prod(value.shape[1:]))  # k may be 0
        excessive = np.abs(flat) > min(LARGEST, float(np.finfo(flat.dtype).max))
        if masked and name.startswith("field_"):
            finite &= ~excessive.any(axis=1) & ~np.isnan(flat).all(axis=1)
        else:
            finite &= ~(excessive | np.isnan(flat)).any(axis=1)
    return finite


# --- the stage --------------------------------------------------------------------------------------------------


def variables(layout: Layout, dtype: npt.DTypeLike) -> dict[str, Spec]:
    """Per-sample variables of group ``tucker``: dims and shape without ``sample``, and dtype."""
    real = np.dtype(dtype)
    out: dict[str, Spec] = {stream.name: (stream.dims, stream.shape, real) for stream in layout.tucker_streams}
    out |= {name: ((), (), np.dtype(np.float64)) for name in ERRORS}
    out["numerical_rank"] = (("decomposed_mode",), (len(layout.ranks),), np.dtype(np.int32))
    for mode in layout.ranks:
        out[f"spectrum_{mode}"] = ((f"component_{mode}",), (layout.ranks[mode] + 1,), np.dtype(np.float64))
    return out


def template(work: Workspace, layout: Layout, shard: int) -> xr.Dataset:
    """The whole group ``tucker`` as metadata and zeros that take no memory."""
    samples = work.samples
    n = samples.n
    specs = variables(layout, samples.dtype)
    blank = np.zeros((1, *samples.sizes.values()), samples.dtype)  # its shape is all that is asked for
    for name, value in samples.conditions(np.arange(1), blank).items():
        own = tuple(f"{name}_{axis}" for axis in range(value.ndim - 1))
        specs[f"condition_{name}"] = (own, value.shape[1:], value.dtype)
    specs["status"] = ((), (), np.dtype(np.int8))
    specs[growth.DIGEST] = (("digest_byte",), (sources.DIGEST_BYTES,), np.dtype(np.uint8))
    data: dict[str, Any] = {
        name: (("sample", *dims), lazy_zeros((n, *shape), dtype)) for name, (dims, shape, dtype) in specs.items()
    }
    if samples.data.grows:
        data[growth.STAMP] = (("shard", "stamp_byte"), samples.stamps(shard_bounds(n, shard)))
    taken = {"decomposed_mode", *data, *(dim for dims, _, _ in specs.values() for dim in dims)}
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
    """Log what is odd about coordinates along which samples lie.

    Windows over a gap, samples that may stand on both sides of the split, and windowed dims without common coordinate:
    their points are not evenly spaced, as months are not.
    """
    samples, template = work.samples, work.samples.template()
    dim = work.recipe.data.sample_dim
    twice = spacing.repeated(samples.dataset[dim].values) if dim in samples.dataset.indexes else 0
    if twice and samples.data.split.group != dim:
        text = 'coordinate "%s" repeats %d of %d values: equal samples may be on both sides of the split'
        fix = 'data.split.group = "%s" keeps them together'
        log.warning(f"{text}; {fix}", dim, twice, samples.dataset.sizes[dim], dim)
    for dim, size in work.recipe.data.windows.size.items():
        starts = samples.starts[dim]
        broken = (
            spacing.broken_windows(samples.dataset[dim].values, starts, size) if dim in samples.dataset.indexes else 0
        )
        if broken:
            log.warning(
                '%d of %d windows along "%s" hold a gap, a repeated or an unsorted point of its coordinate, and are '
                "taken as if they did not. Sort the source, or fill it or cut it at the gaps",
                broken,
                samples.n,
                dim,
            )
        if dim in samples.dataset.indexes and dim not in template.coords:
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
    known = growth.known_samples(version) // version.record.shard
    there = version.n_shards - len(version.pending())
    if there > known:
        log.info("continuing: %d of %d shards of group %s are there", there, version.n_shards, version.group)


def condition_dims(work: Workspace) -> dict[str, list[str]]:
    """Dims of the conditions that are fields, without that of samples."""
    condition, data = work.recipe.data.condition, work.recipe.data
    dims = {f"field_{name}": work.samples.dataset[name].dims for name in condition.fields}
    out = {name: [str(dim) for dim in each if dim != data.sample_dim] for name, each in dims.items()}
    if condition.initial is not None:
        out["initial"] = [mode for mode in work.recipe.tensor_modes if mode != condition.initial.dim]
    return out


def condition_units(work: Workspace) -> dict[str, str]:
    """Units of the conditions that are other fields, where the source has them."""
    units = {name: work.samples.dataset[name].attrs.get("units") for name in work.recipe.data.condition.fields}
    return {f"field_{name}": str(unit) for name, unit in units.items() if unit is not None}


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


def pilot_fields(work: Workspace, scaling: str) -> tuple[Array, Array]:
    """Good samples of the pilot, centred and scaled, and their deviation from the training mean: ``(k, *sizes)``."""
    fields, training_mean = read_scaling(work.store_location, scaling)
    indices = pilot_indices(work)
    phases = work.samples.climatology_phases(indices)
    x = work.samples.read(indices)
    good = checked(work.samples, indices, x, fields.mask)[0] == STATUS["ok"]
    if not good.any():
        raise SourceError(
            f"{work.recipe.data.source}: none of {len(x)} training samples chosen to find ranks is usable. Mend the "
            "source, or give decompose.ranks instead of a tolerance."
        )
    phases = None if phases is None else phases[good]
    prepared = np.asarray(fields.apply(x[good], phases), dtype=x.dtype)
    return prepared, deviations(prepared, phases, fields, training_mean)


def deviations(prepared: Array, phases: Array | None, scaling: FieldScaling, training_mean: Array) -> Array:
    """Of centred and scaled fields from the training mean, season included; from their own where they are transformed.

    Parameters
    ----------
    prepared
        ``(k, *sizes)``.
    phases
        Of their times, where a climatology was subtracted from them.
    training_mean
        ``sizes``, in physical units.
    """
    if scaling.transforms:  # of which the mean of raw fields says nothing
        return np.asarray(prepared - prepared.mean(axis=0))
    mean = np.broadcast_to(training_mean, (1 if phases is None else len(phases), *training_mean.shape))
    return np.asarray(prepared - np.asarray(scaling.apply(mean, phases)))


def found_layout(work: Workspace, scaling: str) -> Layout:
    """The recipe's layout, with ranks found from the pilot where it has a tolerance."""
    recipe, ranks = work.recipe, None
    if recipe.decompose.tolerance is not None:
        ranks = find_ranks(*pilot_fields(work, scaling), recipe)
        log.info("ranks for tolerance %g: %s", recipe.decompose.tolerance, ranks)
    return Layout.from_recipe(recipe, work.samples.sizes, ranks)


def begin(work: Workspace, cluster: Cluster, scaling: str, shard: int, hooks: Hooks) -> Version:
    """The version to be filled: new, grown from an earlier one, or the unfinished one."""
    identity, samples = tucker_fingerprint(work), work.samples
    assert identity is not None
    version = None if hooks.restart else work.find("tucker", identity)
    if version is not None:
        return version
    previous = None if hooks.restart else grown_from(work)
    if previous is not None:
        return grow(work, previous, cluster, identity)
    if samples.data.grows and not hooks.restart and work.store.latest("tucker") is not None:
        log.warning("no version was made with these options by this release: all samples are encoded, with new anchors")
    layout = found_layout(work, scaling)
    attrs = work.attrs(
        layout=layout.to_dict(),
        template=sources.template_to_json(samples.template()),
        label_names=list(samples.label_names),
        condition_dims=condition_dims(work),
        condition_units=condition_units(work),
        n_dropped=samples.dropped,
        scaling=scaling,
        **cycles_attr(samples),
        **growth.files_attr(samples),
    )
    filled, grows = template(work, layout, shard), samples.data.grows
    options: dict[str, Any] = {"fingerprint": identity, "shard": shard, "attrs": attrs, "grows": grows}
    return work.store.begin("tucker", filled, **options, restart=hooks.restart)


def cycles_attr(samples: sources.Samples) -> dict[str, Any]:
    """What a version says about phases of times; nothing without any."""
    return {"cycles": samples.clocks.cycles} if samples.clocks.known else {}


def grow(work: Workspace, previous: Version, cluster: Cluster, identity: str) -> Version:
    """A version to be filled with the samples that an earlier one does not have."""
    growth.check_kind(work, previous)
    filled = template(work, layout_of(previous), previous.record.shard)
    growth.check_appended(work, previous, filled, cluster)
    kept = {key: previous.attrs[key] for key in ("layout", "template", "label_names", "condition_dims", "scaling")}
    kept |= {key: previous.attrs[key] for key in ("cycles",) if key in previous.attrs}
    kept |= growth.grown_attrs(previous) | growth.files_attr(work.samples)
    kept |= {"condition_units": previous.attrs.get("condition_units", {})}
    attrs = work.attrs(**kept, n_dropped=work.samples.dropped)
    log.info("%d of %d samples are new", growth.new_samples(work, previous), work.samples.n)
    return work.store.grow(previous, filled, fingerprint=identity, attrs=attrs)


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Decompose every sample into group ``tucker``; continue where an earlier run stopped."""
    started = time.monotonic()
    version = None if hooks.restart else tucker_version(work)
    if version is not None and version.complete:
        return result(work, version, started, skipped=True)
    check_not_pinned(work)
    if hooks.restart:
        work.rebase()
    samples, recipe = work.samples, work.recipe
    say_uneven(work)
    shard = work.shard
    say_read_again(work)
    if recipe.decompose.tolerance is None:
        Layout.from_recipe(recipe, samples.sizes)  # refuses ranks that cannot be, before anything is read
    compute = recipe.compute
    if (compute.device, compute.scheduler) == ("auto", "local") and "torch" in missing("train"):
        log.info("samples are decomposed on the CPU: without torch no GPU is looked for")
    with open_cluster(compute) as cluster:
        scaling = put_scaling(work, cluster, shard, hooks).snapshot
        version = begin(work, cluster, scaling, shard, hooks)
        say_resumed(version)
        function = partial(
            decompose_shard,
            data=work.data,
            seed=recipe.seed,
            location=work.store_location,
            scaling=version.attrs["scaling"],
            layout=layout_of(version),
            method=recipe.decompose.method,
            device=compute.device,
            boundary=work.samples.boundary,
            pass_name=uuid.uuid4().hex,
        )
        fill, n = growth.only_new(function, version, work.store_location), version.record.n
        version.fill(fill, cluster, progress=lambda done, failed: hooks.progress(done, n, failed))
    check_steady(work)
    check_failures(work, version)
    return result(work, work.keep(version.finish()), started)


def check_not_pinned(work: Workspace) -> None:
    """Refuse to encode the source as it is now under the name of how it once was."""
    if work.recipe.data.version is not None:
        raise InputError(
            f'data.version "{work.recipe.data.version}" is not there as these options encode it, or was encoded with '
            "other anchors, and is not made again. Use the options that it was made with, roll back to it, or remove "
            "data.version."
        )


def allowed_failures(work: Workspace, n: int) -> int:
    """How many of ``n`` samples may be bad."""
    return max(1, math.floor(work.recipe.data.max_failed * n))


def check_failures(work: Workspace, version: Version) -> None:
    """Raise where more samples are bad than ``data.max_failed`` allows, or too few good ones are left."""
    status, known = version.dataset()["status"].values, growth.known_samples(version)
    bad = np.flatnonzero(status != STATUS["ok"])
    allowed, allowed_new = allowed_failures(work, len(status)), allowed_failures(work, len(status) - known)
    meaning = {flag: name for name, flag in STATUS.items()}
    listed = ", ".join(f"{i} ({meaning[int(status[i])]})" for i in bad[:10]) + (" ..." if len(bad) > 10 else "")
    if len(bad) > allowed:
        raise TooManyFailedError(
            f"decompose: {len(bad)} of {len(status)} samples failed, {allowed} are allowed by data.max_failed = "
            f"{work.recipe.data.max_failed}: {listed}. {_why_missing(work, status)}, or raise data.max_failed."
        )
    bad_new = int((bad >= known).sum())
    if bad_new > allowed_new:
        raise TooManyFailedError(
            f"decompose: {bad_new} of {len(status) - known} new samples failed, {allowed_new} are allowed by "
            f"data.max_failed = {work.recipe.data.max_failed}: {listed}. Mend the source, or raise data.max_failed."
        )
    if not ((status == STATUS["ok"]) & (version.dataset()["split"].values == "train")).any():
        raise TooManyFailedError(
            f"decompose: no training sample is left of {len(status)} samples: {listed}. Mend the source, or scale the "
            'data (data.scale = "variable").'
        )
    if bad.size:
        log.warning("%d of %d samples failed and are left out: %s", len(bad), len(status), listed)


def _why_missing(work: Workspace, status: Array) -> str:
    """What the first bad samples lack, and what to do, without a full stop."""
    bad = np.flatnonzero(status == STATUS["non_finite"])[:8]
    if not bad.size:
        return "Mend the source"
    share = f"In the first of them {1 - usable(work.samples.read(bad)).mean():.1%} of the values are missing."
    some = np.concatenate([bad, np.flatnonzero(status == STATUS["ok"])[:8]])
    points = _points_in_words(work, np.sort(some)).rstrip(".")
    mend = 'Mend the source, set data.missing = "mask" if the same points are missing in all samples'
    return f"{share}{_of_missing(work.samples)} {points or mend}"


def result(work: Workspace, version: Version, started: float, *, skipped: bool = False) -> StageResult:
    """What the tracker and the summary show of group ``tucker``."""
    dataset = version.dataset()
    layout = layout_of(version)
    good = dataset["status"].values == STATUS["ok"]
    errors = {key: dataset[key].values[good] for key in ERRORS}
    metrics = {f"{key}_{name}": float(getattr(v, name)()) for key, v in errors.items() for name in ("mean", "max")}
    metrics["compression"] = layout.compression
    noise = gauge_noise_share(dataset, layout, good)
    if not skipped and noise > 0.05:
        log.warning("%.0f %% of the samples have a numerical rank below the ranks kept: lower the ranks", 100 * noise)
    worse = int((errors["relative_error"] > 1).sum())
    if not skipped and worse:
        log.warning(
            "%d samples are given back worse than zeros would be (relative error above 1): a few values far larger "
            "than theirs set the scale. Look for outliers in the source, or leave them out",
            worse,
        )
    data, tolerance = work.recipe.data, work.recipe.decompose.tolerance
    of_model = "truncation_error" if data.transform or data.climatology else "anomaly_error"  # as the pilot has it
    reached = float(np.sqrt(np.mean(errors[of_model] ** 2)))
    if not skipped and tolerance is not None and reached > _MISSED * tolerance:
        log.warning(
            "the error over all samples is %.3g (root mean square), and the tolerance %.3g: the samples from which "
            "ranks were found are easier than the others. Set a smaller tolerance, or decompose.ranks",
            reached,
            tolerance,
        )
    n, failed, known = len(good), int((~good).sum()), growth.known_samples(version)
    new = f" ({n - known} new)" if known else ""
    return StageResult(
        stage="decompose",
        fingerprint=version.fingerprint,
        version=version.snapshot,
        location=work.store_location,
        skipped=skipped,
        done=n,
        total=n,
        failed=growth.newly_failed(version, good, skipped=skipped),
        seconds=time.monotonic() - started,
        metrics={**metrics, "n_failed": float(failed), "gauge_noise_share": noise},
        facts={
            "ranks": dict(layout.ranks),
            "n_dropped": int(version.attrs["n_dropped"]),
            "n_new": n - known,
            "digest": version.digest,
        },
        summary=(
            f"{n - failed} of {n} samples{new}, {layout.compression:.1f}x fewer numbers; error relative to the anomaly "
            f"{metrics['anomaly_error_mean']:.4f} (mean), to the field {metrics['relative_error_mean']:.4f}"
        ),
    )


def gauge_noise_share(dataset: xr.Dataset, layout: Layout, good: npt.NDArray[np.bool_]) -> float:
    """Share of samples with columns past the numerical rank, which are arbitrary."""
    ranks = np.array(list(layout.ranks.values()))
    below = (dataset["numerical_rank"].values[good] < ranks).any(axis=1)
    return float(below.mean()) if below.size else 0.0
