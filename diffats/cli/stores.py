"""The verbs about whole stores: verify and export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffats.cli.application import Json, Overrides, RecipeFile, app, print_json
from diffats.cli.terminal import progress_bar
from diffats.config import load_recipe
from diffats.errors import StoreNotFoundError
from diffats.progress import waiting


class Format(StrEnum):
    """What `export` writes."""

    zarr = "zarr"
    netcdf = "netcdf"


_ENGINES = {Format.zarr: "zarr", Format.netcdf: "h5netcdf"}


@app.command()
def verify(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check stores, checkpoints and models, and the source again."""
    given = load_recipe(recipe, overrides or [])
    with progress_bar("verify") as progress:
        with waiting("loading libraries"):
            from diffats.stages import Workspace, files

        work = Workspace(given)
        problems: list[str] = []
        stores = work.repositories()
        if not stores:
            raise StoreNotFoundError(
                f"{work.root}: there is no store to verify. Run `diffats decompose {recipe}` first."
            )
        for store in stores:
            with waiting(f"reading {store.location}"):
                problems += map(str, store.verify())
        with waiting("reading checkpoints, models and the source"):
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
    destination: Annotated[str, typer.Argument(metavar="DEST.zarr", help="a place where nothing is yet")],
    overrides: Overrides = None,
    as_json: Json = False,
    form: Annotated[Format, typer.Option("--format", help="a plain Zarr tree, or one NetCDF-4 file")] = Format.zarr,
) -> None:
    """Write all groups, and the samples, as plain Zarr or NetCDF."""
    given = load_recipe(recipe, overrides or [])
    with progress_bar("export"):
        with waiting("loading libraries"):
            from diffats.stages import Workspace

        work = Workspace(given)
        stores = work.repositories()
        if not stores:
            raise StoreNotFoundError(
                f"{work.root}: there is nothing to export. Run `diffats decompose {recipe}` first."
            )
        under = {"generated" if store.location == work.samples_location else "": store for store in stores}
        if form is Format.netcdf:
            from diffats.store.netcdf import export_netcdf

            with waiting(f"writing {destination}"):
                export_netcdf(under, Path(destination))
        else:
            for group, store in under.items():
                with waiting(f"copying {store.location}"):
                    store.export(destination, under=group)
    if as_json:
        print_json({"destination": destination})
    else:
        typer.echo(f"{destination}: open it with xarray.open_datatree({destination!r}, engine={_ENGINES[form]!r}).")
