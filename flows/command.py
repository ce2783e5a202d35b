"""The flows' command line: ``python -m flows.NAME RECIPE.toml [--set key=value]... [--json]``."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from prefect import Flow
from rich.logging import RichHandler

from diffats.cli import errors, no_lost_interrupt
from diffats.config import load_recipe
from diffats.errors import DiffatsError
from flows import server
from flows.pipeline import Outcome

log = logging.getLogger("diffats.flows")


def main(flow: Flow[..., Outcome], arguments: Sequence[str] | None = None) -> int:
    """Run a flow as a command.

    Returns
    -------
    int
        0 done, 1 failed, 2 bad input, 3 done with failed samples, 130 interrupted.
    """
    given = parser(flow).parse_args(arguments)
    show_log()
    try:
        with terminated_as_interrupted(), no_lost_interrupt():
            load_recipe(given.recipe, given.overrides)  # tells a mistake now, not after the server has started
            prepare()
            outcome = flow(given.recipe, given.overrides)
    except (DiffatsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, DiffatsError) else 1
    except KeyboardInterrupt:
        print("interrupted; what was committed stays. Run the same command to continue.", file=sys.stderr)
        return 130
    print(json.dumps(outcome.summary, default=str) if given.json else outcome.description)
    return 3 if outcome.failed else 0


def parser(flow: Flow[..., Outcome]) -> argparse.ArgumentParser:
    """The options, the same for every flow."""
    text = (flow.description or "").partition("Args:")[0]
    options = argparse.ArgumentParser(prog=f"python -m flows.{flow.name}", description=" ".join(text.split()))
    options.add_argument("recipe", metavar="RECIPE.toml", help="the recipe")
    options.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="override one key of the recipe; may be given several times",
    )
    options.add_argument("--json", action="store_true", help="end standard output with one JSON object")
    return options


def show_log() -> None:
    """Show the library's log on standard error, and leave Prefect's own to its server and pages."""
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.CRITICAL)
    shown: logging.Handler
    if sys.stderr.isatty():
        shown = RichHandler(console=errors, show_path=False)  # above the progress bar, which is on the same console
    else:
        shown = logging.StreamHandler()
    logger = logging.getLogger("diffats")
    logger.setLevel(logging.INFO)
    logger.addHandler(shown)


def prepare() -> None:
    """Start Prefect's private server where the user has no other, and import meanwhile what takes seconds."""
    private = server.needed()
    if not private:
        server.check_answers()
    log.info("starting: libraries%s, about ten seconds", " and Prefect's private server" if private else "")
    started = server.PrivateServer() if private else None
    from diffats import registry, stages, training  # noqa: F401

    if started is not None:
        started.ready()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the flow as Ctrl-C does: with its last state told to Prefect and MLflow."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
