"""Two runs started on the same root at the same time: one proceeds, the other is refused and says by whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import CHANGES, VERBS, Unbroken, Zygote, write
from ledger import tried

from diffats.config import Recipe

pytestmark = pytest.mark.timeout(1800)

Ready = Callable[[str], tuple[Recipe, Path]]
RUNS = 3  # at a time


def started_together(zygote: Zygote, unbroken: Unbroken, folder: Path, verbs: tuple[str, ...]) -> None:
    """Each verb several times at once on one root."""
    recipe = unbroken.after(None, folder)
    file = write(recipe, folder / "recipe.toml")
    changes = [*CHANGES, "slow_shards", "slow_steps"]
    for verb in unbroken.seconds:
        if verb in verbs:
            with tried(
                "several runs on one root at once", verb, "one proceeds; the others are refused with exit code 1"
            ):
                running = [
                    zygote.start(verb, file, log=folder / f"{verb}-{i}.log", changes=changes) for i in range(RUNS)
                ]
                ended = [command.end() for command in running]
                assert sorted({each.code for each in ended}) in ([0], [0, 1]), ended
                refused = [each.said for each in ended if each.code == 1]
                # By "another process", where that has not signed its lock yet.
                assert all("is being written by " in said and "Traceback" not in said for said in refused), refused
                # One that comes when the first has ended finds everything there.
                assert [each.code for each in ended].count(0) >= 1
        done = zygote.run(verb, file, log=folder / f"{verb}.log", changes=CHANGES)
        assert done.code == 0, done.said
    unbroken.check(recipe)


@pytest.mark.faults
def test_every_verb_started_three_times(zygote: Zygote, unbroken: Unbroken, tmp_path: Path) -> None:
    started_together(zygote, unbroken, tmp_path, VERBS)


def test_two_verbs_started_three_times(zygote: Zygote, brief: Unbroken, tmp_path: Path) -> None:
    started_together(zygote, brief, tmp_path, ("decompose", "train"))
