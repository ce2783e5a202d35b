"""How far a stage is, or what it waits for, in a line that reads without a key."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger(__name__)
EVERY = 10.0  # seconds between two lines of a log
_GAP = "  "  # between two facts


def clock(seconds: float) -> str:
    """A duration as clocks show it.

    >>> clock(72.4), clock(6737)
    ('1:12', '1:52:17')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """About how long, for people.

    >>> duration(0.2), duration(45), duration(125), duration(6737), duration(10**6)
    ('1 s', '45 s', '2 min', '1.9 h', '11.6 days')
    """
    for unit, length, most in (("s", 1, 90), ("min", 60, 5400)):
        if seconds < most:
            return f"{max(1, seconds / length):.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def pace(rate: float) -> str:
    """So many a second, or how long one takes where that is long.

    >>> pace(1234.5), pace(4.31), pace(0.05)
    ('1,234/s', '4.3/s', '0:20 each')
    """
    if rate < 0.1:
        return f"{clock(1 / rate)} each"
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


class ProgressLine:
    """What is done, how fast, how long it took and how long the rest will take; as text, where it stands now.

    A stage calls it with what is done, what there is in all, and what failed.

    Parameters
    ----------
    stage
        Its name. A training is counted in steps, everything else in samples.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.unit = "steps" if stage == "train" else "samples"
        self.begun = self.started = self.told = time.monotonic()
        self.there: int | None = None  # what an interrupted run had done is not this run's rate
        self.done = self.total = self.failed = 0
        self.rate: float | None = None  # a second, as far as can be told
        self.loss: float | None = None
        self.awaited = ""  # what it waits for, where nothing can be counted

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Take what is done."""
        self.told, self.awaited = time.monotonic(), ""
        if self.there is None or done < self.done:  # the next pass over the samples counts from the beginning
            self.there, self.started = done, self.told
        self.done, self.total, self.failed = done, total, failed
        made, seconds = done - self.there, self.told - self.started
        self.rate = made / seconds if made and seconds else None

    def note(self, metrics: Mapping[str, float]) -> None:
        """Take the loss, where the metrics that a stage logs have one."""
        self.loss = metrics.get("loss", self.loss)

    @property
    def counted(self) -> bool:
        """Whether there is a number of all that is to be done, rather than something to wait for."""
        return self.total > 0 and not self.awaited

    def facts(self) -> list[str]:
        """The parts of the line, the first of which matters most."""
        now = time.monotonic()
        elapsed = f"elapsed {clock(now - self.begun)}"
        if not self.counted:
            return [*([self.awaited] if self.awaited else []), elapsed]
        facts = [f"{self.done:,}/{self.total:,} {self.unit}"]
        if self.rate is None:
            facts.append(elapsed)
        else:
            left = (self.total - self.done) / self.rate - (now - self.told)
            facts += [pace(self.rate), f"{elapsed}, left {clock(left)}"]
        if self.loss is not None:
            facts.append(f"loss {self.loss:.3g}")
        if self.failed:
            facts.append(f"{self.failed:,} failed")
        return facts

    def fitting(self, width: int) -> str:
        """The line in so many characters, if need be without its second part, the third and so on."""
        facts = self.facts()
        while len(facts) > 1 and len(_GAP.join(facts)) > width:
            del facts[1]
        return _GAP.join(facts)

    def __str__(self) -> str:
        return _GAP.join(self.facts())


class LoggedProgress(ProgressLine):
    """The same as lines of the log, at most one in ten seconds."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.shown = self.begun

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Log where ten seconds have passed."""
        super().__call__(done, total, failed)
        if self.told - max(self.shown, self.started) < EVERY or done == self.there:
            return  # workers' first answers come together
        self.shown = self.told
        log.info("%s%s%s", self.stage, _GAP, self)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Log every ten seconds what is waited for, for a ``with`` block."""
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(EVERY):
                if self.awaited:
                    log.info("%s%s%s", self.stage, _GAP, self)

        teller = threading.Thread(target=tell, name="progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()


_shown: ContextVar[ProgressLine | None] = ContextVar("shown", default=None)


@contextmanager
def showing(line: ProgressLine) -> Iterator[None]:
    """Have ``waiting`` tell this line, for a ``with`` block."""
    token = _shown.set(line)
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is waited for in a ``with`` block, where a line is shown: until it ends, or something is counted.

    >>> line = ProgressLine("train")
    >>> with showing(line), waiting("starting Dask"):
    ...     print(line)
    starting Dask  elapsed 0:00
    """
    line = _shown.get()
    if line is None:
        yield
        return
    before, line.awaited = line.awaited, what
    try:
        yield
    finally:
        if line.awaited == what:
            line.awaited = before
