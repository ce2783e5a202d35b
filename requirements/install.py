"""Install what the lock names into this interpreter's environment: ``python requirements/install.py``.

Runs with the standard library alone, before anything is installed. Every package comes in the version that is locked,
so nothing is resolved here and no newer release of others can stand in the way. uv installs, ten times as fast as pip;
it is taken from PATH, or the pinned release from the package index. Where uv cannot be had, pip installs from the same
lock. pip's settings (index, find-links, certificate) hold for both.

Torch is a step of its own: a CPU build from a directory that pip was told of (PIP_FIND_LINKS) is taken where it fits,
``TORCH=cpu`` asks PyTorch's index for one, and otherwise the package index decides, which has the CUDA build for Linux.

``python requirements/install.py highest`` (or ``lowest-direct``) resolves instead, to the newest or the oldest releases
that pyproject.toml allows: for tests of its ranges.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = "uv==0.13.9"
LOCK, TORCH_LOCK = HERE / "lock.txt", HERE / "torch.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
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
OLDEST_UV = (0, 8)  # older ones lack options that are used here


def main() -> int:
    """Install, and say how long it took."""
    started = time.monotonic()
    wanted = os.environ.get("TORCH", "")
    if wanted not in ("", "cpu"):
        print(f'TORCH is "{wanted}". Leave it out, or use TORCH=cpu.', file=sys.stderr)
        return 2
    uv, resolution = find_uv(), sys.argv[1] if sys.argv[1:] else None
    if resolution and not uv:
        print("Without uv only the locked packages can be installed.", file=sys.stderr)
        return 2
    install = with_uv(uv) if uv else with_pip()
    print(f"Installing into {sys.prefix} with {'uv' if uv else 'pip'}: {expected(bool(uv))}", flush=True)
    if not wanted and without_gpu():
        print(
            "This machine shows no NVIDIA GPU. Stop here (Ctrl-C), and `make setup TORCH=cpu` takes the small build of"
        )
        print("torch; the package index has the CUDA build, 3 GB.", flush=True)
    torch, here = torch_source(wanted, bool(uv)), str(HERE.parent)
    steps = [
        [*install, "--no-deps", "--requirement", str(LOCK)],
        [*install, "--constraint", str(TORCH_LOCK), *torch, "torch"],
        [*install, "--no-deps", "--no-build-isolation", "--editable", here],
    ]
    if resolution:
        steps = [[*install, "--resolution", resolution, *torch, "--editable", f"{here}[dev]"]]
    environment = {**os.environ, **(uv_settings() if uv else {})}
    for step in steps:
        done = subprocess.run(step, env=environment, check=False)
        if done.returncode:
            print(f"Failed: {' '.join(step)}", file=sys.stderr)
            return done.returncode
    print(f"Installed in {time.monotonic() - started:.0f} s", flush=True)
    return 0


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
    numbers = [int(part) for part in (said.stdout.split() or ["", ""])[1].split(".")[:2] if part.isdecimal()]
    return said.returncode == 0 and tuple(numbers) >= OLDEST_UV


def pip() -> list[str]:
    """This environment's pip."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def with_uv(uv: str) -> list[str]:
    """uv's command. It compiles bytecode as pip does: else the first import would, with warnings of others' sources."""
    return [uv, "pip", "install", "--quiet", "--python", sys.executable, "--compile-bytecode"]


def with_pip() -> list[str]:
    """pip's command."""
    return [*pip(), "install", "--quiet"]


def torch_source(wanted: str, uv: bool) -> list[str]:
    """Where torch comes from, if not from where all else does."""
    if wanted != "cpu":
        return []
    return ["--torch-backend", "cpu"] if uv else ["--extra-index-url", CPU_INDEX]


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


def expected(uv: bool) -> str:
    """How long it takes."""
    return "about a minute beside the downloads" if uv else "about four minutes beside the downloads"


if __name__ == "__main__":
    sys.exit(main())
