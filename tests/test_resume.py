"""Interrupted anywhere and run again: the same bits, and nothing that was committed is computed twice.

``faults/`` does the same to real processes, by kill -9.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from tiny_runs import ALL, MODEL, calls, changed, run, small_recipe, waves

from diffats.config import Recipe
from diffats.stages import Workspace, align, decompose, evaluate, fit_normalisation, generate, select_anchor, train
from diffats.stages import register as register_stage
from diffats.store import Version

N = 35  # five shards of seven


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that has been run in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    field = waves(N, 6, 8).astype("f4")
    ds = xr.Dataset({"u": (("run", "t", "x"), field), "nu": ("run", np.geomspace(1e-3, 1, N))})
    ds.to_zarr(folder / "u.zarr", zarr_format=3, consolidated=False)
    data = {
        "source": str(folder / "u.zarr"),
        "variables": ["u"],
        "modes": ["t", "x"],
        "sample_dim": "run",
        "split": {"test": 0.2},
        "condition": {"initial": {"dim": "t"}, "scalars": ["nu"]},
    }
    recipe = small_recipe(
        folder / "root", data, decompose={"tolerance": 0.1}, train={"steps": 6, "checkpoint_every": 3}
    )
    for stage in ALL:
        run(recipe, [stage])
        shutil.copytree(recipe.root, folder / stage)
    return recipe


@pytest.fixture
def after(unbroken: Recipe, tmp_path: Path) -> Callable[[str], Recipe]:
    """The same recipe with nothing done yet after a stage."""

    def copied(stage: str) -> Recipe:
        shutil.copytree(Path(unbroken.root).with_name(stage), tmp_path / "root")
        return changed(unbroken, root=str(tmp_path / "root"))

    return copied


def before(stage: str) -> tuple[str, ...]:
    return ALL[: ALL.index(stage)]


def content(recipe: Recipe) -> dict[str, str]:
    """What tells every result of a recipe from another, to the bit."""
    work = Workspace(recipe)
    tucker = select_anchor.require_tucker(work)
    model = train.require_bundle(work)
    versions: dict[str, Version | None] = {
        "scaling": decompose.scaling_version(work),
        "tucker": tucker,
        "anchor": select_anchor.anchor_version(work, tucker),
        "primitives": align.primitives_version(work),
        "normalisation": fit_normalisation.normalisation_version(work),
        "samples": generate.samples_version(work, model),
    }
    digests = {name: version.digest if version is not None else "" for name, version in versions.items()}
    return {**digests, "weights": train.weights_digest(model.directory)}


class Interrupted(Exception):
    """Power failure, as far as a test can have one in its own process."""


def broken_after(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that works so many times."""
    made: list[None] = []

    def fragile(*arguments: Any, **options: Any) -> Any:
        made.append(None)
        if len(made) > count:
            raise Interrupted
        return function(*arguments, **options)

    return fragile


@pytest.mark.parametrize(
    ("stage", "owner", "name", "works", "again"),
    [
        ("decompose", decompose, "status_of", 2, 5),  # while the scaling is fitted: nothing is committed yet
        ("decompose", decompose, "decompose", 2, 3),
        ("select_anchor", select_anchor, "read_factors", 3, 10),
        ("align", align, "align", 3, 2),
        ("fit_normalisation", fit_normalisation, "stream_moments", 0, 6),
        ("generate", generate, "shard_arrays", 1, 1),
        ("evaluate", evaluate, "encoded", 0, 1),
    ],
)
def test_a_stage_that_failed_goes_on_where_it_was(
    after: Callable[[str], Recipe],
    unbroken: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    owner: Any,
    name: str,
    works: int,
    again: int,
    tmp_path: Path,
) -> None:
    recipe = after(before(stage)[-1]) if before(stage) else changed(unbroken, root=str(tmp_path / "root"))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken_after(works, getattr(owner, name)))
        with pytest.raises(Interrupted):
            run(recipe, [stage])
    counted = {"status_of": "decompose", "stream_moments": "raw_conditions"}.get(name, name)
    with calls(owner, counted, monkeypatch) as made:
        result = run(recipe, [stage])[stage]
    assert not result.skipped
    assert len(made) == again
    rest = ALL if stage == "evaluate" else MODEL
    results = run(recipe, rest)
    assert {each for each, r in results.items() if r.skipped} == {*before(stage), stage}
    assert content(recipe) == content(unbroken)


def test_a_training_that_failed_goes_on_from_its_checkpoint(after: Callable[[str], Recipe], unbroken: Recipe) -> None:
    recipe = after("fit_normalisation")
    steps: list[int] = []

    def fails(done: int, total: int, failed: int) -> None:
        steps.append(done)
        if done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(recipe, ["train"], progress=fails)
    run(recipe, ["train"], progress=lambda done, total, failed: steps.append(done))
    assert steps == [1, 2, 3, 4, 5, 4, 5, 6]
    run(recipe, ["generate"])
    assert content(recipe) == content(unbroken)


def test_a_bundle_that_was_half_written_is_written_again(
    after: Callable[[str], Recipe], unbroken: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = after("fit_normalisation")
    with monkeypatch.context() as patch:
        patch.setattr("diffats.bundle.save_file", broken_after(0, print))
        with pytest.raises(Interrupted):
            run(recipe, ["train"])
    steps: list[int] = []
    run(recipe, ["train"], progress=lambda done, total, failed: steps.append(done))
    assert steps == []
    run(recipe, ["generate"])
    assert content(recipe) == content(unbroken)
    assert not list(Path(recipe.root).glob("bundles/*.partial"))


def test_nothing_of_a_stage_is_left_in_the_way(unbroken: Recipe) -> None:
    root = Path(unbroken.root)
    assert not list(root.rglob("*.partial"))
    assert (
        register_stage.record_path(Workspace(unbroken), train.require_bundle(Workspace(unbroken))).parent.parent == root
    )
