"""Text as others wrote it (Latin-1, bytes, char arrays, JSON) is right when it was read, and can be written again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import scipy.io
import xarray as xr
import zarr
from tiny_runs import MODEL, run, small_recipe, waves

import diffats
from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources import Samples, decoded_dataset, open_samples, template_from_json, template_to_json

U = np.random.default_rng(0).normal(size=(12, 6, 8)).astype("f4")
DIMS = ("run", "y", "x")
ENGINES = ("h5netcdf", "netcdf4", "scipy")
WRONG = "text that is not UTF-8 is read as Windows-1252: "


def data(source: Path, **options: Any) -> Data:
    return Data(**{"source": str(source), "variables": ["u"], "modes": ["y", "x"], "sample_dim": "run", **options})


def generated(samples: Samples) -> xr.Dataset:
    """What a model of these samples gives: their template as it is stored, with coordinates along ``sample``."""
    template = template_from_json(template_to_json(samples.template()))
    return decoded_dataset(samples.read([0, 1]), template, samples.sample_coords([0, 1]))


def written(dataset: xr.Dataset, folder: Path) -> None:
    """Every engine writes it, and what it says is there again."""
    folder.mkdir(exist_ok=True)
    for engine in ENGINES:
        dataset.to_netcdf(folder / f"{engine}.out", engine=engine)
        with xr.open_dataset(folder / f"{engine}.out", engine=engine, decode_timedelta=False) as back:
            for name, variable in dataset.variables.items():
                assert back[name].attrs.get("long_name") == variable.attrs.get("long_name")
                if variable.dtype.kind == "O":
                    assert back[name].values.astype(str).tolist() == variable.values.astype(str).tolist()
    for version in (2, 3):
        dataset.to_zarr(folder / f"out{version}.zarr", zarr_format=version, consolidated=False)


def netcdf4_classic(path: Path, kind: str = "NETCDF3_CLASSIC") -> netCDF4.Dataset:
    file = netCDF4.Dataset(path, "w", format=kind)
    for dim, size in zip(DIMS, U.shape, strict=True):
        file.createDimension(dim, size)
    file.createVariable("u", "f4", DIMS)[:] = U
    return file


def hdf5(path: Path, change: Callable[[h5py.File], Any]) -> None:
    xr.Dataset({"u": (DIMS, U)}, {"x": np.arange(8.0)}).to_netcdf(path, engine="h5netcdf")
    with h5py.File(path, "a") as file:
        change(file)


def latin1(file: h5py.File) -> None:
    for name, text in (("units", "°C"), ("long_name", "Temperatur über Grund")):
        file["u"].attrs.create(name, text.encode("latin1"), dtype=h5py.string_dtype("ascii"))
    file.attrs["title"] = np.bytes_("Messung München".encode("latin1"))


def latin1_classic(path: Path) -> None:
    netcdf4_classic(path).close()
    with scipy.io.netcdf_file(path, "a", mmap=False) as file:
        file.variables["u"].units = "°C".encode("latin1")
        file.variables["u"].long_name = "Temperatur über Grund".encode("latin1")
        file.title = "Messung München".encode("latin1")


@pytest.mark.parametrize("engine", [None, "netcdf4"])
@pytest.mark.parametrize("kind", ["hdf5", "classic"])
def test_latin_1_attributes_are_what_their_author_wrote(
    kind: str, engine: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.nc"
    if kind == "hdf5":
        hdf5(path, latin1)
    else:
        latin1_classic(path)
    samples = open_samples(data(path, engine=engine))
    template = samples.template()
    assert template["u"].attrs["units"] == "°C"
    assert template["u"].attrs["long_name"] == "Temperatur über Grund"
    assert template.attrs["title"] == "Messung München"
    (said,) = caplog.messages
    assert WRONG in said
    assert all(f'"{name}" of u' in said for name in ("units", "long_name"))
    assert '"title" of the source' in said
    written(generated(samples), tmp_path)


def test_files_of_one_unit_in_two_encodings_are_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, encoding in (("a", "latin1"), ("b", "utf-8"), ("c", "latin1")):
        raw = "°C".encode(encoding)
        hdf5(tmp_path / f"{name}.nc", lambda file, raw=raw: file["u"].attrs.create("units", np.bytes_(raw)))
    samples = open_samples(data(tmp_path / "?.nc", concat_dim="run"))
    assert (samples.n, samples.template()["u"].attrs["units"]) == (36, "°C")
    assert len([text for text in caplog.messages if "UTF-8" in text]) == 1


def test_text_that_is_valid_is_not_spoken_of_and_the_source_is_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attrs = {"units": "°C", "levels": np.array([1, 2]), "title": "漢字"}
    xr.Dataset({"u": (DIMS, U, attrs)}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    opened = open_samples(data(tmp_path / "a.nc")).dataset["u"].attrs
    assert isinstance(opened["levels"], np.ndarray)
    assert opened["title"] == "漢字"
    assert not caplog.messages


def test_char_arrays_of_a_classic_file_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with netcdf4_classic(path) as file:
        file.createDimension("letters", 6)
        site = file.createVariable("site", "S1", ("x", "letters"))
        site[:] = np.array([list("Köln  ".encode("latin1").ljust(6))] * 8, "u1").view("S1")
        clip = file.createVariable("clip", "S1", ("run", "letters"))
        clip[:] = np.array([list(f"lauf{i % 3}".encode().ljust(6, b"\0")) for i in range(12)], "u1").view("S1")
        file["u"].coordinates = "site clip"
    samples = open_samples(data(path, condition={"labels": "clip"}, split={"group": "clip"}))
    assert samples.label_names == ("lauf0", "lauf1", "lauf2")
    out = generated(samples)
    assert out["site"].values.tolist() == ["Köln  "] * 8
    assert out["clip"].values.tolist() == ["lauf0", "lauf1"]
    written(out, tmp_path)
    chosen = data(path, split={"by": "coordinate", "coordinate": "clip", "values": ["lauf1"]})
    assert open_samples(chosen).is_test.tolist() == [False, True, False] * 4


@pytest.mark.parametrize("made", [b"Gr\xf6\xdfe", "Größe".encode()])
def test_labels_in_either_encoding_have_one_name(made: bytes, tmp_path: Path) -> None:
    with netcdf4_classic(tmp_path / "a.nc") as file:
        file.createDimension("letters", 7)
        kind = file.createVariable("kind", "S1", ("run", "letters"))
        kind[:] = np.array([list((made if i % 2 else b"x").ljust(7, b"\0")) for i in range(12)], "u1").view("S1")
    assert open_samples(data(tmp_path / "a.nc", condition={"labels": "kind"})).label_names == ("Größe", "x")


def test_names_of_a_classic_file_are_utf_8(tmp_path: Path) -> None:
    with netcdf4_classic(tmp_path / "a.nc") as file:
        file.createVariable("größe", "f4", ("x",))[:] = 1
        file.renameDimension("y", "höhe")
    samples = open_samples(data(tmp_path / "a.nc", modes=["höhe", "x"]))
    assert "größe" in samples.dataset
    assert samples.modes == ("höhe", "x")


def test_names_that_hdf5_cannot_tell_are_refused_by_name(tmp_path: Path) -> None:
    def add(file: h5py.File) -> None:
        h5py.h5d.create(file.id, "höhe".encode("latin1"), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)))

    hdf5(tmp_path / "a.nc", add)
    with pytest.raises(SourceError, match=r"the name b'h\\xf6he' in it is not UTF-8\. Rename it"):
        open_samples(data(tmp_path / "a.nc"))


def test_text_of_fixed_width_is_not_padded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.create_array("u", data=U).attrs.update({"_ARRAY_DIMENSIONS": list(DIMS), "units": "K\0\0"})
    samples = open_samples(data(tmp_path / "a.zarr"))
    assert samples.template()["u"].attrs["units"] == "K"
    assert not [text for text in caplog.messages if "UTF-8" in text]
    written(generated(samples), tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_json_attributes_of_zarr_can_be_written_as_netcdf(version: Any, tmp_path: Path) -> None:
    attrs = {
        "valid": True,
        "nothing": None,
        "levels": [1, 2.5],
        "names": ["a", "ü"],
        "tree": {"sensor": {"id": 7, "parts": [None, "b"]}},
        "number": 2**40,
        "half": "\udcb0C",
        "a/b": "slash",
    }
    dataset = xr.Dataset({"u": (DIMS, U)}, {"x": np.arange(8.0)})
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    root = zarr.open_group(tmp_path / "a.zarr", mode="a")
    for each in (root, root["u"], root["x"]):
        each.attrs.update(attrs)
    samples = open_samples(data(tmp_path / "a.zarr"))
    out = generated(samples)
    written(out, tmp_path)
    expected = {
        "valid": "true",
        "levels": [1, 2.5],
        "names": '["a", "ü"]',
        "tree": '{"sensor": {"id": 7, "parts": [null, "b"]}}',
        "number": float(2**40),
        "half": "°C",
        "a_b": "slash",
    }
    assert out["u"].attrs == out["x"].attrs == expected


def test_odd_hdf5_attributes_can_be_written(tmp_path: Path) -> None:
    odd = {
        "flag": True,
        "texts": np.array([b"a\xb0", b"b"]),
        "nothing": h5py.Empty("f4"),
        "record": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        "complex": 1 + 2j,
        "opaque": np.void(b"\x00\x01\xff"),
        "large": np.uint64(2**63 + 1),
        "enum": np.array(1, h5py.enum_dtype({"A": 0, "B": 1})),
    }

    def add(file: h5py.File) -> None:
        for name, value in odd.items():
            file["u"].attrs[name] = value

    hdf5(tmp_path / "a.nc", add)
    samples = open_samples(data(tmp_path / "a.nc"))
    fingerprint = samples.fingerprint()
    out = generated(samples)
    assert set(out["u"].attrs) == set(odd)
    assert out["u"].attrs["texts"] == '["a°", "b"]'
    written(out, tmp_path)
    hdf5(tmp_path / "b.nc", add)
    assert Samples(samples.data).fingerprint() == fingerprint


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_coordinates_of_bytes_are_text(version: Any, tmp_path: Path) -> None:
    coords = {"x": ("x", np.array([f"ort{i}".encode() for i in range(8)])), "half": ("y", np.arange(6, dtype="f2"))}
    dataset = xr.Dataset({"u": (DIMS, U)}, coords)
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    out = generated(open_samples(data(tmp_path / "a.zarr")))
    assert out["x"].values.tolist() == [f"ort{i}" for i in range(8)]
    written(out, tmp_path)


def test_templates_of_earlier_releases_can_be_written(tmp_path: Path) -> None:
    template = xr.Dataset({"u": (("y", "x"), np.zeros((6, 8), "f4"))}, {"x": np.arange(8.0)})
    tree = json.loads(template_to_json(template))
    tree["attrs"] = {"valid": True, "units": "\udcb0C", "tree": [[1], ["a"]]}
    tree["data"]["u"]["attrs"] = tree["coords"]["x"]["attrs"] = dict(tree["attrs"])
    written(decoded_dataset(U[:2], template_from_json(json.dumps(tree))), tmp_path)


def test_what_is_said_of_many_attributes_is_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def add(file: h5py.File) -> None:
        for i in range(20):
            file["u"].attrs[f"note{i}"] = np.bytes_(b"\xb0")

    hdf5(tmp_path / "a.nc", add)
    with caplog.at_level(logging.WARNING):
        open_samples(data(tmp_path / "a.nc"))
    (said,) = caplog.messages
    assert said.endswith("and 12 more.")


def test_what_a_model_and_the_stores_give_can_be_written(tmp_path: Path) -> None:
    """Latin-1 in a group whose coordinates are its parent's, through to what a user saves."""
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w") as root:
        for dim, size in (("run", 24), ("y", 6), ("x", 8)):
            root.createDimension(dim, size)
        root.createVariable("x", "f8", ("x",))[:] = np.arange(8)
        group = root.createGroup("model")
        group.createVariable("u", "f4", DIMS)[:] = waves(24, 6, 8)
        group.createVariable("kind", str, ("run",))[:] = np.array(["müd", "wach"] * 12, object)
    with h5py.File(path, "a") as file:
        latin1_units = np.bytes_("°C".encode("latin1"))
        file["model/u"].attrs["units"] = file["x"].attrs["units"] = latin1_units
        file["model"].attrs["title"] = np.bytes_("Köln".encode("latin1"))
    section = data(path, group="model", condition={"labels": "kind"}).model_dump(mode="json")
    recipe = small_recipe(tmp_path / "root", section, decompose={"ranks": {"y": 3, "x": 3}})
    run(recipe, MODEL)
    model = diffats.load(recipe.root)
    fields = model.sample(2, seed=0)
    assert fields["u"].attrs["units"] == fields["x"].attrs["units"] == "°C"
    assert fields.attrs["title"] == "Köln"
    assert set(fields["condition_label"].values) <= {"müd", "wach"}
    samples = diffats.open_version(recipe.location, "samples").drop_encoding()  # which is of Zarr version 3
    for number, each in enumerate([fields, model.encode(fields), samples]):
        written(each, tmp_path / str(number))
    for name in ("scaling", "tucker", "anchor", "primitives", "normalisation"):
        stored = diffats.open_version(recipe.location, name)
        for engine in ENGINES[:2]:  # the stores' digests are bytes, which NetCDF-3 has no type for
            stored.to_netcdf(tmp_path / f"{name}.{engine}", engine=engine)
