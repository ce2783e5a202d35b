"""The verbs about what is stored: inspect, tag, diff, rollback and prune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffats.cli.application import DryRun, Json, Overrides, RecipeFile, app, print_json
from diffats.config import load_recipe

if TYPE_CHECKING:
    from diffats.stages.versions import Compared


@app.command()
def inspect(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: Json = False,
    history: Annotated[bool, typer.Option("--history", help="who made what, when, from which source version")] = False,
) -> None:
    """Say what is stored, and which of it the recipe uses (*)."""
    from diffats.stages import Workspace, versions

    work = Workspace(load_recipe(recipe, overrides or []))
    if history:
        rows = versions.history(work)
        if as_json:
            print_json({"history": rows})
        else:
            typer.echo("\n".join(map(_history_line, rows)) or f"{work.root}: nothing yet.")
        return
    entries = [_version_entry(entry) for entry in versions.entries(work)]
    if as_json:
        groups = dict.fromkeys(entry["group"] for entry in entries)
        by_group = {group: [entry for entry in entries if entry["group"] == group] for group in groups}
        print_json({group: {**found[-1], "versions": found} for group, found in by_group.items()})
        return
    if not entries:
        typer.echo(f"{work.root}: nothing yet. Begin with `diffats decompose {recipe}`.")
    for entry in entries:
        state = "finished" if entry["complete"] else "begun"
        samples = f"{entry['done']}/{entry['total']} samples, {entry['failed']} failed, "
        typer.echo(
            f"{_mark(entry)} {entry['group']:<14} {state:<9} {samples if entry['total'] else ''}version "
            f"{entry['version']}, fingerprint {entry['fingerprint'][:16]}{_tags(entry)}"
        )


def _version_entry(version: dict[str, Any]) -> dict[str, Any]:
    """A version as it is shown; its number is that of the snapshot through which it is read."""
    return {"version": version["snapshot"], **version}


def _mark(entry: dict[str, Any]) -> str:
    return "*" if entry.get("used") else " "


def _tags(entry: dict[str, Any]) -> str:
    words = [f"tag {name}" for name in entry["names"]] + (["withdrawn"] if entry["withdrawn"] else [])
    return "".join(f", {word}" for word in words)


def _history_line(row: dict[str, Any]) -> str:
    at = datetime.fromisoformat(row["written_at"]).astimezone().isoformat(" ", "seconds")
    line = f"{_mark(row)} {at}  {row['author'] or 'unknown'}  "
    if row["event"] != "version":
        return line + _event(row)
    state = "finished" if row["complete"] else f"begun, {row['done']}"
    samples = f" {row['total']} samples, {row['failed']} failed" if row["total"] else ""
    source = f", source {row['source'][:12]}" if row["source"] else ""
    return f"{line}{row['group']:<14} {state}{samples}{source}, version {row['snapshot']}{_tags(row)}"


def _event(row: dict[str, Any]) -> str:
    if row["event"] == "rollback":
        return f"rolled back to {row['to']}: {len(row['withdrawn']) + len(row['kept'])} versions withdrawn"
    if row["event"] == "prune":
        return f"pruned to {row['keep']} versions a group: {len(row['removed'])} removed"
    done = "tagged" if row["event"] == "tag" else "tag deleted"
    return f"{done} {row['name']}" + (f": {', '.join(row['groups'])}" if "groups" in row else "")


@app.command()
def tag(
    recipe: RecipeFile,
    name: Annotated[str, typer.Argument(metavar="NAME", help="letters, digits, dots, underscores and dashes")],
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]",
            help="its id or the first characters of it, or another tag; if not given, the recipe's present primitives, "
            "what they were made from and their statistics",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    delete: Annotated[bool, typer.Option("--delete", help="delete the tag; what it named may then be pruned")] = False,
) -> None:
    """Name a version, so that prune keeps it."""
    from diffats.stages import Workspace, versions

    work = Workspace(load_recipe(recipe, overrides or []))
    named = {} if delete else {e["group"]: e["snapshot"] for e in versions.tag(work, name, version)}
    if delete:
        versions.untag(work, name)
    if as_json:
        print_json({"tag": name, "deleted": delete, "versions": named})
    else:
        listed = ", ".join(f"{group} {snapshot}" for group, snapshot in named.items())
        typer.echo(f"{name}: deleted" if delete else f"{name}: {listed}")


@app.command()
def diff(
    recipe: RecipeFile,
    a: Annotated[str, typer.Argument(metavar="A", help="a version's id or the first characters of it, or a tag")],
    b: Annotated[str, typer.Argument(metavar="B", help="another version of the same group")],
    overrides: Overrides = None,
    as_json: Json = False,
    group: Annotated[
        str | None, typer.Option("--group", help="of tags that name several; primitives if not given")
    ] = None,
) -> None:
    """Compare two versions of a group."""
    from diffats.stages import Workspace, versions

    made = versions.compare(Workspace(load_recipe(recipe, overrides or [])), a, b, group)
    if as_json:
        print_json({"group": made.a["group"], "a": made.a, "b": made.b, **made.difference.to_dict()})
    else:
        _show_difference(made)


def _show_difference(made: Compared) -> None:
    found = made.difference
    for side, entry in (("A", made.a), ("B", made.b)):
        typer.echo(side + _history_line({"event": "version", **entry})[1:])
    for title, pairs in (("recipe", found.options), ("group", found.attributes), ("variable", found.variables)):
        for name, (before, after) in pairs.items():
            typer.echo(f"{title:<9} {name}: {_short(before)} -> {_short(after)}")
    before, after = found.samples
    if before or after:
        counts = ", ".join(f"{count} {what}" for what, count in found.counts.items())
        typer.echo(f"samples   {before} -> {after}: {counts}")
    for what, numbers in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
        if numbers:
            more = ", ..." if found.counts[what] > len(numbers) else ""
            typer.echo(f"{what:<9} samples {', '.join(map(str, numbers))}{more}")
    for change, count in found.status.items():
        typer.echo(f"status    {change}: {count}")
    if found.values:
        typer.echo(f"\n{'absolute difference':<24}{'changed':>10}{'largest':>13}{'mean':>13}")
    for name, value in found.values.items():
        typer.echo(f"{name:<24}{value.changed:>10}{value.largest:>13.4g}{value.mean:>13.4g}")
    if found.same:
        typer.echo("the content is the same")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


@app.command()
def rollback(
    recipe: RecipeFile,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="its id or the first characters of it, or a tag")],
    overrides: Overrides = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Withdraw what was committed after a version."""
    from diffats.stages import Workspace, versions

    done = versions.rollback(Workspace(load_recipe(recipe, overrides or [])), version, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "rolled_back": [asdict(each) for each in done]})
        return
    for each in done:
        typer.echo(f"{'would roll' if dry_run else 'rolled'} back to {_about(each.to)}")
        for entry in each.withdrawn:
            typer.echo(f"  withdrawn       {_about(entry)}")
        for entry, reason in each.kept:
            typer.echo(f"  still readable  {_about(entry)}: {reason}")
        if not each.withdrawn and not each.kept:
            typer.echo("  nothing was committed after it")


@app.command()
def prune(
    recipe: RecipeFile,
    keep: Annotated[int, typer.Option("--keep", metavar="N", help="finished versions of each group that stay")],
    overrides: Overrides = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    grace_hours: Annotated[
        float,
        typer.Option("--grace-hours", min=0, help="on object storage, what is younger stays: it may be in the making"),
    ] = 24.0,
) -> None:
    """Free disk: keep the newest versions, tagged ones, models' data."""
    from diffats.stages import Workspace, versions
    from diffats.stages.plan import size

    work = Workspace(load_recipe(recipe, overrides or []))
    done = versions.prune(work, keep, grace=timedelta(hours=grace_hours), dry_run=dry_run)
    freed = sum(each.bytes for each in done)
    if as_json:
        print_json({"dry_run": dry_run, "bytes": freed, "pruned": [asdict(each) for each in done]})
        return
    for each in done:
        for entry, reason in each.kept:
            typer.echo(f"  stays    {_about(entry)}: {reason}")
        for entry in each.removed:
            typer.echo(f"  {'would go' if dry_run else 'removed '} {_about(entry)}")
    if dry_run:
        typer.echo(f"{size(freed)} belong to no version already; what the versions that would go hold comes besides")
    else:
        typer.echo(f"freed {size(freed)}")


def _about(entry: Mapping[str, Any]) -> str:
    return f"{entry['group']} {entry['snapshot']} of {entry['written_at'][:19]} UTC"
