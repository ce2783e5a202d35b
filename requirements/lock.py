"""Renew the lock: ``make lock``. Run it in an environment that has uv.

Writes ``lock.txt``, with hashes, and ``torch.txt``: torch and what only torch needs, without hashes, since its builds
for one release (CPU, CUDA) are different files that need different packages. Both hold for every supported Python, for
Linux on x86-64 and arm64, and for macOS.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST = "3.11"
PYTHONS = (OLDEST, "3.12", "3.13", "3.14")
# As uv calls them; torch has wheels for macOS from 14 on.
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
HEADER = "# Made by `make lock` from pyproject.toml{more}; installed by requirements/install.py. Do not edit.\n"


def main() -> None:
    """Resolve, split, check and write."""
    uv = [shutil.which("uv", path=f"{sys.prefix}/bin:{os.environ['PATH']}") or "uv", "pip", "compile"]
    uv += ["--no-config", "--quiet"]
    options = ["--universal", "--python-version", OLDEST, "--extra", "dev", "--generate-hashes", "--no-header"]
    held = ["--constraint", str(HERE / "held.txt")]
    made = subprocess.run(
        [*uv, *options, *held, str(HERE.parent / "pyproject.toml")], capture_output=True, text=True, check=True
    ).stdout
    entries = re.split(r"\n(?=[A-Za-z0-9])", made.strip())
    check_wheels(uv, [pin_of(entry) for entry in entries])
    torch = only_for("torch", entries)
    rest = [entry for entry in entries if name_of(entry) not in torch]
    theirs = [pin_of(entry) for entry in entries if name_of(entry) in torch]
    (HERE / "lock.txt").write_text(HEADER.format(more="") + "\n".join(rest) + "\n", encoding="utf-8")
    note = HEADER.format(more=": torch and what only torch needs")
    (HERE / "torch.txt").write_text(note + "\n".join(theirs) + "\n", encoding="utf-8")


def check_wheels(uv: list[str], pins: list[str]) -> None:
    """Refuse a release that some platform would have to build: hold an older one in held.txt."""
    for python in PYTHONS:
        for platform in PLATFORMS:
            options = ["--no-deps", "--only-binary", ":all:", "--python-version", python, "--python-platform", platform]
            subprocess.run(
                [*uv, *options, "-"],
                input="\n".join(pins),
                text=True,
                stdout=subprocess.DEVNULL,
                check=True,
                env={**os.environ, **MACOS},
            )


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
