from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_primitives import LABELS, LAYOUT, normalisation_of, tiny_dataset, tiny_set

from diffats.errors import InputError
from diffats.loader import PrimitiveSet, condition_names, shard_shuffle
from diffats.primitives import ConditionLayout


def test_reads_normalised_flat_primitives() -> None:
    data = tiny_set(24, labels=True)
    indices = np.array([17, 2, 2, 11])
    z, cond = data.read(indices)
    streams = {stream.name: data.dataset[stream.name].values[indices] for stream in LAYOUT.streams}
    np.testing.assert_allclose(z, LAYOUT.flatten(data.normalisation.apply(streams)), rtol=1e-5, atol=1e-6)
    assert z.dtype == np.float32
    np.testing.assert_array_equal(cond["label"], indices % 3)
    everything, _ = data.read(data.train)
    assert abs(everything.mean()) < 1e-6


def test_splits_and_bad_samples() -> None:
    ds = tiny_dataset(24)
    ds["status"][[0, 5]] = [2, 0]  # not finite; pending
    for name in ("core", "factor_y"):
        ds[name][0] = np.nan
    data = PrimitiveSet(ds, LAYOUT, normalisation_of(tiny_dataset(24)), ConditionLayout())
    assert data.test.tolist() == [11, 17, 23]
    assert data.train.tolist() == [i for i in range(24) if i % 6 != 5 and i != 0]
    assert np.isfinite(data.read(data.train)[0]).all()
    with pytest.raises(InputError, match="sample 0 is not usable"):
        data.read(np.array([1, 0]))


def test_splits_as_cf_flags() -> None:
    ds = tiny_dataset(12)
    ds["split"] = ("sample", (np.arange(12) % 6 == 5).astype("i1"))
    ds["split"].attrs = {"flag_values": np.array([0, 1], "i1"), "flag_meanings": "train test"}
    assert PrimitiveSet(ds, LAYOUT, normalisation_of(tiny_dataset(12)), ConditionLayout()).test.tolist() == [5, 11]


def test_bad_samples_may_have_bad_conditions() -> None:
    ds = tiny_dataset(12)
    ds["scalar_nu"] = ("sample", np.linspace(1, 2, 12))
    conditions = ConditionLayout.fit({"scalar_nu": ds["scalar_nu"].values})
    ds["scalar_nu"][3], ds["status"][3] = np.nan, 2
    data = PrimitiveSet(ds, LAYOUT, normalisation_of(tiny_dataset(12)), conditions)
    assert np.isfinite(data.read(data.train)[1]["scalar_nu"]).all()


def test_missing_variables_and_too_few_samples() -> None:
    ds = tiny_dataset(12)
    normalisation = normalisation_of(ds)
    with pytest.raises(InputError, match='no variable "factor_x"'):
        PrimitiveSet(ds.drop_vars("factor_x"), LAYOUT, normalisation, ConditionLayout())
    with pytest.raises(InputError, match='no variable "label"'):
        PrimitiveSet(ds, LAYOUT, normalisation, LABELS)
    ds["status"][1:] = 2
    with pytest.raises(InputError, match="only 1 usable training samples of 12"):
        PrimitiveSet(ds, LAYOUT, normalisation, ConditionLayout())


@given(
    n=st.integers(2, 40), size=st.integers(1, 50), shard=st.integers(1, 9), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_every_sample_comes_once_in_each_pass(n: int, size: int, shard: int, seed: int) -> None:
    ds = tiny_dataset(max(n, 3)).assign_coords(split=("sample", ["train"] * max(n, 3)))
    data = PrimitiveSet(ds, LAYOUT, normalisation_of(ds), ConditionLayout(), shard=shard)
    n = len(data.train)
    steps = 3 * n // size + 1
    seen = np.concatenate([data.batch(seed, step, size) for step in range(steps)])
    for start in range(0, len(seen) - n + 1, n):
        assert sorted(seen[start : start + n]) == data.train.tolist()


def test_order_depends_on_seed_and_step_alone() -> None:
    data = tiny_set(24)
    first = data.batch(3, 7, 5)
    for step in (0, 100, 8):
        data.batch(3, step, 5)
    np.testing.assert_array_equal(data.batch(3, 7, 5), first)
    np.testing.assert_array_equal(tiny_set(24).batch(3, 7, 5), first)
    assert not np.array_equal(data.batch(4, 7, 5), first)


@given(n=st.integers(1, 50), shard=st.integers(1, 10), at_once=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_shuffle_stays_within_few_shards(n: int, shard: int, at_once: int, seed: int) -> None:
    indices = np.arange(0, 2 * n, 2)
    order = shard_shuffle(indices, shard, at_once, np.random.default_rng(seed))
    assert sorted(order.tolist()) == indices.tolist()
    groups, count = [], {s: int((indices // shard == s).sum()) for s in set((indices // shard).tolist())}
    position = 0
    while position < n:  # each group of shards is used up before the next begins
        group: set[int] = set()
        size = 0
        while position + size < n and (len(group) < at_once or sum(count[s] for s in group) > size):
            group.add(int(order[position + size] // shard))
            size += 1
        assert len(group) <= at_once
        groups.append(group)
        position += size


def test_memory_is_bounded_and_shards_are_read_lazily(tmp_path: Path) -> None:
    ds = tiny_dataset(40)
    normalisation = normalisation_of(ds)
    ds["split"] = ("sample", (ds["split"].values == "test").astype("i1"))
    ds["split"].attrs = {"flag_values": [0, 1], "flag_meanings": "train test"}
    ds.chunk(sample=4).to_zarr(tmp_path / "p.zarr", zarr_format=3, consolidated=False)
    opened = xr.open_zarr(tmp_path / "p.zarr", consolidated=False, chunks=None)
    shard_bytes = 4 * LAYOUT.numbers * 4
    data = PrimitiveSet(opened, LAYOUT, normalisation, ConditionLayout(), cache_bytes=2 * shard_bytes)
    assert data.shard == 4  # the stored chunk
    for step in range(12):
        z, _ = data.read(data.batch(0, step, 7))
        assert np.isfinite(z).all()
        assert len(data._cached) <= 2


def test_names_of_conditions() -> None:
    conditions = ConditionLayout(
        initial=(3,), initial_dims=("x",), fields={"sst": (2, 2)}, scalars=("nu",), scalar_log=(False,),
        n_labels=2, label_names=("a", "b"),
    )  # fmt: skip
    assert condition_names(conditions) == ("initial", "field_sst", "scalar_nu", "label")
