"""The verbs that make something: one for each stage, and simulate."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from diffats.cli.application import Json, Overrides, RecipeFile, Restart, app, print_json
from diffats.cli.terminal import progress_bar
from diffats.config import Recipe, load_recipe
from diffats.progress import LoggedProgress
from diffats.requirements import require

if TYPE_CHECKING:
    from diffats.stages import StageResult

#: Verb, stage, help.
STAGE_VERBS = (
    ("decompose", "decompose", "Decompose every sample (ST-HOSVD or patch-SVD)."),
    ("anchor", "select_anchor", "Choose the anchor of each aligned mode."),
    ("align", "align", "Rotate every sample's factors to the anchors."),
    ("normalise", "fit_normalisation", "Fit the streams' mean, scale and principal axes."),
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
            print_json(_as_dict(result))
        else:
            state = "already there" if result.skipped else f"{result.seconds:.1f} s"
            typer.echo(f"{verb}: {result.summary} ({state})")
        if result.failed:
            raise typer.Exit(3)

    app.command(verb, help=text)(command)


for _verb, _stage, _text in STAGE_VERBS:
    _stage_verb(_verb, _stage, _text)


def _run_stage(stage: str, recipe: Recipe, restart: bool) -> StageResult | None:
    """Run a stage, tracked in the run that the verbs of a recipe share; None where another process tells of it."""
    from diffats import stages
    from diffats.stages import processes

    if not processes.is_main():
        stages.run(stage, recipe, restart=restart)
        return None
    if stage in _TRACKED:
        require(f"diffats {stage}", "train", "track")
    stages.check(stage, recipe)
    shared = stages.tracked(recipe, latest=True) if stage in _TRACKED else nullcontext()
    with shared as parent, progress_bar(stage) as progress:
        return stages.run(stage, recipe, parent_run=parent, restart=restart, progress=progress)


def _as_dict(result: StageResult) -> dict[str, Any]:
    names = ("stage", "skipped", "fingerprint", "version", "location", "done", "total", "failed", "seconds", "metrics")
    return {name: getattr(result, name) for name in (*names, "facts")}


@app.command()
def simulate(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False, restart: Restart = False) -> None:
    """Make the data that the recipe's section [simulate] describes."""
    from diffats.simulate import simulate as make

    with progress_bar("simulate") as progress:
        made = make(
            load_recipe(recipe, overrides or []), restart=restart, progress=progress or LoggedProgress("simulate")
        )
    if as_json:
        print_json(asdict(made))
    else:
        state = "already there" if made.skipped else f"{made.seconds:.1f} s"
        typer.echo(f"simulate: {made.total} samples of {made.problem} at {made.source} ({state})")
