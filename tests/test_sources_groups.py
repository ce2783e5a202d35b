"""Groups have what their parents have, and an array that nobody can read is in no one's way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import icechunk
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr

from diffats.config import Data
from diffats.errors import SourceError
from diffats.proposing.opened import open_unknown
from diffats.sources import open_samples

U = np.random.default_rng(0).normal(size=(12, 6, 8)).astype("f4")
DIMS = ("run", "y", "x")


def data(source: Path, **options: Any) -> Data:
    return Data(**{"source": str(source), "variables": ["u"], "modes": ["y", "x"], "sample_dim": "run", **options})


# --- groups -----------------------------------------------------------------------------------------------------


def nested(path: Path) -> None:
    """Dims and coordinates in the root and in a group below it, the field two groups further down."""
    with netCDF4.Dataset(path, "w") as root:
        for dim, size in (("y", 6), ("x", 8), ("run", 12)):
            root.createDimension(dim, size)
            root.createVariable(dim, "f8", (dim,))[:] = 2.0 * np.arange(size)
        root["x"].units = "m"
        root.createVariable("lat", "f4", ("y", "x"))[:] = 45
        root.createVariable("unrelated", "f4", ("y", "x"))[:] = 1
        ocean = root.createGroup("ocean")
        ocean.createVariable("x", "f8", ("x",))[:] = 2.0 * np.arange(8)
        ocean["x"].units = "km"
        model = ocean.createGroup("model")
        model.createVariable("u", "f4", DIMS)[:] = U
        model["u"].coordinates = "lat"


@pytest.mark.parametrize("engine", [None, "netcdf4"])
def test_a_group_has_the_coordinates_of_its_parents_the_nearest_first(engine: str | None, tmp_path: Path) -> None:
    nested(tmp_path / "a.nc")
    samples = open_samples(data(tmp_path / "a.nc", group="ocean/model", engine=engine))
    tree = xr.open_datatree(tmp_path / "a.nc", engine="h5netcdf")["ocean/model"]
    template = samples.template()
    assert set(tree.coords) == {"x", "y", "run"}
    for name in ("x", "y"):
        np.testing.assert_array_equal(template[name], tree[name])
    assert template["x"].attrs == {"units": "km"}
    np.testing.assert_array_equal(template["lat"], np.full((6, 8), 45))
    assert "unrelated" not in template
    np.testing.assert_array_equal(samples.sample_coords([3])["run"], [6.0])
    np.testing.assert_array_equal(samples.read([3]), U[[3]])


def test_a_dim_that_is_another_in_the_group_keeps_no_coordinate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as root:
        root.createDimension("x", 5)
        root.createVariable("x", "f8", ("x",))[:] = np.arange(5)
        model = root.createGroup("model")
        for dim, size in zip(DIMS, U.shape, strict=True):
            model.createDimension(dim, size)
        model.createVariable("u", "f4", DIMS)[:] = U
    samples = open_samples(data(tmp_path / "a.nc", group="model"))
    assert "x" not in samples.template().coords
    assert 'coordinate "x" above group "model" has another length' in caplog.text


@pytest.mark.parametrize("kind", ["zarr 2", "zarr 3", "icechunk"])
def test_groups_of_zarr_stores_too(kind: str, tmp_path: Path) -> None:
    storage = icechunk.local_filesystem_storage(str(tmp_path / "a"))
    session = icechunk.Repository.create(storage).writable_session("main") if kind == "icechunk" else None
    store: Any = tmp_path / "a" if session is None else session.store
    how: dict[str, Any] = {"consolidated": False, "zarr_format": 2 if kind == "zarr 2" else 3}
    xr.Dataset(coords={"x": 2.0 * np.arange(8), "y": ("y", np.arange(6), {"units": "m"})}).to_zarr(store, **how)
    xr.Dataset({"u": (DIMS, U)}).to_zarr(store, group="model/run1", mode="a", **how)
    if session is not None:
        session.commit("made")
    template = open_samples(data(tmp_path / "a", group="model/run1")).template()
    np.testing.assert_array_equal(template["x"], 2.0 * np.arange(8))
    assert template["y"].attrs == {"units": "m"}


# --- arrays that cannot be read -----------------------------------------------------------------------------------


def store(path: Path, version: Any, consolidated: bool = False) -> zarr.Group:
    dataset = xr.Dataset({"u": (DIMS, U)}, {"x": np.arange(8.0), "station": np.arange(3)})
    dataset.to_zarr(path, zarr_format=version, consolidated=False)
    root = zarr.open_group(path, mode="a")
    root.create_array("odd", data=np.arange(5.0), **({} if version == 2 else {"dimension_names": ["odd_dim"]}))
    if version == 2:
        root["odd"].attrs["_ARRAY_DIMENSIONS"] = ["odd_dim"]
    return root


def metadata(path: Path, name: str, change: Callable[[dict[str, Any]], str]) -> None:
    file = next(f for f in (path / name / "zarr.json", path / name / ".zarray") if f.is_file())
    file.write_text(change(json.loads(file.read_text())))


def without_dims(path: Path, name: str) -> None:
    metadata(path, name, lambda tree: json.dumps({key: v for key, v in tree.items() if key != "dimension_names"}))
    if (path / name / ".zattrs").is_file():
        (path / name / ".zattrs").write_text("{}")


def unknown_codec(path: Path, name: str) -> None:
    metadata(
        path, name, lambda tree: json.dumps({**tree, "codecs": [{"name": "nosuch"}], "compressor": {"id": "nosuch"}})
    )


def unknown_type(path: Path, name: str) -> None:
    metadata(path, name, lambda tree: json.dumps({**tree, "data_type": "nosuch", "dtype": "nosuch"}))


def half_written(path: Path, name: str) -> None:
    metadata(path, name, lambda tree: json.dumps(tree)[:40])


def damaged(path: Path, name: str) -> None:
    for file in (path / name).rglob("*"):
        if file.is_file() and not file.name.startswith((".z", "zarr.json")):
            file.write_bytes(b"\0\1\2")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("harm", [without_dims, unknown_codec, unknown_type, half_written])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_an_array_that_nobody_can_read_is_passed_over_by_name(
    harm: Callable[[Path, str], None], version: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.zarr"
    store(path, version)
    harm(path, "odd")
    samples = open_samples(data(path))
    np.testing.assert_array_equal(samples.read([1]), U[[1]])
    assert list(samples.template().coords) == ["x"]
    (said,) = caplog.messages
    assert 'array "odd" of' in said
    assert "passed over" in said
    assert open_unknown(str(path), {}).dataset.sizes["run"] == 12


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("harm", [without_dims, unknown_codec, unknown_type, half_written])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_one_that_the_recipe_names_is_refused_by_name(
    harm: Callable[[Path, str], None], version: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    store(path, version)
    harm(path, "u")
    with pytest.raises(SourceError, match=r'array "u" cannot be read: .* Write it anew, with names for its dims'):
        open_samples(data(path))


@pytest.mark.parametrize("version", [2, 3])
def test_a_coordinate_that_is_damaged_counts_where_it_is_used(
    version: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.zarr"
    store(path, version)
    damaged(path, "station")
    np.testing.assert_array_equal(open_samples(data(path)).read([1]), U[[1]])
    assert 'array "station" of' in caplog.text
    damaged(path, "x")
    with pytest.raises(SourceError, match='array "x" cannot be read'):
        open_samples(data(path, split={"test": 0.3}))


def hdf5(path: Path, change: Callable[[h5py.File], Any]) -> None:
    xr.Dataset({"u": (DIMS, U)}, {"x": np.arange(8.0)}).to_netcdf(path, engine="h5netcdf")
    with h5py.File(path, "a") as file:
        change(file)


def of_time(file: h5py.File) -> None:
    h5py.h5d.create(file.id, b"odd", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)))


def with_reference(file: h5py.File) -> None:
    file.create_dataset("odd", data=3.0).attrs["where"] = file["u"].ref


@pytest.mark.parametrize("add", [of_time, with_reference])
def test_hdf5_arrays_that_xarray_cannot_hold_are_passed_over(
    add: Callable[[h5py.File], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hdf5(tmp_path / "a.nc", add)
    np.testing.assert_array_equal(open_samples(data(tmp_path / "a.nc")).read([1]), U[[1]])
    (said,) = caplog.messages
    assert 'array "odd" of' in said


def test_hdf5_arrays_without_dims_are_no_one_s_concern(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hdf5(tmp_path / "a.nc", lambda file: file.create_dataset("odd", data=np.zeros((5, 7))))
    np.testing.assert_array_equal(open_samples(data(tmp_path / "a.nc")).read([1]), U[[1]])
    assert not caplog.messages
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["u"] = U
    names = ["phony_dim_0", "phony_dim_1", "phony_dim_2"]
    samples = open_samples(data(tmp_path / "plain.h5", sample_dim=names[0], modes=names[1:]))
    np.testing.assert_array_equal(samples.read([1]), U[[1]])


def test_a_field_of_a_group_whose_parent_cannot_be_read_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.nc"
    xr.Dataset(coords={"x": 2.0 * np.arange(8)}).to_netcdf(path, engine="h5netcdf")
    xr.Dataset({"u": (DIMS, U)}).to_netcdf(path, engine="h5netcdf", group="model", mode="a")
    with h5py.File(path, "a") as file:
        file.create_dataset("odd", data=3.0).attrs["where"] = file["x"].ref
    samples = open_samples(data(path, group="model"))
    np.testing.assert_array_equal(samples.read([1]), U[[1]])
    np.testing.assert_array_equal(samples.template()["x"], 2.0 * np.arange(8))
    assert 'array "odd" of' in caplog.text


def test_a_coordinate_that_h5netcdf_confuses_with_others_is_refused(tmp_path: Path) -> None:
    nested(tmp_path / "a.nc")  # by the NetCDF library, which numbers its dims
    with h5py.File(tmp_path / "a.nc", "a") as file:
        file["odd"] = np.zeros(5)
    with pytest.raises(SourceError, match=r'coordinate "y" cannot be told .* set data\.engine = "netcdf4"'):
        open_samples(data(tmp_path / "a.nc", group="ocean/model"))
    samples = open_samples(data(tmp_path / "a.nc", group="ocean/model", engine="netcdf4"))
    np.testing.assert_array_equal(samples.template()["y"], 2.0 * np.arange(6))
