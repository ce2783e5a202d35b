"""Runs, data versions and models in MLflow."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import mlflow
import mlflow.data
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from diffats import bundle, registry
from diffats.answers import as_arrays
from diffats.config import Recipe, parse_recipe, portable
from diffats.errors import InputError, StoreNotFoundError
from diffats.models import Denoiser
from diffats.primitives import ConditionLayout, FieldScaling, Layout, Normalisation
from diffats.registry import RECIPE_TAG, STAGE_TAG, StoreDataset, StoreSource, Tracker, TrackingError, notes, runs
from diffats.registry.pyfunc import requested
from diffats.sources import template_to_json
from diffats.store import Store

SIZES = {"y": 6, "x": 5}
LABELS = ["Corn", "Woods"]


def make_recipe(root: Path | str, **more: object) -> Recipe:
    tree = {
        "name": "tiny.fields",
        "root": str(root),
        "data": {
            "source": "fields.nc",
            "modes": ["y", "x"],
            "sample_dim": "time",
            "condition": {"labels": "label", "scalars": ["nu"], "dropout": 0.1},
        },
        "decompose": {"ranks": {"y": 2, "x": 2}},
        "model": {"width": 16, "depth": 1, "heads": 2},
        "normalise": {"coordinates": "stream"},
        "train": {"calibrate": False},
        "generate": {"steps": 2},
        **more,
    }
    return parse_recipe(tree)


def make_bundle(destination: Path) -> Path:
    recipe = make_recipe("")
    layout = Layout.from_recipe(recipe, SIZES)
    raw = {"scalar_nu": np.array([1.0, 2.0, 4.0]), "label": np.array([0, 1, 1])}
    conditions = ConditionLayout.fit(raw, label_names=LABELS)
    weights = destination.with_name("weights.safetensors")
    from safetensors.torch import save_file

    save_file(Denoiser(layout, conditions, recipe.model).state_dict(), weights)
    coords = {"y": np.arange(6.0), "x": ("x", np.arange(5.0), {"units": "m"})}
    template = xr.Dataset({"t": (("y", "x"), np.zeros((6, 5), "f4"), {"units": "K"})}, coords)
    return bundle.save(
        destination,
        recipe=portable(recipe),
        layout=layout,
        conditions=conditions,
        scaling=FieldScaling(np.full((1, 1), 280.0), np.full((1, 1), 5.0)),
        anchors={mode: np.eye(*shape) for mode, shape in layout.anchor_shapes.items()},
        normalisation=Normalisation(
            {s.name: np.zeros(s.shape) for s in layout.streams}, {s.name: 1.0 for s in layout.streams}
        ),
        template=template_to_json(template),
        label_names=LABELS,
        examples=raw,
        weights=weights,
        provenance={"data": "ab12"},
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root of runs")  # blanks are part of the test


@pytest.fixture(scope="module")
def tracker(root: Path) -> Tracker:
    return Tracker.for_recipe(make_recipe(root))


@pytest.fixture(scope="module")
def registered(tracker: Tracker, tmp_path_factory: pytest.TempPathFactory) -> str:
    made = make_bundle(tmp_path_factory.mktemp("made") / "bundle")
    parent = tracker.start("pipeline")
    with tracker.stage(parent, "register") as run:
        digests = {"data_version": "ab12", "weights": "0123456789abcdef" * 4}
        version = tracker.register(made, "tiny.fields", run.run_id, digests)
        tracker.describe_version("tiny.fields", version, "A *tiny* model.", {"headline": "CRPS 0.2"})
    tracker.finish(parent)
    return version


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.02)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


# Where things are ------------------------------------------------------------------------------------------------


def test_database_and_artifacts_lie_under_the_root(tracker: Tracker, root: Path) -> None:
    assert (root / "mlflow.db").is_file()
    experiment = tracker.client.get_experiment(tracker.experiment_id)
    assert experiment.name == "tiny.fields"
    assert Path(experiment.artifact_location) == root / "mlartifacts"


def test_a_database_that_was_begun_and_not_finished_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.partial").write_bytes(b"half")
    Tracker(f"sqlite:///{tmp_path}/mlflow.db", "begun").start("begun")
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["mlflow.db"]


def test_global_state_stays_untouched_and_nothing_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = mlflow.get_tracking_uri()
    tracker = Tracker(f"sqlite:///{root}/quiet.db", "quiet")
    with tracker.stage(tracker.start("a"), "train") as run:
        run.log({"loss": 1.0}, step=0)
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before
    assert capsys.readouterr() == ("", "")


def test_telemetry_is_off() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_relative_database_is_made_absolute(tracker: Tracker, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert Tracker("sqlite:///mlflow.db", "tiny.fields").uri == f"sqlite:///{root}/mlflow.db"


def test_a_deleted_experiment_is_restored(tracker: Tracker) -> None:
    first = Tracker(tracker.uri, "deleted")
    first.client.delete_experiment(first.experiment_id)
    assert Tracker(tracker.uri, "deleted").experiment_id == first.experiment_id


def test_a_url_root_needs_a_tracking_uri() -> None:
    with pytest.raises(InputError, match=r"Set tracking\.uri"):
        Tracker.for_recipe(make_recipe("s3://bucket/a"))


@pytest.mark.usefixtures("no_waiting")
def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(TrackingError, match=r'http://\*\*\*@127.0.0.1:9 could not open experiment "a"') as caught:
        Tracker("http://user:secret@127.0.0.1:9", "a")
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 1


# Runs ------------------------------------------------------------------------------------------------------------


def test_an_interrupted_parent_is_continued_and_a_finished_one_is_not(tracker: Tracker) -> None:
    first = tracker.start("run", params={"train": {"steps": 5}}, fingerprint="f1")
    with pytest.raises(KeyboardInterrupt), tracker.stage(first, "train") as child:
        raise KeyboardInterrupt
    tracker.finish(first, "KILLED")
    stopped = tracker.client.get_run(child.run_id)
    assert stopped.info.status == "KILLED"
    assert "diffats.error" in stopped.data.tags

    assert tracker.start("run", params={"train": {"steps": 5}, "more": 1}, fingerprint="f1") == first
    assert tracker.client.get_run(first).info.status == "RUNNING"
    with tracker.stage(first, "train") as again:
        assert again.run_id == child.run_id
    assert "diffats.error" not in tracker.client.get_run(child.run_id).data.tags
    tracker.finish(first)
    run = tracker.client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.steps": "5", "more": "1"}
    assert run.data.tags[RECIPE_TAG] == "f1"
    assert tracker.reuse("f1") is None
    assert tracker.start("run", fingerprint="f1") != first


def test_the_latest_run_is_continued_even_if_finished(tracker: Tracker) -> None:
    first = tracker.start("run", {"root": "a"}, fingerprint="f5")
    tracker.finish(first)
    assert tracker.start("run", {"root": "b"}, fingerprint="f5", latest=True) != first  # another root's
    assert tracker.start("run", {"root": "a"}, fingerprint="f5", latest=True) == first
    assert tracker.client.get_run(first).info.status == "RUNNING"
    tracker.finish(first)
    assert tracker.start("run", {"root": "a"}, fingerprint="f5") != first


def test_a_stage_tells_its_start_and_its_headline_on_the_parent(tracker: Tracker) -> None:
    parent = tracker.start("headline")
    with tracker.stage(parent, "evaluate", started=1_700_000_000_000) as run:
        run.headline({"energy_distance": 0.5})
    assert tracker.client.get_run(parent).data.metrics["energy_distance"] == 0.5
    assert tracker.client.get_run(run.run_id).info.start_time == 1_700_000_000_000


def test_a_run_under_which_nothing_was_done_is_not_kept(tracker: Tracker) -> None:
    empty, busy = tracker.start("nothing to do"), tracker.start("one stage")
    with tracker.stage(busy, "align"):
        pass
    for run_id in (empty, busy):
        tracker.finish(run_id)
        tracker.discard_if_empty(run_id)
    assert tracker.client.get_run(empty).info.lifecycle_stage == "deleted"
    assert tracker.client.get_run(busy).info.lifecycle_stage == "active"


def test_another_recipe_does_not_continue(tracker: Tracker) -> None:
    first = tracker.start("run", fingerprint="f2")
    assert tracker.reuse("f3") is None
    assert tracker.start("run", fingerprint="f3") != first


def test_a_stage_is_a_child_of_its_parent(tracker: Tracker) -> None:
    parent = tracker.start("run")
    with tracker.stage(parent, "align") as run:
        run.params({"align": {"modes": ["y", "x"]}})
        run.params({"align": {"modes": ["y"]}})
        run.tags({"a": 1})
        run.note("# Aligned")
    data = tracker.client.get_run(run.run_id).data
    assert data.tags["mlflow.parentRunId"] == parent
    assert data.tags[STAGE_TAG] == data.tags["mlflow.runName"] == "align"
    assert data.tags["a"] == "1"
    assert data.tags["mlflow.note.content"] == "# Aligned"
    assert data.params == {"align.modes": '["y", "x"]'}


def test_a_failed_stage_says_why(tracker: Tracker) -> None:
    stage = tracker.stage(tracker.start("run"), "train")
    with pytest.raises(ZeroDivisionError, match="by zero"), stage as run:
        raise ZeroDivisionError(f"by zero {run.log({'loss': 2.0}, step=7) or ''}".strip())
    kept = tracker.client.get_run(run.run_id)
    assert kept.info.status == "FAILED"
    assert kept.data.tags["diffats.error"] == "ZeroDivisionError: by zero"
    assert kept.data.metrics == {"loss": 2.0}


def test_files_are_kept_with_the_run(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>")
    with tracker.stage(tracker.start("run"), "report") as run:
        run.artifact(tmp_path / "report.html")
        run.text("notes/a.md", "hello")
        run.dict("metrics.json", {"a": 1})
        with pytest.raises(StoreNotFoundError, match="no file"):
            run.artifact(tmp_path / "nothing.html")
    folder = Path(tracker.client.get_run(run.run_id).info.artifact_uri.removeprefix("file://"))
    assert (folder / "report.html").read_text() == "<p>"
    assert (folder / "notes" / "a.md").read_text() == "hello"
    assert json.loads((folder / "metrics.json").read_text()) == {"a": 1}


# Metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_go_in_batches_and_in_order(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    send = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, metrics: object = (), **rest: object) -> object:
        sizes.append(len(list(metrics)))  # type: ignore[call-overload]
        return send(self, run_id, metrics, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    with tracker.stage(tracker.start("run"), "train") as run:
        for step in range(1500):
            run.log({"loss": float(step), "overlap[y]": 0.5}, step)
    assert sum(sizes) == 3000
    assert len(sizes) < 60
    history = tracker.client.get_metric_history(run.run_id, "loss")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == list(range(1500))
    assert tracker.client.get_run(run.run_id).data.metrics["overlap_y_"] == 0.5


@pytest.mark.usefixtures("no_waiting")
def test_training_goes_on_while_the_tracker_is_away(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = threading.Event()
    failed = threading.Event()
    send = MlflowClient.log_batch

    def flaky(self: MlflowClient, *args: object, **kwargs: object) -> object:
        if away.is_set():
            if threading.current_thread() is not threading.main_thread():
                failed.set()
            raise MlflowException("connection refused")
        return send(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    with caplog.at_level(logging.INFO, "diffats.registry"), tracker.stage(tracker.start("run"), "train") as run:
        away.set()
        begun = time.perf_counter()
        for step in range(100):
            run.log({"loss": float(step)}, step)
        run.tags({"late": "yes"})
        assert time.perf_counter() - begun < 1
        assert failed.wait(10)
        away.clear()
    assert len(tracker.client.get_metric_history(run.run_id, "loss")) == 100
    assert tracker.client.get_run(run.run_id).data.tags["late"] == "yes"
    assert sum("is away" in record.message for record in caplog.records) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.usefixtures("no_waiting")
def test_what_could_not_be_delivered_is_counted(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise MlflowException("connection refused")

    with tracker.stage(tracker.start("run"), "train") as run:
        monkeypatch.setattr(MlflowClient, "log_batch", refuse)
        monkeypatch.setattr(MlflowClient, "log_text", refuse)
        run.log({"loss": 1.0, "rate": 2.0}, 1)
        run.text("a.md", "x")
    [error] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "2 metrics and 1 other records (artifact a.md) could not be delivered" in error
    assert tracker.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_tracker_that_hangs_does_not_hold_the_stage(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(runs, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **kwargs: released.wait(30))
    with tracker.stage(tracker.start("run"), "train") as run:
        run.log({"loss": 1.0}, 1)
    assert "1 metrics and 0 other records" in caplog.text
    released.set()


# Data sets -------------------------------------------------------------------------------------------------------


def test_a_data_version_comes_back_from_the_tracker(tracker: Tracker, tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    store = Store.create_or_open(location)
    old = store.put("anchor", xr.Dataset({"u": ("y", [1.0, 2.0])}), fingerprint="a")
    store.put("anchor", xr.Dataset({"u": ("y", [3.0, 4.0])}), fingerprint="b")
    with tracker.stage(tracker.start("run"), "align") as run:
        run.dataset("anchor", location, "anchor", old.snapshot, old.digest, "training", facts={"samples": 2})
        run.dataset("raw", "fields.nc", None, None, "9f" * 32, "raw")
    assert run.parent_id != run.run_id
    given_parent = tracker.client.get_run(run.parent_id).inputs.dataset_inputs
    assert {given.dataset.name for given in given_parent} == {"anchor", "raw"}
    inputs = {given.dataset.name: given for given in tracker.client.get_run(run.run_id).inputs.dataset_inputs}

    source = mlflow.data.get_source(inputs["anchor"])
    assert source == StoreSource(location, "anchor", old.snapshot, old.digest)
    assert source.load()["u"].values.tolist() == [1.0, 2.0]
    assert inputs["anchor"].dataset.digest == old.digest[:12]
    assert json.loads(inputs["anchor"].dataset.profile) == {"samples": 2}
    assert {tag.key: tag.value for tag in inputs["anchor"].tags} == {"mlflow.data.context": "training"}

    raw = mlflow.data.get_source(inputs["raw"])
    assert raw == StoreSource("fields.nc", digest="9f" * 32)
    with pytest.raises(InputError, match="raw data without a snapshot"):
        raw.load()


def test_a_data_set_without_digest_says_so() -> None:
    assert StoreDataset(StoreSource("a"), "a").digest == "unknown"
    assert len({StoreSource("a"), StoreSource("a"), StoreSource("b")}) == 2


# Models ----------------------------------------------------------------------------------------------------------


def test_a_version_says_what_it_was_made_from(tracker: Tracker, registered: str) -> None:
    version = tracker.client.get_model_version("tiny.fields", registered)
    assert version.description == notes.signed("A *tiny* model.")
    folder = Path(mlflow.artifacts.download_artifacts(version.source, tracking_uri=tracker.uri))
    kept = json.loads((folder / "identity.json").read_text())
    assert {"MLmodel", "pyfunc.py", "artifacts/bundle/bundle.json"} <= kept["files"].keys()
    assert (kept["data_version"], kept["weights"]) == ("ab12", "0123456789abcdef" * 4)
    assert version.tags.keys() == {"headline", "diffats.identity"}  # what a person reads, and one for programs
    assert json.loads(version.tags["diffats.identity"]) == {
        "data_version": "ab12",
        "weights": "0123456789abcdef",
        "file": bundle.file_digest(folder / "identity.json"),
    }
    assert tracker.alias("tiny.fields", "candidate") == registered
    assert tracker.alias("tiny.fields", "champion") is None
    assert tracker.alias("nothing", "champion") is None
    assert tracker.find("tiny.fields", {"weights": "0123456789abcdef" * 4}) == registered
    assert tracker.find("tiny.fields", {"data_version": "other"}) is None
    assert tracker.find("nothing", {}) is None
    [output] = tracker.client.get_run(version.run_id).outputs.model_outputs
    logged = tracker.client.get_logged_model(output.model_id)
    assert version.source == logged.artifact_location
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "tiny.fields", "version": registered}]


def test_aliases_move(tracker: Tracker, registered: str) -> None:
    tracker.set_alias("tiny.fields", "champion", registered)
    assert tracker.alias("tiny.fields", "champion") == registered
    tracker.client.delete_registered_model_alias("tiny.fields", "champion")
    with pytest.raises(TrackingError, match='could not set alias "champion"'):
        tracker.set_alias("tiny.fields", "champion", "99")


def test_the_model_holds_no_pickle_and_pins_its_requirements(tracker: Tracker, registered: str) -> None:
    folder = tracker.download(f"models:/tiny.fields/{registered}").parents[1]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert not [name for name in names if name.endswith((".pkl", ".pyc", ".pt", ".pth", ".bin"))]
    assert "pyfunc.py" in names
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert {line.partition("==")[0] for line in requirements} >= {"diffats", "torch", "mlflow"}
    assert {p.name for p in Model.load(folder).signature.params} == {
        *("seed", "steps", "guidance", "impose", "max_extrapolation", "output")
    }


def test_a_missing_bundle_is_refused(tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no bundle\.json"):
        tracker.register(tmp_path, "tiny.fields", "0" * 32)


def test_a_bundle_is_found_by_alias_and_version(tracker: Tracker, registered: str, tmp_path: Path) -> None:
    by_alias = tracker.download("models:/tiny.fields@candidate")
    assert (by_alias / "bundle.json").is_file()
    assert registry.download(f"models:/tiny.fields/{registered}", tracker.uri) == by_alias
    copied = tracker.download("models:/tiny.fields@candidate", tmp_path / "here")
    assert copied.is_relative_to(tmp_path / "here")
    assert (copied / "bundle.json").read_bytes() == (by_alias / "bundle.json").read_bytes()


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("models:/tiny.fields@best", StoreNotFoundError, 'no alias "best". Its aliases: candidate'),
        ("models:/other@candidate", StoreNotFoundError, "Models there: tiny.fields"),
        ("models:/tiny.fields/99", StoreNotFoundError, "not registered at sqlite"),
        ("models:/tiny.fields", InputError, "no model URI"),
        ("runs:/abc/model", InputError, "no model URI"),
    ],
)
def test_models_that_are_not_there(
    tracker: Tracker, registered: str, uri: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace(".", r"\.")):
        tracker.download(uri)


def test_a_look_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="Set MLFLOW_TRACKING_URI"):
        registry.download("models:/a@b", f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_clean_process_loads_the_model_with_pickle_forbidden(
    tracker: Tracker, registered: str, tmp_path: Path
) -> None:
    code = """
        import sys

        class Nothing:  # the process has diffats alone
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("flows", "tasks", "prefect", "pickle5", "cloudpickle_model"):
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Nothing())
        import mlflow, pandas, diffats
        import numpy as np

        model = mlflow.pyfunc.load_model("models:/tiny.fields@candidate")
        fields = model.predict(pandas.DataFrame({"count": [3]}), params={"seed": 4})
        assert dict(fields.sizes) == {"sample": 3, "y": 6, "x": 5}, fields
        assert fields["t"].attrs["units"] == "K" and fields["x"].attrs["units"] == "m"
        assert np.isfinite(fields["t"]).all()
        direct = diffats.load("models:/tiny.fields@candidate").sample(3, seed=4)
        np.testing.assert_array_equal(fields["t"], direct["t"])
        print("sampled", fields["t"].shape)
    """
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracker.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "sampled (3, 6, 5)"
    assert "WARNING" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# What the model answers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tracker: Tracker, registered: str) -> mlflow.pyfunc.PyFuncModel:
    folder = tracker.download("models:/tiny.fields@candidate").parents[1]
    return mlflow.pyfunc.load_model(str(folder))


def test_a_table_of_conditions_gives_a_sample_per_row(model: mlflow.pyfunc.PyFuncModel) -> None:
    table = pd.DataFrame({"label": ["Woods", "Corn"], "nu": [1.5, 2.5], "count": [1, 2]})
    fields = model.predict(table, params={"seed": 1, "steps": 3, "guidance": 2.0})
    assert fields["condition_label"].values.tolist() == ["Woods", "Corn", "Corn"]
    assert fields["condition_nu"].values.tolist() == [1.5, 2.5, 2.5]
    assert fields.sizes["sample"] == 3


def test_a_plain_count_and_a_seed_decide_the_samples(model: mlflow.pyfunc.PyFuncModel) -> None:
    assert model.predict(2).equals(model.predict({"count": 2}, params={"seed": 0}))
    assert not model.predict(2, params={"seed": 1}).equals(model.predict(2))


def test_arrays_can_be_answered_as_json(model: mlflow.pyfunc.PyFuncModel) -> None:
    import io

    from mlflow.pyfunc.scoring_server import predictions_to_json

    arrays = model.predict(1, params={"output": "arrays"})
    answer = io.StringIO()
    predictions_to_json(arrays, answer)
    assert np.shape(json.loads(answer.getvalue())["predictions"]["t"]) == (1, 6, 5)


def test_too_many_samples_are_refused_and_the_limit_can_be_raised(
    tracker: Tracker, model: mlflow.pyfunc.PyFuncModel
) -> None:
    with pytest.raises(InputError, match=r'1025 samples asked for, at most 1024 a call.*"max_count": 1025'):
        model.predict(1025)
    folder = tracker.download("models:/tiny.fields@candidate").parents[1]
    small = mlflow.pyfunc.load_model(str(folder), model_config={"max_count": 1})
    with pytest.raises(InputError, match="at most 1 a call"):
        small.predict(2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "not a positive whole number"),
        (-3, "not a positive whole number"),
        (2.5, "not a positive whole number"),
        ("many", "not a positive whole number"),
        (True, "not a positive whole number"),
        ([1, 2], "expected a count"),
        ({"count": "x"}, "not a positive whole number"),
        ({}, "no rows"),
        (pd.DataFrame({"label": []}), "no rows"),
        ({"label": ["a", "b"], "nu": [1.0, 2.0, 3.0]}, 'column "label" has 2 rows, others 3'),
    ],
)
def test_requests_that_cannot_be_read(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        requested(given)


def test_an_unknown_condition_and_output_are_named(model: mlflow.pyfunc.PyFuncModel) -> None:
    with pytest.raises(InputError, match=r'unknown condition "lable".*label, nu'):
        model.predict({"lable": ["Corn"]})
    with pytest.raises(InputError, match='output "csv" is unknown'):
        model.predict(1, params={"output": "csv"})


def test_one_value_serves_all_rows() -> None:
    count, columns = requested({"nu": [1.0, 2.0], "label": "Corn", "initial": np.zeros((2, 3))})
    assert count == 2
    assert columns["label"].tolist() == ["Corn", "Corn"]
    assert columns["initial"].shape == (2, 3)
    state = xr.DataArray(np.zeros((2, 3)), dims=("x", "y"))
    count, columns = requested({"initial": state, "nu": [1.0, 2.0], "count": [2, 1]})
    assert (count, columns["nu"].tolist()) == (3, [1.0, 1.0, 2.0])
    assert columns["initial"] is state
    assert requested({"initial": state}) == (1, {"initial": state})
    assert requested(np.array([4.0])) == (4, {})
    assert as_arrays(xr.Dataset(coords={"x": [1, 2]}))["x"].tolist() == [1, 2]


# Pages -----------------------------------------------------------------------------------------------------------


def test_the_command_for_the_pages_is_for_this_machine_only(tracker: Tracker) -> None:
    command = tracker.ui_command
    assert "--host 127.0.0.1" in command
    assert f"'{tracker.uri}'" in command  # quoted: the path holds blanks
    assert "secret" not in registry.ui_command("postgresql://user:secret@host/db")


@pytest.mark.slow
def test_the_pages_open_and_the_server_takes_runs_and_models(tracker: Tracker, registered: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = tracker.ui_command.replace("--port 5000", f"--port {port}")
    server = subprocess.Popen(
        ["bash", "-c", f"exec env {command}"], cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.5)
        remote = Tracker(f"http://127.0.0.1:{port}", "tiny.fields")
        assert remote.alias("tiny.fields", "candidate") == registered
        with remote.stage(remote.start("remote"), "train") as run:
            run.log({"loss": 0.5}, 1)
        assert tracker.client.get_run(run.run_id).data.metrics == {"loss": 0.5}

        other = Tracker(remote.uri, "other")  # its files go through the server
        made = tracker.download(f"models:/tiny.fields/{registered}")
        assert other.register(made, "other", other.start("run"), {"a": 1}) == "1"
        copied = registry.download("models:/other@candidate", remote.uri)
        assert (copied / "bundle.json").read_bytes() == (made / "bundle.json").read_bytes()
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
