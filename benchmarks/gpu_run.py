"""What the parts of ``benchmarks.gpu_check`` share: how much is measured, on what, and for how long a call is timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import NETWORKS
from diffats.primitives import Layout

Row = dict[str, Any]
NOT_RUN = "no CUDA device"


@dataclass(frozen=True)
class Case:
    """Samples that are decomposed: their shape and ranks."""

    shape: tuple[int, ...]
    ranks: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """For tables."""
        return f"{'x'.join(map(str, self.shape))} at {','.join('-' if r is None else str(r) for r in self.ranks)}"

    @property
    def modes(self) -> list[int]:
        """The decomposed modes."""
        return [mode for mode, rank in enumerate(self.ranks) if rank is not None]

    @property
    def layout(self) -> Layout:
        """Of primitives in which every decomposed mode is aligned."""
        names = tuple(f"m{mode}" for mode in range(len(self.shape)))
        ranks = {f"m{mode}": rank for mode, rank in enumerate(self.ranks) if rank is not None}
        return Layout("tgp", names, dict(zip(names, self.shape, strict=True)), ranks, tuple(ranks))


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    product, moved
        Size of the matrices that are multiplied, and bytes that are copied.
    repeats, least
        Of a timing, and seconds that one takes at least.
    compared, timed
        Cases of kernels that are compared with the CPU, and that are timed.
    numbers
        In a batch of samples that is encoded.
    networks, overrides, batch
        Names of ``synthetic.NETWORKS``, changes of their recipes, and samples in a step (the recipe's where None).
    compiled
        Networks that are compiled, which takes long.
    steps
        Of the trainings that must end with the same bits.
    samples, shard
        In the store that batches are read from, and in a shard of it.
    """

    product: int
    moved: int
    repeats: int
    least: float
    compared: tuple[Case, ...]
    timed: tuple[Case, ...]
    numbers: int
    networks: tuple[str, ...] = tuple(NETWORKS)
    overrides: tuple[str, ...] = ()
    batch: int | None = None
    compiled: tuple[str, ...] = tuple(NETWORKS)
    steps: int = 12
    samples: int = 512
    shard: int = 64


_COMPARED = (Case((24, 40, 48), (5, 8, 10)), Case((16, 16, 200), (6, None, 3)), Case((6, 100, 200), (4, 9, 12)))
_TIMED = (
    Case((16, 16, 200), (6, None, 3)),
    Case((50, 64, 64), (5, None, 11)),
    Case((200, 128, 128), (5, None, 22)),
    Case((200, 128, 128), (20, 32, 32)),
)
#: By name: on a GPU, on a CPU, and for a test.
SIZES = {
    "gpu": Size(8192, 2**30, 5, 0.02, _COMPARED, _TIMED, 2**28),
    "cpu": Size(
        *(1024, 2**26, 2, 0.02, _COMPARED[:2], _TIMED[:2], 2**21),
        batch=2,
        compiled=("demo",),
        samples=64,
        shard=16,
    ),
    "tiny": Size(
        *(64, 2**16, 1, 0.0, (Case((6, 10, 8), (3, 4, 3)), Case((6, 5, 20), (3, None, 4))), _TIMED[:1], 2**16),
        networks=("demo",),
        overrides=("model.width=16", "model.depth=1", "model.heads=2"),
        batch=4,
        compiled=(),
        steps=4,
        samples=16,
        shard=8,
    ),
}


@dataclass(frozen=True)
class Run:
    """What a part runs on, how much of it, and a folder for its files."""

    device: torch.device
    size: Size
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, f: Callable[[], object], calls: int = 1) -> float:
        """Wall time of so many calls, to the end of what they gave the device."""
        self.wait()
        started = time.perf_counter()
        for _ in range(calls):
            f()
        self.wait()
        return time.perf_counter() - started

    def best(self, f: Callable[[], object]) -> float:
        """The least time of one call, from timings of so many that each takes ``size.least`` seconds."""
        f()
        once = self.seconds(f)
        calls = min(1000, max(1, math.ceil(self.size.least / once)))
        again = range(self.size.repeats - (calls == 1))
        return min([once, *(self.seconds(f, calls) / calls for _ in again)])


def agreement(difference: float, bound: float) -> Row:
    """Of a row, whether the device agrees with what it is compared with."""
    return {"difference": difference, "bound": bound, "holds": difference <= bound}


def judged(what: str, case: str, dtype: str, *, difference: float, bound: float) -> Row:
    """A row on whether the device agrees with the CPU."""
    return {"what": what, "case": case, "dtype": dtype, **agreement(difference, bound)}
