"""Interrupted anywhere and run again: the same bits, and nothing that was committed is computed twice.

``faults/`` does the same to real processes, by kill -9.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ALL, MODEL, calls, changed, content, run, small_recipe, trajectories

from diffats.config import Recipe
from diffats.stages import Workspace, align, decompose, evaluate, fit_normalisation, generate, select_anchor, train
from diffats.stages import register as register_stage

N = 35  # five shards of seven


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that has been run in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = trajectories(folder / "u.zarr", N, 6, 8)
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
        ("fit_normalisation", fit_normalisation, "turned_moments", 0, 6),
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
    counted = {"status_of": "decompose", "turned_moments": "raw_conditions"}.get(name, name)
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
    assert not list(Path(recipe.root).glob("bundles/.*"))


def test_nothing_of_a_stage_is_left_in_the_way(unbroken: Recipe) -> None:
    root = Path(unbroken.root)
    assert not list(root.rglob("*.partial"))
    assert (
        register_stage.record_path(Workspace(unbroken), train.require_bundle(Workspace(unbroken))).parent.parent == root
    )
