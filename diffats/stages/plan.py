"""The dry run: what a recipe would do, from metadata alone."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats.compute import open_cluster
from diffats.errors import InputError, RootMismatchError
from diffats.medoid import LARGEST_MODE
from diffats.primitives import Layout
from diffats.requirements import require
from diffats.schedule import usable_levels
from diffats.sources import sides
from diffats.sources.joining import how_joined
from diffats.spectrum import flops
from diffats.stages import align, fit_normalisation, growth, select_anchor
from diffats.stages import decompose as decompose_stage
from diffats.stages.workspace import Workspace, find_store, source_chunk
from diffats.store import Version
from diffats.store.location import local_path

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
        "joined": how_joined(samples.dataset),
        "samples": samples.n,
        "train": int((~samples.is_test).sum()),
        "test": int(samples.is_test.sum()),
        "dropped": samples.dropped,
        "split": sides.describe(samples),
        "cautions": sides.cautions(samples),
        "sizes": dict(samples.sizes),
        "dtype": str(samples.dtype),
        "bytes_in": samples.nbytes,
        "shard_samples": shard,
        "shards": math.ceil(samples.n / shard),
        "peak_bytes_per_worker": _peak_bytes(work, work.shard),
        "rough_seconds": rough_seconds(work),
        "exists": existing(work),
    }
    for caution in out["cautions"]:
        log.warning(caution.rstrip("."))
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


def rough_seconds(work: Workspace) -> float:
    """Reading, decomposing, aligning and writing all samples; with unknown ranks, as for a quarter of each size."""
    samples, layout = work.samples, planned_layout(work)
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
