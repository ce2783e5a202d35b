"""Which of several processes this one is, where a launcher (torchrun, ``accelerate launch``) started the command."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes run the command."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_main() -> bool:
    """Whether this process writes, tracks and tells; the others only take their part of the training.

    >>> is_main()
    True
    """
    return count() == 1 or int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0
