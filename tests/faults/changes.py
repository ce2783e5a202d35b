"""Changes to the library that a test asks a command's process to begin with, by name.

Functions that travel to worker processes are looked up there in this module, which has to be on their path.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from diffats.stages import decompose
from diffats.store.version import Version

HUNGRY_FROM = 9  # the sample whose shard takes all memory
_decompose_shard = decompose.decompose_shard


def commit_every_shard() -> None:
    """Small stages then spend their time in commits, which is where a kill may hurt."""
    assert Version.fill.__kwdefaults__ is not None
    Version.fill.__kwdefaults__["commit_seconds"] = 0.0


def slow_shards() -> None:
    """Shards take a moment, so that something can happen meanwhile."""
    decompose.decompose_shard = _slow_shard


def _slow_shard(start: int, stop: int, **options: Any) -> Any:
    time.sleep(0.3)
    return _decompose_shard(start, stop, **options)


def hungry_shard() -> None:
    """One shard takes more memory than a worker may have."""
    decompose.decompose_shard = _hungry_shard


def _hungry_shard(start: int, stop: int, **options: Any) -> Any:
    if start == HUNGRY_FROM:
        taken = np.ones(2**28)  # 2 GiB
        time.sleep(30)
        assert taken.all()
    return _decompose_shard(start, stop, **options)


def slow_steps() -> None:
    """Training steps take a moment."""
    from diffats.training import _Training

    update = _Training._update

    def slow(self: Any, batch: Any) -> None:
        time.sleep(0.1)
        update(self, batch)

    _Training._update = slow  # type: ignore[method-assign]
