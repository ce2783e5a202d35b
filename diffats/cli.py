"""The ``diffats`` command: one verb per stage of a recipe, and verbs that look at what is there.

Heavy libraries are imported inside the verbs, so that help is instant.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from diffats.config import Recipe, load_recipe, portable
from diffats.errors import DiffatsError

if TYPE_CHECKING:
    from diffats.stages import StageResult

app = typer.Typer(
    help="Aligned tensor primitives of fields, and diffusion models on them. Every verb works on the same recipe; "
    "running it again continues or finds its work done. Exit codes: 0 done, 1 failed, 2 bad input, 3 done with "
    "failed samples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE.toml", help="the recipe")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key of the recipe")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Restart = Annotated[bool, typer.Option("--restart", help="make it anew even where it is there")]

# Verb, stage, help.
_VERBS = (
    ("decompose", "decompose", "Decompose every sample (ST-HOSVD or patch-SVD)."),
    ("anchor", "select_anchor", "Choose the anchor of each aligned mode on the training split."),
    ("align", "align", "Rotate every sample's factors to the anchors."),
    ("normalise", "fit_normalisation", "Fit the streams' mean and scale on the training split."),
    ("train", "train", "Train the denoiser, or continue its training."),
    ("generate", "generate", "Generate samples and decode them to fields."),
    ("evaluate", "evaluate", "Hold generated samples against test, training and Gaussian samples."),
    ("register", "register", "Register the model in MLflow; make it champion where it is not worse."),
    ("report", "report", "Write the report, one HTML file."),
)
_TRACKED = ("train", "generate", "evaluate", "register")


def _stage_verb(verb: str, stage: str, text: str) -> None:
    def command(
        recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False, restart: Restart = False
    ) -> None:
        result = _run_stage(stage, load_recipe(recipe, overrides or []), restart)
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


def _run_stage(stage: str, recipe: Recipe, restart: bool) -> StageResult:
    from diffats import stages

    parent = stages.start_tracking(recipe)[0] if stage in _TRACKED else None
    with _progress_bar(stage) as progress:
        try:
            result = stages.run(stage, recipe, parent_run=parent, restart=restart, progress=progress)
        except BaseException as error:
            if parent is not None:
                # An interrupted run is continued by the next call; a failed one is marked as such.
                stages.finish_tracking(recipe, parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    if parent is not None and stage == "register":
        stages.finish_tracking(recipe, parent)
    return result


@contextmanager
def _progress_bar(stage: str) -> Iterator[Callable[[int, int, int], None] | None]:
    """One bar in a terminal; None, and so log lines, elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeElapsedColumn(),
        TextColumn("to go"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
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
    """Say what the recipe would do, from metadata alone; refuse what cannot work."""
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
    """Say what is in the recipe's stores, by group and version."""
    from diffats.stages import Workspace

    work = Workspace(load_recipe(recipe, overrides or []))
    versions = [
        version
        for store in work.repositories()
        for version in store.versions()
    ]
    newest = {version["group"]: version for version in versions}
    if as_json:
        _print_json({**newest, "versions": versions})
        return
    if not versions:
        typer.echo(f"{work.root}: nothing yet. Begin with `diffats decompose {recipe}`.")
    for version in versions:
        state = "finished" if version["complete"] else "begun"
        typer.echo(
            f"{version['group']:<14} {state:<9} {version['done']}/{version['total']} samples, {version['failed']} failed, "
            f"version {version['snapshot']}, fingerprint {version['fingerprint'][:16]}"
        )


@app.command()
def verify(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Read everything that is stored and hold it against its digests."""
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
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE.toml]")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of recipes")] = False,
) -> None:
    """Print a recipe with every option resolved, or the schema of recipes."""
    if schema or recipe is None:
        _print_json(Recipe.model_json_schema())
    else:
        _print_json(portable(load_recipe(recipe, overrides or [])))


def _show_plan(made: dict[str, Any]) -> None:
    from diffats.stages.plan import _size

    sizes = ", ".join(f"{mode} {n}" for mode, n in made["sizes"].items())
    lines = [
        f"samples      {made['samples']} ({made['train']} train, {made['test']} test, {made['dropped']} dropped at the split)",
        f"each         {sizes}; {made['dtype']}",
    ]
    if "ranks" in made:
        ranks = ", ".join(f"{mode} {rank}" for mode, rank in made["ranks"].items())
        lines += [
            f"ranks        {ranks}",
            f"primitive    {made['numbers_per_primitive']} of {made['numbers_per_sample']} numbers: {made['compression']:.1f}x",
        ]
    else:
        lines.append("ranks        found from the tolerance on a pilot; see them with --pilot")
    out = f", out {_size(made['bytes_out'])}" if "bytes_out" in made else ""
    lines += [
        f"bytes        in {_size(made['bytes_in'])}{out}",
        f"shards       {made['shards']} of {made['shard_samples']} samples, about {_size(made['peak_bytes_per_worker'])} a worker",
        f"rough time   {made['rough_seconds']:.0f} s to encode",
        "exists       " + ", ".join(f"{group}: {state}" for group, state in made["exists"].items()),
    ]
    typer.echo("\n".join(lines))
    if "pilot" in made:
        typer.echo(f"\n{'choice':<18}{'numbers':>9}{'compression':>13}{'anomaly error':>15}{'field error':>13}  ranks")
        for row in made["pilot"]:
            ranks = ", ".join(f"{mode} {rank}" for mode, rank in row["ranks"].items())
            typer.echo(
                f"{row['choice']:<18}{row['numbers']:>9}{row['compression']:>12.1f}x{row['anomaly_error']:>15.4f}"
                f"{row['relative_error']:>13.4f}  {ranks}"
            )


def _as_dict(result: StageResult) -> dict[str, Any]:
    names = ("stage", "skipped", "fingerprint", "version", "location", "done", "total", "failed", "seconds", "metrics", "facts")
    return {name: getattr(result, name) for name in names}


def _print_json(made: Any) -> None:
    typer.echo(json.dumps(made, default=str))


def main(arguments: list[str] | None = None) -> None:
    """Run the command; an error of ours ends it with one message and its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[RichHandler(console=errors, show_path=False)])
    logging.getLogger("diffats").setLevel(logging.INFO)
    try:
        app(arguments)
    except DiffatsError as error:
        errors.print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted; what was committed stays. Run the same command to continue.", markup=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
