"""JAX as the solvers use it: on the CPU, in double precision, one thread for each Dask worker."""

from __future__ import annotations

import functools
import os
from importlib.metadata import version
from typing import Any

from diffats.requirements import require

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


@functools.cache
def load_jax() -> Any:
    """The ``jax`` module, set up; imported nowhere else, so that no other command pays for it.

    Raises
    ------
    MissingPackageError
        Where the extra ``simulate`` is not installed.
    """
    require("this solver", "simulate")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
    import jax

    configure: Any = jax.config.update
    configure("jax_enable_x64", True)
    configure("jax_cpu_enable_async_dispatch", False)  # work stays in the worker's own thread
    return jax


@functools.cache
def load_exponax() -> Any:
    """The ``exponax`` module, on a JAX that is set up.

    Raises
    ------
    MissingPackageError
        Where the extra ``simulate`` is not installed.
    """
    load_jax()
    import exponax

    return exponax


def exponax_version() -> str:
    """Its version.

    Raises
    ------
    MissingPackageError
        Where the extra ``simulate`` is not installed.
    """
    require("this solver", "simulate")
    return version("exponax")
