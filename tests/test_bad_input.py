"""What users get wrong: exit code 2 and one message that says what, where, expected, got and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from tiny_recipe import waves, write_recipe
from typer.testing import CliRunner, Result

from diffats.cli import app
from diffats.store import STATUS, Store

Change = Callable[[xr.Dataset], xr.Dataset]


def run(*arguments: object, overrides: tuple[str, ...] = ()) -> Result:
    options = [word for override in overrides for word in ("--set", override)]
    return CliRunner().invoke(app, [*map(str, arguments), *options])


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


# --- recipes against good data ----------------------------------------------------------------------------------

CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "missing source": (
        ("data.source={dir}/tinny.nc",),
        'data.source names "tinny.nc", which the folder {dir} does not have',
    ),
    "source near by": (("data.source={dir}/tinny.nc",), 'Did you mean "tiny.nc"?'),
    "missing folder": (("data.source={dir}/no/where.nc",), 'data.source "{dir}/no/where.nc" does not exist. Check'),
    "glob of nothing": (
        ("data.source={dir}/*.grib",),
        'data.source "{dir}/*.grib" matches no file. Check the pattern.',
    ),
    "unreadable source": (
        ("data.source={dir}/garbage.nc",),
        'data.source "{dir}/garbage.nc" cannot be read as netcdf: ',
    ),
    "unreadable zarr": (("data.source={dir}/empty.zarr",), "is a folder, but neither a Zarr store nor an Icechunk"),
    "unknown builtin": (('data.source="builtin:indian-pine"',), "indian-pines"),
    "unknown group": (("data.group=run7",), 'group "run7", cannot be read as h5netcdf'),
    "unknown variable": (
        ('data.variables=["uu"]',),
        'data.variables names "uu", which the source does not have (it has: u). Did you mean "u"?',
    ),
    "unknown mode": (
        ('data.modes=["time","xx"]', "decompose.ranks={{time=2,xx=2}}"),
        'data.modes names "xx", which variable "u" does not have (it has: sample, time, x). Did you mean "x"?',
    ),
    "unknown sample dim": (("data.sample_dim=run",), 'data.sample_dim names "run", which variable "u" does not have'),
    "a mode named sample": (
        (
            "data.sample_dim=time",
            'data.modes=["x","sample"]',
            "decompose.ranks={{x=2,sample=2}}",
            "data.condition={{}}",
        ),
        'data.modes names "sample", a name that the stores use. Rename the dim in the source.',
    ),
    "mode named twice": (
        ('data.modes=["time","time"]',),
        'mode "time" is named twice in data.modes. Name each dim once.',
    ),
    "window too large": (
        ("data.windows.size={{x=9}}",),
        'data.windows.size 9 for dim "x" exceeds its length 8 (field: time=6, x=8). Use at most 8.',
    ),
    "window of nothing": (("data.windows.size={{x=0}}",), 'size 0 for dim "x" is not positive. Use at least 1.'),
    "window of no mode": (
        ("data.windows.size={{y=4}}",),
        'windows cut dim "y", which data.modes does not name. Add it to data.modes.',
    ),
    "nothing makes samples": (
        ("data.sample_dim=",),
        "nothing makes samples. Set data.sample_dim, or data.windows.size to cut windows.",
    ),
    "too few training samples": (
        ("data.split.test=0.97",),
        'data.split by "sample" leaves 1 training and 23 test samples of 24 (0 dropped), and at least 2 and 1 are',
    ),
    "split value unknown": (
        ("data.split.by=coordinate", "data.split.coordinate=sample", "data.split.values=[99]"),
        'data.split.values holds 99.0, which coordinate "sample" does not take.',
    ),
    "block too small": (
        ("data.windows.size={{x=4}}", "data.split.by=block", "data.split.block={{x=2}}"),
        'data.split.block 2 for dim "x" is below the window size 4: no window fits in a block. Use at least 4.',
    ),
    "unknown label": (
        ("data.condition.labels=kind",),
        'data.condition.labels names "kind", which the source does not have',
    ),
    "initial outside": (
        ("data.condition.initial.index=6",),
        'data.condition.initial.index 6 is outside dim "time" of size 6. Use 0 to 5.',
    ),
    "rank above size": (
        ("decompose.ranks.time=40",),
        'rank 40 for mode "time" exceeds its size 6 (sample: time=6, x=8). Use at most 6, or set decompose.tolerance.',
    ),
    "rank above product": (
        ("decompose.ranks.time=2",),
        'rank 3 for mode "x" exceeds the product 2 of the other ranks (sample: time=6, x=8; a mode without rank counts '
        "with its size). Use at most 2, or set decompose.tolerance.",
    ),
    "rank of nothing": (("decompose.ranks.time=0",), 'rank 0 for mode "time" is not positive. Use at least 1.'),
    "rank of no mode": (("decompose.ranks.y=2",), 'decompose.ranks names "y", which is no mode (time, x).'),
    "tolerance too large": (
        ("decompose={{tolerance=1.5}}",),
        '"decompose.tolerance": expected a number less than 1, got 1.5 (relative error from which ranks are found).',
    ),
    "tolerance of zero": (
        ("decompose={{tolerance=0}}",),
        '"decompose.tolerance": expected a number greater than 0, got 0',
    ),
    "patch does not divide": (
        ('primitive={{kind="mgp",patch={{time=4,x=4}},rank=2}}', "decompose={{}}"),
        'patch 4 does not divide the size 6 of mode "time" (sample: time=6, x=8). Use a divisor of 6, such as 3,',
    ),
    "rank above pixels": (
        ('primitive={{kind="mgp",patch={{time=2,x=2}},rank=5}}', "decompose={{}}"),
        'rank 5 for mode "pixel" exceeds its size 4',
    ),
    "unknown key": (("train.stepps=3",), 'unknown key "train.stepps". The nearest known key is "train.steps".'),
    "unknown section": (("ranks.x=3",), 'unknown key "ranks". The nearest known key is "decompose.ranks".'),
    "no override": (("train.steps",), 'override "train.steps" is not of the form section.key=value.'),
    "wrong type": (("model.width=wide",), '"model.width": expected a whole number, got "wide" (default 128).'),
    "not enough memory": (
        ("compute.memory=2KiB",),
        "compute.memory is 2KiB, of which 1.6 KiB can be used (Dask's own margin is the rest). One needs 640.0 MiB: "
        "raise compute.memory.",
    ),
    "anchor is a test sample": (
        ("anchor.strategy=index", "anchor.index=99"),
        "anchor.index 99 is not one of 24 samples.",
    ),
    "root is a file": (("root={dir}/tiny.nc",), '"{dir}/tiny.nc" is a file. Use another root.'),
    "root is a URL": (("root=s3://bucket/a",), 'root "s3://bucket/a" is a URL. Use a local directory for root.'),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that works, with things beside it that do not; nothing may be made here."""
    directory = tmp_path_factory.mktemp("good")
    (directory / "garbage.nc").write_bytes(b"this is no data at all")
    (directory / "empty.zarr").mkdir()
    return write_recipe(directory)


@pytest.mark.parametrize("verb", ["plan", "decompose"])
@pytest.mark.parametrize("case", CASES)
def test_a_mistake_in_the_recipe(good: Path, case: str, verb: str) -> None:
    overrides, message = CASES[case]
    place = {"dir": good.parent}
    before = sorted(good.parent.rglob("*"))
    result = run(verb, good, overrides=tuple(override.format(**place) for override in overrides))
    refused(result, message.format(**place) if "{dir}" in message else message)
    assert sorted(good.parent.rglob("*")) == before  # nothing half-made


@pytest.mark.parametrize("content", ["name = ", "name = 'a'\nname = 'b'", b"\xff\xfe"])
def test_a_recipe_that_is_not_toml(tmp_path: Path, content: str | bytes) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_bytes(content.encode() if isinstance(content, str) else content)
    refused(run("plan", recipe), f"recipe {recipe}")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    recipe = tmp_path / "no.toml"
    refused(run("decompose", recipe), f"recipe {recipe}: No such file or directory. Give the path of a TOML file.")


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
    refused(run("plan", good, overrides=overrides), message)


def test_an_aligned_mode_that_is_too_long(tmp_path: Path) -> None:
    long = xr.Dataset({"u": (("sample", "time", "x"), np.ones((6, 2, 5000), np.float32))})
    recipe = write_recipe(tmp_path, long)
    for verb in ("plan", "decompose"):
        refused(
            run(verb, recipe, overrides=("decompose.ranks={time=2,x=2}",)),
            'aligned mode "x" has 5000 points, at most 4096 can be aligned. Leave "x" out of align.modes, or cut it',
        )


# --- data -------------------------------------------------------------------------------------------------------


def only_two(data: xr.Dataset) -> xr.Dataset:
    return data.isel(sample=slice(2))


def empty(data: xr.Dataset) -> xr.Dataset:
    return data.isel(sample=slice(0))


def text(data: xr.Dataset) -> xr.Dataset:
    return data.assign(u=data.u.astype(str))


def extra_dim(data: xr.Dataset) -> xr.Dataset:
    return data.assign(u=data.u.expand_dims(level=2))


DATA: dict[str, tuple[Change, str]] = {
    "two samples": (only_two, "data: 2 samples come from"),
    "no samples": (empty, 'data.variables: "u" is empty: dim "sample" has size 0. Check data.source.'),
    "text": (text, "expected real numbers. Name another variable, or convert it"),
    "a dim too many": (
        extra_dim,
        '"u" has dim "level" of size 2, which is neither data.sample_dim nor a mode (time, x)',
    ),
}


@pytest.mark.parametrize("verb", ["plan", "decompose"])
@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_work(tmp_path: Path, case: str, verb: str) -> None:
    change, message = DATA[case]
    recipe = write_recipe(tmp_path, change(waves()))
    refused(run(verb, recipe), message)
    assert not (tmp_path / "root").exists()


def test_overlapping_test_samples_are_warned_of(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    overlapping = ("data.windows.size={x=4}", "data.windows.stride={x=2}")
    result = run("plan", recipe, overrides=overlapping)
    assert result.exit_code == 0
    assert 'warning: data.split.by = "sample" with a stride below the window size: ' in result.stderr
    assert "test samples overlap training samples, so test figures look better than they are. Use by" in result.stderr
    assert "overlap" not in run("plan", recipe, overrides=("data.windows.size={x=4}",)).stderr


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
