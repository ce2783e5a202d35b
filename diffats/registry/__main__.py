"""Show a recipe's runs and models in MLflow's pages: ``python -m diffats.registry RECIPE.toml``. Ctrl-C stops it."""

from __future__ import annotations

import os
import sys

from diffats.config import load_recipe
from diffats.errors import DiffatsError, InputError
from diffats.registry.connection import UI_SETTINGS, database_of, is_server, ui_arguments
from diffats.registry.tracker import Tracker, tracking_uri


def main(recipe: str) -> None:
    """Tell the addresses, and become the server that shows them; of a tracker that is a server tell them only.

    Raises
    ------
    InputError
        Where no flow of the recipe has run.
    """
    loaded = load_recipe(recipe)
    uri = tracking_uri(loaded)
    database = database_of(uri)
    if database is not None and not database.is_file():
        raise InputError(f"there is no {database} to show. Run `python -m flows.end_to_end {recipe}` first.")
    for what, address in Tracker.for_recipe(loaded).overview(loaded.name).items():
        print(f"{what + ':':10} {address}", flush=True)
    if is_server(uri):
        return
    print("MLflow takes some ten seconds to start; Ctrl-C stops it.", flush=True)
    command = ui_arguments(uri)
    os.execvpe(command[0], command, {**os.environ, **UI_SETTINGS})


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except DiffatsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
