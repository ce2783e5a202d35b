"""The verb plan, and what it shows."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from diffats.cli.application import Json, Overrides, RecipeFile, app, print_json
from diffats.config import load_recipe


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: Json = False,
    pilot: Annotated[
        bool, typer.Option("--pilot", help="also read up to 256 samples: error against ranks; time a few steps")
    ] = False,
) -> None:
    """Say what would be done; refuse what cannot work."""
    from diffats.stages import Workspace
    from diffats.stages import plan as planning

    work = Workspace(load_recipe(recipe, overrides or []))
    made = planning.plan(work)
    if pilot:
        made["pilot"] = planning.pilot(work)
        made["times"] = planning.times(work, made["pilot"][0]["ranks"])
    if as_json:
        print_json(made)
    else:
        _show_plan(made)


def _show_plan(made: dict[str, Any]) -> None:
    from diffats.stages.plan import duration, size

    sizes = ", ".join(f"{mode} {n}" for mode, n in made["sizes"].items())
    split = f"{made['train']} train, {made['test']} test, {made['dropped']} dropped at the split"
    split += f"; {made['new_samples']} new" if "new_samples" in made else ""
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
        f"rough time   {duration(made['rough_seconds'])} to encode"
        + ("" if "pilot" in made else "; with --pilot also training and generation"),
        *_times_lines(made.get("times")),
        "exists       " + ", ".join(f"{group}: {state}" for group, state in made["exists"].items()),
    ]
    typer.echo("\n".join(lines))
    if "pilot" in made:
        _show_pilot(made["pilot"])


def _times_lines(times: dict[str, Any] | None) -> list[str]:
    from diffats.stages.plan import duration

    if not times:
        return []
    steps, done, each = times["train_steps"], times["train_done"], f"{times['seconds_per_step']:.2g} s a step"
    counted = f"{steps - done} of {steps} steps left" if done else f"{steps} steps"
    took = f"about {duration(times['train_seconds'])} on {times['device']} ({each})"
    training = f"{counted}, {took}" if done < steps else f"all {steps} steps are done ({each})"
    if done == steps and times["train_seconds"]:
        training += f"; about {duration(times['train_seconds'])} to calibrate"
    generation = f"{times['generate_samples']} samples, about {duration(times['generate_seconds'])}"
    return [f"training     {training}", f"generation   {generation}"]


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
