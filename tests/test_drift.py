"""The comparison of new samples with earlier ones: its false alarms, what it notices, and what it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from diffats import drift
from diffats.errors import InputError

STATISTICS = ("anomaly_error", "distance_core", "distance_factor_x", "overlap_x", "relative_error")
ALARM = 0.05
REPETITIONS = 300
Samples = dict[str, np.ndarray]


def draw(rng: np.random.Generator, n: int, shift: float = 0.0) -> Samples:
    """Statistics of samples that share much of what makes a sample unusual, as errors do; with a long tail."""
    common = rng.normal(shift, size=n)
    unusual = {name: np.exp(common + rng.normal(size=n)) for name in STATISTICS}
    return unusual | {"overlap_x": 1 / (1 + unusual["overlap_x"])}


def alarms(before: Samples, new: Samples, **limits: Any) -> list[str]:
    return drift.alarms(drift.compare(before, new), **{"false_alarm": ALARM, "effect": 0.5} | limits)


@pytest.mark.parametrize(("m", "k"), [(8, 8), (40, 15), (15, 60)])
def test_alike_samples_give_no_more_alarms_than_stated(m: int, k: int) -> None:
    rng = np.random.default_rng(m)
    count = sum(bool(alarms(draw(rng, m), draw(rng, k))) for _ in range(REPETITIONS))
    assert count <= stats.binom.ppf(0.999, REPETITIONS, ALARM)


@pytest.mark.parametrize(("m", "k"), [(8, 8), (40, 15)])
def test_samples_from_elsewhere_give_an_alarm(m: int, k: int) -> None:
    rng = np.random.default_rng(0)
    found = [alarms(draw(rng, m), draw(rng, k, shift=4.0), effect=0.65) for _ in range(20)]
    assert all(found)
    assert sum("overlap_x" in names for names in found) > 15


def test_samples_that_are_more_usual_give_none() -> None:
    rng = np.random.default_rng(1)
    assert not alarms(draw(rng, 50), draw(rng, 50, shift=-4.0))


def test_a_shift_that_is_certain_and_small_gives_none() -> None:
    rng = np.random.default_rng(2)
    rows = drift.compare(draw(rng, 4000), draw(rng, 4000, shift=0.15))
    assert min(row["p"] for row in rows.values()) < 1e-3
    assert drift.alarms(rows, false_alarm=ALARM, effect=0.5)
    assert not drift.alarms(rows, false_alarm=ALARM, effect=0.65)


def test_one_value_of_all_samples_gives_none() -> None:
    rows = drift.compare({"overlap_x": np.ones(20)}, {"overlap_x": np.ones(9)})
    assert rows["overlap_x"] == {"before": 1.0, "new": 1.0, "effect": 0.5, "p": 1.0}


def test_only_the_order_of_values_counts() -> None:
    rng = np.random.default_rng(3)
    before, new = draw(rng, 20), draw(rng, 10, shift=1.0)
    rows = drift.compare(before, new)
    logs = drift.compare({k: np.log(v) for k, v in before.items()}, {k: np.log(v) for k, v in new.items()})
    assert {name: (row["effect"], row["p"]) for name, row in rows.items()} == {
        name: (row["effect"], row["p"]) for name, row in logs.items()
    }


@given(hnp.arrays(float, st.integers(1, 8), elements=st.floats(0, 1)))
def test_corrected_p_values_are_at_least_the_plain_and_at_most_those_of_bonferroni(p: np.ndarray) -> None:
    corrected = drift.holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, len(p) * p) + 1e-15).all()
    assert corrected.min() == min(1, len(p) * p.min())
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_the_distance_is_one_on_average_over_what_the_normalisation_was_fitted_to() -> None:
    z = np.random.default_rng(4).normal(3.0, 2.0, size=(500, 4, 5))
    normalised = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0).mean())
    assert drift.distances({"core": normalised})["core"].mean() == pytest.approx(1)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(InputError, match="0 earlier and 3 new"):
        drift.compare({"e": np.zeros(0)}, {"e": np.zeros(3)})
