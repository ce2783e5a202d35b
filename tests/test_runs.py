"""What the verb list finds out about roots."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from diffats import cli
from diffats.stages import runs
from diffats.store import Store, is_being_written, location, writer_lock


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root whose decomposition was begun."""
    place = tmp_path / "runs" / "waves"
    store = Store.create_or_open(place / "store")
    store.check("waves", ("time", "x"))
    template = xr.Dataset({"core": ("sample", np.zeros(1200))}, coords={"sample": np.arange(1200)})
    store.begin("tucker", template, fingerprint="a1", shard=100)
    return place


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["list", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def put(root: Path, group: str) -> None:
    Store.open(root / "store").put(group, xr.Dataset({"a": ("k", np.ones(3))}), fingerprint=f"{group}1")


def train(root: Path, *, steps: int, model: bool) -> None:
    (root / "training" / "0123abcd" / f"checkpoint-{steps}").mkdir(parents=True)
    if model:
        bundle = root / "bundles" / f"0123abcd-{steps}"
        bundle.mkdir(parents=True)
        recipe = {"name": "waves of mine", "evaluate": {"metric": "crps"}}
        (bundle / "bundle.json").write_text(json.dumps({"recipe": recipe}))


def evaluate(root: Path, identity: str, value: float) -> None:
    row = {"label": "CRPS", "value": value, "persistence": 1.0, "better": "lower"}
    (root / "evaluation").mkdir(exist_ok=True)
    (root / "evaluation" / f"{identity}.json").write_text(json.dumps({"crps": row}))


def register(root: Path, steps: int, version: int, evaluation: str, verdict: str) -> None:
    (root / "registered").mkdir(exist_ok=True)
    record = {"key": [evaluation * 4, "sqlite:///mlflow.db", str(version)], "verdict": verdict}
    (root / "registered" / f"0123abcd-{steps}.json").write_text(json.dumps(record))


def test_where_no_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown().startswith("runs: no runs yet.")
    (tmp_path / "data").mkdir()
    assert shown(tmp_path).startswith(f"{tmp_path}: no runs yet.")
    assert json.loads(shown("--json")) == {"runs": []}
    result = CliRunner().invoke(cli.app, ["list", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: nowhere is no folder. Give ")


def test_a_decomposition_that_was_interrupted(root: Path) -> None:
    found = runs.describe(root)
    assert (found.name, found.state, found.finished) == ("waves", "interrupted", [])
    assert found.unfinished == "decompose at 0 of 1,200 samples"
    assert shown(root.parent).startswith("waves  interrupted: decompose at 0 of 1,200 samples  no model  20")
    assert shown(root) == shown(root.parent)


def test_a_run_at_work_is_running(root: Path) -> None:
    with writer_lock(root):
        assert runs.describe(root).state == "running"
    assert runs.describe(root).state == "interrupted"


def test_whoever_looks_refuses_no_writer(root: Path) -> None:
    with writer_lock(root):
        pass
    look = (root / ".writer.lock").open("rb")
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.05, look.close).start()
    with writer_lock(root):
        assert is_being_written(root)
    assert not is_being_written(root)


def test_a_training_from_its_checkpoint_to_its_report(root: Path) -> None:
    for group in ("tucker", "anchor", "primitives", "normalisation"):
        put(root, group)
    assert runs.describe(root).state == "begun"
    assert "waves  stopped after normalise  no model" in shown(root)
    train(root, steps=1200, model=False)
    assert "waves  interrupted: train at step 1,200  no model" in shown(root)
    train(root, steps=2500, model=True)
    assert "waves of mine (" in shown(root)
    assert "stopped after train  no registered model" in shown(root)
    evaluate(root, "e1e1", 0.5)
    register(root, 2500, 1, "e1e1", "first champion: CRPS 0.5 beats persistence's 1")
    (root / "report.html").write_text("<p>")
    found = runs.describe(root)
    assert (found.state, found.unfinished, found.problems) == ("finished", "", [])
    assert found.model == {"version": "1", "alias": "champion"}
    assert found.headline == ["CRPS 0.5 beats persistence"]
    first, second = shown(root).splitlines()
    assert "  finished  v1 champion  20" in first
    assert second == "    CRPS 0.5 beats persistence"
    assert json.loads(shown(root, "--json"))["runs"][0]["state"] == "finished"


def test_the_figures_are_those_of_the_model_that_was_registered(root: Path) -> None:
    train(root, steps=100, model=True)
    evaluate(root, "e1e1" * 4, 0.5)
    register(root, 100, 1, "e1e1" * 4, "first champion: good")
    evaluate(root, "e2e2" * 4, 0.25)  # newer, of other samples
    assert runs.describe(root).headline == ["CRPS 0.5 beats persistence"]
    train(root, steps=200, model=True)
    register(root, 200, 2, "e2e2" * 4, "champion: better")
    assert runs.describe(root).model == {"version": "2", "alias": "champion"}
    (root / "bundles" / "LATEST").write_text("0123abcd-100")
    assert runs.describe(root).model == {"version": "1", "alias": ""}


def test_what_is_damaged_is_named_and_the_rest_is_shown(root: Path) -> None:
    train(root, steps=100, model=True)
    evaluate(root, "e1e1", 0.5)
    good = root.with_name("good")
    good.mkdir()
    train(good, steps=100, model=True)
    (root / "evaluation" / "e1e1.json").write_text('{"crps": ')
    [fine, broken] = runs.find_runs(root.parent)
    assert (fine.state, broken.state) == ("begun", "damaged")
    [problem] = broken.problems
    assert str(root / "evaluation" / "e1e1.json") in problem
    assert "    problem: " in shown(root.parent)
    for snapshot in (root / "store" / "snapshots").iterdir():
        snapshot.write_bytes(b"x")
    location.forget()
    assert any("store" in problem for problem in runs.describe(root).problems)


def test_torch_and_mlflow_are_not_imported(root: Path) -> None:
    code = (
        "import sys\nfrom diffats.cli import main\n"
        f"try:\n    main(['list', {str(root)!r}])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'mlflow', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("waves  interrupted")
    assert done.stdout.endswith("\n[]\n")
