"""What a person reads in the tracker: of a run its description, numbers in groups and files; of a model its limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffats import bundle, evaluation
from diffats import report as page
from diffats.errors import StoreNotFoundError
from diffats.page import compression_facts, data_facts, number, percent, sizes_text
from diffats.report import ReportContent
from diffats.stages import align, evaluate, report, select_anchor, train
from diffats.stages.workspace import StageResult, Workspace
from diffats.store.repository import signature

if TYPE_CHECKING:
    from diffats.registry import StageRun

Metrics = list[tuple[dict[str, float], int]]  # numbers, each set with its step

#: The groups of a run's metrics, and what is in them.
LEGEND = {
    "test/": "generated samples against the held-out test samples",
    "reference/gaussian/": "the same for a Gaussian fitted to the primitives, which a model should beat",
    "reference/train_vs_test/": "the same for real training samples: as close as two honest draws are",
    "reference/persistence/": "the same for a forecast that repeats the initial state",
    "reference/training_mean/": "the same for the mean of the training samples",
    "reference/codec/": "the same for test samples that were compressed and decoded: no model can do better",
    "reference/truth/": "the same for the test samples themselves",
    "codec/": "what compression keeps and loses",
    "train/": "the training's curves; the step is the training step",
}
_CODEC = {
    "compression": "compression",
    "anomaly_error_mean": "anomaly_error",
    "relative_error_mean": "relative_error",
    "n_failed": "failed_samples",
}
_TOLD = ("one sample", "variables", "samples", "source", "split", "conditions")  # of the data; the report has the rest
_CURVES = ("loss", "heldout_loss", "lr")


# --- numbers --------------------------------------------------------------------------------------------------------


def headline_metrics(result: StageResult) -> dict[str, float]:
    """The numbers of a stage by which runs are compared, in groups."""
    if result.stage == "decompose":
        return {f"codec/{told}": result.metrics[name] for name, told in _CODEC.items() if name in result.metrics}
    if result.stage == "evaluate":
        return grouped(result.facts["metrics"])
    return {}


def grouped(table: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """An evaluation's table as metrics of a run.

    >>> grouped({"crps": {"value": 0.2, "persistence": 0.5}, "anomaly_error": {"value": 0.1, "training_mean": 1.0}})
    {'test/crps': 0.2, 'codec/test_anomaly_error': 0.1, 'reference/persistence/crps': 0.5}
    """
    found = {}
    for name, row in table.items():
        of_codec = name in evaluation.OF_CODEC
        for column in ("value",) if of_codec else evaluation.COLUMNS:
            if row.get(column) is not None:
                group = "codec/test_" if of_codec else "test/" if column == "value" else f"reference/{column}/"
                found[group + name] = float(row[column])
    return dict(sorted(found.items(), key=lambda item: item[0].startswith("reference/")))


def curve(metrics: Mapping[str, float]) -> dict[str, float]:
    """A point of the training's curves, as the run shows it."""
    return {f"train/{name}": metrics[name] for name in _CURVES if metrics.get(name) is not None}


def known_metrics(work: Workspace, result: StageResult) -> Metrics:
    """The numbers of a stage that was done before this run; of a training its curves."""
    if result.stage == "train":
        rows = train.history(work, result.fingerprint)
        return [(curve(row), int(row["step"])) for row in rows]
    metrics = headline_metrics(result)
    return [(metrics, 0)] if metrics else []


# --- the run --------------------------------------------------------------------------------------------------------


def tell_run(work: Workspace, run: StageRun, result: StageResult) -> None:
    """Give the parent run what a stage adds to its page."""
    if result.stage not in ("decompose", "evaluate", "register", "report"):
        return
    content = known(work)
    run.text("recipe.toml", content.recipe, parent=True)
    author = {"mlflow.user": signature()["author"]}
    run.tags({"mlflow.source.name": content.command, "mlflow.source.type": "LOCAL", **author}, parent=True)
    if result.stage == "report":
        file = Path(result.location)
        run.artifact(file, parent=True)
        run.artifact(file.with_name("pictures"), parent=True)
    reported = run.keeps(report.PAGE)
    run.describe(run_description(content, data_version(work), run.address, reported=reported))


def known(work: Workspace) -> ReportContent:
    """What is there to tell: of an evaluated model all numbers, before that of the data."""
    try:
        found = evaluate.read_evaluation(work)
    except StoreNotFoundError:  # no model or no samples yet
        found = None
    if found is None:
        return report.of_data(work, select_anchor.require_tucker(work))
    model = train.require_bundle(work)
    return report.numbers(work, model, found[0], report.registered(work, model, found[1]))


def data_version(work: Workspace) -> str:
    """The snapshot of the primitives that this recipe uses; empty where there are none yet."""
    primitives = align.primitives_version(work)
    return "" if primitives is None or not primitives.complete else primitives.snapshot


def run_description(content: ReportContent, version: str, address: str, *, reported: bool = False) -> str:
    """A run in Markdown: what was made of which data, how, how good it is, and where everything is.

    Parameters
    ----------
    content
        Numbers, of the data alone or of an evaluated model.
    version
        Snapshot of the primitives; empty where there are none.
    address
        Of the run in the tracker's pages.
    reported
        Whether the run has a report.
    """
    from diffats.registry import places

    there = [model_link(content)] if content.model else []
    there += [places.link("report", f"{address}/artifacts/{report.PAGE}")] if reported else []
    there += [places.link("recipe", f"{address}/artifacts/recipe.toml"), f"`{content.command}`"]
    # The links come first: MLflow folds a description after some lines, and what is folded cannot be clicked.
    parts = [" · ".join(there), headline(content), " ".join(page.summary(content)), *read_this_too(content)]
    rows = {
        "Data": data_text(content),
        "Data version": data_link(content, version),
        "Method": "; ".join(method(content)),
    }
    parts.append(table(rows))
    if content.metrics:
        groups = {name.rsplit("/", 1)[0] + "/" for name in grouped(content.metrics)} | {"codec/", "train/"}
        parts.append("**Metrics by group** (the report explains each metric)")
        parts.append(table({f"`{group}`": text for group, text in LEGEND.items() if group in groups}))
    return "\n\n".join(part for part in parts if part)


def data_text(content: ReportContent) -> str:
    """What a sample is, how many there are, and where they are from."""
    facts = data_facts(content.data)
    return "; ".join(f"{name}: {facts[name]}" for name in _TOLD if name in facts)


def headline(content: ReportContent) -> str:
    """What decides, with its interval and references, as the first line; empty where nothing was evaluated."""
    rows = evaluation.deciding_rows(content.metrics, content.deciding)
    return " ".join(f"**{measured(row)}**" for row in rows)


def measured(row: Mapping[str, Any]) -> str:
    """A metric with its interval and its references, in a line.

    >>> measured({"label": "CRPS", "value": 0.2, "persistence": 0.5, "better": "lower",
    ...           "intervals": {"value": [0.1, 0.3]}})
    'CRPS 0.2 (0.1 to 0.3 with 90 % confidence); beats persistence (0.5).'
    """
    low, high = row.get("intervals", {}).get("value", (None, None))
    sure = (
        f" ({number(low)} to {number(high)} with {percent(evaluation.INTERVAL)} confidence)" if low is not None else ""
    )
    others = [page.shown(row, name) for name in evaluation.compared(row)]
    words = evaluation.verdict(row)
    return f"{row['label']} {page.shown(row)}{sure}" + (f"; {words} ({', '.join(others)})." if words else ".")


def read_this_too(content: ReportContent) -> list[str]:
    """The cautions of a report, as a list."""
    cautions = page.cautions(content)
    return ["**Read this too**", "\n".join(f"- {text}" for text in cautions)] if cautions else []


def model_link(content: ReportContent) -> str:
    """The registered version and the alias that it had when this was written."""
    from diffats.registry import places

    name, version, alias = (str(content.model[key]) for key in ("name", "version", "alias"))
    return places.link(f"{name} version {version}", places.version_path(name, version)) + (alias and f", {alias}")


def data_link(content: ReportContent, version: str) -> str:
    """How the primitives are opened; the run's datasets are the same versions."""
    root = content.model.get("root") or f"runs/{content.name}"
    return f'`diffats.open_version("{root}", "primitives", "{version}")`, see Datasets on this page' if version else ""


def method(content: ReportContent) -> list[str]:
    """How samples become primitives, what was trained and how it draws samples."""
    facts = compression_facts(content.compression, {})
    words = [f"{name}: {facts[name]}" for name in ("primitive", "ranks", "patch", "aligned modes") if name in facts]
    if content.alignment.get("strategy"):
        words.append(f"anchor: {content.alignment['strategy']}")
    if content.training:
        steps, parameters = content.training["steps"], content.training["parameters"]
        words.append(f"denoiser of {number(parameters)} parameters, {number(steps)} training steps")
    if content.generation:
        words.append(f"{content.generation['steps']} steps of {content.generation['sampler']} for a sample")
    return words


def table(rows: Mapping[str, str]) -> str:
    """A table of two columns without a head; rows without text are left out.

    >>> print(table({"a": "1 | 2", "b": ""}))
    | | |
    |---|---|
    | a | 1 \\| 2 |
    """
    lines = [
        f"| {name} | {' '.join(text.replace('|', chr(92) + '|').split())} |" for name, text in rows.items() if text
    ]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


# --- the model ------------------------------------------------------------------------------------------------------


def model_description(content: ReportContent, model: bundle.Bundle, version: str, run: str, verdict: str) -> str:
    """A model version in Markdown: how good it is, why it is champion or not, from which data, and what it is not for.

    Parameters
    ----------
    content
        Numbers of the evaluated model.
    model
        The registered bundle.
    version
        Snapshot of the primitives that it was trained on.
    run
        Address of the run that made it, in the tracker's pages.
    verdict
        Why it is champion or not.
    """
    from diffats.registry import places

    rows = {
        "Data": data_text(content),
        "Data version": f'`diffats.open_version("runs/{content.name}", "primitives", "{version}")`',
        "Compression": compression(content),
        "Method": "; ".join(method(content)),
        "Curves, report": f"on the page of {places.link('the run that made it', run)}",
    }
    limits = [*limits_of_use(model), *page.cautions(content)]
    parts = [headline(content), f"When it was registered: {verdict}.", table(rows), "**Limits of use**"]
    parts.append("\n".join(f"- {text}" for text in limits))
    return "\n\n".join(part for part in parts if part)


def compression(content: ReportContent) -> str:
    """How much smaller a primitive is, and what that costs."""
    ratio, anomaly = content.compression.get("ratio"), content.errors.get("anomaly", {}).get("mean")
    return f"{number(ratio)} times smaller; anomaly error {percent(anomaly)}"


def limits_of_use(model: bundle.Bundle) -> list[str]:
    """What a model gives, and for which conditions it was trained."""
    sizes = sizes_text(dict(model.layout.sizes))
    found = [f"It gives fields of {sizes} on the grid of its training data, and of nothing else."]
    for name, values in model.examples.items():
        public = bundle.public_name(name)
        if name == "label":
            found.append(f"It knows {len(model.label_names)} classes: {listed(model.label_names)}.")
        elif name.startswith("scalar_") and values.size:
            low, high = number(float(values.min())), number(float(values.max()))
            found.append(
                f"It was trained for {public} from {low} to {high}; beyond that it extrapolates, with a warning."
            )
        else:
            found.append(f'It needs "{public}" for each sample, or draws one of the training data.')
    return found


def listed(names: list[str], most: int = 8) -> str:
    """Some names, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:most])} and {rest} more"


def model_tags(content: ReportContent, version: str, verdict: str, release: str) -> dict[str, str]:
    """What a person compares versions by; tags are short and sorted by name in the tracker's pages."""
    rows = evaluation.deciding_rows(content.metrics, content.deciding)
    data = content.data
    counts = f"{number(data['train'])} training and {number(data['test'])} test samples"
    return {
        "headline": " ".join(measured(row) for row in rows),
        "verdict": verdict,
        "data": f"{counts} of {sizes_text(data['sizes'])}",
        "data version": version,
        "compression": compression(content),
        "training": f"{number(content.training['steps'])} steps, {number(content.training['parameters'])} parameters",
        "made with": f"diffats {release}",
    }
