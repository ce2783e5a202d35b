"""What `make setup` runs: which installer, with whose settings, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from requirements import install


def a_uv(folder: Path, says: str, code: int = 0) -> str:
    """A program called uv that answers ``--version``."""
    folder.mkdir(exist_ok=True)
    (folder / "uv").write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    (folder / "uv").chmod(0o755)
    return str(folder / "uv")


@pytest.mark.parametrize(
    ("says", "code", "good"),
    [
        ("uv 0.13.9 (x86_64-unknown-linux-gnu)", 0, True),
        ("uv 1.0.0", 0, True),
        ("uv 0.7.22", 0, False),
        ("uv 0.13.9", 1, False),
        ("no words", 0, False),
        ("", 0, False),
    ],
)
def test_a_uv_that_is_old_or_does_not_start_is_not_used(tmp_path: Path, says: str, code: int, good: bool) -> None:
    assert install.works(a_uv(tmp_path, says, code)) == good


def test_a_uv_that_is_no_program_is_not_used(tmp_path: Path) -> None:
    assert not install.works(str(tmp_path / "uv"))
    (tmp_path / "uv").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "uv").chmod(0o755)
    assert not install.works(str(tmp_path / "uv"))


def test_uv_on_the_path_is_taken_unless_pip_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.sys, "prefix", str(tmp_path / "venv"))
    uv = a_uv(tmp_path / "bin", "uv 0.13.9")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert install.find_uv() == uv
    monkeypatch.setenv("INSTALLER", "pip")
    assert install.find_uv() is None


@pytest.fixture
def pip_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of pip's settings that wins over this machine's."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    return tmp_path / "pip.conf"


def test_pips_settings_are_handed_to_uv(pip_says: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_says.write_text(
        "[global]\nindex-url = https://mirror.example/simple\ncert = /ca.pem\nfind-links = /old\n"
        "[install]\nfind-links =\n    /wheels\n    /more\n[wheel]\nfind-links = /other\n"
    )
    settings = install.uv_settings()
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["SSL_CERT_FILE"] == "/ca.pem"
    assert settings["UV_FIND_LINKS"] == "/wheels,/more"
    monkeypatch.setenv("PIP_FIND_LINKS", "/mine /yours")
    assert install.uv_settings()["UV_FIND_LINKS"] == "/mine,/yours"


def test_what_is_set_for_uv_stays_and_several_indexes_are_as_pip_has_them(
    pip_says: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_says.write_text(
        "[global]\nindex-url = https://a.example/simple\n[install]\nextra-index-url = https://b.example/simple\n"
    )
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.example/simple")
    settings = install.uv_settings()
    assert "UV_DEFAULT_INDEX" not in settings
    assert settings["UV_INDEX"] == "https://b.example/simple"
    assert settings["UV_INDEX_STRATEGY"] == "unsafe-best-match"


@pytest.mark.parametrize("uv", [None, "uv"])
def test_only_torch_is_not_taken_as_it_is_locked(uv: str | None) -> None:
    first, torch, own = install.steps("locked", uv, [])
    assert "--no-deps" in first
    assert "--no-deps" in own
    assert torch[torch.index("--constraint") + 1].endswith("torch.txt")
    assert torch[-1] == "torch"
    for extra in install.EXTRAS:
        (step,) = install.steps(extra, uv, [])
        assert "--no-deps" in step
        assert step[-1].endswith(f"{extra}.txt")


@pytest.mark.parametrize(
    ("wanted", "what", "uv", "words"),
    [
        ("gpu", "locked", "uv", "TORCH=cpu"),
        ("", "newest", "uv", "highest or lowest-direct"),
        ("", "highest", None, "Without uv"),
        ("cpu", "locked", None, "PIP_FIND_LINKS"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(wanted: str, what: str, uv: str | None, words: str) -> None:
    assert words in str(install.refusal(wanted, what, uv))
    assert install.refusal("", "locked", uv) is None


@pytest.mark.parametrize("what", ["locked", *install.RESOLUTIONS])
def test_uv_has_the_options_that_are_used(what: str) -> None:
    uv = install.find_uv()
    if uv is None:
        pytest.skip("this environment was made with pip")
    for step in install.steps(what, uv, ["--torch-backend", "cpu"]):
        line = [*step, "--dry-run", "--offline", "--no-cache"]
        told = subprocess.run(line, capture_output=True, text=True, check=False).stderr
        assert "unexpected argument" not in told
    wrong = subprocess.run([*line, "--torch-frontend"], capture_output=True, text=True, check=False).stderr
    assert "unexpected argument" in wrong  # by which a wrong option is known
