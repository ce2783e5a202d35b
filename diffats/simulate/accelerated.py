"""JAX as the solvers use it: on the CPU, in double precision, one thread for each Dask worker."""

from __future__ import annotations

import functools
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from diffats.errors import InputError

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


@functools.cache
def load_jax() -> Any:
    """The ``jax`` module, set up; imported nowhere else, so that no other command pays for it.

    Raises
    ------
    InputError
        Where the extra ``simulate`` is not installed.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
    try:
        import jax
    except ImportError as error:
        raise _missing("jax") from error
    configure: Any = jax.config.update
    configure("jax_enable_x64", True)
    configure("jax_cpu_enable_async_dispatch", False)  # work stays in the worker's own thread
    return jax


@functools.cache
def load_exponax() -> Any:
    """The ``exponax`` module, on a JAX that is set up.

    Raises
    ------
    InputError
        Where the extra ``simulate`` is not installed.
    """
    load_jax()
    try:
        import exponax
    except ImportError as error:
        raise _missing("exponax") from error
    return exponax


def exponax_version() -> str:
    """Its version.

    Raises
    ------
    InputError
        Where the extra ``simulate`` is not installed.
    """
    try:
        return version("exponax")
    except PackageNotFoundError as error:
        raise _missing("exponax") from error


def _missing(name: str) -> InputError:
    return InputError(f"{name}, which solves this problem, is not installed. Run pip install 'diffats[simulate]'.")
