"""The verbs about recipes: config."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from diffats.cli.application import Overrides, app, print_json
from diffats.config import Recipe, described, load_recipe


@app.command()
def config(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE.toml]", help="the recipe")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of recipes")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one line, as the other verbs; without it, indented")] = False,
) -> None:
    """Print a recipe with every option, or the schema of recipes."""
    made = Recipe.model_json_schema() if schema or recipe is None else described(load_recipe(recipe, overrides or []))
    if as_json:
        print_json(made)
    else:
        typer.echo(json.dumps(made, indent=2, default=str))
