"""Windows and splits: what is held out never touches what is trained on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_runs import small_recipe

from diffats.config import Data, Split, names_later, portable
from diffats.errors import RecipeError, SourceError
from diffats.sources import Samples, open_samples
from diffats.sources.cuts import Grid
from diffats.sources.splits import by_block, by_marks, by_sample
from diffats.stages import Workspace, workspace


def opened(dataset: xr.Dataset, seed: int = 0, **options: Any) -> Samples:
    path = Path(tempfile.mkdtemp()) / "a.zarr"
    dataset.to_zarr(path, consolidated=False, zarr_format=3)
    return open_samples(Data(source=str(path), **options), seed)


def ramp(**sizes: int) -> xr.Dataset:
    values = np.arange(float(np.prod(list(sizes.values())))).reshape(tuple(sizes.values()))
    return xr.Dataset({"u": (tuple(sizes), values)})


axis = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 12), st.integers(8, 40))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(axis, min_size=1, max_size=2),
    st.sampled_from([None, 2]),
    st.floats(0.05, 0.5),
    st.integers(0, 99),
    st.integers(0, 5),
)
def test_blocks_never_leave_overlap_and_keep_their_gap(
    axes: list[tuple[int, int, int, int]], positions: int | None, share: float, seed: int, gap: int
) -> None:
    dims = ["y", "x"][: len(axes)]
    size = {d: a[0] for d, a in zip(dims, axes, strict=True)}
    stride = {d: a[1] for d, a in zip(dims, axes, strict=True)}
    block = {d: max(a[0], a[2]) for d, a in zip(dims, axes, strict=True)}
    length = {d: a[3] for d, a in zip(dims, axes, strict=True)}
    grid = Grid(positions, length, size, stride)
    cuts = grid.cuts()
    split = Split(test=share, by="block", block=block, gap={"y": gap} if gap else {})
    try:
        keep, is_test = by_block(cuts, grid, split, seed)
    except SourceError:
        assume(False)
    covered = {side: np.zeros(tuple(length.values()), dtype=bool) for side in (True, False)}
    for i in np.flatnonzero(keep):
        where = tuple(slice(int(cuts.starts[d][i]), int(cuts.starts[d][i]) + size[d]) for d in dims)
        covered[bool(is_test[i])][where] = True
    assert not (covered[True] & covered[False]).any()
    for shift in range(-gap, gap + 1):  # the rows that lie within the gap of a test window
        near = np.zeros_like(covered[True])
        rows = np.flatnonzero(covered[True].any(axis=tuple(range(1, covered[True].ndim)))) + shift
        near[rows[(rows >= 0) & (rows < len(near))]] = True
        if len(axes) == 1:
            assert not (near & covered[False]).any()
    assert covered[True].any()
    assert covered[False].any()
    assert not (is_test & ~keep).any()
    again = by_block(cuts, grid, split, seed)
    np.testing.assert_array_equal(again[1], is_test)


def points_of(grid: Grid, starts: dict[str, np.ndarray], position: np.ndarray | None, chosen: np.ndarray) -> np.ndarray:
    """Which points of which run some samples cover."""
    covered = np.zeros((grid.positions or 1, *grid.length.values()), dtype=bool)
    for i in chosen:
        where = tuple(slice(int(starts[d][i]), int(starts[d][i]) + grid.size[d]) for d in grid.size)
        covered[(0 if position is None else int(position[i]), *where)] = True
    return covered


layout = st.tuples(
    st.lists(axis, min_size=1, max_size=2), st.sampled_from([None, 2, 7]), st.floats(0.05, 0.5), st.integers(0, 99)
)


def grid_of(axes: list[tuple[int, int, int, int]], positions: int | None) -> tuple[Grid, dict[str, int]]:
    dims = ["y", "x"][: len(axes)]
    size, stride, block, length = ({d: a[i] for d, a in zip(dims, axes, strict=True)} for i in range(4))
    return Grid(positions, length, size, stride), {d: max(size[d], block[d]) for d in dims}


@settings(max_examples=80, deadline=None)
@given(layout, st.booleans())
def test_by_sample_no_point_of_a_run_is_on_both_sides(
    case: tuple[list[tuple[int, int, int, int]], int | None, float, int], grows: bool
) -> None:
    axes, positions, share, seed = case
    grid, block = grid_of(axes, positions)
    cuts = grid.cuts()
    try:
        keep, is_test = by_sample(cuts, grid, Split(test=share, block=block), seed, grows=grows)
    except SourceError:  # too few blocks
        assert positions is None
        assert grid.overlaps
        assume(False)
    test, train = (
        points_of(grid, dict(cuts.starts), cuts.position, np.flatnonzero(keep & side)) for side in (is_test, ~is_test)
    )
    assert not (test & train).any()
    if positions is not None:
        assert keep.all()
        runs = is_test.reshape(positions, -1)
        assert (runs == runs[:, :1]).all()
        if not grows:
            assert abs(runs[:, 0].sum() - max(1, share * positions)) <= 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=3, max_size=60),
    st.integers(1, 4),
    st.floats(0.05, 0.9),
    st.integers(0, 99),
    st.booleans(),
)
def test_groups_stay_together_and_are_about_the_share(
    labels: list[int], windows: int, share: float, seed: int, grows: bool
) -> None:
    numbers = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    grid = Grid(len(labels), {"t": 4 * windows}, {"t": 4}, {"t": 4})
    keep, is_test = by_sample(grid.cuts(), grid, Split(test=share, group="g"), seed, grows=grows, groups=numbers)
    assert keep.all()
    side = is_test.reshape(len(labels), windows)[:, 0]
    for number in np.unique(numbers):
        assert len(set(side[numbers == number])) == 1
    if not grows and numbers.max() > 0:
        assert side.any()
        assert not side.all() or round(share * len(labels)) == len(labels)
        assert abs(side.sum() - share * len(labels)) <= np.bincount(numbers).max()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=6, max_size=60), st.integers(1, 5), st.integers(0, 99))
def test_runs_that_come_later_move_no_sample(labels: list[int], first: int, seed: int) -> None:
    """Whether new runs are of known groups or of new ones; numbers follow the order of appearance."""
    known = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    numbers, sides = np.array([known[label] for label in labels]), []
    for groups in (None, numbers):
        for n in (len(labels) - first, len(labels)):
            grid = Grid(n, {"t": 9}, {"t": 4}, {"t": 2})
            of = None if groups is None else groups[:n]
            sides.append(by_sample(grid.cuts(), grid, Split(test=0.3), seed, grows=True, groups=of)[1])
    for short, long in (sides[:2], sides[2:]):
        np.testing.assert_array_equal(long[: len(short)], short)


def test_single_samples_are_chosen_as_they_always_were() -> None:
    for n, share, seed in ((50, 0.1, 0), (7, 0.25, 3)):
        expected = np.zeros(n, bool)
        expected[np.random.default_rng([seed, 1]).permutation(n)[: max(1, round(n * share))]] = True
        grids = Grid(n, {}, {}, {}), Grid(None, {"t": 3 * n}, {"t": 3}, {"t": 3})
        for grid in (*grids, Grid(n, {"t": 5}, {"t": 4}, {"t": 2})):
            keep, is_test = by_sample(grid.cuts(), grid, Split(test=share), seed)
            assert keep.all()
            np.testing.assert_array_equal(is_test, expected)


def test_blocks_in_runs_are_of_about_the_share_or_refused() -> None:
    """What was once 480 test samples and 240 training samples."""
    data = ramp(run=120, t=25, x=2)
    options: dict[str, Any] = {"modes": ["t", "x"], "sample_dim": "run"}
    windows = {"size": {"t": 4}, "stride": {"t": 2}}
    with pytest.raises(SourceError, match=r'blocks of t=11 .* the same for each entry .* Set .* or by = "sample"'):
        opened(data, **options, windows=windows, split={"by": "block", "block": {"t": 11}}, seed=1)
    finer = opened(data, **options, windows=windows, split={"by": "block", "block": {"t": 4}})
    assert 0.05 < finer.is_test.mean() < 0.3
    whole = opened(data, **options, windows=windows)
    assert (whole.holds_out, int(whole.is_test.sum()), whole.n, whole.dropped) == ("runs", 132, 1320, 0)
    with pytest.raises(SourceError, match='Whole entries of "run" are held out: change'):
        opened(data.isel(run=slice(1)), **options, windows=windows)


def test_groups_of_a_source() -> None:
    data = ramp(run=30, y=2, x=3).assign_coords(
        flow=("run", np.repeat(np.array(list("cabdefghij"), dtype=object), 3)), clip=("run", np.tile([0, 1, 2], 10))
    )
    options: dict[str, Any] = {"modes": ["y", "x"], "sample_dim": "run"}
    samples = opened(data, **options, split={"group": "flow", "test": 0.2})
    assert (samples.is_test.sum(), samples.holds_out) == (6, "runs")
    assert samples.is_test.reshape(10, 3).all(axis=1).sum() == 2
    np.testing.assert_array_equal(samples.groups(np.arange(30)), np.repeat(np.arange(10), 3))
    last = {"by": "coordinate", "coordinate": "flow", "values": ["j"], "group": "flow"}
    assert opened(data, **options, split=last).groups([0, 29, 27]).tolist() == [0, 1, 1]
    with pytest.raises(SourceError, match='"clip" puts 10 groups of "flow" on both sides'):
        opened(data, **options, split={"by": "coordinate", "coordinate": "clip", "values": [2], "group": "flow"})
    with pytest.raises(SourceError, match=r'data.split.group "y" has dims \(y\), expected data.sample_dim "run"'):
        opened(data.assign_coords(y=[1, 2]), **options, split={"group": "y"})
    with pytest.raises(SourceError, match=r'data\.split\.group names "flou"'):
        opened(data, **options, split={"group": "flou"})


def test_parts_of_a_run_that_is_on_both_sides_are_groups() -> None:
    """Two photographs, of which columns are held out: windows that are apart count as independent."""
    data = ramp(photo=2, y=4, x=40).assign_coords(held_out=("x", (np.arange(40) >= 24).astype(int)))
    options: dict[str, Any] = {"modes": ["y", "x"], "sample_dim": "photo"}
    cut = {"size": {"x": 4}, "stride": {"x": 2}}
    held = {"by": "coordinate", "coordinate": "held_out", "values": [1]}
    samples = opened(data, **options, windows=cut, split=held)
    test = np.flatnonzero(samples.is_test)
    assert samples.position is not None
    cells = np.stack([samples.position[test], samples.starts["x"][test] // 4], axis=1)
    assert len(np.unique(samples.groups(test))) == len(np.unique(cells, axis=0)) == 8
    apart = opened(data, **options, windows=cut, split={"test": 0.5})
    assert len(np.unique(apart.groups(np.arange(apart.n)))) == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.booleans(), min_size=6, max_size=30))
def test_marks_drop_windows_that_touch_both_sides(size: int, stride: int, marks: list[bool]) -> None:
    grid, held = Grid(None, {"t": len(marks)}, {"t": size}, {"t": stride}), np.array(marks)
    cuts = grid.cuts()
    keep, is_test = by_marks(cuts, "t", held, sample_dim=None)
    for i, start in enumerate(cuts.starts["t"]):
        window = held[start : start + size]
        assert keep[i] == (window.all() or not window.any())
        assert is_test[i] == window.all()


def test_order_is_positions_then_windows_last_dim_fastest() -> None:
    samples = opened(
        ramp(run=3, y=4, x=6),
        modes=["y", "x"],
        sample_dim="run",
        windows={"size": {"x": 2, "y": 3}, "stride": {"x": 2, "y": 1}},
    )
    assert list(samples.starts) == ["y", "x"]
    assert samples.position is not None
    assert samples.position[:7].tolist() == [0] * 6 + [1]
    assert samples.starts["y"][:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert samples.starts["x"][:6].tolist() == [0, 2, 4, 0, 2, 4]
    values = samples.dataset["u"].values
    np.testing.assert_array_equal(samples.read([10])[0], values[1, 1:4, 2:4])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_reading_equals_cutting_one_by_one(data: st.DataObject) -> None:
    sizes = {
        "run": data.draw(st.integers(3, 4)),
        "y": data.draw(st.integers(5, 9)),
        "x": data.draw(st.integers(5, 9)),
        "z": 3,
    }
    window = {"y": data.draw(st.integers(1, 4)), "x": data.draw(st.integers(1, 4))}
    stride = {"y": data.draw(st.integers(1, 4)), "x": data.draw(st.integers(1, 4))}
    modes = data.draw(st.permutations(["y", "x", "z"]))
    samples = opened(ramp(**sizes), modes=modes, sample_dim="run", windows={"size": window, "stride": stride})
    chosen = data.draw(st.lists(st.integers(0, samples.n - 1), max_size=12))
    values = samples.dataset["u"].transpose("run", *modes).values
    assert samples.read(chosen).shape == (len(chosen), *samples.sizes.values())
    for i, x in zip(chosen, samples.read(chosen), strict=True):
        where = tuple(
            slice(int(samples.starts[m][i]), int(samples.starts[m][i]) + window[m]) if m in window else slice(None)
            for m in modes
        )
        np.testing.assert_array_equal(x, values[(int(samples.position[i]), *where)])  # type: ignore[index]


class _Counting(xr.backends.BackendArray):
    """Counts what is read of it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype, self.read, self.calls = values, values.shape, values.dtype, 0, 0

    def __getitem__(self, key: Any) -> Any:
        part = self.values[key.tuple]
        self.read, self.calls = self.read + part.size, self.calls + 1
        return part


def test_dense_windows_are_read_as_slabs() -> None:
    from xarray.core.indexing import LazilyIndexedArray

    from diffats.sources.reading import read_windows

    counter = _Counting(np.arange(200 * 300.0).reshape(200, 300))
    array = xr.DataArray(xr.Variable(("y", "x"), LazilyIndexedArray(counter)))
    grid = Grid(None, {"y": 200, "x": 300}, {"y": 16, "x": 16}, {"y": 4, "x": 4})
    cuts = grid.cuts()
    out = read_windows(array, cuts, sample_dim=None, dims=("y", "x"))
    np.testing.assert_array_equal(out[-1], counter.values[184:200, 284:300])
    assert counter.calls == 1
    assert counter.read == 200 * 300
    counter.calls = 0
    read_windows(array, cuts.take([0, cuts.n - 1]), sample_dim=None, dims=("y", "x"))
    assert counter.calls == 2  # far apart: not the whole field for two windows


def test_slabs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffats.sources.reading._SLAB_BYTES", 1000)
    samples = opened(ramp(t=500, x=4), modes=["t", "x"], windows={"size": {"t": 5}})
    np.testing.assert_array_equal(samples.read(np.arange(samples.n)).reshape(500, 4), samples.dataset["u"])


def test_windows_that_overlap_are_split_by_blocks(caplog: pytest.LogCaptureFixture) -> None:
    apart = opened(ramp(t=60, x=3), modes=["t", "x"], windows={"size": {"t": 5}})
    assert (apart.holds_out, apart.dropped) == ("samples", 0)
    windows = {"size": {"t": 5}, "stride": {"t": 2}}
    samples, blocks = (
        opened(ramp(t=60, x=3), modes=["t", "x"], windows=windows, split={"by": by}) for by in ("sample", "block")
    )
    assert samples.holds_out == "blocks"
    np.testing.assert_array_equal(samples.is_test, blocks.is_test)
    np.testing.assert_array_equal(samples.starts["t"], blocks.starts["t"])
    assert not caplog.records


def test_splits_depend_on_the_seed_alone() -> None:
    dataset = ramp(run=50, x=3, y=2)
    first, same, other = (opened(dataset, seed, modes=["y", "x"], sample_dim="run").is_test for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert first.sum() == 5


def test_block_defaults_hold_out_about_the_share() -> None:
    samples = opened(
        ramp(y=145, x=145, b=2),
        modes=["y", "x", "b"],
        windows={"size": {"y": 16, "x": 16}, "stride": {"y": 4, "x": 4}},
        split={"by": "block"},
    )
    assert 0.05 < samples.is_test.mean() < 0.2
    assert samples.n + samples.dropped == 33 * 33


def test_coordinate_of_a_dim_holds_out_its_end() -> None:
    dataset = ramp(time=40, x=3).assign_coords(time=xr.date_range("2000-01-01", periods=40, freq="D"))
    options: dict[str, Any] = {"modes": ["time", "x"], "windows": {"size": {"time": 4}, "stride": {"time": 2}}}
    samples = opened(dataset, **options, split={"by": "coordinate", "coordinate": "time", "test": 0.2})
    assert samples.starts["time"][samples.is_test].tolist() == [32, 34, 36]
    assert samples.starts["time"][~samples.is_test].max() == 28
    assert samples.dropped == 1
    short = opened(dataset, **options, split={"by": "coordinate", "coordinate": "time", "test": 0.01})
    assert short.starts["time"][short.is_test].tolist() == [36]
    named = opened(dataset, **options, split={"by": "coordinate", "coordinate": "time", "values": ["2000-01"]})
    assert named.starts["time"][named.is_test].max() == 26


def test_coordinate_of_samples() -> None:
    dataset = ramp(run=30, y=2, x=3).assign_coords(
        nu=("run", np.repeat([0.1, 0.2, 0.3], 10)), case=("run", np.array(list("abc") * 10, dtype=object))
    )
    options: dict[str, Any] = {"modes": ["y", "x"], "sample_dim": "run"}
    samples = opened(dataset, **options, split={"by": "coordinate", "coordinate": "nu"})
    assert samples.is_test.sum() == 10
    assert len(set(dataset["nu"].values[samples.is_test])) == 1
    chosen = opened(dataset, **options, split={"by": "coordinate", "coordinate": "nu", "values": [0.1, 0.3]})
    assert np.flatnonzero(~chosen.is_test).tolist() == list(range(10, 20))
    text = opened(dataset, **options, split={"by": "coordinate", "coordinate": "case", "values": ["b"]})
    assert np.flatnonzero(text.is_test).tolist() == list(range(1, 30, 3))
    last = opened(dataset, **options, split={"by": "coordinate", "coordinate": "run"})
    assert np.flatnonzero(last.is_test).tolist() == [27, 28, 29]


def test_years_of_a_360_day_calendar_by_value() -> None:
    time = xr.date_range("2000-01-01", periods=36, freq="MS", calendar="360_day", use_cftime=True)
    dataset = ramp(time=36, x=3, y=2).assign_coords(time=time)
    options: dict[str, Any] = {"modes": ["y", "x"], "sample_dim": "time"}
    samples = opened(dataset, **options, split={"by": "coordinate", "coordinate": "time", "values": [2001]})
    assert np.flatnonzero(samples.is_test).tolist() == list(range(12, 24))
    last = opened(dataset, **options, split={"by": "coordinate", "coordinate": "time"})
    assert np.flatnonzero(last.is_test).tolist() == [32, 33, 34, 35]
    with pytest.raises(SourceError, match=r"'1999'.*2000-01-01T00:00:00"):
        opened(dataset, **options, split={"by": "coordinate", "coordinate": "time", "values": ["1999"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": {"by": "block", "block": {"t": 4}}}, r"data\.split\.block 4 .* below the window size 5"),
        ({"split": {"by": "block", "block": {"t": 99}}}, "one block of t=99, and two are needed"),
        ({"windows": {"size": {"t": 15}}}, "2 samples come from"),
    ],
)
def test_split_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        opened(ramp(t=30, x=3), **{"modes": ["t", "x"], "windows": {"size": {"t": 5}}, **options})


# --- which samples may depend on each other -----------------------------------------------------------------------


def test_windows_of_one_run_are_one_group() -> None:
    cuts = Grid(3, {"t": 10}, {"t": 4}, {"t": 2}).cuts()
    assert cuts.n == 12
    np.testing.assert_array_equal(cuts.groups(), np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(cuts.take([0, 5, 11]).groups(), [0, 1, 2])


def test_windows_that_begin_in_one_cell_are_one_group() -> None:
    cuts = Grid(None, {"y": 32, "x": 16}, {"y": 16, "x": 16}, {"y": 4, "x": 4}).cuts()
    np.testing.assert_array_equal(cuts.groups(), [0, 0, 0, 0, 1])
    alone = Grid(5, {}, {}, {}).cuts()
    np.testing.assert_array_equal(alone.groups(), range(5))


# --- identities: what is stored under another split is not taken for this one ------------------------------------


def identities(folder: Path, name: str, **data: Any) -> tuple[str, str]:
    """The scaling's identity now, and as earlier releases made it."""
    given = {"source": str(folder / name), "modes": ["t", "x"], **data}
    work = Workspace(small_recipe(folder / "root", given, decompose={"ranks": {"t": 2, "x": 2}}))
    options = {key: value for key, value in work.portable["data"].items() if key not in workspace._NOT_CONTENT}
    options["split"] = {key: value for key, value in options["split"].items() if key != "group"}
    before = workspace.fingerprint("scaling", {"data": options, "seed": 0}, work.source_digest)
    return work.scaling_fingerprint, before


def test_only_splits_that_have_changed_are_new(tmp_path: Path) -> None:
    ramp(run=9, t=40, x=3).assign_coords(g=("run", np.arange(9) // 3)).to_netcdf(tmp_path / "runs.nc")
    ramp(t=90, x=3).to_netcdf(tmp_path / "series.nc")
    apart, over = {"size": {"t": 5}}, {"size": {"t": 5}, "stride": {"t": 2}}
    by_group = {"by": "coordinate", "coordinate": "g"}
    same: list[dict[str, Any]] = [
        {"name": "runs.nc", "sample_dim": "run"},
        {"name": "runs.nc", "sample_dim": "run", "windows": {"size": {"t": 30}}},  # one window of each run
        {"name": "runs.nc", "sample_dim": "run", "windows": over, "split": {"by": "block"}},
        {"name": "runs.nc", "sample_dim": "run", "windows": over, "split": by_group},
        {"name": "runs.nc", "sample_dim": "run", "windows": over, "split": {**by_group, "group": "g"}},
        {"name": "series.nc", "windows": apart},
        {"name": "series.nc", "windows": over, "split": {"by": "block"}},
        {"name": "series.nc", "windows": over, "split": {"by": "coordinate", "coordinate": "t"}},
    ]
    for data in same:
        now, before = identities(tmp_path, **data)
        assert now == before, data
    new: list[dict[str, Any]] = [
        {"name": "runs.nc", "sample_dim": "run", "windows": apart},
        {"name": "runs.nc", "sample_dim": "run", "split": {"group": "g"}},
        {"name": "series.nc", "windows": over},
    ]
    for data in new:
        now, before = identities(tmp_path, **data)
        assert now != before, data


def test_a_recipe_without_groups_is_stored_as_before() -> None:
    data = {"source": "a.nc", "modes": ["t", "x"], "sample_dim": "run"}
    plain, grouped = (
        portable(small_recipe(Path("root"), {**data, "split": split}, decompose={"ranks": {"t": 2, "x": 2}}))
        for split in ({}, {"group": "flow"})
    )
    assert "group" not in plain["data"]["split"]
    assert (grouped["data"]["split"]["group"], names_later(grouped)) == ("flow", True)
    with pytest.raises(RecipeError, match=r"keeps entries of data\.sample_dim together, and there is none"):
        small_recipe(
            Path("root"),
            {"source": "a.nc", "modes": ["t"], "windows": {"size": {"t": 3}}, "split": {"group": "flow"}},
        )
