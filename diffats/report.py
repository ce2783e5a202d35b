"""The report: one self-contained HTML file that says what was made from which data, and how good it is.

`ReportContent` holds numbers and pictures; this module turns them into sentences, cautions and a page. Every part of it
may be missing: the page then leaves the part out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffats import evaluation, page
from diffats.page import duration, number, percent, sizes_text

Numbers = Mapping[str, Any]

# Below or above these, the page warns. They are rules of thumb, and the page says so.
ANOMALY_CAUTION = 0.3
OVERLAP_CAUTION = 0.1
COPY_CAUTION = 0.5
SPREAD_CAUTION = 0.8
LOW_SHARE_CAUTION = 0.05
OVERFIT_CAUTION = 1.25
STOPPED_SHARE = 0.75
MANY_TIMES = 50
DEFECT_CAUTION = 0.5


@dataclass(frozen=True)
class ReportContent:
    """All that a report may show. Only the name is required.

    Attributes
    ----------
    name
        The recipe's name.
    created
        When the report was made, as text.
    recipe, command
        The recipe as TOML without places and secrets, and the command that repeats the run with it.
    data
        ``title`` (what the data are, a few words), ``description`` (a sentence or two), ``source``, ``credit``,
        ``licence``, ``split``, ``held_out`` (which times or runs test) and ``conditions`` (text), ``variables``
        {name: unit}, ``sizes`` {mode: points}, ``samples``, ``train``, ``test``, ``failed``, ``dropped`` (counts), and
        any further text by its label.
    compression
        ``ratio``, ``raw_numbers``, ``primitive_numbers`` (per sample), ``ranks`` {mode: rank}, ``aligned`` (modes),
        ``kind`` (``"tgp"``, ``"mgp"``), ``patch`` {mode: size}.
    errors
        ``anomaly`` and ``relative``, each {``mean``, ``median``, ``max``}; ``over`` (text: which samples).
    alignment
        ``strategy``, ``sample`` (the anchor's number; None of a mean), ``overlap_sigma_min`` {mode: {``min``,
        ``median``}}, ``low_share`` (of samples whose overlap is below ``min_overlap`` in some mode).
    drift
        For each growth of the data: ``first`` and ``stop`` (sample numbers), ``samples`` (count), ``reference`` (text:
        what they are compared with), ``statistics`` {name: as of `drift.compare`}, ``alarms`` (names).
    training
        ``steps``, ``parameters``, ``heldout_loss``, ``best_heldout_loss``, ``best_step``, ``device``, and further
        numbers by label.
    generation
        ``count``, ``sampler``, ``steps``, ``guidance``, ``seed``, ``orthonormality_defect`` {factor: median,
        over the root of its rank}.
    metrics
        As `evaluation.evaluate` returns them.
    deciding
        Name of the metric that decides.
    estimators
        How the metrics are estimated; `evaluation.ESTIMATORS` unless given.
    model
        ``name``, ``version``, ``alias``, ``uri``, ``root`` (where the run is).
    provenance
        Tables by title, each {label: text}: versions, fingerprints, snapshot ids, seeds, library versions.
    seconds
        Wall time by stage.
    code
        Python that loads the model; made from ``model`` where left out.
    pictures
        PNG bytes by name: those of `PICTURES`, ``factors_<mode>``, or any other.
    captions
        Sentences added to the captions of pictures, by name.
    cautions
        What went wrong or is doubtful; the page adds what it sees in the numbers.
    """

    name: str
    created: str = ""
    recipe: str = ""
    command: str = ""
    data: Numbers = field(default_factory=dict)
    compression: Numbers = field(default_factory=dict)
    errors: Numbers = field(default_factory=dict)
    alignment: Numbers = field(default_factory=dict)
    drift: Sequence[Numbers] = ()
    training: Numbers = field(default_factory=dict)
    generation: Numbers = field(default_factory=dict)
    metrics: Mapping[str, Numbers] = field(default_factory=dict)
    deciding: str = "energy_distance"
    estimators: str = evaluation.ESTIMATORS
    model: Numbers = field(default_factory=dict)
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    code: str = ""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    cautions: Sequence[str] = ()


# name: (section, title, caption)
PICTURES: dict[str, tuple[str, str, str]] = {
    "gallery": (
        "top",
        "Real and generated samples",
        "All in the same colours.",
    ),
    "forecast": (
        "top",
        "A forecast beside what came",
        "The model was given the condition of a test sample and drew an ensemble; nothing here was in training.",
    ),
    "scree": (
        "compression",
        "How much each rank keeps",
        "Energy left out when a mode keeps so many columns: median and 5–95 % range over samples; the line marks the "
        "chosen rank, the title says what it keeps.",
    ),
    "reconstruction": (
        "compression",
        "What compression loses",
        "The best, the median and the worst test sample by anomaly error: original, reconstruction, and what differs.",
    ),
    "factors": (
        "alignment",
        "Factors before and after alignment",
        "Each line is one sample. Before, signs and rotations are arbitrary; after, samples that are alike look alike, "
        "which is what the model can learn.",
    ),
    "overlaps": (
        "alignment",
        "Overlap with the anchor",
        "How many samples have which smallest cosine. Left of the dashed line the alignment is arbitrary in one "
        "direction.",
    ),
    "medoid": (
        "alignment",
        "The anchor sample",
        "The sample that all others are aligned to, and how typical it is: its mean squared overlap with all training "
        "samples against theirs.",
    ),
    "anchors": ("alignment", "The anchor's factors", "The first columns of each aligned mode."),
    "drift": (
        "drift",
        "New samples against the first ones",
        "Share of samples below each value. Curves that lie on each other are samples that are alike.",
    ),
    "training": (
        "training",
        "Training curves",
        "Loss on training batches and on a part held out from training. Where the held-out curve turns up, the model "
        "overfits.",
    ),
    "film": (
        "generated",
        "In motion",
        "Real and generated samples, all in the same colours.",
    ),
    "error_in_time": (
        "generated",
        "How the error grows",
        "Error of the ensemble's mean at each time, relative to the truth of that time, as a mean over test samples.",
    ),
    "plume": (
        "generated",
        "The forecast at a few points",
        "Where the truth varies most: the truth, and between which values the ensemble's forecasts are.",
    ),
    "fields": ("generated", "The same with the training mean", "All in the same colours."),
    "samples": ("generated", "Another variable", "All in the same colours."),
    "gaussian": (
        "generated",
        "What the Gaussian reference draws",
        "Samples of the model without a network, in the colours of the first picture.",
    ),
    "quantiles": (
        "generated",
        "Values and extremes",
        "Quantiles against those of test samples: of all values, from 0.01 to 99.99 %, and of the largest and smallest "
        "value of each sample. On the line both are distributed alike.",
    ),
    "power_spectra": ("generated", "Power spectra", "How much structure samples have at each scale, by direction."),
    "profiles": (
        "generated",
        "Values along one mode",
        "Median and 5–95 % range over samples: shaded for real, dashed for generated samples.",
    ),
    "deviations": (
        "generated",
        "Deviations on the principal axes",
        "How much the numbers of a primitive vary, from the smoothest axis along a mode to the finest. A generated "
        "curve above the real one at the right is noise that was left in the samples.",
    ),
    "nearest": (
        "generated",
        "New samples or copies?",
        "Distance of each sample to the nearest training sample. Generated samples left of all others would be copies.",
    ),
    "scorecard": (
        "generated",
        "The metrics at a glance",
        "Each metric relative to the Gaussian reference: left of 1 beats it. The dots show how close real training "
        "samples come.",
    ),
}
#: Pictures that are seen only where a reader unfolds them.
FOLDED = (
    "scree",
    "reconstruction",
    "factors",
    "overlaps",
    "medoid",
    "anchors",
    "training",
    "gaussian",
    "profiles",
    "deviations",
    "nearest",
    "scorecard",
    "fields",
    "samples",
)
_SECTIONS = ("top", "compression", "alignment", "drift", "training", "generated", "more")


def render(content: ReportContent) -> str:
    """The report as HTML: no script, no outside file, light, for laptops and phones.

    Raises
    ------
    InputError
        Where a picture is not a PNG.

    Examples
    --------
    >>> "<h1>tiny</h1>" in render(ReportContent("tiny"))
    True
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("diffats"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, duration=duration)
    return environment.get_template("report.html").render(
        c=content,
        summary=summary(content),
        cautions=cautions(content),
        tiles=_tiles(content),
        sections=page.placed(content.pictures, content.captions, PICTURES, folded=_folded(content), sections=_SECTIONS),
        columns=lambda names: _columns({name: content.metrics[name] for name in names}),
        deciding=_deciding(content),
        by_condition=content.metrics.get(content.deciding, {}).get("parts", []),
        verdicts=_table_words(content.metrics),
        shown=shown,
        facts=_facts(content),
        defect_limit=DEFECT_CAUTION,
        code=content.code or _code(content),
        total=sum(content.seconds.values()),
        longest=max(content.seconds.values(), default=0.0),
    )


def _folded(content: ReportContent) -> tuple[str, ...]:
    """Names of pictures that one must ask for: a forecast has others to show first."""
    return FOLDED + (("plume", "quantiles", "power_spectra") if "forecast" in content.pictures else ())


def shown(metric: Numbers, column: str = "value") -> str:
    """A column of a metric; a distance whose estimate fell below zero is zero, as far as it can tell."""
    return evaluation.written(metric, column, number)


# --- sentences ----------------------------------------------------------------------------------------------------


def summary(content: ReportContent) -> list[str]:
    """What was made and how good it is, in plain sentences; bad figures as plainly as good ones."""
    return [*_data_sentences(content), *_codec_sentences(content), *_model_sentences(content)]


def _data_sentences(content: ReportContent) -> list[str]:
    data = content.data
    if not data:
        return []
    what = data.get("title") or content.name
    sentence = f"Data: {what}"
    if data.get("samples") is not None:
        sentence += f", {number(data['samples'])} samples"
    if data.get("sizes"):
        sentence += f" of {sizes_text(data['sizes'])}"
    if data.get("train") is not None and data.get("test") is not None:
        sentence += f"; {number(data['train'])} for training, {number(data['test'])} kept apart for testing"
    return [sentence + "."]


def _codec_sentences(content: ReportContent) -> list[str]:
    sentences = []
    ratio, anomaly = content.compression.get("ratio"), content.errors.get("anomaly", {}).get("mean")
    relative = content.errors.get("relative", {}).get("mean")
    if ratio is not None:
        before, after = content.compression.get("raw_numbers"), content.compression.get("primitive_numbers")
        detail = f" ({number(before)} numbers become {number(after)})" if before and after else ""
        sentences.append(f"Each sample is stored {number(ratio)} times smaller{detail}.")
    if anomaly is not None:
        sentence = (
            f"What compression loses is {percent(anomaly)} of a sample's deviation from the mean (anomaly error, on "
            "average)"
        )
        if relative is not None:
            sentence += f"; measured against the sample itself it is {percent(relative)}"
        sentences.append(sentence + ".")
    return sentences


def _model_sentences(content: ReportContent) -> list[str]:
    names = {"value": "model", "gaussian": "Gaussian reference", "train_vs_test": "real training samples"}
    names |= {"persistence": "persistence", "training_mean": "training mean"}
    sentences, verdicts = [], []
    for metric in evaluation.deciding_rows(content.metrics, content.deciding):
        numbers = ", ".join(
            f"{name} {shown(metric, column)}" for column, name in names.items() if metric.get(column) is not None
        )
        forecast = any(metric.get(column) is not None for column in ("persistence", "training_mean"))
        what = (
            "Predictions for unseen conditions" if forecast else "Distance of generated samples from unseen real ones"
        )
        sentences.append(
            f"{what} ({evaluation.within(metric['label'])}): {numbers}. {_better(metric)}{_interval(metric)}"
        )
        if words := evaluation.verdict(metric):
            simple = ", a simple model without a neural network" if "gaussian" in evaluation.compared(metric) else ""
            verdicts.append(f"{words}{simple}")
    if verdicts:
        alike = list(dict.fromkeys(verdicts))
        by = "By this measure" if len(verdicts) == 1 else "By both measures" if len(alike) == 1 else "By these measures"
        sentences.append(f"{by} the model {', and '.join(alike)}; {_of_all(content)}.")
    return sentences


def _interval(metric: Numbers) -> str:
    """How sure the model's own number is, where that is known."""
    if "value" not in metric.get("intervals", {}):
        return ""
    low, high = metric["intervals"]["value"]
    if metric.get("unbiased"):
        low, high = max(low, 0.0), max(high, 0.0)
    if low == high:
        return ""
    return f" The model's is between {number(low)} and {number(high)} with 90 % confidence."


def _of_all(content: ReportContent) -> str:
    """On how many metrics the model is better than all references that they have."""
    won = evaluation.tally(content.metrics).values()
    others = len(content.metrics) - len(won)
    beside = f" ({others} without)" if others else ""
    return f"it is better on {sum(won)} of {len(won)} metrics with references{beside}"


def headline(content: ReportContent) -> str | None:
    """Whether the model beats the references: yes, partly, no or undecided; None where there are none.

    Yes where it does on what decides, and on at least half of all metrics that have references. No where it is worse on
    what decides; undecided where the test samples do not tell.
    """
    rows = evaluation.deciding_rows(content.metrics, content.deciding)
    words = {word for row in rows for word in evaluation.compared(row).values()}
    if not words:
        return None
    if "better" not in words:
        return "no" if "worse" in words else "undecided"
    won = evaluation.tally(content.metrics).values()
    return "yes" if words == {"better"} and 2 * sum(won) >= len(won) else "partly"


def _better(metric: Numbers) -> str:
    better = metric["better"]
    return "Lower is better." if better == "lower" else f"Closer to {better.removeprefix('near ')} is better."


def cautions(content: ReportContent) -> list[str]:
    """What a reader should not overlook: those given, and those that the numbers show."""
    found = [*content.cautions, *_codec_cautions(content), *_drift_cautions(content), *_model_cautions(content)]
    return list(dict.fromkeys(found))


def _codec_cautions(content: ReportContent) -> list[str]:
    found = []
    failed, dropped = content.data.get("failed") or 0, content.data.get("dropped") or 0
    if failed:
        found.append(
            f"{number(failed)} samples could not be used (missing or invalid values); they are listed in the store."
        )
    if dropped:
        found.append(f"{number(dropped)} windows were dropped because they touch both training and test blocks.")
    anomaly = content.errors.get("anomaly", {}).get("mean")
    if anomaly is not None and anomaly > ANOMALY_CAUTION:
        found.append(
            f"Compression loses much of what varies (anomaly error {percent(anomaly)}): the model cannot bring back "
            "detail that its training samples no longer have. Higher ranks lower it."
        )
    low, limit = content.alignment.get("low_share") or 0.0, content.alignment.get("min_overlap")
    if low > LOW_SHARE_CAUTION:
        found.append(
            f"{percent(low)} of the samples overlap the anchor by less than {number(limit)} in some direction, where "
            "alignment is arbitrary. Lower ranks, fewer aligned modes or another anchor help."
        )
    for mode, sigma in content.alignment.get("overlap_sigma_min", {}).items():
        if sigma.get("median") is not None and sigma["median"] < OVERLAP_CAUTION:
            found.append(
                f"Alignment along {mode} is fragile: half of the samples have an overlap below "
                f"{number(sigma['median'])} with the anchor. A lower rank helps."
            )
    return found


def _drift_cautions(content: ReportContent) -> list[str]:
    alarming = [f"{growth['first']} to {growth['stop'] - 1}" for growth in content.drift if growth["alarms"]]
    if not alarming:
        return []
    return [
        f"Samples {', '.join(alarming)} came later and are unlike the first ones, from which anchors and statistics "
        "are. New ones would serve them better."
    ]


def _verdict_cautions(metric: Numbers) -> list[str]:
    """What a metric that decides does not show, and what would help."""
    words = evaluation.compared(metric)
    if set(words.values()) <= {"better"}:
        return []
    text = f"By {evaluation.within(metric['label'])}, which decides, the model {evaluation.verdict(metric)}."
    times = [evaluation.more_samples(metric, name) for name, word in words.items() if word == "not distinguishable"]
    if "worse" in words.values():
        text += " Train longer, or review ranks and overlaps first."
    elif known := [each for each in times if each is not None]:
        more = math.ceil(max(known))
        few = f"About {more} times as many test samples would tell." if more <= MANY_TIMES else "They are nearly equal."
        text += f" {few}"
    elif "too few test samples" in words.values():
        text += f" {metric['groups']} do not depend on each other, and {evaluation.LEAST_GROUPS} are needed."
    return [text]


def _model_cautions(content: ReportContent) -> list[str]:
    found = []
    deciding = content.metrics.get(content.deciding, {})
    for row in evaluation.deciding_rows(content.metrics, content.deciding):
        found += _verdict_cautions(row)
    if deciding and _suspiciously_close(deciding):
        found.append(
            "The model is closer to the test samples than real training samples are. This happens where training and "
            "test samples come from different regions or times: read small distances with care."
        )
    nearest = content.metrics.get("nearest_training_ratio", {})
    ratio, honest = nearest.get("value"), nearest.get("train_vs_test")
    if ratio is not None and ratio < COPY_CAUTION * min(1.0, honest if honest is not None else 1.0):
        found.append("Generated samples lie much closer to training samples than real ones do: the model may copy.")
    spread = content.metrics.get("spread_ratio", {}).get("value")
    if spread is not None and spread < SPREAD_CAUTION:
        found.append(f"Generated samples vary less than real ones (spread {number(spread)} of theirs).")
    worst = max(content.generation.get("orthonormality_defect", {}).values(), default=0.0)
    if worst > DEFECT_CAUTION:
        found.append(
            f"Generated factors are far from orthonormal (defect {number(worst)}): samples may be too strong or too "
            "weak in places. Train longer, or take more generate.steps."
        )
    return found + _training_cautions(content.training, convinced=headline(content) in ("yes", None))


def _suspiciously_close(metric: Numbers) -> bool:
    """Whether the model's number is better than that of real training samples by more than its interval."""
    honest, interval = metric.get("train_vs_test"), metric.get("intervals", {}).get("value")
    if not evaluation.beats(metric, "train_vs_test") or honest is None:
        return False
    return interval is None or not interval[0] <= honest <= interval[1]


def _training_cautions(training: Numbers, *, convinced: bool) -> list[str]:
    """Whether the held-out loss stopped falling before the end; or did not, where the model does not convince yet."""
    last, best, step, steps = (training.get(k) for k in ("heldout_loss", "best_heldout_loss", "best_step", "steps"))
    if last is None or not best:
        return []
    at = "" if step is None else f" at step {number(step)}"
    help_ = 'Fewer train.steps may do as well, or train.keep = "best".'
    if last > OVERFIT_CAUTION * best:
        return [
            f"The held-out loss rose from {number(best)}{at} to {number(last)} by the end: the model overfits. {help_}"
        ]
    if step is not None and steps and step < STOPPED_SHARE * steps:
        return [f"The held-out loss has not fallen since step {number(step)} of {number(steps)}. {help_}"]
    if step == steps and not convinced:
        return ["The held-out loss was still falling at the last step. With more train.steps the training continues."]
    return []


# --- parts of the page --------------------------------------------------------------------------------------------


def _tiles(content: ReportContent) -> list[dict[str, str]]:
    """The four numbers to see first."""
    tiles = []
    anomaly = content.errors.get("anomaly", {}).get("mean")
    if anomaly is not None:
        tone = "bad" if anomaly > ANOMALY_CAUTION else ""
        tiles.append({"value": percent(anomaly), "text": "anomaly error of compression", "tone": tone})
    if content.compression.get("ratio") is not None:
        tiles.append({"value": f"{number(content.compression['ratio'])}×", "text": "smaller than raw", "tone": ""})
    if (answer := headline(content)) is not None:
        rows = evaluation.deciding_rows(content.metrics, content.deciding)
        by: dict[str, list[str]] = {}
        for row in rows:
            by.setdefault(evaluation.verdict(row), []).append(evaluation.within(row["label"]))
        text = "; ".join([*(f"{words} ({' and '.join(labels)})" for words, labels in by.items()), _of_all(content)])
        tiles.append({"value": answer, "text": text, "tone": {"yes": "good", "no": "bad"}.get(answer, "")})
    model = content.model
    if model.get("version") is not None:
        alias = f" ({model['alias']})" if model.get("alias") else ""
        tiles.append({"value": f"v{model['version']}", "text": f"of the registered model{alias}", "tone": ""})
    elif content.data.get("samples") is not None:
        tiles.append({"value": number(content.data["samples"]), "text": "samples", "tone": ""})
    return tiles


def _table_words(table: Mapping[str, Numbers]) -> dict[str, tuple[str, str]]:
    """Of each metric that has references: how the model compares with them, as a word and its tone."""
    found = {}
    for name, won in evaluation.tally(table).items():
        words = set(evaluation.compared(table[name]).values())
        if won or "worse" in words:
            found[name] = ("yes", "good") if won else ("no", "bad")
        else:
            found[name] = ("too few samples" if "too few test samples" in words else "not distinguishable", "")
    return found


def _deciding(content: ReportContent) -> list[str]:
    """Names of the metrics that decide; all of them where none does."""
    rows = evaluation.deciding_rows(content.metrics, content.deciding)
    return [name for name, row in content.metrics.items() if any(row is each for each in rows)] or [*content.metrics]


def _columns(table: Mapping[str, Numbers]) -> list[tuple[str, str]]:
    """Columns of the metric table that hold any number."""
    known = (
        ("value", "Model"),
        ("gaussian", "Gaussian reference"),
        ("train_vs_test", "Real training samples"),
        ("codec", "Compression alone"),
        ("persistence", "Persistence"),
        ("training_mean", "Training mean"),
        ("truth", "The truth itself"),
    )
    return [(key, title) for key, title in known if any(m.get(key) is not None for m in table.values())]


def _facts(content: ReportContent) -> dict[str, dict[str, str]]:
    """Small tables of labels and texts, by section."""
    labels = {"heldout_loss": "held-out loss", "best_heldout_loss": "best held-out loss", "best_step": "at step"}
    return {
        "data": page.data_facts(content.data),
        "compression": page.compression_facts(content.compression, content.errors),
        "alignment": page.alignment_facts(content.alignment),
        "drift": page.drift_facts(content.drift),
        "training": page.plain(content.training, labels),
        "generated": page.generation_facts(content.generation),
    }


def _code(content: ReportContent) -> str:
    """How to load the model, ready to paste."""
    uri, root = content.model.get("uri"), content.model.get("root")
    where = [f"model = diffats.load({str(root)!r})       # where it was made; no server needed"] if root else []
    where += [f"model = diffats.load({str(uri)!r})  # anywhere; set MLFLOW_TRACKING_URI"] if uri else []
    if not where:
        return ""
    return (
        "import diffats\n" + "\n".join(where) + "\n"
        "samples = model.sample(8, seed=0)        # xarray.Dataset with units and coordinates\n"
        "primitives = model.encode(samples)       # compress any samples of this kind\n"
        "fields = model.decode(primitives)        # and bring them back\n"
    )
