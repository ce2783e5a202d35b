"""The verb init, which writes a recipe."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from diffats.cli.application import Json, app, print_json
from diffats.config import apply_override


@app.command()
def init(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="files, a glob, a store, a URL or a folder of images")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="RECIPE.toml", help="a new file; NAME.toml if not given")
    ] = None,
    group: Annotated[str | None, typer.Option("--group", help="group inside the source; data.group")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a key of the recipe that is known already")
    ] = None,
    kinds: Annotated[bool, typer.Option("--list", help="what can be a source, with an example of each")] = False,
    as_json: Json = False,
) -> None:
    """Write a recipe for your data, with the reason of each guess."""
    from diffats import proposing

    if kinds:
        _show_kinds(proposing.kinds_of_sources(), as_json)
        return
    if source is None:
        raise typer.BadParameter("Give a source, or --list for what can be one.", param_hint="SOURCE")
    given: dict[str, Any] = {}
    for override in [*(overrides or []), *([f"data.group={json.dumps(group)}"] if group else [])]:
        apply_override(given, override)
    path = output or f"{given.get('name') or proposing.name_of(source)}.toml"
    if os.path.lexists(path):
        raise proposing.exists(path)
    proposal = proposing.propose(source, given)
    proposing.write(proposal, path)
    following = [f"diffats plan {path} --pilot", f"python -m flows.end_to_end {path}"]
    if as_json:
        facts = {"recipe": path, "name": proposal.recipe.name, "samples": proposal.counts}
        print_json({**facts, "guesses": proposal.guesses, "next": following})
        return
    lines = [*map(proposing.told, proposal.guesses), f"{path} is written: {proposal.counts}. Next:"]
    typer.echo("\n".join([*lines, *(f"  {line}" for line in following)]))


def _show_kinds(kinds: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        print_json({"kinds": kinds})
    else:
        typer.echo("\n".join(f"{kind['about']:<42} diffats init {kind['example']}" for kind in kinds))
