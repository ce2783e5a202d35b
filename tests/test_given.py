"""Conditions as users have them: any order of dims and points, one message for what is wrong, and what is outside."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import MODEL, changed, run, small_recipe, waves

from diffats import bundle
from diffats.bundle import Bundle
from diffats.config import Recipe, parse_recipe, portable
from diffats.errors import InputError, IntegrityError
from diffats.given import Expected, as_array, check_range, known_points
from diffats.primitives import ConditionLayout
from diffats.stages import Workspace, evaluate, generate, train

LAT, LON = np.array([40.0, 20.0, 0.0, -20.0]), np.arange(0.0, 360, 60)
GRID = xr.Dataset(coords={"lat": LAT, "lon": LON})


def expected(*variables: str) -> Expected:
    return Expected("initial", {"lat": 4, "lon": 6}, dict.fromkeys(variables, "m s-1"), GRID, gone="time")


def state(n: int = 1, name: str = "u", seed: int = 0) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=(n, 1, 4, 6))
    coords = {"lat": LAT, "lon": LON, "time": [7.0]}
    return xr.DataArray(values, coords, ("member", "time", "lat", "lon"), name=name, attrs={"units": "m s-1"})


# Arrays ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    order=st.sampled_from(list(permutations(("member", "time", "lat", "lon")))),
    n=st.integers(1, 3),
    south=st.booleans(),
    east=st.permutations(range(6)),
    with_time=st.booleans(),
)
def test_dims_and_points_may_have_any_order(
    order: tuple[str, ...], n: int, south: bool, east: list[int], with_time: bool
) -> None:
    plain = state(n)
    one = plain.isel(lon=east, lat=slice(None, None, -1 if south else 1)).transpose(*order)
    one = one if with_time else one.isel(time=0)
    found = as_array(one, expected("u"), n)
    np.testing.assert_array_equal(found.reshape(n, 4, 6), plain.values[:, 0])
    assert found.flags["C_CONTIGUOUS"]  # so that samples do not depend on it in their last digits


def test_several_variables_are_found_by_name() -> None:
    ds = xr.Dataset({name: state(2, name, seed) for seed, name in enumerate(("v", "other", "u"))})
    found = as_array(ds, expected("u", "v"), 2)
    assert found.shape == (2, 2, 4, 6)
    np.testing.assert_array_equal(found[:, 0], ds["u"][:, 0])
    together = ds[["v", "u"]].to_dataarray("component")
    together.attrs = {}
    np.testing.assert_array_equal(as_array(together, expected("u", "v"), 2), found)
    np.testing.assert_array_equal(
        as_array(together.isel(component=[1, 0]).drop_vars("component"), expected("u", "v"), 2), found
    )
    np.testing.assert_array_equal(as_array(ds.isel(member=1), expected("u", "v"), 2), found[1])


WRONG: dict[str, tuple[Any, str]] = {
    "unit": (state().assign_attrs(units="knots"), 'condition "initial" is in "knots", the model is of "m s-1"'),
    "grid": (state().assign_coords(lat=LAT + 1), r'"lat" of condition "initial" .*41\.0 .. -19\.0, expected 40'),
    "size": (state().isel(lon=slice(3)), "lat=4, lon=3, expected lat=4, lon=6. Interpolate or select"),
    "times": (state().isel(time=[0, 0, 0]), r'3 points along "time", expected one slice. Select it first: .isel\(time'),
    "dim": (state().rename(lat="y"), "y=4, lon=6, expected dims lat, lon, and one more where each sample has its own"),
    "two dims": (state(2).expand_dims(run=2), "expected dims lat, lon, and one more"),
    "count": (state(3), 'has 3 states along "member" for 2 samples. Give one for all of them, or one each'),
    "text": (state().astype(str), "<U.* values, expected real numbers"),
    "name": (state().to_dataset(name="w"), r'the dataset has no variable "u" \(it has w\). Expected u'),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_gets_one_message(what: str) -> None:
    with pytest.raises(InputError, match=WRONG[what][1]):
        as_array(WRONG[what][0], expected("u"), 2)


def test_one_array_for_several_variables_is_refused() -> None:
    with pytest.raises(InputError, match=r"variables u, v; got one array of .*Give an xarray.Dataset with them"):
        as_array(state(), expected("u", "v"), 1)
    with pytest.raises(InputError, match="components u, w, expected u, v"):
        as_array(xr.concat([state(), state()], xr.Variable("component", ["u", "w"])), expected("u", "v"), 1)
    with pytest.raises(InputError, match=r"variables have shapes \[\(2, 4, 6\), \(4, 6\)\]"):
        as_array(xr.Dataset({"u": state(2), "v": state(1).isel(member=0)}), expected("u", "v"), 2)


# Ranges ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.floats(1e-6, 1e9), st.sampled_from([(30.0, 1000.0), (1.0, 1000.0), (5.0, 5.0)]))
def test_scalars_are_outside_exactly_where_they_leave_the_range(value: float, span: tuple[float, float]) -> None:
    layout = ConditionLayout.fit({"scalar_re": np.linspace(*span, 5)})
    excess = layout.beyond(layout.places({"scalar_re": np.array([value, *span])}))["scalar_re"]
    assert (excess[0] > 0) == (value < span[0] * (1 - 2e-6) or value > span[1] + 2e-6 * max(span)) or (
        abs(value - np.clip(value, *span)) < 1e-2 * value  # within rounding, of the logarithm, too
    )
    assert excess[1:].tolist() == [0, 0]


@pytest.mark.parametrize("component", [False, True])
def test_the_place_of_a_field_is_its_deviation_from_the_training_mean(component: bool) -> None:
    rng = np.random.default_rng(0)
    raw = 1e4 + rng.normal(size=(9, 2, 7)) * np.array([[1.0], [50.0]]) * rng.uniform(0.5, 2, (9, 1, 1))
    raw[:, :, 2] = np.nan
    parts = [{"initial": raw[:4]}, {"initial": raw[4:]}]
    layout = ConditionLayout.fit(parts, initial_dims=("component", "x") if component else ("y", "x"))
    axes = (0, 2) if component else (0, 1, 2)
    normal = (raw - np.nanmean(raw, axes, keepdims=True)) / np.nanstd(raw, axes, keepdims=True)
    places = np.sqrt(np.nan_to_num(normal**2).mean(axis=(1, 2)))
    np.testing.assert_allclose(layout.places({"initial": raw})["initial"], places, rtol=1e-6)
    np.testing.assert_allclose(layout.ranges["initial"], (0, places.max()), rtol=1e-6)
    assert not layout.beyond(layout.places({"initial": raw}))["initial"].any()
    assert layout.beyond(layout.places({"initial": 1e4 + 9 * (raw - 1e4)}))["initial"].all()
    assert ConditionLayout.from_dict(layout.to_dict()) == layout


def test_layouts_of_before_have_no_ranges_and_judge_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tree = ConditionLayout.fit({"scalar_re": np.array([1.0, 2.0])}).to_dict()
    del tree["ranges"]
    old = ConditionLayout.from_dict(tree)
    assert old.to_dict() == tree
    check_range(old, old.places({"scalar_re": np.array([1e9])}), 0.0)
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1e9], 'condition "re" is 1e+09, outside of the range of training, 30 to 130 (by 1e+07 of its width)'),
        ([50.0, 20.0], 'condition "re" of 1 of 2 samples is 20, outside of the range of training, 30 to 130 (by 0.1'),
        ([140.0, 150.0], 'condition "re" of 2 of 2 samples is up to 150, outside'),
        ([10.0, 20.0, 99.0], 'condition "re" of 2 of 3 samples is down to 10, outside'),
    ],
)
def test_a_warning_names_the_range(values: list[float], words: str, caplog: pytest.LogCaptureFixture) -> None:
    layout = ConditionLayout.fit({"scalar_re": np.array([30.0, 130.0])})
    places = layout.places({"scalar_re": np.array(values)})
    check_range(layout, places, None)
    (record,) = caplog.records
    assert words in record.getMessage()
    with pytest.raises(InputError, match=r"max_extrapolation is 0.05\). Give one that is nearer, or raise it"):
        check_range(layout, places, 0.05)


def test_slightly_outside_of_the_range_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    layout = ConditionLayout.fit({"scalar_re": np.array([30.0, 130.0])})
    with caplog.at_level("INFO"):
        check_range(layout, layout.places({"scalar_re": np.array([29.0, 100.0, 134.0])}), None)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "by 0.0" in record.getMessage()
    with pytest.raises(InputError, match="max_extrapolation is 0"):
        check_range(layout, layout.places({"scalar_re": np.array([134.0])}), 0.0)


def test_values_where_training_has_none_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    examples = np.ones((3, 4), "f4")
    examples[:, 0] = np.nan  # land
    examples[0, 1] = np.nan  # a gap
    masked = np.array([[np.nan, 1, 2, 3]], "f4")
    assert known_points("sst", masked, examples) is masked
    assert known_points("sst", np.array([[np.nan, np.nan, 2, 3]], "f4"), examples).dtype == "f4"
    assert not caplog.records
    np.testing.assert_array_equal(known_points("sst", np.array([[9, 1, 2, 3]], "f4"), examples), masked)
    assert 'condition "sst" has values at 1 of the 1 points that are missing in all of training' in caplog.text
    with pytest.raises(InputError, match="holds NaN or infinite values"):
        known_points("sst", np.array([[np.nan, 1, np.nan, 3]], "f4"), examples)


# Whole models ----------------------------------------------------------------------------------------------------


def ocean(folder: Path, kind: str) -> Recipe:
    """Two variables with land, from the last of their times, a forcing on the same grid and a number."""
    n, land = 24, np.zeros((4, 6), bool)
    land[0, :2] = True
    fields = {name: np.where(land, np.nan, 10 + waves(n, 4, 4, 6, seed=i)) for i, name in enumerate(("u", "v"))}
    dims = ("run", "t", "lat", "lon")
    ds = xr.Dataset(
        {name: (dims, values.astype("f4"), {"units": "m s-1"}) for name, values in fields.items()}
        | {
            "forcing": (("run", "lat", "lon"), np.where(land, np.nan, waves(n, 4, 6, seed=5)), {"units": "N m-2"}),
            "re": ("run", np.linspace(30, 1000, n)),
        },
        coords={"lat": LAT, "lon": LON},
    )
    ds.to_netcdf(folder / "ocean.nc")
    data = {
        "source": str(folder / "ocean.nc"),
        "variables": ["u", "v"],
        "modes": ["t", "lat", "lon"],
        "sample_dim": "run",
        "missing": "mask",
        "split": {"by": "coordinate", "coordinate": "re", "values": [ds.re.values[-1], *ds.re.values[8:11]]},
        "condition": {"initial": {"dim": "t", "index": -1}, "fields": ["forcing"], "scalars": ["re"]},
    }
    if kind == "mgp":
        primitive = {"kind": "mgp", "patch": {"lat": 2, "lon": 3}, "rank": 2}
        return small_recipe(folder / "root", data, primitive=primitive)
    return small_recipe(folder / "root", data, decompose={"ranks": {"t": 3, "lat": 3, "lon": 3}})


@pytest.fixture(scope="module", params=["tgp", "mgp"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = ocean(tmp_path_factory.mktemp("ocean"), request.param)
    run(made, MODEL)
    return made


@pytest.fixture
def model(recipe: Recipe) -> Bundle:
    return bundle.load(recipe.root, device="cpu")


@pytest.fixture
def source(recipe: Recipe) -> xr.Dataset:
    return xr.load_dataset(recipe.data.source)


def test_the_last_slice_is_the_given_one_and_others_get_their_shares(model: Bundle, source: xr.Dataset) -> None:
    case = source.isel(run=3)
    conditions = {"initial": case.isel(t=3), "forcing": case["forcing"], "re": float(case["re"])}
    imposed, free = (model.sample(2, conditions=conditions, impose=impose) for impose in (None, False))
    assert model.imposing is not None
    assert model.imposing.shares.shape == (2, 4)
    assert "initial_slice" not in free.attrs
    assert imposed.attrs["initial_slice"].startswith("t[3] is the given one (generated, it was ")
    for i, name in enumerate(("u", "v")):
        np.testing.assert_array_equal(imposed[name][0, 3], case[name][3])
        change = case[name][3] - free[name][:, 3]
        for t, share in enumerate(model.imposing.shares[i][:3]):
            np.testing.assert_allclose(imposed[name][:, t], free[name][:, t] + share * change, rtol=1e-4)


def test_forms_of_one_state_give_the_same_samples(model: Bundle, source: xr.Dataset) -> None:
    case = source.isel(run=[3, 5])
    rest = {"forcing": case["forcing"], "re": case["re"]}
    plain = np.stack([case[name].values[:, 3] for name in ("u", "v")], axis=1)
    drawn = model.sample(2, conditions={"initial": plain, **rest})
    kinds = (
        case.isel(t=[3]),
        case.isel(t=3).transpose("lon", "run", "lat").sortby("lat"),
        case[["v", "u"]].isel(t=3).to_dataarray("component").assign_attrs(units="m s-1"),
        drawn["condition_initial"],
    )
    for given_state in kinds:
        again = model.sample(2, conditions={"initial": given_state, **rest, "forcing": case["forcing"].T})
        xr.testing.assert_identical(again, drawn)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda ds: {"initial": ds.isel(run=0)}, 'has 4 points along "t", expected one slice'),
        (lambda ds: {"initial": ds["u"][0, 0]}, "has the variables u, v; got one array"),
        (lambda ds: {"forcing": ds["forcing"][:3]}, 'condition "forcing" has 3 states along "run" for 2 samples'),
        (lambda ds: {"forcing": ds["forcing"][0].assign_attrs(units="Pa")}, 'is in "Pa", the model is of "N m-2"'),
        (lambda ds: {"forcing": ds["forcing"][0].assign_coords(lon=LON - 180)}, '"lon" of condition "forcing"'),
    ],
)  # fmt: skip
def test_other_conditions_are_refused(model: Bundle, source: xr.Dataset, wrong: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        model.sample(2, conditions=wrong(source))


def test_what_training_has_not_seen_is_told(
    model: Bundle, source: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    seen = {"initial": source.isel(run=1, t=3), "forcing": source["forcing"][1], "re": 40.0 + 40}
    model.sample(1, conditions=seen)
    assert not caplog.records
    model.sample(1, conditions=seen | {"re": 1e9})
    model.sample(1, conditions=seen | {"initial": source.isel(run=1, t=3) * 30})
    model.sample(1, conditions=seen | {"forcing": source["forcing"][1].fillna(0.0)})
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3
    assert "is 1e+09, outside of the range of training, 30 to 957.826" in texts[0]
    assert 'condition "initial" deviates from the training mean by' in texts[1]
    assert 'condition "forcing" has values at 2 of the 2 points' in texts[2]
    with pytest.raises(InputError, match=r'"re" is 1100.*\(by 0.153 of its width; max_extrapolation is 0.1\)'):
        model.sample(1, conditions=seen | {"re": 1100.0}, max_extrapolation=0.1)
    with pytest.raises(InputError, match="max_extrapolation -1 is no number of 0 or more"):
        model.sample(1, max_extrapolation=-1)


def test_stored_samples_begin_with_what_is_given_and_their_conditions_are_judged(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    work = Workspace(recipe)
    version = generate.samples_version(work, train.require_bundle(work))
    assert version is not None
    ds = version.dataset().load()
    given_states = ds["condition_initial"].values.astype("f4")
    np.testing.assert_array_equal(np.stack([ds["u"][:, 3], ds["v"][:, 3]], axis=1), given_states)
    assert ds.attrs["initial_slice"].startswith("t[3] is the given one")
    with pytest.raises(InputError, match=r"of \d of 4 samples .*max_extrapolation is 0.01"):
        run(changed(recipe, generate={"max_extrapolation": 0.01}), ["generate"])  # though they are there
    assert run(changed(recipe, generate={"max_extrapolation": 0.5}), ["generate"])["generate"].skipped
    caplog.clear()
    caplog.set_level("INFO")  # it is outside by less than a twentieth
    run(changed(recipe, generate={"steps": 1}), ["generate"])
    told = [record.getMessage() for record in caplog.records if record.name == "diffats.given"]
    assert [text for text in told if 'condition "re" of 1 of 4 samples is 1000, outside of the range' in text]


def test_forecasts_are_imposed_too_and_nobody_has_to_guess_the_slice(recipe: Recipe) -> None:
    work = Workspace(recipe)
    model = train.require_bundle(work)
    found = evaluate.forecasts(work, model)
    for name in ("ensemble", "persistence"):
        ours = found[name] if name == "persistence" else found[name][:, 0]
        np.testing.assert_array_equal(ours[:, :, 3], found["truth"][:, :, 3])  # exactly: ties count as such
    decoded = evaluate.with_initial_slice(work, found["truth"] + np.float32(1), found["truth"])
    np.testing.assert_array_equal(decoded[:, :, 3], found["truth"][:, :, 3])
    np.testing.assert_array_equal(decoded[:, :, :3], found["truth"][:, :, :3] + np.float32(1))


def test_without_imposing_samples_are_stored_as_they_are_generated(recipe: Recipe) -> None:
    free = changed(recipe, generate={"impose": False})
    run(free, ["generate"])
    model = train.require_bundle(Workspace(free))
    version = generate.samples_version(Workspace(free), model)
    assert version is not None
    ds = version.dataset().load()
    assert "initial_slice" not in ds.attrs
    assert not np.allclose(ds["u"][:, 3], ds["condition_initial"][:, 0], equal_nan=True)


# Recipes ---------------------------------------------------------------------------------------------------------


def test_only_recipes_with_an_initial_state_impose_it_and_say_so() -> None:
    tree: dict[str, Any] = {
        "name": "a",
        "data": {"source": "x.zarr", "modes": ["t", "x"], "sample_dim": "run"},
        "decompose": {"ranks": {"t": 2, "x": 2}},
    }
    plain = parse_recipe(tree)
    assert not plain.imposes
    assert not {"impose", "max_extrapolation"} & portable(plain)["generate"].keys()  # it is what it was
    tree["data"]["condition"] = {"initial": {"dim": "t"}}
    assert parse_recipe(tree).imposes
    assert portable(parse_recipe(tree))["generate"]["impose"] is True
    tree["generate"] = {"impose": False}
    assert "impose" not in portable(parse_recipe(tree))["generate"]


def edited(model: Bundle, folder: Path, **changes: Any) -> Path:
    """A copy of a bundle with some keys changed, and those left out that are to be None."""
    shutil.copytree(model.directory, folder)
    description = {**json.loads((folder / "bundle.json").read_text()), **changes}
    del description["digest"]
    (folder / "bundle.json").write_text(
        bundle.as_stored({key: value for key, value in description.items() if value is not None})
    )
    return folder


def test_a_bundle_of_before_imposes_the_slice_alone(model: Bundle, source: xr.Dataset, tmp_path: Path) -> None:
    model = bundle.load(edited(model, tmp_path / "old", imposing=None, condition_units=None), device="cpu")
    assert model.imposing is not None
    assert model.imposing.shares.tolist() == [[0, 0, 0, 1]]
    case = source.isel(run=3)
    imposed, free = (model.sample(1, conditions={"initial": case.isel(t=3)}, impose=x) for x in (True, False))
    np.testing.assert_array_equal(imposed["u"][0, 3], case["u"][3])
    np.testing.assert_array_equal(imposed["u"][:, :3], free["u"][:, :3])


@pytest.mark.parametrize(
    "measured",
    [
        {"shares": [[0, 0, 0, 2.0]] * 2, "off": 0.1},
        {"shares": [[0, 0, 1.0]] * 2, "off": 0.1},
        {"shares": [[0, 0, 0, 1.0]] * 2, "off": "much"},
        {"off": 0.1},
    ],
)
def test_shares_that_do_not_fit_are_refused(model: Bundle, tmp_path: Path, measured: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=r"[Tt]rain again"):
        bundle.load(edited(model, tmp_path / "bundle", imposing=measured))


def test_a_unit_that_a_library_could_not_decode_is_the_model_s() -> None:
    state = xr.DataArray(np.zeros((3, 4)), dims=("y", "x"), attrs={"units": "\udcb0C"})  # Latin-1, as h5py hands it on
    expected = Expected("initial", {"y": 3, "x": 4}, {"u": "°C"}, xr.Dataset(), gone="time")
    assert as_array(state, expected, 2).shape == (3, 4)
