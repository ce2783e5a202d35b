"""How far a stage is, in a line that reads without a key."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)
_EVERY = 10.0  # seconds between two lines of a log


def clock(seconds: float) -> str:
    """A duration as clocks show it.

    >>> clock(72.4), clock(6737)
    ('1:12', '1:52:17')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressLine:
    """What is done, how long it took and how long the rest will take; as text, where it stands now.

    A stage calls it with what is done, what there is in all, and what failed.

    Parameters
    ----------
    stage
        Its name. A training is counted in steps, everything else in samples.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.begun = self.started = self.told = time.monotonic()
        self.there: int | None = None  # what an interrupted run had done is not this run's rate
        self.done = self.total = self.failed = 0
        self.end: float | None = None  # on the same clock, as far as can be told
        self.loss: float | None = None

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Take what is done."""
        self.told = time.monotonic()
        if self.there is None or done < self.done:  # the next pass over the samples counts from the beginning
            self.there, self.started = done, self.told
        self.done, self.total, self.failed = done, total, failed
        made = done - self.there
        self.end = self.told + (self.told - self.started) / made * (total - done) if made else None

    def note(self, metrics: Mapping[str, float]) -> None:
        """Take the loss, where the metrics that a stage logs have one."""
        self.loss = metrics.get("loss", self.loss)

    def __str__(self) -> str:
        now, end = time.monotonic(), self.end
        counted = f"{self.done} of {self.total}"
        facts = [f"step {counted}" if self.stage == "train" else f"{counted} samples"]
        facts.append(f"{clock(now - self.begun)} elapsed")
        if end is not None:
            facts.append(f"{clock(end - now)} left")
        if self.loss is not None:
            facts.append(f"loss {self.loss:.3g}")
        if self.failed:
            facts.append(f"{self.failed} failed")
        return ", ".join(facts)


class LoggedProgress(ProgressLine):
    """The same as lines of the log, at most one in ten seconds."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.shown = self.begun

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Log where ten seconds have passed."""
        super().__call__(done, total, failed)
        if self.told - max(self.shown, self.started) < _EVERY or done == self.there:
            return  # workers' first answers come together
        self.shown = self.told
        log.info("%s: %s", self.stage, self)
