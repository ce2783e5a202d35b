"""Stage 2: one anchor per aligned mode, chosen on the training split (group ``anchor``)."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.compute import Cluster, open_cluster
from diffats.errors import InputError
from diffats.medoid import MedoidAccumulator, first_best, mean_anchor
from diffats.primitives import Layout
from diffats.stages import decompose, growth
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint, open_group, shard_bounds, shard_runs
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
Accumulators = dict[str, list[MedoidAccumulator]]  # by mode, one for each index of the batch axes (one for a tgp)


def anchor_fingerprint(work: Workspace, tucker: Version) -> str:
    """Identity of the anchors; a source that has grown keeps those of its first samples."""
    base = growth.base_of(tucker)
    config = {"anchor": work.portable["anchor"], "aligned": decompose.current_layout(work, tucker).aligned}
    if work.recipe.anchor.strategy == "random":
        config["seed"] = work.recipe.seed
    return fingerprint("anchor", config, base.fingerprint, base.digest)


def require_tucker(work: Workspace) -> Version:
    """The finished Tucker forms of this recipe."""
    return work.require(decompose.tucker_version(work), "tucker", "decompose")


def anchor_version(work: Workspace, tucker: Version) -> Version | None:
    """The stored anchors of this recipe."""
    return work.find("anchor", anchor_fingerprint(work, tucker))


def read_factors(
    location: str, snapshot: str, modes: tuple[str, ...], bounds: tuple[int, int]
) -> tuple[dict[str, Array], npt.NDArray[np.bool_]]:
    """Factors ``(k, batch, n, r)`` by mode of a shard's candidates: its good samples of the training split."""
    names = {mode: f"factor_{mode}" for mode in modes}
    shard = open_group(location, "tucker", snapshot).read(["status", "split", *names.values()], *bounds)
    candidates = np.asarray((shard["status"] == STATUS["ok"]) & (shard["split"] == "train"))
    found = {mode: shard[name][candidates] for mode, name in names.items()}
    # the batch size is not left to reshape: a shard may have no good training sample
    return {
        mode: factors.reshape(len(factors), math.prod(factors.shape[1:-2]), *factors.shape[-2:])
        for mode, factors in found.items()
    }, candidates


def accumulate(
    bounds: tuple[int, int], *, location: str, snapshot: str, modes: tuple[str, ...], shard: int
) -> Accumulators:
    """Sums of projectors of a run of shards."""
    out: Accumulators = {}
    for start, stop in shard_bounds(bounds[1] - bounds[0], shard):
        found, _ = read_factors(location, snapshot, modes, (bounds[0] + start, bounds[0] + stop))
        for mode, factors in found.items():
            if mode not in out:
                out[mode] = [MedoidAccumulator(factors.shape[-2]) for _ in range(factors.shape[1])]
            for b, accumulator in enumerate(out[mode]):
                accumulator.add(factors[:, b])
    return out


def score(
    bounds: tuple[int, int], *, location: str, snapshot: str, modes: tuple[str, ...], shared: Accumulators
) -> dict[str, Array]:
    """Scores ``(stop - start, batch)`` by mode against the sums ``shared``; NaN for what cannot be the anchor."""
    out = {}
    found, candidates = read_factors(location, snapshot, modes, bounds)
    for mode, factors in found.items():
        out[mode] = np.full((len(candidates), len(shared[mode])), np.nan)
        for b, accumulator in enumerate(shared[mode]):
            out[mode][candidates, b] = accumulator.scores(factors[:, b])
    return out


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Choose the anchors from the training samples' factors, reading them twice, shard by shard."""
    started = time.monotonic()
    tucker = require_tucker(work)
    version = None if hooks.restart else anchor_version(work, tucker)
    if version is not None and version.complete:
        return result(work, version, started, skipped=True)
    layout = decompose.current_layout(work, tucker)
    with open_cluster(work.recipe.compute) as cluster:
        sums, scores = medoid_sums(work, tucker, layout, cluster, hooks)
    dataset, chosen = anchors(work, tucker, layout, sums, scores)
    version = work.store.put(
        "anchor",
        dataset,
        fingerprint=anchor_fingerprint(work, tucker),
        attrs=work.attrs(
            layout=layout.to_dict(), chosen=chosen, strategy=work.recipe.anchor.strategy, tucker=tucker.snapshot
        ),
    )
    return result(work, work.keep(version), started)


def medoid_sums(
    work: Workspace, tucker: Version, layout: Layout, cluster: Cluster, hooks: Hooks
) -> tuple[Accumulators, dict[str, Array]]:
    """Two passes over the factors: the sum of projectors, then every sample's score against it."""
    n, shard = growth.base_of(tucker).n, tucker.record.shard
    common: dict[str, Any] = {
        "location": work.store_location,
        "snapshot": tucker.snapshot,
        "modes": layout.aligned,
    }
    sums: Accumulators = {}
    for (_, stop), part in cluster.map(partial(accumulate, shard=shard, **common), _runs(tucker, layout), ordered=True):
        for mode, accumulators in part.items():
            if mode not in sums:
                sums[mode] = accumulators
            else:
                for mine, other in zip(sums[mode], accumulators, strict=True):
                    mine.merge(other)
        hooks.progress(stop // 2, n, 0)
    parts: dict[str, list[Array]] = {mode: [] for mode in layout.aligned}
    bounds = shard_bounds(n, shard)
    scored = cluster.map(partial(score, **common), bounds, ordered=True, shared=sums, total=len(bounds))
    for (_, stop), shard_scores in scored:
        for mode, values in shard_scores.items():
            parts[mode].append(values)
        hooks.progress((n + stop) // 2, n, 0)
    return sums, {mode: np.concatenate(values) for mode, values in parts.items()}


def _runs(tucker: Version, layout: Layout) -> list[tuple[int, int]]:
    """The runs of shards for which projectors are summed at once."""
    factors = [tucker.raw(f"factor_{mode}") for mode in layout.aligned]  # (sample, *batch, n, r)
    read = sum(math.prod(factor.shape[1:]) * factor.dtype.itemsize for factor in factors)
    returned = sum(8 * math.prod(factor.shape[1:-1]) * factor.shape[-2] for factor in factors)
    return shard_runs(growth.base_of(tucker).n, tucker.record.shard, sample_bytes=read, result_bytes=returned)


def anchors(
    work: Workspace, tucker: Version, layout: Layout, sums: Accumulators, scores: dict[str, Array]
) -> tuple[xr.Dataset, dict[str, list[int]]]:
    """The anchors as a dataset, and the sample chosen by mode (-1 where the anchor is no sample's)."""
    factors = tucker.dataset()
    data: dict[str, Any] = {}
    chosen: dict[str, list[int]] = {}
    picks = _picks(work, scores, {mode: factors[f"factor_{mode}"].dtype for mode in scores})
    for mode, shape in layout.anchor_shapes.items():
        if picks is None:
            anchor = np.stack([mean_anchor(a.P, shape[-1]) for a in sums[mode]])
            chosen[mode] = [-1] * len(anchor)
        else:
            chosen[mode] = picks[mode]
            stored = [factors[f"factor_{mode}"][i].values.reshape(-1, *shape[-2:]) for i in picks[mode]]
            anchor = np.stack([value[b] for b, value in enumerate(stored)])
        dims = factors[f"factor_{mode}"].dims[1:]
        data[f"anchor_{mode}"] = (dims, anchor.reshape(shape))
        data[f"score_{mode}"] = (("sample", f"batch_{mode}"), scores[mode])
    return xr.Dataset(data, {k: v for k, v in decompose.mode_coords(work).items() if k in layout.aligned}), chosen


def _picks(work: Workspace, scores: dict[str, Array], dtypes: dict[str, np.dtype[Any]]) -> dict[str, list[int]] | None:
    anchor = work.recipe.anchor
    if anchor.strategy == "mean":
        return None
    if anchor.strategy == "medoid":
        units = {mode: float(np.finfo(dtype).eps) for mode, dtype in dtypes.items()}
        return {mode: [first_best(column, units[mode]) for column in values.T] for mode, values in scores.items()}
    usable = np.flatnonzero(np.isfinite(next(iter(scores.values()))[:, 0]))
    if anchor.strategy == "random":
        index = int(np.random.default_rng(work.recipe.seed).choice(usable))
    else:
        assert anchor.index is not None
        index = anchor.index
        if index not in usable:
            raise InputError(
                f"anchor.index {index} is not a good training sample. Take one of {usable[:5].tolist()}... "
                f'({usable.size} can be anchors), or anchor.strategy = "medoid".'
            )
    return {mode: [index] * values.shape[1] for mode, values in scores.items()}


def result(work: Workspace, version: Version, started: float, *, skipped: bool = False) -> StageResult:
    """What the tracker and the summary show of group ``anchor``."""
    chosen = {mode: picks if len(picks) > 1 else picks[0] for mode, picks in version.attrs["chosen"].items()}
    text = ", ".join(f"{mode}: sample {pick}" if pick != -1 else f"{mode}: mean" for mode, pick in chosen.items())
    return StageResult(
        stage="select_anchor",
        fingerprint=version.fingerprint,
        version=version.snapshot,
        location=work.store_location,
        skipped=skipped,
        seconds=time.monotonic() - started,
        facts={"chosen": chosen, "strategy": version.attrs["strategy"], "digest": version.digest},
        summary=f"{version.attrs['strategy']} anchors ({text})",
    )
