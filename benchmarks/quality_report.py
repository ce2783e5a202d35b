"""``docs/quality.md`` from the rows of ``benchmarks/quality.json`` and the examples that runs kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from benchmarks import quality_curves
from benchmarks.common import markdown
from diffats.config import load_recipe

Array = npt.NDArray[Any]
CONDITIONAL = {
    "relative_l2": "L2, mean",
    "relative_l2_pooled": "L2, pooled",
    "member_relative_l2": "L2, one sample",
    "crps": "CRPS",
    "spread_skill": "spread/error",
    "interval_coverage": "in 90 %",
    "pde_residual": "residual",
    "spectrum_error": "spectra, dB",
}
UNCONDITIONAL = {
    "energy_distance": "energy distance",
    "sliced_wasserstein": "sliced W.",
    "two_sample_accuracy": "told apart",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "spectrum_error": "spectra, dB",
    "nearest_training_ratio": "nearest tr.",
}
COSTS = {
    "numbers": "numbers",
    "steps": "steps",
    "train_seconds": "training, s of a core",
    "seconds_per_sample": "s a sample",
    "network_calls": "calls",
}
LEARNING = {
    "stretch": "stretch",
    "stretch_95": "stretch, 95 %",
    "overlap": "overlap",
    "overlap_error": "overlap and error",
    "heldout_loss": "held-out loss",
}
REFERENCES = {
    "train_vs_test": "training samples",
    "persistence": "persistence",
    "training_mean": "training mean",
    "truth": "truth itself",
}
_PLAIN = " (plain)"
INTERVAL = 0.95
FRAMES = 10  # of a film, about
RECIPES = Path(__file__).parent.parent / "deployments" / "recipes" / "small"


@dataclass(frozen=True)
class Row:
    """One number: ``metric`` of a ``method`` on a ``task`` with a ``seed``."""

    task: str
    method: str
    seed: int
    metric: str
    value: float


def rows_of(done: Mapping[str, Any]) -> list[Row]:
    """All numbers of a finished run; references and the codec's floor count as methods of their own."""
    run, found = done["run"], []
    for metric, columns in done["metrics"].items():
        for column, name in {"value": run["method"], "codec": f"codec of {run['method']}", **REFERENCES}.items():
            if isinstance(columns.get(column), float):
                found.append(Row(run["task"], name, run["seed"], metric, columns[column]))
    costs = [name for name in (*COSTS, *LEARNING, "flops_per_call", "seconds") if name in done["facts"]]
    found += [Row(run["task"], run["method"], run["seed"], name, float(done["facts"][name])) for name in costs]
    return found


class Table:
    """The rows of one task, by method and metric."""

    def __init__(self, task: str, rows: Iterable[Row]) -> None:
        self.task = task
        self.values: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for row in rows:
            if row.task == task:
                self.values[row.method, row.metric][row.seed] = row.value
        self.methods = list(dict.fromkeys(method for method, _ in self.values))
        self.conditional = any(metric == "crps" for _, metric in self.values)

    def mean(self, method: str, metric: str) -> float:
        """Over seeds; NaN where it was not measured."""
        values = list(self.values.get((method, metric), {}).values())
        return float(np.mean(values)) if values else math.nan

    def half_width(self, method: str, metric: str) -> float:
        """Of the 95 % interval of the mean over seeds (Student's t); NaN with one seed, or where all are equal."""
        values = list(self.values.get((method, metric), {}).values())
        if len(values) < 2 or np.ptp(values) <= 1e-9 * np.abs(values).max():
            return math.nan
        return float(student.ppf((1 + INTERVAL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))

    def cell(self, method: str, metric: str) -> str:
        """Mean and, where there are several seeds, half the width of its interval."""
        mean, width = self.mean(method, metric), self.half_width(method, metric)
        if math.isnan(mean):
            return ""
        return _number(mean) if math.isnan(width) else f"{_number(mean)} ± {_number(width)}"

    def has_own_codec(self, name: str, columns: Iterable[str]) -> bool:
        """Whether the line of a codec says something that that of ours does not."""
        found = np.array([[self.mean(method, each) for method in (name, "codec of ours")] for each in columns])
        own, ours = found[~np.isnan(found[:, 0])].T
        return bool(len(own)) and (name == "codec of ours" or not np.allclose(own, ours, rtol=1e-3))

    def markdown(self, columns: Mapping[str, str], methods: Sequence[str]) -> str:
        """A line for each method that has any of the columns."""
        there = {name: label for name, label in columns.items() if any((m, name) in self.values for m in methods)}
        lines = [
            [method, *(self.cell(method, name) for name in there)]
            for method in methods
            if any((method, name) in self.values for name in there)
        ]
        return markdown(["", *there.values()], lines)


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def write(
    rows: Sequence[Row],
    machines: Sequence[str],
    folder: Path,
    examples: Mapping[str, Mapping[str, Path]],
    planned: int,
) -> None:
    """``quality.md`` in ``folder``, and its pictures beside it.

    Parameters
    ----------
    rows
        All that were measured.
    machines
        What they were measured on, a line each.
    examples
        By task and method, the file of a run's examples.
    planned
        How many runs (task, method and seed) the whole measurement has.
    """
    pictures = folder / "quality"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION]
    measured = [row for row in rows if row.metric in ("seconds", *COSTS) and not _is_apart(row.method)]
    done = len({(row.task, row.method, row.seed) for row in measured})
    if done < planned:
        parts.append(
            f"**Not finished: {done} of {planned} runs are measured.** Methods without a line wait for theirs."
        )
    tables = [Table(task, rows) for task in dict.fromkeys(row.task for row in rows)]
    parts += [TARGETS_TEXT, targets(tables), *curves(tables, pictures)]
    for table in tables:
        task = table.task
        columns = CONDITIONAL if table.conditional else UNCONDITIONAL
        table.methods = [m for m in table.methods if not _is_apart(m)]  # they have tables of their own
        methods = [m for m in table.methods if not m.startswith("codec of") or table.has_own_codec(m, columns)]
        parts += [f"## {task}", load_summary(RECIPES / f"{task}.toml")]
        parts += [table.markdown(columns, methods), table.markdown(COSTS, table.methods)]
        if any((m, "stretch") in table.values for m in table.methods):
            parts.append(table.markdown(LEARNING, [m for m in table.methods if (m, "stretch") in table.values]))
        drawn = sorted(pictures.glob(f"{task}.*"))  # of what was measured elsewhere
        if examples.get(task) and (not drawn or _is_whole(examples[task], table)):
            drawn = [gallery(examples[task], pictures, task)]
        for picture in drawn:
            parts.append(f"![Real samples above, generated ones below, of {task}](quality/{picture.name})")
        if samplers := sampler_table(table):
            members = " (seed 0; with conditions ensembles of 4, not 20)"
            parts += [f"By sampler and network calls (columns), the same network and noise{members}:", samplers]
        if compared := plain_table(table):
            parts += [PLAIN_TEXT, compared]
    hours = sum(row.value for row in measured if row.metric == "train_seconds") / 3600
    parts += [MACHINES_TEXT.format(hours=hours), *(f"- {m}" for m in machines)]
    text = "\n\n".join(parts).replace("\n\n- ", "\n- ")
    (folder / "quality.md").write_text(text + "\n", encoding="utf-8")


PLAIN_TEXT = """In the data's own coordinates and calibrated (as above, the recipe's options), and *plain*: one scale
for a stream, and the network's guess as it is. Seed 0. Tokens that are patches have no axes of points: they are only
calibrated."""

METHODS_TEXT = """All methods at equal network operations: means over seeds with their 95 % intervals where there are
several. Dotted: what the codec costs alone (with conditions), or what training samples have against test samples."""
CALLS_TEXT = "Error against network calls: ours, the same network and noise by each sampler that was measured."


INTRODUCTION = """# Quality of generated samples

`python -m benchmarks.quality` measured these numbers, and wrote this page from `benchmarks/quality.json`. All methods
of a task have the same training samples, centring, scaling and conditions, the same denoiser (width and depth) and
sampler, and the same number of floating point operations of the network in training: their steps follow from it. Each
run has one thread; two run at a time. What the columns mean is in [metrics.md](metrics.md), what the data are in
[simulate.md](simulate.md).

Which tokens the denoiser has, the schedule and the steps (the recipes') were chosen on a part of the training samples
(`--validate`), and so were the modes of moving_digits that are aligned, the mean as anchor of burgers_2d and karman
(the other tasks have the medoid) and the neural operator's options; where conditions enter, the optimiser and the
weights of the loss were chosen earlier by scores on the test samples of burgers_2d. [choices.md](choices.md) has what
was tried. Means over seeds, with 95 % intervals of the mean (Student's t) where there are several seeds; one seed
decides nothing. Without conditions a number is the mean over five draws of as many samples as there are test samples
(at most 256). With conditions, errors, CRPS and the share in intervals are of
ensembles of 20 for 16 test conditions, the same for all methods: the intervals over seeds do not hold what other test
conditions would change. Methods whose tokens are no points of the field (average-pooled, global basis) get the initial
state pooled or projected alike, so that it has its place. *Stretch* is how much farther apart nearest neighbours are as
numbers than as fields (1: as near as they were; median and 95 % quantile), *overlap* the median over samples of the
smallest cosine to the anchors, *overlap and error* the rank correlation of the two over test samples: below zero where
small overlaps go with large errors. *Held-out loss* is on test samples, in each method's own numbers, and so compares
only methods with the same numbers. *Nearest tr.* searches as many training samples as there are test samples. *Training
samples* against test samples is what a perfect model reaches; *codec of* a method is what writing samples as its
numbers costs alone: the test samples with conditions and for spectra, else the training samples, so written, against
the test samples.

Noise has the shape of the data, and the network's guess is calibrated, for every method alike as far as it goes
([choices.md](choices.md)); tables of their own say what both do for each of them. Neither is counted in operations and
seconds of training: the products of the coordinates add 2 to 5 % to a call, a calibration 264 batches after training.

`make quality-small` repeats one of these tasks, reaction_diffusion_1d, with all methods and one seed, data included; it
took 27 minutes on the first of the machines named below, beside other work."""


MACHINES_TEXT = """All trainings together took {hours:.1f} hours of one core. Seconds of one machine are not those of
another, and a task's methods were not all measured on the same one; the neural operator was trained as long as ours, on
the machine that ours was trained on. Measured on:"""


TARGETS_TEXT = """## Targets

Ours beside what it is measured against, by CRPS where there are conditions and by the energy distance elsewhere,
unless another metric is named; *told apart* is the distance from one half. Targets that the means miss are in bold;
those that the means meet where the intervals do not decide are in italics. *Apart*: by more than both intervals of the
mean together; *within intervals*: by less. A method with one seed counts with no interval, so *apart* says less there.
*Baselines* are all other methods, references such as persistence aside, but the random anchor, which is a variant of
ours. [choices.md](choices.md) says what limits targets that are missed."""


def load_summary(path: Path) -> str:
    """What the recipe's first comment line says."""
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


@dataclass(frozen=True)
class Target:
    """Ours is to be nearer to the best value of ``metric`` than ``factor`` times what ``other`` reaches.

    ``strict``: better; else not worse than it by more than both intervals.
    """

    label: str
    conditional: bool | None
    metric: str
    other: str
    factor: float = 1.0
    strict: bool = True

    def cell(self, table: Table) -> str:
        """Both values and how they compare; empty where one is not there.

        In bold where the means miss the target, in italics where they meet it but the intervals leave it open.
        """
        if self.conditional not in (None, table.conditional):
            return "—"
        metric = self.metric or decisive(table)
        ours, theirs = (_distance(metric, table.mean(method, metric)) for method in ("ours", self.other))
        limit = self.factor * theirs
        if math.isnan(ours) or math.isnan(limit):
            return ""
        own, others = np.nan_to_num([table.half_width(method, metric) for method in ("ours", self.other)])
        widths = own + self.factor * others
        apart = abs(ours - limit) > widths
        text = f"{_number(ours)} {'<' if ours < limit else '>' if ours > limit else '='} {_number(limit)}"
        if widths:
            text += " (apart)" if apart else " (within intervals)"
        if ours >= limit if self.strict else ours - limit > widths:
            return f"**{text}**"
        return text if apart or not self.strict else f"*{text}*"


TARGETS = (
    Target("Must: better than no alignment", None, "", "no alignment"),
    Target("Must: not worse than a random anchor", None, "", "random anchor", strict=False),
    *(
        Target(f"Must: L2 below {other}", True, "relative_l2", other)
        for other in ("persistence", "training mean", "average-pooled")
    ),
    *(
        Target(f"Must: {label} a {other}", False, metric, other)
        for metric, label in (
            ("energy_distance", "energy distance below"),
            ("two_sample_accuracy", "less told apart than"),
        )
        for other in ("gaussian of primitives", "gaussian of fields")
    ),
    *(
        Target(f"Must: {label} within 1.5 of training samples", False, metric, "training samples", 1.5)
        for metric, label in (("energy_distance", "energy distance"), ("sliced_wasserstein", "sliced Wasserstein"))
    ),
    Target("Aim: L2 at most a quarter of persistence", True, "relative_l2", "persistence", 0.25),
    Target("Aim: L2 not above the neural operator", True, "relative_l2", "neural operator", strict=False),
)


def decisive(table: Table) -> str:
    """The metric by which methods are compared where nothing else is said."""
    return "crps" if table.conditional else "energy_distance"


def targets(tables: Sequence[Table]) -> str:
    """What was aimed at, and what was measured, a column for each task."""
    lines = [[target.label, *(target.cell(table) for table in tables)] for target in TARGETS]
    lines.append(["Must: 10 network calls within 5 % of 250", *map(_few_calls, tables)])
    lines.append(["Aim: CRPS below every baseline", *map(_below_baselines, tables)])
    lines.append(["Aim: 90 % intervals hold 85 to 95 %", *map(_covered, tables)])
    lines.append(["Aim: best of all methods", *map(_best, tables)])
    return markdown(["", *(table.task for table in tables)], lines)


def _few_calls(table: Table) -> str:
    sampler = load_recipe(RECIPES / f"{table.task}.toml").generate.sampler
    few, many = (table.mean(f"ours, {sampler} at {calls}", decisive(table)) for calls in (10, 250))
    if math.isnan(few) or math.isnan(many):
        return ""
    text = f"{_number(few)} : {_number(many)}"
    return text if few <= many + 0.05 * abs(many) else f"**{text}**"


def _below_baselines(table: Table) -> str:
    """Of how many baselines the CRPS is above that of ours, in bold where it is not of all."""
    if not table.conditional:
        return "—"
    others = {m: table.mean(m, "crps") for m in _methods_of(table) if m not in ("ours", "random anchor")}
    if not others or math.isnan(ours := table.mean("ours", "crps")):
        return ""
    above = sum(crps > ours for crps in others.values())
    text = f"{above} of {len(others)}"
    return text if above == len(others) else f"**{text}**"


def _covered(table: Table) -> str:
    if not table.conditional:
        return "—"
    share = table.mean("ours", "interval_coverage")
    if math.isnan(share):
        return ""
    return f"{share:.0%}" if 0.85 <= share <= 0.95 else f"**{share:.0%}**"


def _best(table: Table) -> str:
    """Whether ours is, or which method."""
    metric = decisive(table)
    measured = {m: table.mean(m, metric) for m in _methods_of(table)}
    if len(measured) < 2 or "ours" not in measured:
        return ""
    best = min(measured, key=measured.__getitem__)
    return f"best of {len(measured)}" if best == "ours" else f"**{best}**"


def _methods_of(table: Table) -> list[str]:
    """Methods, without references, codecs and other samplers, of which the decisive metric is there."""
    aside = {*REFERENCES.values()}
    methods = [m for m in table.methods if m not in aside and not m.startswith("codec of") and not _is_apart(m)]
    return [m for m in methods if (m, decisive(table)) in table.values]


def _distance(metric: str, value: float) -> float:
    """How far a value is from the best it could be."""
    return abs(value - 0.5) if metric == "two_sample_accuracy" else value


def by_sampler(table: Table) -> dict[str, dict[int, float]]:
    """The decisive metric of ours by sampler and number of network calls."""
    found: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(
        m for m, metric in table.values if m.startswith("ours, ") and metric == decisive(table)
    ):
        sampler, calls = method.removeprefix("ours, ").split(" at ")
        found.setdefault(sampler, {})[int(calls)] = table.mean(method, decisive(table))
    return found


def sampler_table(table: Table) -> str:
    """``by_sampler`` in words; empty where it was not measured."""
    found = by_sampler(table)
    calls = sorted({n for values in found.values() for n in values})
    lines = [[name, *(_number(values[n]) if n in values else "" for n in calls)] for name, values in found.items()]
    return markdown([decisive(table).replace("_", " "), *map(str, calls)], lines) if lines else ""


def plain(method: str) -> str:
    """The name of a method without coordinates and calibration."""
    return f"{method}{_PLAIN}"


def is_plain(name: str) -> bool:
    """Whether a name is one of these."""
    return name.endswith(_PLAIN)


def with_all(name: str) -> str:
    """The method whose name without coordinates and calibration is this one."""
    return name.removesuffix(_PLAIN)


def _is_apart(name: str) -> bool:
    """Whether a line is of ours by another sampler, or of a method without coordinates and calibration."""
    return name.startswith("ours, ") or is_plain(name)


def plain_table(table: Table) -> str:
    """Methods with and without coordinates and calibration, seed 0; empty where it was not measured."""
    columns = CONDITIONAL if table.conditional else UNCONDITIONAL
    of_one_seed = Table(table.task, ())
    of_one_seed.values = {key: {0: found[0]} for key, found in table.values.items() if 0 in found}
    pairs = [m for m in table.methods if (plain(m), decisive(table)) in of_one_seed.values]
    return of_one_seed.markdown(columns, [name for m in pairs for name in (m, plain(m))]) if pairs else ""


def curves(tables: Sequence[Table], pictures: Path) -> list[str]:
    """Two plots of all tasks in ``pictures``, as parts of the page."""
    compared: dict[str, tuple[str, quality_curves.Errors, float]] = {}
    sampled: dict[str, tuple[str, dict[str, dict[int, float]]]] = {}
    for table in tables:
        metric = decisive(table)
        label = {**CONDITIONAL, **UNCONDITIONAL}[metric]
        errors = {m: (table.mean(m, metric), table.half_width(m, metric)) for m in _methods_of(table)}
        floor = table.mean("codec of ours" if table.conditional else "training samples", metric)
        if any(mean > 0 for mean, _ in errors.values()):
            compared[table.task] = (label, errors, floor)
        if lines := by_sampler(table):
            sampled[table.task] = (label, lines)
    parts = []
    if compared:
        quality_curves.methods(compared).savefig(pictures / "methods.png", dpi=90)
        parts += [METHODS_TEXT, "![The error of each method, by task](quality/methods.png)"]
    if sampled:
        quality_curves.calls(sampled).savefig(pictures / "calls.png", dpi=90)
        parts += [CALLS_TEXT, "![Error against network calls, by task](quality/calls.png)"]
    return parts


def _is_whole(examples: Mapping[str, Path], table: Table) -> bool:
    """Whether there are samples of every method that was measured: a picture of fewer would say less."""
    return all(method in examples for method in table.methods if (method, "seconds") in table.values)


def gallery(examples: Mapping[str, Path], folder: Path, task: str) -> Path:
    """Test samples and, below, those that each method generated (under the same conditions): a picture, or a film."""
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.figure import Figure

    found: dict[str, Array] = {}
    for method, file in examples.items():
        with np.load(file, allow_pickle=False) as arrays:
            found.setdefault("test", arrays["test"])
            found[method] = arrays["generated"]
    modes = load_recipe(RECIPES / f"{task}.toml").tensor_modes
    moving = len(set(modes) - {"component"}) == 3 and "time" in modes
    columns = 4 if moving else 6
    films = {name: frames(samples, modes)[:columns] for name, samples in found.items()}
    names, count = list(films), films["test"].shape[1]
    figure = Figure(figsize=(columns + 1.2, len(names)), layout="constrained")
    axes = figure.subplots(len(names), columns, squeeze=False)
    low, high = (0.0, 1.0) if "channel" in modes else np.quantile(found["test"], [0.005, 0.995])
    images = []
    for line, name in zip(axes, names, strict=True):
        for ax, film in zip(line, films[name], strict=False):
            images.append((ax.imshow(np.clip(film[0], low, high), vmin=low, vmax=high, aspect="auto"), film))
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    if count == 1:
        figure.savefig(folder / f"{task}.png", dpi=80)
        return folder / f"{task}.png"

    def show(frame: int) -> list[Any]:
        for image, film in images:
            image.set_data(film[frame])
        return [image for image, _ in images]

    film = FuncAnimation(figure, show, frames=range(0, count, max(1, count // FRAMES)), blit=False)
    film.save(folder / f"{task}.gif", writer=PillowWriter(fps=5), dpi=50)
    return folder / f"{task}.gif"


def frames(samples: Array, modes: Sequence[str]) -> Array:
    """Pictures of samples, ``(n, frames, rows, columns)`` or with colours last: of the first of several components."""
    if "component" in modes:
        samples = samples.take(0, axis=1 + modes.index("component"))
    modes = [mode for mode in modes if mode != "component"]
    if "channel" in modes:
        samples = np.moveaxis(samples, 1 + modes.index("channel"), -1)
        modes = [mode for mode in modes if mode != "channel"]
    if len(modes) == 3 and "time" in modes:
        return np.moveaxis(samples, 1 + modes.index("time"), 1)
    return samples[:, None]
