"""How a network's step runs fastest on this machine now: on how many threads, and with products of which type.

More threads are no gain where a network is small, and a loss where other processes want the cores: all threads of an
operation wait for the one that is not running. So both are tried, again where steps become slower than they were.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffats.storage import replace_file

Precision = Literal["float32", "bfloat16"]
Step = Callable[[Precision], Sequence[Tensor]]
logger = logging.getLogger(__name__)

_SIDE, _REPEATS, _PRODUCTS = 256, 20, 0.1  # of the products that are timed, and seconds for each type
_WORTH_TRYING = 1.5  # bfloat16's gain in products alone, below which whole steps cannot gain
_GAIN, _PRECISION_GAIN = 1.1, 1.3  # what more threads and another precision must gain
_LONG = 0.2  # seconds of a step from which on another precision is tried: shorter ones have too little to gain
_TRIAL, _STEPS = 0.4, 9  # seconds for each way that is tried, and steps at most
_SLOWER = 1.3  # steps that take so many times as long as in the trial are a reason to try again
_SOON, _LATE = 5.0, 60.0  # seconds after which it is tried again: where steps became slower, and anyway


@dataclass(frozen=True)
class Way:
    """One way to run a step."""

    threads: int
    precision: Precision

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Use so many threads in a ``with`` block."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@functools.cache
def product_gain(device: str) -> float:
    """How many times as fast the device multiplies matrices in bfloat16 as in float32; below 1 where it emulates them.

    Measured once in a process, on one thread.

    >>> product_gain("cpu") > 0
    True
    """
    side = _SIDE if device == "cpu" else 16 * _SIDE
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with Way(1, "float32").hold():
        for _ in range(_REPEATS):  # in turn: a neighbour disturbs both
            for dtype, times in seconds.items():
                if sum(times) < _PRODUCTS:
                    times.append(_product_seconds(torch.ones(side, side, dtype=dtype, device=device)))
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def _product_seconds(x: Tensor) -> float:
    started = time.perf_counter()
    (x @ x)[0, 0].item()  # waits for the device
    return time.perf_counter() - started


class Pace:
    """The way in which a training runs its steps.

    A context manager, which holds the number of threads. On the CPU the ways are tried at the start. The precision is
    kept for the whole training, in ``kept``. So is the number of threads where results depend on it. Where they do
    not, bit for bit, threads are tried again now and then, since neighbours come and go.

    Parameters
    ----------
    step
        One step in a precision, which returns its results and changes nothing.
    device
        ``"cpu"``; elsewhere threads stay as they are, and bfloat16 is used where its products are faster.
    precision, threads
        Given, or ``"auto"``.
    kept
        The file that keeps them, so that a training which goes on gives the same bits; not read on another machine.
    """

    def __init__(
        self,
        step: Step,
        *,
        device: str,
        precision: Precision | Literal["auto"] = "auto",
        threads: int | Literal["auto"] = "auto",
        kept: Path | None = None,
    ) -> None:
        self._step, self._kept = step, kept
        most = torch.get_num_threads()
        counts = _halves(most) if threads == "auto" and device == "cpu" else [most if threads == "auto" else threads]
        self._precisions = precisions(precision, device)
        self._free: list[int] = []  # threads that give the same results
        self._seconds = self._shortest = 0.0  # of a step in the last trial
        self.way = self._read(threads) or self._choose(counts)

    def _read(self, threads: int | Literal["auto"]) -> Way | None:
        if self._kept is None or not self._kept.is_file():
            return None
        try:
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            if kept["machine"] != machine() or threads not in ("auto", kept["threads"], *kept["free"]):
                return None
            way = Way(kept["threads"] if threads == "auto" else threads, kept["precision"])
            self._free, self._seconds = kept["free"] if threads == "auto" else [], kept["seconds"]
        except (ValueError, LookupError, TypeError) as error:
            logger.warning("%s is damaged (%s): how a step runs is tried anew.", self._kept, error)
            return None
        return way

    def _choose(self, counts: list[int]) -> Way:
        ways = [Way(threads, self._precisions[0]) for threads in counts]
        if len(ways) == len(self._precisions) == 1:
            return ways[0]
        way = self._try(ways)
        if len(self._precisions) > 1 and self._shortest > _LONG:
            way = self._try_precision(Way(way.threads, self._precisions[1]), way)
        if len(counts) > 1:
            self._free = self._same_results(counts, way)
        if self._kept is not None:
            facts = {"threads": way.threads, "precision": way.precision, "free": self._free, "seconds": self._seconds}
            text = json.dumps({**facts, "machine": machine()})
            replace_file(self._kept, lambda path: path.write_text(text, encoding="utf-8"))
        return way

    def _try(self, ways: Sequence[Way]) -> Way:
        """The fastest; of nearly equal ones that with fewer threads, which leaves cores to others."""
        took = {way: self._time(way) for way in ways}
        typical = {way: statistics.median(seconds) for way, seconds in took.items()}
        least = min(typical.values())
        best = min((way for way in ways if typical[way] <= _GAIN * least), key=lambda way: way.threads)
        self._seconds, self._shortest = typical[best], min(took[best])
        if len(ways) > 1:
            each = ", ".join(f"{1e3 * seconds:.3g} ms on {_threads(way)}" for way, seconds in typical.items())
            logger.info("train: a step takes %s: %s used", each, _threads(best, verb=True))
        return best

    def _try_precision(self, way: Way, plain: Way) -> Way:
        """Another precision, by the shortest step, which neighbours disturb least: results depend on it."""
        seconds = self._time(way)
        faster = _PRECISION_GAIN * min(seconds) < self._shortest
        said = "train: a step takes %.3g ms with float32 products, %.3g ms with bfloat16: %s is used"
        logger.info(said, 1e3 * self._shortest, 1e3 * min(seconds), "bfloat16" if faster else "float32")
        if not faster:
            return plain
        self._seconds = statistics.median(seconds)
        return way

    def _time(self, way: Way) -> list[float]:
        """Seconds of some steps; the first does not count unless it is long."""
        with way.hold():
            first = self._once(way)
            seconds = [first] if first > _TRIAL else []
            while sum(seconds) < _TRIAL and len(seconds) < _STEPS:
                seconds.append(self._once(way))
        return seconds

    def _once(self, way: Way) -> float:
        started = time.perf_counter()
        self._step(way.precision)
        return time.perf_counter() - started

    def _same_results(self, counts: Sequence[int], way: Way) -> list[int]:
        """The numbers of threads with which a step gives the same bits as in this way."""
        with way.hold():
            expected = self._step(way.precision)
        same = []
        for threads in counts:
            with Way(threads, way.precision).hold():
                results = self._step(way.precision)
            if all(torch.equal(a, b) for a, b in zip(expected, results, strict=True)):
                same.append(threads)
        return same

    def __enter__(self) -> Pace:
        self._before = torch.get_num_threads()
        self._hold()
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._before)

    def _hold(self) -> None:
        torch.set_num_threads(self.way.threads)
        self._steps, self._since = 0, time.monotonic()

    def review(self) -> None:
        """Call it after each step: other numbers of threads are tried where that is due."""
        self._steps += 1
        since = time.monotonic() - self._since
        slower = since > _SOON and since > _SLOWER * self._seconds * self._steps
        if len(self._free) > 1 and (slower or since > _LATE):
            self.way = self._try([Way(threads, self.way.precision) for threads in self._free])
            self._hold()


def _threads(way: Way, *, verb: bool = False) -> str:
    """The number in words.

    >>> _threads(Way(1, "float32")), _threads(Way(2, "float32"), verb=True)
    ('1 thread', '2 threads are')
    """
    one = way.threads == 1
    return f"{way.threads} thread{'' if one else 's'}" + (f" {'is' if one else 'are'}" if verb else "")


def machine() -> str:
    """What decides which bits a product has and how fast it is: the processor's instructions, and the cores.

    >>> machine().endswith("cores")
    True
    """
    return f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, {os.cpu_count()} cores"


def precisions(wanted: Precision | Literal["auto"], device: str) -> list[Precision]:
    """Those that may be fastest; one alone off the CPU."""
    if wanted != "auto":
        return [wanted]
    if product_gain(device) < _WORTH_TRYING:
        return ["float32"]
    return ["float32", "bfloat16"] if device == "cpu" else ["bfloat16"]


def _halves(most: int) -> list[int]:
    """From all threads to one.

    >>> _halves(12)
    [12, 6, 3, 1]
    """
    return [most, *(_halves(most // 2) if most > 1 else [])]
