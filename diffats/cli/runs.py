"""The verb list."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffats.cli.application import Json, app, print_json
from diffats.cli.terminal import progress_bar
from diffats.progress import waiting

if TYPE_CHECKING:
    from diffats.stages.runs import Run

FOLDER = "runs"  # where roots are that a recipe does not name

# Their names in the verbs that make them.
_VERBS = {"select_anchor": "anchor", "fit_normalisation": "normalise"}


@app.command("list")
def list_runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="holds the roots of recipes, or is one")] = FOLDER,
    as_json: Json = False,
) -> None:
    """Say which runs a folder has, how far they came, and how good."""
    with progress_bar("list"):
        with waiting("loading libraries"):
            from diffats.stages import runs

        with waiting(f"looking through {folder}"):
            found = runs.find_runs(Path(folder)) if folder != FOLDER or Path(folder).exists() else []
    if as_json:
        print_json({"runs": [{**asdict(run), "state": run.state} for run in found]})
    elif found:
        _show(found)
    else:
        typer.echo(f"{folder}: no runs yet. `diffats plan RECIPE.toml` says what one would do.")


def _show(found: list[Run]) -> None:
    names = [run.name if run.name == run.root.absolute().name else f"{run.name} ({run.root})" for run in found]
    states = [_state(run) for run in found]
    models = [_model(run) for run in found]
    wide = [max(map(len, texts)) for texts in (names, states, models)]
    for run, *texts in zip(found, names, states, models, strict=True):
        changed = datetime.fromisoformat(run.changed).astimezone().strftime("%Y-%m-%d %H:%M")
        typer.echo("  ".join(f"{text:<{width}}" for text, width in zip(texts, wide, strict=True)) + f"  {changed}")
        for sentence in run.headline:
            typer.echo(f"    {sentence}")
        for problem in run.problems:
            typer.echo(f"    problem: {problem}")


def _state(run: Run) -> str:
    stages = [_VERBS.get(stage, stage) for stage in run.finished]
    where = " ".join(_VERBS.get(word, word) for word in run.unfinished.split(" "))
    if run.state == "begun":
        return f"stopped after {stages[-1]}" if stages else "begun"
    return f"{run.state}: {where}" if where else run.state


def _model(run: Run) -> str:
    if not run.model:
        return "no registered model" if "train" in run.finished else "no model"
    return " ".join(filter(None, (f"v{run.model['version']}", run.model["alias"])))
