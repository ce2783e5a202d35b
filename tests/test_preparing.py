"""How fields are prepared: bounds, types, transforms, centres and scales by dims, climatologies."""

from __future__ import annotations

import json
import logging
from datetime import date
from pathlib import Path
from typing import Any, get_args

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_runs import MODEL, changed, run, small_recipe, waves

import diffats
from diffats import bundle, config
from diffats.config import parse_recipe, portable
from diffats.errors import InputError, RecipeError, SourceError
from diffats.imposing import Imposing
from diffats.primitives import (
    TRANSFORMS,
    CyclicMoments,
    FieldMoments,
    FieldScaling,
    Moments,
    Values,
    outside_domain,
    transformed,
)
from diffats.primitives.climatology import harmonics
from diffats.sources.clock import Clock, counted
from diffats.stages import Workspace, generate, pilot, train

KEPT = st.one_of(st.sampled_from(["none", "variable", "point"]), st.lists(st.sampled_from([1, 2]), unique=True))

# Values that can be -------------------------------------------------------------------------------------------------

REAL = hnp.arrays(np.float64, 7, elements=st.floats(-1e30, 1e30))


@given(
    REAL, st.floats(-100, 0), st.floats(1, 100), st.sampled_from([None, "uint8", "int16", "int64", "uint64", "bool"])
)
def test_the_nearest_value_is_possible_and_none_is_nearer(x, low, high, whole) -> None:
    values = Values(low, high, None if whole is None else np.dtype(whole))
    near = values.nearest(x)
    assert ((near >= low) & (near <= high)).all()
    if whole is not None:
        candidates = np.arange(np.ceil(low), np.floor(high) + 1)
        candidates = candidates[candidates >= 0] if whole[0] in "ub" else candidates
        candidates = candidates[candidates <= 1] if whole == "bool" else candidates
        nearest = np.abs(x[:, None] - candidates).min(axis=1)
        np.testing.assert_allclose(np.abs(x - near), nearest, rtol=1e-12)
        np.testing.assert_array_equal(values.typed(x).astype(float), near)
    np.testing.assert_array_equal(values.nearest(near), near)


@pytest.mark.parametrize("whole", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "bool"])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_the_ends_of_a_type_do_not_wrap(whole: str, real: type) -> None:
    typed = Values(whole=np.dtype(whole)).typed(np.array([-np.inf, np.inf, np.nan, -1e30, 1e30], real))
    assert typed.dtype == whole
    assert (typed[1], typed[2]) == (typed.max(), 0)
    assert typed[0] == typed[3] == typed.min() <= 0
    limit = 1 if whole == "bool" else np.iinfo(whole).max
    assert int(typed[4]) >= limit * (1 - 1e-6)


def pictures(folder: Path, **data: Any) -> Any:
    """A recipe of bright little pictures of one byte a pixel."""
    path = folder / "pictures.nc"
    if not path.exists():
        x = np.clip(128 + 140 * waves(24, 8, 6), 0, 255).astype("u1")
        xr.Dataset({"light": (("n", "y", "x"), x, {"units": "1"})}).to_netcdf(path)
    section = {"source": str(path), "modes": ["y", "x"], "sample_dim": "n", **data}
    return small_recipe(folder / "root", section, decompose={"ranks": {"y": 3, "x": 3}})


def test_whole_numbers_come_back_as_what_they_were(tmp_path: Path) -> None:
    recipe = pictures(tmp_path)
    run(recipe)
    model, source = diffats.load(recipe.root), xr.open_dataset(tmp_path / "pictures.nc")
    drawn = model.sample(3)
    assert drawn["light"].dtype == np.uint8
    assert generate.samples_version(Workspace(recipe), model).dataset()["light"].dtype == np.uint8  # type: ignore[union-attr]
    decoded = model.decode(model.encode(source))["light"]
    assert decoded.dtype == np.uint8
    again = model.decode(model.encode(decoded.to_dataset()))["light"]
    assert np.abs(decoded.values.astype(int) - source["light"].values).mean() < 40
    assert np.abs(again.values.astype(int) - decoded.values).max() < 60
    (tmp_path / "drawn.nc").unlink(missing_ok=True)
    drawn.to_netcdf(tmp_path / "drawn.nc")
    assert xr.open_dataset(tmp_path / "drawn.nc")["light"].dtype == np.uint8


def test_bounds_are_kept_in_what_is_generated_and_change_nothing_before(tmp_path: Path) -> None:
    plain = pictures(tmp_path)
    run(plain, MODEL)
    bounded = changed(plain, data={"bounds": {"light": [100, "inf"]}})
    results = run(bounded, MODEL)
    assert [name for name, result in results.items() if not result.skipped] == ["generate"]
    work = Workspace(bounded)
    stored = generate.samples_version(work, train.require_bundle(work)).dataset()["light"]  # type: ignore[union-attr]
    before = generate.samples_version(Workspace(plain), train.require_bundle(work)).dataset()["light"]  # type: ignore[union-attr]
    np.testing.assert_array_equal(stored, np.maximum(before, 100))
    assert diffats.load(plain.root).sample(4)["light"].min() >= 100
    run(changed(plain, generate={"count": 3}), ["generate"])
    assert diffats.load(plain.root).sample(4)["light"].min() < 100  # as the recipe that asked last says


def test_bounds_that_the_data_do_not_keep_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = pictures(tmp_path, bounds={"light": [10, "inf"]})
    with caplog.at_level(logging.WARNING):
        pilot.pilot(Workspace(recipe))
    assert "of the pilot's values are outside (0 to 255)" in caplog.text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"bounds": {"light": [2, 1]}}, r'bounds \[2, 1\] of "light" hold no number'),
        ({"bounds": {"light": ["nan", 1]}}, "hold no number"),
        ({"bounds": {"light": [1]}}, r'"data.bounds.light.1"'),
        ({"scale": {"by": ["level"]}}, r'data.scale.by names "level", which is no mode \(y, x\)'),
        ({"transform": {"light": "tanh"}}, '"data.transform.light": expected "log", "log1p"'),
        ({"center": {"by": ["x", "x"]}}, "names a mode twice"),
        ({"center": {"by": []}}, '"data.center.by": expected at least one entry'),
        ({"center": {"of": ["x"]}}, 'unknown key "data.center.of". The nearest known key is "data.center.by"'),
        ({"scale": {"by": "time.hour"}}, "only data.center can be by the phase"),
        ({"center": {"by": ["y", "time.hour"]}}, "only data.center can be by the phase"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        pictures(tmp_path, **data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"bounds": {"lihgt": [0, 1]}}, 'data.bounds.*"lihgt".*light'),
        ({"bounds": {"light": [0.2, 0.8]}}, r"data.bounds \[0.2, 0.8\] of .light. hold no number of its type, uint8"),
        ({"bounds": {"light": [300, 400]}}, "hold no number of its type"),
    ],
)
def test_what_does_not_fit_the_source_is_told(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        Workspace(pictures(tmp_path, **data)).samples  # noqa: B018


# Transforms ---------------------------------------------------------------------------------------------------------

PLAIN = {"log": np.log, "log1p": np.log1p, "sqrt": np.sqrt, "cbrt": np.cbrt, "asinh": np.arcsinh, "": np.positive}
RANKS = {"time": 3, "x": 3}
POSITIVE = ("log", "log1p", "sqrt")


def test_the_transforms_that_recipes_accept_are_those_there_are() -> None:
    assert (*TRANSFORMS,) == get_args(config.Transform)


@given(
    st.data(), st.lists(st.sampled_from([*PLAIN]), min_size=1, max_size=3), st.sampled_from([np.float32, np.float64])
)
def test_transforms_are_their_functions_and_undone(data: st.DataObject, names: list[str], real: type) -> None:
    shape = (2, len(names), 3) if len(names) > 1 else (2, 3)
    x = data.draw(hnp.arrays(real, shape, elements=st.floats(0, 1e6, width=32))) + real(1e-6)
    for i, name in enumerate(names):
        x[:, i] = x[:, i] * (1 if name in POSITIVE else -1) if len(names) > 1 else x[:, i]
    out, given = transformed(x, names), x.copy()
    for i, name in enumerate(names):
        part = (slice(None), i) if len(names) > 1 else slice(None)
        np.testing.assert_allclose(out[part], PLAIN[name](x[part].astype(float)), rtol=1e-5, atol=1e-6)
    assert out.dtype == real
    np.testing.assert_array_equal(x, given)
    assert outside_domain(x, names, names) is None
    back = transformed(out, names, inverse=True)
    np.testing.assert_allclose(back, x, rtol=100 * np.finfo(real).eps * 14, atol=100 * np.finfo(real).eps)


@pytest.mark.parametrize("name", list(TRANSFORMS))
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_what_any_number_becomes_can_be_encoded_again(name: str, real: type) -> None:
    y = np.array([[-1e4, -800.0, -90.0, -1.0, 0.0, 1.0, 80.0]], real)
    x = transformed(y, [name], inverse=True)
    assert (np.diff(x[np.isfinite(x)]) >= 0).all()
    again = transformed(x, [name])
    assert np.isfinite(again[np.isfinite(x)]).all()


@given(st.integers(0, 99), KEPT, KEPT.filter(lambda kept: kept != "point"), st.permutations(range(4)))
def test_statistics_of_transformed_fields_merge_in_any_order(seed, center, scale, order) -> None:
    x = np.random.default_rng(seed).gamma(0.5, size=(9, 2, 3, 4)) + 0.1
    names, whole, once = ("log1p", ""), FieldMoments(("log1p", "")), FieldMoments(("log1p", ""))
    once.add(x)
    for part in order:
        moments = FieldMoments(names)
        moments.add(np.array_split(x, 4)[part])
        whole.merge(moments)
    scaling, expected = (FieldScaling.of_fields(m, center, scale, component=True) for m in (whole, once))
    np.testing.assert_allclose(whole.raw.mean, x.mean(axis=0))
    for key, value in scaling.to_arrays().items():
        np.testing.assert_allclose(value, expected.to_arrays()[key], rtol=1e-9, atol=1e-12)
    plain = Moments()
    plain.add(np.stack([np.log1p(x[:, 0]), x[:, 1]], axis=1))
    by_hand = FieldScaling.fit(plain, center, scale, component=True)
    np.testing.assert_allclose(scaling.apply(x)[:, 1], by_hand.apply(x)[:, 1], atol=1e-9)
    np.testing.assert_allclose(scaling.apply(x)[:, 0], by_hand.apply(np.log1p(x))[:, 0], atol=1e-9)
    again = FieldScaling.from_arrays(scaling.to_arrays())
    np.testing.assert_allclose(again.undo(again.apply(x)), x, rtol=1e-9)


def weather(folder: Path, kind: str = "tgp", **data: Any) -> Any:
    """A recipe of temperature and, much more skewed, rain."""
    path = folder / "weather.nc"
    if not path.exists():
        t, rain = 280 + waves(30, 6, 8, seed=1), np.exp(2 * waves(30, 6, 8, seed=2)).astype("f4")
        dims = ("n", "y", "x")
        variables = {"t": (dims, t, {"units": "K"}), "rain": (dims, rain, {"units": "mm"})}
        xr.Dataset(variables).to_netcdf(path)
    section = {"source": str(path), "variables": ["t", "rain"], "modes": ["y", "x"], "sample_dim": "n", **data}
    tensor = {"decompose": {"ranks": {"y": 5, "x": 6}}, "align": {"modes": ["y", "x"]}}
    matrix = {"primitive": {"kind": "mgp", "patch": {"y": 3, "x": 4}, "rank": 4}}
    return small_recipe(folder / "root", section, **(matrix if kind == "mgp" else tensor))


@pytest.mark.parametrize("kind", ["tgp", "mgp"])
def test_a_transformed_variable_is_shown_and_measured_in_physical_units(tmp_path: Path, kind: str) -> None:
    recipe = weather(tmp_path, kind, transform={"rain": "log"}, bounds={"rain": [0, "inf"]})
    results = run(recipe)
    model, source = diffats.load(recipe.root), xr.open_dataset(tmp_path / "weather.nc")
    x = np.stack([source["t"].values, source["rain"].values], axis=1)
    back = model.decode(model.encode(source))
    decoded = np.stack([back["t"].values, back["rain"].values], axis=1)
    np.testing.assert_allclose(decoded[:, 1], x[:, 1], rtol=1)
    work = Workspace(recipe)
    stored = train.decompose.tucker_version(work).dataset()  # type: ignore[union-attr]
    mean = x[~work.samples.is_test].mean(axis=0)
    axes = (1, 2, 3)
    lost = ((x - decoded) ** 2).sum(axis=axes)
    np.testing.assert_allclose(stored["relative_error"], np.sqrt(lost / (x**2).sum(axis=axes)), rtol=2e-2, atol=1e-6)
    np.testing.assert_allclose(
        stored["anomaly_error"], np.sqrt(lost / ((x - mean) ** 2).sum(axis=axes)), rtol=2e-2, atol=1e-6
    )
    assert model.sample(4)["rain"].min() > 0
    spread = x[~work.samples.is_test].std(axis=(0, 2, 3))
    np.testing.assert_allclose(model.scaling.unit.ravel(), spread, rtol=1e-3)
    assert results["evaluate"].facts["metrics"]["energy_distance"]["value"] is not None
    page = Path(run(recipe, ["report"])["report"].location).read_text()
    assert "rain as log" in page


@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_numbers_outside_a_domain_are_told(tmp_path: Path, name: str) -> None:
    recipe = weather(tmp_path, transform={"t": name})
    wrong = xr.load_dataset(tmp_path / "weather.nc")
    wrong["t"][7, 2, 3] = -3.5
    wrong.to_netcdf(tmp_path / "wrong.nc")
    bad = changed(recipe, data={"source": str(tmp_path / "wrong.nc")})
    words = f'sample 7: data.transform cannot be done: "t" is -3.5 there, and transform "{name}" takes.*Use "asinh"'
    for attempt in (lambda: run(bad, ["decompose"]), lambda: pilot.pilot(Workspace(bad))):
        with pytest.raises(SourceError, match=words):
            attempt()
    run(recipe, MODEL)
    with pytest.raises(InputError, match=r'sample 7 cannot be encoded: "t" is -3\.5 there'):
        diffats.load(recipe.root).encode(wrong)


# Centres and scales by dims -----------------------------------------------------------------------------------------


def plain_average(x: np.ndarray, kept: Any) -> np.ndarray:
    """Over samples ``(k, variable, level, x)`` and points but those along the kept axes."""
    axes = (0, 2, 3) if kept == "variable" else tuple(axis for axis in (0, 2, 3) if axis - 1 not in kept)
    count = np.maximum((~np.isnan(x)).sum(axis=axes, keepdims=True), 1)
    return (np.nansum(x, axis=axes, keepdims=True) / count)[0]


@given(st.integers(0, 99), KEPT, KEPT.filter(lambda kept: kept != "point"), st.booleans(), st.permutations(range(4)))
def test_centres_and_scales_are_those_of_plain_arithmetic_and_undone(seed, center, scale, masked, order) -> None:
    rng = np.random.default_rng(seed)
    x = 3 + rng.normal(size=(9, 2, 3, 4)) * np.array([1, 10, 100])[:, None]
    x[:, 0, 1, 1:3] = np.nan if masked else 0
    whole = Moments()
    for part in order:
        moments = Moments()
        moments.add(np.array_split(x, 4)[part])
        whole.merge(moments)
    scaling = FieldScaling.fit(whole, center, scale, component=True)
    kept = {"point": [0, 1, 2]}.get(center, center) if isinstance(center, str) else center
    mean = np.zeros((1, 1, 1)) if kept == "none" else plain_average(x, kept)
    about = plain_average(x, scale if scale != "none" else "variable") if kept == "none" else mean
    spread = np.sqrt(plain_average((x - about) ** 2, scale)) if scale != "none" else np.ones((1, 1, 1))
    scaled = np.nan_to_num((x - mean) / np.where(spread > 0, spread, 1))
    np.testing.assert_allclose(scaling.apply(x), scaled, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(scaling.undo(scaling.apply(x)), x, rtol=1e-10, atol=1e-10)
    again = FieldScaling.from_arrays(scaling.to_arrays())
    np.testing.assert_array_equal(again.apply(x), scaling.apply(x))


def ocean(folder: Path, **data: Any) -> Any:
    """A recipe of temperature at levels that vary less the deeper they are, with land."""
    path = folder / "ocean.nc"
    if not path.exists():
        x = 10 + waves(40, 3, 5, 6) * np.array([3.0, 1.0, 0.2])[:, None, None]
        x[:, 1:, :2, :2] = np.nan
        depth = ("level", [5.0, 100.0, 400.0], {"units": "m"})
        xr.Dataset({"t": (("n", "level", "y", "x"), x, {"units": "K"})}, {"level": depth}).to_netcdf(path)
    section = {"source": str(path), "modes": ["level", "y", "x"], "sample_dim": "n", "missing": "mask", **data}
    return small_recipe(folder / "root", section, decompose={"ranks": {"y": 3, "x": 3}})


def test_a_scale_by_level_goes_through_and_travels(tmp_path: Path) -> None:
    recipe = ocean(tmp_path, scale={"by": "level"}, center={"by": ["level", "x"]})
    assert all(np.isfinite(row["value"]) for row in run(recipe)["evaluate"].facts["metrics"].values())
    model, source = diffats.load(recipe.root), xr.open_dataset(tmp_path / "ocean.nc")
    assert model.scaling.scale.shape == (3, 1, 1)
    assert model.scaling.mean.shape == (3, 1, 6)
    train = ~Workspace(recipe).samples.is_test
    scaled = model.scaling.apply(source["t"].values[train])
    points = train.sum() * (~model.scaling.mask).sum(axis=(1, 2))
    np.testing.assert_allclose((scaled**2).sum(axis=(0, 2, 3)) / points, 1)
    error = np.nanmean(np.abs(model.decode(model.encode(source))["t"].values - source["t"].values), axis=(0, 2, 3))
    assert error[2] < 0.2 * error[0]
    assert json.loads((model.directory / "bundle.json").read_text())["format"] == bundle.FORMAT


# Phases of times ----------------------------------------------------------------------------------------------------


@given(st.dates(date(1800, 1, 1), date(2200, 1, 1)), st.integers(0, 23))
def test_phases_are_those_of_the_calendar(day: date, hour: int) -> None:
    time = np.array([f"{day}T{hour:02}"], "M8[h]")
    start = np.datetime64(f"{day.year}-01-01", "h")
    year = np.datetime64(f"{day.year + 1}-01-01", "h") - start
    assert Clock("t.dayofyear").phases(time)[0] == (time[0] - start) / year
    assert Clock("t.hour").phases(time)[0] == hour / 24
    assert Clock("t.month").phases(time)[0] == (day.month - 1) / 12
    same = cftime.DatetimeProlepticGregorian(day.year, day.month, day.day, hour)
    for part in config.PHASES:
        clock = Clock(f"t.{part}")
        np.testing.assert_allclose(clock.phases(np.array([same], object)), clock.phases(time), atol=1e-12)
        assert counted(np.asarray(time), clock.name, clock.cycle) == clock.count(time)


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "all_leap", "standard", "julian"])
def test_days_are_counted_as_in_their_calendar(calendar: str) -> None:
    times = xr.date_range("2001-01-01", periods=360, freq="D", calendar=calendar, use_cftime=True)
    clock = Clock("time.dayofyear", calendar)
    np.testing.assert_allclose(clock.count(times.values), times.dayofyear, atol=1e-9)
    assert 0 <= clock.phases(times.values).min() <= clock.phases(times.values).max() < 1


def seasons(folder: Path, calendar: str = "noleap", years: int = 6, **data: Any) -> Any:
    """A recipe of windows of a series with a strong year, as monthly steps of a fifth of a month each."""
    path = folder / "seasons.nc"
    if not path.exists():
        start = {"calendar": calendar, "use_cftime": calendar != "standard"}
        time = xr.date_range("2001-01-01", periods=72 * years, freq="5D", **start)
        phase = Clock("time.dayofyear").phases(time.values)
        year = 280 + 9 * np.cos(2 * np.pi * (phase - 0.05))[:, None, None] * np.linspace(-1, 1, 5)[:, None]
        field = year + waves(1, len(time), 5, 6)[0]
        dims = ("time", "y", "x")
        ds = xr.Dataset({"t": (dims, field.astype("f4"), {"units": "K"})}, {"time": time})
        ds.to_netcdf(path)
    section = {"source": str(path), "modes": ["time", "y", "x"], "windows": {"size": {"time": 6}}, **data}
    ranks = {"time": 4, "y": 4, "x": 4}
    return small_recipe(folder / "root", section, decompose={"ranks": ranks})


def test_time_is_a_condition_that_comes_back(tmp_path: Path) -> None:
    recipe = seasons(tmp_path, condition={"scalars": ["time.dayofyear", "time.hour"]})
    run(recipe)
    model = diffats.load(recipe.root)
    work = Workspace(recipe)
    starts = work.samples.sample_coords(np.arange(work.samples.n))["time_origin"]
    stored = train.align.primitives_version(work).dataset()  # type: ignore[union-attr]
    first = stored["condition_scalar_time.dayofyear"].values
    np.testing.assert_allclose(first, [time.dayofyr for time in starts.values], atol=1e-9)
    assert model.conditions.cycles == {"time.dayofyear": (1, 365), "time.hour": (0, 24)}
    normal = model.conditions.normalise({f"scalar_{n}": np.array([1.0, 366.0]) for n in model.conditions.cycles})
    np.testing.assert_allclose(normal["scalar_time.dayofyear"][0], normal["scalar_time.dayofyear"][1], atol=1e-6)
    drawn = [
        model.sample(2, conditions={"time.dayofyear": given})
        for given in (
            200,
            "2001-07-19",
            np.datetime64("2003-07-19"),
            cftime.DatetimeNoLeap(2001, 7, 19),
            date(2001, 7, 19),
        )
    ]
    for other in drawn[1:]:
        np.testing.assert_allclose(other["condition_time.dayofyear"], 200)
        np.testing.assert_allclose(other["t"], drawn[0]["t"], rtol=1e-6)
    assert not np.allclose(drawn[0]["t"], model.sample(2, conditions={"time.dayofyear": 20})["t"])
    drawn[0].to_netcdf(tmp_path / "drawn.nc")
    assert json.loads((model.directory / "bundle.json").read_text())["format"] == bundle.FORMAT
    with pytest.raises(InputError, match=r"time\.dayofyear.*no number"):
        model.sample(1, conditions={"time.dayofyear": "in summer"})
    assert pilot.times(work, {"time": 4, "y": 4, "x": 4})["seconds_per_step"] > 0


@pytest.mark.parametrize(
    ("scalars", "words"),
    [
        (["tim.hour"], 'data.condition.scalars names "tim".*Did you mean "time"'),
        (["y.hour"], '"y" is float64 and holds no times'),
    ],
)
def test_times_that_are_none_are_told(tmp_path: Path, scalars: list[str], words: str) -> None:
    recipe = seasons(tmp_path, condition={"scalars": scalars})
    source = xr.load_dataset(tmp_path / "seasons.nc", decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    source.assign_coords(y=np.arange(5.0)).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(SourceError, match=words):
        Workspace(changed(recipe, data={"source": str(tmp_path / "other.nc")})).samples  # noqa: B018


def test_a_time_that_all_samples_share_is_no_condition(tmp_path: Path) -> None:
    time = xr.date_range("2001-01-01", periods=6, freq="MS")
    xr.Dataset({"u": (("n", "time", "x"), waves(20, 6, 8))}, {"time": time}).to_netcdf(tmp_path / "u.nc")
    data = {"source": str(tmp_path / "u.nc"), "modes": ["time", "x"], "sample_dim": "n"}
    recipe = small_recipe(tmp_path / "r", data | {"condition": {"scalars": ["time.month"]}}, decompose={"ranks": RANKS})
    with pytest.raises(SourceError, match=r'"time\.month" is the same for all samples'):
        Workspace(recipe).samples  # noqa: B018


# Climatologies ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(1, 2), st.sampled_from([None, 0, 1]), st.permutations(range(3)), st.booleans())
def test_a_climatology_is_the_least_squares_fit_in_any_order(seed, cycles, axis, order, few) -> None:
    rng = np.random.default_rng(seed)
    x = 1e3 + rng.normal(size=(30, 3, 4))
    points = 1 if axis is None else x.shape[1 + axis]
    phases = rng.integers(0, 4, (30, points, cycles)) / 4 if few else rng.random((30, points, cycles))
    whole = FieldMoments((), CyclicMoments(axis))
    for part in order:
        moments = FieldMoments((), CyclicMoments(axis))
        moments.add(np.array_split(x, 3)[part], np.array_split(phases, 3)[part])
        whole.merge(moments)
    rows = x if axis is None else np.moveaxis(x, 1 + axis, 1).reshape(30 * points, -1)
    design = np.concatenate([np.ones((30, points, 1)), harmonics(phases)], axis=-1).reshape(len(rows), -1)
    by_hand = design @ np.linalg.lstsq(design, rows.reshape(len(rows), -1), rcond=1e-10)[0]
    left, climatology = whole.cyclic.fit()
    fitted = left.mean + climatology.at(phases)
    shown = fitted if axis is None else np.moveaxis(fitted, 1 + axis, 1)
    np.testing.assert_allclose(shown.reshape(len(rows), -1), by_hand, rtol=0, atol=1e-6)
    spread = np.sqrt(((rows.reshape(len(rows), -1) - by_hand) ** 2).mean())
    scaling = FieldScaling.of_fields(whole, "point", "variable")
    np.testing.assert_allclose(scaling.scale.ravel(), spread, rtol=1e-6)
    again = FieldScaling.from_arrays(scaling.to_arrays())
    np.testing.assert_allclose(again.undo(again.apply(x, phases), phases), x, rtol=1e-12)
    np.testing.assert_array_equal(again.apply(x, phases), scaling.apply(x, phases))


@pytest.mark.parametrize("calendar", ["noleap", "standard"])
def test_what_a_climatology_takes_away_comes_back(tmp_path: Path, calendar: str) -> None:
    center = {"by": "time.dayofyear"}
    recipe = seasons(tmp_path, calendar, center=center, condition={"scalars": ["time.dayofyear"]})
    results = run(recipe, (*MODEL, "evaluate", "report"))
    model, work = diffats.load(recipe.root), Workspace(recipe)
    stored = train.align.primitives_version(work).dataset().load()  # type: ignore[union-attr]
    samples = np.arange(work.samples.n)
    x = work.samples.read(samples)
    coords = work.samples.sample_coords(samples)
    dims = ("sample", "time", "y", "x")
    offsets = model.template.coords["time"].variable
    fields = xr.Dataset({"t": (dims, x, {"units": "K"})}, {"time": offsets, "time_origin": coords["time_origin"]})
    encoded = model.encode(fields)
    np.testing.assert_allclose(encoded["time_dayofyear"], stored["condition_phase_time.dayofyear"], atol=1e-6)
    for primitives in (encoded, stored):
        decoded = model.decode(primitives)
        np.testing.assert_allclose(decoded["t"], x, atol=0.5)
        assert decoded["time_dayofyear"].dims == ("sample", "time")
        again = model.encode(decoded)  # its phases are known by now, and no dates are needed
        np.testing.assert_allclose(model.decode(again)["t"], decoded["t"], atol=1e-3)
    one = xr.open_dataset(
        tmp_path / "seasons.nc", decode_times=xr.coders.CFDatetimeCoder(use_cftime=calendar != "standard")
    )
    alone = model.decode(model.encode(one.isel(time=slice(0, 6))))
    np.testing.assert_allclose(alone["t"][0], one["t"][:6], atol=0.5)
    # the year is gone from what the model sees, and is in what it generates
    scaled = model.scaling.apply(x, work.samples.climatology_phases(samples))
    assert np.abs(np.corrcoef(scaled[:, 0, 0, 0], np.cos(2 * np.pi * coords_phase(work)))[0, 1]) < 0.2
    assert model.scaling.scale.max() < 4
    winter, summer = (
        model.sample(16, conditions={"time.dayofyear": day})["t"].mean(["sample", "x"]) for day in (18, 200)
    )
    assert float((winter - summer)[0, -1]) > 9
    assert float((winter - summer)[0, 0]) < -9
    assert results["evaluate"].facts["metrics"]["crps"]["value"] is not None
    page = Path(results["report"].location).read_text(encoding="utf-8")
    assert "centred by the climatology (4 harmonics) of time.dayofyear" in page
    with pytest.raises(InputError, match='says no times: it has neither "time_dayofyear" nor dates "time"'):
        model.encode(fields.drop_vars("time_origin"))


def coords_phase(work: Workspace) -> np.ndarray:
    return work.samples.phases("time.dayofyear", np.arange(work.samples.n))[:, 0]


def test_generated_samples_without_conditions_have_the_times_of_training_samples(tmp_path: Path) -> None:
    recipe = seasons(tmp_path, center={"by": ["time.dayofyear", "time.hour"]})
    run(recipe, MODEL)
    model, work = diffats.load(recipe.root), Workspace(recipe)
    drawn = model.sample(5, seed=1)
    known = work.samples.conditions(np.arange(work.samples.n), work.samples.read(np.arange(work.samples.n)))
    train_rows = known["phase_time.dayofyear"][~work.samples.is_test].round(6)
    assert all(row.round(6).tolist() in train_rows.tolist() for row in drawn["time_dayofyear"].values)
    moved = model.sample(5, seed=1, conditions={"time.dayofyear": "2001-07-01"})
    np.testing.assert_allclose(moved["time_dayofyear"][:, 0], 182)
    np.testing.assert_allclose(moved["time_dayofyear"].diff("time"), 5, atol=1e-6)
    np.testing.assert_array_equal(moved["time_hour"], drawn["time_hour"])
    stored = generate.samples_version(work, train.require_bundle(work)).dataset()  # type: ignore[union-attr]
    assert stored["time_dayofyear"].shape == (6, 6)
    assert not (stored["time_dayofyear"].values == 0).any()
    assert {result.skipped for result in run(recipe, MODEL).values()} == {True}
    pilot.pilot(work)


def test_samples_that_are_instants_have_one_time_each(tmp_path: Path) -> None:
    """With land, two variables, one of them transformed, and a scale by row."""
    time = xr.date_range("2001-01-01", periods=300, freq="5D")
    year = np.cos(2 * np.pi * Clock("time.dayofyear").phases(time.values))[:, None, None]
    t, rain = 9 * year + waves(300, 5, 6), np.exp(year + 0.3 * waves(300, 5, 6, seed=3))
    t[:, :2, :2] = rain[:, :2, :2] = np.nan
    dims = ("time", "y", "x")
    xr.Dataset({"t": (dims, t), "rain": (dims, rain)}, {"time": time}).to_netcdf(tmp_path / "days.nc")
    options = {"center": {"by": "time.month"}, "scale": {"by": "y"}, "transform": {"rain": "log"}, "missing": "mask"}
    data = {"source": str(tmp_path / "days.nc"), "variables": ["t", "rain"], "modes": ["y", "x"], "sample_dim": "time"}
    sections = {"decompose": {"ranks": {"y": 5, "x": 6}}, "align": {"modes": ["y", "x"]}}
    recipe = small_recipe(tmp_path / "root", data | options | {"bounds": {"rain": [0, "inf"]}}, **sections)
    run(recipe)
    model, source = diffats.load(recipe.root), xr.open_dataset(tmp_path / "days.nc")
    assert model.time_mode is None
    decoded = model.decode(model.encode(source))
    np.testing.assert_allclose(decoded["t"], source["t"], atol=1e-2)
    np.testing.assert_allclose(decoded["rain"], source["rain"], rtol=1e-3)
    assert decoded["time_month"].dims == ("sample",)
    np.testing.assert_allclose(decoded["time_month"], source["time"].dt.month)
    assert model.sample(3)["time_month"].shape == (3,)


def test_a_part_of_the_year_that_training_never_sees_is_refused(tmp_path: Path) -> None:
    split = {"by": "coordinate", "coordinate": "time", "test": 0.5}
    seasons(tmp_path, years=1)
    with pytest.raises(SourceError, match="of a cycle from any time in the training samples"):
        Workspace(seasons(tmp_path, center={"by": "time.dayofyear"}, split=split)).samples  # noqa: B018


def test_a_climatology_of_a_source_that_grows_stays(tmp_path: Path) -> None:
    recipe = seasons(tmp_path, center={"by": "time.dayofyear"}, grows=True)
    source = xr.load_dataset(tmp_path / "seasons.nc", decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    first = None
    for name, stop in (("a", 200), ("b", 432)):
        part = source.isel(time=slice(0 if name == "a" else 200, stop))
        part.to_netcdf(tmp_path / f"part_{name}.nc")
        recipe = changed(recipe, data={"source": str(tmp_path / "part_*.nc")}, drift={"action": "warn"})
        run(recipe, ("decompose", "select_anchor", "align", "fit_normalisation"))
        work = Workspace(recipe)
        snapshot = train.decompose.scaling_version(work).snapshot
        assert name == "a" or snapshot == first
        first = snapshot
    stored = train.align.primitives_version(work).dataset()  # type: ignore[union-attr]
    found = work.samples.conditions(np.arange(work.samples.n), work.samples.read(np.arange(work.samples.n)))
    np.testing.assert_allclose(stored["condition_phase_time.dayofyear"], found["phase_time.dayofyear"])


# Identities ---------------------------------------------------------------------------------------------------------


def test_recipes_without_these_options_are_stored_as_before(tmp_path: Path) -> None:
    recipe = pictures(tmp_path)
    stored = portable(recipe)["data"]
    assert not {"bounds", "transform"} & stored.keys()
    assert (stored["center"], stored["scale"]) == ("variable", "variable")
    bounded = portable(changed(recipe, data={"bounds": {"light": [0, "inf"]}}))
    assert json.loads(json.dumps(bounded, allow_nan=False))["data"]["bounds"] == {"light": [0.0, "inf"]}
    assert parse_recipe({**bounded, "root": ""}).data.bounds == {"light": (0, np.inf)}


def test_an_imposed_state_leaves_no_value_that_the_transform_excludes(tmp_path: Path) -> None:
    field = np.exp(2 * waves(24, 6, 8)).astype("f4")
    source = xr.Dataset({"u": (("run", "t", "x"), field)})
    source.to_netcdf(tmp_path / "u.nc", engine="h5netcdf")
    data = {"source": str(tmp_path / "u.nc"), "variables": ["u"], "modes": ["t", "x"], "sample_dim": "run"}
    data |= {"condition": {"initial": {"dim": "t"}}, "transform": {"u": "log"}}
    recipe = small_recipe(tmp_path / "root", data, decompose={"ranks": {"t": 3, "x": 3}})
    run(recipe, MODEL)
    model = diffats.load(recipe.root)
    # corrections of the field itself by these would lead below zero
    model.imposing = Imposing(1, 0, np.ones((1, 6)))
    given = source["u"].isel(run=3, t=0)
    sample = model.sample(20, seed=1, conditions={"initial": given / 50})
    np.testing.assert_array_equal(sample["u"].isel(t=0), np.broadcast_to(given / 50, (20, 8)))
    assert float(sample["u"].min()) > 0
    model.encode(sample)


def test_the_pilot_and_the_tolerance_mean_one_error_of_a_climatology_too(tmp_path: Path) -> None:
    recipe = seasons(tmp_path, center={"by": "time.dayofyear"})
    rows = pilot.pilot(Workspace(recipe), [0.5, 0.2, 0.1, 0.05]).rows
    found = [(float(row["choice"].partition("<= ")[2]), row["anomaly_error"]) for row in rows if "<=" in row["choice"]]
    assert found
    assert all(error <= target for target, error in found)
    assert max(error / target for target, error in found) > 0.5  # the season, most of what varies, is in both
