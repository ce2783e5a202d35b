"""How a command ends: by itself, by Ctrl-C or by SIGTERM."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from diffats.errors import Terminated

_INTERRUPTED, _TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt that an error comes from: Python wraps one that falls into the making of a class, in an import."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, KeyboardInterrupt):
        link = link.__cause__ or link.__context__
    return link


def interruption(error: KeyboardInterrupt) -> str:
    """What to say of a command that was interrupted."""
    word = "terminated" if isinstance(error, Terminated) else "interrupted"
    return f"{word}; what was committed stays. Run the same command to continue."


def interrupted_code(error: KeyboardInterrupt) -> int:
    """Its exit code, which tells what asked for it, as a shell's does."""
    return _TERMINATED if isinstance(error, Terminated) else _INTERRUPTED


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: with its checkpoint, its last state told, and its workers stopped.

    Either waits for the end of an import: libraries in the midst of it may drop what is raised there, or crash.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone can listen
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            _repeat(number)
            return
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored, in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        with _no_lost_interrupt():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _repeat(number: int) -> None:
    """Have a signal come again in a moment, somewhere else."""
    threading.Timer(0.05, _thread.interrupt_main, [number]).start()


@contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """Repeat a Ctrl-C or SIGTERM that came in a weak reference's callback, where exceptions are dropped."""
    before = sys.unraisablehook

    def repeat(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            _repeat(signal.SIGTERM if issubclass(dropped.exc_type, Terminated) else signal.SIGINT)
        else:
            before(dropped)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """End the process with this exit code, without taking the interpreter down piece by piece.

    ``at_once`` it does not wait for what libraries do in the end.

    Icechunk's threads may be inside Python at that moment, and then the process aborts (SIGABRT) after all is done.
    """
    zarr = sys.modules.get("zarr.core.sync")
    if zarr is not None:  # waits a moment for its thread, and on a busy machine prints that it still runs
        atexit.unregister(zarr.cleanup_resources)
    # Dask, interrupted while it started, would wait a minute for what never came up.
    if not at_once and code not in (_INTERRUPTED, _TERMINATED):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
