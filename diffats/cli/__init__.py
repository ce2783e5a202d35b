"""The ``diffats`` command: one verb per stage of a recipe, and verbs that look at what is there.

Heavy libraries are imported inside the verbs, so that help is instant.
"""

from __future__ import annotations

from diffats import environment

# Each module adds its verbs to the application; `diffats.cli.application.GROUPS` has their order.
from diffats.cli import planning, proposing, recipes, runs, stages, stores, versions
from diffats.cli.application import app
from diffats.cli.ending import interrupt_behind, interrupted_code, interruption, leave, terminated_as_interrupted
from diffats.cli.terminal import errors, progress_bar, say

__all__ = [
    "app",
    "errors",
    "interrupt_behind",
    "interrupted_code",
    "interruption",
    "leave",
    "main",
    "planning",
    "progress_bar",
    "proposing",
    "recipes",
    "runs",
    "stages",
    "stores",
    "terminated_as_interrupted",
    "versions",
]

environment.prepare()


def main(arguments: list[str] | None = None) -> None:
    """Run the command; without arguments those of the process, which ends with it."""
    try:
        app(arguments)
    except SystemExit as done:
        if arguments is None:
            if isinstance(done.code, str):
                say(done.code)
            leave(done.code if isinstance(done.code, int) else int(done.code is not None))
        raise
