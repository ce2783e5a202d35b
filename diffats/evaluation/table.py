"""All rows that the fields allow, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffats import metrics
from diffats.evaluation.fields import LEAST_FOLDS, Fields
from diffats.evaluation.forecasts import forecast_rows, pooled_rows
from diffats.evaluation.row import INTERVAL, Metrics, Row, count_groups
from diffats.evaluation.sets import (
    Seen,
    classifier_rows,
    codec_rows,
    novelty_rows,
    profile_rows,
    set_rows,
    spectrum_rows,
    within_rows,
)
from diffats.evaluation.verdicts import REFERENCES, distance_from_ideal

ESTIMATORS = (
    "Test samples on one side of every distance, equally many samples on the other. Energy distance: U-statistic (zero "
    "on average for equal distributions, may be slightly negative). Sliced Wasserstein: 2048 directions, one seed for "
    "all columns, biased upwards alike in all columns. Told apart: gradient boosting on principal scores, five-fold "
    "cross-validated; chance alone moves it by about 0.35 over the root of the count. Precision, recall, density and "
    "coverage: neighbourhoods of the 5 nearest. CRPS, spread and intervals: fair, so that they do not depend on the "
    "number of members."
)


def evaluate(fields: Fields) -> Metrics:
    """All metrics that the fields allow, by name.

    Returns
    -------
    dict
        JSON-able, ``{name: {*COLUMNS, "better", "unit", "label", "meaning", "unbiased", "intervals", "groups"}}``; a
        number is None where it does not apply. "codec" is the test samples after encoding and decoding: the floor of
        every model on these primitives. ``better`` is "lower", "near 1", "near 0.9" or "near 0.5". ``intervals`` are of
        90 %, by the bootstrap over ``groups`` groups of test samples: of the model's own number, and of its difference
        to each reference, for what may decide.
    """
    seen = Seen.of(fields)
    rows = codec_rows(fields) | within_rows(fields) | classifier_rows(fields, seen)
    rows |= _with_intervals(fields, seen) | forecast_rows(fields)
    return {name: row.to_dict() for name, row in rows.items()}


def _repeated_rows(fields: Fields, seen: Seen) -> dict[str, Row]:
    """Rows that are quick to compute: their intervals are from computing them again without some samples."""
    rows = set_rows(fields, seen) if fields.as_sets else {}
    return rows | spectrum_rows(seen) | profile_rows(fields) | novelty_rows(fields, seen) | pooled_rows(fields)


def _with_intervals(fields: Fields, seen: Seen) -> dict[str, Row]:
    """Rows with intervals by the jackknife, of the model's number and of its differences to the references."""
    rows, replicates = _repeated_rows(fields, seen), []
    groups = count_groups(fields.groups, len(fields.test))
    if min(groups, len(fields.test) - 1) >= LEAST_FOLDS:
        for test, others, cases in fields.folds():
            replicates.append(_repeated_rows(fields.part(test, others, cases), seen.part(test, others)))
    cases_count = 0 if fields.truth is None else count_groups(fields.case_groups, len(fields.truth))
    return {
        name: replace(
            row,
            groups=cases_count if name.endswith("_pooled") else groups,
            intervals=_jackknifed(row, [each.get(name) for each in replicates]),
        )
        for name, row in rows.items()
    }


def _jackknifed(row: Row, replicates: Sequence[Row | None]) -> dict[str, tuple[float, float]]:
    found = {}
    for column in ("value", *REFERENCES):
        estimate, *each = [_advance(one, column) for one in (row, *replicates)]
        if estimate is not None and each and None not in each:
            low, high = metrics.jackknife_interval(np.array(each), level=INTERVAL)
            found[column] = estimate + low, estimate + high
    return found


def _advance(row: Row | None, column: str) -> float | None:
    """The model's number, or how much farther from the ideal it is than a reference."""
    if row is None:
        return None
    table = row.to_dict()
    own, other = distance_from_ideal(table), distance_from_ideal(table, column)
    if column == "value" or own is None or other is None:
        return table["value"] if column == "value" else None
    return own - other
