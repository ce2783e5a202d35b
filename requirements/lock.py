"""Renew the lock: ``make lock``, which is ``python -m requirements.lock``.

Writes ``lock.txt``, with hashes, and ``torch.txt``: torch and what only torch needs, without hashes, since its builds
for one release (CPU, CUDA) are different files that need different packages. ``quality.txt`` and ``team.txt`` are what
the extras of these names need beside them. All hold for every supported Python, for Linux on x86-64 and arm64, and for
macOS.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from requirements.install import EXTRAS, find_uv, uv_settings

HERE = Path(__file__).resolve().parent
OLDEST = "3.11"
PYTHONS = (OLDEST, "3.12", "3.13", "3.14")
# As uv calls them; torch has wheels for macOS from 14 on.
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
HEADER = "# Made by `make lock` from pyproject.toml and held.txt, installed by install.py. Do not edit.\n"


def main() -> None:
    """Resolve, check, split and write."""
    entries = resolve(["--constraint", str(HERE / "held.txt")], "dev")
    pins = [pin_of(entry) for entry in entries]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        more = {extra: resolve(["--constraint", file.name], "dev", extra) for extra in EXTRAS}
    for found in more.values():
        check_wheels([pin_of(entry) for entry in found])
    torch, locked = only_for("torch", entries), {name_of(entry) for entry in entries}
    write("lock", [entry for entry in entries if name_of(entry) not in torch])
    write("torch", [pin_of(entry) for entry in entries if name_of(entry) in torch])
    for extra, found in more.items():
        write(extra, [entry for entry in found if name_of(entry) not in locked])


def write(name: str, entries: list[str]) -> None:
    """One of the files that are installed."""
    (HERE / f"{name}.txt").write_text(HEADER + "\n".join(entries) + "\n", encoding="utf-8")


def resolve(options: list[str], *extras: str) -> list[str]:
    """Entries of a requirements file: pins with hashes, and comments on what needs them."""
    asked = [option for extra in extras for option in ("--extra", extra)]
    made = uv_compile(
        *("--universal", "--python-version", OLDEST, "--generate-hashes", "--no-header", *asked, *options),
        str(HERE.parent / "pyproject.toml"),
    )
    return re.split(r"\n(?=[A-Za-z0-9])", made.strip())


def check_wheels(pins: list[str]) -> None:
    """Refuse a release that some platform would have to build: hold an older one in held.txt."""
    for python in PYTHONS:
        for platform in PLATFORMS:
            where = ("--python-version", python, "--python-platform", platform)
            uv_compile("--no-deps", "--only-binary", ":all:", *where, "-", given="\n".join(pins))


def uv_compile(*options: str, given: str = "") -> str:
    """What ``uv pip compile`` prints; its errors go to this terminal."""
    uv = find_uv()
    if uv is None:
        sys.exit("uv could not be had, which resolves the lock.")
    line = [uv, "pip", "compile", "--quiet", *options]
    settings = uv_settings()
    for own in ("UV_INDEX", "UV_INDEX_STRATEGY", "UV_FIND_LINKS"):  # what one machine has beside the package index
        settings.pop(own, None)
    environment = {**os.environ, **MACOS, **settings}
    done = subprocess.run(line, input=given, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def only_for(package: str, entries: list[str]) -> set[str]:
    """The package and all that nothing else needs, from the comments that say what each is needed by."""
    needed_by = {}
    for entry in entries:
        needed_by.setdefault(name_of(entry), set()).update(parents_of(entry))
    found = {package}
    while True:
        more = {name for name, parents in needed_by.items() if parents and parents <= found} - found
        if not more:
            return found
        found |= more


def name_of(entry: str) -> str:
    """Name of a package.

    >>> name_of("torch==2.13.0 ; python_version < '4'")
    'torch'
    """
    return re.match(r"[A-Za-z0-9._-]+", entry)[0]  # type: ignore[index]


def pin_of(entry: str) -> str:
    """Name, version and marker.

    >>> pin_of("torch==2.13.0 ; x == 'y' \\\\\\n    --hash=sha256:0\\n    # via diffats")
    "torch==2.13.0 ; x == 'y'"
    """
    return entry.splitlines()[0].rstrip("\\ ")


def parents_of(entry: str) -> set[str]:
    """What needs a package.

    >>> sorted(parents_of("a==1 \\\\\\n    --hash=sha256:0\\n    # via\\n    #   b\\n    #   diffats (pyproject.toml)"))
    ['b', 'diffats']
    """
    comments = [line.strip().lstrip("# ") for line in entry.splitlines() if line.strip().startswith("#")]
    words = [line.removeprefix("via").strip().partition(" ")[0] for line in comments]
    return {word.partition("[")[0] for word in words if word and not word.startswith("-")}


if __name__ == "__main__":
    main()
