"""Stage 4: mean and scale of every stream, statistics of the conditions (group ``normalisation``)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.compute import open_cluster
from diffats.primitives import ConditionLayout, Layout, Moments, Normalisation
from diffats.stages import align, decompose, drift, growth
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint, open_group, shard_bounds, shard_runs
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
CONDITION_SAMPLES = 4096


def require_primitives(work: Workspace) -> Version:
    """The finished primitives of this recipe."""
    return work.require(align.primitives_version(work), "primitives", "align")


def normalisation_fingerprint(primitives: Version) -> str:
    """Identity of the statistics; a source that has grown keeps those of its first samples."""
    base = growth.base_of(primitives)
    return fingerprint("normalisation", {}, base.fingerprint, base.digest)


def normalisation_version(work: Workspace) -> Version | None:
    """The stored statistics of this recipe."""
    primitives = align.primitives_version(work)
    if primitives is None or not primitives.complete:
        return None
    return work.find("normalisation", normalisation_fingerprint(primitives))


def stream_moments(
    bounds: tuple[int, int], *, location: str, snapshot: str, layout: Layout, shard: int
) -> dict[str, Moments]:
    """Moments of the good training primitives of a run of shards, by stream."""
    group = open_group(location, "primitives", snapshot)
    out = {stream.name: Moments() for stream in layout.streams}
    for start, stop in shard_bounds(bounds[1] - bounds[0], shard):
        part = group.read(["status", "split", *out], bounds[0] + start, bounds[0] + stop)
        good = (part["status"] == STATUS["ok"]) & (part["split"] == "train")
        for name, moments in out.items():
            moments.add(part[name][good])
    return out


def good_samples(dataset: xr.Dataset, split: str) -> Array:
    """Numbers of the good samples of a split."""
    return np.flatnonzero((dataset["status"].values == STATUS["ok"]) & (dataset["split"].values == split))


def raw_conditions(dataset: xr.Dataset, indices: Array) -> dict[str, Array]:
    """Conditions as stored, of the given samples."""
    names = [str(name) for name in dataset.data_vars if str(name).startswith("condition_")]
    if not names:
        return {}
    rows = dataset[names].isel(sample=indices)
    return {name.removeprefix("condition_"): rows[name].values for name in names}


def condition_parts(dataset: xr.Dataset, seed: int, shard: int) -> Iterator[dict[str, Array]]:
    """The numbers of all good training samples, then the fields of at most 4096 seeded ones, shard by shard."""
    train = good_samples(dataset, "train")
    numbers = [name for name in dataset.data_vars if str(name).startswith("condition_") and dataset[name].ndim == 1]
    yield raw_conditions(dataset[numbers], train)
    chosen = np.sort(np.random.default_rng(seed).permutation(train)[:CONDITION_SAMPLES])
    for number in np.unique(chosen // shard):
        yield raw_conditions(dataset.drop_vars(numbers), chosen[chosen // shard == number])


def condition_layout(work: Workspace, primitives: Version) -> ConditionLayout:
    """Shapes and statistics of the conditions over the training samples."""
    first = primitives.dataset().isel(sample=slice(growth.base_of(primitives).n))
    parts = condition_parts(first, work.recipe.seed, primitives.record.shard)
    modes, initial = work.recipe.tensor_modes, work.recipe.data.condition.initial
    dims = tuple(mode for mode in modes if mode != initial.dim) if initial is not None else ()
    known = {str(name): tuple(each) for name, each in primitives.attrs["condition_dims"].items()}
    return ConditionLayout.fit(
        parts,
        initial_dims=dims,
        field_dims={name.removeprefix("field_"): each for name, each in known.items() if name.startswith("field_")},
        label_names=tuple(primitives.attrs["label_names"]),
    )


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Fit the statistics, or find them; then see whether new samples of a growing source are alike.

    Raises
    ------
    DriftError
        Where they are not, and the recipe says to ask.
    """
    started = time.monotonic()
    primitives = require_primitives(work)
    version = None if hooks.restart else work.find("normalisation", normalisation_fingerprint(primitives))
    there = version is not None and version.complete
    if version is None or not there:
        version = fit(work, primitives, hooks)
    found = drift.measure(work, primitives, version)
    growths = [] if found is None else drift.entries(work, found)
    drift.judge(work, growths)
    return result(work, version, started, skipped=there, growths=growths)


def fit(work: Workspace, primitives: Version, hooks: Hooks) -> Version:
    """Fit the statistics in one pass over the training primitives."""
    layout = decompose.layout_of(primitives)
    n, shard = growth.base_of(primitives).n, primitives.record.shard
    moments = {stream.name: Moments() for stream in layout.streams}
    function = partial(
        stream_moments, location=work.store_location, snapshot=primitives.snapshot, layout=layout, shard=shard
    )
    itemsize = primitives.raw(layout.streams[0].name).dtype.itemsize
    # Of each number, its mean and its sum of squares come back, in float64.
    runs = shard_runs(n, shard, sample_bytes=layout.numbers * itemsize, result_bytes=16 * layout.numbers)
    with open_cluster(work.recipe.compute) as cluster:
        for (_, stop), part in cluster.map(function, runs, ordered=True):
            for name, other in part.items():
                moments[name].merge(other)
            hooks.progress(stop, n, 0)
    normalisation = Normalisation.fit(moments)
    dims = {f"mean_{stream.name}": stream.dims for stream in layout.streams}
    dataset = xr.Dataset({name: (dims.get(name, ()), value) for name, value in normalisation.to_arrays().items()})
    version = work.store.put(
        "normalisation",
        dataset,
        fingerprint=normalisation_fingerprint(primitives),
        attrs=work.attrs(conditions=condition_layout(work, primitives).to_dict(), primitives=primitives.snapshot),
    )
    return work.keep(version)


def read_normalisation(version: Version) -> tuple[Normalisation, ConditionLayout]:
    """The stored statistics."""
    dataset = version.dataset().load()
    arrays = {str(name): dataset[name].values for name in dataset.data_vars}
    return Normalisation.from_arrays(arrays), ConditionLayout.from_dict(version.attrs["conditions"])


def result(
    work: Workspace, version: Version, started: float, *, skipped: bool, growths: list[drift.Growth]
) -> StageResult:
    """What the tracker and the summary show of group ``normalisation``."""
    normalisation, _ = read_normalisation(version)
    text = ", ".join(f"{name} {scale:.3g}" for name, scale in normalisation.scale.items())
    return StageResult(
        stage="fit_normalisation",
        fingerprint=version.fingerprint,
        version=version.snapshot,
        location=work.store_location,
        skipped=skipped,
        seconds=time.monotonic() - started,
        metrics={f"scale_{name}": float(scale) for name, scale in normalisation.scale.items()},
        facts={"digest": version.digest, "drift": growths},
        summary=f"root-mean-square deviation by stream: {text}",
    )
