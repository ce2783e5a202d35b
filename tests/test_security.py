"""What SECURITY.md promises: nothing read runs code or leads elsewhere, nothing written tells a secret."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import socket
import struct
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import icechunk
import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import xarray as xr
import zarr
from matplotlib.figure import Figure
from safetensors.numpy import load_file, save_file
from tiny_recipe import write_recipe
from tiny_runs import Remembered, changed, small_recipe, waves
from typer.testing import CliRunner

import diffats
from diffats import bundle, cli, plots, stages
from diffats.compute import open_cluster
from diffats.config import Compute, Data, Recipe, parse_recipe
from diffats.digests import file_digest
from diffats.errors import DiffatsError, InputError, IntegrityError, RecipeError, SourceError, redact
from diffats.registry import Tracker, download
from diffats.report import ReportContent, render
from diffats.sources import open_samples
from diffats.sources.opening import open_source
from diffats.sources.safety import without_odd_names

ROOT = Path(__file__).parents[1]
SECRET = "PlantedSecret"
HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(1)>"' onload="x $\\frac$ [a](javascript:x) `|"""
SECRETS = {
    name: f"{SECRET}{number}"
    for number, name in enumerate(
        (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AZURE_STORAGE_ACCOUNT_KEY",
            "MLFLOW_TRACKING_PASSWORD",
            "MLFLOW_TRACKING_TOKEN",
            "PREFECT_API_KEY",
            "FSSPEC_HTTP_TOKEN",
        )
    )
}


# The code -----------------------------------------------------------------------------------------------------------

_RUNS_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "runpy", "imp"}
_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "yaml.load"}


def complaints(code: str) -> list[str]:
    """What a module does that nothing here may do."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in _RUNS_CODE]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).partition(".")[0] in _RUNS_CODE else []
        elif isinstance(node, ast.Call):
            found += _bad_call(ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords})
    return found


def _bad_call(name: str, options: dict[str | None, str]) -> list[str]:
    wanted = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
    bad = name in _CALLS or name.rpartition(".")[2] in ("read_pickle", "to_pickle", "register_codec")
    bad |= name in wanted and options.get(wanted[name][0]) != wanted[name][1]
    bad |= options.get("allow_pickle", "False") != "False" or options.get("shell", "False") != "False"
    return [name] if bad else []


@pytest.mark.parametrize("folder", ["diffats", "flows", "tasks", "benchmarks"])
def test_no_module_runs_what_it_reads(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(file): found for file in files if (found := complaints(file.read_text(encoding="utf-8")))} == {}


def test_the_look_at_modules_finds_what_it_should() -> None:
    bad = (
        "import pickle",
        "from joblib import dump",
        "eval('1')",
        "torch.load(f)",
        "np.load(f)",
        "x(allow_pickle=True)",
    )
    bad += ("subprocess.run('a', shell=True)", "os.system('a')", "pd.read_pickle(f)", "yaml.load(f)")
    assert [code for code in bad if not complaints(code)] == []
    assert complaints("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); re.compile('a')") == []


# A finished recipe with hostile data, secrets around it -------------------------------------------------------------


@pytest.fixture(scope="module")
def log() -> Iterator[list[str]]:
    root, handler = logging.getLogger(), Remembered()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield handler.texts
    root.setLevel(level)
    root.removeHandler(handler)


def hostile_recipe(folder: Path) -> Recipe:
    """Data whose every name and text tries something."""
    n = 20
    attrs = {"units": "$\\frac$<b>", "long_name": HOSTILE, "comment": HOSTILE}
    ds = xr.Dataset(
        {"u<b>$": (("run", "t<i>", "x"), waves(n, 6, 8).astype("f4"), attrs), "kind": ("run", [HOSTILE[:9], "b"] * 10)},
        coords={
            "x": ("x", np.arange(8.0), attrs),
            "i<img>": ("run", np.arange(n)),
            "zarr.json": ("run", np.arange(n)),
        },
        attrs=dict.fromkeys(("title", "summary", "references", "license"), HOSTILE),
    )
    ds["kind"] = ds["kind"].astype("U9")
    ds.to_zarr(folder / "u.zarr", zarr_format=2, consolidated=False)
    data = {
        "source": str(folder / "u.zarr"),
        "variables": ["u<b>$"],
        "modes": ["t<i>", "x"],
        "sample_dim": "run",
        "split": {"test": 0.2},
        "condition": {"labels": "kind"},
    }
    return small_recipe(folder / "place" / "root", data, decompose={"ranks": {"t<i>": 3, "x": 3}})


@pytest.fixture(scope="module")
def made(log: list[str], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = hostile_recipe(tmp_path_factory.mktemp("security"))
    with open_cluster(recipe.compute), stages.tracked(recipe) as parent:
        for stage in stages.STAGES:
            stages.run(stage, recipe, parent_run=parent)
    return recipe


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# No pickle ----------------------------------------------------------------------------------------------------------


def executable(path: Path) -> str | None:
    """Why a file can run code when it is read; None where it cannot."""
    content = path.read_bytes()
    if path.suffix in (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".pyc", ".so", ".dill"):
        return "suffix"
    if content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content.rstrip()[-1:] == b".":
        return "pickle"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return "an archive with a pickle" if any(name.endswith(".pkl") for name in names) else None
    if content.startswith(b"\x93NUMPY"):
        return "an array of objects" if b"|O" in content[:200] else None
    if path.suffix == ".py":
        known = ROOT / "diffats" / "registry" / path.name
        return None if known.is_file() and known.read_bytes() == content else "code"
    if path.name == "MLmodel" and b"loader_module: mlflow.pyfunc.loaders.code_model\n" not in content:
        return "an MLflow model that is not made from code"
    described = path.name in (".zarray", ".zmetadata", "zarr.json")
    return "a codec" if described and b'"pickle"' in content.replace(b"numcodecs.", b"") else None


def test_no_artifact_can_run_code(made: Recipe) -> None:
    files = files_of(Path(made.root))
    kinds = {path.suffix for path in files} | {path.name for path in files}
    assert {".safetensors", ".html", ".png", ".db", "MLmodel", "pyfunc.py", "bundle.json", "state.json"} <= kinds
    assert {str(path): why for path in files if (why := executable(path))} == {}


def plant_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)


PLANTED: dict[str, Callable[[Path], object]] = {
    **{
        f"protocol{number}": lambda path, number=number: path.write_bytes(pickle.dumps([1], protocol=number))
        for number in (2, 3, 4, 5)
    },
    "archive": plant_torch,
    "objects.npy": lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
    "MLmodel": lambda path: path.write_text("loader_module: mlflow.pyfunc.model\npython_model: python_model.pkl\n"),
    "pyfunc.py": lambda path: path.write_text("import os"),
    ".zarray": lambda path: path.write_text('{"filters": [{"id": "pickle"}]}'),
    "model.joblib": lambda path: path.write_bytes(b"x"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_walk_finds_what_is_planted(name: str, tmp_path: Path) -> None:
    PLANTED[name](tmp_path / name)
    assert executable(tmp_path / name)


# Secrets ------------------------------------------------------------------------------------------------------------


def provoked(recipe: Recipe, log: list[str]) -> Iterator[str]:
    """Everything that failures with secrets in what was given say, and print."""
    login = f"https://ann:{SECRET}@127.0.0.1:9"
    database = f"postgresql://ann:{SECRET}/x@127.0.0.1:9/db"
    wrong: list[Callable[[], object]] = [
        lambda: changed(recipe, data={"source": f"{login}/u.zarr"}),
        lambda: changed(recipe, data={"storage_options": {"password": SECRET}}),
        lambda: changed(recipe, data={"storage_options": {"apikey": [SECRET]}}),
        lambda: changed(recipe, data={"storage_options": {"endpoint_url": login}}),
        lambda: changed(recipe, tracking={"uri": login}),
        lambda: changed(recipe, store=login),
        lambda: open_source(Data(source=f"http://127.0.0.1:9/u.nc?sig={SECRET}", modes=["x"], sample_dim="s")),
        lambda: open_source(Data(source=f"http://127.0.0.1:9/u*.nc?token={SECRET}", modes=["x"], sample_dim="s")),
        lambda: open_source(Data(source="s3://bucket/u.zarr", modes=["x"], sample_dim="s")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        for call in wrong:
            with pytest.raises(DiffatsError) as caught:
                call()
            yield "".join(traceback.format_exception(caught.value))
    for uri in (login, database):
        for ask in (lambda uri=uri: Tracker(uri, "a"), lambda uri=uri: download("models:/a@b", uri)):
            with pytest.raises((DiffatsError, ImportError)) as failed:
                ask()
            yield str(failed.value)


def test_no_secret_is_told(made: Recipe, log: list[str]) -> None:
    told = [*provoked(made, log), *log, *command_output(made)]
    assert len(told) > 20
    assert [text for text in told if SECRET in text] == []


def command_output(recipe: Recipe) -> Iterator[str]:
    """What verbs print where they work and where they fail."""
    file = Path(recipe.root).parent / "recipe.toml"
    lines = []
    for section, keys in recipe.model_dump(mode="json", exclude_none=True).items():
        entries = keys.items() if isinstance(keys, dict) else [("", keys)]
        lines += [f"{section}{'.' if key else ''}{key} = {_toml(value)}" for key, value in entries]
    file.write_text("\n".join(lines), encoding="utf-8")
    uri = f"tracking.uri=http://ann:{SECRET}@127.0.0.1:9"
    for words in (["inspect"], ["config"], ["report"], ["register", "--set", uri], ["plan", "--set", "data.source=x"]):
        done = CliRunner().invoke(cli.app, [words[0], str(file), *words[1:]], catch_exceptions=False)
        assert (done.exit_code == 0) == (len(words) == 1), done.output
        yield done.output


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def test_no_secret_is_stored(made: Recipe) -> None:
    files = files_of(Path(made.root).parent)
    assert len(files) > 50
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://ann:pw@host/a", "https://***@host/a"),
        ("postgresql+psycopg2://ann:p/w?x@host/a", "postgresql+psycopg2://***@host/a"),
        ("https://ann:p@w@host, https://token@host", "https://***@host, https://***@host"),
        (
            "https://h/u?X-Amz-Signature=ab&X-Amz-Credential=c/d&v=1",
            "https://h/u?X-Amz-Signature=***&X-Amz-Credential=***&v=1",
        ),
        ("models:/a@champion of http://127.0.0.1:5000/b", "models:/a@champion of http://127.0.0.1:5000/b"),
        ("write to ann@host", "write to ann@host"),
    ],
)
def test_what_is_redacted(text: str, told: str) -> None:
    assert redact(text) == told
    for error in (InputError(text), diffats.errors.StoreNotFoundError(text)):
        assert (str(error), error.args) == (told, (told,))
        assert told in repr(error)


# Sources ------------------------------------------------------------------------------------------------------------


def opened(path: Path | str, **options: Any) -> xr.Dataset:
    return open_source(Data(source=str(path), modes=["x"], sample_dim="sample", **options))


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


CODECS: list[dict[str, Any]] = [
    {"dtype": "|O", "filters": [{"id": "pickle"}]},
    {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]},
    {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle"}},
    {"dtype": "|O", "filters": [{"id": "vlen-bytes"}], "compressor": {"id": "pickle"}},
    {"dtype": "<f8", "compressor": {"id": "pickle"}},
    {"dtype": "<M8[s]", "filters": [{"id": "pickle"}]},
]


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("number", range(len(CODECS)))
def test_a_zarr_store_that_would_run_code(
    number: int, consolidated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numcodecs.pickles

    monkeypatch.chdir(tmp_path)
    # Versions of numcodecs before 0.16 run it.
    monkeypatch.setattr(numcodecs.pickles, "allow_unsafe_decode", True, raising=False)
    xr.Dataset({"u": (("sample", "x"), np.zeros((4, 3))), "x": np.arange(3.0)}).to_zarr(
        tmp_path / "u.zarr", zarr_format=2, consolidated=False
    )
    described = tmp_path / "u.zarr" / "x" / ".zarray"  # an index: read as soon as the store is opened
    described.write_text(json.dumps({**json.loads(described.read_text()), "fill_value": None, **CODECS[number]}))
    for chunk in described.parent.glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Evil()))
    if consolidated:
        _consolidate(tmp_path / "u.zarr")
    with pytest.raises(SourceError, match="pickle"):
        opened(tmp_path / "u.zarr")
    assert not Path("ran").exists()


def _consolidate(store: Path) -> None:
    files = [path for path in store.rglob(".z*") if path.is_file()]
    metadata = {path.relative_to(store).as_posix(): json.loads(path.read_text()) for path in files}
    (store / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": metadata}))


@pytest.mark.parametrize("codec", ["pickle", "numcodecs.pickle"])
def test_a_zarr_store_of_version_3_knows_no_such_codec(codec: str, tmp_path: Path) -> None:
    xr.Dataset({"u": (("sample", "x"), np.zeros((4, 3)))}).to_zarr(
        tmp_path / "u.zarr", zarr_format=3, consolidated=False
    )
    described = tmp_path / "u.zarr" / "u" / "zarr.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "codecs": [{"name": codec}]}))
    with pytest.raises(SourceError, match="pickle"):
        opened(tmp_path / "u.zarr")


def hdf5(folder: Path, kind: str) -> Path:
    """A NetCDF-4 file whose variable is kept in another file."""
    (folder / "secret").write_bytes(np.arange(12.0).tobytes())
    with h5py.File(folder / "other.h5", "w") as other:
        other["s"] = np.arange(12.0).reshape(4, 3)
    with h5py.File(folder / "u.nc", "w") as file:
        file["plain"] = np.zeros((4, 3))
        file["again"] = h5py.SoftLink("/plain")
        file["circle"] = file["/"]
        if kind == "storage":
            file.create_dataset("u", (4, 3), "f8", external=[(str(folder / "secret"), 0, 96)])
        elif kind == "link":
            file["u"] = h5py.ExternalLink("other.h5", "/s")
        elif kind == "linked group":
            file["deep/er"] = h5py.ExternalLink("other.h5", "/")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 3), "f8")
            layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "s", shape=(4, 3))
            file.create_virtual_dataset("u", layout)
    return folder / "u.nc"


@pytest.mark.parametrize("engine", [None, "h5netcdf", "netcdf4"])
@pytest.mark.parametrize("kind", ["storage", "link", "linked group", "virtual"])
def test_a_file_that_reads_other_files(kind: str, engine: str | None, tmp_path: Path) -> None:
    path = hdf5(tmp_path, kind)
    with pytest.raises(SourceError, match=r"is kept in another file.*other\.h5|secret"):
        opened(path, engine=engine)
    if engine != "netcdf4":
        with pytest.raises(SourceError, match="is kept in another file"):
            opened(f"file://{path}", engine=engine)


def test_links_inside_a_file_are_followed(tmp_path: Path) -> None:
    path = hdf5(tmp_path, "none")
    with h5py.File(path, "a") as file:
        del file["circle"]
        for axis, (name, size) in enumerate((("sample", 4), ("x", 3))):
            file[name] = np.arange(float(size))
            file[name].make_scale()
            file["plain"].dims[axis].attach_scale(file[name])
    assert set(opened(path, engine="h5netcdf").data_vars) == {"plain", "again"}


def test_chunks_of_an_icechunk_repository_that_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.arange(12.0).tobytes())
    place = f"file://{tmp_path}/"
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(place, icechunk.local_filesystem_store(str(tmp_path)))
    )
    storage = icechunk.local_filesystem_storage(str(tmp_path / "repository"))
    local = getattr(icechunk.credentials, "LocalFileSystemAccess", None)  # the name that release 2 wants
    repository = icechunk.Repository.create(storage, config=config, authorize_virtual_chunk_access={place: local})
    repository.save_config()
    session = repository.writable_session("main")
    zarr.open_group(session.store, mode="a").create_array(
        "u", shape=(4, 3), chunks=(4, 3), dtype="f8", dimension_names=("sample", "x"), compressors=None
    )
    session.store.set_virtual_ref("u/c/0/0", f"{place}secret", offset=0, length=96)
    session.commit("u")
    samples = open_samples(Data(source=str(tmp_path / "repository"), modes=["x"], sample_dim="sample"))
    with pytest.raises((SourceError, icechunk.IcechunkError), match="virtual chunk"):
        samples.read([0])


@pytest.mark.parametrize("source", ["reference://x", "simplecache::reference://x"])
def test_lists_of_references(source: str) -> None:
    with pytest.raises(SourceError, match="references to other files"):
        opened(source)


def member(array: Any, **claims: Any) -> bytes:
    """A .npy file, its header telling what it is told to."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    content = file.getvalue()
    if not claims:
        return content
    plain = np.lib.format.header_data_from_array_1_0(np.asarray(array)) | claims
    header = repr(plain).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + np.asarray(array).tobytes()


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**40, 2**40), (-4, 3), (4, 4)])
def test_arrays_that_claim_to_be_larger(shape: tuple[int, ...], deflated: bool, tmp_path: Path) -> None:
    content = member(np.zeros((4, 3)), shape=shape)
    (tmp_path / "u.npy").write_bytes(content)
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "u.npz", "w", method) as archive:
        archive.writestr("u.npy", content)
    for name in ("u.npy", "u.npz"):
        with pytest.raises(SourceError):
            opened(tmp_path / name)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffats.sources.safety._LARGEST_DEFLATED", 2**20)
    np.savez_compressed(tmp_path / "u.npz", u=np.zeros((1000, 1000)))
    with pytest.raises(
        SourceError, match=r"at most 1048576 can be read of a compressed array\. Save it with numpy\.savez"
    ):
        opened(tmp_path / "u.npz")


def test_arrays_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("u.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.savez("u.npz", u=np.zeros((4, 3)), evil=np.array([Evil()], dtype=object))
    for name in ("u.npy", "u.npz"):
        with pytest.raises(SourceError, match="holds objects"):
            opened(name)
    assert not Path("ran").exists()


# Names --------------------------------------------------------------------------------------------------------------

PATHS = ["../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", "\u202ea", "\ud800", "x" * 300, "zarr.json"]


@pytest.mark.parametrize("name", PATHS)
def test_names_that_are_paths(made: Recipe, name: str) -> None:
    tree = made.model_dump(mode="json")
    wrong = [{**tree, "name": name}] if name != "zarr.json" else []
    for key in ("variables", "modes"):
        wrong.append({**tree, "data": {**tree["data"], key: [name, "x"]}})
    for key in ("fields", "scalars"):
        wrong.append({**tree, "data": {**tree["data"], "condition": {key: [name]}}})
    for given in wrong:
        with pytest.raises(RecipeError, match="name"):
            parse_recipe(given)


@pytest.mark.parametrize("name", PATHS)
def test_coordinates_whose_names_are_paths_are_left_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    dataset = xr.Dataset({"u": ("run", np.zeros(3))}, coords={name: ("run", np.zeros(3)), "ok": ("run", np.zeros(3))})
    assert set(without_odd_names(dataset).variables) == {"u", "ok"}
    assert "is left out, because its name" in caplog.text


def test_a_name_in_a_file_cannot_leave_the_store(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "u.nc", "w") as file:
        for name, values in {"run": np.arange(12.0), "x": np.arange(5.0)}.items():
            file[name] = values
            file[name].make_scale()
        for name, values in {"u": waves(12, 5), "..": np.arange(12.0), "a\\b": np.arange(12.0)}.items():
            file.create_dataset(name, data=values)
            for axis, dim in zip(range(values.ndim), ("run", "x"), strict=False):
                file[name].dims[axis].attach_scale(file[dim])
        file["u"].attrs["coordinates"] = ".. a\\b"
    dataset = opened(tmp_path / "u.nc", engine="h5netcdf")
    assert set(dataset.variables) == {"run", "x", "u"}


def test_nothing_is_written_beside_the_root(made: Recipe) -> None:
    place = Path(made.root).parent
    assert {path.name for path in place.iterdir()} <= {"root", "recipe.toml", ".root.writer.lock"}
    assert [path for path in Path(made.root).rglob("*") if not path.resolve().is_relative_to(place.resolve())] == []


def test_export_stays_where_it_is_sent(made: Recipe, tmp_path: Path) -> None:
    stages.Workspace(made).store.export(str(tmp_path / "a" / "all.zarr"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["all.zarr"]


def test_a_link_in_the_root_is_not_followed_when_things_are_removed(tmp_path: Path) -> None:
    from diffats.training import Checkpoint, write_checkpoint

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    training = tmp_path / "training"
    training.mkdir()
    for name in ("checkpoint-1", ".checkpoint-5.partial"):
        (training / name).symlink_to(outside, target_is_directory=True)
    for step in (2, 3, 4):
        write_checkpoint(training, Checkpoint(step, {"model": {"a": torch.zeros(2)}}, {}))
    assert (outside / "kept").exists()
    assert sorted(path.name for path in outside.iterdir()) == ["kept"]


# Pages --------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags and attributes of a page that could run or load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "form", "i", "b", "link", "base") and tag not in ("b", "i"):
            self.found.append(tag)
        for name, value in attrs:
            elsewhere = name in ("src", "href") and not str(value).startswith(("data:image/png;base64,", "#"))
            if name.startswith("on") or elsewhere:
                self.found.append(f"{tag} {name}={value}")


def test_the_page_of_hostile_data(made: Recipe) -> None:
    page = (Path(made.root) / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "t<i>" not in page
    assert Page(page).found == []
    assert Page("<a href='javascript:x' onclick='y'><script>").found == [
        "a href=javascript:x", "a onclick=y", "script",
    ]  # fmt: skip


def test_a_page_of_hostile_text_alone() -> None:
    h, picture = HOSTILE, plots.png(Figure())
    content = ReportContent(
        h, created=h, data={"title": h, h: h, "variables": {h: h}, "sizes": {h: 3}, "samples": 1},
        compression={"ranks": {h: 2}, "aligned": [h], "patch": {h: 1}}, alignment={"strategy": h, "sample": h},
        training={h: h}, generation={h: h, "sampler": h}, model={"uri": h, "root": h}, provenance={h: {h: h}},
        seconds={h: 1.0}, captions={"gallery": h, h: h}, cautions=[h], estimators=h,
        pictures={"gallery": picture, f"factors_{h}": picture, h: picture},
    )  # fmt: skip
    page = render(content)
    assert "&lt;script&gt;" in page
    assert Page(page).found == []


def test_the_artifact_of_hostile_text() -> None:
    from flows.artifact import links, metric_table, stage_table

    result = stages.StageResult("train", "", "", HOSTILE, summary=HOSTILE)
    made = {"store": HOSTILE, "report": HOSTILE, "version": HOSTILE, "model": {"uri": HOSTILE, "version": 1}}
    told = "\n".join(
        [
            stage_table([result]),
            metric_table({HOSTILE: {"value": 1, "label": HOSTILE}}),
            *links(made, {"run": HOSTILE}, changed=True),
        ]
    )
    outside_code = "".join(told.split("`")[::2]).replace("\\[", "")
    assert "<" not in outside_code
    assert "[" not in outside_code


@pytest.mark.parametrize("name", ["$\\frac$", "a$b$", "\\", "<b>", "%s {x}"])
def test_names_in_pictures_are_no_mathematics(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6, 5))
    figure = plots.spectra_bands({"test": x, "generated": x}, 1, name, unit=name, label=name)
    assert plots.png(figure).startswith(b"\x89PNG")


# Models -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(made: Recipe, tmp_path: Path) -> Path:
    return Path(shutil.copytree(diffats.load(made.root).directory, tmp_path / "bundle"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``bundle.json``, as somebody would who also mends its digests."""
    tree = json.loads((folder / "bundle.json").read_text())
    change(tree)
    tree["files"] = {name: file_digest(folder / name) for name in tree["files"]}
    tree.pop("digest")
    (folder / "bundle.json").write_text(bundle.as_stored(tree))


def layout(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tree: (
        tree["layout"][key].update(value) if isinstance(value, dict) else tree["layout"].update({key: value})
    )


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "huge size": layout("sizes", {"x": 10**12}),
    "sizes that overflow": layout("sizes", {"x": 10**30}),
    "negative size": layout("sizes", {"x": -8}),
    "size as text": layout("sizes", {"x": "8"}),
    "huge rank": layout("ranks", {"x": 10**6}),
    "other modes": layout("modes", ["x", "t<i>"]),
    "other kind": layout("kind", "mgp"),
    "no layout": lambda tree: tree.pop("layout"),
    "layout is a list": lambda tree: tree.update(layout=[]),
    "wide network": lambda tree: tree["recipe"]["model"].update(width=2**20),
    "deep network": lambda tree: tree["recipe"]["model"].update(depth=2**30),
    "many labels": lambda tree: tree["conditions"].update(n_labels=10**12),
    "huge field": lambda tree: tree["conditions"].update(fields={"f": [10**9, 10**9]}),
    "many scalars": lambda tree: tree["conditions"].update(scalars=["s"] * 1000, scalar_log=[False] * 1000),
    "template": lambda tree: tree.update(template="{"),
    "template of objects": lambda tree: tree.update(template=tree["template"].replace('"<f8"', '"|O"')),
    "huge template": lambda tree: tree.update(template=tree["template"].replace("[6, 8]", "[6, 1000000000000]")),
    "option of a later release": lambda tree: tree["recipe"].update(later=True),
    "a path as a name": lambda tree: tree["recipe"].update(name="../x"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_bundle_whose_description_lies(copied: Path, lie: str) -> None:
    before = psutil.Process().memory_info().rss
    rewrite(copied, LIES[lie])
    with pytest.raises(IntegrityError):
        bundle.load(copied, device="cpu").sample(1)
    assert psutil.Process().memory_info().rss - before < 2**28


@pytest.mark.parametrize(
    "name", ["anchors.x", "normalisation.mean_core", "scaling.mean", "examples.label", "normalisation.scale_core"]
)
@pytest.mark.parametrize("harm", ["gone", "shape", "infinite"])
def test_a_bundle_whose_arrays_do_not_fit(copied: Path, name: str, harm: str) -> None:
    arrays = load_file(copied / bundle.ARRAYS)
    if harm == "gone":
        del arrays[name]
    elif harm == "shape":
        arrays[name] = np.zeros((3, 5, 7))
    elif name == "examples.label":
        arrays[name] = arrays[name] + 10**6
    else:
        arrays[name] = np.full_like(arrays[name], np.inf)
    save_file(arrays, copied / bundle.ARRAYS)
    rewrite(copied, lambda tree: None)
    with pytest.raises(IntegrityError):
        bundle.load(copied, device="cpu")


@pytest.mark.parametrize(
    "header", [b"{", b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', b"[" * 10**5]
)
@pytest.mark.parametrize("name", [bundle.ARRAYS, bundle.WEIGHTS])
def test_a_safetensors_file_whose_header_lies(copied: Path, name: str, header: bytes) -> None:
    (copied / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    rewrite(copied, lambda tree: None)
    with pytest.raises(IntegrityError):
        bundle.load(copied, device="cpu").sample(1)


@pytest.mark.parametrize("name", ["bundle.json", bundle.ARRAYS, bundle.WEIGHTS])
def test_a_bundle_with_a_flipped_bit_or_without_a_file(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[0 if name == "bundle.json" else -3] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(IntegrityError, match="bundle"):
        bundle.load(copied)
    if name != "bundle.json":
        (copied / name).unlink()
        with pytest.raises(IntegrityError, match="damaged"):
            bundle.load(copied)


def test_a_bundle_of_a_later_release_names_it(copied: Path) -> None:
    rewrite(copied, lambda tree: tree.update(format=99, release="9.1"))
    with pytest.raises(
        IntegrityError,
        match=rf"format 99, this version reads {bundle.PLAIN_FORMAT} to {bundle.FORMAT}\. .*\(diffats 9\.1\)",
    ):
        bundle.load(copied)


@pytest.fixture(scope="module")
def model_folder(made: Recipe) -> Path:
    return Tracker.for_recipe(made).download(f"models:/{made.name}@candidate").parents[1]


@pytest.mark.parametrize("harm", ["changed", "missing", "added", "link", "identity"])
def test_files_of_a_registered_model(made: Recipe, model_folder: Path, harm: str, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "kept")
    code, uri = model_folder / "pyfunc.py", f"models:/{made.name}@candidate"
    try:
        if harm == "changed":
            code.write_text(code.read_text() + "\nimport os")
        elif harm == "identity":
            (model_folder / "identity.json").write_text("{}")
        elif harm == "missing":
            code.unlink()
        elif harm == "added":
            (model_folder / "code").mkdir()
            (model_folder / "code" / "evil.py").write_text("import os")
        else:
            code.unlink()
            code.symlink_to("/etc/hostname")
        named = "code/evil.py was not registered" if harm == "added" else r"pyfunc\.py (is missing|has changed)"
        named = "identity.json has changed" if harm == "identity" else named
        with pytest.raises(IntegrityError, match=named):
            Tracker.for_recipe(made).download(uri)
    finally:
        shutil.rmtree(model_folder)
        shutil.copytree(tmp_path / "kept", model_folder)
    assert Tracker.for_recipe(made).download(uri).is_dir()


def test_models_of_earlier_releases_load(made: Recipe, copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps({k: v for k, v in tree.items() if k not in ("files", "release")}))
    assert bundle.load(copied, device="cpu").sample(1).sizes["sample"] == 1
    tracker = Tracker.for_recipe(made)
    version = tracker.alias(made.name, "candidate") or tracker.alias(made.name, "champion")
    assert version is not None
    files = tracker.client.get_model_version(made.name, version).tags["diffats.identity"]
    tracker.client.delete_model_version_tag(made.name, version, "diffats.identity")
    assert tracker.download(f"models:/{made.name}/{version}").is_dir()
    assert "was registered without digests" in caplog.text
    folder = tracker.download(f"models:/{made.name}/{version}").parents[1]
    kept = json.loads((folder / "identity.json").read_text())["files"] | {
        "identity.json": bundle.file_digest(folder / "identity.json")
    }
    tracker.client.set_model_version_tag(made.name, version, "diffats.files", json.dumps(kept))
    assert tracker.download(f"models:/{made.name}/{version}").is_dir()
    tracker.client.set_model_version_tag(made.name, version, "diffats.files", json.dumps(kept | {"pyfunc.py": "0"}))
    with pytest.raises(IntegrityError, match=r"pyfunc\.py has changed"):
        tracker.download(f"models:/{made.name}/{version}")
    tracker.client.delete_model_version_tag(made.name, version, "diffats.files")
    tracker.client.set_model_version_tag(made.name, version, "diffats.identity", files)


def test_a_model_that_points_out_of_its_folder(model_folder: Path, tmp_path: Path) -> None:
    from diffats.registry.models import bundle_of

    shutil.copytree(model_folder, tmp_path / "model")
    described = tmp_path / "model" / "MLmodel"
    text = described.read_text()
    inner = next(line.split(": ")[1] for line in text.splitlines() if "path: artifacts/" in line)
    for path in ("../../secret", "/etc"):
        described.write_text(text.replace(f"path: {inner}", f"path: {path}"))
        with pytest.raises(IntegrityError, match="lies outside of it"):
            bundle_of(tmp_path / "model", "models:/a@b")
    described.write_text("flavors: []")
    with pytest.raises(IntegrityError, match="no model of diffats"):
        bundle_of(tmp_path / "model", "models:/a@b")


# What a model may be asked for --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(model_folder: Path) -> Any:
    return mlflow.pyfunc.load_model(str(model_folder)).unwrap_python_model()


REQUESTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "count": (1025, {}, r"1025 samples asked for, at most 1024 a call.*max_count"),
    "huge count": (10**18, {}, "at most 1024 a call"),
    "huge float": (1e300, {}, "at most 1024 a call"),
    "infinite": (float("inf"), {}, "not a positive whole number"),
    "nan": (float("nan"), {}, "not a positive whole number"),
    "rows": (pd.DataFrame({"label": ["b"] * 2000}), {}, "2000 samples asked for"),
    "rows times count": (pd.DataFrame({"label": ["b"] * 1000, "count": [10**9] * 1000}), {}, "at most 1024 a call"),
    "long column": ({"label": np.broadcast_to("b", 10**12)}, {}, "samples asked for"),
    "seed": (1, {"seed": -1}, "seed -1 is no whole number"),
    "huge seed": (1, {"seed": 2**63}, "seed 9223372036854775808 is no whole number"),
    "absurd seed": (1, {"seed": 10**5000}, "seed of more than 40 digits"),
    "seed as text": (1, {"seed": "1"}, "seed 1 is no whole number"),
    "steps": (1, {"steps": 10**9}, "steps"),
    "no steps": (1, {"steps": 0}, "steps"),
    "steps as text": (1, {"steps": "4"}, "steps 4 is no whole number"),
    "guidance": (1, {"guidance": float("nan")}, "guidance nan is no number"),
    "huge guidance": (1, {"guidance": 1e300}, r"guidance 1e\+300 is no number"),
    "guidance as text": (1, {"guidance": "x"}, "guidance x is no number"),
    "unknown setting": (1, {"sampler": "ddpm"}, 'parameter "sampler" is unknown'),
    "label": ({"label": ["x" * 10**6]}, {}, 'label "x{80}" is unknown'),
    "shape": ({"label": np.zeros((1, 10**6), dtype="i4")}, {}, "shape"),
    "ragged": ({"label": [[1], [1, 2]]}, {}, "no array"),
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_predict_refuses(served: Any, request_: str) -> None:
    given, params, message = REQUESTS[request_]
    with pytest.raises(InputError, match=message) as caught:
        served.predict(None, given, params)
    assert len(str(caught.value)) < 500


def test_the_size_of_an_answer_is_limited(model_folder: Path) -> None:
    small = mlflow.pyfunc.load_model(str(model_folder), model_config={"max_bytes": 6 * 8 * 8})
    assert small.predict(1).sizes["sample"] == 1
    with pytest.raises(InputError, match=r"2 samples take 768 bytes, at most 384 a call.*\"max_bytes\": 768"):
        small.predict(2)


# What listens -------------------------------------------------------------------------------------------------------


def listening(here: Any = None) -> set[str]:
    """Addresses on which a process, by default this one, and its children take connections."""
    here = here or psutil.Process()
    found: set[str] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (here, *here.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                ports = process.net_connections(kind="inet")
                found |= {str(c.laddr.ip) for c in ports if c.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize("processes", [False, True])
def test_workers_listen_on_loopback_only(processes: bool) -> None:
    before = listening()
    with open_cluster(Compute(workers=1, processes=processes)) as cluster:
        cluster.start()
        assert listening() - before <= {"127.0.0.1", "::1"}
        assert not processes or "127.0.0.1" in listening()
    with socket.create_server(("0.0.0.0", 0)):
        assert "0.0.0.0" in listening()


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_flow_listens_on_loopback_only_and_tells_no_secret(tmp_path: Path, fails: bool) -> None:
    recipe = write_recipe(tmp_path)
    if fails:
        database = f"postgresql://ann:{SECRET}@127.0.0.1:9/db"
        recipe.write_text(recipe.read_text() + f'[tracking]\nuri = "{database}"\n')
    environment = os.environ | SECRETS | {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_LOGGING_LEVEL": "DEBUG"}
    command = [sys.executable, "-m", "flows.end_to_end", str(recipe), "--set", "compute.processes=true"]
    with (tmp_path / "told").open("wb") as told:
        flow = psutil.Popen(command, cwd=ROOT, env=environment, stdout=told, stderr=told)
        found: set[str] = set()
        while flow.poll() is None:
            found |= listening(flow)
            time.sleep(0.2)
    assert (flow.returncode != 0) == fails, (tmp_path / "told").read_text()
    assert "127.0.0.1" in found
    assert found <= {"127.0.0.1", "::1"}
    files = [path for path in files_of(tmp_path) if path != recipe]
    assert tmp_path / "prefect" / "prefect.db" in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_what_comes_along_listens_on_loopback_only() -> None:
    for file in (ROOT / "Makefile", ROOT / "README.md", *(ROOT / "deployments").rglob("*.*")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if "server start" in line or "mlflow server" in line:
                assert "--host 127.0.0.1" in line, f"{file}: {line}"
            assert "0.0.0.0" not in line, f"{file}: {line}"


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[str, str]:
    """A certificate that signs itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    import datetime as dt

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = (
        made.serial_number(1).not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    )
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = made.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(signed.public_bytes(pem))
    plain, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, plain, none))
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


def test_workers_elsewhere_may_be_reached_by_tls(certificates: tuple[str, str]) -> None:
    import dask.config
    import distributed

    cert, key = certificates
    files = {
        f"{role}.{kind}": file
        for role in ("client", "scheduler", "worker")
        for kind, file in (("cert", cert), ("key", key))
    }
    settings = {f"distributed.comm.tls.{name}": file for name, file in {"ca-file": cert, **files}.items()}
    with (
        dask.config.set({**settings, "distributed.comm.require-encryption": True}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tls", host="127.0.0.1",
            dashboard_address=None, security=distributed.Security(),
        ) as elsewhere,
    ):  # fmt: skip
        assert elsewhere.scheduler_address.startswith("tls://")
        with open_cluster(Compute(scheduler=elsewhere.scheduler_address)) as cluster:
            assert [result for _, result in cluster.map(abs, [-2])] == [2]
        plain = elsewhere.scheduler_address.replace("tls://", "tcp://")
        with (
            pytest.raises(InputError, match="no Dask scheduler answers"),
            open_cluster(Compute(scheduler=plain)) as cluster,
        ):
            cluster.start()


# The paper ----------------------------------------------------------------------------------------------------------


def test_the_security_page_says_what_there_is() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for word in ("Report", "trusted", "pickle", "diffats.identity", "max_count", "max_bytes", "loopback", "tls://"):
        assert word in text, word
