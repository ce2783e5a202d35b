"""What is missing is told in one sentence, and the extras hold what the code says they do."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_recipe import write_recipe

import diffats
from diffats import requirements, stages
from diffats.cli import main
from diffats.config import load_recipe
from diffats.errors import MissingPackageError

ROOT = Path(__file__).parents[1]


def absent(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in modules else find_spec(name))


def packages(of: list[str]) -> set[str]:
    """Names of the packages that requirements are of, without this one's own extras."""
    names = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in of}
    return names - {"diffats"}


@pytest.mark.parametrize("extra", requirements.MODULES)
def test_an_extra_holds_what_is_asked_for_and_the_base_does_not(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    asked = {name.lower() for name in requirements.missing(extra)}
    assert asked == packages(project["optional-dependencies"][extra])
    assert not asked & packages(project["dependencies"])


def test_what_is_installed_is_not_missing() -> None:
    requirements.require("everything", *requirements.MODULES)


def test_the_message_names_what_is_missing_for_what_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "ot")
    with pytest.raises(MissingPackageError) as one:
        requirements.require("diffats train", "train", "track")
    assert str(one.value) == ("diffats train needs POT, which is not installed. Run: pip install 'diffats[train]'")
    absent(monkeypatch, "torch", "mlflow")
    with pytest.raises(MissingPackageError) as two:
        requirements.require("diffats train", "train", "track")
    assert str(two.value) == (
        "diffats train needs torch, mlflow, which are not installed. Run: pip install 'diffats[train,track]'"
    )


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "register"])
@pytest.mark.parametrize("module", ["torch", "mlflow"])
def test_a_verb_ends_with_one_sentence_before_anything_is_made(
    verb: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    absent(monkeypatch, module)
    with pytest.raises(SystemExit) as ended:
        main([verb, str(recipe)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: diffats {verb} needs {module}, which is not installed. Run: pip install ")
    assert not (tmp_path / "root").exists()


def test_the_library_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    absent(monkeypatch, "torch", "mlflow")
    with pytest.raises(MissingPackageError, match=r"diffats train needs torch, .*diffats\[train\]"):
        stages.run("train", recipe)
    with pytest.raises(MissingPackageError, match=r"a registered model needs mlflow, .*diffats\[track\]"):
        diffats.load("models:/tiny@champion")
    with pytest.raises(MissingPackageError, match="tracking needs mlflow"), stages.tracked(recipe):
        pass
