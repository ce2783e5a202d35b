"""How a tracker is reached, named and opened."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _initialize_tables
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from diffats.disk import put_in_place
from diffats.errors import DiffatsError, redact

PORT = 5000
# Without job execution the server starts faster and takes a fraction of the memory.
UI_SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
# What a tracker that is away raises; requests' errors are OSErrors.
AWAY = (MlflowException, SQLAlchemyError, OSError)


class TrackingError(DiffatsError):
    """MLflow cannot be reached, or refuses what it was asked."""


def ui_command(uri: str) -> str:
    """The exact command that opens a tracker's pages, for this machine only.

    >>> ui_command("https://mlflow.example.org")
    'python -m webbrowser -t https://mlflow.example.org'
    """
    if is_server(uri):
        return f"python -m webbrowser -t {shlex.quote(redact(uri))}"
    settings = " ".join(f"{name}={value}" for name, value in UI_SETTINGS.items())
    return f"{settings} {shlex.join([redact(word) for word in ui_arguments(uri)])}"


def ui_arguments(uri: str) -> list[str]:
    """The program that shows a database's pages on this machine, with its arguments."""
    beside = Path(sys.prefix, "bin", "mlflow")
    found = shutil.which("mlflow")
    command = "mlflow" if found and Path(found).samefile(beside) else str(beside)
    options = ["server", "--backend-store-uri", absolute(uri), "--host", "127.0.0.1", "--port", str(PORT)]
    return [command, *options, "--workers", "1"]


@contextmanager
def asking(uri: str, action: str) -> Iterator[None]:
    """MLflow's errors as ours, with what was asked of which tracker."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        text = plain(error)
        fix = (
            "Check that tracking.uri is right and the server is up"
            if database_of(uri) is None
            else "Check that the disk has space and can be written, then run the command again"
        )
        raise TrackingError(f"MLflow at {uri} could not {action}: {text}. {fix}.") from error


def plain(error: Exception) -> str:
    """What went wrong, without the statement and the hints that a database's errors come with.

    >>> import sqlite3
    >>> plain(DBAPIError("UPDATE", {}, sqlite3.OperationalError("database is full")))
    '(sqlite3.OperationalError) database is full'
    """
    link: BaseException | None = error
    while link is not None and not isinstance(link, SQLAlchemyError):  # which MLflow raises its own from
        link = link.__cause__
    if isinstance(link, DBAPIError) and link.orig is not None:
        return f"({type(link.orig).__module__}.{type(link.orig).__name__}) {link.orig}"
    text = str(error if link is None or not link.args else link.args[0])
    return text.partition("\n[SQL:")[0].strip().removesuffix(".")  # a server gives the text alone


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


def make_database(database: Path) -> None:
    """Make an SQLite file with MLflow's tables where there is none; it is there whole or not at all.

    MLflow makes its tables in hundreds of steps that are not one transaction: of a database that was begun and not
    finished it says "table already exists" or "out-of-date", for ever.
    """
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(database.with_name(f".{database.name}.lock")):  # recipes that share it may start at once
        if not database.exists():
            _make_tables(database)


def _make_tables(database: Path) -> None:
    partial = database.with_name(f"{database.name}.partial")
    for file in (partial, partial.with_name(f"{partial.name}-journal")):
        file.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{partial}")
    try:
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()
    put_in_place(partial, database)
