"""Stage 4: mean, scale and coordinates of every stream, statistics of the conditions (group ``normalisation``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr
from threadpoolctl import threadpool_limits

from diffats.compute import Cluster, open_cluster
from diffats.config import Normalise
from diffats.primitives import (
    ConditionLayout,
    Layout,
    Moments,
    Normalisation,
    Products,
    Shifts,
    turned_axes,
)
from diffats.primitives.coordinates import SKETCH
from diffats.stages import align, decompose, drift, growth, select_anchor
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint, open_group, shard_bounds, shard_runs
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
CONDITION_SAMPLES = 4096
_SHIFTS = 8  # keeps the random numbers apart from others of the same seed


class Mergeable(Protocol):
    """Statistics of some samples."""

    def merge(self, other: Self) -> None:
        """Add those of others."""


Part = TypeVar("Part", bound=Mergeable)


def require_primitives(work: Workspace) -> Version:
    """The finished primitives of this recipe."""
    return work.require(align.primitives_version(work), "primitives", "align")


def coordinates_asked_for(work: Workspace) -> dict[str, Any]:
    """The part of the recipe on which the statistics depend; empty where streams stay as they are."""
    asked = dict(work.portable.get("normalise", {}))
    if asked and work.recipe.train.shift:
        asked |= {"shift": list(work.recipe.train.shift), "seed": work.recipe.seed}
    return asked


def fingerprint_with(coordinates: dict[str, Any], primitives: Version) -> str:
    """Identity of the statistics of primitives; a source that has grown keeps those of its first samples."""
    base = growth.base_of(primitives)
    return fingerprint("normalisation", coordinates, base.fingerprint, base.digest)


def normalisation_fingerprint(work: Workspace, primitives: Version) -> str:
    """Identity of the statistics that this recipe asks for."""
    return fingerprint_with(coordinates_asked_for(work), primitives)


def normalisation_version(work: Workspace) -> Version | None:
    """The stored statistics of this recipe."""
    primitives = align.primitives_version(work)
    if primitives is None or not primitives.complete:
        return None
    return work.find("normalisation", normalisation_fingerprint(work, primitives))


@dataclass(frozen=True)
class Primitives:
    """Where the training primitives are, as workers get it; shifted at random, each once, where a recipe says so."""

    location: str
    snapshot: str
    layout: Layout
    shard: int
    shifts: Shifts | None = None
    seed: int = 0

    def parts(self, bounds: tuple[int, int], names: Sequence[str] = ()) -> Iterator[dict[str, Array]]:
        """Streams, all or these, of the good training samples of a run of shards, shard by shard."""
        group = open_group(self.location, "primitives", self.snapshot)
        names = names if names and self.shifts is None else [stream.name for stream in self.layout.streams]
        for start, stop in shard_bounds(bounds[1] - bounds[0], self.shard):
            part = group.read(["status", "split", *names], bounds[0] + start, bounds[0] + stop)
            good = (part["status"] == STATUS["ok"]) & (part["split"] == "train")
            streams = {name: part[name][good] for name in names}
            if self.shifts is not None:
                rng = np.random.default_rng((self.seed, bounds[0] + start, _SHIFTS))
                streams = self.shifts.apply(streams, self.shifts.draw(len(good), rng)[good])
            yield streams


def stream_moments(bounds: tuple[int, int], *, primitives: Primitives) -> dict[str, Moments]:
    """Moments of a run of shards, by stream."""
    out = {stream.name: Moments() for stream in primitives.layout.streams}
    for part in primitives.parts(bounds):
        for name, moments in out.items():
            moments.add(part[name])
    return out


def stream_products(bounds: tuple[int, int], *, primitives: Primitives) -> dict[str, Products]:
    """Moments and products of deviations of a run of shards, by stream."""
    out = {stream.name: Products(turned_axes(stream)) for stream in primitives.layout.streams}
    for part in primitives.parts(bounds):
        for name, products in out.items():
            products.add(part[name])
    return out


def turned_moments(bounds: tuple[int, int], *, primitives: Primitives, shared: Normalisation) -> dict[str, Moments]:
    """Moments of a run of shards on the streams' principal axes, by stream."""
    out = {name: Moments() for name in shared.coordinates}
    for part in primitives.parts(bounds, [*out]):
        wide = {name: part[name].astype(np.float64) for name in out}
        for name, values in shared.apply(wide).items():
            out[name].add(values)
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
        cycles=primitives.attrs.get("cycles"),
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
    version = None if hooks.restart else work.find("normalisation", normalisation_fingerprint(work, primitives))
    there = version is not None and version.complete
    if version is None or not there:
        version = fit(work, primitives, hooks)
    found = drift.measure(work, primitives, version)
    growths = [] if found is None else drift.entries(work, found)
    drift.judge(work, growths)
    return result(work, version, started, skipped=there, growths=growths)


def fit(work: Workspace, primitives: Version, hooks: Hooks) -> Version:
    """Fit the statistics, in one pass over the training primitives, or in two where there are coordinates."""
    layout = decompose.layout_of(primitives)
    with open_cluster(work.recipe.compute) as cluster:
        passes = Passes(cluster, primitives, hooks, work.store_location, layout, seed=work.recipe.seed)
        if work.recipe.normalise.coordinates == "stream":
            normalisation = Normalisation.fit(passes.over(stream_moments))
        else:
            shifted = replace(passes, shifts=random_shifts(work, layout, primitives))
            normalisation = spectral(shifted, work.recipe.normalise)
    version = work.store.put(
        "normalisation",
        _dataset(normalisation, layout),
        fingerprint=normalisation_fingerprint(work, primitives),
        attrs=work.attrs(
            conditions=condition_layout(work, primitives).to_dict(),
            coordinates=coordinates_asked_for(work),
            primitives=primitives.snapshot,
        ),
    )
    return work.keep(version)


@dataclass(frozen=True)
class Passes:
    """Passes over the training primitives, from which statistics come back that merge."""

    cluster: Cluster
    primitives: Version
    hooks: Hooks
    location: str
    layout: Layout
    shifts: Shifts | None = None
    seed: int = 0

    def over(self, function: Callable[..., dict[str, Part]], more: int = 0, shared: Any = None) -> dict[str, Part]:
        """What ``function``, given ``shared``, finds by stream in runs of shards, merged in their order.

        ``more`` numbers come back from each beside two of each number, in float64.
        """
        n, shard, numbers = growth.base_of(self.primitives).n, self.primitives.record.shard, self.layout.numbers
        source = Primitives(
            self.location, self.primitives.snapshot, self.layout, shard, shifts=self.shifts, seed=self.seed
        )
        itemsize = self.primitives.raw(self.layout.streams[0].name).dtype.itemsize
        runs = shard_runs(n, shard, sample_bytes=numbers * itemsize, result_bytes=8 * (2 * numbers + more))
        whole: dict[str, Part] = {}
        for (_, stop), part in self.cluster.map(
            partial(function, primitives=source), runs, ordered=True, shared=shared
        ):
            for name, other in part.items():
                if name in whole:
                    whole[name].merge(other)
                else:
                    whole[name] = other
            self.hooks.progress(stop, n, 0)
        return whole


def random_shifts(work: Workspace, layout: Layout, primitives: Version) -> Shifts | None:
    """The shifts along periodic modes with which the recipe's training sees the samples."""
    if not work.recipe.train.shift:
        return None
    anchor = align.require_anchor(work, select_anchor.require_tucker(work))
    anchors = align.read_anchors(work.store_location, anchor.snapshot)
    return Shifts(layout, tuple(work.recipe.train.shift), anchors, primitives.attrs["condition_dims"])


def spectral(passes: Passes, chosen: Normalise) -> Normalisation:
    """Principal axes from a first pass, deviations along them from a second one, of samples as training sees them."""
    lengths = [stream.shape[axis] for stream in passes.layout.streams for axis in turned_axes(stream)]
    products = passes.over(stream_products, more=sum(n * min(n, SKETCH) for n in lengths))
    with threadpool_limits(1, user_api="blas"):  # bits do not depend on how many threads there are
        turned = Normalisation.on_principal_axes(products)
    moments = passes.over(turned_moments, shared=turned)
    return turned.with_deviations(moments, beta=chosen.beta, floor=chosen.floor)


def _dataset(normalisation: Normalisation, layout: Layout) -> xr.Dataset:
    dims = {f"{what}_{stream.name}": stream.dims for stream in layout.streams for what in ("mean", "deviation")}
    for stream in layout.streams:
        dims |= {
            f"basis{axis}_{stream.name}": (stream.dims[axis], f"axis_{stream.name}_{stream.dims[axis]}")
            for axis in turned_axes(stream)
        }
    return xr.Dataset({name: (dims.get(name, ()), value) for name, value in normalisation.to_arrays().items()})


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
    spans = [known.deviation.max() / known.deviation.min() for known in normalisation.coordinates.values()]
    text += f"; numbers on principal axes differ by up to {max(spans):.2g}" if spans else ""
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
