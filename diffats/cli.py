"""The ``diffats`` command: one verb per stage of a recipe, and verbs that look at what is there.

Heavy libraries are imported inside the verbs, so that help is instant.
"""

from __future__ import annotations

import _thread
import atexit
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from diffats import openmp
from diffats.config import Recipe, described, load_recipe
from diffats.errors import DiffatsError, Terminated, redact
from diffats.progress import LoggedProgress, ProgressLine
from diffats.requirements import require

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from diffats.stages import StageResult
    from diffats.stages.versions import Compared

openmp.set_waiting()

_INTERRUPTED, _TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM

errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _say(text: str) -> None:
    """One line on standard error, in a terminal above the progress bar."""
    if sys.stderr.isatty():
        errors.print(text)
    else:
        typer.echo(text, err=True)


class Verbs(TyperGroup):
    """The verbs; an error of ours ends one with one message and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            with _shown_log(), terminated_as_interrupted():
                return super().invoke(ctx)
        except DiffatsError as error:
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:
            raise  # `diffats ... | head`: nothing is wrong
        except OSError as error:
            _say(f"error: {redact(str(error))}. What was committed stays; run the same command to continue.")
            raise typer.Exit(1) from error
        except (KeyboardInterrupt, RuntimeError, ImportError) as error:
            stop = interrupt_behind(error)
            if stop is None:
                raise
            _say(interruption(stop))
            raise typer.Exit(interrupted_code(stop)) from error


app = typer.Typer(
    cls=Verbs,
    help="Aligned tensor primitives of fields, and diffusion models on them. Every verb works on the same recipe; "
    "running it again continues or finds its work done. Exit codes: 0 done, 1 failed, 2 bad input, 3 done, but "
    "some of its samples failed, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE.toml", help="the recipe")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key of the recipe")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would be done")]
Restart = Annotated[bool, typer.Option("--restart", help="make it anew even where it is there")]

# Verb, stage, help.
_VERBS = (
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
            _print_json(_as_dict(result))
        else:
            state = "already there" if result.skipped else f"{result.seconds:.1f} s"
            typer.echo(f"{verb}: {result.summary} ({state})")
        if result.failed:
            raise typer.Exit(3)

    app.command(verb, help=text)(command)


for _verb, _stage, _text in _VERBS:
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


class _BarLine(ProgressLine):
    """The line beside a bar of rich, which shows its text anew ten times a second."""

    def __init__(self, stage: str, bar: RichProgress) -> None:
        super().__init__(stage)
        self.bar, self.task = bar, bar.add_task(stage, total=None, line=self)

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Move the bar."""
        super().__call__(done, total, failed)
        self.bar.update(self.task, completed=done, total=total)


@contextmanager
def progress_bar(stage: str) -> Iterator[ProgressLine | None]:
    """One bar in a terminal; None, and so log lines, elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=None),  # what the line leaves
        progress.TextColumn("{task.fields[line]}"),
    )
    with progress.Progress(*columns, console=errors, transient=True) as bar:
        yield _BarLine(stage, bar)


@app.command()
def simulate(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False, restart: Restart = False) -> None:
    """Make the data that the recipe's section [simulate] describes."""
    from dataclasses import asdict

    from diffats.simulate import simulate as make

    with progress_bar("simulate") as progress:
        made = make(
            load_recipe(recipe, overrides or []), restart=restart, progress=progress or LoggedProgress("simulate")
        )
    if as_json:
        _print_json(asdict(made))
    else:
        state = "already there" if made.skipped else f"{made.seconds:.1f} s"
        typer.echo(f"simulate: {made.total} samples of {made.problem} at {made.source} ({state})")


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
        _print_json(made)
    else:
        _show_plan(made)


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
            _print_json({"history": rows})
        else:
            typer.echo("\n".join(map(_history_line, rows)) or f"{work.root}: nothing yet.")
        return
    entries = [_version_entry(entry) for entry in versions.entries(work)]
    if as_json:
        groups = dict.fromkeys(entry["group"] for entry in entries)
        by_group = {group: [entry for entry in entries if entry["group"] == group] for group in groups}
        _print_json({group: {**found[-1], "versions": found} for group, found in by_group.items()})
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
        _print_json({"tag": name, "deleted": delete, "versions": named})
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
        _print_json({"group": made.a["group"], "a": made.a, "b": made.b, **made.difference.to_dict()})
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
        _print_json({"dry_run": dry_run, "rolled_back": [asdict(each) for each in done]})
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
        _print_json({"dry_run": dry_run, "bytes": freed, "pruned": [asdict(each) for each in done]})
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
        _print_json({"problems": problems})
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
        _print_json({"destination": destination})
    else:
        typer.echo(f"{destination}: open it with xarray.open_datatree({destination!r}, engine='zarr').")


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
        _print_json(made)
    else:
        typer.echo(json.dumps(made, indent=2, default=str))


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


def _as_dict(result: StageResult) -> dict[str, Any]:
    names = ("stage", "skipped", "fingerprint", "version", "location", "done", "total", "failed", "seconds", "metrics")
    return {name: getattr(result, name) for name in (*names, "facts")}


def _print_json(made: Any) -> None:
    typer.echo(json.dumps(made, default=str))


class _Lines(logging.Handler):
    """The library's log as lines on standard error, above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        # What a stage has made is said by its verb, on standard output.
        if record.name != "diffats.stages" or record.levelno > logging.INFO:
            prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
            _say(prefix + self.format(record))


@contextmanager
def _shown_log() -> Iterator[None]:
    """Show the library's log, and nobody else's: other libraries' errors reach the user as ours."""
    ours, root, lines, silence = logging.getLogger("diffats"), logging.getLogger(), _Lines(), logging.NullHandler()
    level = ours.level
    ours.addHandler(lines)
    root.addHandler(silence)  # else Python prints warnings that nobody handles
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        ours.setLevel(level)
        ours.removeHandler(lines)
        root.removeHandler(silence)


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt that an error comes from: Python wraps one that falls into the making of a class, in an import."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, KeyboardInterrupt):
        link = link.__cause__ or link.__context__
    return link


def interruption(error: KeyboardInterrupt) -> str:
    """What to say of a command that was interrupted."""
    word = "terminated" if isinstance(error, Terminated) else "interrupted"
    return f"{word}; what was committed stays. Run the same command to continue."


def interrupted_code(error: KeyboardInterrupt) -> int:
    """Its exit code, which tells what asked for it, as a shell's does."""
    return _TERMINATED if isinstance(error, Terminated) else _INTERRUPTED


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: with its checkpoint, its last state told, and its workers stopped.

    Either waits for the end of an import: libraries in the midst of it may drop what is raised there, or crash.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone can listen
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            _repeat(number)
            return
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored, in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        with _no_lost_interrupt():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _repeat(number: int) -> None:
    """Have a signal come again in a moment, somewhere else."""
    threading.Timer(0.05, _thread.interrupt_main, [number]).start()


@contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """Repeat a Ctrl-C or SIGTERM that came in a weak reference's callback, where exceptions are dropped."""
    before = sys.unraisablehook

    def repeat(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            _repeat(signal.SIGTERM if issubclass(dropped.exc_type, Terminated) else signal.SIGINT)
        else:
            before(dropped)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before


def main(arguments: list[str] | None = None) -> None:
    """Run the command; without arguments those of the process, which ends with it."""
    try:
        app(arguments)
    except SystemExit as done:
        if arguments is None:
            if isinstance(done.code, str):
                _say(done.code)
            leave(done.code if isinstance(done.code, int) else int(done.code is not None))
        raise


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """End the process with this exit code, without taking the interpreter down piece by piece.

    ``at_once`` it does not wait for what libraries do in the end.

    Icechunk's threads may be inside Python at that moment, and then the process aborts (SIGABRT) after all is done.
    """
    zarr = sys.modules.get("zarr.core.sync")
    if zarr is not None:  # waits a moment for its thread, and on a busy machine prints that it still runs
        atexit.unregister(zarr.cleanup_resources)
    # Dask, interrupted while it started, would wait a minute for what never came up.
    if not at_once and code not in (_INTERRUPTED, _TERMINATED):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
