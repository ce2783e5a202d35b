"""Stored primitives as training batches: lazily by shard, in an order that depends on (seed, step) alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import xarray as xr

from diffats.errors import InputError
from diffats.primitives import ConditionLayout, Layout, Normalisation, Shifts
from diffats.primitives.layout import Streams

STATUS_OK = 1  # as diffats.store writes it
CACHE_BYTES = 2**30
_ORDER, _SHIFTS = 1, 4  # keep these random numbers apart from others of the same seed

Arrays = dict[str, np.ndarray]
Shard = tuple[np.ndarray, np.ndarray, Arrays]  # sample numbers, z, conditions: usable samples only


class PrimitiveSet:
    """The samples of a ``primitives`` group, normalised and flat.

    Parameters
    ----------
    dataset
        The group: a variable ``(sample, ...)`` for each stream of the layout and for each condition (``initial``,
        ``field_<name>``, ``scalar_<name>``, ``label``), ``status``, and the coordinate ``split``. May be lazy.
    layout, normalisation, conditions
        What the streams are, and how they and the conditions are normalised.
    shard
        Samples read at once; the chunk along ``sample`` where left out.
    shifts
        Shifts the samples of a training step at random; each is as the store has it where left out.
    validation
        Share of the training samples that are not trained on but scored, in the place of the test samples: those in the
        middle, in a row, so that samples that overlap are mostly on one side.
    cache_bytes
        Memory for shards that were read. It never changes the order of the batches.

    Raises
    ------
    InputError
        Where a stream or condition is missing, or fewer than two training samples are usable.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        layout: Layout,
        normalisation: Normalisation,
        conditions: ConditionLayout,
        *,
        shard: int | None = None,
        shifts: Shifts | None = None,
        validation: float = 0.0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.dataset, self.layout, self.normalisation, self.conditions = dataset, layout, normalisation, conditions
        self.n = int(dataset.sizes["sample"])
        self.stream_names = tuple(stream.name for stream in layout.streams)
        self.condition_names = condition_names(conditions)
        for name in (*self.stream_names, *self.condition_names, "split"):
            if name not in dataset.variables:
                raise InputError(f'primitives have no variable "{name}" (found: {", ".join(map(str, dataset))}).')
        self.shard = shard or _shard_length(dataset[self.stream_names[0]])
        self.numbers = layout.numbers
        self.sizes = {stream.name: int(np.prod(stream.shape)) for stream in layout.streams}
        self._usable = _usable(dataset)
        is_test = _is_test(dataset["split"])
        self.train: np.ndarray = np.flatnonzero(self._usable & ~is_test)
        self.test: np.ndarray = np.flatnonzero(self._usable & is_test)
        self.scored = self.test
        if validation:
            count = max(1, round(validation * len(self.train)))
            first = (len(self.train) - count) // 2
            self.scored = self.train[first : first + count]
            self.train = np.delete(self.train, slice(first, first + count))
        if len(self.train) < 2:
            raise InputError(f"only {len(self.train)} usable training samples of {self.n}; at least 2 are needed.")
        self.shifts = shifts
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, Arrays]:
        """Flat normalised primitives ``(k, D)`` float32 and normalised conditions ``(k, ...)`` of samples."""
        z, cond = self._gather(indices)
        return (self._normalised(self.layout.unflatten(z)) if self._keeps_raw else z), cond

    def _gather(self, indices: np.ndarray) -> tuple[np.ndarray, Arrays]:
        """The same, of primitives as they are kept in memory."""
        indices = np.asarray(indices, dtype=np.int64)
        z = np.empty((len(indices), self.numbers), dtype=np.float32)
        cond: Arrays = {}
        shards = indices // self.shard
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            rows, shard_z, shard_cond = self._shard(int(shard))
            inside = _find(rows, indices[where])
            z[where] = shard_z[inside]
            for name, values in shard_cond.items():
                if name not in cond:
                    cond[name] = np.empty((len(indices), *values.shape[1:]), dtype=values.dtype)
                cond[name][where] = values[inside]
        return z, cond

    def read_step(self, seed: int, step: int, size: int, part: slice | None = None) -> tuple[np.ndarray, Arrays]:
        """What ``read`` gives for (a part of) the samples of a training step, shifted at random where asked for."""
        chosen = self.batch(seed, step, size)[part or slice(None)]
        if self.shifts is None:
            return self.read(chosen)
        z, cond = self._gather(chosen)
        by = self.shifts.draw(size, np.random.default_rng((seed, step, _SHIFTS)))[part or slice(None)]
        streams = self.layout.unflatten(z)
        streams = self.shifts.apply(streams if self._keeps_raw else self.normalisation.undo(streams), by)
        return self._normalised(streams), self.shifts.apply_to_conditions(cond, by)

    @property
    def _keeps_raw(self) -> bool:
        """Whether primitives are normalised when they are read: they are shifted first, and turned only once so."""
        return self.shifts is not None and bool(self.normalisation.coordinates)

    def _normalised(self, streams: Streams) -> np.ndarray:
        return np.asarray(self.layout.flatten(self.normalisation.apply(streams)), dtype=np.float32)

    def batch(self, seed: int, step: int, size: int) -> np.ndarray:
        """Sample numbers ``(size,)`` of a training step. Every sample comes once in each pass over the data."""
        positions = np.arange(step * size, (step + 1) * size)
        epochs, offsets = np.divmod(positions, len(self.train))
        parts = [self._order(seed, int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        if (seed, epoch) not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[seed, epoch] = shard_shuffle(
                self.train, self.shard, self._shards_at_once, np.random.default_rng((seed, epoch, _ORDER))
            )
        return self._orders[seed, epoch]

    @property
    def _shards_at_once(self) -> int:
        # half of the default cache, whatever the cache is here: the order must not depend on a machine's memory
        return max(2, CACHE_BYTES // 2 // (4 * self.numbers * self.shard))

    def _shard(self, shard: int) -> Shard:
        with self._lock:
            if shard not in self._cached:
                self._cached[shard] = self._load(shard)
                self._evict()
            self._cached.move_to_end(shard)
            return self._cached[shard]

    def _load(self, shard: int) -> Shard:
        start = shard * self.shard
        rows = np.flatnonzero(self._usable[start : start + self.shard])  # what failed cannot be normalised
        names = [*self.stream_names, *self.condition_names]
        part = self.dataset[names].isel(sample=slice(start, start + self.shard)).load()
        arrays = {name: part[name].values[rows] for name in names}
        streams = {name: arrays[name] for name in self.stream_names}
        z = np.asarray(self.layout.flatten(streams), np.float32) if self._keeps_raw else self._normalised(streams)
        raw = {name: arrays[name] for name in self.condition_names}
        return start + rows, z, self.conditions.normalise(raw) if raw else {}

    def _evict(self) -> None:
        sizes = [_nbytes(z, cond) for _, z, cond in self._cached.values()]
        while len(self._cached) > 1 and sum(sizes) > self._cache_bytes:
            self._cached.popitem(last=False)
            del sizes[0]


def condition_names(conditions: ConditionLayout) -> tuple[str, ...]:
    """The variables that hold a recipe's conditions: ``initial``, ``field_<name>``, ``scalar_<name>``, ``label``."""
    return (
        *(("initial",) if conditions.initial is not None else ()),
        *(f"field_{name}" for name in conditions.fields or {}),
        *(f"scalar_{name}" for name in conditions.scalars),
        *(("label",) if conditions.n_labels else ()),
    )


def shard_shuffle(indices: np.ndarray, shard: int, at_once: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of ``indices`` that touches few shards at a time.

    Shards come in random order, in groups of ``at_once``; samples are shuffled within a group. With one group it is a
    plain permutation.

    >>> order = shard_shuffle(np.arange(6), 2, 1, np.random.default_rng(0))
    >>> [sorted(map(int, pair)) for pair in order.reshape(3, 2)]
    [[4, 5], [0, 1], [2, 3]]
    """
    shards = indices // shard
    there = rng.permutation(np.unique(shards))
    groups = [there[start : start + at_once] for start in range(0, len(there), at_once)]
    return np.concatenate([rng.permutation(indices[np.isin(shards, group)]) for group in groups])


def _find(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if missing := sorted(set(wanted.tolist()) - set(rows.tolist())):
        raise InputError(f"sample {missing[0]} is not usable: its status is not ok. Read samples of train or test.")
    return np.searchsorted(rows, wanted)


def _shard_length(variable: xr.DataArray) -> int:
    if "sample" in variable.chunksizes:
        return int(variable.chunksizes["sample"][0])
    preferred = variable.encoding.get("preferred_chunks", {}).get("sample")
    return int(preferred or variable.sizes["sample"])


def _usable(dataset: xr.Dataset) -> np.ndarray:
    if "status" not in dataset.variables:
        return np.ones(dataset.sizes["sample"], dtype=bool)
    usable: np.ndarray = dataset["status"].values == STATUS_OK
    return usable


def _is_test(split: xr.DataArray) -> np.ndarray:
    values = split.values
    if "flag_meanings" in split.attrs:  # CF: numbers with meanings
        flags = dict(
            zip(str(split.attrs["flag_meanings"]).split(), np.atleast_1d(split.attrs["flag_values"]), strict=True)
        )
        is_test: np.ndarray = values == flags["test"]
        return is_test
    return np.asarray([str(value) == "test" for value in values], dtype=bool)


def _nbytes(z: np.ndarray, cond: Mapping[str, np.ndarray]) -> int:
    return z.nbytes + sum(values.nbytes for values in cond.values())
