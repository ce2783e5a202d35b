"""Sources that get new samples: what is read, what stays, what is noticed, and what follows from drift."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from test_operation_counts import of, watched
from tiny_runs import MODEL, PRIMITIVES, calls, changed, run, small_recipe, waves

from diffats import plots, report, stages
from diffats.config import Data, Recipe, Split
from diffats.errors import (
    DriftError,
    InputError,
    RecipeError,
    SourceChangedError,
    SourceError,
    StoreError,
    StoreNotFoundError,
    TooManyFailedError,
)
from diffats.sources import Samples, open_samples
from diffats.sources.cuts import Grid
from diffats.sources.joined_arrays import JoinedArray
from diffats.sources.splits import by_block, held_values, lasting_choice
from diffats.stages import Workspace, align, decompose, drift, fit_normalisation, plan, select_anchor, versions
from diffats.store import PENDING, Store, Version

CHUNK, SHARD = 4, 7
FIELD = waves(60, 6, 8).astype("f4")


def dataset(start: int, stop: int, field: np.ndarray = FIELD) -> xr.Dataset:
    return xr.Dataset({"u": (("run", "time", "x"), field[start:stop])}, coords={"run": np.arange(start, stop)})


def write(folder: Path, n: int) -> None:
    encoding = {"u": {"chunks": (CHUNK, 6, 8)}}
    dataset(0, n).to_zarr(folder / "u.zarr", zarr_format=3, consolidated=False, encoding=encoding)


def append(folder: Path, start: int, stop: int, field: np.ndarray = FIELD) -> None:
    dataset(start, stop, field).to_zarr(folder / "u.zarr", append_dim="run", consolidated=False)


def save(ds: xr.Dataset, path: Path) -> None:
    """A file that takes the place of the one there, which this process may have open."""
    ds.to_netcdf(path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def recipe_of(folder: Path, source: str = "u.zarr", root: str = "root", **data: Any) -> Recipe:
    """Samples along ``run``; few of them are drawn from one distribution, so drift is not asked about."""
    given = {"source": str(folder / source), "modes": ["time", "x"], "sample_dim": "run", "grows": True}
    given |= {"split": {"test": 0.25}, "condition": {"initial": {"dim": "time", "index": 0}}, **data}
    return small_recipe(folder / root, given, decompose={"ranks": {"time": 3, "x": 3}})


def tucker(recipe: Recipe) -> Version:
    version = decompose.tucker_version(Workspace(recipe))
    assert version is not None
    return version


def primitives(recipe: Recipe) -> Version:
    version = align.primitives_version(Workspace(recipe))
    assert version is not None
    return version


def content(version: Version, start: int, stop: int) -> dict[str, bytes]:
    """Bits of everything that workers filled, and of the status and the split."""
    return {name: values.tobytes() for name, values in version.read(version.record.filled, start, stop).items()} | {
        "status": version.status()[start:stop].tobytes(),
        "split": "".join(version.dataset()["split"].values[start:stop]).encode(),
    }


# --- only what is new is read -------------------------------------------------------------------------------------


def test_only_new_samples_are_read_encoded_and_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    write(tmp_path, 24)
    first = run(recipe, PRIMITIVES)
    old, old_primitives = tucker(recipe), primitives(recipe)
    before, before_primitives = content(old, 0, 24), content(old_primitives, 0, 24)
    assert run(recipe, ["decompose"])["decompose"].skipped

    append(tmp_path, 24, 38)
    with watched(monkeypatch) as seen:
        assert plan.plan(Workspace(recipe))["new_samples"] == 14
    assert not [key for key in seen.raw if key.startswith("u/")]

    with watched(monkeypatch) as seen:
        second = run(recipe, PRIMITIVES)
    # Chunks 6 to 9 hold samples 24 to 39; samples 32 to 35, of chunk 8, are in two shards.
    raw = {key: count for key, count in seen.raw.items() if key.startswith("u/")}
    assert raw == {"u/6/0/0": 1, "u/7/0/0": 1, "u/8/0/0": 2, "u/9/0/0": 1}
    new_shards = 3  # 21 to 27, 28 to 34, 35 to 37
    factors = ["core", "factor_time", "factor_x"]
    assert of(seen.written, "tucker", factors) == {f"tucker/{name}": new_shards for name in factors}
    assert of(seen.written, "primitives", factors) == {f"primitives/{name}": new_shards for name in factors}

    new, new_primitives = tucker(recipe), primitives(recipe)
    assert (new.record.n, new.record.shard, new.attrs["base"]["n"]) == (38, SHARD, 24)
    assert content(new, 0, 24) == before
    assert content(new_primitives, 0, 24) == before_primitives
    assert (new.status() == 1).all()
    np.testing.assert_array_equal(new.dataset()["run"], np.arange(38))
    np.testing.assert_array_equal(new.dataset()["split"].values == "test", open_samples(recipe.data).is_test)
    for stage in ("select_anchor", "fit_normalisation"):
        assert second[stage].skipped
        assert second[stage].version == first[stage].version
    # The first version is still there, whole.
    work = Workspace(recipe)
    assert content(Version(work.store, "tucker", old.snapshot), 0, 24) == before
    assert not work.store.verify()
    assert all(result.skipped for result in run(recipe, PRIMITIVES).values())


def test_of_a_glob_only_the_new_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, "u_*.nc")
    for number in range(2):
        dataset(12 * number, 12 * number + 12).to_netcdf(tmp_path / f"u_{number}.nc")
    run(recipe, ["decompose"])
    dataset(24, 34).to_netcdf(tmp_path / "u_2.nc")
    with calls(JoinedArray, "_part", monkeypatch) as reads:
        result = run(recipe, ["decompose"])["decompose"]
    assert result.total == 34
    assert {part for _, part, *_ in reads} == {2}
    assert sum(along.stop - along.start for _, _, _, along in reads) == 10


def test_a_file_that_was_written_anew_is_read_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, "u_*.nc")
    for number in range(3):
        dataset(10 * number, 10 * number + 10).to_netcdf(tmp_path / f"u_{number}.nc")
    run(recipe, PRIMITIVES)
    before, aligned = tucker(recipe), primitives(recipe)
    save(dataset(10, 20), tmp_path / "u_1.nc")
    os.utime(tmp_path / "u_1.nc", ns=(1, 1))
    with calls(JoinedArray, "_part", monkeypatch) as reads:
        run(recipe, PRIMITIVES)
    # Samples 10 to 19 are in the shards of samples 7 to 20, so parts of both neighbours are read, too.
    assert Counter(part for _, part, *_ in reads) == {0: 1, 1: 2, 2: 1}
    after = tucker(recipe)
    assert after.fingerprint != before.fingerprint
    assert content(after, 0, 30) == content(before, 0, 30)
    assert primitives(recipe).digest == aligned.digest


def test_a_file_that_is_gone_is_named_before_its_samples(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "u_*.nc")
    for number in range(3):
        dataset(10 * number, 10 * number + 10).to_netcdf(tmp_path / f"u_{number}.nc")
    run(recipe, ["decompose"])
    (tmp_path / "u_1.nc").unlink()
    told = r'file u_1.nc is gone, which held points 10 to 19 along "run"\. data.grows .*; \.\.\. \(`diffats verify'
    with pytest.raises(SourceChangedError, match=told):
        run(recipe, ["decompose"])


# --- interrupted --------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """What ends a worker's function here."""


@pytest.mark.parametrize("stage", ["decompose", "align"])
def test_an_interrupted_growth_continues_and_equals_an_unbroken_one(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, unbroken = recipe_of(tmp_path), recipe_of(tmp_path, root="unbroken")
    write(tmp_path, 24)
    for each in (recipe, unbroken):
        run(each, PRIMITIVES)
    append(tmp_path, 24, 45)
    run(unbroken, PRIMITIVES)
    if stage == "align":
        run(recipe, ["decompose"])
    owner, name = (decompose, "decompose_shard") if stage == "decompose" else (align, "align_shard")
    original = getattr(owner, name)

    def stopping(start: int, stop: int, **options: Any) -> Any:
        if start >= 35:
            raise Stopped
        return original(start, stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping)
        with pytest.raises(Stopped):
            run(recipe, [stage])
    version = tucker(recipe) if stage == "decompose" else primitives(recipe)
    assert not version.complete
    assert 24 <= (version.status() != PENDING).sum() < 45
    run(recipe, PRIMITIVES)
    for find in (tucker, primitives):
        mine, other = find(recipe), find(unbroken)
        assert mine.digest == other.digest
        assert content(mine, 0, 45) == content(other, 0, 45)
    assert not Workspace(recipe).store.verify()


def test_a_version_grows_from_an_earlier_one_that_another_has_replaced(tmp_path: Path) -> None:
    recipe, unbroken = recipe_of(tmp_path), recipe_of(tmp_path, root="unbroken")
    write(tmp_path, 24)
    for each in (recipe, unbroken):
        run(each, ["decompose"])
    run(changed(recipe, decompose={"ranks": {"time": 2, "x": 2}}), ["decompose"])
    append(tmp_path, 24, 30)
    for each in (recipe, unbroken):
        run(each, ["decompose"])
    assert content(tucker(recipe), 0, 30) == content(tucker(unbroken), 0, 30)
    assert tucker(recipe).digest == tucker(unbroken).digest
    assert not Workspace(recipe).store.verify()


def test_anchors_and_statistics_are_of_the_first_samples_also_where_they_are_made_later(tmp_path: Path) -> None:
    early, late = recipe_of(tmp_path, root="early"), recipe_of(tmp_path, root="late")
    write(tmp_path, 24)
    run(early, PRIMITIVES)
    run(late, ["decompose"])
    append(tmp_path, 24, 38)
    made = [run(recipe, PRIMITIVES) for recipe in (early, late)]
    for stage in ("select_anchor", "fit_normalisation"):
        assert made[0][stage].facts["digest"] == made[1][stage].facts["digest"]
        assert made[0][stage].fingerprint == made[1][stage].fingerprint
    assert primitives(early).digest == primitives(late).digest


def test_new_anchors_are_of_all_samples(tmp_path: Path) -> None:
    recipe, fresh = recipe_of(tmp_path), recipe_of(tmp_path, root="fresh")
    write(tmp_path, 24)
    run(recipe, ["decompose"])
    append(tmp_path, 24, 38)
    run(recipe, ["decompose"])
    grown = tucker(recipe)
    run(recipe, ["decompose"], restart=True)
    run(fresh, ["decompose"])
    assert tucker(recipe).digest == tucker(fresh).digest != grown.digest
    assert "base" not in tucker(recipe).attrs
    append(tmp_path, 38, 44)
    run(recipe, ["decompose"])
    assert tucker(recipe).attrs["base"]["n"] == 38


def test_a_first_version_that_was_never_finished_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, fresh = recipe_of(tmp_path), recipe_of(tmp_path, root="fresh")
    write(tmp_path, 24)
    with monkeypatch.context() as patch:
        patch.setattr(decompose, "begin", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            run(recipe, ["decompose"])
    append(tmp_path, 24, 38)
    for each in (recipe, fresh):
        run(each, ["decompose"])
    assert tucker(recipe).digest == tucker(fresh).digest


# --- what has changed ---------------------------------------------------------------------------------------------


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Recipe]:
    recipe = recipe_of(tmp_path)
    write(tmp_path, 24)
    run(recipe, ["decompose"])
    return tmp_path, recipe


def test_a_changed_sample_is_named(grown: tuple[Path, Recipe]) -> None:
    folder, recipe = grown
    before = tucker(recipe)
    array = zarr.open_array(folder / "u.zarr", path="u", mode="r+")
    array[9] = array[9] + 1
    append(folder, 24, 30)
    with pytest.raises(SourceChangedError, match=r"1 known samples .* sample 9 \(run=9\): digest .*--restart"):
        run(recipe, ["decompose"])
    array[9] = array[9] - 1
    array[9] = FIELD[9]  # mended
    assert run(recipe, ["decompose"])["decompose"].total == 30
    assert content(tucker(recipe), 0, 24) == content(before, 0, 24)


def test_samples_that_are_gone_or_moved_are_named(grown: tuple[Path, Recipe]) -> None:
    folder, recipe = grown
    for kept, message in (
        ([*range(20)], r"4 known samples .*sample 20 \(run=20\): gone; "),
        ([*range(5), *range(6, 30)], r"sample 5 \(run=5\): gone, in its place sample 5 \(run=6\); .*: now sample 5; "),
        ([1, 0, *range(2, 24)], r"2 known samples .*sample 0 \(run=0\): now sample 1; "),
    ):
        encoding = {"u": {"chunks": (CHUNK, 6, 8)}}
        ds = dataset(0, 40).isel(run=kept)
        ds.to_zarr(folder / "u.zarr", mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        with pytest.raises(SourceChangedError, match=message):
            run(recipe, ["decompose"])
    run(recipe, ["decompose"], restart=True)


def test_another_kind_of_samples_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "u.nc")
    ds = dataset(0, 20).assign_coords(x=np.arange(8.0))
    ds["u"].attrs["units"] = "K"
    ds.to_netcdf(tmp_path / "u.nc")
    run(recipe, ["decompose"])
    for other, message in (
        (ds.assign_coords(x=np.arange(8.0) + 1), 'coordinate "x" had other values'),
        (ds.isel(x=slice(6)), r"x=8.*x=6"),
        (ds.drop_attrs(), "no unit"),
    ):
        save(other, tmp_path / "u.nc")
        with pytest.raises(SourceChangedError, match=message):
            run(recipe, ["decompose"])


def test_a_new_class_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "u.nc", condition={"labels": "kind"})
    kinds = np.array(["cat", "dog"] * 12, dtype=object)
    save(dataset(0, 20).assign(kind=("run", kinds[:20])), tmp_path / "u.nc")
    run(recipe, ["decompose"])
    kinds[23] = "bee"
    save(dataset(0, 24).assign(kind=("run", kinds)), tmp_path / "u.nc")
    with pytest.raises(SourceChangedError, match="bee"):
        run(recipe, ["decompose"])


def stored(kind: str, folder: Path, n: int) -> Path:
    """The first samples in a format that they can be appended to, or that is written anew."""
    ds, path = dataset(0, n), folder / f"s.{kind}"
    there = path.exists()
    if kind == "npy":
        np.save(path, FIELD[:n])
    elif kind == "icechunk":
        storage = icechunk.local_filesystem_storage(str(path))
        session = icechunk.Repository.open_or_create(storage).writable_session("main")
        ds.to_zarr(session.store, mode="w", consolidated=False)
        session.commit(f"{n} samples")
    elif there:
        dataset(8, n).to_zarr(path, append_dim="run", consolidated=False)
    else:
        shards = {"shards": (4, 6, 8)} if kind == "zarr" else {}
        version: Any = 3 if kind == "zarr" else 2
        ds.to_zarr(path, zarr_format=version, consolidated=False, encoding={"u": {"chunks": (2, 6, 8), **shards}})
    return path


@pytest.mark.parametrize(("kind", "same"), [("zarr", True), ("zarr2", True), ("npy", False), ("icechunk", False)])
def test_stamps_tell_which_samples_a_format_may_have_changed(kind: str, same: bool, tmp_path: Path) -> None:
    dims: dict[str, Any] = {"sample_dim": "run", "modes": ["time", "x"], "split": {"test": 0.25}}
    found = []
    for n in (8, 12):
        data = Data(source=str(stored(kind, tmp_path, n)), grows=True, **dims)
        found.append(open_samples(data).stamps([(0, 4), (4, 8)]))
    assert ((found[0] == found[1]).all(axis=1) == same).all()
    if same:
        array = zarr.open_array(tmp_path / f"s.{kind}", path="u", mode="r+")
        array[5] = 0
        last = open_samples(data).stamps([(0, 4), (4, 8)])
        assert (found[1] == last).all(axis=1).tolist() == [True, False]


def test_files_at_a_url_are_told_apart() -> None:
    system = fsspec.filesystem("memory")

    def put(number: int, value: float) -> None:
        content = io.BytesIO()
        np.savez(content, u=np.full((4, 3, 3), value))
        system.pipe(f"/growing/u{number}.npz", content.getvalue())

    dims: dict[str, Any] = {"sample_dim": "run", "modes": ["y", "x"], "concat_dim": "run", "split": {"test": 0.25}}
    data, found = Data(source="memory://growing/u*.npz", grows=True, **dims), []
    for number, value in ((0, 0.0), (1, 1.0), (2, 2.0), (0, 5.0)):
        put(number, value)
        if number or value:
            found.append(open_samples(data).stamps([(0, 4), (4, 8)]))
    assert (found[0] == found[1]).all()
    assert (found[1] == found[2]).all(axis=1).tolist() == [False, True]


# --- windows and splits -------------------------------------------------------------------------------------------


def windowed(folder: Path, n: int, split: dict[str, Any], **options: Any) -> Recipe:
    """Windows of 8 every 4 along time."""
    field = waves(1, 120, 6, seed=3)[0].astype("f4")
    ds = xr.Dataset({"u": (("time", "x"), field[:n])}, coords={"time": np.datetime64("2001-01-01") + np.arange(n)})
    save(ds, folder / "w.nc")
    windows = {"size": {"time": 8}, "stride": {"time": 4}}
    data = {"modes": ["time", "x"], "sample_dim": None, "windows": windows, "split": split, **options}
    return recipe_of(folder, "w.nc", **data)


@pytest.mark.parametrize(
    "split",
    [
        {"by": "sample", "test": 0.2},
        {"by": "block", "test": 0.3, "block": {"time": 16}},
        {"by": "coordinate", "coordinate": "time", "test": 0.2},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_windows_along_time_come_at_the_end_and_keep_their_sides(split: dict[str, Any], tmp_path: Path) -> None:
    recipe = windowed(tmp_path, 70, split)
    run(recipe, ["decompose"])
    old = tucker(recipe)
    windowed(tmp_path, 111, split)
    run(recipe, ["decompose"])
    new = tucker(recipe)
    n = old.record.n
    assert new.attrs["base"]["n"] == n < new.record.n
    assert content(new, 0, n) == content(old, 0, n)
    added = new.dataset().isel(sample=slice(n, None))
    assert added["time_start"].values.min() > old.dataset()["time_start"].values.max()
    if split["by"] == "coordinate":  # the boundary stays, so all that is new lies after it
        assert set(added["split"].values) == {"test"}


def test_windows_that_would_be_renumbered_are_refused(tmp_path: Path) -> None:
    def written(n: int) -> Recipe:
        field = waves(3, n, 6).astype("f4")
        save(xr.Dataset({"u": (("x", "run", "time"), field)}), tmp_path / "r.nc")
        windows = {"size": {"x": 1, "run": 8}}
        return recipe_of(tmp_path, "r.nc", modes=["x", "run", "time"], sample_dim=None, windows=windows)

    recipe = changed(written(40), decompose={"ranks": {"run": 3, "time": 3}}, data={"condition": {}})
    run(recipe, ["decompose"])
    written(48)
    with pytest.raises(SourceChangedError, match=r"elsewhere.*sample 5 \(run_start=0, x_start=1\): now sample 6"):
        run(recipe, ["decompose"])


@given(st.integers(1, 200), st.integers(0, 200), st.floats(0.01, 0.95), st.integers(0, 5))
def test_more_samples_change_no_side(n: int, more: int, share: float, seed: int) -> None:
    short, long = lasting_choice(n, share, [seed]), lasting_choice(n + more, share, [seed])
    np.testing.assert_array_equal(long[:n], short)
    assert abs(short.sum() - share * n) <= 2


@given(st.integers(60, 150), st.integers(0, 80), st.integers(0, 5))
def test_more_blocks_change_no_side(length: int, more: int, seed: int) -> None:
    split, sides = Split(by="block", test=0.3, block={"t": 12}), []
    for n in (length, length + more):
        grid = Grid(None, {"t": n, "x": 24}, {"t": 6, "x": 6}, {"t": 3, "x": 6})
        keep, is_test = by_block(grid.cuts(), grid, split, seed, grows=True)
        sides.append(np.stack([keep, is_test]))
    short = sides[0].shape[1]
    np.testing.assert_array_equal(sides[1][:, :short], sides[0])


@given(st.lists(st.integers(0, 30), min_size=12), st.integers(1, 11))
def test_more_values_change_no_side(values: list[int], n: int) -> None:
    options: dict[str, Any] = {"split": Split(by="coordinate", coordinate="g", test=0.3), "seed": 1, "ordered": False}
    short, long = (held_values(np.array(some), **options, grows=True) for some in (values[:n], values))
    np.testing.assert_array_equal(long[:n], short)


def test_without_growth_a_version_holds_no_times_of_files(tmp_path: Path) -> None:
    write(tmp_path, 24)
    recipe = recipe_of(tmp_path, grows=False)
    run(recipe, ["decompose"])
    version = tucker(recipe)
    assert "source_stamp" not in version.dataset()
    limits = changed(recipe, drift={"effect": 0.9})
    assert decompose.tucker_fingerprint(Workspace(limits)) == version.fingerprint
    assert Samples(recipe.data).boundary is None
    for path in (tmp_path / "u.zarr").rglob("*"):
        os.utime(path, ns=(1, 1))
    run(recipe, ["decompose"])
    again = tucker(recipe)
    assert (again.digest, again.fingerprint == version.fingerprint) == (version.digest, False)


class Serial:
    """A cluster that needs none."""

    def map(self, function: Any, items: Any, **_: Any) -> Any:
        return ((item, function(item)) for item in items)


def test_a_version_grows_shard_by_shard_unless_it_was_cut_to_its_length(tmp_path: Path) -> None:
    store = Store.create_or_open(tmp_path / "store")

    def template(n: int) -> xr.Dataset:
        return xr.Dataset({"v": ("sample", np.zeros(n))}, coords={"when": ("sample", np.arange(n) * 2.5)})

    def make(start: int, stop: int) -> dict[str, np.ndarray]:
        made.append((start, stop))
        return {"v": np.arange(start, stop, dtype=float), "status": np.ones(stop - start, np.int8)}

    version = None
    for n, shards in ((5, [(0, 5)]), (19, [(0, 8), (8, 16), (16, 19)]), (19, []), (40, [(16, 24), (24, 32), (32, 40)])):
        made: list[tuple[int, int]] = []
        fingerprint = f"{n}x{len(shards)}"
        if version is None:
            version = store.begin("v", template(n), fingerprint=fingerprint, shard=8, grows=True)
        else:
            version = store.grow(version, template(n), fingerprint=fingerprint)
        version.fill(make, Serial())
        assert made == shards
        version = version.finish()
        np.testing.assert_array_equal(version.dataset()["v"], np.arange(n))
        np.testing.assert_array_equal(version.dataset()["when"], np.arange(n) * 2.5)
    assert not store.verify()
    assert [entry["total"] for entry in store.versions()] == [5, 19, 19, 40]
    with pytest.raises(StoreError, match="40 samples cannot grow to 39"):
        store.grow(version, template(39), fingerprint="a")
    with pytest.raises(StoreError, match="template fills v, w"):
        store.grow(version, template(50).assign(w=("sample", np.zeros(50))), fingerprint="a")
    cut = store.begin("cut", template(5), fingerprint="a", shard=8)
    cut.fill(make, Serial())
    with pytest.raises(StoreError, match="one chunk holds 5 samples"):
        store.grow(cut.finish(), template(9), fingerprint="b")


# --- drift --------------------------------------------------------------------------------------------------------


def test_drift_asks_for_new_anchors_until_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    write(tmp_path, 30)
    run(recipe, PRIMITIVES)
    append(tmp_path, 30, 40)
    result = run(recipe, PRIMITIVES)["fit_normalisation"]
    (alike,) = result.facts["drift"]
    assert (alike["first"], alike["stop"], alike["samples"], alike["alarms"]) == (30, 40, 10, [])

    rough = FIELD + 2 * np.random.default_rng(1).normal(size=FIELD.shape).astype("f4")
    append(tmp_path, 40, 50, rough)
    with pytest.raises(DriftError, match=r"Samples 40 to 49 .* by .*p = .*--restart.*drift.action=warn"):
        run(recipe, PRIMITIVES)
    assert primitives(recipe).complete
    with monkeypatch.context() as patch:
        patch.setattr(drift, "shard_statistics", None)
        with pytest.raises(DriftError):
            run(recipe, ["fit_normalisation"])
    # Samples without drift do not hide it, and a recipe may go on.
    append(tmp_path, 50, 60)
    with pytest.raises(DriftError, match="Samples 40 to 49"):
        run(recipe, PRIMITIVES)
    with pytest.raises(DriftError):
        run(recipe, ["train"])
    with pytest.raises(DriftError, match="Samples 40 to 49"):  # other coordinates do not hide it either
        run(changed(recipe, normalise={"coordinates": "stream"}), ["fit_normalisation"])
    warns = changed(recipe, drift={"action": "warn"})
    warned = run(warns, ["fit_normalisation"])["fit_normalisation"]
    assert [len(growth["alarms"]) > 0 for growth in warned.facts["drift"]] == [False, True, False]
    drift.check(Workspace(warns), primitives(warns))
    shown(recipe)
    run(recipe, ["decompose"], restart=True)
    assert not run(recipe, PRIMITIVES)["fit_normalisation"].facts["drift"]


def shown(recipe: Recipe) -> None:
    """The comparison on the page and on the flow run's."""
    from diffats.stages.report import newest_drift
    from flows.artifact import drift_section

    growths, drawn = newest_drift(Workspace(recipe))
    page = report.render(report.ReportContent("tiny", drift=growths[:2], pictures=drawn))
    assert "Samples 40 to 49 came later and are unlike the first ones" in page
    assert "2, 1 with an alarm" in page
    assert "New samples against the first ones" in page
    text = drift_section(recipe, growths[1])
    assert "**alarm**" in text
    assert "at most 0.01" in text


def test_a_flow_tells_drift_before_it_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows import pipeline

    class Page:
        def __init__(self, _: Recipe) -> None: ...

        def tell(self, send: Any) -> None:
            send()

    def drifts(*_: Any) -> None:
        raise DriftError("Samples 3 to 5 are unlike the first ones.")

    told: list[Recipe] = []
    recipe = recipe_of(tmp_path)
    monkeypatch.setattr(pipeline, "publish_drift", told.append)
    monkeypatch.setattr(pipeline, "RunPage", Page)
    monkeypatch.setattr(pipeline, "load_recipe", lambda *_: recipe)
    monkeypatch.setattr(stages, "tracked", lambda _: nullcontext("run"))
    drifts.name = "fit_normalisation"  # type: ignore[attr-defined]
    with pytest.raises(DriftError):
        pipeline.run_stages("recipe.toml", (), [drifts])  # type: ignore[list-item]
    assert told == [recipe]
    assert DriftError.exit_code == 1


def test_a_training_waits_for_the_comparison(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    write(tmp_path, 40)
    run(recipe, PRIMITIVES)
    append(tmp_path, 40, 46)
    run(recipe, ["decompose", "align"])
    assert drift.can_be_judged(primitives(recipe))
    with pytest.raises(SourceError.__mro__[1], match="diffats normalise"):
        run(recipe, ["train"])
    assert select_anchor.anchor_version(Workspace(recipe), tucker(recipe)) is not None
    assert fit_normalisation.normalisation_version(Workspace(recipe)) is not None


def test_a_training_goes_on_where_there_is_too_little_to_compare_with(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    write(tmp_path, 16)
    run(recipe, PRIMITIVES)
    append(tmp_path, 16, 24)
    run(recipe, ["decompose", "align", "fit_normalisation"])
    assert not drift.can_be_judged(primitives(recipe))
    assert not run(recipe, ["train"])["train"].skipped


def test_the_picture_has_a_panel_for_each_statistic() -> None:
    rng = np.random.default_rng(0)
    before, new = ({name: rng.normal(size=n) for name in ("a", "b", "c")} for n in (20, 9))
    figure = plots.drift(before, new)
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == ["a", "b", "c"]


# --- what must not pass -------------------------------------------------------------------------------------------


def test_new_samples_that_are_mostly_bad_are_refused_though_few_of_all(tmp_path: Path) -> None:
    write(tmp_path, 40)
    recipe = recipe_of(tmp_path, max_failed=0.2)
    run(recipe, PRIMITIVES)
    bad = FIELD.copy()
    bad[41:46] = np.nan
    append(tmp_path, 40, 46, bad)
    with pytest.raises(TooManyFailedError, match="5 of 6 new samples failed, 1 are allowed"):
        run(recipe, ["decompose"])


def test_without_test_samples_drift_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(drift.log, "warning", lambda text, *values: said.append(text % values))
    write(tmp_path, 16)
    recipe = recipe_of(tmp_path)
    run(recipe, PRIMITIVES)
    append(tmp_path, 16, 40, FIELD + 5)
    assert not run(recipe, PRIMITIVES)["fit_normalisation"].facts["drift"]
    assert said == ["drift is not looked for: the first version has 4 good test samples, and 8 are needed"]


def test_a_repository_that_moves_on_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))

    def commit(factor: float) -> None:
        session = repository.writable_session("main")
        (dataset(0, 20) * factor).to_zarr(session.store, mode="w", zarr_format=3, consolidated=False)
        session.commit(f"times {factor}")

    commit(1.0)
    recipe = recipe_of(tmp_path, "repo", grows=False)
    fitted = decompose.fit_scaling

    def late(*arguments: Any) -> Any:
        commit(10.0)  # after the source was opened, before any sample is read
        return fitted(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decompose, "fit_scaling", late)
        with pytest.raises(SourceError, match="was changed while it was read"):
            run(recipe, ["decompose"])
    run(recipe, ["decompose"])
    scale = decompose.scaling_version(Workspace(recipe)).dataset()["scale"].values
    assert scale == pytest.approx(10 * FIELD[:20].std(), rel=0.3)


# --- earlier versions -----------------------------------------------------------------------------------------------


def test_an_earlier_version_is_trained_on_as_it_was_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    write(tmp_path, 24)
    first = run(recipe, MODEL)
    versions.tag(Workspace(recipe), "spring")
    append(tmp_path, 24, 38)
    run(recipe, PRIMITIVES)
    assert primitives(recipe).record.n == 38
    for name in ("spring", primitives(recipe).snapshot):
        pinned = changed(recipe, data={"version": name})
        n = 24 if name == "spring" else 38
        assert (tucker(pinned).record.n, primitives(pinned).record.n) == (n, n)
    pinned = changed(recipe, data={"version": "spring"})
    with watched(monkeypatch) as seen:
        again = run(pinned, MODEL)
    assert not [key for key in seen.raw if key.startswith("u/")]
    assert all(result.skipped for result in again.values())
    assert {stage: result.version for stage, result in again.items()} == {s: r.version for s, r in first.items()}
    # Trained anew, it is the same model.
    shutil.rmtree(tmp_path / "root" / "bundles")
    shutil.rmtree(tmp_path / "root" / "training")
    trained = run(pinned, ["train"])["train"]
    assert not trained.skipped
    assert trained.version == first["train"].version
    assert run(recipe, PRIMITIVES)["decompose"].facts["n_new"] == 14  # the newest one is still what others use


def test_a_version_that_cannot_be_pinned_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    write(tmp_path, 24)
    run(recipe, ["decompose"])
    old = tucker(recipe).snapshot
    for version, options, error, message in (
        ("autumn", {}, StoreNotFoundError, 'data.version "autumn" names no version'),
        (old, {"decompose": {"ranks": {"time": 2, "x": 2}}}, InputError, "is not there as these options encode it"),
    ):
        with pytest.raises(error, match=message):
            run(changed(recipe, data={"version": version}, **options), ["decompose"])
    pinned = changed(recipe, data={"version": old})
    with pytest.raises(InputError, match=r"remove data\.version"):
        run(pinned, ["decompose"], restart=True)
    append(tmp_path, 24, 30)
    run(recipe, ["decompose"], restart=True)
    with pytest.raises(InputError, match="other anchors"):
        run(pinned, ["decompose"])
    with pytest.raises(RecipeError, match=r"data\.grows"):
        changed(recipe, data={"version": old, "grows": False})


def test_prune_says_that_it_does_not_know_the_models_of_other_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(versions.log, "warning", lambda text, *values: said.append(text % values))
    write(tmp_path, 24)
    shared = changed(recipe_of(tmp_path), store=str(tmp_path / "shared"))
    other = changed(recipe_of(tmp_path, root="other"), store=str(tmp_path / "shared"))
    run(shared, ["decompose"])
    assert run(other, ["decompose"])["decompose"].skipped
    versions.prune(Workspace(other), 1, dry_run=True)
    assert len(said) == 1
    assert f"store {tmp_path}/shared may serve other roots" in said[0]
    own = recipe_of(tmp_path, root="own")
    run(own, ["decompose"])
    versions.prune(Workspace(own), 1, dry_run=True)
    assert len(said) == 1


def test_only_samples_that_are_newly_bad_count_as_failed(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, max_failed=0.2)
    bad = FIELD.copy()
    bad[3] = bad[33] = np.nan
    dataset(0, 24, bad).to_zarr(tmp_path / "u.zarr", zarr_format=3, consolidated=False)
    failed = [run(recipe, PRIMITIVES)]
    failed.append(run(recipe, PRIMITIVES))
    for start, stop in ((24, 30), (30, 36)):
        append(tmp_path, start, stop, bad)
        failed.append(run(recipe, PRIMITIVES))
    for stage in ("decompose", "align"):
        assert [made[stage].failed for made in failed] == [1, 0, 0, 1]
    assert [made["decompose"].metrics["n_failed"] for made in failed] == [1, 1, 1, 2]
