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
REFERENCES = {
    "train_vs_test": "training samples",
    "persistence": "persistence",
    "training_mean": "training mean",
    "truth": "truth itself",
}
INTERVAL = 0.95


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
    costs = [name for name in (*COSTS, "flops_per_call", "seconds") if name in done["facts"]]
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
        if len(set(values)) < 2:
            return math.nan
        return float(student.ppf((1 + INTERVAL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))

    def cell(self, method: str, metric: str) -> str:
        """Mean and, where there are several seeds, half the width of its interval."""
        mean, width = self.mean(method, metric), self.half_width(method, metric)
        if math.isnan(mean):
            return ""
        return _number(mean) if math.isnan(width) else f"{_number(mean)} ± {_number(width)}"

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
    recipes: Path,
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
    recipes
        Of the tasks.
    planned
        How many runs (task, method and seed) the whole measurement has.
    """
    pictures = folder / "quality"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION]
    done = len({(row.task, row.method, row.seed) for row in rows if row.metric in ("seconds", *COSTS)})
    if done < planned:
        parts.append(
            f"**Not finished: {done} of {planned} runs are measured.** Methods without a line wait for theirs."
        )
    for task in dict.fromkeys(row.task for row in rows):
        table = Table(task, rows)
        measured = CONDITIONAL if table.conditional else UNCONDITIONAL
        table.methods = [m for m in table.methods if not m.startswith("ours, ")]  # they have a table of their own
        methods = [
            m for m in table.methods if not m.startswith("codec of") or (m, next(iter(measured))) in table.values
        ]
        parts += [f"## {task}", load_summary(recipes / f"{task}.toml")]
        parts += [table.markdown(measured, methods), table.markdown(COSTS, table.methods)]
        parts += [f"- {line}" for line in verdicts(table)]
        if examples.get(task):
            gallery(examples[task], pictures / f"{task}.png", recipes / f"{task}.toml")
            parts.append(f"![Real samples above, generated ones below, of {task}](quality/{task}.png)")
        if samplers := sampler_table(table):
            parts += ["By sampler and network calls (columns), the same network and noise:", samplers]
    parts += ["Measured on:", *(f"- {machine}" for machine in machines)]
    text = "\n\n".join(parts).replace("\n\n- ", "\n- ")
    (folder / "quality.md").write_text(text + "\n", encoding="utf-8")


INTRODUCTION = """# Quality of generated samples

`python -m benchmarks.quality` measured these numbers, and wrote this page from `benchmarks/quality.json`. All methods
of a task have the same training samples, centring, scaling and conditions, the same denoiser (width and depth) and
sampler, and the same number of floating point operations of the network in training: their steps follow from it. Each
run has one thread; two run at a time. What the columns mean is in [metrics.md](metrics.md), what the data are in
[simulate.md](simulate.md).

Options of ours (the recipes') were chosen by trials that were scored on these test samples, those of the neural
operator on a part of the training samples. Means over seeds, with 95 % intervals of the mean (Student's t) where there
are several seeds; one seed decides nothing.
*Training samples* against test samples is what a perfect model reaches; *codec of* a method is what writing the test
samples as its numbers costs alone."""


def load_summary(path: Path) -> str:
    """What the recipe's first comment line says."""
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def verdicts(table: Table) -> list[str]:
    """What the task's targets ask, and what was measured."""
    decisive = "crps" if table.conditional else "energy_distance"
    lines = [compared(table, decisive, other) for other in ("no alignment", "random anchor", "average-pooled")]
    if table.conditional:
        others = ("persistence", "training mean", "gaussian of fields", "neural operator")
        lines += [compared(table, "relative_l2", other) for other in others]
    else:
        gaussians = ("gaussian of primitives", "gaussian of fields")
        lines += [compared(table, name, o) for name in ("energy_distance", "two_sample_accuracy") for o in gaussians]
        lines.append(compared(table, "sliced_wasserstein", "training samples"))
    return [line for line in lines if line]


def compared(table: Table, metric: str, other: str) -> str:
    """Ours beside another method by one metric, in words; empty where one of them was not measured."""
    ours, theirs = (_distance(metric, table.mean(method, metric)) for method in ("ours", other))
    if math.isnan(ours) or math.isnan(theirs):
        return ""
    widths = [table.half_width(method, metric) for method in ("ours", other)]
    verdict = "Better" if ours < theirs else "Worse"
    if not any(map(math.isnan, widths)):
        verdict += ", intervals apart" if abs(ours - theirs) > sum(widths) else ", within the intervals"
    values = f"{table.cell('ours', metric)} against {table.cell(other, metric)}"
    return f"{verdict} than {other}: {metric.replace('_', ' ')} {values}, {ours / theirs:.2f} of it."


def _distance(metric: str, value: float) -> float:
    """How far a value is from the best it could be."""
    return abs(value - 0.5) if metric == "two_sample_accuracy" else value


def sampler_table(table: Table) -> str:
    """The decisive metric of ours by sampler and number of network calls; empty where it was not measured."""
    metric = "crps" if table.conditional else "energy_distance"
    found = {m: m.removeprefix("ours, ").split(" at ") for m, name in table.values if m.startswith("ours, ")}
    calls = sorted({int(each[1]) for each in found.values()})
    samplers = list(dict.fromkeys(each[0] for each in found.values()))
    lines = [[name, *(table.cell(f"ours, {name} at {n}", metric) for n in calls)] for name in samplers]
    return markdown([metric.replace("_", " "), *map(str, calls)], lines) if lines else ""


def gallery(examples: Mapping[str, Path], path: Path, recipe: Path, *, columns: int = 6) -> None:
    """A picture of test samples and, below, those that each method generated (under the same conditions)."""
    from matplotlib.figure import Figure

    found: dict[str, Array] = {}
    for method, file in examples.items():
        with np.load(file, allow_pickle=False) as arrays:
            found.setdefault("test", arrays["test"])
            found[method] = arrays["generated"]
    modes = load_recipe(recipe).tensor_modes
    names = list(found)
    figure = Figure(figsize=(1.5 * columns + 1.2, 1.5 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), columns, squeeze=False)
    low, high = np.quantile(found["test"], [0.005, 0.995])
    for line, name in zip(axes, names, strict=True):
        for ax, sample in zip(line, found[name], strict=False):
            image = picture(sample, modes)
            if image.ndim == 3:
                ax.imshow(np.clip(image, 0, 1))
            else:
                ax.imshow(image, vmin=low, vmax=high, cmap="viridis", aspect="auto")
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=80)


def picture(sample: Array, modes: Sequence[str]) -> Array:
    """Two axes of a sample: its last frame where there are three, its colours last where there are channels."""
    if "component" in modes:
        sample = sample[0]
    modes = [mode for mode in modes if mode != "component"]
    if "channel" in modes:
        return np.moveaxis(sample, modes.index("channel"), -1)
    if len(modes) == 3 and "time" in modes:
        return np.asarray(sample.take(-1, axis=modes.index("time")))
    return sample
