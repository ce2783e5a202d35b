"""Sources opened by recipe alone, as a user brings them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cftime
import fsspec
import icechunk
import numpy as np
import pytest
import xarray as xr

from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources import Samples, decoded_dataset, open_samples, opening, template_from_json, template_to_json

FIELDS = np.random.default_rng(0).normal(size=(12, 6, 8)).astype(np.float32)


def fields() -> xr.Dataset:
    return xr.Dataset(
        {
            "u": (("run", "y", "x"), FIELDS, {"units": "m s-1", "long_name": "wind"}),
            "nu": ("run", np.linspace(1, 2, 12)),
        },
        coords={"run": np.arange(100, 112), "y": ("y", np.linspace(0, 1, 6), {"units": "m"})},
        attrs={"title": "made up", "history": "made"},
    )


def data(source: object, **options: Any) -> Data:
    return Data(**{"source": str(source), "variables": ["u"], "modes": ["y", "x"], "sample_dim": "run", **options})


def check(samples: Samples, expected: np.ndarray = FIELDS) -> None:
    assert samples.n == len(expected)
    assert samples.modes == ("y", "x")
    np.testing.assert_array_equal(samples.read([4, 0, 3]), expected[[4, 0, 3]])


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
def test_netcdf(tmp_path: Path, engine: str) -> None:
    fields().to_netcdf(tmp_path / "a.nc", engine=engine)
    samples = open_samples(data(tmp_path / "a.nc"))
    check(samples)
    template = samples.template()
    assert template["u"].attrs == {"units": "m s-1", "long_name": "wind"}
    assert template.attrs["history"] == "made"
    np.testing.assert_array_equal(template["y"], np.linspace(0, 1, 6))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_zarr(tmp_path: Path, zarr_format: Any, consolidated: bool) -> None:
    fields().to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, consolidated=consolidated)
    check(open_samples(data(tmp_path / "a.zarr")))


def test_zarr_group(tmp_path: Path) -> None:
    fields().to_zarr(tmp_path / "a.zarr", group="inner/deep", consolidated=False, zarr_format=3)
    check(open_samples(data(tmp_path / "a.zarr", group="inner/deep")))
    with pytest.raises(SourceError, match=r'group "other".*data\.group'):
        open_samples(data(tmp_path / "a.zarr", group="other"))


def test_icechunk(tmp_path: Path) -> None:
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))
    first = _commit(repository, fields(), tmp_path)
    fingerprint = first.fingerprint()
    check(first)
    second = _commit(repository, fields() * 2, tmp_path)
    check(second, FIELDS * 2)
    assert second.fingerprint() != fingerprint


def _commit(repository: icechunk.Repository, dataset: xr.Dataset, tmp_path: Path) -> Samples:
    session = repository.writable_session("main")
    dataset.to_zarr(session.store, mode="w", consolidated=False, zarr_format=3)
    session.commit("fields")
    return open_samples(data(tmp_path / "repo"))


def test_npy_names_dims_by_recipe(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", FIELDS)
    check(open_samples(data(tmp_path / "u.npy", variables=[])))
    with pytest.raises(SourceError, match=r"2 dims \(y, x\).*u \(12, 6, 8\)"):
        open_samples(data(tmp_path / "u.npy", variables=[], sample_dim=None, windows={"size": {"y": 2}}))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_are_variables(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", u=FIELDS, v=FIELDS + 1, nu=np.arange(12.0), mask=np.ones((6, 8)), y=np.arange(6) * 2.0)
    path = tmp_path / "a.npz"
    samples = open_samples(data(path, condition={"scalars": ["nu"], "fields": ["mask"]}))
    check(samples)
    raw = samples.conditions([2, 5], samples.read([2, 5]))
    np.testing.assert_array_equal(raw["scalar_nu"], [2, 5])
    assert raw["field_mask"].shape == (2, 6, 8)
    np.testing.assert_array_equal(samples.template()["y"], np.arange(6) * 2.0)
    both = open_samples(data(path, variables=["u", "v"]))
    assert both.sizes == {"component": 2, "y": 6, "x": 8}
    np.testing.assert_array_equal(both.read([4]), np.stack([FIELDS[[4]], FIELDS[[4]] + 1], axis=1))


def test_objects_in_npy_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", np.array([{}, None], dtype=object))
    with pytest.raises(SourceError, match="holds objects"):
        open_samples(data(tmp_path / "u.npy"))


@pytest.mark.parametrize("kind", ["zarr", "npy", "npz", "nc"])
@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_urls(tmp_path: Path, kind: str, scheme: str) -> None:
    folder = f"memory://{tmp_path.name}-{kind}" if scheme == "memory" else f"file://{tmp_path}"
    _write(fields(), f"{folder}/a.{kind}", tmp_path)
    name = [] if kind == "npy" else ["u"]
    samples = open_samples(data(f"{folder}/a.{kind}", variables=name))
    check(samples, FIELDS)
    assert samples.fingerprint() == samples.fingerprint()
    windowed = open_samples(data(f"{folder}/a.{kind}", variables=name, windows={"size": {"x": 3}}))
    np.testing.assert_array_equal(windowed.read([3]), FIELDS[1:2, :, 3:6])


def _write(dataset: xr.Dataset, url: str, tmp_path: Path) -> None:
    if url.endswith("zarr"):
        dataset.to_zarr(url.removeprefix("file://"), consolidated=False, zarr_format=3)
        return
    local = tmp_path / ("local." + url.rsplit(".", 1)[1])
    if url.endswith("npy"):
        np.save(local, dataset["u"].values)
    elif url.endswith("npz"):
        np.savez(local, u=dataset["u"].values)
    else:
        dataset.to_netcdf(local, engine="h5netcdf")
    with fsspec.open(url, "wb") as file:
        file.write(local.read_bytes())


@pytest.mark.parametrize("order", ["C", "F"])
def test_remote_array_reads_any_slice(order: Any) -> None:
    values = np.asarray(np.arange(5 * 7 * 9, dtype=np.int32).reshape(5, 7, 9), order=order)
    with fsspec.open("memory://any/u.npy", "wb") as file:
        np.save(file, values)
    array = open_samples(Data(source="memory://any/u.npy", modes=["y", "x"], sample_dim="run")).dataset["u"]
    for key in [(2,), (slice(1, 4), 3), (slice(0, 5, 2), slice(2, 6), slice(1, 8, 3)), (slice(3, 3),), (1, 2, 3)]:
        np.testing.assert_array_equal(array[key].values, values[key])


def test_remote_array_skips_what_it_does_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffats.sources.arrays._SMALL", 64)
    values = np.arange(4 * 50 * 3.0).reshape(4, 50, 3)
    with fsspec.open("memory://skip/u.npy", "wb") as file:
        np.save(file, values)
    array = open_samples(Data(source="memory://skip/u.npy", modes=["y", "x"], sample_dim="run")).dataset["u"]
    np.testing.assert_array_equal(array[1:3, 10:20, 1:].values, values[1:3, 10:20, 1:])


def test_glob_joins_by_coordinate_not_by_name(tmp_path: Path) -> None:
    whole = fields()
    for name, part in {"c": slice(0, 4), "a": slice(4, 7), "b": slice(7, 12)}.items():
        whole.isel(run=part).to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    samples = open_samples(data(tmp_path / "*.nc", condition={"scalars": ["nu"]}))
    check(samples)
    np.testing.assert_array_equal(samples.dataset["u"].values, FIELDS)
    np.testing.assert_array_equal(samples.dataset["u"][2:11:4, 1, ::2].values, FIELDS[2:11:4, 1, ::2])
    np.testing.assert_array_equal(samples.dataset["u"][5].values, FIELDS[5])
    np.testing.assert_allclose(samples.conditions([8], FIELDS[:1])["scalar_nu"], whole["nu"][8])


def test_glob_stacks_files_without_the_dim(tmp_path: Path) -> None:
    for i in range(5):
        fields().isel(run=i, drop=True).to_netcdf(tmp_path / f"{i}.nc", engine="h5netcdf")
    check(open_samples(data(tmp_path / "*.nc", concat_dim="run")), FIELDS[:5])
    check(open_samples(data(tmp_path / "?.nc")), FIELDS[:5])  # no coordinate differs: the dim of samples


def test_glob_merges_variables(tmp_path: Path) -> None:
    fields()[["u"]].to_netcdf(tmp_path / "u.nc", engine="h5netcdf")
    fields()[["u"]].rename(u="v").to_netcdf(tmp_path / "v.nc", engine="h5netcdf")
    assert open_samples(data(tmp_path / "*.nc", variables=["u", "v"])).sizes["component"] == 2


def test_glob_that_does_not_fit(tmp_path: Path) -> None:
    fields().isel(run=slice(6)).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    fields().isel(run=slice(6, 12), x=slice(3)).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(SourceError, match=r'dim "x" has 8 points in .*a\.nc but 3 in .*b\.nc'):
        open_samples(data(tmp_path / "*.nc"))
    with pytest.raises(SourceError, match="matches no file"):
        open_samples(data(tmp_path / "*.hdf"))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("i2", "f4"), ("u2", "f4"), ("i4", "f8"), ("f4", "f4"), (">f4", "f4"), ("f8", "f8"), ("?", "f4")],
)
def test_dtypes(tmp_path: Path, dtype: str, stored: str) -> None:
    np.save(tmp_path / "u.npy", (FIELDS * 10).astype(dtype))
    samples = open_samples(data(tmp_path / "u.npy", variables=[]))
    assert samples.dtype == np.dtype(stored)
    assert samples.read([1]).dtype == np.dtype(stored)
    assert samples.bytes_per_sample == 48 * np.dtype(stored).itemsize
    assert samples.nbytes == 12 * samples.bytes_per_sample


def test_packed_numbers_and_missing(tmp_path: Path) -> None:
    dataset = fields()
    dataset["u"][3, 2, 1] = np.nan
    packing = {"dtype": "i2", "scale_factor": 0.001, "add_offset": 1.0, "_FillValue": -32768}
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding={"u": packing})
    x = open_samples(data(tmp_path / "a.nc")).read([3])
    assert np.isnan(x[0, 2, 1])
    np.testing.assert_allclose(np.nan_to_num(x[0]), np.nan_to_num(dataset["u"][3]), atol=6e-4)


def test_dims_of_size_one_are_left_out_and_survive_as_coordinates(tmp_path: Path) -> None:
    dataset = fields()[["u"]].expand_dims(level=[850.0]).transpose("x", "level", "run", "y")
    dataset["level"].attrs["units"] = "hPa"
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    samples = open_samples(data(tmp_path / "a.nc"))
    check(samples)
    assert samples.template()["level"].item() == 850
    assert samples.template()["level"].attrs["units"] == "hPa"


def climate() -> xr.Dataset:
    time = xr.date_range("2000-01-01", periods=72, freq="MS", calendar="360_day", use_cftime=True)
    bounds = np.stack([time, time.shift(1, "MS")], axis=1)
    dataset = xr.Dataset(
        {
            "tas": (
                ("time", "lat", "lon"),
                np.random.default_rng(1).normal(size=(72, 4, 5)),
                {"units": "K", "grid_mapping": "crs"},
            )
        },
        coords={
            "time": ("time", time, {"bounds": "time_bnds", "standard_name": "time"}),
            "time_bnds": (("time", "bnds"), bounds),
            "lat": ("lat", [10.0, 20, 40, 80], {"units": "degrees_north", "bounds": "lat_bnds"}),
            "lat_bnds": (("lat", "bnds"), np.array([[5.0, 15], [15, 30], [30, 60], [60, 90]])),
            "lon": ("lon", [350.0, 355, 0, 5, 10], {"units": "degrees_east"}),
            "crs": ((), 0, {"grid_mapping_name": "latitude_longitude"}),
            "height": ((), 2.0, {"units": "m"}),
        },
    )
    dataset["time"].encoding = {"units": "days since 2000-01-01", "calendar": "360_day"}
    return dataset


@pytest.fixture
def climate_samples(tmp_path: Path) -> Samples:
    climate().to_netcdf(tmp_path / "tas.nc", engine="h5netcdf")
    return open_samples(
        Data(
            source=str(tmp_path / "tas.nc"),
            modes=["time", "lat", "lon"],
            windows={"size": {"time": 12}, "stride": {"time": 6}},
            split={"by": "block"},
        )
    )


def test_climate_coordinates_survive(climate_samples: Samples) -> None:
    samples = climate_samples
    assert samples.variables == ("tas",)
    template = template_from_json(template_to_json(samples.template()))
    xr.testing.assert_identical(template, samples.template())
    assert set(template.coords) == {"time", "lat", "lat_bnds", "lon", "crs", "height"}
    assert template["time"].values[2] == np.timedelta64(60, "D")
    assert template["tas"].attrs["grid_mapping"] == "crs"
    assert template["lat"].attrs["bounds"] == "lat_bnds"
    np.testing.assert_array_equal(template["lon"], [350, 355, 0, 5, 10])
    x = samples.read([0, 2])
    decoded = decoded_dataset(x, template, samples.sample_coords([0, 2]))
    assert decoded["tas"].dims == ("sample", "time", "lat", "lon")
    assert decoded["tas"].attrs["units"] == "K"
    assert isinstance(decoded["time_origin"].values[0], cftime.Datetime360Day)
    start = int(samples.starts["time"][2])
    np.testing.assert_array_equal(decoded["tas"][1], climate()["tas"][start : start + 12])


def test_decoded_output_is_an_ordinary_dataset(climate_samples: Samples, tmp_path: Path) -> None:
    decoded = decoded_dataset(
        climate_samples.read([0, 1, 2]), climate_samples.template(), climate_samples.sample_coords([0, 1, 2])
    )
    decoded.to_zarr(tmp_path / "out.zarr", consolidated=False, zarr_format=3)
    again = xr.open_zarr(tmp_path / "out.zarr", consolidated=False, chunks=None, decode_coords="all")
    assert set(again.coords) == set(decoded.coords)
    np.testing.assert_array_equal(again["time_origin"], decoded["time_origin"])
    np.testing.assert_array_equal(again["tas"], decoded["tas"])
    decoded.to_netcdf(tmp_path / "out.nc", engine="h5netcdf")


def test_unsorted_windowed_dim_has_no_offsets(tmp_path: Path) -> None:
    climate().to_netcdf(tmp_path / "tas.nc", engine="h5netcdf")
    samples = open_samples(
        Data(source=str(tmp_path / "tas.nc"), modes=["lat", "lon"], sample_dim="time", windows={"size": {"lon": 2}})
    )
    assert set(samples.template().coords) == {"lat", "lat_bnds", "crs", "height"}
    coords = samples.sample_coords([0, 1])
    np.testing.assert_array_equal(coords["lon_origin"], climate()["lon"].values[[0, 2]])
    assert coords["time"].values[1] == climate()["time"].values[0]
    assert coords["time_bnds"].dims == ("sample", "bnds")


def test_builtin_indian_pines() -> None:
    options: dict[str, Any] = {
        "modes": ["y", "x", "band"],
        "windows": {"size": {"y": 16, "x": 16}, "stride": {"y": 4, "x": 4}},
        "split": {"by": "block"},
        "condition": {"labels": "label"},
    }
    samples = open_samples(Data(source="builtin:indian-pines", variables=["reflectance"], **options))
    assert samples.sizes == {"y": 16, "x": 16, "band": 200}
    assert samples.label_names[11] == "soybean_mintill"
    template = samples.template()
    assert "CC BY 3.0" in template.attrs["license"]
    assert "10.4231/R7RX991C" in template.attrs["references"]
    x = samples.read([0, 1])
    assert x.dtype == np.float32
    assert 900 < x.min() < x.max() < 10000
    with pytest.raises(SourceError, match='Did you mean "indian-pines"'):
        open_samples(Data(source="builtin:indian-pine", **options))


def test_indian_pines_is_what_tensorly_loads() -> None:
    from tensorly.datasets import load_indian_pines

    bunch, samples = (
        load_indian_pines(),
        open_samples(Data(source="builtin:indian-pines", modes=["y", "x", "band"], windows={"size": {"y": 16}})),
    )
    np.testing.assert_array_equal(samples.dataset["reflectance"], bunch.tensor)
    np.testing.assert_array_equal(samples.dataset["label"], bunch.ticks[0])
    # the counts by which the class names are known
    assert np.bincount(bunch.ticks[0].ravel())[1:5].tolist() == [46, 1428, 830, 237]


def test_opening_is_shared_pickled_and_refreshed(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", FIELDS)
    section = data(tmp_path / "u.npy", variables=[])
    samples = open_samples(section, 3)
    assert open_samples(section, 3) is samples
    assert pickle.loads(pickle.dumps(samples)) is samples  # noqa: S301 - our own bytes
    np.save(tmp_path / "u.npy", FIELDS[:9])
    again = open_samples(section, 3)
    assert again.n == 9
    assert again.fingerprint() != samples.fingerprint()


def test_a_relative_path_works_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "u.npy", FIELDS)
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(open_samples(data("u.npy", variables=[])))
    monkeypatch.chdir("/")
    check(pickle.loads(sent))  # noqa: S301 - our own bytes


def test_time_units_that_cannot_be_decoded_stay_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time = xr.Variable("run", np.arange(12.0), {"units": "months since 2000-01-15", "calendar": "standard"})
    fields().assign_coords(run=time).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    samples = open_samples(data(tmp_path / "a.nc"))
    check(samples)
    assert samples.sample_coords([3])["run"].values.tolist() == [3.0]
    assert "months since 2000-01-15" in samples.sample_coords([3])["run"].attrs["undecoded_units"]
    assert "stay numbers" in caplog.text


def test_reading_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields().to_zarr(tmp_path / "a.zarr", consolidated=False, zarr_format=3)
    for chunk in (tmp_path / "a.zarr" / "u" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
            chunk.write_bytes(b"not a chunk")  # opening must not look at it
    samples = open_samples(data(tmp_path / "a.zarr"))
    assert samples.template().sizes == {"y": 6, "x": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": ["U10"]}, r'data\.variables names "U10".*Did you mean "u"'),
        ({"modes": ["y", "lon"]}, r'data\.modes names "lon", which variable "u" does not have \(it has: run, y, x\)'),
        ({"sample_dim": "runs"}, r'data\.sample_dim names "runs".*Did you mean "run"'),
        ({"modes": ["y"]}, r'dim "x" of size 8.*neither'),
        ({"windows": {"size": {"x": 9}}}, r'size 9 for dim "x" exceeds its length 8.*Use at most 8'),
        ({"condition": {"scalars": ["nux"]}}, r'scalars names "nux".*Did you mean "nu"'),
        ({"condition": {"scalars": ["u"]}}, r'scalars: "u" has dim "y"'),
        ({"condition": {"labels": "kind"}}, r'labels names "kind"'),
        ({"condition": {"initial": {"dim": "x", "index": 8}}}, r'index 8 is outside dim "x" of size 8'),
        ({"split": {"by": "coordinate", "coordinate": "lat"}}, r'coordinate names "lat"'),
        ({"split": {"by": "coordinate", "coordinate": "y"}}, r'"y" has dims \(y\), expected one of: run'),
        ({"split": {"by": "coordinate", "coordinate": "run", "values": [7]}}, r"7\.0, which coordinate"),
        ({"split": {"test": 0.95}}, "leaves 1 training"),
        ({"group": "inner"}, r'group "inner"'),
    ],
)
def test_errors_name_the_fix(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    fields().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(SourceError, match=message) as caught:
        open_samples(data(tmp_path / "a.nc", **options))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (FIELDS * 1j, "complex64.*real numbers"),
        (np.zeros((12, 6, 8), "M8[ns]"), "datetime64.*times"),
        (np.full((12, 6, 8), "a", dtype=object), "text or objects"),
        (FIELDS[:0], 'dim "run" has size 0'),
        (FIELDS[:2], "2 samples come from"),
    ],
)
def test_fields_that_cannot_be_used(tmp_path: Path, values: np.ndarray, message: str) -> None:
    dataset = xr.Dataset({"u": (("run", "y", "x"), values)})
    dataset.to_zarr(tmp_path / "a.zarr", consolidated=False, zarr_format=2)
    with pytest.raises(SourceError, match=message):
        open_samples(data(tmp_path / "a.zarr"))


def test_missing_and_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "broken.nc").write_bytes(b"\x89HDF but not really")
    (tmp_path / "text.nc").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    for name, message in {
        "broke.nc": 'Did you mean "broken.nc"',
        "none/a.nc": "does not exist",
        "broken.nc": "cannot be read as h5netcdf",
        "text.nc": "cannot be read",
        "folder": "neither a Zarr store nor an Icechunk",
        "cut.npy": "cannot be read as numpy",
    }.items():
        with pytest.raises(SourceError, match=message):
            open_samples(data(tmp_path / name))
    for url in ("memory://none/a.zarr", "nosuchscheme://a/b.nc"):
        with pytest.raises(SourceError, match=r"does not exist|cannot be reached"):
            open_samples(data(url))


def test_several_variables_and_none_named(tmp_path: Path) -> None:
    dataset = fields()
    dataset["v"] = dataset["u"] + 1
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(SourceError, match=r"2 variables with dims run, x, y: u, v\. Set data\.variables"):
        open_samples(data(tmp_path / "a.nc", variables=[]))
    samples = open_samples(data(tmp_path / "a.nc", variables=["v", "u"]))
    assert samples.modes == ("component", "y", "x")
    decoded = decoded_dataset(samples.read([1]), samples.template())
    np.testing.assert_array_equal(decoded["u"], FIELDS[[1]])
    dataset.rename(x="sample").to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(SourceError, match='"sample", a name that the stores use'):
        open_samples(data(tmp_path / "b.nc", modes=["y", "sample"]))


def test_a_new_format_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_csv(path: str, recipe: Data) -> xr.Dataset:
        table = np.loadtxt(path, delimiter=",", skiprows=1).reshape(-1, 2, 3)
        return xr.Dataset({"u": ((recipe.sample_dim, *recipe.modes), table)})

    row = opening.Kind("csv", lambda place: place.magic.startswith(b"#"), open_csv)
    monkeypatch.setattr(opening, "KINDS", (*opening.KINDS, row))
    np.savetxt(tmp_path / "a.txt", np.arange(24.0).reshape(4, 6), delimiter=",", header="u")
    for options in ({}, {"engine": "csv"}):
        samples = open_samples(data(tmp_path / "a.txt", **options))
        np.testing.assert_array_equal(samples.read([1]), np.arange(6.0, 12).reshape(1, 2, 3))


def test_a_changed_chunk_of_a_remote_store_changes_the_fingerprint(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-changed/a.zarr"
    fields().to_zarr(url, consolidated=False, zarr_format=3)
    before = Samples(data(url)).fingerprint()
    assert Samples(data(url)).fingerprint() == before
    chunk = next(file for file in fsspec.filesystem("memory").find(url) if "/u/c/" in file)
    with fsspec.open(f"memory://{chunk}", "ab") as file:
        file.write(b"more")
    assert Samples(data(url)).fingerprint() != before


def test_looking_at_a_remote_store_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path.name}-bounded/a.zarr"
    fields().chunk(run=1).to_zarr(url, consolidated=False, zarr_format=3)
    system = fsspec.filesystem("memory")
    listed: list[str] = []
    plain = type(system).ls
    monkeypatch.setattr(
        type(system), "ls", lambda self, path, *a, **o: listed.append(path) or plain(self, path, *a, **o)
    )
    monkeypatch.setattr(opening, "_MANY_LISTINGS", 4)
    for deep in (True, False):
        listed.clear()
        opening.stamp(data(url), deep=deep)
        assert 1 <= len(listed) <= 8


def test_only_small_coordinates_go_with_samples(tmp_path: Path) -> None:
    dataset = fields().assign_coords(
        place=("run", [f"station {i}" for i in range(12)]),
        corners=(("run", "corner"), np.zeros((12, 4))),
        height=(("run", "y", "x"), FIELDS.astype(np.float64)),
        orography=(("run", "eta", "xi"), np.zeros((12, 40, 40))),
    )
    dataset.to_netcdf(tmp_path / "a.nc")
    coords = open_samples(data(tmp_path / "a.nc")).sample_coords([3, 5])
    assert {"run", "place", "corners", "height"} <= set(coords)  # 384 bytes a sample
    assert "orography" not in coords
    assert coords["place"].values.tolist() == ["station 3", "station 5"]


def test_a_lone_array_takes_the_name_that_the_recipe_gives_it(tmp_path: Path) -> None:
    values = np.arange(240.0).reshape(10, 6, 4)
    np.save(tmp_path / "lines.npy", values)
    np.savez(tmp_path / "lines.npz", speed=values)
    data = Data(source=str(tmp_path / "lines.npy"), variables=["u"], modes=["t", "x"], sample_dim="run")
    np.testing.assert_array_equal(open_samples(data).read([3]), values[[3]])
    with pytest.raises(SourceError, match=r'names "u", which .*lines.npz does not have \(it has: speed\)'):
        open_samples(data.model_copy(update={"source": str(tmp_path / "lines.npz")}))
