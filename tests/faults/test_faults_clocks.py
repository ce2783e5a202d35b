"""Clocks that jump and time zones that change between runs of one root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import CHANGES, VERBS, Unbroken, Zygote, write
from ledger import tried

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

DAY = 86400
ZONES = ("Pacific/Kiritimati", "America/Los_Angeles", "Asia/Kathmandu", "UTC")
JUMPS = {"two seconds back": -2, "a day ahead": DAY, "two years ahead": 730 * DAY}


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts commands whose wall clock CLOCK_OFFSET moves."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the clock of a process cannot be moved")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    made = Zygote("env", f"LD_PRELOAD={library}")
    yield made
    made.close()


@pytest.mark.parametrize("jump", JUMPS)
def test_the_clock_jumps_in_the_middle_of_every_verb(
    clock: Zygote, unbroken: Unbroken, tmp_path: Path, jump: str
) -> None:
    recipe = unbroken.after(None, tmp_path)
    file, offset = write(recipe, tmp_path / "recipe.toml"), 0
    with tried(f"the clock jumps {jump}", "within and between all verbs", "as if nothing had happened") as fault:
        fault.count = 0
        for verb in VERBS:
            command = clock.start(verb, file, log=tmp_path / f"{verb}-0.log", changes=CHANGES, environment=at(offset))
            time.sleep(unbroken.seconds[verb] / 2)
            command.kill(signal.SIGKILL)
            offset += JUMPS[jump]
            done = clock.run(verb, file, log=tmp_path / f"{verb}.log", changes=CHANGES, environment=at(offset))
            assert done.code == 0, done.said
            assert "Traceback" not in done.said
            fault.count += 1
        unbroken.check(recipe)


def test_the_clock_jumps_far_back(clock: Zygote, unbroken: Unbroken, tmp_path: Path) -> None:
    recipe = unbroken.after(None, tmp_path)
    file = write(recipe, tmp_path / "recipe.toml")
    outcome = "refused to commit, with a message about the clock; then, with the clock set right, finished"
    with tried("the clock jumps an hour back", "each verb that commits", outcome) as fault:
        fault.count = 0
        for verb in VERBS:
            command = clock.start(verb, file, log=tmp_path / f"{verb}-0.log", changes=CHANGES, environment=at(0))
            time.sleep(unbroken.seconds[verb] / 2)
            command.kill(signal.SIGKILL)
            back = clock.run(verb, file, log=tmp_path / f"{verb}-1.log", changes=CHANGES, environment=at(-3600))
            assert "Traceback" not in back.said, back.said
            assert back.code in (0, 1), back.said
            if back.code:
                assert "Set this machine's clock right" in back.said, back.said
                fault.count += 1
            done = clock.run(verb, file, log=tmp_path / f"{verb}.log", changes=CHANGES, environment=at(0))
            assert done.code == 0, done.said
        assert fault.count >= 3
        unbroken.check(recipe)


def at(offset: int) -> dict[str, str]:
    return {"CLOCK_OFFSET": str(offset)}


def test_the_time_zone_changes_between_verbs(zygote: Zygote, unbroken: Unbroken, tmp_path: Path) -> None:
    recipe = unbroken.after(None, tmp_path)
    file = write(recipe, tmp_path / "recipe.toml")
    with tried("another time zone", "each verb, killed and run again", "as if nothing had happened") as fault:
        for number, verb in enumerate(VERBS):
            for turn in range(2):
                zone = {"TZ": ZONES[(2 * number + turn) % len(ZONES)]}
                log = tmp_path / f"{verb}-{turn}.log"
                command = zygote.start(verb, file, log=log, changes=CHANGES, environment=zone)
                if turn == 0:
                    time.sleep(unbroken.seconds[verb] / 2)
                    os.kill(command.pid, signal.SIGKILL)
                    command.end()
                else:
                    done = command.end()
                    assert done.code == 0, done.said
        fault.count = len(VERBS)
        unbroken.check(recipe)
