"""Input and repositories on S3: the bits of local directories, with credentials from the environment only."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import fsspec.asyn
import numpy as np
import pytest
import s3fs
import xarray as xr
import zarr.core.sync
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer
from repositories import RELEASE
from tiny_runs import MODEL, PRIMITIVES, Remembered, changed, run, small_recipe, trajectories
from typer.testing import CliRunner

import diffats
from diffats import cli, storage
from diffats.config import Data, Recipe, parse_recipe, portable
from diffats.errors import DiffatsError, InputError, RecipeError, RootMismatchError, SourceError, StoreError
from diffats.sources import open_samples
from diffats.sources.opening import open_source
from diffats.stages import Workspace, align, decompose, train, versions
from diffats.stages.plan import plan
from diffats.store import Store
from diffats.store.repository import Repository

SECRET = "PlantedSecretOfTheEnvironment"
N = 35  # five shards of seven
GROUPS = ("tucker", "anchor", "primitives", "normalisation")


@pytest.fixture(scope="module")
def log() -> Iterator[list[str]]:
    root, handler = logging.getLogger(), Remembered()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler.texts
    root.setLevel(level)
    root.removeHandler(handler)


def disconnect() -> None:
    """Close what s3fs has open: left to the garbage collector, aiohttp warns, whenever that is."""
    for system in list(s3fs.S3FileSystem._cache.values()):
        client = getattr(system, "_s3creator", None)
        if client is not None and system.asynchronous:
            zarr.core.sync.sync(client.__aexit__(None, None, None))  # Zarr's, in Zarr's event loop
        elif client is not None:
            fsspec.asyn.sync(system.loop, client.__aexit__, None, None, None)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def s3(log: list[str]) -> Iterator[Any]:
    """A client of an S3 server in this process, which the environment names; with an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it tells every request
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
        disconnect()
    server.stop()


@pytest.fixture(scope="module")
def local(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A finished recipe whose data and stores are local directories; its data are in the bucket, too."""
    folder = tmp_path_factory.mktemp("local")
    trajectories("s3://bucket/u.zarr", N, 12, 16)
    data = trajectories(folder / "u.zarr", N, 12, 16)
    recipe = small_recipe(folder / "root", data, decompose={"ranks": {"t": 6, "x": 6}})
    run(recipe, MODEL)
    return recipe


def on_s3(recipe: Recipe, root: Path, prefix: str) -> Recipe:
    """The same with its data and its repositories in the bucket."""
    return changed(recipe, root=str(root), store=f"s3://bucket/{prefix}", data={"source": "s3://bucket/u.zarr"})


@pytest.fixture(scope="module")
def remote(local: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = on_s3(local, tmp_path_factory.mktemp("remote") / "root", "remote")
    run(recipe, MODEL)
    return recipe


def content(recipe: Recipe, groups: tuple[str, ...] = GROUPS) -> dict[str, str]:
    """What tells results from another, to the bit."""
    versions = {group: Workspace(recipe).store.latest(group) for group in groups}
    return {group: version.digest for group, version in versions.items() if version is not None}


def keys(s3: Any, prefix: str = "") -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


# What is made -----------------------------------------------------------------------------------------------------


def test_object_storage_gives_the_bits_of_local_directories(s3: Any, local: Recipe, remote: Recipe) -> None:
    assert content(remote) == content(local)
    assert len(content(remote)) == len(GROUPS)
    made = [Workspace(recipe).generated.latest("samples") for recipe in (local, remote)]
    assert made[0].digest == made[1].digest
    models = [train.require_bundle(Workspace(recipe)).directory for recipe in (local, remote)]
    assert train.weights_digest(models[0]) == train.weights_digest(models[1])
    assert Workspace(remote).store_location == "s3://bucket/remote/store"
    assert {key.split("/")[1] for key in keys(s3, "remote/")} == {"store", "samples"}
    root = Path(remote.root)
    assert not (root / "store").exists()
    assert not (root / "samples").exists()


def test_what_is_stored_does_not_name_the_place(remote: Recipe, local: Recipe) -> None:
    version = Workspace(remote).store.latest("primitives")
    assert version is not None
    assert "store" not in json.loads(version.attrs["recipe"])
    assert portable(remote)["data"]["source"] == "s3://bucket/u.zarr"
    assert portable(changed(local, store="/somewhere/else")) == portable(local)


def test_run_again_finds_everything_done(remote: Recipe) -> None:
    assert all(result.skipped for result in run(remote, MODEL).values())


def test_a_renamed_bucket_holds_what_it_held(s3: Any, remote: Recipe) -> None:
    s3.create_bucket(Bucket="renamed")
    for key in keys(s3, "remote/"):
        s3.copy_object(Bucket="renamed", Key=key, CopySource={"Bucket": "bucket", "Key": key})
    before = keys(s3)
    there = changed(remote, store="s3://renamed/remote")
    assert all(result.skipped for result in run(there, MODEL).values())
    assert content(there) == content(remote)
    assert keys(s3) == before


class Interrupted(Exception):
    """Power failure, as far as a test can have one in its own process."""


@pytest.mark.parametrize(("owner", "name"), [(decompose, "decompose"), (align, "align")])
def test_interrupted_and_run_again(
    local: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    recipe = on_s3(local, tmp_path / "root", f"interrupted-{name}")
    run(recipe, PRIMITIVES[: PRIMITIVES.index(name)])
    original, made = getattr(owner, name), itertools.count()

    def fragile(*arguments: Any, **options: Any) -> Any:
        if next(made) == 2:
            raise Interrupted
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fragile)
        with pytest.raises(Interrupted):
            run(recipe, [name])
    begun = [entry for entry in Workspace(recipe).store.versions() if not entry["complete"]]
    assert [0 < entry["done"] < N for entry in begun] == [True]
    results = run(recipe, PRIMITIVES)
    assert [results[stage].skipped for stage in PRIMITIVES] == [
        stage in PRIMITIVES[: PRIMITIVES.index(name)] for stage in PRIMITIVES
    ]
    assert content(recipe) == content(local)


_CHILD = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from tiny_runs import run
    from diffats.config import parse_recipe

    def progress(done, total, failed):
        if done:
            os.kill(os.getpid(), signal.SIGKILL)

    run(parse_recipe({tree!r}), ["decompose"], progress=progress)
"""


@pytest.mark.faults
def test_killed_and_run_again(local: Recipe, tmp_path: Path) -> None:
    recipe = on_s3(local, tmp_path / "root", "killed")
    code = textwrap.dedent(_CHILD).format(tests=str(Path(__file__).parent), tree=recipe.model_dump(mode="json"))
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert made.returncode == -signal.SIGKILL, made.stderr
    run(recipe, PRIMITIVES)
    assert content(recipe) == content(local)


def test_worker_processes_reach_it(local: Recipe, tmp_path: Path) -> None:
    recipe = changed(on_s3(local, tmp_path / "root", "processes"), compute={"processes": True})
    run(recipe, ["decompose"])
    assert content(recipe, ("tucker",)) == content(local, ("tucker",))


def test_another_recipe_is_refused(remote: Recipe, tmp_path: Path) -> None:
    other = changed(remote, name="other", root=str(tmp_path / "root"))
    with pytest.raises(RootMismatchError, match=r'store "s3://bucket/remote": .*belongs to recipe "tiny", got "other"'):
        plan(Workspace(other))


def test_the_second_of_two_writers_is_refused(s3: Any) -> None:
    one = Store.create_or_open("s3://bucket/twice")
    two = Repository("s3://bucket/twice", fresh=True)  # as on another machine, where no lock is seen
    sessions = [repository.repo.writable_session("main") for repository in (one, two)]
    for session in sessions:
        zarr.open_group(session.store, mode="a", zarr_format=3).attrs["x"] = 1
    one.commit(sessions[0], "one", {})
    with pytest.raises(StoreError, match="another process committed at the same time; nothing of this commit is kept"):
        two.commit(sessions[1], "two", {})


# What is read -----------------------------------------------------------------------------------------------------


def command(*words: str) -> Any:
    done = CliRunner().invoke(cli.app, [*words, "--json"], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def recipe_file(remote: Recipe, tmp_path: Path) -> str:
    """The finished recipe as a file."""
    lines = []
    for section, keys_ in remote.model_dump(mode="json", exclude_none=True).items():
        entries = keys_.items() if isinstance(keys_, dict) else [("", keys_)]
        lines += [f"{section}{'.' if key else ''}{key} = {_toml(value)}" for key, value in entries]
    (tmp_path / "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
    return str(tmp_path / "recipe.toml")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def test_the_verbs_that_look(recipe_file: str, local: Recipe, tmp_path: Path) -> None:
    code, planned = command("plan", recipe_file)
    assert code == 0
    assert set(planned["exists"].values()) == {"finished"}
    code, groups = command("inspect", recipe_file)
    assert code == 0
    assert set(groups) >= {*GROUPS, "samples"}
    assert command("verify", recipe_file) == (0, {"problems": []})
    assert command("export", recipe_file, str(tmp_path / "all.zarr"))[0] == 0
    stored = Workspace(local).store.latest("primitives")
    assert stored is not None
    with xr.open_datatree(tmp_path / "all.zarr", engine="zarr") as tree:
        xr.testing.assert_equal(tree["primitives"].to_dataset(), stored.dataset())
        assert "samples" in tree["generated"]


@pytest.mark.parametrize("harm", ["changed", "removed"])
def test_verify_finds_a_damaged_object(s3: Any, recipe_file: str, tmp_path: Path, harm: str) -> None:
    for key in keys(s3, "remote/"):
        s3.copy_object(Bucket="bucket", Key=key.replace("remote", harm, 1), CopySource={"Bucket": "bucket", "Key": key})
    key = max(
        keys(s3, f"{harm}/store/chunks/"), key=lambda key: s3.head_object(Bucket="bucket", Key=key)["ContentLength"]
    )
    if harm == "removed":
        s3.delete_object(Bucket="bucket", Key=key)
    else:
        body = bytearray(s3.get_object(Bucket="bucket", Key=key)["Body"].read())
        body[len(body) // 2] ^= 1
        s3.put_object(Bucket="bucket", Key=key, Body=bytes(body))
    code, found = command("verify", recipe_file, "--set", f"store=s3://bucket/{harm}")
    assert code == 1
    assert "unreadable" in " ".join(found["problems"])


def test_versions_are_named_rolled_back_and_pruned(s3: Any, local: Recipe, tmp_path: Path) -> None:
    recipe = on_s3(local, tmp_path / "root", "versions")
    run(recipe, PRIMITIVES)
    work = Workspace(recipe)
    versions.tag(work, "first")
    for rank in (5, 4):
        run(changed(recipe, decompose={"ranks": {"t": rank, "x": rank}}), PRIMITIVES)
    assert [done.bytes for done in versions.prune(work, 1)] == [0]  # younger than a day: may be in the making
    before = len(keys(s3, "versions/store/chunks/"))
    (done,) = versions.prune(Workspace(recipe), 1, grace=timedelta(0))
    assert done.bytes > 0
    assert 0 < len(keys(s3, "versions/store/chunks/")) < before
    assert done.removed == ()  # by the first prune already
    first = Workspace(recipe)
    assert set(versions.present(first)) == {"scaling", *GROUPS}
    (rolled,) = versions.rollback(first, "first")
    assert [entry["group"] for entry in rolled.withdrawn] == list(GROUPS)
    assert [store.verify() for store in Workspace(recipe).repositories()] == [[]]
    assert diffats.open_version("s3://bucket/versions", version="first").sizes["rank_x"] == 6


def test_an_icechunk_source(remote: Recipe) -> None:
    repository = Store.create_or_open("s3://bucket/icechunk/a")
    data = Data(source="s3://bucket/icechunk/a", group="g", modes=["x"], sample_dim="run")
    read = []
    for value in (1.0, 2.0):
        session = repository.repo.writable_session("main")
        xr.Dataset({"u": (("run", "x"), np.full((4, 3), value))}).to_zarr(
            session.store, group="g", mode="w", zarr_format=3, consolidated=False
        )
        session.commit(f"{value}")
        read.append(open_samples(data, 0).read([0])[0, 0])
    assert read == [1.0, 2.0]
    assert "snapshot" in open_source(data).encoding
    elsewhere = data.model_copy(update={"source": "https://127.0.0.1:9/a", "engine": "icechunk"})
    with pytest.raises(SourceError, match='a repository cannot lie at a "https://" address'):
        open_source(elsewhere)


# What is refused --------------------------------------------------------------------------------------------------


def wrong_credentials(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("moto.core.authorization.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)


def no_credentials(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("AWS_ACCESS_KEY_ID")
    patch.delenv("AWS_SECRET_ACCESS_KEY")


def nobody_there(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


FAILURES = {
    wrong_credentials: ("InvalidAccessKeyId|Forbidden", "AWS_SECRET_ACCESS_KEY"),
    no_credentials: ("no providers|Unable to locate credentials", "AWS_SECRET_ACCESS_KEY"),
    nobody_there: ("127.0.0.1:9 does not answer: Connection refused", "AWS_ENDPOINT_URL"),
}


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """s3fs keeps its connections, and the credentials that they began with."""
    disconnect()
    yield
    disconnect()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_storage_that_refuses(s3: Any, failure: Any, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    failure(monkeypatch)
    cause, fix = FAILURES[failure]
    data = Data(source="s3://bucket/u.zarr", modes=["t", "x"], sample_dim="run")
    calls = (
        (StoreError, lambda: Store.open("s3://bucket/refused")),
        (StoreError, lambda: Store.create_or_open("s3://bucket/refused")),
        (SourceError, lambda: open_source(data)),
    )
    for kind, call in calls:
        with pytest.raises(kind, match=cause) as caught:
            call()
        assert fix in str(caught.value)
        log.append(str(caught.value))


def test_a_server_that_says_nothing(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match="does not answer: timed out"):
            Store.open("s3://bucket/silent")


@pytest.mark.parametrize("address", ["minio:9000", "minio", "ht tp://x"])
def test_an_endpoint_that_is_no_url(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(StoreError, match=r"cannot be opened .*AWS_ENDPOINT_URL"):
        Store.open("s3://bucket/a")


def test_a_bucket_that_is_not_there(s3: Any, remote: Recipe, tmp_path: Path) -> None:
    recipe = changed(remote, root=str(tmp_path / "root"), store="s3://nowhere/a")
    missing = r"s3://nowhere/a/store: .*NoSuchBucket.*Make the bucket"
    with pytest.raises(DiffatsError, match=missing):
        Store.create_or_open("s3://nowhere/a/store")
    if RELEASE == 1:  # to release 2, which only looks, it is like a bucket without a repository
        with pytest.raises(DiffatsError, match=missing):
            plan(Workspace(recipe))
    with pytest.raises(SourceError, match="does not exist"):
        open_source(recipe.data.model_copy(update={"source": "s3://nowhere/u.zarr"}))


def test_s3fs_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol in ("s3", "s3a"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(SourceError, match=r"pip install 'diffats\[s3\]'"):
        open_source(Data(source="s3://bucket/u.zarr", modes=["t", "x"], sample_dim="run"))


def test_a_url_as_root_is_refused_and_store_named(local: Recipe) -> None:
    with pytest.raises(InputError, match=r"Use a local directory for root\. Only .*: give the URL as store"):
        Workspace(changed(local, root="s3://bucket/a"))


@pytest.mark.parametrize(
    "url", ["s3://ann:{}@bucket/a", "s3://bucket/a?key={}", "https://{}@host/a", "s3:///{}", "ftp://a"]
)
def test_a_store_that_cannot_be(local: Recipe, url: str) -> None:
    with pytest.raises(RecipeError, match=r"store: .*(AWS_SECRET_ACCESS_KEY|s3://bucket/prefix)") as caught:
        parse_recipe({**local.model_dump(mode="json"), "store": url.format(SECRET if "s3:///" not in url else "a")})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_repositories_in_another_directory(local: Recipe, tmp_path: Path) -> None:
    recipe = changed(local, root=str(tmp_path / "root"), store=str(tmp_path / "elsewhere"))
    run(recipe, ["decompose"])
    assert content(recipe, ("tucker",)) == content(local, ("tucker",))
    assert (tmp_path / "elsewhere" / "store").is_dir()
    shutil.rmtree(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").touch()
    with pytest.raises(InputError, match=r'store ".*elsewhere" cannot be made: .* is a file. Use another store'):
        plan(Workspace(recipe))


# Last: all that the others have left ------------------------------------------------------------------------------


def test_the_secret_is_nowhere(s3: Any, local: Recipe, remote: Recipe, log: list[str]) -> None:
    assert log
    assert not [text for text in log if SECRET in text]
    files = [path for recipe in (local, remote) for path in Path(recipe.root).rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    objects = keys(s3)
    assert len(objects) > 50
    assert not [key for key in objects if SECRET.encode() in s3.get_object(Bucket="bucket", Key=key)["Body"].read()]
