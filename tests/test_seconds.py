"""The time that a report tells: of all stages, interrupted runs included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_recipe import write_recipe
from tiny_runs import PRIMITIVES, changed, run

from diffats import stages
from diffats.config import load_recipe
from diffats.stages import Workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    (tmp_path / "root").mkdir()
    return Workspace(load_recipe(write_recipe(tmp_path)))


def test_interrupted_work_adds_up_and_finished_work_does_not(work: Workspace) -> None:
    for seconds, done, total in ((2, False, 2), (3, False, 5), (1, True, 6), (4, True, 4)):
        work.note_seconds("align", seconds, "a", done=done)
        assert work.seconds() == {"align": total}
    work.note_seconds("align", 2, "a", done=False)
    work.note_seconds("align", 3, "b", done=True)  # of another recipe
    assert work.seconds() == {"align": 3}
    work.note_seconds("align", 5, "b", done=False)
    work.note_seconds("align", 1, "b", done=True, fresh=True)
    assert work.seconds() == {"align": 1}
    work.note_seconds("train", 2, "t", done=True)
    work.note_seconds("train", 3, "t", done=True, add=True)  # more steps
    assert work.seconds() == {"align": 1, "train": 5}


def test_seconds_of_earlier_releases_are_read(work: Workspace) -> None:
    (work.root / "seconds.json").write_text('{"train": 7.5}')
    assert work.seconds() == {"train": 7.5}
    work.note_seconds("train", 1, "t", done=True, add=True)
    assert work.seconds() == {"train": 1}


def test_a_training_that_is_interrupted_and_one_that_goes_on(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    run(recipe, PRIMITIVES)
    work = Workspace(recipe)

    def stop(done: int, total: int, failed: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run("train", recipe, progress=stop)
    first = work.seconds()["train"]
    assert first > 0
    assert not json.loads((work.root / "seconds.json").read_text())["train"]["done"]
    stages.run("train", recipe)
    second = work.seconds()["train"]
    assert second > first
    assert stages.run("train", recipe).skipped
    assert work.seconds()["train"] == second
    stages.run("train", changed(recipe, train={"steps": 6}))
    assert work.seconds()["train"] > second
