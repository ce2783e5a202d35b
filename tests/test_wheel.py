"""What a wheel holds is enough: for Dask workers on other machines, and for whoever loads a model.

The processes here see the unpacked wheel and the installed dependencies, and nothing of the checkout: ``python -S``
leaves ``.pth`` files unread, and with them the editable install.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_recipe import write_recipe

import diffats
from diffats import stages
from diffats.compute import open_cluster
from diffats.config import Compute, load_recipe
from diffats.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ENCODING = ("decompose", "select_anchor", "align")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel. It is built from a copy: setuptools would pack what an earlier build left in the checkout."""
    copy, made, unpacked = (tmp_path_factory.mktemp(name) for name in ("copy", "made", "unpacked"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("diffats", "tasks", "flows"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = ("wheel", str(copy), "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(made))
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, cwd=copy)
    (file,) = made.iterdir()
    with zipfile.ZipFile(file) as archive:
        archive.extractall(unpacked)
    return unpacked


# A process that begins with this finds what the wheel's base dependencies bring, and nothing else.
HIDE = """
import json, os, sys
from importlib.machinery import PathFinder

HIDDEN = frozenset(json.loads(os.environ["HIDDEN"]))

class Light:
    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""


def hidden_modules(wheel: Path) -> list[str]:
    """The top-level modules of all installed packages that the wheel's base dependencies do not bring."""
    (info,) = wheel.glob("*.dist-info")
    waiting, brought = [importlib.metadata.Distribution.at(info)], {"diffats"}
    while waiting:
        for text in waiting.pop().requires or ():
            wanted = Requirement(text)
            name = canonicalize_name(wanted.name)
            extras = ("", *wanted.extras)  # distributed[x] or not: none asks for our own
            if name not in brought and (
                wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in extras)
            ):
                brought.add(name)
                waiting.append(importlib.metadata.distribution(name))
    providers = importlib.metadata.packages_distributions()
    return [name for name, by in providers.items() if not brought & {canonicalize_name(one) for one in by}]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory from which nothing can be imported."""
    return tmp_path_factory.mktemp("elsewhere")


def environment(wheel: Path, cwd: Path, *hidden: str) -> dict[str, str]:
    installed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    path = os.pathsep.join([str(wheel), *installed])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "DASK_TEMPORARY_DIRECTORY": str(cwd),
        "HIDDEN": json.dumps(hidden),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def scheduler(wheel: Path, elsewhere: Path) -> Iterator[str]:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    quiet = ("--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    started: list[subprocess.Popen[bytes]] = []
    try:
        for arguments in (("scheduler", "--port", str(port)), ("worker", address, "--nthreads", "2", "--no-nanny")):
            command = [sys.executable, "-S", "-c", HIDE + "from dask.__main__ import main; main()", *arguments, *quiet]
            settings = environment(wheel, elsewhere, *hidden_modules(wheel))
            started.append(subprocess.Popen(command, cwd=elsewhere, env=settings, stderr=subprocess.DEVNULL))
        yield address
    finally:
        for process in started:
            process.kill()  # asked to end, a worker may wait long for a scheduler that has gone
            process.wait()


def test_the_wheel_carries_the_library_alone(wheel: Path) -> None:
    assert sorted(path.name for path in wheel.iterdir()) == ["diffats", f"diffats-{diffats.__version__}.dist-info"]
    assert (wheel / "diffats" / "py.typed").is_file()
    assert list((wheel / "diffats" / "templates").iterdir())


def test_workers_with_nothing_but_the_wheel_and_its_base_dependencies_encode_a_data_set(
    wheel: Path, elsewhere: Path, scheduler: str, tmp_path: Path
) -> None:
    def seen(_: int) -> tuple[str, dict[str, str], list[str]]:  # a local function travels by value
        ours = {name: str(module.__file__) for name, module in sys.modules.items() if name.startswith("diffats")}
        return os.getcwd(), ours, [name for name in ("flows", "tasks", "torch") if importlib.util.find_spec(name)]

    options = (f"compute.scheduler={scheduler}", "compute.shard_samples=5")
    recipe = load_recipe(write_recipe(tmp_path), options)
    results = [stages.run(stage, recipe) for stage in ENCODING]
    with open_cluster(Compute(scheduler=scheduler)) as cluster:
        ((_, (directory, modules, others)),) = cluster.map(seen, [0])
    assert Path(directory) == elsewhere.resolve()
    assert {"diffats.stages.decompose", "diffats.stages.align"} <= set(modules)
    assert all(Path(file).is_relative_to(wheel) for file in modules.values())
    assert not others
    assert [(result.done, result.failed) for result in (results[0], results[2])] == [(24, 0), (24, 0)]

    here = load_recipe(tmp_path / "tiny.toml", ("compute.shard_samples=5", f"root={tmp_path / 'here'}"))
    for stage in ENCODING:
        stages.run(stage, here)
    there, local = (Store.open(Path(one.location) / "store").latest("primitives") for one in (recipe, here))
    assert there is not None
    assert local is not None
    xr.testing.assert_allclose(there.dataset().load(), local.dataset().load(), rtol=1e-5, atol=1e-6)


def test_without_any_extra_data_are_encoded_and_checked_and_training_is_refused(
    wheel: Path, elsewhere: Path, tmp_path: Path
) -> None:
    hidden = set(hidden_modules(wheel))
    assert hidden >= {"torch", "mlflow", "sklearn", "ot", "prefect", "pyarrow", "sympy"}
    assert not {"numpy", "xarray", "distributed", "safetensors"} & hidden
    recipe = str(write_recipe(tmp_path))
    settings = environment(wheel, elsewhere, *hidden)

    def command(*arguments: str) -> tuple[int, str, str]:
        line = [sys.executable, "-S", "-c", HIDE + "from diffats.cli import main; main()", *arguments]
        done = subprocess.run(line, cwd=elsewhere, env=settings, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    verbs = (("plan", "--pilot"), ("decompose",), ("anchor",), ("align",), ("normalise",), ("verify",))
    for verb, *options in verbs:
        code, _, said = command(verb, recipe, *options)
        assert code == 0, (verb, said)
    assert command("tag", recipe, "paper")[0] == 0
    assert command("diff", recipe, "paper", "paper", "--group", "primitives")[0] == 0
    assert command("export", recipe, str(tmp_path / "all.zarr"))[0] == 0
    code, shown, _ = command("inspect", recipe, "--json")
    assert code == 0
    assert json.loads(shown)["primitives"]["done"] == 24
    code, _, said = command("train", recipe)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(
        "error: diffats train needs torch, accelerate, diffusers, POT, scikit-learn, mlflow, sqlalchemy"
    )
    assert said.endswith("Run: pip install 'diffats[train,track]'\n")


def test_a_process_with_nothing_but_the_wheel_and_a_bundle_samples(
    wheel: Path, elsewhere: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    for stage in (*ENCODING, "fit_normalisation", "train"):
        stages.run(stage, recipe)
    model = diffats.load(recipe.location)
    expected = model.sample(3, seed=5)
    bundle = shutil.copytree(model.directory, tmp_path / "moved" / "bundle")
    shutil.rmtree(recipe.location)
    (tmp_path / "tiny.nc").unlink()

    program = (
        "import importlib.util, sys, diffats\n"
        "assert diffats.__file__.startswith(sys.argv[2]), diffats.__file__\n"
        "diffats.load(sys.argv[1]).sample(3, seed=5).to_netcdf('samples.nc', engine='h5netcdf')\n"
        "assert not {'mlflow', 'prefect'} & set(sys.modules)\n"
        "assert not any(importlib.util.find_spec(name) for name in ('flows', 'tasks'))\n"
    )
    command = [sys.executable, "-S", "-c", program, str(bundle), str(wheel)]
    done = subprocess.run(
        command, cwd=elsewhere, env=environment(wheel, elsewhere), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with xr.open_dataset(elsewhere / "samples.nc", engine="h5netcdf") as made:
        assert made["u"].attrs["units"] == "m s-1"
        xr.testing.assert_allclose(made["u"].load(), expected["u"], rtol=1e-4, atol=1e-5)
