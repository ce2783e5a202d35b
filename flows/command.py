"""The flows' command line: ``python -m flows.NAME RECIPE.toml [--set key=value]... [--json]``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import httpx
from prefect import Flow

from diffats import environment, processes
from diffats.cli import interrupt_behind, interrupted_code, interruption, leave, progress_bar, terminated_as_interrupted
from diffats.cli.terminal import LogLines
from diffats.config import load_recipe
from diffats.errors import DiffatsError, redact
from diffats.progress import waiting
from flows import server
from flows.pipeline import Outcome

log = logging.getLogger("diffats.flows")


def main(flow: Flow[..., Outcome], arguments: Sequence[str] | None = None) -> int:
    """Run a flow as a command.

    Returns
    -------
    int
        0 done, 1 failed, 2 bad input, 3 done with failed samples, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
    """
    given = parser(flow).parse_args(arguments)
    show_log()
    try:
        with terminated_as_interrupted():
            tell_environment()
            load_recipe(given.recipe, given.overrides)  # tells a mistake now, not after the server has started
            prepare(flow)
            outcome = flow(given.recipe, given.overrides)
    except (DiffatsError, OSError, ValueError) as error:
        known = environment.explain(error) or error
        if not isinstance(known, DiffatsError | OSError):
            raise
        print(f"error: {redact(str(known))}", file=sys.stderr)
        return known.exit_code if isinstance(known, DiffatsError) else 1
    except (KeyboardInterrupt, RuntimeError, ImportError, httpx.HTTPError) as error:
        stop, cause = interrupt_behind(error), behind(error)
        if stop is not None:
            return say_interrupted(stop)
        if not isinstance(error, httpx.HTTPError):
            raise
        if cause is not None:
            print(f"error: {cause}", file=sys.stderr)
        print(
            f"error: the Prefect server at {server.address()} went away ({error}). What the stages made stays; run "
            "the same command when it is back: it finds that, and does the rest.",
            file=sys.stderr,
        )
        return 1
    print(json.dumps(outcome.summary, default=str) if given.json else outcome.description)
    return 3 if outcome.failed else 0


def tell_environment() -> None:
    """Say which settings of this machine are not heeded, and refuse those under which nothing works."""
    for note in (*environment.prepare(), *environment.drop_proxies()):
        log.warning(note)
    environment.refuse_optimised()
    processes.count()


def end(flow: Flow[..., Outcome]) -> NoReturn:
    """Run a flow as this process's command, and end the process."""
    # Else Prefect writes about a server that has gone for every message that it could not deliver.
    logging.raiseExceptions = False
    logging.getLogger("prefect._internal").setLevel(logging.CRITICAL)
    code = main(flow)
    # Prefect would try for minutes to deliver its last messages to a server that has gone.
    leave(code, at_once=code in (1, 2) and server.silence() is not None)


def say_interrupted(error: KeyboardInterrupt) -> int:
    """Tell that it was interrupted; the exit code."""
    print(interruption(error), file=sys.stderr)
    return interrupted_code(error)


def behind(error: BaseException) -> DiffatsError | None:
    """The error of ours that Prefect could not tell its server of."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, DiffatsError):
        link = link.__context__
    return link


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
    logger = logging.getLogger("diffats")
    logger.setLevel(logging.INFO)
    logger.addHandler(LogLines())


def prepare(flow: Flow[..., Outcome]) -> None:
    """Start Prefect's private server where the user has no other, and import meanwhile what every run needs.

    Not what trains, samples or draws: where everything is there already, it is not needed, and takes seconds.
    """
    private = server.needed()
    if not private:
        server.check_answers()
    log.info("starting: libraries%s, about ten seconds", " and Prefect's private server" if private else "")
    started = server.PrivateServer() if private else None
    with progress_bar(flow.name):
        with waiting("loading libraries"), server.importing():
            from diffats import registry, stages  # noqa: F401

        if started is not None:
            with waiting("starting Prefect's server"):
                started.ready()
