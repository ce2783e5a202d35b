"""The dry run: what a recipe would do, from metadata alone.

With a pilot also error and numbers against ranks, and how long training and generation will take.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats.compute import open_cluster
from diffats.errors import InputError, RootMismatchError
from diffats.medoid import LARGEST_MODE
from diffats.primitives import (
    ConditionLayout,
    FieldScaling,
    Layout,
    decompose,
    find_ranks,
    relative_error,
)
from diffats.requirements import require
from diffats.schedule import usable_levels
from diffats.spectrum import flops, leading, transpose
from diffats.stages import align, fit_normalisation, growth, select_anchor
from diffats.stages import decompose as decompose_stage
from diffats.stages.workspace import Workspace, find_store, source_chunk
from diffats.store import STATUS, Version
from diffats.store.location import local_path
from diffats.tucker import multi_mode_dot

Array = npt.NDArray[Any]
log = logging.getLogger("diffats.plan")

# Peak memory of a worker process, an upper bound from measurements of both passes over the raw data: the interpreter
# with its libraries and the freed memory it keeps; and bytes for each byte of a shard's raw samples, of their Tucker
# forms, and of one sample (its mean and the squares around it, in float64).
_PROCESS_BYTES = 640 * 2**20
_OF_RAW, _OF_FORMS, _OF_SAMPLE = 5, 8, 16
_OF_PREPARED = 3  # more of the raw samples: the transformed and decoded ones, the climatology of each
_USABLE = 0.8  # share of its memory above which Dask may pause a worker, for ever if it does not shrink
# Rough throughput of one core, measured on a two-core machine: reading and writing, and the cost model's flops.
_BYTES_PER_SECOND = 60e6
_FLOPS_PER_SECOND = 2e10
# What the pilot's decompositions may cost, in the cost model's flops: a few seconds.
_PILOT_FLOPS = 2e10
_PILOT_NUMBERS = 2**24  # decomposed at a time
_CANDIDATES = 2**20
# Classes of a label, which only all labels would tell; the time does not depend on their number.
_LABELS = 16
#: Errors for which the pilot looks for the smallest primitive.
TARGETS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


def plan(work: Workspace) -> dict[str, Any]:
    """What a recipe would do, from metadata alone.

    Raises
    ------
    InputError
        Where some stage cannot work: see ``check``.
    """
    check(work)
    _check_scheduler(work)
    samples, recipe = work.samples, work.recipe
    layout = planned_layout(work)
    shard = work.shard
    out: dict[str, Any] = {
        "name": recipe.name,
        "root": str(work.root),
        "samples": samples.n,
        "train": int((~samples.is_test).sum()),
        "test": int(samples.is_test.sum()),
        "dropped": samples.dropped,
        "sizes": dict(samples.sizes),
        "dtype": str(samples.dtype),
        "bytes_in": samples.nbytes,
        "shard_samples": shard,
        "shards": math.ceil(samples.n / shard),
        "peak_bytes_per_worker": _peak_bytes(work, work.shard),
        "rough_seconds": _seconds(work, layout),
        "exists": existing(work),
    }
    if recipe.data.grows:
        out["new_samples"] = growth.new_samples(work, known_samples(work))
    if layout is not None:
        out |= _planned(layout, samples.n, samples.dtype)
    return out


def known_samples(work: Workspace) -> Version | None:
    """Of a growing source, the newest finished Tucker forms."""
    if not work.recipe.data.grows or find_store(work.store_location) is None:
        return None
    version = decompose_stage.tucker_version(work)
    return version if version is not None and version.complete else decompose_stage.grown_from(work)


def _planned(layout: Layout, n: int, dtype: np.dtype[Any]) -> dict[str, Any]:
    stored = layout.numbers + sum(stream.size for stream in layout.tucker_streams)
    if layout.numbers >= layout.raw_numbers:
        log.warning(
            "the primitive stores %d numbers and the sample %d: nothing is compressed. Lower the ranks; see --pilot",
            layout.numbers,
            layout.raw_numbers,
        )
    merged = [mode for mode in layout.ranks if mode not in layout.aligned]
    if merged:
        log.warning(
            "%s: a rank on a mode that is not aligned costs accuracy and saves nothing, since the core keeps this mode "
            "whole. Align it, or leave its rank out",
            ", ".join(merged),
        )
    return {
        "ranks": dict(layout.ranks),
        "aligned": list(layout.aligned),
        "streams": {stream.name: list(stream.shape) for stream in layout.streams},
        "numbers_per_sample": layout.raw_numbers,
        "numbers_per_primitive": layout.numbers,
        "compression": layout.compression,
        "bytes_out": n * stored * dtype.itemsize,  # the Tucker form and the primitive of each sample
    }


def _peak_bytes(work: Workspace, shard: int) -> int:
    """Most that a worker process holds at a time, with shards of so many samples."""
    one, layout = work.samples.bytes_per_sample, planned_layout(work)
    forms = one  # with ranks that are not known yet, which compress at least a little
    if layout is not None:
        forms = sum(stream.size for stream in layout.tucker_streams) * work.samples.dtype.itemsize
    decoded = max(0, source_chunk(work.samples) - shard) * one  # of a chunk that is read for a part of it
    moments = decompose_stage.no_moments(work.samples)
    of_raw = _OF_RAW + (_OF_PREPARED if moments.parts > 1 else 0)
    return _PROCESS_BYTES + shard * (of_raw * one + _OF_FORMS * forms) + _OF_SAMPLE * one * moments.parts + decoded


def _seconds(work: Workspace, layout: Layout | None) -> float:
    """Reading, decomposing, aligning and writing all samples; with unknown ranks, as for a quarter of each size."""
    samples = work.samples
    sizes = tuple(samples.sizes.values()) if layout is None else tuple(layout.working_sizes.values())
    ranks = [max(1, size // 4) for size in sizes] if layout is None else layout.working_ranks
    repeats = 1 if layout is None else math.prod(layout.sizes[mode] for mode in layout.labelled)
    one = 2 * samples.bytes_per_sample / _BYTES_PER_SECOND + repeats * flops(sizes, ranks) / _FLOPS_PER_SECOND
    return samples.n * one / work.recipe.compute.workers


# --- what cannot work ---------------------------------------------------------------------------------------------


def check(work: Workspace) -> None:
    """Refuse a recipe of which some stage cannot work; nothing is made, and no field is read.

    Raises
    ------
    InputError
        With what, where, expected, got, and the fix.
    """
    check_encoding(work)
    recipe, samples = work.recipe, work.samples
    test = int(samples.is_test.sum())
    if test < 2:
        raise InputError(
            f"data.split leaves {test} test sample of {samples.n}, and evaluation compares at least 2. "
            "Raise data.split.test, or cut more windows."
        )
    if recipe.generate.count < 2:
        raise InputError(
            f"generate.count is {recipe.generate.count}, and evaluation compares at least 2 samples. Use at least 2."
        )
    _check_steps(work)
    _check_metric(work)


def _check_scheduler(work: Workspace) -> None:
    """Refuse a Dask scheduler that does not answer or has no worker; stages find out when they need it."""
    if work.recipe.compute.scheduler != "local":
        with open_cluster(work.recipe.compute) as cluster:
            cluster.start()


def _check_device(work: Workspace) -> None:
    """Refuse a device that this machine does not have; other machines' workers may have it."""
    compute = work.recipe.compute
    if compute.scheduler == "local" and compute.device not in ("auto", "cpu"):
        require(f'compute.device = "{compute.device}"', "train")
        from diffats.models import resolve_device

        resolve_device(compute.device)


def _check_steps(work: Workspace) -> None:
    """Refuse more sampling steps than there are noise levels to sample at."""
    diffusion, steps = work.recipe.diffusion, work.recipe.generate.steps
    levels = usable_levels(diffusion)
    if steps > levels:
        raise InputError(
            f'generate.steps {steps} exceeds {levels}, the noise levels that target "{diffusion.target}" can use of '
            f"the {diffusion.schedule} schedule (diffusion.noise_steps = {diffusion.noise_steps}). Use at most "
            f'{levels}, or target "x0" or "v".'
        )


def _check_metric(work: Workspace) -> None:
    """Refuse to let spectra decide where no mode has one."""
    if work.recipe.evaluate.metric != "spectrum_error":
        return
    from diffats.metrics import LEAST_SPECTRUM

    sizes = {mode: n for mode, n in work.samples.sizes.items() if mode != "component"}
    if max(sizes.values()) < LEAST_SPECTRUM:
        raise InputError(
            f'evaluate.metric "spectrum_error" needs a mode of at least {LEAST_SPECTRUM} points (sample: '
            f"{', '.join(f'{mode}={n}' for mode, n in sizes.items())}). Use energy_distance or sliced_wasserstein."
        )


def check_encoding(work: Workspace) -> None:
    """Refuse what cannot be decomposed and aligned: source, root, ranks, memory, anchors.

    Raises
    ------
    InputError
        With what, where, expected, got, and the fix.
    """
    samples = work.samples
    _check_root(work)
    layout = planned_layout(work)
    _check_memory(work)
    _check_device(work)
    sizes = layout.working_sizes if layout is not None else dict(samples.sizes)
    for mode in layout.aligned if layout is not None else work.recipe.aligned_modes:
        if sizes[mode] > LARGEST_MODE:
            raise InputError(
                f'aligned mode "{mode}" has {sizes[mode]} points, at most {LARGEST_MODE} can be aligned. '
                f'Leave "{mode}" out of align.modes, or cut it with data.windows.size.'
            )
    index = work.recipe.anchor.index
    if work.recipe.anchor.strategy == "index" and index is not None and (index >= samples.n or samples.is_test[index]):
        what = f"one of {samples.n} samples" if index >= samples.n else "a training sample, but a test sample"
        known = ", ".join(map(str, np.flatnonzero(~samples.is_test)[:5]))
        raise InputError(f'anchor.index {index} is not {what}. Use a training sample ({known}, ...), or "medoid".')


def _check_root(work: Workspace) -> None:
    """Refuse the root or store of another recipe, and one that cannot be a directory."""
    _check_directory("root", work.root)
    key, place = ("store", work.recipe.store) if work.recipe.store else ("root", str(work.root))
    directory = local_path(place)
    if directory is not None:
        _check_directory(key, directory.absolute())
    if find_store(work.store_location) is None:
        return
    try:
        work.store  # noqa: B018  (opening it compares name and dims)
    except RootMismatchError as error:
        raise RootMismatchError(f'{key} "{place}": {error}') from error


def _check_directory(key: str, path: Path) -> None:
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir():
        raise InputError(f'{key} "{path}" cannot be made: "{place}" is a file. Use another {key}.')
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f'{key} "{path}" cannot be written: "{place}" is read-only, or belongs to somebody else. '
            f"Change that, or use another {key}."
        )


def _check_memory(work: Workspace) -> None:
    recipe, peak = work.recipe, _peak_bytes(work, work.shard)
    usable = int(_USABLE * recipe.compute.memory_bytes)
    if peak <= usable:
        return
    least = _peak_bytes(work, 1)
    fits = 1 + (usable - least) // (_peak_bytes(work, 2) - least)
    fix = f"Set compute.shard_samples to at most {fits}, or raise" if fits > 0 else f"One needs {size(least)}: raise"
    raise InputError(
        f"a shard of {work.shard} samples needs about {size(peak)} in a worker, compute.memory is "
        f"{recipe.compute.memory}, of which {size(usable)} can be used (Dask's own margin is the rest). {fix} "
        "compute.memory."
    )


def planned_layout(work: Workspace) -> Layout | None:
    """The layout, where it is known before reading: ranks are given or already found."""
    if work.recipe.decompose.tolerance is None:
        return Layout.from_recipe(work.recipe, work.samples.sizes)
    version = decompose_stage.tucker_version(work) if find_store(work.store_location) else None
    version = version or known_samples(work)
    return decompose_stage.current_layout(work, version) if version is not None else None


def existing(work: Workspace) -> dict[str, str]:
    """State of each group for this very recipe: finished, begun, or to do."""
    groups = ("tucker", "anchor", "primitives", "normalisation", "model", "samples")
    if find_store(work.store_location) is None:
        return dict.fromkeys(groups, "to do")
    from diffats.stages import generate, train

    tucker = decompose_stage.tucker_version(work)
    finished = tucker is not None and tucker.complete
    model = train.require_bundle(work) if train.find_bundle(work) else None
    generated = find_store(work.samples_location) is not None
    versions = {
        "tucker": tucker,
        "anchor": select_anchor.anchor_version(work, tucker) if tucker is not None and finished else None,
        "primitives": align.primitives_version(work),
        "normalisation": fit_normalisation.normalisation_version(work),
        "samples": generate.samples_version(work, model) if model is not None and generated else None,
    }
    states = {
        group: "to do" if version is None else "finished" if version.complete else "begun"
        for group, version in versions.items()
    }
    states["model"] = "to do" if model is None else "finished"
    return {group: states[group] for group in groups}


# --- the pilot ----------------------------------------------------------------------------------------------------


def pilot(work: Workspace, targets: Iterable[float] = TARGETS) -> list[dict[str, Any]]:
    """Error and numbers against ranks, on at most 256 training samples read now.

    Parameters
    ----------
    targets
        Errors, relative to the centred and scaled samples' deviation from their mean.

    Returns
    -------
    list of dict
        For the recipe's own ranks (``choice`` "recipe"), and for each target that compresses at all: the ranks with
        the fewest numbers whose root-mean-square error stays below it, as found from one full HOSVD of each sample.
        The errors in a row are measured, by decomposing ``samples`` of the samples as the stage would.
    """
    x, phases = _pilot_samples(work)
    _say_outside(work, x)
    moments = decompose_stage.no_moments(work.samples)
    moments.add(x, phases)
    scaling, training_mean = decompose_stage.fitted_scaling(work, moments)
    fields = np.asarray(scaling.apply(x, phases), dtype=x.dtype)
    layout = _pilot_layout(work, fields)
    few = _pilot_choice(len(x), layout)
    measured = (x[few], None if phases is None else phases[few], scaling, training_mean)
    rows = [_row("recipe", layout, *measured)]
    anomalies = fields - fields.mean(axis=0)
    for target, ranks in smallest_ranks(fields[few], anomalies[few], layout, targets):
        smaller = dataclasses.replace(layout, ranks=ranks)
        if smaller.numbers < layout.raw_numbers:
            rows.append(_row(f"error <= {target:g}", smaller, *measured))
    return rows


def _pilot_samples(work: Workspace) -> tuple[Array, Array | None]:
    """Good samples, and the phases of their times where there is a climatology."""
    x = work.samples.read(decompose_stage.pilot_indices(work))
    mask = decompose_stage.find_mask(work)
    good = decompose_stage.status_of(x, mask) == STATUS["ok"]
    if good.sum() < 2:
        share = 1 - np.isfinite(x).mean()
        raise InputError(
            f"{work.recipe.data.source}: the pilot read {len(x)} samples and {int(good.sum())} are usable ({share:.1%} "
            'of the values are missing or infinite), 2 are needed. Mend the source, or set data.missing = "mask" if '
            "the same points are missing in every sample."
        )
    indices = decompose_stage.pilot_indices(work)[good]
    decompose_stage.check_domain(work.samples, indices, x[good])
    return np.asarray(x[good]), work.samples.climatology_phases(indices)


def _say_outside(work: Workspace, x: Array) -> None:
    """Warn of bounds that data themselves do not keep."""
    names = work.samples.variables
    for name, (low, high) in work.recipe.data.bounds.items():
        part = x[:, names.index(name)] if len(names) > 1 else x
        outside = float(((part < low) | (part > high)).mean())
        if outside:
            log.warning(
                'data.bounds [%g, %g] of "%s": %.2g %% of the pilot\'s values are outside (%g to %g). Generated ones '
                "will not be; widen the bounds unless the data are wrong there",
                *(low, high, name, 100 * outside, np.nanmin(part), np.nanmax(part)),
            )


def _pilot_layout(work: Workspace, fields: Array) -> Layout:
    """The recipe's layout, with the ranks that its tolerance would find."""
    recipe = work.recipe
    ranks = find_ranks(fields, recipe) if recipe.decompose.tolerance is not None else None
    return Layout.from_recipe(recipe, work.samples.sizes, ranks)


def _pilot_choice(n: int, layout: Layout) -> Array:
    """Which of ``n`` samples a few seconds suffice for."""
    sizes = layout.working_sizes
    whole = [sizes[mode] if mode in layout.ranks else None for mode in layout.working_modes]
    cost = math.prod(layout.sizes[mode] for mode in layout.labelled) * flops(tuple(sizes.values()), whole)
    count = min(n, max(2, int(_PILOT_FLOPS / cost)))
    return np.linspace(0, n - 1, count).round().astype(int)


def smallest_ranks(
    fields: Array, anomalies: Array, layout: Layout, targets: Iterable[float]
) -> list[tuple[float, dict[str, int]]]:
    """For each target error, the ranks of the smallest Tucker form that reaches it in the mean square.

    With all singular vectors of every mode, ``S = X x_k U_k^T`` has the norm of ``X``, and cutting it to ranks
    ``r_k`` loses exactly the energy outside ``S[:r_1, .., :r_N]``: one cumulative sum gives the error of all ranks.

    Parameters
    ----------
    fields, anomalies
        ``(k, *sizes)``: what is decomposed, and what its error is relative to.
    layout
        Its aligned modes are given ranks: the core keeps the others whole, whatever their ranks. Its own do not matter.
    targets
        Relative errors.

    Returns
    -------
    Pairs of target and ranks by mode, from the largest target; those that no smaller form reaches are left out, and
    of targets with the same ranks only the smallest is there.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(5, 8, 2)) @ rng.normal(size=(5, 2, 9))
    >>> layout = Layout("tgp", ("y", "x"), {"y": 8, "x": 9}, {"y": 8, "x": 8}, ("y", "x"))
    >>> smallest_ranks(x, x, layout, [0.001])
    [(0.001, {'y': 2, 'x': 2})]
    """
    axes = [axis for axis, mode in enumerate(layout.working_modes) if mode in layout.aligned]
    sizes = [layout.working_sizes[layout.working_modes[axis]] for axis in axes]
    per_mode = max(4, int(_CANDIDATES ** (1 / len(axes))))
    candidates = [np.unique(np.geomspace(1, n, min(n, per_mode)).round().astype(int)) for n in sizes]
    if per_mode >= max(sizes):
        candidates = [np.arange(1, n + 1) for n in sizes]
    lost = _lost_energy(fields, anomalies, layout, axes, candidates)
    ranks = np.meshgrid(*candidates, indexing="ij", sparse=True)
    core = math.prod(ranks) * (math.prod(layout.working_sizes.values()) // math.prod(sizes))
    numbers = core + sum(n * rank for n, rank in zip(sizes, ranks, strict=True))
    possible = numbers * math.prod(layout.sizes[mode] for mode in layout.labelled) < layout.raw_numbers
    for rank in ranks:
        possible = possible & (rank * rank <= core)  # a rank is at most the product of the others
    found: dict[tuple[int, ...], float] = {}
    for target in sorted(targets, reverse=True):
        cost = np.where(possible & (lost <= target**2), numbers, np.inf)
        place = np.unravel_index(int(cost.argmin()), cost.shape)
        if np.isfinite(cost[place]):
            found[tuple(int(c[i]) for c, i in zip(candidates, place, strict=True))] = target
    modes = [layout.working_modes[axis] for axis in axes]
    return [(target, dict(zip(modes, chosen, strict=True))) for chosen, target in found.items()]


def _lost_energy(
    fields: Array, anomalies: Array, layout: Layout, axes: Sequence[int], candidates: Sequence[Array]
) -> Array:
    """Mean squared relative error for every combination of candidate ranks."""
    norms = (anomalies.reshape(len(anomalies), -1).astype(np.float64) ** 2).sum(axis=1)
    lost: Array = np.zeros(tuple(map(len, candidates)))
    used = np.flatnonzero(norms > 0)
    step = max(1, _PILOT_NUMBERS // layout.raw_numbers)
    for start in range(0, len(used), step):
        part = used[start : start + step]
        energy = _core_energy(layout.arrange(fields[part]), len(layout.working_modes), axes, norms[part])
        total = float(energy.sum())
        for axis, ranks in enumerate(candidates):
            energy = _cumulative(energy, ranks, axis)
        lost += np.maximum(total - energy, 0)
    return lost / max(1, len(used))


def _core_energy(tensors: Array, n_modes: int, axes: Sequence[int], norms: Array) -> Array:
    """Squared entries of the full cores, divided by each sample's norm and summed; only the given modes stay."""
    k, shape = len(tensors), tensors.shape[tensors.ndim - n_modes :]
    flat = tensors.reshape(-1, *shape).astype(np.float64)
    matrices = [transpose(leading(flat, mode)[0]) if mode in axes else None for mode in range(n_modes)]
    core = multi_mode_dot(flat, matrices)
    energy = core.reshape(k, -1, *core.shape[1:]) ** 2  # (k, labelled, *working)
    other = (1, *(2 + mode for mode in range(n_modes) if mode not in axes))
    return np.asarray(np.tensordot(1 / norms, energy.sum(axis=other), axes=1))


def _cumulative(energy: Array, ranks: Array, axis: int) -> Array:
    """Energy in the first ``rank`` entries along an axis, for each of ``ranks``, which increase and end at its size.

    >>> _cumulative(np.array([4.0, 2.0, 1.0]), np.array([1, 3]), 0).tolist()
    [4.0, 7.0]
    """
    summed = energy.cumsum(axis=axis)
    return np.asarray(summed.take(np.minimum(ranks, energy.shape[axis]) - 1, axis=axis))


def _row(
    name: str, layout: Layout, x: Array, phases: Array | None, scaling: FieldScaling, training_mean: Array
) -> dict[str, Any]:
    _, tucker = decompose(np.asarray(scaling.apply(x, phases), dtype=x.dtype), layout)
    restored = scaling.undo(layout.restore(tucker.to_tensor()), phases)
    anomaly = relative_error(x, restored, training_mean)
    return {
        "choice": name,
        "ranks": dict(layout.ranks),
        "numbers": layout.numbers,
        "compression": layout.compression,
        "relative_error": float(relative_error(x, restored).mean()),
        "anomaly_error": float(anomaly.mean()),
        "anomaly_error_max": float(anomaly.max()),
        "samples": len(x),
    }


# --- how long the rest takes --------------------------------------------------------------------------------------


def times(work: Workspace, ranks: Mapping[str, int]) -> dict[str, Any]:
    """How long training and generation will take on this machine, from a few steps of the recipe's network.

    Parameters
    ----------
    ranks
        By mode: those of the recipe's row of the pilot.

    Returns
    -------
    dict
        ``device``; ``train_steps``, of which ``train_done`` are done, ``seconds_per_step`` and ``train_seconds`` for
        those that are left and the calibration; ``generate_samples`` and ``generate_seconds`` for the network's calls
        of all of them.
        Empty, with a warning, where the device is another machine's or torch is not installed.
    """
    recipe = work.recipe
    layout = Layout.from_recipe(recipe, work.samples.sizes, ranks)
    dims = decompose_stage.condition_dims(work)
    try:
        require("timing a training", "train")
        from diffats import timing

        data = timing.random_primitives(layout, _condition_shapes(work, dims), recipe, dims)
        measured = timing.measure(data, recipe)
    except InputError as error:
        log.warning("training and generation were not timed: %s", error)
        return {}
    steps, done = recipe.train.steps, _steps_done(work)
    return {
        "device": measured.device,
        "train_steps": steps,
        "train_done": done,
        "seconds_per_step": measured.step,
        "train_seconds": (steps - done) * measured.step + (0.0 if _is_there(work) else measured.calibration),
        "generate_samples": recipe.generate.count,
        "generate_seconds": recipe.generate.count * measured.sample,
    }


def _condition_shapes(work: Workspace, dims: Mapping[str, Sequence[str]]) -> ConditionLayout:
    """What samples are generated from, from metadata alone."""
    condition, samples = work.recipe.data.condition, work.samples
    sizes = {str(dim): n for dim, n in samples.dataset.sizes.items()} | dict(samples.sizes)
    shapes = {name: tuple(sizes[dim] for dim in each) for name, each in dims.items()}
    names = {name: f"field_{name}" for name in condition.fields}
    return ConditionLayout(
        initial=shapes.get("initial"),
        initial_dims=tuple(dims.get("initial", ())),
        fields={name: shapes[key] for name, key in names.items()},
        field_dims={name: tuple(dims[key]) for name, key in names.items()},
        scalars=tuple(condition.scalars),
        scalar_log=(False,) * len(condition.scalars),
        cycles={name: clock.cycle for name, clock in samples.clocks.items()},
        n_labels=_LABELS if condition.labels else 0,
    )


def _is_there(work: Workspace) -> bool:
    """Whether this recipe's model is finished."""
    from diffats.stages import train

    return find_store(work.store_location) is not None and train.find_bundle(work) is not None


def _steps_done(work: Workspace) -> int:
    """Training steps of this recipe that are done."""
    from diffats.stages import train

    if find_store(work.store_location) is None:
        return 0
    primitives, normalisation = align.primitives_version(work), fit_normalisation.normalisation_version(work)
    if primitives is None or normalisation is None or not normalisation.complete:
        return 0
    if train.find_bundle(work):
        return work.recipe.train.steps
    identity = train.model_fingerprint(work, primitives, normalisation)
    return min(work.recipe.train.steps, train.steps_done(train.training_directory(work, identity)))


def duration(seconds: float) -> str:
    """About how long, for people.

    >>> duration(0.2), duration(45), duration(125), duration(6737), duration(10**6)
    ('1 s', '45 s', '2 min', '1.9 h', '11.6 days')
    """
    for unit, length, most in (("s", 1, 90), ("min", 60, 5400)):
        if seconds < most:
            return f"{max(1, seconds / length):.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(n: float) -> str:
    """Bytes for people.

    >>> size(3 * 2**20)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024 or unit == "TiB":
            return f"{n:.1f} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1024
    raise AssertionError
