"""Stage 3: every sample's factors rotated to the anchors (group ``primitives``)."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.compute import open_cluster
from diffats.primitives import Layout, align
from diffats.stages import decompose, growth, select_anchor
from diffats.stages.workspace import Hooks, StageResult, Workspace, fingerprint, open_group, read_group
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
log = logging.getLogger("diffats.align")


def primitives_fingerprint(anchor: Version, tucker: Version | growth.Base) -> str:
    """Identity of the primitives."""
    return fingerprint("primitives", {}, tucker.fingerprint, tucker.digest, anchor.fingerprint, anchor.digest)


def require_anchor(work: Workspace, tucker: Version) -> Version:
    """The anchors of this recipe."""
    return work.require(select_anchor.anchor_version(work, tucker), "anchor", "anchor")


def primitives_version(work: Workspace) -> Version | None:
    """The stored primitives of this recipe, finished or not."""
    tucker = decompose.tucker_version(work)
    anchor = select_anchor.anchor_version(work, tucker) if tucker is not None and tucker.complete else None
    if tucker is None or anchor is None:
        return None
    return work.find("primitives", primitives_fingerprint(anchor, tucker))


@lru_cache(maxsize=4)
def read_anchors(location: str, snapshot: str) -> dict[str, Array]:
    """Anchors by mode; kept per process, since every shard of a worker needs them."""
    dataset = read_group(location, "anchor", snapshot)
    return {
        str(name).removeprefix("anchor_"): dataset[name].values
        for name in dataset.data_vars
        if str(name).startswith("anchor_")
    }


def align_shard(start: int, stop: int, *, location: str, tucker: str, anchor: str, layout: Layout) -> dict[str, Array]:
    """Primitives, overlaps, conditions and status of samples ``start..stop``; bad samples stay zeros."""
    names = [stream.name for stream in layout.tucker_streams]
    group = open_group(location, "tucker", tucker)
    conditions = [name for name in group.record.filled if name.startswith("condition_")]
    shard = group.read(["status", *names, *conditions], start, stop)
    status = shard["status"]
    good = status == STATUS["ok"]
    streams, overlaps = align({name: shard[name][good] for name in names}, read_anchors(location, anchor), layout)
    out: dict[str, Array] = {"status": status, **{name: shard[name] for name in conditions}}
    for stream in layout.streams:
        out[stream.name] = np.zeros((stop - start, *stream.shape), shard[stream.name].dtype)
        out[stream.name][good] = streams[stream.name]
    smallest = np.zeros((stop - start, len(layout.aligned)))
    for axis, mode in enumerate(layout.aligned):
        cosines = overlaps[mode]
        smallest[good, axis] = cosines.min(axis=tuple(range(1, cosines.ndim)))
    return out | {"overlap": smallest}


def template(tucker: Version, layout: Layout) -> xr.Dataset:
    """The whole group ``primitives`` as metadata and zeros that take no memory."""
    source = tucker.dataset()
    n = source.sizes["sample"]
    data: dict[str, Any] = {}
    for stream in layout.streams:
        dtype = source[stream.name].dtype
        data[stream.name] = (("sample", *stream.dims), decompose.lazy_zeros((n, *stream.shape), dtype))
    overlap = {"long_name": "smallest cosine of the principal angles to the anchor"}
    data["overlap"] = (("sample", "aligned_mode"), decompose.lazy_zeros((n, len(layout.aligned)), float), overlap)
    for name, variable in source.data_vars.items():
        if str(name).startswith("condition_"):
            data[str(name)] = (variable.dims, decompose.lazy_zeros(variable.shape, variable.dtype))
    data["status"] = ("sample", decompose.lazy_zeros((n,), np.int8))
    dims = {dim for stream in layout.streams for dim in stream.dims}
    coords = {
        f"source_{name}" if name in (*data, "aligned_mode") else str(name): coord.variable
        for name, coord in source.coords.items()
        if coord.dims == ("sample",) or (name in dims and coord.dims == (name,))
    }
    return xr.Dataset(data, coords=coords).assign_coords(aligned_mode=list(layout.aligned))


def begin(work: Workspace, tucker: Version, anchor: Version, layout: Layout, hooks: Hooks) -> Version:
    """A version to be filled: new, or grown from the one of the Tucker forms that these have grown from."""
    identity = primitives_fingerprint(anchor, tucker)
    attrs = {key: tucker.attrs[key] for key in ("template", "label_names", "condition_dims")}
    attrs |= {"condition_units": tucker.attrs.get("condition_units", {})}
    attrs |= {"cycles": tucker.attrs["cycles"]} if "cycles" in tucker.attrs else {}
    attrs |= {"layout": layout.to_dict(), "tucker": tucker.snapshot, "anchor": anchor.snapshot}
    previous, filled = None, template(tucker, layout)
    if work.recipe.data.grows:
        first, known = growth.base_of(tucker), tucker.attrs.get("grown_from")
        attrs["base"] = asdict(growth.Base(primitives_fingerprint(anchor, first), "", first.n))
        earlier = primitives_fingerprint(anchor, growth.Base(**known)) if known else identity
        previous = None if hooks.restart else work.find("primitives", earlier)
    if previous is not None and previous.complete:
        attrs |= {"grown_from": growth.grown_attrs(previous)["grown_from"]}
        return work.store.grow(previous, filled, fingerprint=identity, attrs=work.attrs(**attrs))
    return work.store.begin(
        "primitives",
        filled,
        fingerprint=identity,
        shard=tucker.record.shard,
        attrs=work.attrs(**attrs),
        restart=hooks.restart,
        grows=work.recipe.data.grows,
    )


def run(work: Workspace, hooks: Hooks) -> StageResult:
    """Align every sample; continue where an earlier run stopped."""
    started = time.monotonic()
    tucker = select_anchor.require_tucker(work)
    anchor = require_anchor(work, tucker)
    identity = primitives_fingerprint(anchor, tucker)
    version = None if hooks.restart else work.find("primitives", identity)
    if version is not None and version.complete:
        return result(work, version, started, skipped=True)
    layout = decompose.current_layout(work, tucker)
    if version is None:
        version = begin(work, tucker, anchor, layout, hooks)
    decompose.say_resumed(version)
    n = tucker.record.n
    function = partial(
        align_shard,
        location=work.store_location,
        tucker=tucker.snapshot,
        anchor=anchor.snapshot,
        layout=layout,
    )
    with open_cluster(work.recipe.compute) as cluster:
        fill = growth.only_new(function, version, work.store_location)
        version.fill(fill, cluster, progress=lambda done, failed: hooks.progress(done, n, failed))
    return result(work, work.keep(version.finish()), started)


def overlap_quantiles(dataset: xr.Dataset) -> dict[str, dict[str, float]]:
    """Smallest and median overlap of the good samples, by mode."""
    good = dataset["status"].values == STATUS["ok"]
    overlap = dataset["overlap"].values[good]
    return {
        str(mode): {"min": float(overlap[:, axis].min()), "median": float(np.median(overlap[:, axis]))}
        for axis, mode in enumerate(dataset["aligned_mode"].values)
    }


def low_overlap_share(work: Workspace, dataset: xr.Dataset) -> float:
    """Share of good samples whose overlap is below ``align.min_overlap`` in some mode."""
    good = dataset["status"].values == STATUS["ok"]
    low = (dataset["overlap"].values[good] < work.recipe.align.min_overlap).any(axis=1)
    return float(low.mean()) if low.size else 0.0


def result(work: Workspace, version: Version, started: float, *, skipped: bool = False) -> StageResult:
    """What the tracker and the summary show of group ``primitives``."""
    dataset = version.dataset()
    quantiles = overlap_quantiles(dataset)
    good = dataset["status"].values == STATUS["ok"]
    limit = work.recipe.align.min_overlap
    low = int((dataset["overlap"].values[good] < limit).any(axis=1).sum())
    if low and not skipped:
        text = "%d of %d samples overlap their anchor by less than %g in some mode"
        log.warning(f"{text}: lower ranks or fewer aligned modes help", low, good.sum(), limit)
    metrics = {f"overlap_{mode}_{name}": value for mode, q in quantiles.items() for name, value in q.items()}
    text = ", ".join(f"{mode} {q['min']:.3f}/{q['median']:.3f}" for mode, q in quantiles.items())
    return StageResult(
        stage="align",
        fingerprint=version.fingerprint,
        version=version.snapshot,
        location=work.store_location,
        skipped=skipped,
        done=len(good),
        total=len(good),
        failed=growth.newly_failed(version, good, skipped=skipped),
        seconds=time.monotonic() - started,
        metrics={**metrics, "low_overlap": float(low)},
        facts={"overlap_sigma_min": quantiles, "digest": version.digest},
        summary=f"smallest overlap with the anchor (minimum/median): {text}; {low} samples below {limit:g}",
    )
