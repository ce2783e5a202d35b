"""Whose database of runs a recipe uses, and what happens where a database was moved or copied."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_registry import make_bundle

from diffats import registry
from diffats.config import Recipe, parse_recipe
from diffats.errors import InputError, StoreNotFoundError
from diffats.registry import Tracker, TrackingError, connection
from diffats.stages import register as register_stage

DATA = {"source": "a.nc", "modes": ["y", "x"], "sample_dim": "t"}


def recipe(name: str, **options: object) -> Recipe:
    return parse_recipe({"name": name, "data": DATA, "decompose": {"ranks": {"y": 2, "x": 2}}, **options})


def register(folder: Path, name: str = "fields") -> Tracker:
    """A tracker in a folder with one run, an artifact and a registered model, whose bundle lies elsewhere."""
    import mlflow.tracking  # after diffats.registry, which knows its warnings

    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", name)
    run = tracker.start("run")
    tracker.client.log_text(run, "kept", "note.txt")
    tracker.register(make_bundle(folder.parent / "bundle"), name, run)
    tracker.finish(run)
    # As in another process: in one, MLflow remembers where the files of a run were.
    mlflow.tracking._tracking_service.utils._artifact_repos_cache.clear()
    return tracker


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Whose database -----------------------------------------------------------------------------------------------------


def test_recipes_beside_each_other_share_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trackers = [Tracker.for_recipe(recipe(name)) for name in ("a", "b")]
    runs = [tracker.start("run") for tracker in trackers]
    assert {tracker.uri for tracker in trackers} == {f"sqlite:///{tmp_path}/runs/mlflow.db"}
    ids = [tracker.experiment_id for tracker in trackers]
    assert {run.info.run_id for run in trackers[0].client.search_runs(ids)} == set(runs)


def test_a_root_with_a_database_goes_on_using_it_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Tracker(f"sqlite:///{tmp_path}/runs/a/mlflow.db", "a")
    assert Tracker.for_recipe(recipe("a")).uri == own.uri
    told = registry.keeps_its_own(recipe("a"))
    assert str(tmp_path / "runs" / "a" / "mlflow.db") in told
    assert str(tmp_path / "runs" / "mlflow.db") in told
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    assert registry.keeps_its_own(recipe("b")) == ""


def test_a_root_that_a_recipe_names_holds_its_database(tmp_path: Path) -> None:
    given = recipe("a", root=str(tmp_path / "mine"))
    assert registry.tracking_uri(given) == f"sqlite:///{tmp_path}/mine/mlflow.db"
    Tracker.for_recipe(given)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert registry.keeps_its_own(given) == ""


def test_trackers_that_start_at_once_make_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = connection._make_tables
    monkeypatch.setattr(connection, "_make_tables", lambda database: (made.append(database), original(database)))
    database = tmp_path / "mlflow.db"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: connection.make_database(database), range(4)))
    assert made == [database]
    Tracker(f"sqlite:///{database}", "a")


# Moved and copied ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["moved", "copied"])
def test_a_database_that_moved_with_its_files_is_followed(left: str, tmp_path: Path) -> None:
    register(tmp_path / "old")
    (shutil.move if left == "moved" else shutil.copytree)(tmp_path / "old", tmp_path / "new")
    before = files(tmp_path / "old") if left == "copied" else None
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    looked = files(tmp_path / "new")
    path = registry.download("models:/fields/1", uri)
    assert path.is_relative_to(tmp_path / "new")
    assert files(tmp_path / "new") == looked  # a look writes nothing
    tracker = Tracker(uri, "fields")
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    tracker.client.log_text(run.info.run_id, "more", "more.txt")
    assert Path(tracker.client.download_artifacts(run.info.run_id, "note.txt")).read_text() == "kept"
    tracker.register(make_bundle(tmp_path / "bundle2"), "fields", run.info.run_id)
    assert registry.download("models:/fields/2", uri).is_relative_to(tmp_path / "new")
    source = tracker.client.get_model_version("fields", "1").source
    assert Path(source).is_relative_to(tmp_path / "new" / "mlartifacts")
    assert (Path(source) / "MLmodel").is_file()  # as MLflow itself finds it
    if before is None:
        assert not (tmp_path / "old").exists()
    else:
        assert files(tmp_path / "old") == before


def test_a_database_that_moved_alone_is_refused_with_both_places(tmp_path: Path) -> None:
    register(tmp_path / "old")
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "old" / "mlflow.db", tmp_path / "new")
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    before = files(tmp_path)
    for look in (lambda: Tracker(uri, "fields"), lambda: registry.download("models:/fields/1", uri)):
        with pytest.raises((InputError, StoreNotFoundError)) as refused:
            look()
        assert str(tmp_path / "old" / "mlartifacts") in str(refused.value)
        assert str(tmp_path / "new" / "mlartifacts") in str(refused.value)
    assert files(tmp_path) == before


def test_a_root_behind_a_symbolic_link_stays_what_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    register(tmp_path / "place")
    (tmp_path / "link").symlink_to("place")
    tracker = Tracker(f"sqlite:///{tmp_path}/link/mlflow.db", "fields")
    source = tracker.client.get_model_version("fields", "1").source
    assert Path(source).is_relative_to(tmp_path / "place")
    assert registry.download("models:/fields/1", tracker.uri).is_dir()
    assert not [record for record in caplog.records if record.name.startswith("diffats")]


def test_a_root_made_behind_a_link_that_is_gone_is_followed(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "mount").symlink_to("place")
    register(tmp_path / "mount")
    (tmp_path / "mount").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mount").symlink_to("../place")
    uri = f"sqlite:///{tmp_path}/elsewhere/mount/mlflow.db"
    assert registry.download("models:/fields/1", uri).resolve().is_relative_to(tmp_path / "place")
    Tracker(uri, "fields").start("another")
    assert not (tmp_path / "mount").exists()


def test_files_that_somebody_put_elsewhere_stay_there(tmp_path: Path) -> None:
    first = Tracker(f"sqlite:///{tmp_path}/db/mlflow.db", "fields", artifacts=str(tmp_path / "large"))
    register(tmp_path / "db")
    shutil.move(tmp_path / "db", tmp_path / "moved")
    tracker = Tracker(f"sqlite:///{tmp_path}/moved/mlflow.db", "fields")
    assert tracker.client.get_experiment(first.experiment_id).artifact_location == str(tmp_path / "large")
    assert registry.download("models:/fields/1", tracker.uri).is_relative_to(tmp_path / "large")


def test_names_with_odd_characters_and_longer_ones_beside_are_told_apart(tmp_path: Path) -> None:
    tracker = register(tmp_path / "a_%'b")
    stranger = str(tmp_path / "a_%'b" / "mlartifacts2")
    other = tracker.client.create_experiment("other", stranger)
    shutil.move(tmp_path / "a_%'b", tmp_path / "new")
    moved = Tracker(f"sqlite:///{tmp_path}/new/mlflow.db", "fields")
    assert moved.client.get_experiment(other).artifact_location == stranger
    assert registry.download("models:/fields/1", moved.uri).is_relative_to(tmp_path / "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_a_moved_root_and_cannot_write() -> None:
    shared = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    shared.chmod(0o755)
    try:
        register(shared / "old")
        shutil.move(shared / "old", shared / "new")
        uri = f"sqlite:///{shared}/new/mlflow.db"
        os.seteuid(65534)
        assert registry.download("models:/fields/1", uri).is_relative_to(shared / "new")
        with pytest.raises(TrackingError, match="readonly") as refused:
            Tracker(uri, "fields")
        assert str(shared / "new" / "mlflow.db") in str(refused.value)
    finally:
        os.seteuid(0)
        shutil.rmtree(shared)


def test_a_decision_is_known_again_where_the_root_was_moved() -> None:
    before = {"key": ["e", "sqlite:////old/root/mlflow.db", "3"], "verdict": "champion"}
    here = "sqlite:////new/root/mlflow.db"
    assert register_stage._same_decision(before, "e", here, "3")
    assert not register_stage._same_decision(before, "e", here, "4")
    assert not register_stage._same_decision(before, "other", here, "3")
    assert not register_stage._same_decision(before, "e", "http://127.0.0.1:5000", "3")
