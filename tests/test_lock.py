"""The lock fits pyproject's ranges, in every environment that is supported, and this environment is what it says."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED = ("lock.txt", "torch.txt", "quality.txt", "team.txt")
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PLATFORMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]


def pins(environment: dict[str, str]) -> dict[str, Version]:
    found: dict[str, Version] = {}
    for name in LOCKED:
        for line in (HERE / "requirements" / name).read_text(encoding="utf-8").splitlines():
            if re.match("[A-Za-z0-9]", line):
                pin = Requirement(line.rstrip("\\ "))
                if pin.marker is None or pin.marker.evaluate(environment):
                    (exact,) = pin.specifier
                    assert exact.operator == "==", line
                    assert found.setdefault(canonicalize_name(pin.name), Version(exact.version)) == Version(
                        exact.version
                    ), f"{pin.name} is locked twice for {environment['python_version']}"
    return found


def wanted(extra: str) -> list[Requirement]:
    """What an extra names, extras of diffats itself followed."""
    found = []
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "diffats":
            found += [more for inner in requirement.extras for more in wanted(inner)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS, ids="-".join)
def test_the_lock_is_within_the_ranges(python: str, platform: tuple[str, str]) -> None:
    system, processor = platform
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        "platform_machine": processor,
        "os_name": "posix",
    }
    locked = pins(environment)
    for requirement in [
        *map(Requirement, PROJECT["dependencies"]),
        *wanted("dev"),
        *wanted("quality"),
        *wanted("team"),
    ]:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = locked.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} is not locked for Python {python} on {system}: make lock"
            assert version in requirement.specifier, f"{requirement} is locked at {version}: make lock"


def test_every_package_but_torchs_has_hashes() -> None:
    text = (HERE / "requirements" / "lock.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_oldest_python_is_the_one_that_the_lock_was_made_for() -> None:
    from requirements.lock import OLDEST

    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={OLDEST}")


def test_what_is_installed_fits_together() -> None:
    """All requirements of all that is installed, of diffats and its extras too."""
    for requirement in wanted("dev"):
        assert Version(importlib.metadata.version(requirement.name)) in requirement.specifier, requirement
    checked = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
