"""What the roots in a folder hold: how far each recipe came, its model and its result, from its own files alone.

Neither recipes nor sources are opened, and neither torch nor MLflow is imported.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffats import bundle, evaluation
from diffats.errors import DiffatsError, InputError, IntegrityError
from diffats.stages import STAGES
from diffats.stages.train import steps_done
from diffats.stages.workspace import find_store
from diffats.store import is_being_written

#: Stages by the group that each leaves in a store.
_GROUPS = {
    "tucker": "decompose",
    "anchor": "select_anchor",
    "primitives": "align",
    "normalisation": "fit_normalisation",
    "samples": "generate",
}
_MARKS = ("store", "bundles", "training", "seconds.json")  # of which a root has at least one
_DAMAGE = (DiffatsError, OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass
class Run:
    """What is known of one root.

    Attributes
    ----------
    root, name
        Where it is; the recipe's name, the folder's where nothing tells.
    finished
        Stages whose newest result is whole.
    unfinished
        What was begun and not finished, such as ``"train at step 1,200"``; empty where there is no such thing.
    running
        Whether a process is at work on it now.
    model
        ``version`` and ``alias`` that it got when it was registered here; empty where it was not.
    headline
        What decides, with its value and how it compares, one sentence each.
    changed
        When it last changed, ISO 8601, UTC.
    problems
        What could not be read.
    """

    root: Path
    name: str
    finished: list[str] = field(default_factory=list)
    unfinished: str = ""
    running: bool = False
    model: dict[str, str] = field(default_factory=dict)
    headline: list[str] = field(default_factory=list)
    changed: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One of "running", "interrupted", "finished", "begun" and "damaged"."""
        if self.running:
            return "running"
        if self.problems:
            return "damaged"
        if self.unfinished:
            return "interrupted"
        return "finished" if "report" in self.finished else "begun"


def find_runs(folder: Path) -> list[Run]:
    """The runs whose roots are in a folder, or the one whose root it is, by name.

    Raises
    ------
    InputError
        Where there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Give one that holds roots of recipes, or a root; runs if left out.")
    roots = [folder] if _is_root(folder) else sorted(filter(_is_root, folder.iterdir()))
    return [describe(root) for root in roots]


def _is_root(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def describe(root: Path) -> Run:
    """What one root holds; what cannot be read is among its problems."""
    run = Run(root, root.absolute().name, running=is_being_written(root), changed=_changed(root))
    for read in (_read_stores, _read_training, _read_model):
        try:
            read(run)
        except _DAMAGE as error:
            run.problems.append(str(error) if isinstance(error, DiffatsError) else f"{type(error).__name__}: {error}")
    run.finished += ["report"] * (root / "report.html").exists()
    run.finished.sort(key=STAGES.index)
    return run


def _changed(root: Path) -> str:
    """The newest time of what lies in the root, one level deep; locks, which change with every run, do not count."""
    entries = [path for pattern in ("[!.]*", "[!.]*/*") for path in root.glob(pattern)]
    newest = max((path.lstat().st_mtime for path in entries), default=root.stat().st_mtime)
    return datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")


def _read_stores(run: Run) -> None:
    for place in ("store", "samples"):
        store = find_store(str(run.root / place)) if (run.root / place).is_dir() else None
        if store is None:
            continue
        run.name = store.name or run.name
        newest = {entry["group"]: entry for entry in store.versions() if not entry["withdrawn"]}
        for group, stage in _GROUPS.items():
            if group not in newest:
                continue
            if newest[group]["complete"]:
                run.finished.append(stage)
            else:
                run.unfinished = f"{stage} at {newest[group]['done']:,} of {newest[group]['total']:,} samples"


def _read_training(run: Run) -> None:
    """Of the training that changed last, whether its newest checkpoint became a model."""
    trainings = sorted((run.root / "training").glob("*/"), key=lambda path: path.stat().st_mtime_ns)
    if trainings and (steps := steps_done(trainings[-1])):
        identity = trainings[-1].name.partition("-")[0]
        if any((run.root / "bundles").glob(f"{identity}-{steps}*/bundle.json")):
            run.finished.append("train")
        else:
            run.unfinished = f"train at step {steps:,}"


def _read_model(run: Run) -> None:
    """The model that stands for the root, its evaluation and its registration."""
    model = bundle.latest(run.root)
    if model is None:
        return
    recipe = _read(model / "bundle.json")["recipe"]
    run.name = str(recipe["name"])
    records = {path.stem: _read(path) for path in (run.root / "registered").glob("*.json")}
    record = records.get(model.name)
    files = sorted((run.root / "evaluation").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if record:
        identity, _, version = record["key"]
        run.finished.append("register")
        run.model = {"version": str(version), "alias": _alias(version, records.values())}
        files = [path for path in files if path.stem == identity[:16]] or files
    if files:
        run.finished.append("evaluate")
        run.headline = headline(_read(files[-1]), recipe.get("evaluate", {}).get("metric", "energy_distance"))


def _alias(version: str, records: Collection[dict[str, Any]]) -> str:
    """The alias that a version has after all registrations under this root; empty where later ones took it.

    >>> first = {"key": ["", "", "1"], "verdict": "first champion: it beats the Gaussian"}
    >>> second = {"key": ["", "", "2"], "verdict": "not champion: it is worse"}
    >>> [_alias(version, [first, second]) for version in ("1", "2")]
    ['champion', 'candidate']
    """
    won = [each for each in records if each["verdict"].partition(":")[0] in ("champion", "first champion")]
    for alias, those in (("champion", won), ("candidate", records)):
        if version == max((each["key"][2] for each in those), key=int, default=None):
            return alias
    return ""


def headline(metrics: dict[str, Any], deciding: str) -> list[str]:
    """What decides, as the report says it.

    >>> headline({"crps": {"label": "CRPS", "value": 0.5, "persistence": 0.9, "better": "lower"}}, "crps")
    ['CRPS 0.5 beats persistence']
    """
    rows = evaluation.deciding_rows(metrics, deciding)
    words = [
        (evaluation.within(row["label"]), evaluation.written(row, "value"), evaluation.verdict(row)) for row in rows
    ]
    return [" ".join(filter(None, each)) for each in words]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: cannot be read ({error}).") from error
