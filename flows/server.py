"""Prefect's private server, for a flow that is run as a command where the user has no other server.

Prefect would start one by itself. But that one is in the command's process group, where Ctrl-C in a terminal ends it
before the flow, which then waits more than a minute for it; and it goes on for ever where the command is killed.
This one sees no Ctrl-C, and ends when its owner has ended, however that was.
"""

from __future__ import annotations

import atexit
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

from diffats.errors import DiffatsError, InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

STOP_WITHIN = 5.0  # seconds
LOOK_EVERY = timedelta(seconds=5)


class PrivateServer:
    """A server that is starting; ``ready`` waits for it and makes it this process's server."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            # The socket is handed over, so nobody takes its port; requests wait in it until the server is up.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )
        atexit.register(self.stop)

    def ready(self) -> None:
        """Wait for the server.

        Raises
        ------
        DiffatsError
            Where it does not start.
        """
        import httpx
        from prefect.context import refresh_global_settings_context
        from prefect.settings import get_current_settings

        limit = get_current_settings().server.ephemeral.startup_timeout_seconds
        try:
            httpx.get(f"{self.url}/health", timeout=limit, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise DiffatsError(
                f"Prefect's private server did not start ({error or type(error).__name__}, limit {limit} s). "
                "Start one with `prefect server start` and set PREFECT_API_URL, or run the stages without it: "
                "`diffats decompose RECIPE.toml` and so on."
            ) from error
        os.environ["PREFECT_API_URL"] = self.url
        refresh_global_settings_context()

    def stop(self) -> None:
        """End the server, which has nothing left to write."""
        self.process.terminate()
        try:
            self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()


def needed() -> bool:
    """Whether neither the environment nor the Prefect profile names a server."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is None


def check_answers() -> None:
    """Refuse, before anything is made, to run against a named server that does not answer.

    Raises
    ------
    InputError
        Which names the server and what to do.
    """
    error = silence(timeout=30)
    if error is not None:
        raise InputError(
            f"no Prefect server answers at {address()} ({error}). Start it with `prefect server start`, or unset "
            "PREFECT_API_URL (or the profile's api.url) to use a private one."
        ) from error


def address() -> str:
    """The server of this process."""
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url).rstrip("/")


def silence(timeout: float = STOP_WITHIN) -> Exception | None:
    """Why the server of this process does not answer; None where it does."""
    import httpx

    try:
        httpx.get(f"{address()}/health", timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return error
    return None


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while modules are imported: what they make stays, and a sixth of the time goes to it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def private_app() -> FastAPI:
    """Prefect's server without a page, schedules or late runs, whose own task queue rests.

    An idle server spends its time in Prefect's Docket worker, which runs what Prefect's services want done now and
    then (old events removed every hour, triggers of automations looked at). It asks four times a second whether
    something is due and four times whether something has come, and no setting of Prefect's changes that. What comes
    is handed over at once, however long the worker waits for it; what is due here never comes more often than every
    five seconds, and may be late by as much. (``ps`` shows more than an idle server's share for a long time: it
    divides the seconds of its start, too, by those of its life.)
    """
    from docket import Worker
    from prefect.server.api import background_workers
    from prefect.server.api.server import create_app

    rarely = partial(Worker, minimum_check_interval=LOOK_EVERY, scheduling_resolution=LOOK_EVERY)
    background_workers.Worker = rarely  # type: ignore[attr-defined,assignment]
    return create_app(ephemeral=True, final=True)


def serve(descriptor: int) -> None:
    """Serve on a listening socket until standard input ends, which it does with the owner's life."""
    with importing():
        import uvicorn

        app = private_app()
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)

    def follow_owner() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    Thread(target=follow_owner, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
