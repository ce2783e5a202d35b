"""The record of a run of the fault suite, one line of JSON a fault; ``docs/reliability.md`` is made from it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

#: Where the record goes; without it, none is kept.
VARIABLE = "DIFFATS_FAULTS_RESULTS"


@dataclass
class Fault:
    """One kind of fault at one place.

    Attributes
    ----------
    kind, where
        What was done, and to which stage, file or server.
    count
        How often.
    seed
        Of the random moments or places; None where there is nothing random.
    outcome
        What came of it: in the end always the same bits as an unbroken run's.
    """

    kind: str
    where: str
    outcome: str
    count: int = 1
    seed: int | None = None


@contextlib.contextmanager
def tried(kind: str, where: str, outcome: str, *, seed: int | None = None) -> Iterator[Fault]:
    """Record a fault when its test has ended; ``count`` may be changed until then."""
    fault = Fault(kind, where, outcome, seed=seed)
    try:
        yield fault
    except BaseException as error:
        _write(Fault(kind, where, f"FAILED: {type(error).__name__}", fault.count, seed))
        raise
    _write(fault)


def _write(fault: Fault) -> None:
    if place := os.environ.get(VARIABLE):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(fault)) + "\n")
