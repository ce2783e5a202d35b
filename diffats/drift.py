"""Drift: whether new samples are like earlier ones, told by numbers of each sample.

Each number says how unusual a sample is. New samples are compared with earlier ones by the one-sided test of Mann and
Whitney [1]_, and the p-values are corrected for the number of tests by Holm [2]_: as long as all samples are drawn
alike, and independently, an alarm comes with at most the stated probability. Of many samples even a shift that does not
matter is significant, so an alarm also needs an effect: the probability that a new sample is more unusual than an
earlier one.

.. [1] Mann and Whitney, On a test of whether one of two random variables is stochastically larger than the other,
   Annals of Mathematical Statistics 18 (1947).
.. [2] Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats.errors import InputError

Array = npt.NDArray[Any]
Row = dict[str, float]

#: Statistics that begin so are small where a sample is unusual; all others are large.
SMALL_IS_UNUSUAL = "overlap"


def distances(streams: Mapping[str, Array]) -> dict[str, Array]:
    """Mean squared entry ``(k,)`` of each normalised stream ``(k, ...)``: 1 on average over the training samples.

    >>> distances({"core": np.array([[1.0, -1.0], [3.0, 0.0]])})["core"].tolist()
    [1.0, 4.5]
    """
    return {
        name: np.square(part.reshape(len(part), -1), dtype=np.float64).mean(axis=1) for name, part in streams.items()
    }


def compare(before: Mapping[str, Array], new: Mapping[str, Array]) -> dict[str, Row]:
    """Compare new samples with earlier ones.

    Parameters
    ----------
    before, new
        ``(m,)`` and ``(k,)`` of each statistic.

    Returns
    -------
    dict
        By statistic: ``before`` and ``new`` (medians), ``effect`` (the probability that a new sample is more unusual
        than an earlier one, ties counted half) and ``p`` (corrected for the number of statistics).

    Raises
    ------
    InputError
        Where there are no samples to compare.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = compare({"error": rng.normal(size=200)}, {"error": rng.normal(1, size=50)})
    >>> rows["error"]["effect"] > 0.7, rows["error"]["p"] < 1e-3
    (True, True)
    """
    rows = {name: _row(before[name], new[name], name.startswith(SMALL_IS_UNUSUAL)) for name in new}
    for name, p in zip(rows, holm(np.array([row["p"] for row in rows.values()])), strict=True):
        rows[name]["p"] = float(p)
    return rows


def _row(before: Array, new: Array, small: bool) -> Row:
    if not len(before) or not len(new):
        raise InputError(f"drift compares samples, got {len(before)} earlier and {len(new)} new ones.")
    row = {"before": float(np.median(before)), "new": float(np.median(new))}
    if np.ptp(np.concatenate([before, new])) == 0:  # one value, such as the overlap of a mode that is kept whole
        return row | {"effect": 0.5, "p": 1.0}
    from scipy import stats  # takes a second

    found = stats.mannwhitneyu(new, before, alternative="less" if small else "greater")
    larger = float(found.statistic) / (len(before) * len(new))
    return row | {"effect": 1 - larger if small else larger, "p": float(found.pvalue)}


def holm(p: Array) -> Array:
    """P-values ``(k,)`` corrected for their number, so that all of them hold together.

    >>> holm(np.array([0.01, 0.5, 0.02])).tolist()
    [0.03, 0.5, 0.04]
    """
    order = np.argsort(p, kind="stable")
    corrected = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    out = np.empty_like(corrected)
    out[order] = corrected
    return out


def alarms(rows: Mapping[str, Row], *, false_alarm: float, effect: float) -> list[str]:
    """The statistics by which new samples are unlike earlier ones, the strongest effect first.

    >>> rows = {"a": {"p": 1e-4, "effect": 0.9}, "b": {"p": 0.2, "effect": 0.8}, "c": {"p": 1e-9, "effect": 0.55}}
    >>> alarms(rows, false_alarm=0.01, effect=0.65)
    ['a']
    """
    found = [name for name, row in rows.items() if row["p"] <= false_alarm and row["effect"] >= effect]
    return sorted(found, key=lambda name: -rows[name]["effect"])
