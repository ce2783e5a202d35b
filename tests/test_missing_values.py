"""What counts as missing in files that others wrote: odd attributes, each with what is right, warned of or refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import netcdf_file
from tiny_recipe import RECIPE, waves
from typer.testing import CliRunner, Result

from diffats.cli import app
from diffats.config import Data
from diffats.sources import opening
from diffats.sources.missing import as_numbers, conform, counts_as_missing
from diffats.sources.samples import Samples

Array = np.ndarray[Any, Any]
DIMS = ("run", "y", "x")
SHAPE = (12, 4, 5)


# --- small writers, none of them xarray's -------------------------------------------------------------------------


def netcdf4(path: Path, u: Array, attrs: Mapping[str, Any]) -> Path:
    with h5netcdf.File(path.with_suffix(".nc"), "w") as file:
        file.dimensions = dict(zip(DIMS, SHAPE, strict=True))
        variable = file.create_variable("u", DIMS, u.dtype, data=u)
        for key, value in attrs.items():
            variable._h5ds.attrs[key] = value  # of whatever type
    return path.with_suffix(".nc")


def netcdf3(path: Path, u: Array, attrs: Mapping[str, Any]) -> Path:
    with netcdf_file(path.with_suffix(".nc3"), "w") as file:
        for dim, n in zip(DIMS, SHAPE, strict=True):
            file.createDimension(dim, n)
        variable = file.createVariable("u", u.dtype, DIMS)
        variable[:] = u
        for key, value in attrs.items():
            setattr(variable, key, value)
    return path.with_suffix(".nc3")


def zarr2(path: Path, u: Array, attrs: Mapping[str, Any], fill: Any = None) -> Path:
    group = zarr.open_group(path.with_suffix(".zarr"), mode="w", zarr_format=2)
    array = group.create_array("u", shape=u.shape, dtype=u.dtype, fill_value=fill)
    array[:] = u
    array.attrs.update({"_ARRAY_DIMENSIONS": list(DIMS), **attrs})
    return path.with_suffix(".zarr")


def zarr3(path: Path, u: Array, attrs: Mapping[str, Any]) -> Path:
    group = zarr.open_group(path.with_suffix(".zarr"), mode="w", zarr_format=3)
    array = group.create_array("u", shape=u.shape, dtype=u.dtype, dimension_names=DIMS)
    array[:] = u
    array.attrs.update(attrs)
    return path.with_suffix(".zarr")


def small(dtype: str = "f4", **places: Any) -> Array:
    """Numbers from -20 to 19 (unsigned: 0 to 39), and some others: ``at2=9`` puts a 9 at flat index 2."""
    u = np.arange(240) % 40 - (0 if dtype.lstrip("<>|")[0] == "u" else 20)
    u = u.astype(dtype)
    for place, value in places.items():
        u.ravel()[int(place.removeprefix("at"))] = value
    return u.reshape(SHAPE)


def opened(path: Path, **options: Any) -> Samples:
    engine = {"engine": "scipy"} if path.suffix == ".nc3" else {}
    return Samples(Data(source=str(path), variables=["u"], modes=["y", "x"], sample_dim="run", **engine, **options))


def read(path: Path) -> Array:
    """All samples, flat."""
    samples = opened(path)
    return samples.read(range(samples.n)).ravel()


def lacks(path: Path, u: Array, *places: int, factor: float = 1.0, offset: float = 0.0) -> None:
    """The samples are the numbers that were written, but for these places, where they are NaN."""
    expected = u.ravel().astype("f8") * factor + offset
    expected[list(places)] = np.nan
    np.testing.assert_allclose(read(path), expected, rtol=1e-6, atol=1e-6)


def said(caplog: pytest.LogCaptureFixture, level: int) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno == level)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [netcdf4, netcdf3, zarr2, zarr3])
def test_a_missing_value_of_another_type(tmp_path: Path, write: Callable[..., Path]) -> None:
    u = small(at7=-999.9, at8=-999)
    lacks(
        write(tmp_path / "double", u, {"missing_value": np.float64(-999.9) if "net" in write.__name__ else -999.9}),
        u,
        7,
    )
    lacks(write(tmp_path / "text", u, {"missing_value": "-999.9f"}), u, 7)
    lacks(write(tmp_path / "fill", u, {"_FillValue": "-999"}), u, 8)


@pytest.mark.parametrize("write", [netcdf4, netcdf3])
def test_several_missing_values(tmp_path: Path, write: Callable[..., Path]) -> None:
    u = small(at3=-999, at9=1e20, at11=-99)
    lacks(write(tmp_path / "array", u, {"missing_value": np.array([-999.0, 1e20])}), u, 3, 9)
    lacks(write(tmp_path / "text", u, {"missing_value": "-999.0, 1.0d20"}), u, 3, 9)
    both = {"_FillValue": np.float32(1e20), "missing_value": np.array([-999.0, -99.0], "f4")}
    lacks(write(tmp_path / "both", u, both), u, 3, 9, 11)


@pytest.mark.parametrize("value", [-999.9, 1e20])
def test_numbers_that_were_float32_once(tmp_path: Path, value: float) -> None:
    u = small("f8", at1=value, at2=np.float64(np.float32(value)))
    lacks(netcdf4(tmp_path / "a", u, {"_FillValue": np.float32(value)}), u, 1, 2)
    lacks(netcdf4(tmp_path / "b", u, {"_FillValue": np.float64(value)}), u, 1)  # conforms: this number and no other


@pytest.mark.parametrize("spelling", ["FillValue", "_fillvalue", "missing_Value", "Missing Values", "FILLVAL"])
def test_other_spellings_are_guessed_and_told(tmp_path: Path, spelling: str, caplog: pytest.LogCaptureFixture) -> None:
    u = small(at4=-999)
    lacks(netcdf4(tmp_path / "a", u, {spelling: np.float32(-999)}), u, 4)
    assert f'"u": the attribute {spelling} -999.0 is taken as ' in said(caplog, logging.WARNING)


@pytest.mark.parametrize("text", ["none", "n/a", "see README"])
def test_a_missing_value_that_is_no_number_is_told(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    for dtype in ("f4", "i2"):
        u = small(dtype)
        path = netcdf4(tmp_path / dtype, u, {"missing_value": text})
        lacks(path, u)
        assert opened(path).dataset["u"].dtype == dtype
    assert f'missing_value "{text}" is no number, so nothing counts as missing by it' in said(caplog, logging.WARNING)


def test_fill_values_that_whole_numbers_cannot_have(tmp_path: Path) -> None:
    u = small("i2")
    lacks(netcdf4(tmp_path / "nan", u, {"_FillValue": np.float32(np.nan)}), u)
    lacks(netcdf4(tmp_path / "large", u, {"missing_value": np.float64(1e20)}), u)
    lacks(netcdf4(tmp_path / "text", u, {"missing_value": "-99999"}), u)
    lacks(netcdf4(tmp_path / "empty", u, {"missing_value": np.zeros(0)}), u)


@pytest.mark.parametrize("fill", [{"_FillValue": np.int8(-1)}, {"_FillValue": np.int16(255)}, {"missing_value": "255"}])
@pytest.mark.parametrize("unsigned", ["true", "True", np.int8(1)])
def test_bytes_without_a_sign(tmp_path: Path, fill: dict[str, Any], unsigned: Any) -> None:
    u = small("u1", at5=255, at6=200)
    lacks(netcdf3(tmp_path / "a", u.view("i1"), {"_Unsigned": unsigned, **fill}), u, 5)


def test_unsigned_bytes_that_have_a_sign(tmp_path: Path) -> None:
    u = small("i1", at5=-99)
    for i, value in enumerate((-99, 157, "-99")):
        lacks(zarr3(tmp_path / str(i), u.view("u1"), {"_Unsigned": "false", "missing_value": value}), u, 5)


ATTRIBUTES = st.sampled_from(["_FillValue", "missing_value", "Missing_Value"])
FORMS: dict[str, Callable[[Any], Any]] = {
    "own": lambda value: value,
    "double": np.float64,
    "text": lambda value: str(value.item()),
    "bytes": lambda value: f"{value.item()}f".encode(),
    "list": lambda value: [value, value],
}


@given(
    dtype=st.sampled_from(["i1", "u1", "<i2", ">i4", "f4", ">f8"]),
    value=st.integers(-20, 19),
    key=ATTRIBUTES,
    form=st.sampled_from(sorted(FORMS)),
    packed=st.booleans(),
)
@settings(deadline=None)
def test_exactly_the_named_value_is_missing(dtype: str, value: int, key: str, form: str, packed: bool) -> None:
    u = small(dtype)
    number = u.dtype.type(value % 40 if dtype == "u1" else value)
    attrs = {key: FORMS[form](number)} | ({"scale_factor": 0.5, "add_offset": 3.0} if packed else {})
    decoded = xr.decode_cf(conform(xr.Dataset({"u": (DIMS, u, attrs)})))["u"]
    expected = np.where(u == number, np.nan, u.astype("f8") * (0.5 if packed else 1) + (3 if packed else 0))
    np.testing.assert_array_equal(decoded.values, expected)


# --- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [netcdf4, netcdf3, zarr3])
@pytest.mark.parametrize(
    "attrs",
    [
        {"valid_min": -30.0, "valid_max": 30.0},
        {"valid_range": [-30.0, 30.0]},
        {"valid_range": "-30, 30"},
        {"Valid_Range": [-30, 30]},
        {"valid_min": "-30.f", "valid_max": [30]},
    ],
)
def test_what_is_outside_of_the_bounds_is_missing(
    tmp_path: Path, write: Callable[..., Path], attrs: dict[str, Any]
) -> None:
    u = small(at2=-31, at3=30, at4=31)
    lacks(write(tmp_path / "f", u, attrs), u, 2, 4)
    whole = small("i2", at2=-31, at3=30, at4=31)
    lacks(write(tmp_path / "i", whole, attrs), whole, 2, 4)


def test_a_bound_in_double_precision_keeps_its_float32(tmp_path: Path) -> None:
    u = small(at2=40.1)
    lacks(netcdf4(tmp_path / "a", u, {"valid_max": np.float64(40.1)}), u)


@pytest.mark.parametrize("scale", [0.01, -0.01])
def test_bounds_of_packed_numbers(tmp_path: Path, scale: float) -> None:
    u = small("i2", at2=-3100, at3=3000, at4=3100)
    packing = {"scale_factor": scale, "add_offset": 5.0}
    stored = {**packing, "valid_range": np.array([-3000, 3000], "i2")}  # as the numbers are stored
    lacks(netcdf4(tmp_path / "stored", u, stored), u, 2, 4, factor=scale, offset=5)
    decoded = {**packing, "valid_range": np.array([-25.0, 35.0])}  # of the type of decoded numbers
    lacks(netcdf4(tmp_path / "decoded", u, decoded), u, 2, 4, factor=scale, offset=5)
    both = {**stored, "_FillValue": np.int16(7)}
    places = np.flatnonzero(u.ravel() == 7)
    lacks(netcdf4(tmp_path / "both", u, both), u, 2, 4, *places, factor=scale, offset=5)


def test_bounds_of_bytes_without_a_sign(tmp_path: Path) -> None:
    u = small("u1", at2=255, at3=254, at4=200)
    attrs = {"_Unsigned": "true", "valid_range": np.array([0, -2], "i1"), "scale_factor": 2.0}
    lacks(netcdf3(tmp_path / "a", u.view("i1"), attrs), u, 2, factor=2)


@pytest.mark.parametrize(
    ("attrs", "says"),
    [
        ({"valid_range": np.array([0.0, 1, 2])}, "valid_range 0.0 1.0 2.0 is not two numbers, and is not heeded"),
        ({"valid_min": "low"}, 'valid_min "low" is not a number, and is not heeded'),
        ({"valid_min": 5.0, "valid_max": -5.0}, "valid_min 5.0 and valid_max -5.0 leaves no range of values"),
        ({"valid_range": np.zeros(2)}, "valid_range 0.0 0.0 leaves no range of values, and is not heeded"),
    ],
)
def test_bounds_that_make_no_sense_are_told(
    tmp_path: Path, attrs: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    for dtype in ("f4", "i2"):
        u = small(dtype)
        lacks(netcdf4(tmp_path / dtype, u, attrs), u)
    assert says in said(caplog, logging.WARNING)


def test_whole_numbers_keep_their_type_unless_points_are_masked(tmp_path: Path) -> None:
    path = netcdf4(tmp_path / "a", small("i2", at2=900), {"valid_max": np.int16(100)})
    assert opened(path).template()["u"].encoding["dtype"] == "i2"
    assert "dtype" not in opened(path, missing="mask").template()["u"].encoding
    inside = netcdf4(tmp_path / "b", small("u1"), {"valid_range": np.array([0, 255], "u1")})
    assert as_numbers(opened(inside).dataset["u"]).dtype == "u1"


def test_coordinates_lack_nothing(tmp_path: Path) -> None:
    data = waves().assign_coords(x=("x", np.arange(8.0), {"valid_max": 3.0, "missing_value": "2"}))
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    found = opening.open_source(Data(source=str(tmp_path / "a.nc"), modes=["time", "x"], sample_dim="sample"))
    assert found["x"].values.tolist() == list(range(8))


# --- Zarr ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i4", "f4"])
def test_zeros_of_a_zarr_2_store_are_zeros(tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    u = small(dtype, at4=0)
    caplog.set_level(logging.INFO)
    path = zarr2(tmp_path / "a", u, {}, fill=0)
    lacks(path, u)
    assert opened(path).dataset["u"].dtype == dtype
    text = "fill_value 0 of Zarr version 2, without the attribute _FillValue, is no missing value: u"
    assert text in said(caplog, logging.INFO)


def test_false_in_a_zarr_2_store_is_false(tmp_path: Path) -> None:
    u = small("u1") > 19
    lacks(zarr2(tmp_path / "a", u, {}, fill=False), u)


def test_the_fill_value_of_a_zarr_2_store_counts_if_it_was_chosen(tmp_path: Path) -> None:
    u = small("i2", at4=-999, at5=0, at6=-99)
    zeros = np.flatnonzero(u.ravel() == 0)
    lacks(zarr2(tmp_path / "chosen", u, {}, fill=-999), u, 4)
    lacks(zarr2(tmp_path / "told", u, {"_FillValue": 0}, fill=0), u, *zeros)
    lacks(zarr2(tmp_path / "missing", u, {"missing_value": 0}, fill=0), u, *zeros)
    lacks(zarr2(tmp_path / "other", u, {"_FillValue": -999}, fill=0), u, 4)
    lacks(zarr2(tmp_path / "two", u, {"_FillValue": -999}, fill=-99), u, 4, 6)


def test_attributes_of_a_zarr_3_store_that_are_no_base64(tmp_path: Path) -> None:
    u = small(at4=-999.9, at5=-999, at6=np.nan)
    lacks(zarr3(tmp_path / "number", u, {"_FillValue": -999.9}), u, 4, 6)
    lacks(zarr3(tmp_path / "text", u, {"_FillValue": "-999.9"}), u, 4, 6)
    lacks(zarr3(tmp_path / "whole", u, {"_FillValue": -999}), u, 5, 6)
    lacks(zarr3(tmp_path / "nan", u, {"_FillValue": "NaN"}), u, 6)
    encoding = {"u": {"_FillValue": np.float32(-999)}}  # as xarray writes it
    xr.Dataset({"u": (DIMS, u)}).to_zarr(tmp_path / "own.zarr", zarr_format=3, consolidated=False, encoding=encoding)
    lacks(tmp_path / "own.zarr", u, 5, 6)


# --- identities and messages --------------------------------------------------------------------------------------


def test_only_what_xarray_reads_otherwise_changes_the_digest(tmp_path: Path) -> None:
    u = small(at4=-999)
    plain = netcdf4(tmp_path / "plain", u, {"missing_value": np.float32(-999), "valid_min": np.float32(-5000)})
    dataset = opened(plain).dataset
    assert dataset.encoding["taken"] == []
    odd = opened(netcdf4(tmp_path / "odd", u, {"missing_value": "-999"})).dataset
    assert odd.encoding["taken"] == ['"u": missing_value "-999" is taken as -999.0 of float32']
    data = Data(source=str(plain), modes=["y", "x"], sample_dim="run")
    before = opening.digest(dataset, data)
    dataset.encoding.pop("taken")
    assert opening.digest(dataset, data) == before
    dataset.encoding["taken"] = ["something"]
    assert opening.digest(dataset, data) != before


def test_files_of_a_glob_say_each_in_their_way_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    u = small(at4=-999)
    for i, value in enumerate((np.float32(-999), "-999", "-999")):
        netcdf4(tmp_path / f"part{i}", u, {"missing_value": value})
    samples = Samples(Data(source=str(tmp_path / "part*.nc"), modes=["y", "x"], sample_dim="run"))
    assert np.flatnonzero(np.isnan(samples.read(range(36)))).tolist() == [4, 244, 484]
    assert said(caplog, logging.INFO).count('missing_value "-999" is taken as') == 1


def test_what_counts_as_missing_is_told_in_words(tmp_path: Path) -> None:
    attrs = {"_FillValue": np.float32(-999), "valid_range": np.array([-5.0, 5.0], "f4")}
    array = opened(netcdf4(tmp_path / "a", small(), attrs)).dataset["u"]
    assert counts_as_missing(array) == "u _FillValue -999.0 or outside of valid_range -5.0 5.0"


# --- as a user sees it --------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def tiny(directory: Path, u: Array, more: str = "") -> Path:
    """The tiny data set with other numbers, and its recipe."""
    data = waves().assign(u=(("sample", "time", "x"), u))
    data.to_netcdf(directory / "tiny.nc", engine="h5netcdf")
    text = RECIPE.format(root=directory / "root", source=directory / "tiny.nc")
    (directory / "tiny.toml").write_text(text.replace("[decompose]", f"{more}\n[decompose]"), encoding="utf-8")
    return directory / "tiny.toml"


@pytest.mark.parametrize("value", [-999.0, -9999.0, 1e20, -32768.0])
def test_numbers_that_stand_for_missing_ones_are_warned_of_by_name(tmp_path: Path, value: float) -> None:
    u = waves()["u"].values
    u[:, 2, 3] = value
    result = run("decompose", tiny(tmp_path, u))
    assert result.exit_code == 0
    assert f'warning: "u": 18 of 864 values are exactly {value:.7g}, far from all others. If this ' in result.stderr
    assert f"set the attribute _FillValue = {value:.7g} of the variable" in result.stderr
    proposed = run("init", tmp_path / "tiny.nc", "-o", tmp_path / "proposed.toml")
    assert f"values are exactly {value:.7g}, far from all others" in proposed.stderr
    assert f"are exactly {value:.7g}, far" in (tmp_path / "proposed.toml").read_text(encoding="utf-8").replace(
        "\n# ", " "
    )


@pytest.mark.parametrize("what", ["once", "saturated", "binary", "near"])
def test_numbers_that_stand_for_themselves_are_not_warned_of(tmp_path: Path, what: str) -> None:
    u = waves()["u"].values
    if what == "once":
        u[3, 2, 3] = -999
    elif what == "saturated":
        u = np.minimum(u, 0.5)
    elif what == "binary":
        u = np.where(u > 1, 999.0, 0.0).astype("f4")
    else:
        u[:, 2, 3] = 12
    assert "exactly" not in run("decompose", tiny(tmp_path, u)).stderr


def coasts(directory: Path, more: str) -> Path:
    """Fields with land at one corner, cut into windows that meet it or not."""
    u = waves()["u"].values
    u[:, :2, :3] = np.nan
    windows = f"windows = {{ size = {{ x = 4 }} }}\n{more}"
    path = tiny(directory, u)
    text = (
        path.read_text(encoding="utf-8")
        .replace("split = {", f"{windows}\nsplit = {{")
        .replace('condition = { initial = { dim = "time", index = 0 } }\n', "")
    )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("more", ['missing = "mask"', ""])
def test_coasts_cut_by_windows_are_told_with_two_ways_out(tmp_path: Path, more: str) -> None:
    result = run("decompose", coasts(tmp_path, more))
    assert result.exit_code in (1, 2)
    assert (
        "6 of 24 points are missing in some samples only (time 0 to 1, x 0 to 2, from 0), and 0 in all" in result.stderr
    )
    assert (
        "Either fill them in the source, with xarray's interpolate_na or fillna; or cut no windows along x, "
        in result.stderr
    )


def test_variables_may_lack_other_points_each(tmp_path: Path) -> None:
    u = waves()["u"].values
    v = u + 1
    u[:, :2, :3], v[:, 4:, 6:] = np.nan, np.nan
    path = tiny(tmp_path, u, 'missing = "mask"')
    data = waves().assign(u=(("sample", "time", "x"), u), v=(("sample", "time", "x"), v))
    data.to_netcdf(tmp_path / "tiny.nc", engine="h5netcdf")
    path.write_text(path.read_text(encoding="utf-8").replace('["u"]', '["u", "v"]'), encoding="utf-8")
    assert run("decompose", path).exit_code == 0
    v[5, 0, 0] = np.nan
    v[9:12, 1, 1] = np.nan
    data.assign(v=(("sample", "time", "x"), v)).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    text = path.read_text(encoding="utf-8").replace("tiny.nc", "other.nc").replace("/root", "/other")
    path.write_text(text, encoding="utf-8")
    result = run("decompose", path)
    assert result.exit_code == 2
    assert "2 of 96 points are missing in some samples only (u 0, v 2) (time 0 to 1, x 0 to 1, from 0)" in result.stderr
    assert "or give a part of the source where all samples lack the same points." in result.stderr
