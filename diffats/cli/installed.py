"""What is installed here: diffats, Python, torch and the device that it would use, without importing torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_NVIDIA = Path("/proc/driver/nvidia/gpus")  # the driver's list, on Linux


def described() -> str:
    """One line for a report of a problem.

    >>> described().startswith(f"diffats {version('diffats')}, Python {platform.python_version()}, ")
    True
    """
    return f"diffats {version('diffats')}, Python {platform.python_version()}, {_torch()}"


def _torch() -> str:
    try:
        found = version("torch")
    except PackageNotFoundError:
        return "no torch (pip install 'diffats[train]')"
    return f"torch {found} ({_device()})"


def _device() -> str:
    """What ``device = "auto"`` will most likely be."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    gpus = sorted(_NVIDIA.glob("*/information")) if _built_for_cuda() and not hidden else []
    return f"cuda: {', '.join(map(_model, gpus))}" if gpus else "cpu"


def _built_for_cuda() -> bool:
    """Whether torch's build has CUDA, as its own file of versions says."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        return False
    spec = importlib.util.spec_from_file_location("torch_version", Path(package.origin).with_name("version.py"))
    if spec is None or spec.loader is None:
        return False
    versions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(versions)
    return getattr(versions, "cuda", None) is not None


def _model(information: Path) -> str:
    """The GPU's name in a file of the driver."""
    rows = dict(line.partition(":")[::2] for line in information.read_text(encoding="utf-8").splitlines())
    return rows.get("Model", "unknown").strip()
