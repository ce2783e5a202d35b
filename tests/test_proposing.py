"""What ``diffats init`` writes: recipes that plan and encode as they are, and one message where there can be none."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from diffats import cli, proposing, stages
from diffats.config import Data, Recipe, load_recipe
from diffats.errors import InputError
from diffats.primitives import Layout, relative_error
from diffats.proposing import conditions, dims, ranks, samples, values
from diffats.proposing.draft import Draft
from diffats.sources.opening import KINDS
from diffats.sources.sides import FEW_TEST_SAMPLES
from diffats.stages import Workspace, plan
from diffats.toml import in_toml

Array = np.ndarray[Any, Any]


def waves(n: int, *sizes: int, seed: int = 0, noise: float = 0.02) -> Array:
    """Random sums of three products of cosines ``(n, *sizes)``: easy to compress, and no two alike."""
    rng, total = np.random.default_rng(seed), np.zeros((n, *sizes))
    for k in range(1, 4):
        product = rng.normal(size=(n, *(1,) * len(sizes))) / k
        for axis, size in enumerate(sizes):
            phase = rng.normal(0, 0.3, (n, *(1,) * len(sizes)))
            along = np.linspace(0, 3 * k, size).reshape(size, *(1,) * (len(sizes) - axis - 1))
            product = product * np.cos(along + phase)
        total += product
    return np.asarray(total + noise * rng.normal(size=total.shape), np.float32)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)


def init(source: object, *options: str) -> dict[str, Any]:
    result = run("init", source, *options, "--json")
    assert result.exit_code == 0, result.stderr
    made: dict[str, Any] = json.loads(result.stdout)
    return made


@pytest.fixture(autouse=True)
def _in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- four newcomers -----------------------------------------------------------------------------------------------


def make_series() -> str:
    time = xr.date_range("2000-01-01", periods=2000, freq="6h")
    lon, lat = np.arange(0, 360, 20.0), np.linspace(-60, 60, 8)
    rng = np.random.default_rng(0)
    angle = np.radians(lon) - rng.normal(0.2, 0.1, (time.size, 1, 1)).cumsum(axis=0)
    x = sum(np.cos(k * angle) * np.cos(k * np.radians(lat))[:, None] for k in (1, 2))
    field = (("time", "lat", "lon"), 280 + 5 * x + rng.normal(0, 0.1, x.shape), {"units": "K"})
    coords = {"time": time, "lat": lat, "lon": ("lon", lon, {"units": "degrees_east"})}
    xr.Dataset({"t2m": field, "time_bnds": (("time", "bnds"), np.zeros((2000, 2)))}, coords).to_netcdf("series.nc")
    return "series.nc"


def make_ensemble() -> str:
    x = waves(12, 60, 10, 12)
    x[..., :3, :4] = np.nan
    coords = {"viscosity": ("run", np.logspace(-3, -1, 12)), "seed": ("run", np.arange(12) * 7)}
    dataset = xr.Dataset({"ssh": (("run", "time", "y", "x"), x)}, coords)
    dataset.to_zarr("ensemble.zarr", zarr_format=3, consolidated=False)
    return "ensemble.zarr"


def make_pictures() -> str:
    for i, picture in enumerate(waves(60, 16, 20)):
        folder = Path("pictures", "cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(128 + 40 * picture[..., None] * [1, 0.8, 0.6] + 20 * (i % 2), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return "pictures"


def make_archive() -> str:
    Path("archive").mkdir()
    rng = np.random.default_rng(0)
    angle = rng.normal(0.3, 0.1, (720, 1, 1)).cumsum(axis=0) + np.arange(9) * 0.4
    x = np.cos(angle) * np.cos(np.arange(6) * 0.5)[:, None] + 0.05 * rng.normal(size=(720, 6, 9))
    time = xr.date_range("2000-01-01", periods=720, freq="D", calendar="360_day", use_cftime=True)
    dataset = xr.Dataset({"temperature": (("time", "y", "x"), x)}, {"time": time})
    for year in (2000, 2001):
        dataset.sel(time=str(year)).to_netcdf(f"archive/{year}.nc", engine="h5netcdf")
    return "archive/*.nc"


def check_series(data: Data, recipe: Recipe) -> None:
    assert (data.modes, data.sample_dim, data.missing) == (["time", "lat", "lon"], None, "fail")
    assert data.split.by == "block"
    assert recipe.train.shift == ["lon"]


def check_ensemble(data: Data, recipe: Recipe) -> None:
    assert (data.sample_dim, data.missing, data.center) == ("run", "mask", "point")
    assert data.windows.size["time"] < 60
    assert data.condition.scalars == ["viscosity"]  # and not the seed
    assert data.condition.initial is not None
    assert not recipe.train.shift
    assert recipe.makes_forecasts


def check_pictures(data: Data, recipe: Recipe) -> None:
    assert (data.modes, data.sample_dim, data.condition.labels) == (["y", "x", "channel"], "sample", "label")
    assert not data.windows.size
    assert data.bounds == {}  # a source of bytes keeps to its type


def check_archive(data: Data, recipe: Recipe) -> None:
    assert data.grows
    assert data.windows.size["time"] in (28, 21, 14, 7)  # days


NEWCOMERS: dict[str, tuple[Callable[[], str], Callable[[Data, Recipe], None]]] = {
    "series": (make_series, check_series),
    "ensemble": (make_ensemble, check_ensemble),
    "pictures": (make_pictures, check_pictures),
    "archive": (make_archive, check_archive),
}


@pytest.mark.parametrize("name", NEWCOMERS)
def test_a_newcomer_gets_to_primitives_without_editing(name: str) -> None:
    make, check = NEWCOMERS[name]
    made = init(make())
    assert (made["recipe"], made["name"]) == (f"{name}.toml", name)
    assert made["next"][0] == f"diffats plan {name}.toml --pilot"
    recipe = load_recipe(f"{name}.toml")
    check(recipe.data, recipe)
    planned = json.loads(run("plan", f"{name}.toml", "--pilot", "--json").stdout.splitlines()[-1])
    row = planned["pilot"][0]
    assert row["choice"] == "recipe"
    assert row["compression"] > 2
    assert row["anomaly_error"] < 0.3
    assert min(row["overlap"].values()) > 0.05
    assert planned["train"] > planned["test"]
    assert planned["times"]["train_seconds"] > 0
    for stage in ("decompose", "select_anchor", "align"):
        result = stages.run(stage, recipe)
        assert not result.failed


def test_no_run_is_on_both_sides() -> None:
    make_ensemble()
    init("ensemble.zarr")
    found = Workspace(load_recipe("ensemble.toml")).samples
    held = set(found.position[found.is_test])
    assert held
    assert held.isdisjoint(found.position[~found.is_test])


@pytest.mark.parametrize("name", ["series", "archive"])
def test_no_test_window_shares_a_point_with_a_training_window(name: str) -> None:
    init(NEWCOMERS[name][0]())
    recipe = load_recipe(f"{name}.toml")
    found = Workspace(recipe).samples
    assert found.is_test.sum() >= (FEW_TEST_SAMPLES if name == "series" else 20)
    start, size = found.starts["time"], recipe.data.windows.size["time"]
    points = [
        set((first[:, None] + np.arange(size)).ravel()) for first in (start[found.is_test], start[~found.is_test])
    ]
    assert points[0].isdisjoint(points[1])


# --- what is bad or odd -------------------------------------------------------------------------------------------


def fields(x: Array, *names: str, **coords: Any) -> xr.Dataset:
    return xr.Dataset({"u": (names, x)}, coords)


def gaps(x: Array) -> Array:
    x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    return x


REFUSED: dict[str, tuple[Callable[[], xr.Dataset], str]] = {
    "text": (lambda: xr.Dataset({"names": ("x", ["a", "b"])}), "no field to learn from.*names (text)"),
    "nothing": (lambda: xr.Dataset(), "It has no variables"),
    "times": (lambda: xr.Dataset({"a": (("y", "x"), np.zeros((4, 4), "M8[ns]"))}), "a (times)"),
    "one_dim": (lambda: xr.Dataset({"a": ("time", np.arange(99.0))}), "a (one number for each time)"),
    "complex": (lambda: fields(waves(9, 4, 5).astype("c8"), "run", "y", "x"), "real and imaginary parts"),
    "empty": (lambda: fields(np.zeros((0, 4, 5)), "run", "y", "x"), "u (empty)"),
    "short": (lambda: fields(waves(1, 4, 5)[0], "y", "x"), "none is long enough to cut windows from"),
    "constant": (lambda: fields(np.ones((60, 8, 9)), "run", "y", "x"), "all samples that were read are equal"),
    "gaps": (lambda: fields(gaps(waves(60, 8, 9)), "run", "y", "x"), "at other points in different samples"),
    "reserved": (lambda: fields(waves(60, 8, 9), "run", "core", "x"), '"core", a name that the stores use'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_gets_one_message(name: str) -> None:
    make, says = REFUSED[name]
    if name == "complex":
        make().to_zarr("bad", zarr_format=3, consolidated=False)
    else:
        make().to_netcdf("bad", engine="h5netcdf")
    result = run("init", "bad")
    assert result.exit_code == 2
    *_, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in says.split(".*"))
    assert not Path("bad.toml").exists()


def test_the_largest_grid_is_taken_and_the_others_are_told() -> None:
    variables = {
        "u": (("run", "y", "x"), waves(60, 8, 9)),
        "big": (("run", "yb", "xb"), waves(60, 16, 18)),
        "lat_bnds": (("y", "bnds"), np.zeros((8, 2))),
        "kind": (("run", "y", "x"), np.zeros((60, 8, 9), np.int8), {"flag_values": np.int8([0, 1])}),
    }
    xr.Dataset(variables).to_netcdf("a.nc")
    init("a.nc")
    text = Path("a.toml").read_text()
    assert 'variables = ["big"]' in text
    for other in ("u (on another grid (run, y, x))", "lat_bnds (bounds of cells)", "kind (classes)"):
        assert other in text
    init("a.nc", "-o", "b.toml", "--set", 'data.variables=["u"]')
    assert load_recipe("b.toml").data.variables == ["u"]


ODD: dict[str, tuple[Callable[[], xr.Dataset], Callable[[Recipe], bool]]] = {
    "half precision": (
        lambda: fields(waves(60, 8, 9).astype(np.float16), "run", "y", "x"),
        lambda r: r.data.sample_dim == "run",
    ),
    "no coordinates": (
        lambda: fields(waves(260, 8, 9), "dim_0", "dim_1", "dim_2"),
        lambda r: r.data.sample_dim == "dim_0",
    ),
    "scalar and 2-d coordinates": (
        lambda: fields(waves(60, 8, 9), "run", "y", "x", height=2.0, lat=(("y", "x"), waves(1, 8, 9)[0])),
        lambda r: not r.data.condition.scalars,
    ),
    "a dim of one point": (
        lambda: fields(waves(60, 8, 9)[:, None], "run", "level", "y", "x"),
        lambda r: r.data.modes == ["y", "x"],
    ),
    "one huge field": (
        lambda: fields(waves(1, 90, 120)[0], "y", "x"),
        lambda r: r.data.sample_dim is None and set(r.data.windows.size) == {"y", "x"},
    ),
    "one mode": (lambda: fields(waves(80, 32), "sample", "wavelength"), lambda r: r.primitive.kind == "mgp"),
    "a split of its own": (
        lambda: fields(waves(60, 8, 9), "run", "y", "x", split=("run", ["train"] * 50 + ["test"] * 10)),
        lambda r: (r.data.split.coordinate, r.data.split.values) == ("split", ["test"]),
    ),
    "clips of films": (
        lambda: fields(waves(60, 8, 9), "sample", "y", "x", film=("sample", np.repeat(np.arange(20), 3))),
        lambda r: r.data.split.group == "film",
    ),
    "text and numbers beside": (
        lambda: fields(
            waves(60, 8, 9), "run", "y", "x", kind=("run", ["a", "b", "c"] * 20), mass=("run", waves(60)[:60])
        ).assign(file=("run", [f"{i}.dat" for i in range(60)])),
        lambda r: (r.data.condition.labels, r.data.condition.scalars) == ("kind", ["mass"]),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_taken_as_it_is(name: str) -> None:
    make, holds = ODD[name]
    if name == "half precision":
        make().to_zarr("odd.nc", zarr_format=3, consolidated=False)
    else:
        make().to_netcdf("odd.nc", engine="h5netcdf")
    init("odd.nc")
    assert holds(load_recipe("odd.toml"))


def test_files_of_one_time_each_are_a_series() -> None:
    times = np.arange("2000-01-01", "2000-03-01", dtype="M8[D]").astype("M8[ns]")
    x = waves(len(times), 8, 9)
    for i, time in enumerate(times):
        fields(x[i], "y", "x", time=time).to_netcdf(f"step_{i}.nc", engine="h5netcdf")  # step_10 sorts before step_2
    init("step_*.nc")
    recipe = load_recipe("step.toml")
    assert (recipe.data.concat_dim, recipe.data.modes, recipe.data.grows) == ("time", ["time", "y", "x"], True)
    found = Workspace(recipe).samples
    np.testing.assert_array_equal(found.dataset["time"], times)
    np.testing.assert_array_equal(found.read([5])[0], x[found.starts["time"][5] :][: found.sizes["time"]])


@pytest.mark.parametrize("kind", ["h5netcdf", "zarr"])
def test_groups(kind: str) -> None:
    def write(name: str, *groups: str) -> str:
        made = fields(waves(60, 8, 9), "run", "y", "x")
        for group in groups:
            if kind == "zarr":
                made.to_zarr(name, group=group, mode="a", zarr_format=3, consolidated=False)
            else:
                made.to_netcdf(name, group=group, mode="a", engine="h5netcdf")
        return name

    init(write("one", "a/b"))
    assert load_recipe("one.toml").data.group == "a/b"
    result = run("init", write("two", "c", "a/b"))
    assert result.exit_code == 2
    assert "2 groups (a/b, c). Choose one with --group." in result.stderr
    init("two", "--group", "c")
    assert load_recipe("two.toml").data.group == "c"
    init(write("root", "/", "a/b"))
    assert load_recipe("root.toml").data.group is None
    assert "# Other groups with arrays, for --group: a/b." in Path("root.toml").read_text()


@pytest.mark.parametrize(
    ("shape", "sample_dim", "modes"),
    [
        ((60, 8, 9), "sample", ["y", "x"]),
        ((30, 10, 8, 9), "sample", ["time", "y", "x"]),
        ((30, 12, 10, 3), "sample", ["y", "x", "channel"]),
        ((3, 60, 70), None, ["channel", "y", "x"]),
    ],
)
def test_the_axes_of_arrays_get_names(shape: tuple[int, ...], sample_dim: str | None, modes: list[str]) -> None:
    np.save("u.npy", waves(*shape))
    init("u.npy")
    data = load_recipe("u.toml").data
    assert (data.sample_dim, data.modes) == (sample_dim, modes)


def test_samples_that_are_zero_throughout_are_allowed_for() -> None:
    x = waves(100, 8, 9)
    x[::10] = 0
    fields(x, "run", "y", "x").to_netcdf("a.nc")
    init("a.nc")
    recipe = load_recipe("a.toml")
    assert recipe.data.max_failed >= 0.1
    assert stages.run("decompose", recipe).failed == 10


# --- any data -----------------------------------------------------------------------------------------------------

NAMES = ("run", "time", "lat", "lon", "level", "band", "x", "y", "dim_0", "member", "t", "station", "sample")


@st.composite
def datasets(draw: st.DrawFn) -> xr.Dataset:
    """Data sets of one to three fields on one or two grids, with odd names, kinds of numbers and what lies beside."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    sizes = {name: draw(st.sampled_from((1, 2, 3, 5, 9, 16, 60))) for name in names}
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    made = xr.Dataset()
    for i in range(draw(st.integers(1, 3))):
        kept = names if i == 0 else draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        x = rng.normal(size=[sizes[name] for name in kept]) * draw(st.sampled_from((1.0, 1e-6, 1e6)))
        made[f"v{i}"] = (kept, x.astype(draw(st.sampled_from(("f4", "f8", "u1", "i2")))))
    if draw(st.booleans()):
        made[draw(st.sampled_from(("kind", "alpha", "id")))] = (names[0], rng.integers(0, 3, sizes[names[0]]))
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dataset=datasets())
def test_what_init_writes_is_a_recipe_that_plans(dataset: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / f"{len(os.listdir(tmp_path))}.nc"
    dataset.to_netcdf(path, engine="h5netcdf")
    try:
        proposal = proposing.propose(str(path), {})
    except InputError:
        return
    recipe_file = path.with_suffix(".toml")
    proposing.write(proposal, recipe_file)
    recipe = load_recipe(recipe_file)
    assert recipe == proposal.recipe
    made = plan.plan(Workspace(recipe))
    assert made["test"] >= 2
    assert made["compression"] > 1


@given(st.recursive(st.text() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False), st.lists))
def test_values_in_toml_come_back(value: Any) -> None:
    text = f"value = {in_toml(value)}"
    assert tomllib.loads(text)["value"] == value


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 9), min_size=1))
def test_tables_in_toml_come_back(table: dict[str, int]) -> None:
    assert tomllib.loads(f"value = {in_toml(table)}")["value"] == table


# --- the command --------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_and_each_guess_is_told_once() -> None:
    fields(waves(60, 8, 9), "run", "y", "x").to_netcdf("a.nc")
    result = run("init", "a.nc")
    assert result.exit_code == 0
    text = Path("a.toml").read_text()
    assert 'data.sample_dim = "run": 60 entries' in result.stdout.splitlines()
    assert "decompose.ranks" in result.stdout or "primitive" in result.stdout
    assert result.stdout.splitlines()[-2:] == [
        "  diffats plan a.toml --pilot",
        "  python -m flows.end_to_end a.toml",
    ]
    again = run("init", "a.nc")
    assert again.exit_code == 2
    assert "a.toml exists, and init overwrites nothing. Give another file with -o" in again.stderr
    assert Path("a.toml").read_text() == text
    assert not Path("runs").exists()
    assert max(map(len, text.splitlines())) <= 120


def test_what_is_given_is_taken() -> None:
    fields(waves(60, 8, 9), "run", "y", "x").to_netcdf("a.nc")
    given = ["name=mine", "data.split.test=0.3", "train.steps=7", "decompose.ranks={ y = 2, x = 2 }"]
    made = init("a.nc", *(word for key in given for word in ("--set", key)))
    recipe = load_recipe(made["recipe"])
    assert (made["recipe"], recipe.name) == ("mine.toml", "mine")
    assert (recipe.data.split.test, recipe.train.steps, recipe.decompose.ranks) == (0.3, 7, {"y": 2, "x": 2})
    wrong = run("init", "a.nc", "--set", "data.nonsense=1", "-o", "b.toml")
    assert wrong.exit_code == 2
    assert 'unknown key "data.nonsense"' in wrong.stderr


def test_the_list_has_every_kind() -> None:
    shown = json.loads(run("init", "--list", "--json").stdout)["kinds"]
    assert {kind.name for kind in KINDS} | {"builtin", "xarray"} == {kind["kind"] for kind in shown}
    assert all(kind["about"] and kind["example"] for kind in shown)
    assert "diffats init builtin:indian-pines" in run("init", "--list").stdout
    assert run("init").exit_code == 2


@pytest.mark.parametrize("path", ["no/such/folder/a.toml", "."])
def test_a_place_that_cannot_be_written(path: str) -> None:
    fields(waves(60, 8, 9), "run", "y", "x").to_netcdf("a.nc")
    result = run("init", "a.nc", "-o", path)
    assert result.exit_code == 2
    assert "with -o" in result.stderr


# --- the parts ----------------------------------------------------------------------------------------------------


def test_reasons_stand_in_the_text() -> None:
    draft = Draft()
    draft.put("data.modes", ["y"], "why " * 40)
    draft.put("data.modes", ["x"], "never")
    draft.put("data.split.by", "block")
    draft.note("data.split", "held out")
    text = draft.to_toml(["head"])
    assert tomllib.loads(text) == draft.tree == {"data": {"modes": ["y"], "split": {"by": "block"}}}
    assert text.count("why") == 40
    assert "[data.split]                            # held out" in text


@pytest.mark.parametrize("keep", [(), ("y",), ("y", "x")])
def test_the_chosen_error_and_overlap_are_those_of_the_form(keep: tuple[str, ...]) -> None:
    x = waves(40, 12, 14, 10).astype(np.float64)
    anomalies = x - x.mean(axis=0)
    choice = ranks.choose(x, anomalies, {"time": 12, "y": 14, "x": 10}, keep=keep)
    assert choice is not None
    assert choice.overlap >= ranks.OVERLAP
    assert not keep or set(keep) - set(choice.layout.aligned)
    assert choice.error == pytest.approx(_measured(x, anomalies, choice.layout), rel=0.1)


def _measured(x: Array, anomalies: Array, layout: Layout) -> float:
    """Root-mean-square error of projecting on each mode's leading vectors, by plain SVDs."""
    errors = []
    for each, anomaly in zip(x, anomalies, strict=True):
        left = each
        for axis, mode in enumerate(layout.modes):
            if mode in layout.ranks:
                U = np.linalg.svd(np.moveaxis(each, axis, 0).reshape(each.shape[axis], -1))[0][:, : layout.ranks[mode]]
                left = np.moveaxis(np.tensordot(U @ U.T, left, (1, axis)), 0, axis)
        errors.append(float(relative_error(each[None], left[None])[0]) * np.linalg.norm(each) / np.linalg.norm(anomaly))
    return float(np.sqrt(np.mean(np.square(errors))))


def test_of_choices_the_smallest_error_within_the_overlap_is_best() -> None:
    def choice(rank: int, error: float, overlap: float) -> ranks.Choice:
        layout = Layout("tgp", ("y", "x"), {"y": 40, "x": 40}, {"y": rank, "x": rank}, ("y", "x"))
        return ranks.Choice(layout, error, overlap)

    good, rough, alone = choice(4, 0.1, 0.5), choice(2, 0.3, 0.9), choice(5, 0.01, 0.01)
    assert ranks.best([rough, good, alone]) is good
    assert ranks.best([alone, rough]) is rough
    assert ranks.best([alone]) is alone
    assert ranks.best([choice(4, 0.04, 0.5), good, choice(3, 0.05, 0.5)]).layout.ranks == {"y": 3, "x": 3}
    assert ranks.best([]) is None


def test_fields_that_wrap_around() -> None:
    angle = 2 * np.pi * np.arange(32) / 32
    phase = np.random.default_rng(0).uniform(0, 7, (50, 3))
    moving = np.cos(angle + phase[:, :1])[:, None] * np.cos(2 * angle + phase[:, 1:2])[..., None]
    still = moving * np.sin(angle / 2)  # zero at both ends of x
    grid = xr.Dataset(coords={"y": np.arange(32), "x": np.arange(32)})
    sizes = {"y": 32, "x": 32}
    assert values.look_at(moving, sizes, grid, windowed=()).shift == ("y", "x")
    assert values.look_at(moving, sizes, grid, windowed=("y",)).shift == ("x",)
    assert values.look_at(moving, sizes, grid, windowed=(), fixed=("x",)).shift == ("y",)
    assert "x" not in values.look_at(still, sizes, grid, windowed=()).shift
    assert values.look_at(moving[..., :20], {"y": 32, "x": 20}, grid, windowed=()).shift == ("y",)
    moving[:, :4, :5] = np.nan
    masked = values.look_at(moving, sizes, grid, windowed=())
    assert (masked.shift, masked.center) == ((), "point")


def test_a_longitude_whose_points_differ_is_not_shifted() -> None:
    x = waves(40, 8, 12) + 9 * np.arange(12)
    grid = xr.Dataset(coords={"lat": np.arange(8.0), "lon": ("lon", np.arange(0, 360, 30), {"units": "degrees_east"})})
    seen = values.look_at(x, {"lat": 8, "lon": 12}, grid, windowed=())
    assert (seen.shift, seen.center) == ((), "point")
    assert seen.notes["shift"].startswith("lon is a full circle, but")


@pytest.mark.parametrize("n", [3, 60, 260, 900])
def test_there_are_fifty_test_samples_where_the_data_have_them(n: int) -> None:
    sizes = {"run": n, "y": 8, "x": 9}
    made = samples.choose_samples(xr.Dataset(), sizes, {})
    assert (made.sample_dim, made.modes) == ("run", ("y", "x"))
    assert samples.count(made, sizes)[1] >= 50 or n < 250
    assert made.split["test"] == (0.1 if n >= 500 else 0.2)


def test_names_of_dims_that_mean_something() -> None:
    unknown = xr.Dataset(coords={"q": ("q", np.arange(3), {"axis": "T"}), "s": ("s", ["a", "b"])})
    found = {name: dims.meaning_of(unknown, name) for name in ("q", "s", "ensemble_member", "nx", "band", "foo", "LON")}
    assert found == {
        **{"q": "time", "s": "sample", "ensemble_member": "sample", "nx": "space"},
        **{"band": "channel", "foo": "unknown", "LON": "longitude"},
    }


def test_ids_are_no_conditions() -> None:
    beside = {"sample_id": np.arange(60) * 3 % 60, "count": np.arange(60), "mass": waves(60), "flag": np.arange(60) % 2}
    dataset = fields(waves(60, 8, 9), "run", "y", "x").assign({name: ("run", each) for name, each in beside.items()})
    found = conditions.find_beside(dataset, ["u"], samples.Sampling(("y", "x"), "run"))
    assert (found.labels, found.scalars, found.unused) == ("flag", ["mass"], {})


def test_init_takes_a_climatology_that_is_given(tmp_path: Path) -> None:
    """Its centre needs the times of the samples, also where ranks are chosen."""
    time = xr.date_range("2000-01-01", periods=1460, freq="1D")
    season = np.cos(2 * np.pi * np.arange(1460) / 365.25)[:, None, None]
    field = 9 * season + np.random.default_rng(0).normal(size=(1460, 6, 7)).cumsum(axis=1)
    xr.Dataset({"t": (("time", "y", "x"), field.astype("f4"))}, {"time": time}).to_netcdf(tmp_path / "t.nc")
    made = proposing.propose(str(tmp_path / "t.nc"), {"data": {"center": {"by": ["time.dayofyear"]}}})
    assert made.recipe.data.climatology == ["time.dayofyear"]
    assert made.recipe.decompose.ranks
