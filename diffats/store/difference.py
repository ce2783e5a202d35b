"""In what two versions of a group differ, shard by shard."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from diffats.errors import InputError
from diffats.store.schema import DIGESTS, SAMPLE, STATUS, Array
from diffats.store.version import Version

_EXAMPLES = 10  # samples that are listed
_RECIPE = "recipe"  # the attribute that holds it, as JSON


@dataclass
class ValueDifference:
    """How the numbers of a variable differ, over the samples that both versions have."""

    changed: int = 0
    """Samples that differ (of a variable without samples: numbers)."""
    largest: float = 0.0
    """Of the absolute differences; not finite where one of two numbers is not."""
    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """Of the absolute differences, of all numbers."""
        return self.total / self.count if self.count else 0.0


@dataclass
class Difference:
    """In what version B differs from version A."""

    options: dict[str, tuple[Any, Any]]
    """Of their recipes: values in A and B by dotted name; None where there is none."""
    attributes: dict[str, tuple[Any, Any]]
    """Of their groups, such as layout, ranks and the source's digest."""
    variables: dict[str, tuple[str | None, str | None]]
    """Dtype, dims and sizes, that of samples aside, where they differ; None where there is none."""
    samples: tuple[int, int] = (0, 0)
    added: list[Any] = field(default_factory=list)
    """The first samples that are only in B, and below only in A, and in both but with other values; by B's numbers."""
    removed: list[Any] = field(default_factory=list)
    changed: list[Any] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"added": 0, "removed": 0, "changed": 0})
    status: dict[str, int] = field(default_factory=dict)
    """Samples by "before -> after"."""
    values: dict[str, ValueDifference] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether the content is the same: variables, samples, statuses and numbers."""
        return not (self.variables or any(self.counts.values()) or self.status or self.values)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data; None for a difference that is not finite."""
        values = {
            name: {"changed": value.changed, "largest": _finite(value.largest), "mean": _finite(value.mean)}
            for name, value in self.values.items()
        }
        return {
            "same": self.same,
            "options": self.options,
            "attributes": self.attributes,
            "variables": self.variables,
            "samples": {
                "a": self.samples[0],
                "b": self.samples[1],
                **self.counts,
                "first_added": self.added,
                "first_removed": self.removed,
                "first_changed": self.changed,
            },
            "status": self.status,
            "values": values,
        }


def difference(a: Version, b: Version, by: Sequence[str] = ()) -> Difference:
    """Compare two versions of a group.

    Shards with the same samples and the same digests are not read; of others, one of each version is in memory.

    Parameters
    ----------
    a, b
        The versions.
    by
        Coordinates along ``sample`` that together identify a sample. Its number does where they are left out, missing
        in one version, or not unique.

    Raises
    ------
    InputError
        Where they are of two groups.
    """
    if a.group != b.group:
        raise InputError(f"versions of groups {a.group} and {b.group} cannot be compared. Give two of one group.")
    recipes = [json.loads(version.attrs.get(_RECIPE, "{}")) for version in (a, b)]
    others = [{key: value for key, value in version.attrs.items() if key != _RECIPE} for version in (a, b)]
    found = Difference(_changes(*recipes), _changes(*others), _variables(a, b))
    place = None
    if a.record.filled and b.record.filled:
        samples = _Samples(a, b, by, found)
        samples.compare()
        place = samples.place
    _compare_static(a, b, found, place)
    found.values = {name: value for name, value in found.values.items() if value.changed}
    return found


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Leaves of two trees that differ, by dotted name."""
    one, two = dict(_leaves(a)), dict(_leaves(b))
    names = sorted({*one, *two})
    return {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _variables(a: Version, b: Version) -> dict[str, tuple[str | None, str | None]]:
    one, two = _described(a), _described(b)
    names = sorted({*one, *two} - {DIGESTS})
    return {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}


def _described(version: Version) -> dict[str, str]:
    hidden = SAMPLE if version.record.filled else None
    return {
        str(name): f"{variable.dtype} ({', '.join(f'{d}={n}' for d, n in variable.sizes.items() if d != hidden)})"
        for name, variable in version.dataset(indexes=False).variables.items()
    }


class _Samples:
    """The samples of two versions, matched."""

    def __init__(self, a: Version, b: Version, by: Sequence[str], found: Difference) -> None:
        self.a, self.b, self.found = a, b, found
        one, two = _keys(a, b, by)
        #: For each sample of A, the number of the same sample in B, or -1.
        self.place: Array = two.get_indexer(one)
        shared = set(a.record.filled) & set(b.record.filled) - set(found.variables)
        self.names = sorted(shared)
        for name in self.names:
            found.values[name] = ValueDifference()
        self.digests = a.shard_digests(), b.shard_digests()

    def compare(self) -> None:
        """Fill in what differs."""
        found, n = self.found, (self.a.record.n, self.b.record.n)
        added = np.setdiff1d(np.arange(n[1]), self.place)
        removed = np.flatnonzero(self.place < 0)
        found.samples = n
        found.added, found.removed = _first(added), _first(removed)
        found.counts |= {"added": len(added), "removed": len(removed)}
        both = np.flatnonzero(self.place >= 0)
        changed = self._status(both)
        for shard in range(self.a.n_shards):
            start, stop = self.a.bounds(shard)
            changed[start:stop] |= self._shard(shard, start, stop)
        found.counts["changed"] = int(changed.sum())
        found.changed = _first(self.place[np.flatnonzero(changed)])

    def _status(self, both: Array) -> Array:
        """Count changes of status; which samples of A have another one in B."""
        names = {flag: name for name, flag in STATUS.items()}
        before, after = self.a.status()[both], self.b.status()[self.place[both]]
        moved = before != after
        pairs = Counter(zip(before[moved].tolist(), after[moved].tolist(), strict=True))
        self.found.status = {f"{names[x]} -> {names[y]}": count for (x, y), count in sorted(pairs.items())}
        changed = np.zeros(self.a.record.n, bool)
        changed[both[moved]] = True
        return changed

    def _shard(self, shard: int, start: int, stop: int) -> Array:
        """Which samples of a shard of A have other values in B."""
        place, changed = self.place[start:stop], np.zeros(stop - start, bool)
        if self._same(shard, start, stop):
            for name in self.names:
                self.found.values[name].count += (stop - start) * int(np.prod(self.a.raw(name).shape[1:]))
            return changed
        mine = self.a.read(self.names, start, stop)
        for other in np.unique(place[place >= 0] // self.b.record.shard):
            rows = np.flatnonzero((place >= 0) & (place // self.b.record.shard == other))
            first, last = int(place[rows].min()), int(place[rows].max()) + 1
            theirs = self.b.read(self.names, first, last)
            for name in self.names:
                pair = mine[name][rows], theirs[name][place[rows] - first]
                changed[rows] |= _add(self.found.values[name], *pair)
        return changed

    def _same(self, shard: int, start: int, stop: int) -> bool:
        """Whether digests show that B has the same shard."""
        if self.a.record.filled != self.b.record.filled or shard >= self.b.n_shards:
            return False
        if self.b.bounds(shard) != (start, stop) or not np.array_equal(self.place[start:stop], np.arange(start, stop)):
            return False
        mine, theirs = (digests[shard] for digests in self.digests)
        return bool(mine.any() and np.array_equal(mine, theirs))


def _keys(a: Version, b: Version, by: Sequence[str]) -> tuple[pd.Index[Any], pd.Index[Any]]:
    """What identifies each sample in both versions."""
    datasets = [version.dataset(indexes=False) for version in (a, b)]
    if by and all(name in ds.coords and ds[name].dims == (SAMPLE,) for name in by for ds in datasets):
        columns = [[pd.Index(ds[name].values) for name in by] for ds in datasets]
        one, two = (pd.MultiIndex.from_arrays(given) if len(given) > 1 else given[0] for given in columns)
        if one.is_unique and two.is_unique:
            return one, two
    return pd.RangeIndex(a.record.n), pd.RangeIndex(b.record.n)


def _first(numbers: Array) -> list[int]:
    return [int(number) for number in numbers[:_EXAMPLES]]


def _add(value: ValueDifference, x: Array, y: Array) -> Array:
    """Add the differences of rows ``(k, ...)`` of a variable; which rows differ."""
    unequal: Array = np.asarray(x != y)
    if x.dtype.kind in "fc":
        unequal[np.isnan(x) & np.isnan(y)] = False
    rows: Array = np.asarray(unequal.any(axis=tuple(range(1, x.ndim))))
    value.changed += int(rows.sum())
    value.count += x.size
    if rows.any() and x.dtype.kind in "biufc":
        wide = np.complex128 if x.dtype.kind == "c" else np.float64
        with np.errstate(invalid="ignore", over="ignore"):
            gaps = np.abs(x[unequal].astype(wide) - y[unequal].astype(wide))
        value.largest = float(np.fmax(value.largest, np.where(np.isnan(gaps), np.inf, gaps).max()))
        value.total += float(np.where(np.isnan(gaps), np.inf, gaps).sum())
    return rows


def _compare_static(a: Version, b: Version, found: Difference, place: Array | None) -> None:
    """Variables that were written whole; those along ``sample`` where ``place`` says that samples are the same."""
    one, two = (version.dataset(indexes=False) for version in (a, b))
    for name in sorted(set(a.record.static) & set(b.record.static) - {SAMPLE, *found.variables}):
        if a.record.static[name] == b.record.static[name]:
            continue
        x, y = one[name].values, two[name].values
        if place is not None and one[name].dims[:1] == (SAMPLE,):
            x, y = x[place >= 0], y[place[place >= 0]]
        _add(found.values.setdefault(name, ValueDifference()), x.reshape(-1), y.reshape(-1))
