"""Names and dims that others chose: every stage, the model's samples and what is written of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from scipy.io import netcdf_file
from tiny_runs import ALL, run, small_recipe, waves
from typer.testing import CliRunner

import diffats
from diffats.cli import app
from diffats.errors import InputError
from diffats.sources import open_samples

FIELD = waves(24, 6, 8).astype("f4")
SERIES = waves(1, 96, 8)[0].astype("f4")
ODD = {"variables": ["Temperatur °C (2 m).v1"], "modes": ["zeit.schritt", "Länge ü"], "sample_dim": "lauf nr."}


def odd_names() -> xr.Dataset:
    variable, (time, x), run_dim = ODD["variables"][0], ODD["modes"], ODD["sample_dim"]
    data = {variable: ((run_dim, time, x), FIELD, {"units": "K"}), "höhe.über NN": (x, np.arange(8.0))}
    return xr.Dataset(data, coords={x: np.arange(8.0), time: np.arange(6.0)})


def written(data: xr.Dataset, folder: Path, kind: str) -> str:
    """A source of this kind."""
    path = folder / f"source.{kind}"
    if kind in ("nc", "nc3"):
        data.to_netcdf(path, engine="h5netcdf" if kind == "nc" else "scipy")
    else:
        data.to_zarr(path, zarr_format=int(kind[-1]), consolidated=False)
    return str(path)


def all_through(root: Path, data: dict[str, Any]) -> xr.Dataset:
    """Samples of a tiny model, after all stages; they were written in all formats, and encoded and decoded again."""
    recipe = small_recipe(root, {"split": {"test": 0.2}, **data}, decompose={"ranks": dict.fromkeys(data["modes"], 3)})
    run(recipe, ALL)
    model = diffats.load(root)
    fields = model.sample(2, seed=0)
    for engine in ("h5netcdf", "scipy"):
        fields.to_netcdf(root / f"samples.{engine}", engine=engine)
        with xr.open_dataset(root / f"samples.{engine}", engine=engine) as read:
            assert set(read.variables) == set(fields.variables)
    for version in (2, 3):
        place = root / f"samples{version}.zarr"
        fields.to_zarr(place, zarr_format=version, consolidated=False)
        assert set(xr.open_zarr(place, consolidated=False).variables) == set(fields.variables)
    again = model.decode(model.encode(fields))
    for name in again.data_vars:
        assert again[name].dims == fields[name].dims
        assert np.isfinite(again[name].values).all()
    return fields


def init(source: str, *given: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["init", source, "-o", f"{source}.toml", "--json", *given])
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, ["plan", f"{source}.toml"]).exit_code == 0
    made: dict[str, Any] = json.loads(result.stdout)
    return made


@pytest.mark.parametrize("kind", ["nc", "nc3", "zarr2", "zarr3"])
def test_spaces_dots_and_letters_of_other_languages(tmp_path: Path, kind: str) -> None:
    source = written(odd_names(), tmp_path, kind)
    init(source)
    samples = open_samples(small_recipe(tmp_path, {"source": source, **ODD}, decompose={"tolerance": 0.5}).data)
    np.testing.assert_array_equal(samples.read(range(24)), FIELD)
    if kind in ("nc", "zarr3"):  # stores have a coordinate "lauf nr." along their samples
        fields = all_through(tmp_path / "root", {"source": source, **ODD})
        assert dict(fields.sizes) == {"sample": 2, "zeit.schritt": 6, "Länge ü": 8}
        assert list(fields.data_vars) == ODD["variables"]


def test_windows_along_a_dim_with_a_space_in_its_name(tmp_path: Path) -> None:
    time = np.arange("2000-01-01", "2000-04-06", dtype="M8[D]").astype("M8[ns]")
    data = xr.Dataset({"u": (("zeit punkt", "x"), SERIES)}, coords={"zeit punkt": time})
    section = {**WINDOWS, "source": written(data, tmp_path, "nc"), "modes": ["zeit punkt", "x"]}
    section |= {"windows": {"size": {"zeit punkt": 6}}, "condition": {"initial": {"dim": "zeit punkt", "index": 0}}}
    init(section["source"])
    fields = all_through(tmp_path / "root", section)
    assert fields["zeit punkt"].values[1] - fields["zeit punkt"].values[0] == np.timedelta64(1, "D")


@pytest.mark.parametrize("dims", [("x", "run", "y"), ("run", "x", "y"), ("y", "x", "run")])
def test_two_variables_with_their_dims_in_another_order(tmp_path: Path, dims: tuple[str, ...]) -> None:
    v = xr.DataArray(10 + FIELD[:, ::-1], dims=("run", "y", "x")).transpose(*dims)
    data = xr.Dataset({"u": (("run", "y", "x"), FIELD), "v": v})
    section = {
        "source": written(data, tmp_path, "nc"),
        "variables": ["u", "v"],
        "modes": ["y", "x"],
        "sample_dim": "run",
    }
    init(str(section["source"]), "--set", "data.sample_dim=run")
    samples = open_samples(small_recipe(tmp_path, section, decompose={"tolerance": 0.5}).data)
    np.testing.assert_array_equal(samples.read(range(24)), np.stack([FIELD, 10 + FIELD[:, ::-1]], axis=1))
    if dims[0] == "x":
        fields = all_through(tmp_path / "root", section)
        assert fields["u"].dims == fields["v"].dims == ("sample", "y", "x")


# --- a dim whose name another variable has ------------------------------------------------------------------------


def in_zarr(folder: Path, dims: tuple[str, ...], version: int) -> str:
    """A series ``u(time, x)`` and a variable ``time`` with other dims."""
    group = zarr.open_group(folder / "source.zarr", mode="w", zarr_format=version)
    size = {"time": 96, "x": 8, "station": 20}
    for name, axes, values in (("u", ("time", "x"), SERIES), ("time", dims, np.zeros([size[dim] for dim in dims]))):
        named: dict[str, Any] = {"dimension_names": axes} if version == 3 else {}
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, **named)
        array[...] = values
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = list(axes)
    return str(folder / "source.zarr")


def in_netcdf3(folder: Path, dims: tuple[str, ...], _version: int = 3) -> str:
    """The same."""
    with netcdf_file(folder / "source.nc", "w") as file:
        for dim, n in {"time": 96, "x": 8, "station": 20}.items():
            file.createDimension(dim, n)
        file.createVariable("u", "f4", ("time", "x"))[:] = SERIES
        file.createVariable("time", "f8", dims).data[...] = 5.0
    return str(folder / "source.nc")


WINDOWS = {
    "variables": ["u"],
    "modes": ["time", "x"],
    "windows": {"size": {"time": 6}},
    "split": {"by": "block", "test": 0.25},
}


@pytest.mark.parametrize("dims", [("station",), ("time", "x"), ("x", "station"), ()], ids=str)
@pytest.mark.parametrize(("write", "version"), [(in_zarr, 2), (in_zarr, 3), (in_netcdf3, 3)])
def test_a_variable_with_the_name_of_a_dim_is_not_its_coordinate(
    tmp_path: Path,
    write: Callable[..., str],
    dims: tuple[str, ...],
    version: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = write(tmp_path, dims, version)
    init(source)
    samples = open_samples(small_recipe(tmp_path, {"source": source, **WINDOWS}, decompose={"tolerance": 0.5}).data)
    windows = samples.read(range(samples.n))
    np.testing.assert_array_equal(windows, [SERIES[start : start + 6] for start in samples.starts["time"]])
    assert "time" not in samples.template().coords
    if not dims:
        assert '"time" is a single number and left out, since a dim of it has the same name.' in caplog.text


@pytest.mark.parametrize("dims", [("station",), ("x", "station")], ids=str)
def test_all_stages_where_a_variable_has_the_name_of_a_dim(tmp_path: Path, dims: tuple[str, ...]) -> None:
    fields = all_through(tmp_path / "root", {"source": in_zarr(tmp_path, dims, 3), **WINDOWS})
    assert set(fields.variables) <= {"u", "sample"}


def test_a_coordinate_of_two_dims_with_the_name_of_one_stays(tmp_path: Path) -> None:
    places = np.arange(48.0).reshape(6, 8)
    data = xr.Dataset({"u": (("run", "y", "x"), FIELD), "x": (("y", "x"), places)})
    section = {"source": written(data, tmp_path, "zarr3"), "variables": ["u"], "modes": ["y", "x"], "sample_dim": "run"}
    fields = all_through(tmp_path / "root", section)
    np.testing.assert_array_equal(fields["x"].values, places)


# --- names that no store can take ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_a_slash_in_the_name_of_a_dim_is_refused(tmp_path: Path, version: int) -> None:
    group = zarr.open_group(tmp_path / "source.zarr", mode="w", zarr_format=version)
    dims = ["run", "y/1", "x"]
    named: dict[str, Any] = {"dimension_names": dims} if version == 3 else {}
    array = group.create_array("u", shape=FIELD.shape, dtype="f4", **named)
    array[:] = FIELD
    array.attrs["_ARRAY_DIMENSIONS"] = dims
    result = CliRunner().invoke(app, ["init", str(tmp_path / "source.zarr")])
    assert result.exit_code == 2
    assert 'name "y/1" cannot be stored' in result.stderr
    assert "Rename it in the source." in result.stderr


def test_a_slash_in_the_name_of_an_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "source.npz", **{"a/b": FIELD})
    result = CliRunner().invoke(app, ["init", str(tmp_path / "source.npz"), "-o", str(tmp_path / "a.toml")])
    assert result.exit_code == 2
    assert 'name "a/b" cannot be stored' in result.stderr
    with pytest.raises(InputError, match="Rename it in the source"):
        small_recipe(tmp_path, {"source": "source.npz", "variables": ["a/b"], "modes": ["y", "x"], "sample_dim": "run"})


def test_a_given_dim_of_samples_names_the_first_axis_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "source.npz", u=FIELD)
    made = init(str(tmp_path / "source.npz"), "--set", "data.sample_dim=run")
    assert 'sample_dim = "run"' in (tmp_path / "source.npz.toml").read_text(encoding="utf-8")
    assert made
    xr.Dataset({"u": (("run", "y", "x"), FIELD)}).to_netcdf(tmp_path / "source.nc", engine="h5netcdf")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "source.nc"), "--set", "data.sample_dim=runs"])
    assert result.exit_code == 2
    assert 'data.sample_dim names "runs", which the source does not have (it has: run, y, x).' in result.stderr
