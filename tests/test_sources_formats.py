"""Files are told by their first bytes: what needs a package says which, what nothing reads says what to do."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

from diffats import requirements
from diffats.config import Data
from diffats.errors import MissingPackageError, SourceError
from diffats.sources import Samples, open_samples, opening

U = np.random.default_rng(0).normal(size=(12, 6, 8)).astype("f4")
DIMS = ("run", "y", "x")


def data(source: Path, **options: Any) -> Data:
    return Data(**{"source": str(source), "modes": ["y", "x"], "sample_dim": "run", **options})


def absent(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in modules else find_spec(name))


# --- the NetCDF formats and HDF5 ------------------------------------------------------------------------------------


def netcdf(path: Path, kind: str) -> None:
    with netCDF4.Dataset(path, "w", format=kind) as file:
        for dim, size in zip(DIMS, U.shape, strict=True):
            file.createDimension(dim, size)
        file.createVariable("u", "f4", DIMS)[:] = U


def test_cdf_5_names_its_package_where_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netcdf(tmp_path / "cesm.nc", "NETCDF3_64BIT_DATA")
    np.testing.assert_array_equal(open_samples(data(tmp_path / "cesm.nc")).read([3]), U[[3]])
    absent(monkeypatch, "netCDF4")
    with pytest.raises(
        MissingPackageError, match=r"cesm\.nc, which is NetCDF in CDF-5, needs netCDF4, .*'diffats\[netcdf4\]'"
    ):
        Samples(data(tmp_path / "cesm.nc"))


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF4", "NETCDF4_CLASSIC"])
def test_the_other_kinds_need_none(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "netCDF4")
    netcdf(tmp_path / "a.nc", kind)
    np.testing.assert_array_equal(Samples(data(tmp_path / "a.nc")).read([3]), U[[3]])
    with pytest.raises(MissingPackageError, match=r'data\.engine = "netcdf4" needs netCDF4, '):
        Samples(data(tmp_path / "a.nc", engine="netcdf4"))


def test_hdf5_behind_a_user_block(tmp_path: Path) -> None:
    xr.Dataset({"u": (DIMS, U)}).to_netcdf(tmp_path / "plain.h5", engine="h5netcdf")
    plain = (tmp_path / "plain.h5").read_bytes()
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        for axis, (dim, size) in enumerate(zip(DIMS, U.shape, strict=True)):
            file.create_dataset(dim, data=np.arange(size)).make_scale(dim)
            file.require_dataset("u", U.shape, "f4").dims[axis].attach_scale(file[dim])
        file["u"][...] = U
    with (tmp_path / "a.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file")
    np.testing.assert_array_equal(open_samples(data(tmp_path / "a.mat")).read([3]), U[[3]])
    assert plain.startswith(b"\x89HDF")


# --- what nothing here reads ----------------------------------------------------------------------------------------


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.nc", b"CDF\x01")


def float_tiff(path: Path) -> None:
    Image.fromarray(U[0]).save(path, format="TIFF")


FOREIGN: dict[str, tuple[Callable[[Path], Any] | bytes, str]] = {
    "HDF4": (b"\x0e\x03\x13\x01" + bytes(60), "it is HDF4. Convert it to NetCDF or HDF5, for example with h4toh5"),
    "BUFR": (b"BUFR" + bytes(60), "it is BUFR. Convert it"),
    "FITS": (b"SIMPLE  =                    T", "it is FITS. Read it with astropy"),
    "MATLAB 5": (b"MATLAB 5.0 MAT-file", "it is a MATLAB file. Read it with scipy.io.loadmat"),
    "Parquet": (b"PAR1" + bytes(60), "it is a Parquet table. Read it with pandas"),
    "gzip": (gzip.compress(b"\x89HDF"), "it is compressed with gzip. Unpack it with gunzip."),
    "bzip2": (bz2.compress(b"\x89HDF"), "it is compressed with bzip2"),
    "xz": (lzma.compress(b"\x89HDF"), "it is compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "it is compressed with zstd"),
    "Zip": (zipped, "it is a Zip archive. Unpack it"),
    "NumPy": (b"\x93NUMPY" + bytes(60), "it is a NumPy array. Let its name end in .npy"),
    "TIFF": (float_tiff, 'Run pip install rioxarray, and set data.engine = "rasterio".'),
    "web page": (b"<!DOCTYPE html><html>Log in", "it is a web page or XML, not the data. Download it anew"),
    "XML": (b"\n<?xml version='1.0'?><Error/>", "it is a web page or XML"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "it is a pointer of Git LFS, not the data. Run git lfs",
    ),
    "nothing": (b"", "it is empty. Copy it anew"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["a.nc", "a"])
def test_what_nothing_reads_says_what_it_is(kind: str, name: str, tmp_path: Path) -> None:
    made, says = FOREIGN[kind]
    if isinstance(made, bytes):
        (tmp_path / name).write_bytes(made)
    else:
        made(tmp_path / name)
    with pytest.raises(SourceError) as refused:
        open_samples(data(tmp_path / name))
    assert f'"{tmp_path / name}" cannot be read as netcdf: ' in str(refused.value)
    assert says in str(refused.value)


# --- what a pattern matches beside the data -------------------------------------------------------------------------


def files(folder: Path) -> None:
    for i in range(3):
        part = xr.Dataset({"u": (DIMS, U[4 * i : 4 * i + 4])}, {"run": np.arange(4 * i, 4 * i + 4)})
        part.to_netcdf(folder / f"part.f{i:03d}", engine="h5netcdf")


def test_what_others_leave_beside_the_data_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files(tmp_path)
    before = open_samples(data(tmp_path / "part.f*")).fingerprint()
    for name in ("part.f000.5b7b6.idx", "part.f001.idx", "part.f002.lock", "part.f002.md5"):
        (tmp_path / name).write_bytes(b"no data")
    samples = Samples(data(tmp_path / "part.f*"))
    assert samples.n == 12
    assert samples.fingerprint() == before
    (said,) = caplog.messages
    assert said.endswith("is passed over: part.f000.5b7b6.idx, part.f001.idx, part.f002.lock, part.f002.md5.")


def test_what_lies_there_alone_is_no_companion(tmp_path: Path) -> None:
    files(tmp_path)
    (tmp_path / "part.lock").write_bytes(b"")
    with pytest.raises(SourceError, match=r'part\.lock" cannot be read as netcdf: it is empty\. .* it may be a lock'):
        open_samples(data(tmp_path / "part.*"))


def test_links_whose_target_is_gone_are_named(tmp_path: Path) -> None:
    files(tmp_path)
    for i in range(7):
        os.symlink(tmp_path / "archive" / f"gone{i}", tmp_path / f"part.f1{i}0")
    gone = f"{tmp_path}/part.f100 -> {tmp_path}/archive/gone0"
    with pytest.raises(SourceError) as many:
        open_samples(data(tmp_path / "part.f*"))
    assert f"matches links to files that do not exist: {gone}, " in str(many.value)
    assert "and 2 more. Mend or remove them" in str(many.value)
    with pytest.raises(SourceError) as one:
        open_samples(data(tmp_path / "part.f100"))
    assert gone in str(one.value)
    os.symlink(tmp_path / "part.f000", tmp_path / "part.f999")  # one whose target is there is a file as any
    assert open_samples(data(tmp_path / "part.f999")).n == 4


# --- GRIB -----------------------------------------------------------------------------------------------------------


def grib(path: Path, fields: Sequence[dict[str, Any]], values: np.ndarray = U) -> None:
    """Fields ``(latitude, longitude)`` with some keys, written by ecCodes itself."""
    eccodes = pytest.importorskip("eccodes")
    pytest.importorskip("cfgrib")
    grid = {"Ni": 8, "Nj": 6, "latitudeOfFirstGridPointInDegrees": 50.0, "latitudeOfLastGridPointInDegrees": 45.0}
    grid |= {"longitudeOfFirstGridPointInDegrees": 0.0, "longitudeOfLastGridPointInDegrees": 7.0}
    grid |= {"iDirectionIncrementInDegrees": 1.0, "jDirectionIncrementInDegrees": 1.0, "dataDate": 20200101}
    with path.open("wb") as file:
        for i, keys in enumerate(fields):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            for key, value in {**grid, **keys}.items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, values[i % len(values)].ravel().astype(float))
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)


def grib_data(source: Path, **options: Any) -> Data:
    return data(source, **{"modes": ["latitude", "longitude"], "sample_dim": "step", **options})


def temperatures(steps: Sequence[int]) -> list[dict[str, Any]]:
    return [{"shortName": "2t", "step": step} for step in steps]


@pytest.mark.parametrize("engine", [None, "cfgrib"])
def test_grib_is_read_and_nothing_is_left_beside_it(engine: str | None, tmp_path: Path) -> None:
    for i in range(3):
        grib(tmp_path / f"gfs.t00z.pgrb2.f{i:03d}", temperatures(range(4 * i, 4 * i + 4)), U[4 * i :])
    before = sorted(path.name for path in tmp_path.iterdir())
    first = Samples(grib_data(tmp_path / "gfs.t00z.pgrb2.f*", engine=engine))
    np.testing.assert_allclose(first.read(range(12)), U, atol=1e-3)  # GRIB packs numbers
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    template = first.template()
    np.testing.assert_array_equal(template["latitude"], np.arange(50.0, 44.0, -1))
    assert template["t2m"].attrs["units"] == "K"
    assert "history" not in template.attrs  # it holds the time of reading
    steps = first.sample_coords([5])["step"]
    assert (steps.values.tolist(), steps.attrs["units"]) == ([5.0], "hours")
    assert Samples(first.data).fingerprint() == first.fingerprint()


def test_one_grib_file_by_its_ending_or_its_first_bytes(tmp_path: Path) -> None:
    for name in ("a.grib2", "a.nc", "a"):
        grib(tmp_path / name, temperatures(range(12)))
        assert opening.recognise(str(tmp_path / name), data(tmp_path / name)) == "cfgrib"
        assert open_samples(grib_data(tmp_path / name)).n == 12


def test_grib_names_its_packages_where_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"GRIB" + bytes(60))
    absent(monkeypatch, "cfgrib", "eccodes")
    with pytest.raises(MissingPackageError, match=r"which is GRIB, needs cfgrib, eccodes, .*'diffats\[grib\]'"):
        open_samples(grib_data(tmp_path / "a"))


def test_grib_fields_of_several_kinds_are_chosen_by_their_keys(tmp_path: Path) -> None:
    wind = [{"typeOfLevel": "heightAboveGround", "level": 10, "shortName": "10u", "step": i} for i in range(12)]
    grib(tmp_path / "a.grib", [field for pair in zip(temperatures(range(12)), wind, strict=True) for field in pair])
    with pytest.raises(SourceError, match=r'several kinds of fields, which differ in "heightAboveGround"\. Choose one'):
        open_samples(grib_data(tmp_path / "a.grib"))
    samples = open_samples(grib_data(tmp_path / "a.grib", group="typeOfLevel=heightAboveGround,level=10"))
    assert samples.variables == ("u10",)
    np.testing.assert_allclose(samples.read([2]), U[[5]], atol=1e-3)
    with pytest.raises(SourceError, match=r'has no field with data\.group = "level=500"'):
        open_samples(grib_data(tmp_path / "a.grib", group="level=500"))
    with pytest.raises(SourceError, match=r'GRIB has no groups but keys\. Write them like "typeOfLevel=surface"'):
        open_samples(grib_data(tmp_path / "a.grib", group="surface"))


@pytest.mark.parametrize("kept", [4, 30, 200, -10])
def test_grib_that_was_cut_is_refused(kept: int, tmp_path: Path) -> None:
    grib(tmp_path / "a.grib", temperatures(range(12)))
    (tmp_path / "a.grib").write_bytes((tmp_path / "a.grib").read_bytes()[:kept])
    with pytest.raises(SourceError, match=r'a\.grib" .*cannot be read'):
        open_samples(grib_data(tmp_path / "a.grib")).read([0])


def test_grib_at_a_url_is_refused() -> None:
    import fsspec

    pytest.importorskip("cfgrib")
    fsspec.filesystem("memory").pipe("/grib/a.grib", b"GRIB" + bytes(60))
    with pytest.raises(SourceError, match=r"is GRIB, which is read from a disk only\. Copy it to this machine"):
        open_samples(data(Path("x")).model_copy(update={"source": "memory://grib/a.grib"}))


def test_eccodes_does_not_change_the_sqlite_of_python() -> None:
    pytest.importorskip("eccodes")
    code = "import diffats.sources, eccodes, sqlite3; print(sqlite3.sqlite_version)"
    alone = "import sqlite3; print(sqlite3.sqlite_version)"
    versions = [
        subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, check=True).stdout
        for each in (code, alone)
    ]
    assert versions[0] == versions[1]


def test_a_zarr_array_is_told_to_be_no_group(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "root.zarr", shape=(24, 6, 8), chunks=(6, 6, 8), dtype="f4")
    with pytest.raises(SourceError, match=r"is an array of Zarr, .* Give a group"):
        open_samples(Data(source=str(tmp_path / "root.zarr"), modes=["y", "x"], sample_dim="run"))


def test_an_object_array_among_others_is_named_with_the_fix(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", u=U, config=np.array({"a": 1}, dtype=object))
    with pytest.raises(SourceError, match=r"config: dtype object .* Leave it out of the file"):
        open_samples(Data(source=str(tmp_path / "o.npz"), variables=["u"], modes=["y", "x"], sample_dim="run"))
