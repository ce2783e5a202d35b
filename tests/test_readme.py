"""What the README says is so: its recipes open data and plan, its commands, options, keys and files exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr
import yaml
from typer.testing import CliRunner

import diffats
from diffats import cli
from diffats.config import known_keys, parse_recipe

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Lines of shell blocks and inline code, without comments."""
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))
    shell = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.partition(" #")[0].strip() for line in [*shell, *inline] if line.strip()]


RECIPES = {tomllib.loads(block)["name"]: block for block in blocks("toml")}
VERBS = typer.main.get_command(cli.app).commands


# --- recipes ----------------------------------------------------------------------------------------------------


def make_series() -> None:
    code = next(block for block in blocks("python") if "series.nc" in block)
    assert "periods=4800" in code
    exec(compile(code.replace("periods=4800", "periods=1200"), "README.md", "exec"), {})


def make_flow() -> None:
    rng = np.random.default_rng(0)
    waves = np.cos(np.arange(10)[:, None, None] * 0.3 + np.arange(12)[:, None] * 0.2 + np.arange(14) * 0.1)
    fields = {name: (("run", "time", "y", "x"), rng.normal(size=(20, 1, 1, 1)) + waves[None]) for name in ("u", "v")}
    dataset = xr.Dataset(fields, {"viscosity": ("run", np.logspace(-4, -1, 20))})
    dataset.to_zarr("simulations.zarr", zarr_format=3, consolidated=False)


def make_ocean() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 3, 10, 12)).cumsum(axis=0).astype(np.float32)
    x[:, :, :2, :3] = np.nan
    time = xr.date_range("2000-01-01", periods=240, freq="D", calendar="360_day", use_cftime=True)
    dataset = xr.Dataset({"temperature": (("time", "level", "lat", "lon"), x, {"units": "K"})}, {"time": time})
    Path("ocean").mkdir()
    for year in range(2):
        dataset.isel(time=slice(120 * year, 120 * year + 120)).to_netcdf(f"ocean/{year}.nc", engine="h5netcdf")


def make_lines() -> None:
    np.savez("lines.npz", u=np.random.default_rng(0).normal(size=(20, 40, 64)).cumsum(axis=1))


SOURCES: dict[str, tuple[Callable[[], None], dict[str, int]]] = {
    "series": (make_series, {"time": 12, "lat": 24, "lon": 36}),
    "flow": (make_flow, {"component": 2, "time": 10, "y": 12, "x": 14}),
    "ocean": (make_ocean, {"time": 12, "level": 3, "lat": 10, "lon": 12}),
    "lines": (make_lines, {"time": 40, "x": 64}),
}


def test_every_recipe_is_one_that_this_file_knows() -> None:
    assert set(RECIPES) == set(SOURCES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses(name: str) -> None:
    assert parse_recipe(tomllib.loads(RECIPES[name]), where="README.md").name == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_plans_its_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, sizes = SOURCES[name]
    monkeypatch.chdir(tmp_path)
    make()
    Path(f"{name}.toml").write_text(RECIPES[name], encoding="utf-8")
    outcome = CliRunner().invoke(cli.app, ["plan", f"{name}.toml", "--pilot", "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    made = json.loads(outcome.stdout.splitlines()[-1])
    assert made["sizes"] == sizes
    assert made["train"] > made["test"] >= 2
    assert all(np.isfinite(row["anomaly_error"]) for row in made["pilot"])
    if name == "series":  # its ranks are those of the made waves: what is left is their noise, 0.5 of 8 a wave
        assert made["pilot"][0]["choice"] == "recipe"
        assert made["pilot"][0]["anomaly_error"] < 0.1


# --- commands ---------------------------------------------------------------------------------------------------


def test_every_verb_and_its_options_exist() -> None:
    given = [line.split() for line in commands() if re.match(r"diffats [a-z]", line)]
    assert {words[1] for words in given} >= {"plan", "decompose", "train", "register", "inspect", "export", "config"}
    for words in given:
        assert words[1] in VERBS, f"diffats {words[1]}"
        known = {option for parameter in VERBS[words[1]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, " ".join(words)


@pytest.mark.parametrize("option", ["--set", "--json", "--restart"])
def test_stages_take_the_options_that_the_text_promises(option: str) -> None:
    assert f"`{option}`" in TEXT
    for verb in ("decompose", "anchor", "align", "normalise", "train", "generate", "evaluate", "register", "report"):
        assert option in {name for parameter in VERBS[verb].params for name in parameter.opts}, verb


def test_every_flow_exists() -> None:
    named = set(re.findall(r"\bflows\.\w+", TEXT))
    assert named >= {"flows.end_to_end", "flows.preprocess", "flows.train", "flows.generate"}
    for module in named:
        assert importlib.util.find_spec(module) is not None, module


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {words[1] for line in commands() if (words := line.split())[0] == "make" and len(words) > 1}
    assert named >= {"demo", "test"}
    assert named <= targets


def test_every_recipe_key_in_the_text_exists() -> None:
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    code = " ".join(commands())
    named = {key for key in re.findall(r"\b([a-z]+\.[a-z_.]+)\b", code) if key.partition(".")[0] in sections}
    assert {"train.steps", "data.max_failed"} <= named
    assert named <= set(known_keys())


# --- the example, for real --------------------------------------------------------------------------------------


def series_commands() -> list[str]:
    """The lines of the README that plan, run and look at the series, with few training steps."""
    shell = [line for line in commands() if "series.toml" in line and not line.startswith("diffats config")]
    wanted = ("diffats plan", "python -m flows.end_to_end", "diffats inspect", "diffats verify", "diffats export")
    chosen = [line for line in shell if line.startswith(wanted)]
    assert [sum(line.startswith(one) for line in chosen) for one in wanted] == [1, 2, 2, 1, 1]
    chosen.sort(key=lambda line: next(i for i, one in enumerate(wanted) if line.startswith(one)))
    few = [line.replace("train.steps=200", "train.steps=10") for line in chosen]
    return [f"{line} --set train.steps=20" if line.endswith("flows.end_to_end series.toml") else line for line in few]


@pytest.mark.slow
def test_the_series_example_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    (tmp_path / "series.toml").write_text(RECIPES["series"], encoding="utf-8")
    make, load, use = (
        next(block for block in blocks("python") if word in block)
        for word in ('to_netcdf("series.nc")', "generated.nc", "pyfunc")
    )
    exec(compile(make, "README.md", "exec"), {})
    for line in series_commands():
        done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    exec(compile(load, "README.md", "exec"), {})
    with xr.open_dataset("series.nc") as raw, xr.open_dataset("generated.nc") as made:
        assert made["t2m"].sizes == {"sample": 8, "time": 12, "lat": 24, "lon": 36}
        assert made["t2m"].attrs["units"] == raw["t2m"].attrs["units"] == "K"
        np.testing.assert_array_equal(made["lat"], raw["lat"])
    with xr.open_datatree("series.zarr", engine="zarr") as tree:
        assert {"primitives", "anchor", "samples"} <= {Path(path).name for path in tree.groups}

    # The other data set's name and labels; and so few steps beat no Gaussian, which a champion must.
    for old, new in (("indian-pines", "series"), (', conditions={"label": "woods"}', ""), ("@champion", "@candidate")):
        assert old in use
        use = use.replace(old, new)
    (uri,) = set(re.findall(r"`(sqlite:///[^`]+)`", TEXT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    program = f"{use}\nassert fields is not None\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- Python, files ----------------------------------------------------------------------------------------------


def test_python_blocks_call_what_there_is() -> None:
    from diffats.bundle import Bundle

    for block in blocks("python"):
        ast.parse(block)
    calls = set(re.findall(r"\bmodel\.(\w+)\(", TEXT)) | {"sample"}
    assert calls == {"sample", "encode", "decode"}
    assert all(callable(getattr(Bundle, name)) for name in calls)
    assert set(re.findall(r"\bdiffats\.(\w+)\(", TEXT)) <= set(diffats.__all__)


def test_every_file_that_is_named_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    folders = [name for name in re.findall(r"`([a-z_/]+/)`", TEXT) if not name.startswith("runs/")]
    files = re.findall(r"\b(?:deployments|diffats)/[\w/]+\.\w+", TEXT)
    assert links
    assert folders
    missing = [name for name in (*links, *folders, *files) if not (ROOT / name).exists()]
    assert not missing


def test_the_readme_stays_short() -> None:
    assert len(TEXT.splitlines()) <= 295


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == diffats.__version__
    assert citation["license"] == "Apache-2.0"
    assert "2605.09275" in citation["references"][0]["url"]


def test_the_changelog_has_this_version() -> None:
    assert f"## [{diffats.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licence_is_the_whole_apache_text() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_times_are_those_that_make_test_install_holds_them_to() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command, name in (("demo", "DEMO_MINUTES"), ("test", "TEST_MINUTES")):
        (minutes,) = re.findall(rf"^{name} := (\d+)$", makefile, re.MULTILINE)
        (line,) = re.findall(rf"^make {command} .*$", TEXT, re.MULTILINE)
        assert re.search(rf"\b{minutes} minutes", line)
