"""The dry run: what a recipe would do, from metadata alone; with a pilot, error and numbers against ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats.errors import InputError
from diffats.primitives import FieldScaling, Layout, Moments, decompose, find_ranks, relative_error
from diffats.stages import align, fit_normalisation, select_anchor, train
from diffats.stages import decompose as decompose_stage
from diffats.stages.workspace import Workspace, find_store, shard_samples

Array = npt.NDArray[Any]
# Bytes of workspace for each byte of a shard: the raw and the centred copy, float64 Gram products, the reconstruction.
_WORKSPACE = 6
# Rough throughput of reading, decomposing and writing on one core, from measurements on two-core machines.
_BYTES_PER_SECOND = 60e6
TOLERANCES = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)


def plan(work: Workspace) -> dict[str, Any]:
    """What a recipe would do, from metadata alone.

    Raises
    ------
    InputError
        Where something cannot work: ranks, sizes, memory.
    """
    samples, recipe = work.samples, work.recipe
    itemsize = np.dtype(samples.dtype).itemsize
    shard = shard_samples(recipe, samples.sizes, itemsize)
    shards = math.ceil(samples.n / shard)
    raw_bytes = math.prod(samples.sizes.values()) * itemsize
    peak = _WORKSPACE * shard * raw_bytes
    if peak > recipe.compute.memory_bytes:
        fits = max(1, recipe.compute.memory_bytes // (_WORKSPACE * raw_bytes))
        raise InputError(
            f"a shard of {shard} samples needs about {_size(peak)} in a worker, compute.memory is "
            f"{recipe.compute.memory}. Set compute.shard_samples to at most {fits}, or raise compute.memory."
        )
    out: dict[str, Any] = {
        "name": recipe.name,
        "root": str(work.root),
        "samples": samples.n,
        "train": int((~samples.is_test).sum()),
        "test": int(samples.is_test.sum()),
        "dropped": samples.dropped,
        "sizes": dict(samples.sizes),
        "dtype": str(samples.dtype),
        "bytes_in": samples.n * raw_bytes,
        "shard_samples": shard,
        "shards": shards,
        "peak_bytes_per_worker": peak,
        "rough_seconds": samples.n * raw_bytes * 2 / _BYTES_PER_SECOND / recipe.compute.workers,
        "exists": existing(work),
    }
    layout = planned_layout(work)
    if layout is not None:
        out |= {
            "ranks": dict(layout.ranks),
            "streams": {stream.name: list(stream.shape) for stream in layout.streams},
            "numbers_per_sample": layout.raw_numbers,
            "numbers_per_primitive": layout.numbers,
            "compression": layout.compression,
            "bytes_out": samples.n * layout.numbers * itemsize,
        }
    return out


def planned_layout(work: Workspace) -> Layout | None:
    """The layout, where it is known before reading: ranks are given or already found."""
    if work.recipe.decompose.tolerance is None:
        return Layout.from_recipe(work.recipe, work.samples.sizes)
    version = decompose_stage.tucker_version(work) if find_store(work.store_location) else None
    return decompose_stage.layout_of(version) if version is not None else None


def existing(work: Workspace) -> dict[str, str]:
    """State of each group for this very recipe: finished, begun, or to do."""
    groups = ("tucker", "anchor", "primitives", "normalisation", "model")
    if find_store(work.store_location) is None:
        return dict.fromkeys(groups, "to do")
    tucker = decompose_stage.tucker_version(work)
    finished = tucker is not None and tucker.complete
    anchor = select_anchor.anchor_version(work, tucker) if tucker is not None and finished else None
    versions = {
        "tucker": tucker,
        "anchor": anchor,
        "primitives": align.primitives_version(work),
        "normalisation": fit_normalisation.normalisation_version(work),
    }
    states = {
        group: "to do" if version is None else "finished" if version.complete else "begun"
        for group, version in versions.items()
    }
    return states | {"model": "finished" if train.find_bundle(work) else "to do"}


def pilot(work: Workspace, tolerances: Iterable[float] = TOLERANCES) -> list[dict[str, Any]]:
    """Error and numbers against ranks, on at most 256 training samples read now.

    Returns
    -------
    list of dict
        For the recipe's own ranks, and for each tolerance: ranks, numbers, compression and both mean errors.
    """
    recipe = work.recipe
    indices = decompose_stage.pilot_indices(work)
    x = work.samples.read(indices)
    missing = np.asarray(np.isnan(x).all(axis=0)) if recipe.data.missing == "mask" else None
    good = decompose_stage.status_of(x, missing) == 1
    if good.sum() < 2:
        raise InputError(
            f"the pilot read {len(x)} samples and only {int(good.sum())} are usable. Mend the source first."
        )
    x = x[good]
    moments = Moments()
    moments.add(x)
    scaling, training_mean = decompose_stage.fitted_scaling(work, moments)
    rows = []
    if recipe.primitive.kind == "mgp" or recipe.decompose.ranks:
        rows.append(_row("recipe", Layout.from_recipe(recipe, work.samples.sizes), x, scaling, training_mean))
    if recipe.primitive.kind == "tgp":
        fields = scaling.apply(x)
        for tolerance in tolerances:
            tolerant = recipe.decompose.model_copy(update={"tolerance": tolerance})
            found = find_ranks(fields, recipe.model_copy(update={"decompose": tolerant}))
            layout = Layout.from_recipe(recipe, work.samples.sizes, found)
            rows.append(_row(f"tolerance {tolerance:g}", layout, x, scaling, training_mean))
    return rows


def _row(name: str, layout: Layout, x: Array, scaling: FieldScaling, training_mean: Array) -> dict[str, Any]:
    _, tucker = decompose(scaling.apply(x), layout)
    restored = scaling.undo(layout.restore(tucker.to_tensor()))
    anomaly = relative_error(x, restored, training_mean)
    return {
        "choice": name,
        "ranks": dict(layout.ranks),
        "numbers": layout.numbers,
        "compression": layout.compression,
        "relative_error": float(relative_error(x, restored).mean()),
        "anomaly_error": float(anomaly.mean()),
        "anomaly_error_max": float(anomaly.max()),
    }


def _size(n: float) -> str:
    """Bytes for people.

    >>> _size(3 * 2**20)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024 or unit == "TiB":
            return f"{n:.1f} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1024
    raise AssertionError
