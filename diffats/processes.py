"""Which of several processes this one is, where a launcher (torchrun, ``accelerate launch``) started the command."""

from __future__ import annotations

import os

from diffats.errors import InputError

#: What a launcher tells each process that it starts, beside how many there are.
_TOLD = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def count() -> int:
    """How many processes run the command.

    Raises
    ------
    InputError
        Where ``WORLD_SIZE`` says that there are several, and no launcher has told this one which it is.

    >>> count()
    1
    """
    given = os.environ.get("WORLD_SIZE") or "1"
    try:
        number = int(given)
    except ValueError:
        raise _not_launched(f"WORLD_SIZE={given} is no number of processes") from None
    if number > 1:
        absent = [name for name in _TOLD if not os.environ.get(name)]
        if absent:
            raise _not_launched(
                f"WORLD_SIZE={given} says that {given} processes run this, but {_listed(absent)} not set"
            )
        rank = os.environ["RANK"]
        if not rank.isdecimal() or int(rank) >= number:
            raise _not_launched(f"RANK={rank} is none of the {given} processes that WORLD_SIZE={given} counts from 0")
    return number


def _listed(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _not_launched(what: str) -> InputError:
    return InputError(
        f"{what}. To run in one process, unset WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; to train in "
        "several, use a launcher, which sets them: torchrun --nproc-per-node 2 -m diffats train RECIPE.toml."
    )


def is_main() -> bool:
    """Whether this process writes, tracks and tells; the others only take their part of the training.

    >>> is_main()
    True
    """
    return count() == 1 or int(os.environ["RANK"]) == 0


def meeting() -> str:
    """Whom this process waits for, where there are several, and what to do if nobody comes."""
    environment = os.environ
    return (
        f"process {environment['RANK']} of {count()} waits for the others at {environment['MASTER_ADDR']}:"
        f"{environment['MASTER_PORT']}. If nobody launched them, stop this one, and unset WORLD_SIZE"
    )
