"""How OpenMP's threads wait for work. Torch reads it when it is imported, so commands set it before."""

from __future__ import annotations

import os

#: Threads that spin for long slow training tenfold where another process wants a core. But some microseconds, from one
#: operation to the next, are less than waking them takes: half of a small network's step. The second is GNU's alone.
SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}


def set_waiting() -> None:
    """Set it for this process and its children; what the environment says already stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
