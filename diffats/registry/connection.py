"""How a tracker is reached, named and opened."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException

from diffats.errors import DiffatsError

PORT = 5000
AWAY = (MlflowException, OSError)  # what a tracker that is away raises; requests' errors are OSErrors


class TrackingError(DiffatsError):
    """MLflow cannot be reached, or refuses what it was asked."""


def ui_command(uri: str) -> str:
    """The exact command that opens a tracker's pages, for this machine only.

    >>> ui_command("https://mlflow.example.org")
    'python -m webbrowser -t https://mlflow.example.org'
    """
    if is_server(uri):
        return f"python -m webbrowser -t {shlex.quote(uri)}"
    beside = Path(sys.prefix, "bin", "mlflow")
    found = shutil.which("mlflow")
    command = "mlflow" if found and Path(found).samefile(beside) else str(beside)
    # Without job execution the server starts faster and takes a fraction of the memory.
    settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    options = ["server", "--backend-store-uri", shown(absolute(uri)), "--host", "127.0.0.1", "--port", str(PORT)]
    return f"{settings} {shlex.join([command, *options, '--workers', '1'])}"


@contextmanager
def asking(uri: str, action: str) -> Iterator[None]:
    """MLflow's errors as ours, with what was asked of which tracker."""
    try:
        yield
    except MlflowException as error:
        raise TrackingError(
            f"MLflow at {shown(uri)} could not {action}: {shown(str(error))}. "
            "Check that tracking.uri is right and the server is up."
        ) from error


def absolute(uri: str) -> str:
    """The URI, with the absolute path of an SQLite file."""
    database = database_of(uri)
    return uri if database is None else f"sqlite:///{database.absolute()}"


def database_of(uri: str) -> Path | None:
    """The SQLite file of a URI; ``None`` for others."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    """Whether an MLflow server answers at this URI."""
    return uri.startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """A URI without its password.

    >>> shown("postgresql://user:secret@host/db")
    'postgresql://***@host/db'
    """
    return re.sub(r"//[^/@]*@", "//***@", uri)
