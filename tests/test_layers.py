"""The layers hold, and importing the light modules stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "mlflow", "diffusers", "prefect", "matplotlib", "tensorly", "accelerate", "sklearn", "ot")


def test_flows_import_tasks_import_diffats_and_never_back() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    ["diffats", "diffats.cli", "diffats.store", "diffats.sources", "diffats.stages.decompose", "diffats.stages.plan"],
)
def test_importing_a_light_module_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_built_in_scene_is_read_without_the_package_that_brings_it() -> None:
    code = "import sys; from diffats.sources.builtin import indian_pines; assert indian_pines().sizes['band'] == 200; "
    code += f"print(*[name for name in {(*HEAVY, 'scipy.optimize')} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_the_registry_imports_mlflow() -> None:
    allowed = ROOT / "diffats" / "registry"
    for path in (ROOT / "diffats").rglob("*.py"):
        lines = [line.split("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines()]
        imported = {words[1].split(".")[0] for words in lines if words[:1] in (["import"], ["from"])}
        assert "mlflow" not in imported or allowed in path.parents, path
