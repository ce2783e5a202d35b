"""The ``diffats`` command: one verb per stage of a recipe, and verbs that look at what is there.

Heavy libraries are imported inside the verbs, so that help is instant.
"""

from __future__ import annotations

import _thread
import atexit
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from diffats.config import Recipe, load_recipe, portable
from diffats.errors import DiffatsError

if TYPE_CHECKING:
    from diffats.stages import StageResult

# OpenMP threads that wait by spinning slow training tenfold where another process wants a core. Read by torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

Progress = Callable[[int, int, int], None]
_INTERRUPTED = 130

errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _say(text: str) -> None:
    """One line on standard error, in a terminal above the progress bar."""
    if sys.stderr.isatty():
        errors.print(text)
    else:
        typer.echo(text, err=True)


class Verbs(TyperGroup):
    """The verbs; an error of ours ends one with one message and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            with _shown_log(), no_lost_interrupt():
                return super().invoke(ctx)
        except DiffatsError as error:
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:
            raise  # `diffats ... | head`: nothing is wrong
        except OSError as error:
            _say(f"error: {error}. What was committed stays; run the same command to continue.")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _say("interrupted; what was committed stays. Run the same command to continue.")
            raise typer.Exit(_INTERRUPTED) from error


app = typer.Typer(
    cls=Verbs,
    help="Aligned tensor primitives of fields, and diffusion models on them. Every verb works on the same recipe; "
    "running it again continues or finds its work done. Exit codes: 0 done, 1 failed, 2 bad input, 3 done with "
    "failed samples, 130 interrupted.",
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
Restart = Annotated[bool, typer.Option("--restart", help="make it anew even where it is there")]

# Verb, stage, help.
_VERBS = (
    ("decompose", "decompose", "Decompose every sample (ST-HOSVD or patch-SVD)."),
    ("anchor", "select_anchor", "Choose the anchor of each aligned mode."),
    ("align", "align", "Rotate every sample's factors to the anchors."),
    ("normalise", "fit_normalisation", "Fit the streams' mean and scale."),
    ("train", "train", "Train the denoiser, or continue its training."),
    ("generate", "generate", "Generate samples and decode them to fields."),
    ("evaluate", "evaluate", "Compare generated, test and training samples."),
    ("register", "register", "Register the model in MLflow."),
    ("report", "report", "Write the report, one HTML file."),
)
_TRACKED = ("train", "generate", "evaluate", "register")


def _stage_verb(verb: str, stage: str, text: str) -> None:
    def command(
        recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False, restart: Restart = False
    ) -> None:
        result = _run_stage(stage, load_recipe(recipe, overrides or []), restart)
        if result is None:
            return
        if as_json:
            _print_json(_as_dict(result))
        else:
            state = "already there" if result.skipped else f"{result.seconds:.1f} s"
            typer.echo(f"{verb}: {result.summary} ({state})")
        if result.failed:
            raise typer.Exit(3)

    app.command(verb, help=text)(command)


for _verb, _stage, _text in _VERBS:
    _stage_verb(_verb, _stage, _text)


def _run_stage(stage: str, recipe: Recipe, restart: bool) -> StageResult | None:
    """Run a stage, tracked in the run that the verbs of a recipe share; None where another process tells of it."""
    from diffats import stages
    from diffats.stages import processes

    if not processes.is_main():
        stages.run(stage, recipe, restart=restart)
        return None
    stages.check(stage, recipe)
    shared = stages.tracked(recipe, latest=True) if stage in _TRACKED else nullcontext()
    with shared as parent, progress_bar(stage) as progress:
        return stages.run(stage, recipe, parent_run=parent, restart=restart, progress=progress)


@contextmanager
def progress_bar(stage: str) -> Iterator[Progress | None]:
    """One bar in a terminal; None, and so log lines, elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}/s"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("to go"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[failed]} failed"),
    )
    with progress.Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(stage, total=None, rate="-", failed=0)

        def update(done: int, total: int, failed: int) -> None:
            speed = bar.tasks[0].speed
            rate = "-" if not speed else f"{speed:.3g}"
            bar.update(task, completed=done, total=total, failed=failed, rate=rate)

        yield update


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: Json = False,
    pilot: Annotated[bool, typer.Option("--pilot", help="also read up to 256 samples: error against ranks")] = False,
) -> None:
    """Say what would be done; refuse what cannot work."""
    from diffats.stages import Workspace
    from diffats.stages import plan as planning

    work = Workspace(load_recipe(recipe, overrides or []))
    made = planning.plan(work)
    if pilot:
        made["pilot"] = planning.pilot(work)
    if as_json:
        _print_json(made)
    else:
        _show_plan(made)


@app.command()
def inspect(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Say what is stored, by group and version."""
    from diffats.stages import Workspace

    work = Workspace(load_recipe(recipe, overrides or []))
    versions = [_version_entry(version) for store in work.repositories() for version in store.versions()]
    if as_json:
        groups = dict.fromkeys(version["group"] for version in versions)
        by_group = {group: [version for version in versions if version["group"] == group] for group in groups}
        _print_json({group: {**entries[-1], "versions": entries} for group, entries in by_group.items()})
        return
    if not versions:
        typer.echo(f"{work.root}: nothing yet. Begin with `diffats decompose {recipe}`.")
    for version in versions:
        state = "finished" if version["complete"] else "begun"
        samples = f"{version['done']}/{version['total']} samples, {version['failed']} failed, "
        typer.echo(
            f"{version['group']:<14} {state:<9} {samples if version['total'] else ''}version {version['version']}, "
            f"fingerprint {version['fingerprint'][:16]}"
        )


def _version_entry(version: dict[str, Any]) -> dict[str, Any]:
    """A version as it is shown; its number is that of the snapshot through which it is read."""
    return {"version": version["snapshot"], **version}


@app.command()
def verify(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Read all that is stored and check it against its digests."""
    from diffats.errors import StoreNotFoundError
    from diffats.stages import Workspace

    work = Workspace(load_recipe(recipe, overrides or []))
    stores = work.repositories()
    if not stores:
        raise StoreNotFoundError(f"{work.root}: there is no store to verify. Run `diffats decompose {recipe}` first.")
    problems = [str(problem) for store in stores for problem in store.verify()]
    if as_json:
        _print_json({"problems": problems})
    else:
        typer.echo("\n".join(problems) or "verified: every shard matches its digest")
    if problems:
        raise typer.Exit(1)


@app.command()
def export(
    recipe: RecipeFile,
    destination: Annotated[str, typer.Argument(metavar="DEST.zarr", help="a directory that does not exist yet")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Write every group, and the samples, as one plain Zarr tree."""
    from diffats.errors import StoreNotFoundError
    from diffats.stages import Workspace

    work = Workspace(load_recipe(recipe, overrides or []))
    stores = work.repositories()
    if not stores:
        raise StoreNotFoundError(f"{work.root}: there is nothing to export. Run `diffats decompose {recipe}` first.")
    for store in stores:
        store.export(destination, under="generated" if store.location == work.samples_location else "")
    if as_json:
        _print_json({"destination": destination})
    else:
        typer.echo(f"{destination}: open it with xarray.open_datatree({destination!r}, engine='zarr').")


@app.command()
def config(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE.toml]", help="the recipe")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of recipes")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one line, as the other verbs; without it, indented")] = False,
) -> None:
    """Print a recipe with every option, or the schema of recipes."""
    made = Recipe.model_json_schema() if schema or recipe is None else portable(load_recipe(recipe, overrides or []))
    if as_json:
        _print_json(made)
    else:
        typer.echo(json.dumps(made, indent=2, default=str))


def _show_plan(made: dict[str, Any]) -> None:
    from diffats.stages.plan import size

    sizes = ", ".join(f"{mode} {n}" for mode, n in made["sizes"].items())
    split = f"{made['train']} train, {made['test']} test, {made['dropped']} dropped at the split"
    lines = [
        f"samples      {made['samples']} ({split})",
        f"each         {sizes}; {made['dtype']}",
    ]
    if "ranks" in made:
        numbers = f"{made['numbers_per_primitive']} of {made['numbers_per_sample']} numbers"
        lines += [
            f"ranks        {_ranks(made['ranks'])}; aligned: {', '.join(made['aligned'])}",
            f"primitive    {numbers}: {made['compression']:.1f}x",
        ]
    else:
        lines.append("ranks        found from the tolerance on a pilot; see them with --pilot")
    out = f", out {size(made['bytes_out'])} before compression by the store" if "bytes_out" in made else ""
    peak = size(made["peak_bytes_per_worker"])
    lines += [
        f"bytes        in {size(made['bytes_in'])}{out}",
        f"shards       {made['shards']} of {made['shard_samples']} samples, about {peak} at most in a worker",
        f"rough time   {max(1, made['rough_seconds']):.0f} s to encode; training as long as train.steps take",
        "exists       " + ", ".join(f"{group}: {state}" for group, state in made["exists"].items()),
    ]
    typer.echo("\n".join(lines))
    if "pilot" in made:
        _show_pilot(made["pilot"])


def _show_pilot(rows: list[dict[str, Any]]) -> None:
    typer.echo(f"\n{'choice':<14}{'numbers':>9}{'compression':>13}{'anomaly error':>15}{'field error':>13}  ranks")
    for row in rows:
        typer.echo(
            f"{row['choice']:<14}{row['numbers']:>9}{row['compression']:>12.1f}x{row['anomaly_error']:>15.4f}"
            f"{row['relative_error']:>13.4f}  {_ranks(row['ranks'])}"
        )
    typer.echo(
        f'Mean errors of {rows[0]["samples"]} training samples. The rows "error <= e" have the fewest numbers that '
        "keep the error of the centred and scaled anomaly below e; put the ranks of one into the recipe."
    )


def _ranks(ranks: dict[str, int]) -> str:
    return ", ".join(f"{mode} {rank}" for mode, rank in ranks.items())


def _as_dict(result: StageResult) -> dict[str, Any]:
    names = ("stage", "skipped", "fingerprint", "version", "location", "done", "total", "failed", "seconds", "metrics")
    return {name: getattr(result, name) for name in (*names, "facts")}


def _print_json(made: Any) -> None:
    typer.echo(json.dumps(made, default=str))


class _Lines(logging.Handler):
    """The library's log as lines on standard error, above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        # What a stage has made is said by its verb, on standard output.
        if record.name != "diffats.stages" or record.levelno > logging.INFO:
            prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
            _say(prefix + self.format(record))


@contextmanager
def _shown_log() -> Iterator[None]:
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


@contextmanager
def no_lost_interrupt() -> Iterator[None]:
    """Repeat a Ctrl-C that came while Python ran a weak reference's callback, where exceptions are dropped."""
    before = sys.unraisablehook

    def repeat(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, _thread.interrupt_main).start()  # not from in here, where it would be dropped again
        else:
            before(dropped)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before


def main(arguments: list[str] | None = None) -> None:
    """Run the command; without arguments those of the process, which ends with it."""
    try:
        app(arguments)
    except SystemExit as done:
        if arguments is None:
            leave(done.code if isinstance(done.code, int) else 0)
        raise


def leave(code: int) -> NoReturn:
    """End the process with this exit code, without taking the interpreter down piece by piece.

    Icechunk's threads may be inside Python at that moment, and then the process aborts (SIGABRT) after all is done.
    """
    if code != _INTERRUPTED:  # Dask, interrupted while it started, would wait a minute for what never came up
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
