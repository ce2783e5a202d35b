"""Files of a glob that differ in more than their numbers: what is joined, told or refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from xarray.core import indexing

from diffats.config import Data, parse_recipe
from diffats.errors import SourceError
from diffats.proposing import propose
from diffats.sources import Samples, agreement, joining, open_samples
from diffats.sources.joined_arrays import JoinedArray, StackedArray, TurnedArray
from diffats.stages import Workspace
from diffats.stages.plan import plan

U = np.random.default_rng(0).normal(size=(12, 6, 8)).astype("f4")
DAYS = np.datetime64("2000-01-01") + np.arange(12) * np.timedelta64(1, "D")
GRID = {"y": np.arange(6.0), "x": 0.25 * np.arange(8)}
Change = Callable[[xr.Dataset], xr.Dataset]


def run(i: int, **coords: Any) -> xr.Dataset:
    """One field, without a dim of runs."""
    return xr.Dataset({"u": (("y", "x"), U[i])}, GRID | coords)


def runs(first: int, stop: int, **coords: Any) -> xr.Dataset:
    """Several fields along ``run``."""
    along = {"run": np.arange(first, stop)}
    return xr.Dataset({"u": (("run", "y", "x"), U[first:stop], {"units": "m s-1"})}, GRID | along | coords)


def write(folder: Path, files: dict[str, xr.Dataset], **options: Any) -> str:
    """The files, as NetCDF-4 unless told otherwise; returns the glob of all."""
    for name, data in files.items():
        data.to_netcdf(folder / name, **{"engine": "h5netcdf", **options})
    return str(folder / "*.nc")


def halves(folder: Path, change: Change, first: Change = lambda data: data, **options: Any) -> str:
    """Six runs in each of two files; the second one is changed."""
    return write(folder, {"a1.nc": first(runs(0, 6)), "a2.nc": change(runs(6, 12))}, **options)


def opened(source: str, **options: Any) -> Samples:
    """Fields along ``run`` as samples."""
    given = {"source": source, "variables": ["u"], "modes": ["y", "x"], "sample_dim": "run"}
    return open_samples(Data.model_validate(given | options))


def windows(source: str, **options: Any) -> Samples:
    """Windows along ``time``."""
    whole = {"modes": ["time", "y", "x"], "sample_dim": None, "windows": {"size": {"time": 3}}, "split": {"test": 0.4}}
    return opened(source, **whole | options)


def raw(samples: Samples) -> dict[str, np.ndarray[Any, Any]]:
    """The conditions of all samples."""
    every = np.arange(samples.n)
    return samples.conditions(every, samples.read(every))


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What was logged at a level or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


@pytest.fixture(autouse=True)
def _shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "diffats")


# --- what each file has once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4", "scipy"])
def test_a_number_that_each_file_has_is_that_of_its_run(tmp_path: Path, engine: Any) -> None:
    source = write(tmp_path, {f"r{i:02d}.nc": run(i, nu=0.1 * i) for i in range(12)}, engine=engine)
    samples = opened(source, condition={"scalars": ["nu"]})
    np.testing.assert_array_equal(samples.read(range(12)), U)
    np.testing.assert_allclose(raw(samples)["scalar_nu"], 0.1 * np.arange(12))
    np.testing.assert_allclose(samples.sample_coords([3, 7])["nu"], [0.3, 0.7])


def thirds(folder: Path, nus: Sequence[float], heights: Sequence[float], labels: Sequence[str]) -> str:
    """Four runs in each of three files, with a number, a text and a static field each."""
    files = {}
    for i, (nu, height, label) in enumerate(zip(nus, heights, labels, strict=True)):
        more = {"nu": ((), nu), "orog": (("y", "x"), np.full((6, 8), height, "f4")), "flow": ((), label)}
        files[f"b{i}.nc"] = runs(4 * i, 4 * i + 4).assign(more)
    return write(folder, files)


def test_numbers_texts_and_static_fields_belong_to_the_samples_of_their_file(tmp_path: Path) -> None:
    source = thirds(tmp_path, [1e-9, 2e-9, 3e-9], [100, 200, 200], ["laminar", "turbulent", "laminar"])
    samples = opened(source, condition={"scalars": ["nu"], "fields": ["orog"], "labels": "flow"})
    found = raw(samples)
    np.testing.assert_array_equal(found["scalar_nu"], np.repeat([1e-9, 2e-9, 3e-9], 4))
    np.testing.assert_array_equal(found["field_orog"][:, 2, 3], np.repeat([100, 200, 200], 4))
    assert found["field_orog"].shape == (12, 6, 8)
    assert [samples.label_names[code] for code in found["label"]] == ["laminar"] * 4 + ["turbulent"] * 4 + [
        "laminar"
    ] * 4


def test_what_is_the_same_in_all_files_has_no_more_dims_than_in_each(tmp_path: Path) -> None:
    samples = opened(thirds(tmp_path, [1, 1, 1], [5, 5, 5], ["a", "b", "c"]), condition={"fields": ["orog"]})
    dims = {name: samples.dataset[name].dims for name in ("orog", "nu", "flow")}
    assert dims == {"orog": ("y", "x"), "nu": (), "flow": ()}  # the recipe does not ask for the text


def test_a_field_too_large_to_be_compared_in_all_files_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agreement, "_FIELD_BYTES", 1)
    files = {f"c{i}.nc": runs(3 * i, 3 * i + 3).assign(orog=(("y", "x"), U[0])) for i in range(4)}
    opened(write(tmp_path, files), condition={"fields": ["orog"]})
    assert any('"orog" is taken from' in text and "only 2 of 3 others were compared" in text for text in told(caplog))


def test_init_takes_what_each_file_has_once_as_no_field(tmp_path: Path) -> None:
    found = propose(thirds(tmp_path, [0.1, 0.2, 0.3], [5, 6, 7], ["a", "a", "b"]), {})
    data = found.recipe.data
    assert (data.variables, data.condition.scalars, data.condition.labels) == (["u"], ["nu"], "flow")
    assert "orog (one field for each file)" in found.text


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
def test_a_time_that_each_file_has_is_that_of_its_samples(tmp_path: Path, calendar: str) -> None:
    days = (
        DAYS if calendar == "standard" else xr.date_range("2000-02-25", periods=12, calendar=calendar, use_cftime=True)
    )
    source = write(tmp_path, {f"r{i:02d}.nc": run(i, time=days[i]) for i in range(12)}, engine="scipy")
    samples = opened(source)
    assert "time" not in samples.template().coords
    np.testing.assert_array_equal(samples.sample_coords([4, 11])["time"], [days[4], days[11]])
    along = opened(source, sample_dim="time")
    np.testing.assert_array_equal(along.dataset["time"], days)
    for cut in (windows(source), windows(source, concat_dim="time")):  # of itself, and as told
        np.testing.assert_array_equal(cut.sample_coords([1])["time_origin"], days[3:4])
        np.testing.assert_array_equal(cut.read([1])[0], U[3:6])
        assert "time" in cut.template().coords


def test_steps_of_a_forecast_become_coordinates_of_the_new_dim(tmp_path: Path) -> None:
    files = {
        f"f{i:02d}.nc": run(i, time=DAYS[0], step=6.0 * i, valid_time=DAYS[0] + np.timedelta64(6 * i, "h"))
        for i in range(12)
    }
    samples = windows(
        write(tmp_path, files), concat_dim="step", modes=["step", "y", "x"], windows={"size": {"step": 3}}
    )
    assert samples.dataset["valid_time"].dims == ("step",)
    assert samples.dataset["time"].dims == ()  # the same in all
    np.testing.assert_array_equal(samples.dataset["step"], 6.0 * np.arange(12))


# --- in which order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_numbers_in_names_give_the_order_where_no_coordinate_does(
    tmp_path: Path, zarr_format: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(12):
        data = xr.Dataset({"u": (("time", "y", "x"), U[[i]])})
        data.to_zarr(tmp_path / f"out_{i + 1}.zarr", zarr_format=zarr_format, consolidated=False)
    samples = windows(str(tmp_path / "out_*.zarr"), concat_dim="time")
    np.testing.assert_array_equal(samples.read([0, 3]).reshape(6, 6, 8), U[[0, 1, 2, 9, 10, 11]])
    how = '12 files along "time", in the order of the numbers in their names, since it has no coordinate'
    assert [text for text in told(caplog, logging.INFO) if "order" in text] == [f"data.source: {how}."]


@pytest.mark.parametrize(("names", "same"), [(["u_2", "u_10"], False), (["u_02", "u_10"], True)])
def test_another_order_than_that_of_the_alphabet_is_another_source(
    tmp_path: Path, names: list[str], same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, {f"{name}.nc": runs(0, 6).drop_vars("run") for name in names})
    by_numbers = opened(source).fingerprint()
    monkeypatch.setattr(joining, "by_numbers", str)  # as earlier releases did
    opening_anew = opened(source, split={"test": 0.3})
    assert (opening_anew.fingerprint() == by_numbers) == same


def test_plan_says_how_files_are_joined(tmp_path: Path) -> None:
    write(tmp_path, {f"r{i}.nc": run(i) for i in range(12)})
    data = {
        "source": str(tmp_path / "*.nc"),
        "variables": ["u"],
        "modes": ["y", "x"],
        "sample_dim": "run",
        "split": {"test": 0.25},
    }
    tree = {"name": "a", "root": str(tmp_path / "root"), "data": data, "decompose": {"ranks": {"y": 2, "x": 2}}}
    assert plan(Workspace(parse_recipe(tree)))["joined"].startswith('12 files along the new dim "run", in the order of')


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a", "b", "c", "d"], "have no numbers that tell their order"),
        (["s1", "s2", "s4", "s5"], "leave out 3"),
        (["s1", "s2", "s3", "s4"], ""),
        (["20000131", "20000228", "20000331", "20000430"], ""),
    ],
)
def test_names_that_may_give_a_wrong_order_are_told(
    tmp_path: Path, names: list[str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = {f"{name}.nc": xr.Dataset({"u": (("time", "y", "x"), U[i : i + 3])}) for i, name in enumerate(names)}
    source = write(tmp_path, files)
    windows(source, concat_dim="time")
    assert [says in text for text in told(caplog)] == ([True] if says else [])
    caplog.clear()
    opened(source, sample_dim="time")  # samples may come in any order
    assert told(caplog) == []


def test_a_time_in_each_file_gives_the_order_along_a_new_dim(tmp_path: Path) -> None:
    source = write(tmp_path, {f"r{11 - i:02d}.nc": run(i, time=DAYS[i]) for i in range(12)}, engine="scipy")
    samples = windows(source, concat_dim="frame", modes=["frame", "y", "x"], windows={"size": {"frame": 4}})
    np.testing.assert_array_equal(samples.read([0])[0], U[:4])


def test_a_file_without_entries_does_not_hide_the_order(tmp_path: Path) -> None:
    files = {"b1.nc": runs(8, 12), "b2.nc": runs(0, 0), "b3.nc": runs(4, 8), "b4.nc": runs(0, 4)}
    samples = opened(write(tmp_path, files))
    np.testing.assert_array_equal(samples.read(range(12)), U)


def test_times_that_begin_alike_in_all_files_give_no_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = {"time": np.arange(3.0)}
    files = {
        f"part{i + 1}.nc": xr.Dataset({"u": (("time", "y", "x"), U[[i, i, i]])}, clock | GRID) for i in (0, 1, 8, 9, 10)
    }
    samples = windows(write(tmp_path, files), concat_dim="time", split={"test": 0.4})
    np.testing.assert_array_equal(samples.read([0, 1, 2, 3])[:, 0], U[[0, 1, 8, 9]])
    assert any("since its coordinate begins alike in all" in text for text in told(caplog, logging.INFO))


# --- what the numbers mean ----------------------------------------------------------------------------------------


def with_units(units: str | None) -> Change:
    def change(data: xr.Dataset) -> xr.Dataset:
        attrs = {} if units is None else {"units": units}
        return data.assign(u=(data["u"].dims, data["u"].values, attrs))

    return change


@pytest.mark.parametrize("units", ["m/s", "m s**-1", "m.s-1", "s-1 m", " m  s^-1"])
def test_units_may_be_spelled_differently(tmp_path: Path, units: str, caplog: pytest.LogCaptureFixture) -> None:
    samples = opened(halves(tmp_path, with_units(units)))
    assert samples.template()["u"].attrs["units"] == "m s-1"
    assert told(caplog) == []


@pytest.mark.parametrize("units", ["m", "m s", "m s-2", "km s-1", "ms-1", "m/s/s"])
def test_other_units_are_refused(tmp_path: Path, units: str) -> None:
    with pytest.raises(SourceError, match=r'"u" has units m s-1 in .*a1\.nc but .* in .*a2\.nc\. Narrow'):
        opened(halves(tmp_path, with_units(units)))


def months(first: str) -> Change:
    """Times in a unit that nobody decodes: they stay numbers."""

    def change(data: xr.Dataset) -> xr.Dataset:
        along = (
            "run",
            np.arange(6.0) + data["run"].values[0],
            {"units": f"months since {first}", "calendar": "noleap"},
        )
        return data.assign_coords(run=along)

    return change


def test_reference_times_are_compared_where_a_unit_is_not_decoded(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r'"run" has times in months since 2000-01-01 in .* but months since 2000-07-01'
    ):
        opened(halves(tmp_path, months("2000-07-01"), months("2000-01-01")))


def test_decoded_times_may_count_from_anywhere(tmp_path: Path) -> None:
    files = {f"t{i}.nc": runs(4 * i, 4 * i + 4).assign_coords(run=DAYS[4 * i : 4 * i + 4]) for i in range(3)}
    for i, (name, data) in enumerate(files.items()):
        units = ["days since 1999-01-01", "hours since 2000-01-05", "seconds since 1970-01-01"][i]
        data.to_netcdf(tmp_path / name, engine="h5netcdf", encoding={"run": {"units": units}})
    np.testing.assert_array_equal(opened(str(tmp_path / "*.nc")).dataset["run"], DAYS)


def test_calendars_of_single_times_are_compared(tmp_path: Path) -> None:
    date = {
        name: xr.date_range("2000-01-30", periods=1, calendar=name, use_cftime=True)[0]
        for name in ("noleap", "360_day")
    }
    source = write(tmp_path, {f"r{i}.nc": run(i, time=date["noleap" if i < 3 else "360_day"]) for i in range(6)})
    with pytest.raises(SourceError, match=r'"time" has values that are dates of calendar noleap in .* but dates'):
        opened(source)


def test_classes_with_other_meanings_are_refused(tmp_path: Path) -> None:
    def classes(meanings: str) -> Change:
        attrs = {"flag_values": np.array([0, 1], "i1"), "flag_meanings": meanings}
        return lambda data: data.assign(kind=("run", np.arange(6, dtype="i1") % 2, attrs))

    with pytest.raises(SourceError, match='"kind" has flag_meanings land sea in'):
        opened(halves(tmp_path, classes("sea land"), classes("land sea")), condition={"labels": "kind"})


def filled(data: xr.Dataset) -> xr.Dataset:
    data["u"].encoding["_FillValue"] = np.float32(-999)
    return data


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (filled, lambda data: data, 'variable "u" has missing value -999 in'),
        (lambda data: data, with_units(None), 'variable "u" has units m s-1 in'),
        (lambda data: data, lambda data: data.assign(u=data["u"].round().astype("i2")), "has numbers that are real in"),
        (
            lambda data: data.assign(u=data["u"].assign_attrs(cell_methods="time: mean")),
            lambda data: data.assign(u=data["u"].assign_attrs(cell_methods="time: maximum")),
            "cell_methods time: mean in",
        ),
    ],
)
def test_descriptions_that_differ_are_told(
    tmp_path: Path, first: Change, second: Change, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert opened(halves(tmp_path, second, first)).n == 12
    assert [says in text for text in told(caplog)] == [True]


def test_a_longer_type_in_one_file_is_that_of_all(tmp_path: Path) -> None:
    exact = np.random.default_rng(1).normal(size=(6, 6, 8))
    samples = opened(halves(tmp_path, lambda data: data.assign(u=(data["u"].dims, exact))))
    assert samples.dtype == np.float64
    np.testing.assert_array_equal(samples.read(range(12)), np.concatenate([U[:6], exact]))


# --- what lies where ----------------------------------------------------------------------------------------------


def moved(dim: str, by: float = 0.0, dtype: str = "f8", scale: float = 1.0, start: float = 0.0) -> Change:
    def change(data: xr.Dataset) -> xr.Dataset:
        return data.assign_coords({dim: (start + scale * data[dim].values + by).astype(dtype)})

    return change


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (moved("x", scale=0.1), moved("x", scale=0.1, dtype="f4")),
        (moved("x", scale=2.0, start=5e5 + 0.1), moved("x", scale=2.0, start=5e5 + 0.1, dtype="f4")),
        (moved("x", scale=0.1), moved("x", scale=0.1, by=1e-12)),
    ],
    ids=["float32", "float32 of large numbers", "last digits"],
)
def test_round_off_makes_no_other_grid(
    tmp_path: Path, first: Change, second: Change, caplog: pytest.LogCaptureFixture
) -> None:
    samples = opened(halves(tmp_path, second, first))
    np.testing.assert_array_equal(samples.read(range(12)), U)
    assert told(caplog) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (moved("x", scale=1e-9), moved("x", scale=1e-9, by=2e-10)),
        (moved("x", scale=1.0, start=5e5), moved("x", scale=1.0, start=5e5, by=3.0)),
        (lambda data: data, lambda data: data.isel(x=slice(None, None, -1))),
        (
            lambda data: data.isel(x=[0]).assign_coords(x=[730000.0]),
            lambda data: data.isel(x=[0]).assign_coords(x=[730000.125]),
        ),
    ],
    ids=["nanometres", "metres in UTM", "reversed", "one time"],
)
def test_another_grid_is_refused_however_small_the_numbers(tmp_path: Path, first: Change, second: Change) -> None:
    with pytest.raises(SourceError, match=r'coordinate "x" has other values in .*a2\.nc than in'):
        opened(halves(tmp_path, second, first), concat_dim="run")


def test_grids_that_move_are_not_put_side_by_side(tmp_path: Path) -> None:
    source = write(tmp_path, {f"a{i}.nc": run(i, x=0.25 * np.arange(8) + i) for i in range(3)})
    with pytest.raises(SourceError, match=r'are joined along "x", .* but they overlap there\. Set data\.concat_dim'):
        opened(source)
    samples = opened(
        write(tmp_path, {f"a{i}.nc": run(i, x=0.25 * np.arange(8) + 2 * i) for i in range(3)}),
        sample_dim="y",
        modes=["x"],
    )
    assert samples.sizes == {"x": 24}  # parts of one line
    np.testing.assert_array_equal(samples.read([2])[0], U[:3, 2].ravel())


def test_a_grid_that_is_slightly_off_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(halves(tmp_path, moved("y", by=0.004)))
    assert [text for text in told(caplog) if "off that in" in text and "by 0.004 of the distance" in text]


def test_places_that_differ_between_files_are_those_of_their_samples(tmp_path: Path) -> None:
    def with_place(data: xr.Dataset) -> xr.Dataset:
        place = data["y"].values[:, None] + 0 * data["x"].values + float(data["run"][0])
        return data.assign_coords(lat=(("y", "x"), place))

    samples = opened(halves(tmp_path, with_place, with_place))
    assert samples.dataset["lat"].dims == ("run", "y", "x")
    assert "lat" not in samples.template().coords  # one file's places are not those of all
    np.testing.assert_array_equal(samples.sample_coords([2, 8])["lat"][:, 0, 0], [0, 6])


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_dims_in_another_order_are_turned(tmp_path: Path, engine: Any) -> None:
    samples = opened(halves(tmp_path, lambda data: data.transpose("x", "run", "y"), engine=engine))
    np.testing.assert_array_equal(samples.read(range(12)), U)
    np.testing.assert_array_equal(samples.dataset["u"][5:8, 1:4, ::3].values, U[5:8, 1:4, ::3])
    np.testing.assert_array_equal(samples.dataset["u"][7, :, 2].values, U[7, :, 2])


def test_a_mode_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r'dim "x" has 8 points in .*a1\.nc but 7 in .*a2\.nc; only "run"'):
        opened(halves(tmp_path, lambda data: data.isel(x=slice(7))), concat_dim="run")


# --- what some files lack -----------------------------------------------------------------------------------------


def test_a_variable_that_one_file_lacks_is_named(tmp_path: Path) -> None:
    files = {f"a{i}.nc": runs(4 * i, 4 * i + 4).assign(w=("run", np.zeros(4))) for i in range(3)}
    files["a1.nc"] = files["a1.nc"].drop_vars("w")
    with pytest.raises(SourceError, match=r'"w" is in .*a0\.nc but not in .*a1\.nc\. Narrow the glob'):
        opened(write(tmp_path, files))


def test_a_coordinate_that_one_file_lacks_is_left_out_unless_it_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = halves(tmp_path, lambda data: data.assign_coords(height=2.0))
    assert "height" not in opened(source).dataset.coords
    assert [text for text in told(caplog) if '"height" is in' in text and "but not in" in text]
    with pytest.raises(SourceError, match=r'"height" is in .*a2\.nc but not in .*a1\.nc'):
        opened(source, condition={"scalars": ["height"]})


def test_the_coordinate_along_which_is_joined_must_be_in_all_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r'"run" is in .*a1\.nc but not in .*a2\.nc'):
        opened(halves(tmp_path, lambda data: data.drop_vars("run")), concat_dim="run")


def test_a_coordinate_may_be_stored_as_a_variable_in_some_files(tmp_path: Path) -> None:
    numbers = [lambda data, i=i: data.assign(nu=("run", np.full(6, float(i)))) for i in range(2)]
    samples = opened(
        halves(tmp_path, numbers[1], lambda data: numbers[0](data).set_coords("nu")), condition={"scalars": ["nu"]}
    )
    np.testing.assert_array_equal(raw(samples)["scalar_nu"], np.repeat([0, 1], 6))


# --- which files a pattern means ----------------------------------------------------------------------------------


def test_folders_with_brackets_in_their_names_are_no_patterns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run[1]").mkdir()
    halves(tmp_path / "run[1]", lambda data: data)
    assert opened(str(tmp_path / "run[1]" / "a[12].nc")).n == 12
    assert any("brackets" in text and "run[1] are no pattern" in text for text in told(caplog, logging.INFO))
    with pytest.raises(SourceError, match=r"matches no file\. Check the pattern; a bracket .* is written \[\[\]\."):
        opened(str(tmp_path / "run[1]" / "b[12].nc"))


@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_link_to_another_file_of_the_glob_is_not_read_twice(tmp_path: Path, of: str) -> None:
    for name in ("r1", "r2"):
        (tmp_path / name).mkdir()
    runs(0, 6).to_netcdf(tmp_path / "r1" / "u.nc", engine="h5netcdf")
    runs(6, 12).to_netcdf(tmp_path / "r2" / "u.nc", engine="h5netcdf")
    link = tmp_path / "latest" if of == "folder" else tmp_path / "r2" / "latest.nc"
    os.symlink(tmp_path / "r2" if of == "folder" else tmp_path / "r2" / "u.nc", link)
    samples = opened(str(tmp_path / "*" / "*.nc"))
    assert [Path(path).parent.name for path, _, _ in samples.dataset.encoding["parts"]] == ["r1", "r2"]
    assert samples.n == 12


# --- arrays that are read piece by piece --------------------------------------------------------------------------

LENGTHS = (2, 0, 3, 1)
PARTS = [np.random.default_rng(i).normal(size=(n, 4, 3)) for i, n in enumerate(LENGTHS)]
VARIABLES = [xr.Variable(("a", "b", "c"), part) for part in PARTS]
STATIC = [xr.Variable(("b", "c"), np.full((4, 3), float(i))) for i in range(4)]


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Whole numbers and slices of an array."""
    return tuple(draw(st.integers(0, n - 1) | st.slices(n).filter(lambda key, n=n: len(range(n)[key]))) for n in shape)


@given(st.data())
def test_arrays_of_many_files_are_indexed_like_one_array(data: st.DataObject) -> None:
    joined = JoinedArray(VARIABLES, 0), np.concatenate(PARTS)
    stacked = StackedArray(STATIC, LENGTHS), np.repeat([part.values for part in STATIC], LENGTHS, axis=0)
    turned = TurnedArray(VARIABLES[2], ("c", "a", "b")), PARTS[2].transpose(2, 0, 1)
    array, expected = data.draw(st.sampled_from([joined, stacked, turned]))
    assert array.shape == expected.shape
    key = data.draw(keys(expected.shape))
    lazy = xr.Variable(tuple("abc"), indexing.LazilyIndexedArray(array))
    np.testing.assert_array_equal(lazy[key].values, expected[key])
