"""Install what the lock names into this interpreter's environment: ``python requirements/install.py``.

Runs with the standard library alone, before anything is installed. Every package comes in the version that is locked,
so nothing is resolved here and no newer release of others can stand in the way. uv installs, ten times as fast as pip;
it is taken from PATH, or the pinned release from the package index. Where uv cannot be had, pip installs from the same
lock. pip's settings (index, find-links, certificate) hold for both.

Torch is a step of its own: a CPU build from a directory that pip was told of (PIP_FIND_LINKS) is taken where it fits,
``TORCH=cpu`` has uv ask PyTorch's index for one, and otherwise the package index decides, which has the CUDA build for
Linux.

One argument does something else: ``quality`` or ``team`` adds what that extra needs; ``highest`` or ``lowest-direct``
resolves to the newest or the oldest releases that pyproject.toml allows, for tests of its ranges.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = "uv==0.13.9"
# What uv reads in place of pip's options of the same meaning.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "proxy": "HTTPS_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
}
RESOLUTIONS = ("highest", "lowest-direct")
EXTRAS = ("quality", "team")  # which have a file of their own, of what they need beside lock.txt
NO_GPU = """\
No NVIDIA GPU is seen here, and the package index has torch's CUDA build for Linux, 3 GB.
For the small build stop here (Ctrl-C), and run: make setup TORCH=cpu"""
OLDEST_UV = (0, 8)  # older ones lack options that are used here


def main() -> int:
    """Install, and say how long it took."""
    started = time.monotonic()
    wanted, what = os.environ.get("TORCH", ""), sys.argv[1] if sys.argv[1:] else "locked"
    uv = find_uv()
    problem = refusal(wanted, what, uv)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    print(f"Installing into {sys.prefix} with {'uv' if uv else 'pip'}: {expected(uv)}", flush=True)
    if what == "locked" and not wanted and without_gpu():
        print(NO_GPU, flush=True)
    environment = {**os.environ, **(uv_settings() if uv else {})}
    for step in steps(what, uv, ["--torch-backend", "cpu"] if wanted else []):
        done = subprocess.run(step, env=environment, check=False)
        if done.returncode:
            print(f"Failed: {' '.join(step)}", file=sys.stderr)
            return done.returncode
    print(f"Installed in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def refusal(wanted: str, what: str, uv: str | None) -> str | None:
    """Why this cannot be done; None where it can."""
    if wanted not in ("", "cpu"):
        return f'TORCH is "{wanted}". Leave it out, or use TORCH=cpu.'
    if what not in ("locked", *EXTRAS, *RESOLUTIONS):
        return f'There is no "{what}" to install. Leave it out, or use {", ".join(EXTRAS)}, {" or ".join(RESOLUTIONS)}.'
    if uv is None and what in RESOLUTIONS:
        return "Without uv only the locked packages can be installed."
    if uv is None and wanted:
        return (
            "uv could not be had, which knows where torch's CPU builds are. Download one for this Python, and run: "
            "PIP_FIND_LINKS=ITS_DIRECTORY make setup"
        )
    return None


def steps(what: str, uv: str | None, torch: list[str]) -> list[list[str]]:
    """The commands that install: none of the first kind resolves anything."""
    install = with_uv(uv) if uv else with_pip()
    if what in RESOLUTIONS:
        return [[*install, "--resolution", what, *torch, "--editable", f"{HERE.parent}[dev]"]]
    if what in EXTRAS:
        return [[*install, "--no-deps", "--requirement", str(HERE / f"{what}.txt")]]
    return [
        [*install, "--no-deps", "--requirement", str(HERE / "lock.txt")],
        [*install, "--constraint", str(HERE / "torch.txt"), *torch, "torch"],
        [*install, "--no-deps", "--no-build-isolation", "--editable", str(HERE.parent)],
    ]


def find_uv() -> str | None:
    """The uv on PATH or in this environment, installed there where it is missing; None where it cannot be had."""
    if os.environ.get("INSTALLER") == "pip":
        return None
    own = Path(sys.prefix) / "bin" / "uv"
    found = str(own) if own.is_file() else shutil.which("uv")
    if found and works(found):
        return found
    wheel = [*pip(), "install", "--quiet", "--quiet", "--no-deps", "--only-binary", ":all:", UV]
    done = subprocess.run(wheel, check=False)
    return str(own) if done.returncode == 0 and works(str(own)) else None


def works(uv: str) -> bool:
    """Whether this uv starts on this machine, and is not too old."""
    try:
        said = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    version = re.match(r"uv (\d+)\.(\d+)", said.stdout)
    return said.returncode == 0 and version is not None and (int(version[1]), int(version[2])) >= OLDEST_UV


def pip() -> list[str]:
    """This environment's pip."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def with_uv(uv: str) -> list[str]:
    """uv's command. It compiles bytecode as pip does: else the first import would, with warnings of others' sources."""
    return [uv, "pip", "install", "--quiet", "--python", sys.executable, "--compile-bytecode"]


def with_pip() -> list[str]:
    """pip's command."""
    return [*pip(), "install", "--quiet"]


def uv_settings() -> dict[str, str]:
    """pip's settings from its files and environment, as uv reads them; what is set for uv already stays."""
    settings = {PIP_TO_UV[key]: value for key, value in pip_settings().items() if key in PIP_TO_UV}
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = ",".join(settings["UV_FIND_LINKS"].split())
    if "UV_INDEX" in settings:  # pip's rule for several indexes; the lock's hashes tell a package from its namesake
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {name: value for name, value in settings.items() if name not in os.environ}


def pip_settings() -> dict[str, str]:
    """pip's settings for installing: the environment's win over the files' of `install`, these over `global`'s."""
    listed = subprocess.run([*pip(), "config", "list"], capture_output=True, text=True, check=False).stdout
    pairs = [line.partition("=") for line in listed.splitlines()]
    found = {}
    for section in ("global", "install", ":env:"):
        for name, _, value in pairs:
            if name.startswith(f"{section}."):
                found[name.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ").strip()
    return found


def without_gpu() -> bool:
    """Whether the package index would give a CUDA build to a machine without an NVIDIA driver."""
    driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    return platform.system() == "Linux" and not driver and "find-links" not in pip_settings()


def expected(uv: str | None) -> str:
    """How long it takes."""
    return "about a minute beside the downloads" if uv else "about four minutes beside the downloads"


if __name__ == "__main__":
    sys.exit(main())
