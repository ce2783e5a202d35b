"""Killed and asked to stop at random moments of every stage, several times in a row, then run again."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import CHANGES, SEED, STOP_SECONDS, STOPPED, VERBS, Ended, Unbroken, Zygote, leftovers, start_real, write
from ledger import tried

from diffats.registry import Tracker

pytestmark = pytest.mark.timeout(1800)

LANDED = 24  # kills in a test that hit a running command
IN_A_ROW = 4


def killed_at_random(
    zygote: Zygote, unbroken: Unbroken, folder: Path, number: signal.Signals, rng: random.Random, verbs: tuple[str, ...]
) -> Counter[str]:
    """One root through every verb, each killed up to four times and then let finish; how many kills hit."""
    recipe = unbroken.after(None, folder)
    file = write(recipe, folder / "recipe.toml")
    hits: Counter[str] = Counter()
    for verb in unbroken.seconds:
        for turn in range(IN_A_ROW if verb in verbs else 0):
            command = zygote.start(verb, file, log=folder / f"{verb}-{turn}.log", changes=CHANGES)
            time.sleep(rng.uniform(0, unbroken.seconds[verb]))
            ended = command.kill(number)
            if ended.code == 0:  # it was faster
                break
            check_end(ended, number)
            hits[verb] += 1
        done = zygote.run(verb, file, log=folder / f"{verb}-last.log", changes=CHANGES)
        assert done.code == 0, done.said
    unbroken.check(recipe)
    verified = zygote.run("verify", file, log=folder / "verify.log")
    assert verified.code == 0, verified.said
    assert leftovers(Path(recipe.root)) == []
    if "register" in unbroken.seconds:
        assert len(Tracker.for_recipe(recipe).client.search_model_versions("name = 'tiny'")) == 1
    return hits


def check_end(ended: Ended, number: signal.Signals) -> None:
    assert ended.left == []
    assert "Traceback" not in ended.said, ended.said
    if number == signal.SIGKILL:
        assert ended.code == -signal.SIGKILL
    else:
        # Asked before it has begun or after it is done, it ends as the system does it; an import may crash.
        early = () if ended.said else (-signal.SIGSEGV,)
        assert ended.code in (STOPPED, -signal.SIGTERM, *early), ended
        assert ended.seconds < STOP_SECONDS


def campaign(
    zygote: Zygote, unbroken: Unbroken, folder: Path, number: signal.Signals, seed: int, wanted: int, *verbs: str
) -> Counter[str]:
    """Roots, one after the other, until enough kills have hit."""
    rng, hits, root = random.Random(seed), Counter[str](), 0
    print(f"seed {seed}: DIFFATS_FAULTS_SEED sets the first")
    while hits.total() < wanted:
        hits += killed_at_random(zygote, unbroken, folder / str(root), number, rng, verbs or VERBS)
        root += 1
    return hits


OUTCOMES = {
    signal.SIGKILL: "the same command finished the rest; nothing left behind",
    signal.SIGTERM: f"ended within {STOP_SECONDS:.0f} s with exit code {STOPPED} and no process left; "
    "the same command finished the rest",
}


@pytest.mark.faults
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("number", OUTCOMES, ids=lambda number: number.name)
def test_killed_anywhere(zygote: Zygote, unbroken: Unbroken, tmp_path: Path, number: signal.Signals, turn: int) -> None:
    seed = SEED + 2 * turn + (number == signal.SIGTERM)
    hits = campaign(zygote, unbroken, tmp_path, number, seed, LANDED)
    for verb in VERBS:
        with tried(f"{number.name} at a random moment", verb, OUTCOMES[number], seed=seed) as fault:
            fault.count = hits[verb]


@pytest.mark.parametrize("number", OUTCOMES, ids=lambda number: number.name)
def test_killed_now_and_then(zygote: Zygote, brief: Unbroken, tmp_path: Path, number: signal.Signals) -> None:
    assert campaign(zygote, brief, tmp_path, number, SEED, 1, "decompose", "train", "generate").total() >= 1


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_the_real_command_is_killed(unbroken: Unbroken, tmp_path: Path) -> None:
    rng, seconds = random.Random(SEED), {}
    recipe = unbroken.after(None, tmp_path / "whole")
    file = write(recipe, tmp_path / "whole.toml")
    for verb in VERBS:  # how long each takes with its imports
        done = start_real("diffats", verb, file, log=tmp_path / "whole.log").end()
        assert done.code == 0, done.said
        seconds[verb] = done.seconds
    unbroken.check(recipe)
    recipe = unbroken.after(None, tmp_path / "killed")
    file, total = write(recipe, tmp_path / "killed.toml"), 0
    for verb in VERBS:
        with tried("the real command killed or stopped at a random moment", verb, OUTCOMES[signal.SIGKILL]) as fault:
            fault.count, fault.seed = 0, SEED
            for turn in range(IN_A_ROW):
                number = rng.choice([*OUTCOMES])
                command = start_real("diffats", verb, file, log=tmp_path / f"{verb}-{turn}.log")
                time.sleep(rng.uniform(0, 0.9 * seconds[verb]))  # most are to hit it
                ended = command.kill(number)
                if ended.code == 0:
                    break
                check_end(ended, number)
                fault.count += 1
            total += fault.count
            done = start_real("diffats", verb, file, log=tmp_path / f"{verb}.log").end()
            assert done.code == 0, done.said
    assert total >= LANDED
    unbroken.check(recipe)
    assert leftovers(Path(recipe.root)) == []
