"""How a network's step runs fastest on this machine now: on how many threads, and with products of which type.

More threads are no gain where a network is small, and a loss where other processes want the cores: all threads of an
operation wait for the one that is not running. So both are tried, again where steps become slower than they were.
"""

from __future__ import annotations

import functools
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
Step = Callable[[Precision], Sequence[Tensor]]
logger = logging.getLogger(__name__)

_SIDE, _REPEATS, _PRODUCTS = 256, 20, 0.1  # of the products that are timed, and seconds for each type
_WORTH_TRYING = 1.5  # bfloat16's gain in products alone, below which whole steps cannot gain
_GAIN, _PRECISION_GAIN = 1.1, 1.3  # what more threads and another precision must gain
_SEVERAL_TIMES = 3.0  # bfloat16's gain in products alone, from which on iterations use it
_HOPELESS = 1.5  # so many times as slow as with more threads: fewer still are not tried
_LONG = 0.2  # seconds of a step from which on another precision is tried: shorter ones have too little to gain
_TRIAL, _STEPS = 0.4, 9  # seconds for each way that is tried, and steps at most
_SLOWER = 1.3  # steps that take so many times as long as in the trial are a reason to try again
_SOON, _LATE = 5.0, 60.0  # seconds after which it is tried again: where steps became slower, and anyway
_RARELY = 50  # a trial comes no sooner than so many times what the last one took: 2 % of the time


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
    kept for the whole training. So is the number of threads where results depend on it. Where they do not, bit for bit,
    threads are tried again now and then, since neighbours come and go.

    Parameters
    ----------
    step
        One step in a precision, which returns its results and changes nothing.
    device
        ``"cpu"``; elsewhere threads stay as they are, and bfloat16 is used where its products are faster.
    precision
        Given, or ``"auto"``.
    threads
        Given, or tried where left out.
    kept
        What ``to_dict`` said of the same training before: it gives the same bits then, on the same kind of machine.
    """

    def __init__(
        self,
        step: Step,
        *,
        device: str,
        precision: Precision | Literal["auto"] = "auto",
        threads: int | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self._step, self._device = step, device
        most = torch.get_num_threads()
        counts = [threads or most] if threads or device != "cpu" else _halves(most)
        self._free: list[int] = []  # threads that give the same results
        self._seconds = self._shortest = 0.0  # of a step in the last trial
        self._cost = 0.0  # seconds of that trial
        same = kept is not None and kept["machine"] == machine(device) and precision in ("auto", kept["precision"])
        if kept is not None and same:
            self.products: Precision = kept["products"]
            self._free = [n for n in kept["free"] if n in counts]
            usual = kept["threads"] if kept["threads"] in counts or not self._free else self._free[0]
            self.way = Way(threads or usual, kept["precision"])
        else:
            self.products = fast_products(device)
            self.way = self._choose(counts, precisions(precision, device))

    def to_dict(self) -> dict[str, Any]:
        """What a training that goes on must know."""
        way = {"threads": self.way.threads, "precision": self.way.precision}
        return {**way, "free": self._free, "products": self.products, "machine": machine(self._device)}

    def _choose(self, counts: list[int], precisions: list[Precision]) -> Way:
        ways = [Way(threads, precisions[0]) for threads in counts]
        if len(ways) == len(precisions) == 1:
            return ways[0]
        way, tried = self._try(ways)
        if len(precisions) > 1 and self._shortest > _LONG:
            way = self._try_precision(Way(way.threads, precisions[1]), way)
        if len(tried) > 1:
            self._free = self._same_results([each.threads for each in tried], way)
        return way

    def _try(self, ways: Sequence[Way]) -> tuple[Way, list[Way]]:
        """The fastest; of nearly equal ones that with fewer threads, which leaves cores to others; and all tried."""
        started = time.perf_counter()
        took: dict[Way, list[float]] = {}
        for way in ways:
            took[way] = self._time(way)
            if min(took[way]) > _HOPELESS * min(map(min, took.values())):
                break  # fewer threads would be slower still
        typical = {way: statistics.median(seconds) for way, seconds in took.items()}
        least = min(typical.values())
        best = min((way for way in took if typical[way] <= _GAIN * least), key=lambda way: way.threads)
        self._seconds, self._shortest = typical[best], min(took[best])
        self._cost = time.perf_counter() - started
        if len(ways) > 1:
            each = ", ".join(f"{1e3 * seconds:.3g} ms on {_threads(way)}" for way, seconds in typical.items())
            logger.info("train: a step takes %s: %s used", each, _threads(best, verb=True))
        return best, list(took)

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
        same = [way.threads]
        for threads in counts:
            if threads != way.threads:
                with Way(threads, way.precision).hold():
                    results = self._step(way.precision)
                if all(torch.equal(a, b) for a, b in zip(expected, results, strict=True)):
                    same.append(threads)
        return sorted(same, reverse=True)

    def __enter__(self) -> Pace:
        self._before = torch.get_num_threads()
        self._hold()
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._before)

    def _hold(self) -> None:
        torch.set_num_threads(self.way.threads)
        self._steps, self._spent, self._since = 0, 0.0, time.monotonic()

    def review(self, seconds: float) -> None:
        """Try other numbers of threads where that is due: after each step but the last, given its seconds."""
        self._steps += 1
        self._spent += seconds
        since = time.monotonic() - self._since
        if len(self._free) < 2 or since < _RARELY * self._cost:
            return
        slower = since > _SOON and self._spent > _SLOWER * self._seconds * self._steps
        if slower or since > _LATE:
            self.way, _ = self._try([Way(threads, self.way.precision) for threads in self._free])
            self._hold()


def _threads(way: Way, *, verb: bool = False) -> str:
    """The number in words.

    >>> _threads(Way(1, "float32")), _threads(Way(2, "float32"), verb=True)
    ('1 thread', '2 threads are')
    """
    one = way.threads == 1
    return f"{way.threads} thread{'' if one else 's'}" + (f" {'is' if one else 'are'}" if verb else "")


def machine(device: str) -> str:
    """What decides which bits a product has and how fast it is: the processor's instructions and cores, or the device.

    >>> machine("cpu").endswith("cores")
    True
    """
    kind = torch.backends.cpu.get_cpu_capability() if device == "cpu" else device
    return f"{kind}, torch {torch.__version__}, {os.cpu_count()} cores"


def fast_products(device: str) -> Precision:
    """The type of an iteration that tolerates bfloat16, which takes more products then."""
    return "bfloat16" if product_gain(device) >= _SEVERAL_TIMES else "float32"


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
