"""What a row says: how the model compares with references, in one of four words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LEAST_GROUPS = 8  #: of test samples, from which on intervals are trusted
OF_CODEC = ("anomaly_error", "reconstruction_error")
#: What a model is held against: a simple model without a network, and forecasts that need none.
REFERENCES = {
    "gaussian": "the Gaussian reference",
    "persistence": "persistence",
    "training_mean": "the training mean",
}
_WORDS = {
    "better": "beats",
    "not distinguishable": "is not distinguishable from",
    "too few test samples": "has too few test samples to tell it from",
    "worse": "does not beat",
}


def distance_from_ideal(metric: Mapping[str, Any], column: str = "value") -> float | None:
    """How far a column of a metric is from the best it could be; smaller is better whatever ``better`` says.

    >>> distance_from_ideal({"value": 0.75, "better": "near 0.5"})
    0.25
    """
    number: float | None = metric.get(column)
    if number is None:
        return None
    if metric["better"] == "near 1":  # a ratio: half is as far as double
        return abs(float(np.log(max(number, 1e-12))))
    if metric["better"].startswith("near "):
        return abs(number - float(metric["better"].removeprefix("near ")))
    return float(number)


def beats(metric: Mapping[str, Any], reference: str = "gaussian") -> bool | None:
    """Whether the model is better than a reference column; None where one of the two is missing.

    >>> beats({"value": 1.0, "gaussian": 2.0, "better": "lower"})
    True
    """
    own, other = distance_from_ideal(metric), distance_from_ideal(metric, reference)
    return None if own is None or other is None else own < other


def written(metric: Mapping[str, Any], column: str, number: Callable[[Any], str] = "{:.4g}".format) -> str:
    """A column of a metric as text; a distance whose estimate fell below zero is zero, as far as it can tell.

    >>> written({"value": -0.013, "unbiased": True}, "value"), written({"value": -0.013}, "value")
    ('0, within its noise', '-0.013')
    """
    value = metric.get(column)
    below = metric.get("unbiased") and value is not None and value < 0
    return "0, within its noise" if below else number(value)


def within(label: str) -> str:
    """A label within a sentence: abbreviations keep their capitals.

    >>> within("Energy distance"), within("CRPS")
    ('energy distance', 'CRPS')
    """
    return label if label[:2].isupper() else label[0].lower() + label[1:]


def comparison(metric: Mapping[str, Any], reference: str) -> str | None:
    """How the model compares with a reference: "better", "worse", "not distinguishable" or "too few test samples".

    Where the metric has an interval of the difference, that decides, and fewer than 8 groups of test samples are too
    few to tell; else the numbers alone. None where one of them is missing.

    >>> metric = {"value": 1.0, "persistence": 1.5, "better": "lower", "groups": 40}
    >>> comparison(metric, "persistence")
    'better'
    >>> comparison(metric | {"intervals": {"persistence": [-1.2, 0.2]}}, "persistence")
    'not distinguishable'
    """
    is_better, interval = beats(metric, reference), metric.get("intervals", {}).get(reference)
    if is_better is None:
        return None
    groups = metric.get("groups")
    if groups is not None and groups < LEAST_GROUPS:
        return "too few test samples"
    if interval is None:
        return "better" if is_better else "worse"
    return "better" if interval[1] < 0 else "worse" if interval[0] > 0 else "not distinguishable"


def more_samples(metric: Mapping[str, Any], reference: str) -> float | None:
    """About how many times as many test samples would tell the model from a reference; None where equal."""
    low, high = metric["intervals"][reference]
    own, other = distance_from_ideal(metric), distance_from_ideal(metric, reference)
    if own is None or other is None or own == other:
        return None
    return float(((high - low) / 2 / (own - other)) ** 2)


def deciding_rows(table: Mapping[str, Mapping[str, Any]], deciding: str) -> list[Mapping[str, Any]]:
    """The metric that decides and, beside the CRPS, the error of the ensemble's mean, where they are there.

    An ensemble of any samples of the data has a lower CRPS than their mean, which is a single forecast: only the error
    of its own mean tells whether it forecasts.
    """
    names = (deciding, "relative_l2") if deciding == "crps" else (deciding,)
    return [table[name] for name in names if table.get(name, {}).get("value") is not None]


def compared(metric: Mapping[str, Any]) -> dict[str, str]:
    """How the model compares with each reference that a metric has, see `comparison`.

    >>> compared({"value": 1.0, "persistence": 2.0, "training_mean": 0.5, "better": "lower"})
    {'persistence': 'better', 'training_mean': 'worse'}
    """
    found = {reference: comparison(metric, reference) for reference in REFERENCES}
    return {reference: word for reference, word in found.items() if word is not None}


def verdict(metric: Mapping[str, Any]) -> str:
    """How the model compares with the references of a metric, in words; empty where it has none.

    >>> verdict({"value": 1.0, "persistence": 2.0, "training_mean": 0.5, "better": "lower"})
    'beats persistence, but does not beat the training mean'
    """
    found = compared(metric)
    parts = []
    for word, phrase in _WORDS.items():
        names = [REFERENCES[reference] for reference, each in found.items() if each == word]
        if names:
            parts.append(f"{phrase} {(' and ' if word != 'worse' else ' or ').join(names)}")
    return ", but ".join(parts)


def tally(table: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Whether the model is better than all references of a metric, by name; what compression alone costs is aside."""
    found = {name: compared(metric) for name, metric in table.items() if name not in OF_CODEC}
    return {name: {*each.values()} == {"better"} for name, each in found.items() if each}
