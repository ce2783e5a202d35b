"""Prefect's private server, for a flow that is run as a command where the user has no other server.

Prefect would start one by itself. But that one is in the command's process group, where Ctrl-C in a terminal ends it
before the flow, which then waits more than a minute for it; and it goes on for ever where the command is killed.
This one sees no Ctrl-C, and ends when its owner has ended, however that was.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from importlib.metadata import version
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
        check_home()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            # The socket is handed over, so nobody takes its port; requests wait in it until the server is up.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )
        atexit.register(self.stop)

    def ready(self) -> None:
        """Wait for the server.

        Raises
        ------
        InputError
            Where its database cannot be used; the message names it.
        DiffatsError
            Where it does not start for another reason.
        """
        import httpx
        from prefect.context import refresh_global_settings_context
        from prefect.settings import get_current_settings

        limit = get_current_settings().server.ephemeral.startup_timeout_seconds
        try:
            httpx.get(f"{self.url}/health", timeout=limit, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            told = self.stop()
            if told:
                raise InputError(
                    f"{told} Give this flow a home of its own, PREFECT_HOME=DIRECTORY, or run the stages without "
                    "Prefect: `diffats decompose RECIPE.toml` and so on."
                ) from error
            raise DiffatsError(
                f"Prefect's private server did not start ({error or type(error).__name__}, limit {limit} s). "
                "Start one with `prefect server start` and set PREFECT_API_URL, or run the stages without it: "
                "`diffats decompose RECIPE.toml` and so on."
            ) from error
        os.environ["PREFECT_API_URL"] = self.url
        refresh_global_settings_context()

    def stop(self) -> str:
        """End the server, which has nothing left to write; what it has told."""
        if self.process.stdout is None or self.process.stdout.closed:
            return ""
        self.process.terminate()
        try:
            self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        with self.process.stdout as output:
            return output.read().decode(errors="replace").strip()


def needed() -> bool:
    """Whether neither the environment nor the Prefect profile names a server."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is None


def check_home() -> None:
    """Refuse, before a server starts, a home that cannot be written.

    Raises
    ------
    InputError
        Which names it.
    """
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"0" * 2**16)  # less is taken by a full disk, too
    except OSError as error:
        raise InputError(
            f"Prefect's home {home} cannot be written ({error.strerror or error}). It holds the database of flow runs. "
            "Set PREFECT_HOME to a directory that can be written, or run the stages without Prefect: "
            "`diffats decompose RECIPE.toml` and so on."
        ) from error


def check_answers() -> None:
    """Refuse, before anything is made, to run against a named server that does not answer, or is another one.

    Raises
    ------
    InputError
        Which names the server and what to do.
    """
    reason = silence(timeout=30) or mismatch()
    if reason is not None:
        raise InputError(
            f"no Prefect server answers at {address()} ({reason}). Start it with `prefect server start`, correct "
            "PREFECT_API_URL (or the profile's api.url), which ends with /api, or unset it to use a private one."
        )


def address() -> str:
    """The server of this process."""
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url).rstrip("/")


def silence(timeout: float = STOP_WITHIN) -> str | None:
    """Why the server of this process does not answer as Prefect does; None where it does."""
    import httpx

    try:
        answer = httpx.get(f"{address()}/health", timeout=timeout, follow_redirects=True)
        well = answer.is_success and answer.json() is True
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return str(error) or type(error).__name__
    except ValueError:  # no JSON
        well = False
    return None if well else f"what answers, with status {answer.status_code}, is no API of Prefect's"


def mismatch() -> str | None:
    """Why Prefect's client does not work with the server of this process; None where it does."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except (RuntimeError, httpx.HTTPError, OSError) as error:
        return " ".join(str(error).split()) or type(error).__name__
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


def make_database() -> None:
    """Make Prefect's database, or bring it up to this release, while no other flow's server does.

    Raises
    ------
    InputError
        Where it cannot be used; the message names it.
    """
    from alembic.util import CommandError
    from filelock import FileLock
    from prefect.server.database import provide_database_interface
    from prefect.settings import get_current_settings
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    settings = get_current_settings()
    database = provide_database_interface()
    place = make_url(database.database_config.connection_url)
    try:
        with FileLock(settings.home / "private-server.lock"):
            asyncio.run(database.create_db())
    except CommandError as error:  # of Alembic: steps from one release to the next that this release does not know
        raise InputError(
            f"Prefect's database {place.database} was made by another release of Prefect, which {version('prefect')} "
            f"cannot use ({error})."
        ) from error
    except (SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise InputError(f"Prefect's database {place.database} cannot be used ({cause}).") from error


def serve(descriptor: int) -> None:
    """Serve on a listening socket until standard input ends, which it does with the owner's life."""
    with importing():
        import uvicorn

        app = private_app()
    try:
        make_database()
    except InputError as error:
        print(error, flush=True)  # to the owner, which tells the user
        os._exit(error.exit_code)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)

    def follow_owner() -> None:
        while os.read(0, 4096):  # not by sys.stdin, whose lock a thread must not hold when Python ends
            pass
        server.should_exit = True

    Thread(target=follow_owner, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
