"""The verbs about whole stores: verify and export."""

from __future__ import annotations

from typing import Annotated

import typer

from diffats.cli.application import Json, Overrides, RecipeFile, app, print_json
from diffats.cli.terminal import progress_bar
from diffats.config import load_recipe


@app.command()
def verify(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check stores, checkpoints and models, and the source again."""
    from diffats.errors import StoreNotFoundError
    from diffats.stages import Workspace, files

    work = Workspace(load_recipe(recipe, overrides or []))
    stores = work.repositories()
    if not stores:
        raise StoreNotFoundError(f"{work.root}: there is no store to verify. Run `diffats decompose {recipe}` first.")
    problems = [str(problem) for store in stores for problem in store.verify()]
    with progress_bar("verify, source") as progress:
        problems += files.problems(work, progress=progress)
    if as_json:
        print_json({"problems": problems})
    else:
        typer.echo("\n".join(problems) or "verified: every shard and file matches its digest")
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
        print_json({"destination": destination})
    else:
        typer.echo(f"{destination}: open it with xarray.open_datatree({destination!r}, engine='zarr').")
