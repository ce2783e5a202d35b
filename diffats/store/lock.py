"""One writer per root."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock

from diffats.errors import InputError, LockedError
from diffats.store.location import local_path

_LOCK = ".writer.lock"
_PATIENCE = 0.2  # seconds in which whoever only looks has let go of the lock


class _Held:
    """A lock that this process holds, and how often."""

    def __init__(self, lock: filelock.BaseFileLock) -> None:
        self.lock = lock
        self.users = 0


_held: dict[Path, _Held] = {}
_changing = threading.Lock()


@contextlib.contextmanager
def writer_lock(root: str | Path) -> Iterator[None]:
    """Keep other processes from writing below ``root`` for a ``with`` block.

    The operating system frees the lock of a process that died, however it died, so a dead owner is replaced at once.
    Blocks of the same process may be nested. There is no lock for a URL: object stores refuse the second commit.

    Parameters
    ----------
    root
        A directory, made where there is none, or a URL.

    Raises
    ------
    LockedError
        Where another process is writing; the message says which.
    InputError
        Where nothing can be written there.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root, writer_lock(root), writer_lock(root):
    ...     pass
    """
    directory = local_path(root)
    with _locked(None if directory is None else directory / _LOCK, str(root)):
        yield


def is_being_written(root: Path) -> bool:
    """Whether a process holds the lock of a root. Nothing is made; the look itself takes microseconds."""
    try:
        with (root / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or none that may be looked at
        return False
    return False


@contextlib.contextmanager
def store_lock(location: str | Path) -> Iterator[None]:
    """The same for one repository; its lock lies beside it, since Icechunk makes repositories in empty places only."""
    path = local_path(location)
    with _locked(None if path is None else path.with_name(f".{path.name}{_LOCK}"), str(location)):
        yield


@contextlib.contextmanager
def _locked(path: Path | None, what: str) -> Iterator[None]:
    if path is None:
        yield
        return
    path = path.resolve()  # one lock for all spellings
    _acquire(path, what)
    try:
        yield
    finally:
        _release(path)


def _acquire(path: Path, what: str) -> None:
    with _changing:
        if path not in _held:
            lock = filelock.FileLock(path, thread_local=False)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=_PATIENCE)
            except filelock.Timeout as error:
                raise LockedError(
                    f"{what} is being written by {_owner(path)}. Wait for it to end, stop it, or use another root."
                ) from error
            except OSError as error:
                raise InputError(f"{what} cannot be written ({error.strerror}). Use another root.") from error
            _held[path] = _Held(lock)
            _sign(path)
        _held[path].users += 1


def _release(path: Path) -> None:
    with _changing:
        _held[path].users -= 1
        if not _held[path].users:
            _held.pop(path).lock.release()


def _sign(path: Path) -> None:
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with contextlib.suppress(OSError):  # a courtesy to whoever is refused, not worth an error where the disk is full
        path.with_suffix(".json").write_text(json.dumps(owner))


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.with_suffix(".json").read_text())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError):  # between its lock and its signature
        return "another process"
