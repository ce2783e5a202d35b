"""What a command shows on standard error: messages, the library's log, and the progress of a stage."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from diffats.progress import ProgressLine

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """One line on standard error, in a terminal above the progress bar."""
    if sys.stderr.isatty():
        errors.print(text)
    else:
        typer.echo(text, err=True)


class _Lines(logging.Handler):
    """The library's log as lines on standard error, above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        # What a stage has made is said by its verb, on standard output.
        if record.name != "diffats.stages" or record.levelno > logging.INFO:
            prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
            say(prefix + self.format(record))


@contextmanager
def shown_log() -> Iterator[None]:
    """Show the library's log, and nobody else's: other libraries' errors reach the user as ours."""
    ours, root, lines, silence = logging.getLogger("diffats"), logging.getLogger(), _Lines(), logging.NullHandler()
    level = ours.level
    ours.addHandler(lines)
    root.addHandler(silence)  # else Python prints warnings that nobody handles
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        ours.setLevel(level)
        ours.removeHandler(lines)
        root.removeHandler(silence)


class _BarLine(ProgressLine):
    """The line beside a bar of rich, which shows its text anew ten times a second."""

    def __init__(self, stage: str, bar: RichProgress) -> None:
        super().__init__(stage)
        self.bar, self.task = bar, bar.add_task(stage, total=None, line=self)

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Move the bar."""
        super().__call__(done, total, failed)
        self.bar.update(self.task, completed=done, total=total)


@contextmanager
def progress_bar(stage: str) -> Iterator[ProgressLine | None]:
    """One bar in a terminal; None, and so log lines, elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=None),  # what the line leaves
        progress.TextColumn("{task.fields[line]}"),
    )
    with progress.Progress(*columns, console=errors, transient=True) as bar:
        yield _BarLine(stage, bar)
