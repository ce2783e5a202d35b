"""What users get wrong, and odd data: the table of ``bad_inputs.py``, and what needs more than a row."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bad_inputs
import numpy as np
import pytest
import xarray as xr
from bad_inputs import CODES, FAILED, LEFT_OUT, ON_READING, REFUSED, WARNED, WHOLE, WORKS, Row
from safetensors.torch import load_file
from tiny_recipe import waves, write_recipe
from typer.testing import CliRunner, Result

from diffats.bundle import Bundle
from diffats.cli import app
from diffats.compute import open_cluster
from diffats.config import Compute
from diffats.sources.samples import Samples
from diffats.stages import decompose
from diffats.store import STATUS, Store


def run(*arguments: object, overrides: tuple[str, ...] = ()) -> Result:
    options = [word for override in overrides for word in ("--set", override)]
    result = CliRunner().invoke(app, [*map(str, arguments), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # what a user would see as a traceback
    return result


def refused(result: Result, message: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert message in result.stderr
    assert result.stdout == ""


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """One set of workers for all runs."""
    with open_cluster(Compute(workers=1)):
        yield


# --- the table --------------------------------------------------------------------------------------------------

MADE = (WORKS, WARNED, LEFT_OUT)
ALL = [(title, row) for title, rows in bad_inputs.ROWS.items() for row in rows]


def named(*outcomes: str) -> Any:
    rows = [(title, row) for title, row in ALL if row.outcome in outcomes and not row.locked]
    chosen = [pytest.param(row, id=f"{title}: {row.what}") for title, row in rows]
    return pytest.mark.parametrize("row", chosen)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    bad_inputs.good(directory)
    return directory


def prepared(row: Row, directory: Path, good: Path) -> tuple[Path, np.ndarray | None, tuple[str, ...]]:
    """Recipe, samples as NumPy has them, and overrides of a row."""
    truth = None
    if row.make is None:
        directory = good
    else:
        truth = row.make(directory)
    filled = [text.replace("{dir}", str(directory)).replace("{{", "{").replace("}}", "}") for text in row.options]
    return directory / "tiny.toml", truth, tuple(filled)


def content(directory: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_size) for path in directory.rglob("*"))


@named(REFUSED)
def test_refused_before_anything_is_made(row: Row, tmp_path: Path, good: Path) -> None:
    recipe, _, overrides = prepared(row, tmp_path, good)
    before = content(recipe.parent)
    for verb in ("plan", "decompose"):
        refused(run(verb, recipe, overrides=overrides), row.says.replace("{dir}", str(recipe.parent)))
    assert content(recipe.parent) == before


@named(ON_READING, FAILED)
def test_refused_on_reading(row: Row, tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, overrides = prepared(row, tmp_path, good)
    if row.meanwhile is not None:
        after_the_first_read(row, tmp_path, monkeypatch)
    message = row.says.replace("{dir}", str(recipe.parent))
    refused(run("decompose", recipe, overrides=overrides), message, CODES[row.outcome])
    if (tmp_path / "root" / "store").is_dir():
        version = Store.open(tmp_path / "root" / "store").latest("tucker")
        assert version is None or not version.complete
    refused(run("anchor", recipe, overrides=overrides), "")


def after_the_first_read(row: Row, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, reads = Samples.read, []

    def read(self: Samples, indices: Any) -> Any:
        x = real(self, indices)
        reads.append(len(x))
        if len(reads) == 1:
            assert row.meanwhile is not None
            row.meanwhile(directory)
        return x

    monkeypatch.setattr(Samples, "read", read)


@named(*MADE)
def test_what_is_made_is_right(row: Row, tmp_path: Path, good: Path) -> None:
    made_right(row, tmp_path, good)


@pytest.mark.slow
@named(*MADE)
def test_all_that_follows_is_right(row: Row, tmp_path: Path, good: Path) -> None:
    recipe, truth, overrides = made_right(row, tmp_path, good)
    for verb in ("anchor", "align", "normalise"):
        made = run(verb, recipe, overrides=overrides)
        assert made.exit_code in (0, 3), made.output
    bad_inputs.check_store(tmp_path / "root" / "store", truth, dict(row.bad), row.tolerance)


def made_right(row: Row, tmp_path: Path, good: Path) -> tuple[Path, np.ndarray, tuple[str, ...]]:
    """Plan and decompose; recipe, samples and overrides for what follows."""
    recipe, given, overrides = prepared(row, tmp_path, good)
    overrides = (WHOLE, *overrides, f"root={tmp_path / 'root'}")
    truth = waves()["u"].values if given is None else given
    planned = run("plan", recipe, overrides=overrides)
    assert planned.exit_code == 0, planned.output
    result = run("decompose", recipe, overrides=overrides)
    assert result.exit_code == CODES[row.outcome], result.output
    said = planned.stderr + result.stderr
    always = ("nothing is compressed", "test samples: differences may be chance")  # so small are these data
    warned = [
        line for line in said.splitlines() if line.startswith("warning: ") and not any(text in line for text in always)
    ]
    assert bool(warned) == (row.outcome != WORKS), warned
    assert row.says in said
    bad_inputs.check_store(tmp_path / "root" / "store", truth, dict(row.bad), row.tolerance)
    return recipe, truth, overrides


def test_the_table_is_long_and_renders() -> None:
    text = bad_inputs.table()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| input")]
    assert len(rows) == sum(bad_inputs.counts().values()) == len(ALL) >= 60
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
    assert set(text) <= set(string.printable) | {c for c in text if ord(c) > 159}
    assert "/tmp" not in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.split.test=0.01",), "data.split leaves 1 test sample of 24, and evaluation compares at least 2."),
        (("generate.count=1",), "generate.count is 1, and evaluation compares at least 2 samples. Use at least 2."),
        (("generate.steps=2000",), "generate.steps 2000 exceeds diffusion.noise_steps 1000. Use at most 1000."),
        (("compute.device=mps",), 'device "mps" is not available here'),
    ],
)
def test_plan_refuses_what_later_stages_could_not_do(good: Path, overrides: tuple[str, ...], message: str) -> None:
    refused(run("plan", good / "tiny.toml", overrides=overrides), message)


def test_overlapping_windows_of_a_run_stay_on_one_side(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    overlapping = ("data.windows.size={x=4}", "data.windows.stride={x=2}")
    result = run("plan", recipe, overrides=overlapping)
    assert result.exit_code == 0
    assert "samples      72 (54 train, 18 test, 0 dropped at the split)" in result.stdout
    assert "held out     6 entries of sample: " in result.stdout
    assert "gap" not in result.stdout


# --- samples that are bad ---------------------------------------------------------------------------------------


def with_bad_samples(data: xr.Dataset) -> xr.Dataset:
    u = data.u.values.copy()
    u[2, 0, 0], u[5], u[7, 3, 3] = np.nan, 0, np.inf
    return data.assign(u=(data.u.dims, u))


def test_bad_samples_are_recorded_skipped_and_listed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, with_bad_samples(waves()))
    tolerant = ("data.max_failed=0.2",)
    first = run("decompose", recipe, "--json", overrides=tolerant)
    assert first.exit_code == 3
    listed = "warning: 3 of 24 samples failed and are left out: 2 (non_finite), 5 (all_zero), 7 (non_finite)"
    assert listed in first.stderr
    made = json.loads(first.stdout)
    assert (made["done"], made["total"], made["failed"]) == (24, 24, 3)
    status = Store.open(tmp_path / "root" / "store").latest("tucker").dataset()["status"].values  # type: ignore[union-attr]
    flags = {name: np.flatnonzero(status == flag).tolist() for name, flag in STATUS.items()}
    assert (flags["non_finite"], flags["all_zero"], len(flags["ok"])) == ([2, 7], [5], 21)
    again = run("decompose", recipe, overrides=tolerant)
    assert again.exit_code == 3  # still so when all is there
    assert "already there" in again.stdout
    for verb in ("anchor", "align"):
        assert run(verb, recipe, overrides=tolerant).exit_code in (0, 3)
    groups = json.loads(run("inspect", recipe, "--json").stdout)
    assert {group: groups[group]["failed"] for group in ("tucker", "primitives")} == {"tucker": 3, "primitives": 3}


def test_too_many_bad_samples_fail_the_stage_which_then_goes_on(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, with_bad_samples(waves()))
    result = run("decompose", recipe)
    assert result.exit_code == 1
    assert "error: decompose: 3 of 24 samples" in result.stderr
    assert "1 are allowed by data.max_failed = 0.01" in result.stderr
    assert "2 (non_finite), 5 (all_zero), 7 (non_finite)" in result.stderr
    assert "of the values are missing" in result.stderr  # the share
    assert "raise data.max_failed" in result.stderr
    assert run("anchor", recipe).exit_code == 2  # nothing builds on an unfinished group
    assert run("decompose", recipe, overrides=("data.max_failed=0.2",)).exit_code == 3


def test_no_usable_sample_at_all(tmp_path: Path) -> None:
    data = waves()
    recipe = write_recipe(tmp_path, data.assign(u=data.u * np.nan))
    refused(run("decompose", recipe), "no training sample is usable (100.0% of the values are missing")
    refused(run("plan", recipe, "--pilot"), "the pilot read 18 samples and 0 are usable (100.0% of the values")


# --- roots ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = write_recipe(tmp_path_factory.mktemp("made"))
    assert run("decompose", recipe).exit_code == 0
    return recipe


@pytest.mark.parametrize("verb", ["plan", "decompose", "anchor", "train"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("name=other",), 'belongs to recipe "tiny", got "other". Give this recipe another root or store.'),
        (
            ('data.modes=["x","time"]',),
            "belongs to samples with dims time, x, got x, time. Give this recipe another root or store.",
        ),
    ],
)
def test_the_root_of_another_recipe(made: Path, verb: str, overrides: tuple[str, ...], message: str) -> None:
    before = sorted(made.parent.rglob("*"))
    refused(run(verb, made, overrides=overrides), message)
    assert sorted(made.parent.rglob("*")) == before


def test_another_option_in_the_same_root_is_another_version(made: Path) -> None:
    result = run("plan", made, "--json", overrides=("decompose.ranks.time=2", "decompose.ranks.x=2"))
    exists: dict[str, Any] = json.loads(result.stdout)["exists"]
    assert exists["tucker"] == "to do"
    assert json.loads(run("plan", made, "--json").stdout)["exists"]["tucker"] == "finished"


@pytest.mark.parametrize(
    "verb", ["anchor", "align", "normalise", "train", "generate", "evaluate", "register", "report"]
)
def test_a_stage_before_its_time_says_which_comes_first(tmp_path: Path, verb: str) -> None:
    recipe = write_recipe(tmp_path)
    refused(run(verb, recipe), "Run `diffats decompose RECIPE.toml` first.")
    assert not (tmp_path / "root").exists()


# --- training that diverges -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_that_turns_nan_keeps_its_checkpoint_and_goes_on_with_a_lower_rate(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for verb in ("decompose", "anchor", "align", "normalise"):
        assert run(verb, recipe).exit_code == 0
    wild = ("train.lr=1e30", "train.warmup=0", "train.clip=1e38", "train.checkpoint_every=1", "train.log_every=1")
    refused(
        run("train", recipe, overrides=wild), "loss, gradient or weights are not finite between steps", CODES[FAILED]
    )
    again = run("train", recipe, overrides=wild)
    refused(again, "Lower train.lr (now 1e+30) or train.clip (now 1e+38), or lengthen train.warmup.", CODES[FAILED])
    assert "The last good checkpoint is " in again.stderr
    kept = sorted((tmp_path / "root" / "training").glob("*/checkpoint-*/model.safetensors"))
    assert kept
    for path in kept:
        assert all(bool(x.isfinite().all()) for x in load_file(path).values())
    assert not list((tmp_path / "root").glob("bundles/*"))
    refused(run("generate", recipe, overrides=wild), "has no trained model for this recipe. Run `diffats train")
    assert run("train", recipe).exit_code == 0
    assert run("generate", recipe).exit_code == 0


# --- numbers that are none ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("equal", ["values", "samples"])
def test_data_without_variation_show_no_nan_as_a_number(tmp_path: Path, equal: str) -> None:
    data = waves()
    u = data["u"].values
    data["u"][:] = 5 if equal == "values" else u[:1]
    recipe = write_recipe(tmp_path, data)
    for verb in ("decompose", "anchor", "align", "normalise", "train", "generate", "evaluate"):
        made = run(verb, recipe, "--json")
        assert made.exit_code == 0, made.output
        assert not re.search(r"NaN|Infinity", made.stdout)
    figures = json.loads(next((tmp_path / "root" / "evaluation").glob("*.json")).read_text(encoding="utf-8"))
    assert figures["anomaly_error"]["value"] is None
    assert figures["anomaly_error"]["training_mean"] is None
    assert figures["crps"]["value"] is not None


def test_generated_samples_that_are_not_finite_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    for verb in ("decompose", "anchor", "align", "normalise", "train"):
        assert run(verb, recipe).exit_code == 0
    real = Bundle.generate

    def spoilt(self: Bundle, *arguments: Any, **options: Any) -> Any:
        streams = real(self, *arguments, **options)
        streams["core"][1] = np.nan
        streams["core"][3], streams["factor_x"][3] = 3e38, 9.0  # finite, but its field is not
        return streams

    monkeypatch.setattr(Bundle, "generate", spoilt)
    made = run("generate", recipe)
    assert made.exit_code == 3
    assert "warning: 2 of 6 generated samples are not finite and are left out: train longer" in made.stderr
    version = Store.open(tmp_path / "root" / "samples").latest("samples")
    assert version is not None
    dataset = version.dataset()
    bad = dataset["status"].values != STATUS["ok"]
    assert np.flatnonzero(bad).tolist() == [1, 3]
    assert np.isfinite(dataset["u"].values[~bad]).all()


# --- guards of the decomposition ----------------------------------------------------------------------------------


def test_factors_that_are_not_orthonormal_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decompose.decompose

    def skewed(*arguments: Any) -> Any:
        streams, tucker = real(*arguments)
        streams["factor_x"][2, :, 1] = streams["factor_x"][2, :, 0]
        return streams, tucker

    monkeypatch.setattr(decompose, "decompose", skewed)
    made = run("decompose", write_recipe(tmp_path), overrides=("data.max_failed=0.1",))
    assert made.exit_code == 3
    assert "2 (not_converged)" in made.stderr
