"""A row of the table: a metric with its references, intervals and words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats import metrics

Array = npt.NDArray[Any]
Metrics = dict[str, dict[str, Any]]
#: The model, and beside it honest data, a simple model, the codec's floor, trivial forecasts and the truth itself.
COLUMNS = ("value", "train_vs_test", "gaussian", "codec", "persistence", "training_mean", "truth")
INTERVAL = 0.9  #: share of the truth that the central interval of a calibrated ensemble holds


@dataclass(frozen=True)
class Row:
    """What a reader must know of a metric; ``values`` by column."""

    label: str
    meaning: str
    better: str = "lower"
    unit: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    unbiased: bool = False  # an estimate of what cannot be below zero, which may itself be
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    groups: int | None = None
    parts: Sequence[Mapping[str, Any]] = ()  # the same by condition: its name, samples, and numbers by column

    def to_dict(self) -> dict[str, Any]:
        """JSON data: a number for every column, None where there is none."""
        numbers = {column: _number(self.values.get(column)) for column in COLUMNS}
        about = {"better": self.better, "unit": self.unit, "label": self.label, "meaning": self.meaning}
        intervals = {column: list(interval) for column, interval in self.intervals.items()}
        return (
            numbers
            | about
            | {"unbiased": self.unbiased, "intervals": intervals, "groups": self.groups}
            | ({"parts": [dict(part) for part in self.parts]} if self.parts else {})
        )


def _number(value: float | None) -> float | None:
    """A JSON number: NaN and infinity are null."""
    return float(value) if value is not None and np.isfinite(value) else None


def mean_of(values: Array) -> float:
    """The mean of the numbers there are: equal samples have no error relative to their deviation. NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def around(estimate: float, parts: Sequence[tuple[Array, Array | None]], seed: int) -> tuple[float, float]:
    """The interval of an estimate, by the bootstrap of its parts."""
    low, high = metrics.bootstrap_interval(parts, level=INTERVAL, seed=seed)
    return estimate + low, estimate + high


def count_groups(groups: Array | None, samples: int) -> int:
    """How many groups there are, of which each sample is one where there are none."""
    return samples if groups is None else len(np.unique(groups))
