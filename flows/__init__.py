"""Prefect flows: in which order the stages run. Each is also a command: ``python -m flows.end_to_end RECIPE.toml``.

Prefect reads its settings when it is first imported, so they are set here, before any flow imports it. What the user's
environment or Prefect profile already says wins over them.
"""

import os
import sys
import warnings
from collections.abc import Iterator

from pydantic import ValidationError

from diffats import environment
from diffats.errors import InputError
from diffats.requirements import require

SETTINGS = {
    # The private server of a flow that is run as a command takes 10 to 30 s to start; the default limit is 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # The library's log is part of a run's log, except for lines from threads that belong to no run.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "diffats",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def check_settings() -> None:
    """Read Prefect's settings.

    Raises
    ------
    InputError
        Where the environment or a profile holds one that is none, or Prefect finds no home.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a home that cannot be made: an error where one is needed
            from prefect.context import get_settings_context

        get_settings_context()
    except (ValueError, OSError, RuntimeError) as error:
        text = "; ".join(_faults(error))
        raise InputError(
            f"Prefect cannot read its settings: {text}. Correct or unset this variable (PREFECT_...) or the profile in "
            "profiles.toml of Prefect's home; PREFECT_HOME names another home."
        ) from error


def _faults(error: Exception) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        yield " ".join(str(error).split())
        return
    for fault in error.errors():
        yield f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r}"


environment.prepare()
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
try:
    require("a flow", "train", "track", "flows")
    check_settings()
except InputError as _error:
    if sys.argv[:1] == ["-m"]:  # a command that is about to begin: `python -m flows.NAME`
        print(f"error: {_error}", file=sys.stderr)
        sys.exit(_error.exit_code)
    raise
