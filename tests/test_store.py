from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr
import zarr

from diffats.compute import open_cluster
from diffats.config import Compute
from diffats.errors import InputError, IntegrityError, LockedError, RootMismatchError, StoreError, StoreNotFoundError
from diffats.store import NON_FINITE, OK, PENDING, Store, Version, writer_lock
from diffats.store.location import storage_for

N, SHARD = 22, 4  # the last of six shards is shorter


def template(n: int = N) -> xr.Dataset:
    return xr.Dataset(
        {
            "core": (("sample", "rank_y", "x"), np.broadcast_to(np.float32(0), (n, 2, 3)), {"units": "m s-1"}),
            "factor_y": (("sample", "y", "rank_y"), np.broadcast_to(np.float64(0), (n, 5, 2)), {"units": "days"}),
            "mean": (("y", "x"), np.arange(15.0).reshape(5, 3), {"units": "K"}),
        },
        coords={
            "sample": np.arange(n),
            "split": ("sample", np.where(np.arange(n) % 5, "train", "test")),
            "y": ("y", np.linspace(-1, 1, 5), {"standard_name": "latitude", "units": "degrees_north"}),
            "x": ("x", [cftime.Datetime360Day(2000, 2, day) for day in (28, 29, 30)]),
            "height": ((), 2.0, {"units": "m"}),
        },
        attrs={"title": "a test"},
    )


def make(start: int, stop: int) -> dict[str, np.ndarray]:
    """Sample 6 is bad; sample 9's core is -0.0, sample 10's is the fill value."""
    generators = [np.random.default_rng(i) for i in range(start, stop)]
    core = np.stack([g.standard_normal((2, 3)) for g in generators]).astype(np.float32)
    core[np.arange(start, stop) == 9] = -0.0
    core[np.arange(start, stop) == 10] = np.nan
    status = np.where(np.arange(start, stop) == 6, NON_FINITE, OK).astype(np.int8)
    return {"core": core, "factor_y": np.stack([g.standard_normal((5, 2)) for g in generators]), "status": status}


class Serial:
    """Stands for a cluster."""

    def map(self, function, items, **options):
        return ((item, function(item)) for item in items)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create_or_open(tmp_path / "store")


def filled(store: Store, group: str = "tucker", fingerprint: str = "a" * 64, **kwargs) -> Version:
    version = store.begin(group, template(), fingerprint=fingerprint, shard=SHARD, **kwargs)
    version.fill(make, Serial())
    return version.finish()


def files_of(store: Store, kind: str) -> list[Path]:
    return sorted(path for path in (Path(store.location) / kind).rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------- what is stored


def test_a_filled_version_reads_back_with_coordinates_and_attributes(store):
    seen = []
    version = store.begin("tucker", template(), fingerprint="f1", shard=SHARD, attrs={"layout": {"ranks": [2, 3]}})
    assert version.pending() == list(range(6))
    assert not version.complete
    with open_cluster(Compute(workers=2)) as cluster:
        version.fill(make, cluster, commit_every=2, progress=lambda done, failed: seen.append((done, failed)))
    version.finish({"method": "sthosvd"})
    ds = version.dataset().load()
    expected = make(0, N)
    for name in ("core", "factor_y", "status"):
        assert ds[name].dtype == expected[name].dtype
        assert ds[name].values.tobytes() == expected[name].tobytes()
    given = template().drop_vars(["core", "factor_y"])
    xr.testing.assert_identical(
        ds.drop_vars(["status", "core", "factor_y"]).drop_attrs(deep=False), given.drop_attrs(deep=False)
    )
    assert ds.core.attrs == {"units": "m s-1"}
    assert ds.factor_y.attrs == {"units": "days"}
    assert ds.y.attrs["standard_name"] == "latitude"
    assert ds.attrs == {"title": "a test", "layout": {"ranks": [2, 3]}, "method": "sthosvd"} == version.attrs
    assert ds.status.attrs["flag_meanings"].split()[ds.status.values[6]] == "non_finite"
    assert seen[0] == (0, 0)
    assert seen[-1] == (N, 1)


def test_chunks_are_whole_shards(store):
    version = filled(store)
    for name in ("core", "factor_y"):
        array = version.raw(name)
        assert array.chunks == (SHARD, *array.shape[1:])


def test_the_template_is_never_allocated(store):
    huge = xr.Dataset({"core": (("sample", "x"), np.broadcast_to(np.float32(0), (10**6, 10**6)))})
    version = store.begin("tucker", huge, fingerprint="f", shard=100)
    assert version.n_shards == 10**4
    assert version.bounds(3) == (300, 400)


def test_coordinates_may_be_lazy_too(store):
    lazy = template().chunk().assign_coords(nu=("sample", np.arange(N) / 3)).chunk({"sample": 4})
    version = store.begin("tucker", lazy, fingerprint="f", shard=SHARD)
    np.testing.assert_array_equal(version.dataset().nu, np.arange(N) / 3)
    np.testing.assert_array_equal(version.dataset()["mean"], template()["mean"])


def test_attributes_that_readers_would_decode_are_left_out(store):
    packed = template()
    packed.core.attrs |= {"scale_factor": 2.0, "missing_value": 0.0}
    version = store.begin("tucker", packed, fingerprint="f", shard=SHARD)
    version.fill(make, Serial())
    assert version.finish().dataset().core.values.tobytes() == make(0, N)["core"].tobytes()


def test_versions_tell_done_total_and_failed(store):
    version = store.begin("tucker", template(), fingerprint="f1", shard=SHARD)
    with pytest.raises(ZeroDivisionError):
        version.fill(failing_at(12), Serial())
    (entry,) = store.versions()
    assert (entry["done"], entry["total"], entry["failed"], entry["complete"]) == (12, N, 1, False)
    assert entry["group"] == "tucker"
    assert version.pending() == [3, 4, 5]
    assert (version.dataset().status.values[12:] == PENDING).all()
    with pytest.raises(StoreError, match=r"3 of 6 shards are pending, the first is 3"):
        version.finish()


def failing_at(sample: int):
    def function(start, stop):
        if start >= sample:
            raise ZeroDivisionError
        return make(start, stop)

    return function


def test_what_is_not_there(store):
    version = filled(store)
    with pytest.raises(StoreNotFoundError, match="group anchor: not in snapshot"):
        Version(store, "anchor", version.snapshot)
    with pytest.raises(IntegrityError, match="damaged or lost"):
        Version(store, "tucker", "A" * 20)
    assert store.latest("anchor") is None
    assert store.version("tucker", "b") is None


def test_a_version_travels_to_workers(store):
    version = filled(store)
    with open_cluster(Compute(workers=1)) as cluster:
        ((_, total),) = cluster.map(lambda v: float(np.nansum(v.dataset().core.isel(sample=slice(0, 4)))), [version])
    assert total == pytest.approx(float(np.nansum(make(0, 4)["core"])))


# ---------------------------------------------------------------------------------------------------- resume, versions


def test_resuming_computes_only_what_is_pending(store):
    version = store.begin("tucker", template(), fingerprint="f1", shard=SHARD)
    with pytest.raises(ZeroDivisionError):
        version.fill(failing_at(8), Serial())
    calls = []

    def counting(start, stop):
        calls.append(start)
        return make(start, stop)

    again = Store.open(store.location).begin("tucker", template(), fingerprint="f1", shard=3)
    again.fill(counting, Serial())
    assert calls == [8, 12, 16, 20]
    other = Store.create_or_open(Path(store.location).with_name("other"))
    assert again.finish().digest == filled(other, fingerprint="f1").digest


def test_a_finished_version_is_found_again_and_stays_as_it_is(store):
    version = filled(store)
    commits = len(list(store.repo.ancestry(branch="main")))
    again = store.begin("tucker", template(), fingerprint="a" * 64, shard=SHARD)
    assert again.complete
    again.fill(failing_at(0), Serial())
    assert again.finish().snapshot == version.snapshot
    assert len(list(store.repo.ancestry(branch="main"))) == commits


def test_an_old_version_stays_readable_and_comes_back(store):
    old = filled(store, fingerprint="old")
    new = store.begin("tucker", template(8), fingerprint="new", shard=SHARD)
    assert store.latest("tucker").fingerprint == "old"
    new.fill(make, Serial())
    new.finish()
    assert store.latest("tucker").fingerprint == "new"
    assert store.version("tucker", "old").dataset().sizes["sample"] == N
    assert old.dataset().core.values.tobytes() == make(0, N)["core"].tobytes()
    assert store.begin("tucker", template(), fingerprint="old", shard=SHARD).snapshot == old.snapshot
    assert [entry["tag"] for entry in store.versions()] == ["tucker-old-1", "tucker-new-1"]
    assert store.verify() == []


def test_restart_makes_a_fresh_version_which_then_resumes(store):
    filled(store, fingerprint="f")
    fresh = store.begin("tucker", template(), fingerprint="f", shard=SHARD, restart=True)
    assert len(fresh.pending()) == 6
    assert store.version("tucker", "f").complete
    resumed = store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    assert not resumed.complete
    resumed.fill(make, Serial())
    resumed.finish()
    assert [entry["tag"] for entry in store.versions()] == ["tucker-f-1", "tucker-f-2"]


def test_the_name_of_a_deleted_tag_is_passed_over(store):
    filled(store, fingerprint="f")
    store.repo.delete_tag("tucker-f-1")
    store.begin("tucker", template(), fingerprint="f", shard=SHARD, restart=True)
    assert [entry["tag"] for entry in store.versions()] == ["tucker-f-2", None]


def test_a_version_that_lost_its_tag_is_complete_and_gets_one_before_it_is_replaced(store):
    version = filled(store, fingerprint="f")
    store.repo.delete_tag("tucker-f-1")
    store.put("anchor", template()[["mean"]], fingerprint="g")
    assert store.begin("tucker", template(), fingerprint="f", shard=SHARD).complete
    assert store.latest("tucker").digest == version.digest
    store.begin("tucker", template(), fingerprint="other", shard=SHARD)
    assert store.version("tucker", "f").digest == version.digest


def test_groups_do_not_disturb_each_other(store):
    first = store.begin("tucker", template(), fingerprint="a", shard=SHARD)
    second = store.begin("primitives", template(8), fingerprint="b", shard=SHARD)
    for version in (second, first):
        version.fill(make, Serial(), commit_every=1)
        version.finish()
    assert first.dataset().core.values.tobytes() == make(0, N)["core"].tobytes()
    assert second.dataset().core.values.tobytes() == make(0, 8)["core"].tobytes()


def test_a_replaced_version_cannot_be_filled(store):
    old = store.begin("tucker", template(), fingerprint="a", shard=SHARD)
    store.begin("tucker", template(), fingerprint="b", shard=SHARD)
    with pytest.raises(StoreError, match="another version has taken the place"):
        old.fill(make, Serial())


def test_put_writes_once(store):
    ds = xr.Dataset({"U": (("y", "rank"), np.eye(3))}, attrs={"strategy": "medoid"})
    first = store.put("anchor", ds, fingerprint="f", attrs={"index": 4})
    assert first.complete
    assert first.n_shards == 0
    assert store.put("anchor", ds, fingerprint="f", attrs={"index": 4}).snapshot == first.snapshot
    changed = store.put("anchor", ds * 2, fingerprint="f", attrs={"index": 4})
    assert changed.digest != first.digest
    assert first.dataset().attrs == {"strategy": "medoid", "index": 4}
    assert store.latest("anchor").snapshot == changed.snapshot


def test_the_digest_is_of_content_not_of_time_and_place(store):
    one = store.put("a", template(), fingerprint="f", attrs={"host": "here"})
    assert store.put("b", template(), fingerprint="g", attrs={"host": "there"}).digest == one.digest
    metres = template()
    metres["mean"].attrs["units"] = "m"
    assert store.put("c", metres, fingerprint="f").digest != one.digest


# ---------------------------------------------------------------------------------------------------- refusals


def without(name):
    return lambda start, stop: {key: value for key, value in make(start, stop).items() if key != name}


def changed(**new):
    return lambda start, stop: {**make(start, stop), **{k: v(start, stop) for k, v in new.items()}}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (without("core"), r"got variables \['factor_y'\], expected \['core', 'factor_y'\] and status"),
        (without("status"), r"got status of none, expected \(4,\)"),
        (changed(status=lambda a, b: np.zeros(b - a, np.int8)), r"got status \[0\], expected one of"),
        (changed(core=lambda a, b: make(a, b)["core"][:-1]), r"got shape \(3, 2, 3\), expected \(4, 2, 3\)"),
        (changed(core=lambda a, b: make(a, b)["core"].astype("f8")), "got dtype float64, expected float32"),
    ],
)
def test_a_shard_that_does_not_fit_the_template_is_refused(store, function, message):
    version = store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    with pytest.raises(StoreError, match=message) as error:
        version.fill(function, Serial())
    assert "group tucker, shard 0 (samples 0 to 3)" in str(error.value)
    assert version.pending() == list(range(6))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 6), (0, 8), (20, 21), (1, 22)])
def test_half_a_shard_is_refused(store, start, stop):
    from diffats.store.shards import ShardJob, write_shard

    version = store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    fork = store.repo.writable_session("main").fork()
    job = ShardJob(fork, "tucker", version.record.filled, start // SHARD, start, stop, SHARD)
    with pytest.raises(StoreError, match="not a whole shard of 4 samples"):
        write_shard(job, {"core": make(start, stop)["core"]})
    assert not fork.has_uncommitted_changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.isel(sample=slice(0)), "no samples"),
        (lambda ds: ds.transpose("x", ...), "expected 'sample' first"),
        (lambda ds: ds.assign(name=("sample", ["a"] * N)), "dtype .* cannot be filled"),
    ],
)
def test_a_template_that_cannot_be_stored_is_refused(store, change, message):
    with pytest.raises(StoreError, match=message):
        store.begin("tucker", change(template()), fingerprint="f", shard=SHARD)
    assert store.versions() == []


def test_a_shard_larger_than_a_chunk_can_be_is_refused(store):
    huge = xr.Dataset({"core": (("sample", "x"), np.broadcast_to(np.float32(0), (10**6, 10**6)))})
    with pytest.raises(StoreError, match=r"Lower compute\.shard_samples"):
        store.begin("tucker", huge, fingerprint="f", shard=1000)


def test_another_template_under_the_same_fingerprint_is_refused(store):
    store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    with pytest.raises(StoreError, match=r"sample=8.*has .*sample=22"):
        store.begin("tucker", template(8), fingerprint="f", shard=SHARD)


def test_attributes_must_be_json(store):
    with pytest.raises(StoreError, match="not JSON"):
        store.put("anchor", template(), fingerprint="f", attrs={"x": np.zeros(3)})


def test_names_that_make_no_tag_are_refused(store):
    with pytest.raises(StoreError, match='group "a/b"'):
        store.put("a/b", template(), fingerprint="f")


def test_a_root_belongs_to_one_name_and_one_kind_of_samples(store):
    store.check("one", ["y", "x"])
    store.check("one", ["y", "x"])
    with pytest.raises(RootMismatchError, match='belongs to recipe "one", got "two"'):
        store.check("two", ["y", "x"])
    with pytest.raises(RootMismatchError, match="belongs to samples with dims y, x, got y, band"):
        store.check("one", ["y", "band"])


def test_no_store_there(tmp_path):
    with pytest.raises(StoreNotFoundError, match="there is no store at"):
        Store.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreNotFoundError, match="there is no store at"):
        Store.open(tmp_path / "empty")


def test_places_that_icechunk_cannot_use():
    with pytest.raises(StoreError, match='cannot lie at a "ftp://" address'):
        Store.open("ftp://host/store")
    with pytest.raises(StoreError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        Store.open("az://container/store")


def test_object_stores_take_credentials_from_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    text = repr(storage_for("s3://bucket/a/b"))
    assert "bucket" in text
    assert "a/b" in text
    assert "gs-bucket" in repr(storage_for("gs://gs-bucket/a"))


# ---------------------------------------------------------------------------------------------------- damage


def largest_chunk(store: Store) -> Path:
    return max(files_of(store, "chunks"), key=lambda path: path.stat().st_size)


@pytest.fixture
def wide(tmp_path: Path) -> Store:
    """Chunks large enough for files of their own."""
    store = Store.create_or_open(tmp_path / "wide")
    ds = xr.Dataset({"core": (("sample", "x"), np.broadcast_to(np.float32(0), (10, 500)))})
    version = store.begin("tucker", ds, fingerprint="f", shard=SHARD)

    def function(start, stop):
        core = np.random.default_rng(start).standard_normal((stop - start, 500), dtype=np.float32)
        return {"core": core, "status": np.ones(stop - start, np.int8)}

    version.fill(function, Serial())
    version.finish()
    return store


def shard_in(store: Store, path: Path) -> int:
    """Found from the content: damage one shard at a time on a copy of its bytes."""
    data = path.read_bytes()
    path.unlink()
    problems = store.verify()
    path.write_bytes(data)
    (shard,) = {problem.shard for problem in problems}
    assert shard is not None
    return shard


@pytest.mark.parametrize("where", [4, 200, -1], ids=["header", "middle", "checksum"])
def test_verify_finds_a_changed_byte(wide, where):
    path = files_of(wide, "chunks")[0]
    shard = shard_in(wide, path)
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)
    (problem,) = wide.verify("tucker")
    assert (problem.variable, problem.shard) == ("core", shard)
    assert problem.samples == (shard * SHARD, min(10, shard * SHARD + SHARD))
    assert f"shard {shard} (samples {problem.samples[0]} to {problem.samples[1] - 1}), variable core" in str(problem)


def test_verify_finds_a_removed_file(wide):
    files_of(wide, "chunks")[1].unlink()
    (problem,) = wide.verify()
    assert problem.variable == "core"
    assert "unreadable" in problem.reason


def test_verify_finds_a_chunk_exchanged_for_a_valid_one(wide):
    one, two = files_of(wide, "chunks")[:2]
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    assert {problem.variable for problem in wide.verify()} == {"core"}
    one.write_bytes(data)
    assert wide.verify() == []


def test_verify_finds_a_lost_manifest(wide):
    for path in files_of(wide, "manifests"):
        path.unlink()
    assert wide.verify()


def test_verify_finds_a_lost_snapshot(wide):
    for path in files_of(wide, "snapshots"):
        path.unlink()
    (problem,) = wide.verify()
    assert "a snapshot or manifest cannot be read" in str(problem)


def test_verify_looks_at_what_was_written_with_the_template(tmp_path):
    store = Store.create_or_open(tmp_path / "s")
    store.put("anchor", xr.Dataset({"U": ("y", np.random.default_rng(0).standard_normal(500))}), fingerprint="f")
    (path,) = files_of(store, "chunks")
    path.unlink()
    (problem,) = store.verify()
    assert (problem.group, problem.variable, problem.shard) == ("anchor", "U", None)


def test_verify_of_an_unfinished_version_and_of_nothing(store):
    with pytest.raises(StoreNotFoundError, match="no group tucker"):
        store.verify("tucker")
    version = store.begin("tucker", template(), fingerprint="f1", shard=SHARD)
    with pytest.raises(ZeroDivisionError):
        version.fill(failing_at(12), Serial())
    counts = []
    assert store.verify(progress=lambda done, found: counts.append((done, found))) == []
    assert counts[-1] == (6, 0)


# ---------------------------------------------------------------------------------------------------- export


def test_export_is_a_plain_zarr_tree(store, tmp_path):
    store.check("one", ["y", "x"])
    version = filled(store)
    store.put("anchor", template()[["mean"]], fingerprint="f")
    store.begin("unfinished", template(), fingerprint="f", shard=SHARD)
    store.export(tmp_path / "plain.zarr")
    with xr.open_datatree(tmp_path / "plain.zarr", engine="zarr") as tree:
        assert set(tree.children) == {"anchor", "tucker"}
        exported = tree["tucker"].to_dataset().load()
    assert exported.attrs.pop("diffats")["fingerprint"] == version.fingerprint
    xr.testing.assert_identical(exported, version.dataset().load())
    assert exported.core.values.tobytes() == make(0, N)["core"].tobytes()
    with pytest.raises(InputError, match="exists"):
        store.export(tmp_path / "plain.zarr")
    store.export(tmp_path / "plain.zarr", under="samples")
    with xr.open_datatree(tmp_path / "plain.zarr", engine="zarr") as tree:
        assert set(tree.children) == {"anchor", "tucker", "samples"}
    assert zarr.open_group(tmp_path / "plain.zarr", mode="r").attrs["diffats"]["name"] == "one"


# ---------------------------------------------------------------------------------------------------- kill and resume

CHILD = """
import sys, json, os, time
import numpy as np
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store import template, make, SHARD
from diffats.compute import open_cluster
from diffats.config import Compute
from diffats.store import Store, writer_lock

root, pause = Path(sys.argv[1]), float(sys.argv[2])

def logged(start, stop):
    with open(root / "calls", "a") as calls:
        calls.write(f"{{start}}\\n")
    time.sleep(pause)
    return make(start, stop)

with writer_lock(root):
    store = Store.create_or_open(root / "store")
    version = store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    print("begun", flush=True)
    with open_cluster(Compute(workers=2)) as cluster:
        version.fill(logged, cluster, commit_every=2)
    print(version.finish().digest, flush=True)
"""


def child(root: Path, pause: float) -> subprocess.Popen[str]:
    script = textwrap.dedent(CHILD).format(tests=str(Path(__file__).parent))
    root.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(pause)], stdout=subprocess.PIPE, text=True, cwd=root
    )


def calls(root: Path) -> list[int]:
    path = root / "calls"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def committed(root: Path) -> set[int]:
    """Starts of the shards that a reader sees committed."""
    try:
        version = Store.open(root / "store").version("tucker", "f")
    except StoreNotFoundError:
        return set()
    return (
        set()
        if version is None
        else {version.bounds(s)[0] for s in range(6)} - {version.bounds(s)[0] for s in version.pending()}
    )


@pytest.mark.faults
@pytest.mark.parametrize("after", [0, 2, 4, 6])
def test_kill_and_resume(tmp_path, after):
    root = tmp_path / "root"
    process = child(root, 0.1)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    while len(calls(root)) < after:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before, there = len(calls(root)), committed(root)
    output, _ = child(root, 0.0).communicate(timeout=60)
    assert not there & set(calls(root)[before:])
    assert set(calls(root)) == set(range(0, N, SHARD))
    whole = filled(Store.create_or_open(tmp_path / "whole"), fingerprint="f")
    assert output.split()[-1] == whole.digest
    assert Store.open(root / "store").verify() == []


# ---------------------------------------------------------------------------------------------------- one writer


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    root = tmp_path / "root"
    process = child(root, 30.0)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    with pytest.raises(LockedError, match=f"written by process {process.pid} on .* since"), writer_lock(root):
        pass
    while not calls(root):
        time.sleep(0.01)
    with pytest.raises(LockedError, match="store is being written by process"):
        Store.open(root / "store").put("anchor", template(), fingerprint="f")
    process.kill()
    process.communicate()
    with writer_lock(root), writer_lock(root):
        owner = json.loads((root / ".writer.json").read_text())
        assert owner["pid"] == os.getpid()
    with writer_lock(root):
        Store.open(root / "store").put("anchor", template(), fingerprint="f")


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), writer_lock(tmp_path / "file" / "root"):
        pass


def test_a_url_has_no_lock():
    with writer_lock("s3://bucket/root"):
        pass


def test_a_commit_from_elsewhere_is_noticed(store):
    with store.writing() as one, store.writing() as two:
        for session in (one, two):
            zarr.open_group(session.store, mode="a", zarr_format=3).attrs["x"] = 1
        store.commit(one, "one", {})
        with pytest.raises(StoreError, match="another process committed at the same time"):
            store.commit(two, "two", {})


def test_importing_the_store_is_light():
    heavy = "('torch', 'mlflow', 'prefect', 'matplotlib')"
    script = f"import sys, diffats.store, diffats.compute; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"\[\]\s*", output)


def test_a_store_that_was_removed_and_made_again_is_a_new_one(tmp_path):
    for name in ("first", "second"):
        store = Store.create_or_open(tmp_path / "store")
        store.check(name, ["x"])
        shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "store")


def test_two_processes_may_tie_a_new_store_at_once(store: Store, tmp_path: Path, monkeypatch) -> None:
    other, looks = Store(tmp_path / "store"), []
    seen = other.head

    def late() -> object:
        session = seen()
        if not looks:
            looks.append(session)
            store.check("tiny", ["y", "x"])
        return session

    monkeypatch.setattr(other, "head", late)
    other.check("tiny", ["y", "x"])
    with pytest.raises(RootMismatchError):
        other.check("another", ["y", "x"])
