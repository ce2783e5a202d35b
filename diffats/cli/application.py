"""The application that the verbs belong to, and the options that they share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffats.cli.ending import interrupt_behind, interrupted_code, interruption, terminated_as_interrupted
from diffats.cli.terminal import say, shown_log
from diffats.errors import DiffatsError, redact


class Verbs(TyperGroup):
    """The verbs; an error of ours ends one with one message and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            with shown_log(), terminated_as_interrupted():
                return super().invoke(ctx)
        except DiffatsError as error:
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:
            raise  # `diffats ... | head`: nothing is wrong
        except OSError as error:
            say(f"error: {redact(str(error))}. What was committed stays; run the same command to continue.")
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


def print_json(made: Any) -> None:
    """One object, in one line of standard output."""
    typer.echo(json.dumps(made, default=str))
