"""What a command shows on standard error: messages, the library's log, and the progress of a stage."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from diffats import processes
from diffats.progress import LoggedProgress, ProgressLine, showing, waiting

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

_SMALLEST_BAR, _WIDEST_BAR = 8, 40  # characters

errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """One line on standard error, in a terminal above the progress bar."""
    if sys.stderr.isatty():
        errors.print(text)
    else:
        typer.echo(text, err=True)


class LogLines(logging.Handler):
    """The library's log as lines on standard error, above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record; its level where it is a warning or an error."""
        prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        say(prefix + self.format(record))


def _not_said_by_the_verb(record: logging.LogRecord) -> bool:
    """What a stage has made is said by its verb, on standard output."""
    return record.name != "diffats.stages" or record.levelno > logging.INFO


@contextmanager
def shown_log() -> Iterator[None]:
    """Show the library's log, and nobody else's: other libraries' errors reach the user as ours."""
    ours, root, lines, silence = logging.getLogger("diffats"), logging.getLogger(), LogLines(), logging.NullHandler()
    lines.addFilter(_not_said_by_the_verb)
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


class _Row:
    """A stage's line as rich shows it: its name, a bar or a spinner, and the text, in one line of any width."""

    def __init__(self, line: ProgressLine) -> None:
        self.line, self.widest = line, 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        line, name = self.line, f"{self.line.stage}  "
        room = options.max_width - len(name) - 2
        text = line.fitting(room)
        yield Text(name, end="")
        if line.counted:
            self.widest = max(self.widest, len(text))  # the bar does not jump to and fro
            width = min(_WIDEST_BAR, room - self.widest - 2)
            if width >= _SMALLEST_BAR:
                yield ProgressBar(line.total, line.done, width=width)
                yield Text("  ", end="")
        else:
            spinner = "|/-\\" if options.ascii_only else "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
            yield Text(f"{spinner[int(10 * console.get_time()) % len(spinner)]} ", end="")
        yield Text(text, end="", no_wrap=True, overflow="ellipsis")


@contextmanager
def progress_bar(stage: str) -> Iterator[ProgressLine]:
    """How far a stage is: a line that is renewed in a terminal, lines of the log elsewhere."""
    if not (sys.stderr.isatty() and processes.is_main()):
        logged = LoggedProgress(stage)
        with showing(logged), logged.telling():
            yield logged
        return
    from rich.live import Live

    line = ProgressLine(stage)
    # What is printed on standard output is a result, and may go elsewhere.
    live = Live(_Row(line), console=errors, refresh_per_second=10, transient=True, redirect_stdout=False)
    with showing(line), waiting("working"), live:
        yield line
