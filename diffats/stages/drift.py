"""Whether the new samples of a growing source are like its first ones (group ``drift``).

After each growth, the newest samples are compared with test samples of the first version, which neither chose anchors
nor fitted statistics. An alarm stays until there are new anchors: a later growth without drift does not hide it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import drift
from diffats.compute import open_cluster
from diffats.digests import text_digest
from diffats.errors import DriftError
from diffats.primitives import Layout, Normalisation
from diffats.stages import decompose, growth, select_anchor
from diffats.stages.workspace import Workspace, fingerprint, open_group
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
Growth = dict[str, Any]
log = logging.getLogger("diffats.drift")

MOST = 4096  # samples on each side that are compared
LEAST_REFERENCE = 8  # test samples; where there are fewer, nothing is judged
LEAST_NEW = 8  # a growth of fewer samples is compared together with those before it
ERRORS = ("anomaly_error", "relative_error")


def drift_fingerprint(primitives: Version) -> str:
    """Identity of the comparison; its first half is the same as long as the first samples' primitives are.

    From these alone follow anchors, means and scales, in which is compared: in which coordinates a model sees them
    makes no difference.
    """
    base = growth.base_of(primitives)
    lineage = fingerprint("drift", {}, base.fingerprint, base.digest)
    state = text_digest(f"{primitives.fingerprint} {primitives.digest}")
    return lineage[: len(lineage) // 2] + state[: len(state) // 2]


def has_grown(primitives: Version) -> bool:
    """Whether there are samples that the first version did not have."""
    return primitives.record.n > growth.base_of(primitives).n


def measure(work: Workspace, primitives: Version, normalisation: Version) -> Version | None:
    """Compare the new samples with the first ones, unless that is done; None where there is nothing to compare."""
    if not has_grown(primitives):
        return None
    identity = drift_fingerprint(primitives)
    known = work.find("drift", identity)
    if known is not None and known.complete:
        return known
    base, n, good = growth.base_of(primitives).n, primitives.record.n, primitives.status() == STATUS["ok"]
    reference = _some(work, _first_test_samples(primitives))
    if not can_be_judged(primitives):  # training samples lie closer to anchors and statistics than new ones can
        text = "drift is not looked for: the first version has %d good test samples, and %d are needed"
        log.warning(text, len(reference), LEAST_REFERENCE)
        return None
    previous = work.store.newest("drift", identity[: len(identity) // 2])
    growths = [entry for entry in previous.attrs["growths"] if entry["stop"] <= n] if previous is not None else []
    tested = max([base, *(entry["stop"] for entry in growths)])
    first = max(base, min(tested, n - LEAST_NEW))
    new = _some(work, first + np.flatnonzero(good[first:]))
    rows = _statistics(work, primitives, normalisation, np.concatenate([reference, new]), previous)
    if tested < n and len(new):
        sizes = {"first": int(first), "stop": n, "samples": len(new), "reference": f"{len(reference)} test samples"}
        growths.append({**sizes, "statistics": drift.compare(*_sides(rows, int(first)))})
    attrs = work.attrs(growths=growths, first=int(first), primitives=primitives.snapshot)
    return work.keep(work.store.put("drift", rows, fingerprint=identity, attrs=attrs))


def compared(version: Version) -> tuple[dict[str, Array], dict[str, Array]]:
    """Each statistic of the first and of the newest samples, as they were compared."""
    return _sides(version.dataset().load(), version.attrs["first"])


def _sides(rows: xr.Dataset, first: int) -> tuple[dict[str, Array], dict[str, Array]]:
    is_new = rows["sample"].values >= first
    names = sorted(map(str, rows.data_vars))
    before, new = ({name: rows[name].values[side] for name in names} for side in (~is_new, is_new))
    return before, new


def _some(work: Workspace, numbers: Array) -> Array:
    """All, or as many as are compared at most, seeded."""
    return np.sort(np.random.default_rng(work.recipe.seed).permutation(numbers)[:MOST])


def _statistics(
    work: Workspace, primitives: Version, normalisation: Version, numbers: Array, previous: Version | None
) -> xr.Dataset:
    """The statistics of some samples; those that are known already are not computed again."""
    kept = previous.dataset().load() if previous is not None else None
    if kept is not None:
        kept = kept.sel(sample=np.intersect1d(kept["sample"].values, numbers))
    missing = numbers if kept is None else np.setdiff1d(numbers, kept["sample"].values)
    shard, layout = primitives.record.shard, decompose.layout_of(primitives)
    function = partial(
        shard_statistics,
        location=work.store_location,
        tucker=select_anchor.require_tucker(work).snapshot,
        primitives=primitives.snapshot,
        normalisation=normalisation.snapshot,
        layout=layout,
    )
    groups = [missing[missing // shard == number] for number in np.unique(missing // shard)]
    with open_cluster(work.recipe.compute) as cluster:
        parts = [part for _, part in cluster.map(function, groups, ordered=True)]
    found = [_rows(group, part) for group, part in zip(groups, parts, strict=True)]
    rows: xr.Dataset = xr.concat([*([] if kept is None else [kept]), *found], "sample", combine_attrs="drop")
    return rows.sortby("sample")


def _rows(numbers: Array, part: dict[str, Array]) -> xr.Dataset:
    return xr.Dataset({name: ("sample", values) for name, values in part.items()}, coords={"sample": numbers})


def shard_statistics(
    numbers: Array, *, location: str, tucker: str, primitives: str, normalisation: str, layout: Layout
) -> dict[str, Array]:
    """Errors, smallest overlaps and distances to the training distribution of some samples of a shard."""
    start, stop = int(numbers[0]), int(numbers[-1]) + 1
    names = [stream.name for stream in layout.streams]
    stored = open_group(location, "primitives", primitives).read([*names, "overlap"], start, stop)
    inside = numbers - start
    out = dict(open_group(location, "tucker", tucker).read(ERRORS, start, stop))
    out |= {f"overlap_{mode}": stored["overlap"][:, axis] for axis, mode in enumerate(layout.aligned)}
    statistics = read_normalisation(location, normalisation)
    found = drift.distances(statistics.plain.apply({name: stored[name][inside] for name in names}))
    return {name: values[inside] for name, values in out.items()} | {f"distance_{n}": d for n, d in found.items()}


def read_normalisation(location: str, snapshot: str) -> Normalisation:
    """The stored statistics of the streams."""
    dataset = open_group(location, "normalisation", snapshot).dataset(indexes=False).load()
    return Normalisation.from_arrays({str(name): dataset[name].values for name in dataset.data_vars})


# --- what follows from it -----------------------------------------------------------------------------------------


def entries(work: Workspace, version: Version) -> list[Growth]:
    """Each growth that was compared, with the statistics that give an alarm by this recipe's thresholds."""
    limits = work.recipe.drift
    options = {"false_alarm": limits.false_alarm, "effect": limits.effect}
    return [entry | {"alarms": drift.alarms(entry["statistics"], **options)} for entry in version.attrs["growths"]]


def judge(work: Workspace, found: Iterable[Growth]) -> None:
    """Ask for new anchors where new samples are unlike the first ones, or warn, as the recipe says.

    Raises
    ------
    DriftError
        Which says by what and by how much, and what to do.
    """
    alarming = [entry for entry in found if entry["alarms"]]
    if not alarming:
        return
    limits = work.recipe.drift
    earlier = f" So were those of {len(alarming) - 1} growths before." if alarming[1:] else ""
    text = (
        f"{describe(alarming[-1])}{earlier} (drift.effect = {limits.effect:g}; drift.false_alarm = "
        f"{limits.false_alarm:g} is the chance of such an alarm about a growth whose samples are alike.)"
    )
    if limits.action == "warn":
        log.warning("%s", text)
        return
    raise DriftError(
        f"{text} All that was made is kept. Run `diffats decompose RECIPE.toml --restart` for new anchors and "
        "statistics, or go on with the old ones: --set drift.action=warn."
    )


def describe(entry: Growth) -> str:
    """One growth with an alarm, in a sentence."""
    rows = entry["statistics"]
    listed = "; ".join(
        f"{name} (median {rows[name]['before']:.3g} before, {rows[name]['new']:.3g} now, more unusual with probability "
        f"{rows[name]['effect']:.2f}, p = {rows[name]['p']:.1e})"
        for name in entry["alarms"]
    )
    return (
        f"Samples {entry['first']} to {entry['stop'] - 1} are unlike the first ones ({entry['samples']} against "
        f"{entry['reference']}) by {listed}."
    )


def _first_test_samples(primitives: Version) -> Array:
    """Good test samples of the first version, with which new ones are compared."""
    base, good = growth.base_of(primitives).n, primitives.status() == STATUS["ok"]
    return np.flatnonzero(good[:base] & (primitives.dataset()["split"].values[:base] == "test"))


def can_be_judged(primitives: Version) -> bool:
    """Whether the first version has enough test samples to compare new ones with."""
    return len(_first_test_samples(primitives)) >= LEAST_REFERENCE


def check(work: Workspace, primitives: Version) -> None:
    """Refuse to go on with samples that have drifted, as :func:`judge` does, or that were not looked at.

    Raises
    ------
    StoreNotFoundError
        Where they were not compared.
    DriftError
        Where they are too unlike the first ones.
    """
    if has_grown(primitives) and can_be_judged(primitives):
        version = work.find("drift", drift_fingerprint(primitives))
        judge(work, entries(work, work.require(version, "drift", "normalise")))
