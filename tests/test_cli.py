"""The command as a user runs it: every verb, exit codes, and what goes to which stream."""

from __future__ import annotations

import errno
import importlib.machinery
import json
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
from safetensors.numpy import load_file
from tiny_recipe import waves, write_recipe
from typer.testing import CliRunner, Result

from diffats import cli, stages
from diffats.cli import installed
from diffats.config import load_recipe
from diffats.errors import DiffatsError, Terminated
from diffats.registry import StageRun, Tracker, TrackingError

VERBS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
STAGE_VERBS = {verb: stage for verb, stage, _ in cli.stages.STAGE_VERBS}
COMMAND = (sys.executable, "-m", "diffats")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def ended(result: Result, code: int) -> Result:
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A recipe taken through every stage, and what each verb printed."""
    recipe = write_recipe(tmp_path_factory.mktemp("made"))
    printed = {verb: json.loads(ended(run(verb, recipe, "--json"), 0).stdout) for verb in STAGE_VERBS}
    return recipe, printed


Made = tuple[Path, dict[str, dict[str, Any]]]


# --- help and usage ---------------------------------------------------------------------------------------------


def test_help_names_every_verb_whole() -> None:
    text = ended(run("--help"), 0).stdout
    for verb in ("plan", *STAGE_VERBS, "inspect", "tag", "diff", "rollback", "prune", "verify", "export", "config"):
        assert re.search(rf"^  {verb} ", text, re.MULTILINE), verb
    assert "..." not in text.partition("Begin:")[2]  # no help that is cut off
    assert "130 interrupted" in " ".join(text.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb: str) -> None:
    text = ended(run(verb, "--help"), 0).stdout
    assert "--json" in text
    assert ("--set" in text) == ("RECIPE.toml" in text)


def test_help_lists_every_verb_in_the_order_in_which_one_needs_them() -> None:
    text = ended(run("--help"), 0).stdout.partition("Begin:")[2]
    listed = re.findall(r"^  (\w+) ", text, re.MULTILINE)
    assert sorted(listed) == sorted(VERBS)
    order = [listed.index(verb) for verb in ("plan", *STAGE_VERBS, "inspect", "tag", "prune")]
    assert order == sorted(order)


def test_version_names_what_is_installed_and_imports_none_of_it() -> None:
    code = (
        "import sys\nfrom diffats.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit as done:\n    print(done.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    release, torch = version("diffats"), version("torch")
    python = platform.python_version()
    said, ended_with = done.stdout.splitlines()
    assert re.fullmatch(
        re.escape(f"diffats {release}, Python {python}, torch {torch} (") + r"(cpu|mps|cuda: .+)\)", said
    )
    assert ended_with == "0 False"


@pytest.mark.parametrize(
    ("built", "hidden", "device"),
    [("'13.0'", None, "cuda: NVIDIA H200"), ("'13.0'", "", "cpu"), ("'13.0'", "-1", "cpu"), ("None", None, "cpu")],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="has no such driver")
def test_version_names_the_device(
    built: str, hidden: str | None, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "gpus" / "0000:19:00.0" / "information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 312\n")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {built}")
    place = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(installed, "_NVIDIA", tmp_path / "gpus")
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: place)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert installed.described().endswith(f"({device})")


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "mlflow", "xarray", "numpy", "zarr", "icechunk", "distributed", "prefect", "matplotlib")
    code = (
        "import sys\nfrom diffats.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plam"], "No such command 'plam'"),
        (["plan"], "Missing argument 'RECIPE.toml'"),
        (["plan", "a.toml", "--bogus"], "No such option: --bogus"),
        (["plan", "a.toml", "--set"], "'--set' requires an argument"),
        (["plan", "a.toml", "b.toml"], "unexpected extra argument"),
        (["export", "a.toml"], "Missing argument 'DEST.zarr'"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = ended(run(*arguments), 2)
    assert message in result.stderr
    assert result.stdout == ""


# --- config -----------------------------------------------------------------------------------------------------


def test_config_prints_the_resolved_recipe(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for options in ([], ["--json"]):
        shown = json.loads(ended(run("config", recipe, "--set", "train.steps=7", *options), 0).stdout)
        assert (shown["train"]["steps"], shown["train"]["batch"], shown["data"]["source"]) == (7, 8, "tiny.nc")


def test_config_prints_the_schema() -> None:
    shown = json.loads(ended(run("config", "--schema"), 0).stdout)
    assert shown["properties"].keys() >= {"name", "data", "train"}
    assert shown["$defs"]["Train"]["properties"]["warmup"]["description"] == "steps of linear warm-up"


# --- stages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", STAGE_VERBS)
def test_a_stage_prints_one_json_object(made: Made, verb: str) -> None:
    printed = made[1][verb]
    names = ["stage", "skipped", "fingerprint", "version", "location", "done", "total", "failed", "seconds", "metrics"]
    assert list(printed) == [*names, "facts"]
    assert (printed["stage"], printed["skipped"], printed["failed"]) == (STAGE_VERBS[verb], False, 0)


@pytest.mark.parametrize("verb", ["decompose", "anchor", "align", "normalise", "train", "generate", "evaluate"])
def test_a_stage_that_is_done_says_so(made: Made, verb: str) -> None:
    result = ended(run(verb, made[0]), 0)
    assert re.fullmatch(rf"{verb}: .+ \(already there\)\n", result.stdout)
    assert json.loads(ended(run(verb, made[0], "--json"), 0).stdout)["version"] == made[1][verb]["version"]


def test_restart_makes_it_anew(made: Made) -> None:
    again = json.loads(ended(run("anchor", made[0], "--json", "--restart"), 0).stdout)
    assert not again["skipped"]
    assert again["fingerprint"] == made[1]["anchor"]["fingerprint"]


def test_the_model_is_registered_and_described(made: Made) -> None:
    model = made[1]["register"]["facts"]["model"]
    assert (model["name"], model["version"]) == ("tiny", "1")
    assert model["verdict"].startswith({"champion": "first champion", "candidate": "not champion"}[model["alias"]])


def test_samples_that_failed_end_with_3(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    result = stages.StageResult("decompose", "f", "v", "here", done=5, total=5, failed=2, summary="3 of 5 samples")
    monkeypatch.setattr(stages, "run", lambda *arguments, **options: result)
    assert ended(run("decompose", made[0]), 3).stdout == "decompose: 3 of 5 samples (0.0 s)\n"


# --- runs in MLflow ---------------------------------------------------------------------------------------------


def test_the_verbs_of_a_recipe_share_one_finished_run(made: Made) -> None:
    tracker = Tracker.for_recipe(load_recipe(made[0]))
    found = tracker.client.search_runs([tracker.experiment_id])
    runs = [run for run in found if "diffats.champions" not in run.data.tags]
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = {run.data.tags["diffats.stage"]: run for run in runs if run is not parent}
    assert set(children) == {"train", "generate", "evaluate", "register"}
    raw, primitives, samples = "tiny-raw", "tiny-primitives", "tiny-samples"
    assert inputs(children["train"]) == inputs(children["register"]) == {raw, primitives}
    assert inputs(children["evaluate"]) == {samples}
    assert inputs(parent) == {raw, primitives, samples}
    [given] = [i.dataset for i in parent.inputs.dataset_inputs if i.dataset.name == primitives]
    assert json.loads(given.source)["snapshot"] == made[1]["align"]["version"]


def inputs(run: Any) -> set[str]:
    return {given.dataset.name for given in run.inputs.dataset_inputs}


def test_a_flow_after_the_verbs_has_a_run_with_the_same_inputs(made: Made) -> None:
    recipe = load_recipe(made[0])
    with stages.tracked(recipe) as parent:
        for stage in ("train", "evaluate"):
            assert stages.run(stage, recipe, parent_run=parent).skipped
        found = Tracker.for_recipe(recipe).client.get_run(parent)
        assert inputs(found) == {"tiny-raw", "tiny-primitives", "tiny-samples"}
    assert Tracker.for_recipe(recipe).client.get_run(parent).info.lifecycle_stage == "deleted"  # nothing was done


def test_a_live_run_of_another_process_is_left_alone(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    ended(run("decompose", recipe), 0)
    code = (
        "import sys; from diffats import stages; from diffats.config import load_recipe\n"
        "with stages.tracked(load_recipe(sys.argv[1])) as parent: print(parent, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, recipe], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        parent = owner.stdout.readline().strip()
        tracker = Tracker.for_recipe(load_recipe(recipe))
        assert "is being written by" in ended(run("train", recipe), 1).stderr
        assert tracker.client.get_run(parent).info.status == "RUNNING"
        assert len(tracker.client.search_runs([tracker.experiment_id])) == 1
        owner.communicate(timeout=60)
    assert owner.returncode == 0


def test_a_tracker_that_goes_away_before_the_training_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    for verb in ("decompose", "anchor", "align", "normalise"):
        ended(run(verb, recipe), 0)
    tries = []

    def away(self: Tracker, parent: str, stage: str, **options: int) -> StageRun:
        tries.append(stage)
        if len(tries) == 1:
            raise TrackingError("MLflow could not be reached")
        return there(self, parent, stage, **options)

    there = Tracker.stage
    monkeypatch.setattr(Tracker, "stage", away)
    result = ended(run("train", recipe), 0)
    assert result.stderr.count("goes on without MLflow") == 1
    assert len(tries) == 2  # at the start and at the end, never in the loop
    tracker = Tracker.for_recipe(load_recipe(recipe))
    [child] = tracker.client.search_runs([tracker.experiment_id], "tags.`diffats.stage` = 'train'")
    assert [m.step for m in tracker.client.get_metric_history(child.info.run_id, "loss")] == [2, 4]

    def gone(recipe: object) -> None:
        raise TrackingError("MLflow could not be reached")

    begun = stages.start_tracking(load_recipe(recipe), latest=True)
    monkeypatch.setattr(stages, "start_tracking", lambda *arguments, **options: begun)
    monkeypatch.setattr(stages, "_tracker", gone)
    result = ended(run("train", recipe, "--restart"), 0)
    assert "4 steps" in result.stdout
    assert result.stderr.count("goes on without MLflow") == 1


# --- inspect, verify, export ------------------------------------------------------------------------------------


def test_inspect_gives_each_group(made: Made) -> None:
    groups = json.loads(ended(run("inspect", made[0], "--json"), 0).stdout)
    assert set(groups) == {"scaling", "tucker", "anchor", "primitives", "normalisation", "samples"}
    for group, verb in (("tucker", "decompose"), ("primitives", "align"), ("samples", "generate")):
        entry = groups[group]
        assert {entry["done"], entry["total"]} == {made[1][verb]["total"]}
        assert (entry["failed"], entry["complete"], entry["version"]) == (0, True, made[1][verb]["version"])
        assert [version["version"] for version in entry["versions"]] == [entry["version"]]
    lines = ended(run("inspect", made[0]), 0).stdout.splitlines()
    assert any(
        re.match(r"\* tucker +finished +24/24 samples, 0 failed, version \w+, fingerprint \w{16}$", x) for x in lines
    )
    assert any(re.match(r"\* anchor +finished +version \w+, fingerprint \w{16}$", line) for line in lines)


def test_where_nothing_is(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert json.loads(ended(run("inspect", recipe, "--json"), 0).stdout) == {}
    assert f"nothing yet. Begin with `diffats decompose {recipe}`." in ended(run("inspect", recipe), 0).stdout
    assert "there is no store to verify. Run `diffats decompose" in ended(run("verify", recipe), 2).stderr
    assert "there is nothing to export. Run `diffats decompose" in ended(run("export", recipe, "a.zarr"), 2).stderr
    assert not (tmp_path / "root").exists()


def test_export_opens_as_a_tree(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "out.zarr"
    assert json.loads(ended(run("export", made[0], place, "--json"), 0).stdout) == {"destination": str(place)}
    with xr.open_datatree(place, engine="zarr") as tree:
        assert set(tree.groups) >= {"/tucker", "/anchor", "/primitives", "/normalisation", "/generated/samples"}
        assert tree["generated/samples"]["u"].sizes == {"sample": 6, "time": 6, "x": 8}
        assert tree["primitives"].sizes["sample"] == 24
    assert f"{place} exists. Export to another place, or remove it." in ended(run("export", made[0], place), 2).stderr


def test_export_makes_a_netcdf_file_of_the_same(made: Made, tmp_path: Path) -> None:
    place, tree_place = tmp_path / "out.nc", tmp_path / "out.zarr"
    assert "engine='h5netcdf'" in ended(run("export", made[0], place, "--format", "netcdf"), 0).stdout
    ended(run("export", made[0], tree_place), 0)
    with (
        xr.open_datatree(place, engine="h5netcdf") as file,
        xr.open_datatree(tree_place, engine="zarr") as tree,
    ):
        assert set(file.groups) == set(tree.groups)
        for group in ("primitives", "generated/samples"):
            xr.testing.assert_equal(file[group].to_dataset().load(), tree[group].to_dataset().load())
        assert file["generated/samples"].attrs["recipe"]
    assert f"{place} exists." in ended(run("export", made[0], place, "--format", "netcdf"), 2).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.nc", "out.zarr"]


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, waves(40))
    ended(run("decompose", recipe), 0)
    assert ended(run("verify", recipe), 0).stdout == "verified: every shard and file matches its digest\n"
    chunk = max((tmp_path / "root" / "store" / "chunks").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    problems = json.loads(ended(run("verify", recipe, "--json"), 1).stdout)["problems"]
    assert problems
    assert "Traceback" not in ended(run("verify", recipe), 1).output


# --- errors that are not input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DiffatsError("the store [red]is[/red] :cross_mark:"), 1, "error: the store [red]is[/red] :cross_mark:\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: [Errno 28] No space left on device. What was"),
        (KeyboardInterrupt(), 130, "interrupted; what was committed stays. Run the same command to continue.\n"),
        (Terminated(), 143, "terminated; what was committed stays. Run the same command to continue.\n"),
    ],
)
def test_errors_are_one_message(
    made: Made, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(stages, "run", failing)
    result = ended(run("decompose", made[0]), code)
    assert result.stderr.startswith(message)
    assert result.stdout == ""


def test_the_log_is_as_before_afterwards(made: Made) -> None:
    import logging

    before = list(logging.getLogger("diffats").handlers), list(logging.getLogger().handlers)
    run("plan", made[0])
    assert (list(logging.getLogger("diffats").handlers), list(logging.getLogger().handlers)) == before


# --- processes of their own -------------------------------------------------------------------------------------


def test_streams_of_a_real_process(tmp_path: Path) -> None:
    """The result on standard output, our own lines on standard error, and nothing of any library."""
    recipe = write_recipe(tmp_path)
    done = subprocess.run([*COMMAND, "decompose", recipe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"decompose: 24 of 24 samples, .+ \(\d+\.\d s\)\n", done.stdout)
    assert done.stderr == "reading the training samples once for their mean and scale\n"
    for verb in ("anchor", "align", "normalise"):
        ended(run(verb, recipe), 0)
    done = subprocess.run([*COMMAND, "train", recipe, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 4
    ours = re.compile(r"train(: a step takes |  \d/4 steps  |: 4 steps, about )|warning: ")
    assert all(ours.match(line) for line in done.stderr.splitlines()), done.stderr


def test_a_mistake_in_a_real_process(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "plan", tmp_path / "no.toml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"error: recipe {tmp_path / 'no.toml'}: No such file or directory. Give the path of a TOML file.\n"
    )


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_it_with_its_code_and_the_next_call_finishes(
    tmp_path: Path, number: int, code: int, word: str
) -> None:
    recipe = write_recipe(tmp_path, waves(600))
    command = [*COMMAND, "decompose", str(recipe), "--set", "compute.shard_samples=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("reading the training samples")
        # Not before shards are computed: libraries may drop what comes while they are imported.
        while process.poll() is None and len(list(tmp_path.glob("root/store/snapshots/*"))) < 4:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert err.endswith(f"{word}; what was committed stays. Run the same command to continue.\n")
    assert "Traceback" not in err
    result = ended(run("decompose", recipe, "--set", "compute.shard_samples=100"), 0)
    assert "600 of 600 samples" in result.stdout


@pytest.mark.slow
def test_train_in_two_processes_then_the_rest_in_two(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for verb in ("decompose", "anchor", "align", "normalise"):
        ended(run(verb, recipe), 0)
    launcher = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "-m", "diffats", "train", str(recipe), "--set", "train.batch=7"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert "error: train.batch 7 is no multiple of the 2 processes" in done.stderr
    for verb, skipped in (("train", False), ("train", True), ("generate", False), ("evaluate", False)):
        command = [sys.executable, "-m", *launcher, "-m", "diffats", verb, str(recipe), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)  # one object: the main process alone tells
        assert (made["stage"], made["skipped"]) == (verb, skipped)
    [history] = [path for path in (tmp_path / "root/training").glob("*/history.jsonl") if path.stat().st_size]
    assert [json.loads(line)["step"] for line in history.read_text().splitlines()] == [2, 4]
    alone = tmp_path / "alone"
    alone.mkdir()
    one = write_recipe(alone)
    for verb in ("decompose", "anchor", "align", "normalise", "train"):
        result = ended(run(verb, one), 0)
    assert "4 steps" in result.stdout
    (weights,), (expected,) = (
        map(load_file, (place / "root/bundles").glob("*/weights.safetensors")) for place in (tmp_path, alone)
    )
    for name in expected:
        np.testing.assert_allclose(weights[name], expected[name], rtol=1e-3, atol=1e-4)


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    outer, inner = pty.openpty()
    try:
        yield outer, inner
    finally:
        os.close(outer)


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with terminal() as (outer, inner):
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
        command = [*COMMAND, "decompose", str(recipe), "--set", "compute.shard_samples=2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=inner, env=environment)
        os.close(inner)
        shown = b""
        while True:
            try:
                part = os.read(outer, 4096)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith(b"decompose: 24 of 24 samples")
    assert b"reading the training samples once" in shown
    text = shown.decode()
    assert "━" in text
    assert "loading libraries  elapsed 0:0" in text  # before anything can be counted
    assert "24/24 samples  " in text
    assert re.search(r"/s  elapsed \d+:\d\d, left 0:\d\d", text)
    assert "failed" not in text


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_waits_for_the_end_of_an_import(
    number: int, raised: type[KeyboardInterrupt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.2)\nopen('whole', 'w').close()\n"
    (tmp_path / "slow_to_import.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def command() -> None:
        with cli.terminated_as_interrupted():
            importlib.import_module("slow_to_import")
            time.sleep(10)

    with pytest.raises(raised):
        command()
    assert sys.modules.pop("slow_to_import")
    assert Path("whole").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
