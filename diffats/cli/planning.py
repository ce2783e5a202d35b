"""The verb plan, and what it shows."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from diffats.cli.application import Json, Overrides, RecipeFile, app, print_json
from diffats.cli.terminal import progress_bar
from diffats.config import load_recipe
from diffats.progress import duration, waiting


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_json: Json = False,
    pilot: Annotated[
        bool,
        typer.Option("--pilot", help="also read up to 256 samples: error and overlap against ranks; time a few steps"),
    ] = False,
) -> None:
    """Say what would be done; refuse what cannot work."""
    given = load_recipe(recipe, overrides or [])
    with progress_bar("plan"):
        with waiting("loading libraries"):
            from diffats.stages import Workspace
            from diffats.stages import pilot as piloting
            from diffats.stages import plan as planning

        work = Workspace(given)
        made = planning.plan(work)
        if pilot:
            with waiting("decomposing some samples"):
                found = piloting.pilot(work)
            made["pilot"], made["overlaps"] = found.rows, found.overlaps
            made["weak_from"] = found.first_below(work.recipe.align.min_overlap)
            with waiting("timing a few steps of the network"):
                made["times"] = piloting.times(work, found.rows[0]["ranks"])
    if as_json:
        print_json(made)
    else:
        _show_plan(made)


def _show_plan(made: dict[str, Any]) -> None:
    from diffats.stages.plan import size

    sizes = ", ".join(f"{mode} {n}" for mode, n in made["sizes"].items())
    split = f"{made['train']} train, {made['test']} test, {made['dropped']} dropped at the split"
    split += f"; {made['new_samples']} new" if "new_samples" in made else ""
    joined = [f"files        {made['joined']}"] if made["joined"] else []
    lines = [
        *joined,
        f"samples      {made['samples']} ({split})",
        *split_lines(made["split"]),
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
        _show_overlaps(made["overlaps"], made["weak_from"], made["pilot"][0]["samples"])


def split_lines(split: dict[str, Any]) -> list[str]:
    """What a split holds out, and how far it is from what is trained on.

    >>> held = {"kind": "stretches", "along": ["time"], "count": 1, "first": ["2001-12-01 .. 2001-12-31"]}
    >>> gaps = {"time": {"points": 3, "distance": 4 * 86400.0, "unit": "s"}}
    >>> for line in split_lines({"held_out": held, "gaps": gaps, "test_groups": 7}):
    ...     print(line)
    held out     1 stretch of time: 2001-12-01 .. 2001-12-31; 7 groups that do not depend on each other
    gap          time: 3 points between training and test samples (4.0 days)
    """
    from diffats.sources import sides

    held, groups = sides.held_out_text(split["held_out"]), split["test_groups"]
    gaps = [f"{dim}: {_gap(gap)}" for dim, gap in split["gaps"].items()]
    lines = [f"held out     {held}; {groups} groups that do not depend on each other"]
    return lines + ([f"gap          {'; '.join(gaps)}"] if gaps else [])


def _gap(gap: dict[str, Any]) -> str:
    count, distance, unit = gap["points"], gap["distance"], gap["unit"]
    points = f"{count} point{'' if count == 1 else 's'} between training and test samples"
    if distance is None:
        return points
    apart = duration(distance) if unit == "s" else f"{distance:g} {unit}".removesuffix(" 1").strip()
    return f"{points} ({apart})"


def _times_lines(times: dict[str, Any] | None) -> list[str]:
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
    aligned = None
    for row in rows:
        if row["aligned"] != aligned:
            aligned = row["aligned"]
            title = f"aligned: {', '.join(aligned)}" + ("" if row is rows[0] else " (instead)")
            typer.echo(f"\n{title}\n{'choice':<14}{'numbers':>9}{'compression':>13}{'error':>9}{'overlap':>9}  ranks")
        typer.echo(
            f"{row['choice']:<14}{row['numbers']:>9}{row['compression']:>12.1f}x{row['anomaly_error']:>9.4f}"
            f"{min(row['overlap'].values()):>9.2f}  {_ranks(row['ranks'])}"
        )


def _show_overlaps(overlaps: dict[str, dict[int, float]], weak_from: dict[str, int], samples: int) -> None:
    ranks = sorted({rank for by in overlaps.values() for rank in by})
    typer.echo("\noverlap by rank " + "".join(f"{rank:>6}" for rank in ranks))
    for mode, by in overlaps.items():
        cells = (f"{by[rank]:>6.2f}" if rank in by else " " * 6 for rank in ranks)
        typer.echo(f"{mode:<16}{''.join(cells)}".rstrip())
    typer.echo()
    for mode, rank in weak_from.items():
        typer.echo(
            f"{mode}: from rank {rank} on overlaps are below align.min_overlap. Use a lower one, or do not align it"
        )
    typer.echo(_PILOT_NOTE.format(samples))


_PILOT_NOTE = """\
error    of the anomaly (a sample's deviation from the training mean), mean of {} training samples. "error <= e"
         has the fewest numbers that keep its root mean square below e, as decompose.tolerance = e does
overlap  smallest cosine between a sample's factors and the anchor, median over samples, of the worst mode; near 0
         alignment is arbitrary, and what is generated suffers
Put the ranks and aligned modes of a row with a small error and a large overlap into the recipe."""


def _ranks(ranks: dict[str, int]) -> str:
    return ", ".join(f"{mode} {rank}" for mode, rank in ranks.items())
