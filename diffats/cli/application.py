"""The application that the verbs belong to, and the options that they share."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffats import environment
from diffats.cli import installed
from diffats.cli.ending import interrupt_behind, interrupted_code, interruption, terminated_as_interrupted
from diffats.cli.terminal import say, shown_log
from diffats.errors import DiffatsError, redact

log = logging.getLogger(__name__)

#: The verbs in the order in which one needs them, as the help lists them.
GROUPS = {
    "Begin": ("init", "simulate", "plan", "config"),
    "Stages, in their order": (
        "decompose",
        "anchor",
        "align",
        "normalise",
        "train",
        "generate",
        "evaluate",
        "register",
        "report",
    ),
    "Look at what is there": ("list", "inspect", "verify", "export"),
    "Versions": ("tag", "diff", "rollback", "prune"),
}


class Verbs(TyperGroup):
    """The verbs; an error of ours ends one with one message and its exit code."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write them in their groups."""
        widest = max(map(len, self.commands))
        room = formatter.width - widest - 6
        for title, names in GROUPS.items():
            there = [self.commands[name] for name in names if name in self.commands]
            with formatter.section(title):
                formatter.write_dl([(f"{each.name:<{widest}}", each.get_short_help_str(room)) for each in there])

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            with shown_log(), terminated_as_interrupted():
                for note in environment.prepare():
                    log.warning(note)
                environment.refuse_optimised()
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `diffats ... | head`: nothing is wrong
        except (DiffatsError, OSError, ValueError) as error:
            known = environment.explain(error) or error
            if isinstance(known, DiffatsError):
                say(f"error: {known}")
                raise typer.Exit(known.exit_code) from error
            if not isinstance(known, OSError):
                raise
            say(f"error: {redact(str(known))}. What was committed stays; run the same command to continue.")
            raise typer.Exit(1) from error
        except (KeyboardInterrupt, RuntimeError, ImportError) as error:
            stop = interrupt_behind(error)
            if stop is None:
                raise
            say(interruption(stop))
            raise typer.Exit(interrupted_code(stop)) from error


app = typer.Typer(
    cls=Verbs,
    help="Aligned tensor primitives of fields, and diffusion models on them. Every verb works on the same recipe; "
    "running it again continues or finds its work done. Exit codes: 0 done, 1 failed, 2 bad input, 3 done, but "
    "some of its samples failed, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE.toml", help="the recipe")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key of the recipe")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would be done")]
Restart = Annotated[bool, typer.Option("--restart", help="make it anew even where it is there")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed.described())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show what is installed, and exit."),
    ] = False,
) -> None:
    """What is asked of no verb."""


def print_json(made: Any) -> None:
    """One object, in one line of standard output."""
    typer.echo(json.dumps(made, default=str))
