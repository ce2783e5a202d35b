"""Versions: who made them from what; opened by id; named, compared, rolled back and pruned."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from test_growth import append, recipe_of, write
from test_operation_counts import of, watched
from test_store import SHARD, Serial, failing_at, filled, make, template
from tiny_recipe import waves, write_recipe
from tiny_runs import PRIMITIVES, calls
from tiny_runs import run as run_stages
from typer.testing import CliRunner, Result

import diffats
from diffats import cli, registry, training
from diffats.config import load_recipe
from diffats.errors import InputError, LockedError, StoreNotFoundError
from diffats.registry import Tracker
from diffats.stages import Workspace, versions
from diffats.store import OK, Store, Version
from diffats.store.difference import difference
from diffats.store.history import delete_name, name_versions, prune, rollback
from diffats.store.location import forget

STAGES = ("decompose", "anchor", "align", "normalise")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def ended(result: Result, code: int = 0) -> Result:
    assert result.exit_code == code, result.output
    return result


def printed(*arguments: object) -> Any:
    return json.loads(ended(run(*arguments, "--json")).stdout)


def no_reason(entry: Any) -> None:
    return None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create_or_open(tmp_path / "store")


def put(store: Store, group: str, fingerprint: str, value: float = 0.0, **attrs: Any) -> Version:
    """A small group whose chunks have files of their own."""
    content = np.random.default_rng(int(value)).standard_normal(500) + value
    return store.put(group, xr.Dataset({"U": ("y", content)}), fingerprint=fingerprint, attrs=attrs)


def entry(store: Store, version: Version) -> dict[str, Any]:
    return next(e for e in store.versions() if (e["group"], e["snapshot"]) == (version.group, version.snapshot))


def size(store: Store) -> int:
    return sum(path.stat().st_size for path in Path(store.location).rglob("*") if path.is_file())


def tags(store: Store) -> set[str]:
    return {e["tag"] for e in store.versions()}


# --- who, what, when, from what ---------------------------------------------------------------------------------------


def test_a_version_says_who_made_it_when_and_from_what(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    filled(store, attrs={"source": "a1b2"})
    monkeypatch.setenv("DIFFATS_AUTHOR", "night run")
    begun = store.begin("primitives", template(), fingerprint="p", shard=SHARD, attrs={"source": "c3"})
    with pytest.raises(ZeroDivisionError):
        begun.fill(failing_at(8), Serial())
    first, second = store.versions()
    assert re.fullmatch(r"ada@.+", first["author"])
    assert (first["release"], first["source"], first["names"]) == (diffats.__version__, "a1b2", [])
    assert (second["author"], second["source"], second["complete"], second["done"]) == ("night run", "c3", False, 8)
    assert datetime.fromisoformat(first["written_at"]) < datetime.fromisoformat(second["written_at"])


def test_the_digest_does_not_depend_on_who_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for author in ("one", "two"):
        monkeypatch.setenv("DIFFATS_AUTHOR", author)
        digests.add(filled(Store.create_or_open(tmp_path / author), attrs={"source": author}).digest)
    assert len(digests) == 1


def test_a_store_of_an_earlier_release_still_lists(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffats.store.repository as repository

    monkeypatch.setattr(repository, "signature", dict)
    filled(store)
    (found,) = store.versions()
    assert (found["author"], found["release"], found["source"], found["withdrawn"]) == (None, None, None, False)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_ids_and_tags_find_a_version(store: Store) -> None:
    one, two = put(store, "anchor", "a", 1), put(store, "anchor", "b", 2)
    name_versions(store, "v1.0", [entry(store, one)])
    for text in ("v1.0", one.snapshot, one.snapshot[:8], "anchor-a-1"):
        (found,) = store.resolve(text)
        assert (found["snapshot"], found["names"]) == (one.snapshot, ["v1.0"])
    assert [e["names"] for e in store.versions()] == [["v1.0"], []]
    assert store.resolve("none") == store.resolve("v1.0", "tucker") == store.resolve(two.snapshot[:3]) == []
    assert [event["event"] for event in store.events()] == ["tag"]


def test_an_id_cut_too_short_is_refused(store: Store) -> None:
    versions_of = store.versions
    put(store, "anchor", "a", 1)
    put(store, "anchor", "b", 2)
    same = [{**e, "snapshot": f"SAME{i}"} for i, e in enumerate(versions_of())]
    store.versions = lambda: same  # type: ignore[method-assign]
    with pytest.raises(InputError, match='several ids of versions begin with "SAME"'):
        store.resolve("SAME")


def test_a_name_is_given_once_deleted_and_given_again(store: Store) -> None:
    one, two = put(store, "anchor", "a", 1), put(store, "anchor", "b", 2)
    for _ in range(2):  # the second does nothing
        name_versions(store, "good", [entry(store, one)])
    with pytest.raises(InputError, match=r'"good" names other versions already.*--delete'):
        name_versions(store, "good", [entry(store, two)])
    assert delete_name(store, "good")
    assert not delete_name(store, "good")
    name_versions(store, "good", [entry(store, two)])
    assert store.resolve("good")[0]["snapshot"] == two.snapshot
    assert [event["event"] for event in store.events()] == ["tag", "untag", "tag"]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", ".x", "a b", "ä", "x" * 65, "a\nb"])
def test_what_cannot_be_a_name(store: Store, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a version"):
        name_versions(store, name, [entry(store, put(store, "anchor", "a"))])


def test_an_unfinished_version_has_no_name(store: Store) -> None:
    begun = store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    with pytest.raises(InputError, match="unfinished"):
        name_versions(store, "x", [entry(store, begun)])


def test_names_are_not_exported(store: Store, tmp_path: Path) -> None:
    store.check("one", ["y"])
    name_versions(store, "v1", [entry(store, put(store, "anchor", "a"))])
    store.check("one", ["y"])
    store.export(tmp_path / "plain.zarr")
    assert "v1" not in (tmp_path / "plain.zarr" / "zarr.json").read_text()


# --- prune ------------------------------------------------------------------------------------------------------------


def chain(store: Store, number: int) -> list[Version]:
    """Three groups, each made from the one before."""
    tucker = filled_of(store, "tucker", number)
    anchor = put(store, "anchor", f"a{number}", number, tucker=tucker.snapshot)
    primitives = filled_of(store, "primitives", number, tucker=tucker.snapshot, anchor=anchor.snapshot)
    return [tucker, anchor, primitives]


def filled_of(store: Store, group: str, number: int, n: int = 10, **attrs: Any) -> Version:
    ds = xr.Dataset({"core": (("sample", "x"), np.broadcast_to(np.float32(0), (n, 500)))})
    version = store.begin(group, ds, fingerprint=f"{group[0]}{number}", shard=SHARD, attrs=attrs)

    def function(start: int, stop: int) -> dict[str, np.ndarray]:
        core = np.random.default_rng([number, start, len(group)]).standard_normal((stop - start, 500), np.float32)
        return {"core": core, "status": np.full(stop - start, OK, np.int8)}

    version.fill(function, Serial(), commit_every=1)
    return version.finish()


def test_prune_keeps_the_newest_and_frees_all_else(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        kept = chain(store, number)
    alone = Store.create_or_open(tmp_path / "alone")
    chain(alone, 2)
    prune(alone, 1, no_reason)
    before = size(store)
    would = prune(store, 1, no_reason, dry_run=True)
    assert size(store) == before
    done = prune(store, 1, no_reason)
    assert [e["tag"] for e in done.removed] == [e["tag"] for e in would.removed]
    assert len(done.removed) == 6
    assert {e["snapshot"] for e, reason in done.kept if reason == "newest"} == {v.snapshot for v in kept}
    assert before - size(store) == pytest.approx(done.bytes, rel=0.1)
    chunks = [sum(1 for p in (Path(s.location) / "chunks").rglob("*") if p.is_file()) for s in (store, alone)]
    assert chunks[0] == chunks[1]  # nothing of the older versions, though newer ones were written beside them
    assert store.verify() == []
    for version in kept:
        again = Version(Store(store.location, fresh=True), version.group, version.snapshot)
        assert again.content_digest() == version.digest
        again.dataset().load()


def test_prune_keeps_names_reasons_and_what_they_were_made_from(store: Store) -> None:
    made = [chain(store, number) for number in range(4)]
    name_versions(store, "paper", [entry(store, made[0][2])])
    model = made[1][0].snapshot
    done = prune(store, 1, lambda e: "a model was made from it" if e["snapshot"] == model else None)
    reasons = {(e["group"], e["fingerprint"]): reason for e, reason in done.kept}
    assert reasons == {
        ("primitives", "p0"): "tag paper",
        ("tucker", "t0"): "primitives is made from it",
        ("anchor", "a0"): "primitives is made from it",
        ("tucker", "t1"): "a model was made from it",
        **{(v.group, v.fingerprint): "newest" for v in made[3]},
    }
    assert store.verify() == []
    assert delete_name(store, "paper")
    assert len(prune(store, 1, no_reason).removed) == 4


def test_prune_leaves_an_unfinished_version_and_what_it_is_made_from(store: Store) -> None:
    old = chain(store, 0)
    chain(store, 1)
    begun = store.begin("more", template(), fingerprint="m", shard=SHARD, attrs={"tucker": old[0].snapshot})
    with pytest.raises(ZeroDivisionError):
        begun.fill(failing_at(12), Serial())
    prune(store, 1, no_reason)
    assert Version(store, "tucker", old[0].snapshot).content_digest() == old[0].digest
    again = store.begin("more", template(), fingerprint="m", shard=SHARD)
    assert again.pending() == [3, 4, 5]
    again.fill(make, Serial())
    again.finish()
    assert store.verify() == []


def test_prune_frees_what_a_killed_process_left(store: Store) -> None:
    filled_of(store, "tucker", 0)
    prune(store, 1, no_reason)
    orphan = Path(store.location) / "chunks" / ("0" * 20)
    orphan.write_bytes(b"x" * 1000)
    assert prune(store, 1, no_reason, dry_run=True).bytes >= 1000
    assert prune(store, 1, no_reason).bytes >= 1000
    assert not orphan.exists()


def test_prune_twice_does_nothing_more(store: Store) -> None:
    for number in range(2):
        chain(store, number)
    prune(store, 1, no_reason)
    files = size(store)
    done = prune(store, 1, no_reason)
    assert (done.removed, size(store)) == ((), pytest.approx(files, rel=0.05))
    assert [event["event"] for event in store.events()] == ["prune"]
    with pytest.raises(InputError, match="Keep at least 1"):
        prune(store, 0, no_reason)


def test_work_goes_on_after_a_prune(store: Store) -> None:
    kept = [chain(store, number) for number in range(2)][1]
    prune(store, 1, no_reason)
    assert store.version("tucker", "t1").snapshot == kept[0].snapshot  # type: ignore[union-attr]
    again = chain(store, 0)  # its tag's name is not free again
    assert {e["fingerprint"] for e in store.versions()} == {"t0", "a0", "p0", "t1", "a1", "p1"}
    assert store.version("primitives", "p0").snapshot == again[2].snapshot  # type: ignore[union-attr]
    assert store.verify() == []


@settings(max_examples=6, deadline=None)
@given(numbers=st.lists(st.integers(0, 3), min_size=2, max_size=5), keep=st.integers(1, 3), named=st.integers(0, 4))
def test_what_stays_is_whole_whatever_was_made_before(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], keep: int, named: int
) -> None:
    store = Store.create_or_open(tmp_path_factory.mktemp("any") / "store")
    made = [chain(store, number) for number in numbers]
    name_versions(store, "x", [entry(store, made[named % len(made)][2])])
    done = prune(store, keep, no_reason)
    assert store.verify() == []
    left = {e["tag"]: e for e in store.versions()}
    assert {e["tag"] for e, _ in done.kept} == set(left)
    for version in made[named % len(made)]:
        assert store.version(version.group, version.fingerprint).digest == version.digest  # type: ignore[union-attr]
    for group in ("tucker", "anchor", "primitives"):
        assert sum(e["group"] == group for e in left.values()) >= min(keep, len(set(numbers)))


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_rollback_withdraws_what_came_later(store: Store) -> None:
    store.check("one", ["x"])
    first = chain(store, 0)
    chain(store, 1)
    begun = store.begin("tucker", template(), fingerprint="late", shard=SHARD)
    would = rollback(store, entry(store, first[2]), no_reason, dry_run=True)
    assert len(store.versions()) == 7
    done = rollback(store, entry(store, first[2]), no_reason)
    assert done == would
    assert [(e["group"], e["fingerprint"]) for e in done.withdrawn] == [
        ("tucker", "t1"),
        ("anchor", "a1"),
        ("primitives", "p1"),
        ("tucker", "late"),
    ]
    assert tags(store) == {"tucker-t0-1", "anchor-a0-1", "primitives-p0-1"}
    assert store.latest("tucker").digest == first[0].digest  # type: ignore[union-attr]
    assert store.version("tucker", "t1") is None
    store.check("one", ["x"])
    assert [event["to"] for event in store.events()] == [first[2].snapshot]
    assert rollback(store, entry(store, first[2]), no_reason).withdrawn == ()
    with pytest.raises(Exception, match="another version has taken the place"):
        begun.fill(make, Serial())
    again = chain(store, 1)
    assert {v.fingerprint for v in again} <= {e["fingerprint"] for e in store.versions()}
    assert store.verify() == []


def test_what_is_named_or_of_a_model_stays_readable_but_is_not_found(store: Store) -> None:
    first, second = chain(store, 0), chain(store, 1)
    name_versions(store, "paper", [entry(store, second[0])])
    model = second[2].snapshot
    done = rollback(
        store, entry(store, first[2]), lambda e: "a model was made from it" if e["snapshot"] == model else None
    )
    assert [(e["group"], reason) for e, reason in done.kept] == [
        ("tucker", "tag paper"),
        ("primitives", "a model was made from it"),
    ]
    assert store.version("tucker", "t1") is None
    assert store.latest("tucker").fingerprint == "t0"  # type: ignore[union-attr]
    (named,) = store.resolve("paper")
    assert named["withdrawn"]
    assert Version(store, "tucker", named["snapshot"]).content_digest() == second[0].digest
    with pytest.raises(InputError, match="is withdrawn"):
        rollback(store, named, no_reason)
    prune(store, 1, no_reason)
    assert [e["fingerprint"] for e in store.versions() if e["withdrawn"]] == ["t1"]
    assert store.verify() == []
    delete_name(store, "paper")
    prune(store, 1, no_reason)
    assert [e for e in store.versions() if e["withdrawn"]] == []


def test_an_unfinished_version_from_before_comes_back_as_it_was(store: Store) -> None:
    begun = store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    with pytest.raises(ZeroDivisionError):
        begun.fill(failing_at(8), Serial())
    point = put(store, "anchor", "a")
    begun.fill(make, Serial())
    begun.finish()
    done = rollback(store, entry(store, point), no_reason)
    assert [e["tag"] for e in done.withdrawn] == ["tucker-f-1"]
    again = store.begin("tucker", template(), fingerprint="f", shard=SHARD)
    assert again.pending() == [2, 3, 4, 5]
    with pytest.raises(InputError, match="is unfinished"):
        rollback(store, entry(store, again), no_reason)


class Stopped(Exception):
    """Stands for a kill between two calls of Icechunk."""


class Stopping:
    """A repository that dies at its n-th change."""

    CHANGES = ("create_tag", "delete_tag", "create_branch", "reset_branch", "expire_snapshots", "garbage_collect")

    def __init__(self, repo: Any, after: int) -> None:
        self.repo, self.left = repo, after

    def __getattr__(self, name: str) -> Any:
        if name in self.CHANGES:
            if not self.left:
                raise Stopped
            self.left -= 1
        return getattr(self.repo, name)


def stopped(store: Store, after: int, change: Any) -> bool:
    """Whether a change was interrupted after so many steps."""
    repo = store.repo
    store.repo = Stopping(repo, after)
    try:
        change(store)
    except Stopped:
        return True
    finally:
        store.repo = repo
    return False


def test_an_interrupted_rollback_is_completed_by_the_same_call(tmp_path: Path) -> None:
    states, steps = set(), 0
    while True:
        store = Store.create_or_open(tmp_path / f"s{steps}")
        first, second = chain(store, 0), chain(store, 1)
        name_versions(store, "paper", [entry(store, second[0])])
        point = entry(store, first[2])
        interrupted = stopped(store, steps, lambda s, p=point: rollback(s, p, no_reason))
        rollback(store, point, no_reason)
        assert len(store.events()) == 2
        assert store.verify() == []
        states.add((frozenset(tags(store)), frozenset(store.repo.list_branches())))
        if not interrupted:
            break
        steps += 1
    assert steps >= 5
    assert len(states) == 1


def test_an_interrupted_prune_is_completed_by_the_same_call(tmp_path: Path) -> None:
    steps = 0
    while True:
        store = Store.create_or_open(tmp_path / f"s{steps}")
        chain(store, 0)
        kept = chain(store, 1)
        interrupted = stopped(store, steps, lambda s: prune(s, 1, no_reason))
        prune(store, 1, no_reason)
        assert tags(store) == {e["tag"] for v in kept for e in [entry(store, v)]}
        assert store.verify() == []
        if not interrupted:
            break
        steps += 1
    assert steps == 5


def test_no_prune_beside_another_writer(store: Store, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys
        from diffats.store.lock import store_lock
        with store_lock({store.location!r}):
            print("held", flush=True)
            sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match="being written"):
        prune(store, 1, no_reason)
    process.communicate("")


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_looks_at_all_versions_and_names_what_is_damaged(store: Store) -> None:
    filled_of(store, "tucker", 0)
    files = set((Path(store.location) / "chunks").iterdir())
    filled_of(store, "tucker", 1)
    path = sorted(files)[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (problem,) = store.verify()
    assert (problem.group, problem.variable) == ("tucker", "core")
    assert problem.snapshot == store.versions()[0]["snapshot"]
    assert re.search(r"shard \d \(samples \d to \d\), variable core", str(problem))


def test_verify_reads_a_shared_shard_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = filled_of(store, "tucker", 0)
    prune(store, 1, no_reason)
    snapshot = version.snapshot
    put(store, "anchor", "a")
    store.repo.create_tag("tucker-t0-2", snapshot)  # another version with the same arrays
    import diffats.store.verify as verifying

    with calls(verifying, "_digest", monkeypatch) as made:
        assert store.verify("tucker") == []
    assert len([call for call in made if call[1] == "core"]) == version.n_shards


# --- difference -------------------------------------------------------------------------------------------------------


def with_samples(store: Store, fingerprint: str, keys: list[int], change: Any = None, shard: int = SHARD) -> Version:
    n = len(keys)
    ds = xr.Dataset(
        {"core": (("sample", "x"), np.broadcast_to(np.float32(0), (n, 3)))},
        coords={"sample": np.arange(n), "run": ("sample", keys), "split": ("sample", ["train"] * n)},
    )

    def function(start: int, stop: int) -> dict[str, np.ndarray]:
        core = np.stack([np.random.default_rng(key).standard_normal(3, np.float32) for key in keys[start:stop]])
        out = {"core": core, "status": np.full(stop - start, OK, np.int8)}
        for i, key in enumerate(keys[start:stop]):
            if change is not None:
                change(key, out["core"][i], out["status"][i : i + 1])
        return out

    version = store.begin("tucker", ds, fingerprint=fingerprint, shard=shard)
    version.fill(function, Serial())
    return version.finish()


def test_a_difference_counts_samples_by_their_coordinates(store: Store) -> None:
    def change(key: int, core: np.ndarray, status: np.ndarray) -> None:
        if key == 5:
            core[1] += 0.5
        if key == 7:
            status[0] = 2

    a = with_samples(store, "a", list(range(10)))
    b = with_samples(store, "b", [20, *range(1, 10), 21, 22], change)
    found = difference(a, b, ["run"])
    assert found.samples == (10, 12)
    assert found.counts == {"added": 3, "removed": 1, "changed": 2}
    assert (found.added, found.removed, found.changed) == ([0, 10, 11], [0], [5, 7])
    assert found.status == {"ok -> non_finite": 1}
    core = found.values["core"]
    assert (core.changed, core.largest, core.count) == (1, pytest.approx(0.5), 27)
    assert core.mean == pytest.approx(0.5 / 27)
    assert not found.same
    assert difference(a, a, ["run"]).same


def test_equal_shards_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = with_samples(store, "a", list(range(10))), with_samples(store, "b", list(range(16)))
    with calls(Version, "read", monkeypatch) as made:
        found = difference(a, b, ["run"])
    assert {call[2] for call in made} == {8}  # the last shard of A is shorter
    assert found.counts == {"added": 6, "removed": 0, "changed": 0}
    assert found.values == {}


def test_a_sample_number_identifies_where_coordinates_do_not(store: Store) -> None:
    a, b = with_samples(store, "a", [1, 1, 2]), with_samples(store, "b", [1, 1, 2, 3])
    assert difference(a, b, ["run"]).counts == {"added": 1, "removed": 0, "changed": 0}
    assert difference(a, b, ["unknown"]).counts["added"] == 1


def test_a_difference_of_options_layout_and_variables(store: Store) -> None:
    recipes = [json.dumps({"decompose": {"ranks": {"x": r}}, "name": "a"}) for r in (2, 3)]
    a = store.put(
        "anchor",
        xr.Dataset({"U": (("y", "r"), np.eye(3, 2)), "gone": 1.0, "mean": ("y", [1.0, np.nan, 3.0])}),
        fingerprint="a",
        attrs={"recipe": recipes[0], "layout": {"ranks": {"x": 2}}, "source": "old"},
    )
    b = store.put(
        "anchor",
        xr.Dataset({"U": (("y", "r"), np.eye(3)), "mean": ("y", [1.5, np.nan, 3.0])}),
        fingerprint="b",
        attrs={"recipe": recipes[1], "layout": {"ranks": {"x": 3}}, "source": "new"},
    )
    found = difference(a, b)
    assert found.options == {"decompose.ranks.x": (2, 3)}
    assert found.attributes == {"layout.ranks.x": (2, 3), "source": ("old", "new")}
    assert found.variables == {"U": ("float64 (y=3, r=2)", "float64 (y=3, r=3)"), "gone": ("float64 ()", None)}
    assert (found.values["mean"].changed, found.values["mean"].largest) == (1, 0.5)
    with pytest.raises(InputError, match="groups anchor and tucker cannot be compared"):
        difference(a, with_samples(store, "t", [1]))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_difference_is_that_of_the_arrays(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    keys = st.lists(st.integers(0, 12), min_size=1, max_size=9, unique=True)
    one, two = data.draw(keys), data.draw(keys)
    moved = data.draw(st.sets(st.integers(0, 12)))
    store = Store.create_or_open(tmp_path_factory.mktemp("any") / "store")

    def change(key: int, core: np.ndarray, status: np.ndarray) -> None:
        if key in moved:
            core += key + 1

    shards = [data.draw(st.integers(1, 4)) for _ in range(2)]
    a = with_samples(store, "a", one, shard=shards[0])
    b = with_samples(store, "b", two, change, shard=shards[1])
    found = difference(a, b, ["run"])
    both = set(one) & set(two)
    assert found.counts == {
        "added": len(set(two) - both),
        "removed": len(set(one) - both),
        "changed": len(both & moved),
    }
    assert ("core" in found.values) == bool(both & moved)
    if both & moved:
        assert found.values["core"].largest == pytest.approx(max(both & moved) + 1)
        assert found.values["core"].mean == pytest.approx(sum(k + 1 for k in both & moved) / len(both))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose samples were decomposed twice, at two ranks; the first chain has a model."""
    recipe = write_recipe(tmp_path_factory.mktemp("made"))
    for verb in (*STAGES, "train"):
        ended(run(verb, recipe))
    ended(run("tag", recipe, "first"))
    for verb in STAGES:
        ended(run(verb, recipe, *RANK_2))
    return recipe


RANK_2 = ("--set", "decompose.ranks.time=2", "--set", "decompose.ranks.x=2")


def ids(recipe: Path, group: str) -> list[str]:
    return [version["version"] for version in printed("inspect", recipe)[group]["versions"]]


def test_history_tells_who_what_when_and_from_what(made: Path) -> None:
    source = Workspace(load_recipe(str(made))).source_digest
    rows = printed("inspect", made, "--history")["history"]
    groups = ["scaling", "tucker", "anchor", "primitives", "normalisation"]
    assert [row.get("group", row["event"]) for row in rows] == [*groups, "tag", *groups[1:]]
    made_by = {(row["author"], row["release"]) for row in rows}
    assert len(made_by) == 1
    assert all(row["source"] == source for row in rows if row["event"] == "version")
    assert [row["used"] for row in rows if row["event"] == "version"] == [True] * 5 + [False] * 4
    lines = ended(run("inspect", made, "--history")).stdout.splitlines()
    assert re.fullmatch(
        r"\* \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  \S+@\S+  tucker +finished 24 samples, 0 failed, "
        rf"source {source[:12]}, version \w+, tag first",
        lines[1],
    )
    assert re.search(r"  tagged first: anchor, normalisation, primitives, scaling, tucker$", lines[5])


def test_inspect_marks_what_the_recipe_uses(made: Path) -> None:
    for options, marks in (((), ["*"] * 5 + [" "] * 4), (RANK_2, ["*"] + [" "] * 4 + ["*"] * 4)):
        lines = ended(run("inspect", made, *options)).stdout.splitlines()
        assert [line[0] for line in lines] == marks


def test_inspect_goes_on_without_the_source(made: Path, tmp_path: Path) -> None:
    result = ended(run("inspect", made, "--set", f"data.source={tmp_path / 'gone.nc'}"))
    assert [line[0] for line in result.stdout.splitlines()] == [" "] * 9
    assert "which versions this recipe uses is not known" in result.stderr


def test_diff_compares_two_versions(made: Path) -> None:
    one, two = ids(made, "tucker")
    found = printed("diff", made, one[:8], two)
    assert found["options"] == {"decompose.ranks.time": [3, 2], "decompose.ranks.x": [3, 2]}
    assert found["attributes"]["layout.ranks.x"] == [3, 2]
    assert found["variables"]["core"] == ["float32 (rank_time=3, rank_x=3)", "float32 (rank_time=2, rank_x=2)"]
    assert (found["samples"]["a"], found["samples"]["changed"], found["same"]) == (24, 24, False)
    assert found["values"]["relative_error"]["changed"] == 24
    text = ended(run("diff", made, "first", two)).stdout
    assert re.search(r"^recipe +decompose\.ranks\.x: 3 -> 2$", text, re.MULTILINE)
    assert re.search(r"^samples +24 -> 24: 0 added, 0 removed, 24 changed$", text, re.MULTILINE)
    assert re.search(r"^relative_error +24 +\S+ +\S+$", text, re.MULTILINE)
    assert "the content is the same" in ended(run("diff", made, "first", "first")).stdout


def test_what_cannot_be_compared_or_found(made: Path) -> None:
    one, anchor = ids(made, "tucker")[0], ids(made, "anchor")[0]
    assert "Give two versions of one group" in ended(run("diff", made, one, anchor), 2).stderr
    for verb in (("diff", made, "none", one), ("rollback", made, "none"), ("tag", made, "x", "none")):
        assert 'no version has the tag or id "none". See' in ended(run(*verb), 2).stderr
    assert (
        'no version of group anchor has the tag or id "'
        in ended(run("diff", made, one, one, "--group", "anchor"), 2).stderr
    )


def test_tags_are_given_and_deleted(made: Path) -> None:
    tucker = ids(made, "tucker")[1]
    assert printed("tag", made, "second", tucker[:10])["versions"] == {"tucker": tucker}
    assert "tag second" in ended(run("inspect", made)).stdout
    assert "names other versions already" in ended(run("tag", made, "second"), 2).stderr
    assert ended(run("tag", made, "second", "--delete")).stdout == "second: deleted\n"
    assert 'no version has the tag "second"' in ended(run("tag", made, "second", "--delete"), 2).stderr
    assert "cannot name a version" in ended(run("tag", made, "../x"), 2).stderr


def test_a_version_opens_by_id_and_tag(made: Path) -> None:
    root, store = made.parent / "root", made.parent / "root" / "store"
    one, two = ids(made, "primitives")
    for location, version in ((root, "first"), (store, one), (str(root), one[:9])):
        ds = diffats.open_version(location, version=version)
        assert (ds.sizes["sample"], ds.sizes["rank_x"]) == (24, 3)
    assert diffats.open_version(root).identical(diffats.open_version(root, "primitives", two))
    assert "anchor_x" in diffats.open_version(root, "anchor", "first")
    for arguments, message in (
        ((root, "none"), "no finished group none. Its groups: scaling, tucker"),
        ((root, "tucker", one), f'no version "{one}" of group tucker. Its versions: '),
        ((root, "samples"), "there is no store"),
    ):
        with pytest.raises(StoreNotFoundError, match=message):
            diffats.open_version(*arguments)


def test_dry_runs_change_nothing(made: Path) -> None:
    before = printed("inspect", made, "--history")
    done = printed("rollback", made, "first", "--dry-run")
    assert [e["group"] for e in done["rolled_back"][0]["withdrawn"]] == [
        "tucker",
        "anchor",
        "primitives",
        "normalisation",
    ]
    assert ended(run("rollback", made, "first", "--dry-run")).stdout.count("  withdrawn  ") == 4
    ended(run("prune", made, "--keep", "1", "--dry-run"))
    assert printed("inspect", made, "--history") == before


def test_without_a_store_or_a_number(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for what, arguments in (
        ("prune", ["prune", recipe, "--keep", "1"]),
        ("roll back", ["rollback", recipe, "x"]),
        ("name", ["tag", recipe, "x"]),
    ):
        assert f"there is nothing to {what}. Run `diffats decompose" in ended(run(*arguments), 2).stderr
    assert 'no version has the tag or id "x"' in ended(run("diff", recipe, "x", "y"), 2).stderr
    assert ended(run("inspect", recipe, "--history")).stdout.endswith("root: nothing yet.\n")
    assert "Missing option '--keep'" in ended(run("prune", recipe), 2).stderr
    assert not (tmp_path / "root" / "store").exists()


def test_an_older_recipe_finds_its_version_and_its_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    for verb in (*STAGES, "train"):
        ended(run(verb, recipe))
    source = tmp_path / "tiny.nc"
    data, times = source.read_bytes(), source.stat()
    source.unlink()
    waves(30).to_netcdf(source)
    for verb in STAGES:
        ended(run(verb, recipe, *RANK_2))
    source.write_bytes(data)  # the source is put back
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended(run("prune", recipe, "--keep", "1", *RANK_2, "--set", f"data.source={source}"))
    with (
        watched(monkeypatch) as seen,
        calls(training, "learning_rate", monkeypatch) as asked,
    ):
        for verb in STAGES:
            assert printed(verb, recipe)["skipped"]
        longer = printed("train", recipe, "--set", "train.steps=6")
    assert (seen.written, longer["done"], longer["skipped"]) == ({}, 6, False)
    assert {step for step, _ in asked} == {4, 5}
    whole = tmp_path / "whole"
    whole.mkdir()
    other = write_recipe(whole)
    for verb in (*STAGES, "train"):
        ended(run(verb, other))
    assert printed("train", other, "--set", "train.steps=6")["version"] == longer["version"]


def test_prune_keeps_what_models_were_made_from_and_says_why(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent, tmp_path / "copy")
    recipe = tmp_path / "copy" / "tiny.toml"
    recipe.write_text(recipe.read_text().replace(str(made.parent / "root"), str(recipe.parent / "root")))
    ended(run("tag", recipe, "first", "--delete"))
    for verb in STAGES:
        ended(run(verb, recipe, "--set", "decompose.ranks.time=1", "--set", "decompose.ranks.x=1"))
    now = ("--set", "decompose.ranks.time=1", "--set", "decompose.ranks.x=1")
    done = printed("prune", recipe, "--keep", "1", *now)
    (pruned,) = done["pruned"]
    reasons = [(e["group"], reason) for e, reason in pruned["kept"]]
    assert reasons[:5] == [
        ("scaling", "newest"),
        ("tucker", "primitives is made from it"),
        ("anchor", "primitives is made from it"),
        ("primitives", "a model was made from it"),
        ("normalisation", "a model was made from it"),
    ]
    assert [reason for _, reason in reasons[5:]] == ["newest"] * 4
    assert len(pruned["removed"]) == 4
    assert done["bytes"] > 0
    assert ended(run("verify", recipe)).stdout.startswith("verified: ")
    shutil.rmtree(recipe.parent / "root" / "bundles")
    text = ended(run("prune", recipe, "--keep", "1", *now)).stdout
    assert text.count("  removed  ") == 4
    assert re.search(r"^freed \d", text, re.MULTILINE)
    assert [row["event"] for row in printed("inspect", recipe, "--history")["history"]].count("prune") == 2


def test_rollback_lets_the_next_run_begin_from_there(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent, tmp_path / "copy")
    recipe = tmp_path / "copy" / "tiny.toml"
    recipe.write_text(recipe.read_text().replace(str(made.parent / "root"), str(recipe.parent / "root")))
    ended(run("tag", recipe, "paper", ids(recipe, "tucker")[1]))
    text = ended(run("rollback", recipe, "first")).stdout
    assert text.count("  withdrawn  ") == 3
    assert text.count("  still readable  tucker") == 1
    assert "tag paper, withdrawn" in ended(run("inspect", recipe)).stdout
    assert not printed("decompose", recipe, *RANK_2)["skipped"]
    assert printed("normalise", recipe)["skipped"]
    rows = printed("inspect", recipe, "--history")["history"]
    (event,) = [row for row in rows if row["event"] == "rollback"]
    assert [e["group"] for e in event["withdrawn"] + event["kept"]] == [
        "anchor",
        "primitives",
        "normalisation",
        "tucker",
    ]
    again = ended(run("rollback", recipe, ids(recipe, "tucker")[-1])).stdout
    assert "nothing was committed after it" in again


def test_a_registered_model_protects_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    for verb in STAGES:
        ended(run(verb, recipe))
    work = Workspace(load_recipe(str(recipe)))
    primitives = versions.present(work)["primitives"]
    for verb in STAGES:
        ended(run(verb, recipe, *RANK_2))
    monkeypatch.setattr(registry, "data_digests", lambda name, uri: {primitives.digest} if name == "tiny" else set())
    done = printed("prune", recipe, "--keep", "1", *RANK_2)["pruned"][0]
    assert done["removed"] == []
    assert ["primitives", "a registered model was made from it"] in [[e["group"], why] for e, why in done["kept"]]


def test_the_registry_tells_which_data_models_were_made_from(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert registry.data_digests("tiny", uri) == set()
    assert not (tmp_path / "mlflow.db").exists()
    tracker = Tracker(uri, "tiny")
    tracker.client.create_registered_model("tiny")
    for digest in ("ab", "cd"):
        tracker.client.create_model_version("tiny", str(tmp_path), tags={"diffats.data_digest": digest})
    assert registry.data_digests("tiny", uri) == {"ab", "cd"}
    assert registry.data_digests("other", uri) == set()


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["rollback", "prune"])
def test_a_killed_command_is_completed_by_the_same_one(tmp_path: Path, verb: str) -> None:
    recipe = write_recipe(tmp_path)
    for options in ((), RANK_2):
        for stage in STAGES:
            ended(run(stage, recipe, *options))
    point = ids(recipe, "normalisation")[0]
    arguments = {"rollback": [point], "prune": ["--keep", "1"]}[verb]
    command = [sys.executable, "-m", "diffats", verb, str(recipe), *arguments, *(RANK_2 if verb == "prune" else ())]
    store = tmp_path / "root" / "store"
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    refs = {path.name for path in (store / "refs").rglob("*")}
    while process.poll() is None and {path.name for path in (store / "refs").rglob("*")} == refs:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    forget()
    ended(run(*command[3:]))
    assert Store(store, fresh=True).verify() == []
    assert len(printed("inspect", recipe)["tucker"]["versions"]) == 1


# --- a source that grows ----------------------------------------------------------------------------------------------


def test_versions_of_a_growing_source_are_compared_rolled_back_and_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path)
    made = []
    for start, stop in ((0, 24), (24, 38), (38, 45)):
        append(tmp_path, start, stop) if start else write(tmp_path, stop)
        run_stages(recipe, PRIMITIVES)
        made.append(versions.present(Workspace(recipe)))
    one, two, three = (version["primitives"] for version in made)
    found = versions.compare(Workspace(recipe), one.snapshot, two.snapshot).difference
    assert found.counts == {"added": 14, "removed": 0, "changed": 0}
    assert (found.added[:2], set(found.options), found.values) == ([24, 25], set(), {})
    assert len({e["source"] for e in versions.entries(Workspace(recipe)) if e["group"] == "tucker"}) == 3

    (rolled,) = versions.rollback(Workspace(recipe), two.snapshot)
    assert {e["group"] for e in rolled.withdrawn} >= {"tucker", "primitives"}
    with watched(monkeypatch) as seen:
        run_stages(recipe, PRIMITIVES)
    assert of(seen.written, "tucker", ["core"]) == {"tucker/core": 2}  # samples 35 to 41, of which 38 were there
    again = versions.present(Workspace(recipe))
    assert again["primitives"].digest == three.digest

    before = size(Workspace(recipe).store)
    (pruned,) = versions.prune(Workspace(recipe), 1)
    assert size(Workspace(recipe).store) < before
    work = Workspace(recipe)
    assert {e["snapshot"] for e, why in pruned.kept if why == "newest"} >= {v.snapshot for v in again.values()}
    assert work.store.verify() == []
    for version in again.values():
        assert Version(work.store, version.group, version.snapshot).content_digest() == version.digest
    append(tmp_path, 45, 50)
    with watched(monkeypatch) as seen:
        run_stages(recipe, PRIMITIVES)
    assert of(seen.written, "tucker", ["core"]) == {"tucker/core": 2}  # samples 42 to 48, and the last
    assert Workspace(recipe).store.verify() == []


# --- what a killed process left untagged ------------------------------------------------------------------------------


def test_a_version_that_lost_its_tag_survives_prune_and_rollback(store: Store) -> None:
    point = put(store, "anchor", "point", 5)
    second = filled_of(store, "tucker", 1)
    store.repo.delete_tag("tucker-t1-1")
    done = rollback(
        store, entry(store, point), lambda e: "a model was made from it" if e["digest"] == second.digest else None
    )
    assert [e["digest"] for e, _ in done.kept] == [second.digest]
    third = filled_of(store, "tucker", 2)
    store.repo.delete_tag("tucker-t2-1")
    prune(store, 1, no_reason)
    filled_of(store, "tucker", 3)
    assert store.version("tucker", "t2").content_digest() == third.digest  # type: ignore[union-attr]
    assert store.verify() == []


def test_a_rollback_does_not_bring_back_what_was_pruned(store: Store) -> None:
    put(store, "scaling", "old", 1)
    point = filled_of(store, "tucker", 0)  # its snapshot holds that, too
    put(store, "scaling", "new", 2)
    prune(store, 1, no_reason)
    filled_of(store, "tucker", 1)
    rollback(store, entry(store, point), no_reason)
    assert {e["fingerprint"] for e in store.versions()} == {"t0"}
    put(store, "scaling", "newer", 3)
    assert store.verify() == []


def test_a_damaged_bundle_is_not_overlooked(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent, tmp_path / "copy")
    recipe = tmp_path / "copy" / "tiny.toml"
    recipe.write_text(recipe.read_text().replace(str(made.parent / "root"), str(recipe.parent / "root")))
    (damaged,) = (recipe.parent / "root" / "bundles").glob("*/bundle.json")
    damaged.write_text("{")
    message = ended(run("prune", recipe, "--keep", "1", *RANK_2), 1).stderr
    assert f"{damaged}: cannot be read, so which data the model was made from is not known" in message
