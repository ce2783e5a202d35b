"""Metrics against SciPy, closed forms and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

from diffats import metrics
from diffats.errors import InputError

RNG = np.random.default_rng(5)


def test_energy_distance_is_scipys_in_one_dimension():
    a, b = RNG.normal(size=40), RNG.normal(0.5, 2.0, size=40)
    own = metrics.energy_distance(a[:, None], b[:, None], unbiased=False)
    assert np.sqrt(own) == pytest.approx(stats.energy_distance(a, b), rel=1e-10)


def test_energy_distance_is_zero_on_average_for_equal_distributions():
    draws = [metrics.energy_distance(*RNG.normal(size=(2, 8, 3))) for _ in range(400)]
    biased = [metrics.energy_distance(*RNG.normal(size=(2, 8, 3)), unbiased=False) for _ in range(50)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(400)
    assert np.mean(biased) > 0.2


def test_sliced_wasserstein_is_scipys_distance_in_one_dimension():
    a, b = RNG.normal(size=50), RNG.gamma(2.0, size=50)
    own = metrics.sliced_wasserstein(a[:, None], b[:, None], seed=0)
    assert own == pytest.approx(np.sqrt(np.mean((np.sort(a) - np.sort(b)) ** 2)), rel=1e-10)
    assert own >= stats.wasserstein_distance(a, b)


def test_sliced_wasserstein_after_embedding_is_the_one_in_all_features():
    a, b = RNG.normal(size=(12, 300)), RNG.normal(1.0, 1.0, size=(12, 300))
    x, y = metrics.embed(a, b)
    full = metrics.sliced_wasserstein(a, b, seed=1, projections=4000)
    own = metrics.sliced_wasserstein(x, y, seed=1, projections=4000, features=300)
    assert own == pytest.approx(full, rel=0.05)
    assert own == metrics.sliced_wasserstein(x, y, seed=1, projections=4000, features=300)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
def test_embedding_keeps_all_distances(n, m, features, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, features)) + 100.0, rng.normal(size=(m, features)).astype(np.float32)
    x, y = metrics.embed(a, b)
    assert x.shape[1] <= min(n + m, features)
    np.testing.assert_allclose(cdist(x, y), cdist(a, b), atol=2e-5)


def test_embedding_works_by_blocks_and_on_equal_samples(monkeypatch):
    a = RNG.normal(size=(5, 50))
    monkeypatch.setattr(metrics, "_FEATURES_PER_BLOCK", 7)
    np.testing.assert_allclose(cdist(*metrics.embed(a, a)), cdist(a, a), atol=1e-6)
    x, _ = metrics.embed(np.ones((2, 3)), np.ones((2, 3)))
    assert not cdist(x, x).any()


def test_classifier_tells_shifted_sets_apart_and_not_equal_ones():
    draws = [metrics.two_sample_accuracy(*RNG.normal(size=(2, 40, 30))) for _ in range(5)]
    assert abs(np.mean(draws) - 0.5) < 0.08
    a, b = RNG.normal(size=(2, 80, 30))
    assert metrics.two_sample_accuracy(a, b + 3) > 0.95
    assert metrics.two_sample_accuracy(a, a + 1e-9) < 0.6  # copies do not differ
    assert metrics.two_sample_accuracy(a, b, seed=1) == metrics.two_sample_accuracy(a, b, seed=1)
    assert metrics.two_sample_accuracy(a[:2], b[:2]) in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_classifier_sees_what_the_mean_does_not_show():
    rough = RNG.normal(size=(2, 100, 60)) / np.arange(1, 61)
    small = np.arange(60) < 20
    assert metrics.two_sample_accuracy(rough[0], rough[1] * small) > 0.9  # without its weak components: too smooth
    assert metrics.two_sample_accuracy(rough[0], 2 * rough[1]) > 0.8  # the same mean, another spread
    few = np.repeat(rough[1][:10], 10, axis=0) + 1e-3
    assert metrics.two_sample_accuracy(rough[0], few) > 0.8  # repeats


def test_classifier_takes_equal_samples():
    assert metrics.two_sample_accuracy(np.ones((6, 3)), np.ones((6, 3))) <= 0.5


def brute_force_neighbourhoods(real, generated, k):
    def reach(points):
        return [sorted(np.linalg.norm(points - point, axis=1))[k] for point in points]

    to = [[float(np.linalg.norm(x - y)) for y in generated] for x in real]
    n, real_reach, own_reach = len(real), reach(real), reach(generated)
    inside = [[to[i][j] < real_reach[i] for j in range(n)] for i in range(n)]
    return {
        "precision": sum(any(inside[i][j] for i in range(n)) for j in range(n)) / n,
        "recall": sum(any(to[i][j] < own_reach[j] for j in range(n)) for i in range(n)) / n,
        "density": sum(map(sum, inside)) / (k * n),
        "coverage": sum(any(inside[i]) for i in range(n)) / n,
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(5, 12), st.integers(1, 4), st.floats(0, 2), st.integers(0, 2**31))
def test_neighbourhoods_are_brute_force_and_have_no_order(k, n, features, shift, seed):
    rng = np.random.default_rng(seed)
    real, generated = rng.normal(size=(n, features)), rng.normal(shift, 1, size=(n, features))
    own = metrics.precision_recall(real, generated, k=k)
    assert own == pytest.approx(brute_force_neighbourhoods(real, generated, k))
    assert metrics.precision_recall(rng.permutation(real), rng.permutation(generated), k=k) == pytest.approx(own)
    back = metrics.precision_recall(generated, real, k=k)
    assert (back["precision"], back["recall"]) == pytest.approx((own["recall"], own["precision"]))


def test_neighbourhoods_of_equal_distributions_have_known_means():
    n, k = 40, 5
    draws = [metrics.precision_recall(*RNG.normal(size=(2, n, 3)), k=k) for _ in range(300)]
    mean = {name: np.mean([draw[name] for draw in draws]) for name in draws[0]}
    covered = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])  # Naeem et al., lemma 2
    assert mean["coverage"] == pytest.approx(covered, abs=0.01)
    assert mean["density"] == pytest.approx(1.0, abs=0.03)
    assert mean["precision"] == pytest.approx(mean["recall"], abs=0.02)


def test_neighbourhoods_of_what_is_elsewhere_and_of_what_repeats_itself():
    real = RNG.normal(size=(50, 4))
    assert set(metrics.precision_recall(real, real + 100).values()) == {0.0}
    one = metrics.precision_recall(real, np.repeat(real[:1], 50, axis=0) + 1e-6 * RNG.normal(size=(50, 4)))
    assert one["precision"] == 1.0
    assert max(one["recall"], one["coverage"]) < 0.3
    with pytest.raises(InputError, match="more than 5 samples"):
        metrics.precision_recall(real[:5], real[:5])


def test_nearest_distances_are_brute_force():
    points, training = RNG.normal(size=(300, 3)), RNG.normal(size=(20, 3))
    brute = np.linalg.norm(points[:, None] - training[None], axis=2).min(axis=1)
    np.testing.assert_allclose(metrics.nearest_distances(points, training), brute)
    itself = np.linalg.norm(training[:, None] - training[None], axis=2) + np.diag(np.full(20, np.inf))
    left_out = metrics.nearest_distances(training[:7], training, leave_one_out=True)
    np.testing.assert_allclose(left_out, itself.min(axis=1)[:7])


def test_power_spectrum_finds_the_wave_and_its_power():
    amplitude, n = 3.0, 128
    x = amplitude * np.cos(2 * np.pi * np.arange(n) * 16 / n)[None, :, None] + np.zeros((40, n, 2))
    frequency, power = metrics.power_spectrum(x, 1)
    assert frequency[power.argmax()] == pytest.approx(16 / n)
    assert power.max() == pytest.approx(amplitude**2 / 2)
    assert frequency.shape == power.shape == (n // 2,)
    with pytest.raises(InputError, match="samples"):
        metrics.power_spectrum(x, 0)


def test_spectrum_error_in_decibels():
    power = np.array([1.0, 0.1, 1e-20])
    assert metrics.spectrum_error(10 * power, power) == pytest.approx(10.0)
    assert metrics.spectrum_error(power, power) == 0.0
    assert metrics.spectrum_error(np.array([1.0, 0.1, 1e-3]), power) > 30  # power where there is none
    assert metrics.spectrum_error(np.zeros(3), np.zeros(3)) == 0.0


def test_band_statistics_are_numpys():
    x = RNG.normal(size=(30, 4, 6))
    mean, level = metrics.band_statistics(x, 2, (0.1, 0.9))
    np.testing.assert_allclose(mean, x.mean(axis=(0, 1)))
    np.testing.assert_allclose(level, np.quantile(x, (0.1, 0.9), axis=(0, 1)))
    _, some = metrics.band_statistics(RNG.normal(size=(500, 40, 2)), 2, (0.5,), values=4000)
    assert np.abs(some).max() < 0.1


def test_band_statistics_skip_missing_values():
    x = RNG.normal(size=(10, 4, 5))
    x[:, 0] = np.nan
    x[:, :, 2] = np.nan
    mean, level = metrics.band_statistics(x, 2)
    np.testing.assert_allclose(mean[[0, 1, 3, 4]], x[:, 1:, [0, 1, 3, 4]].mean(axis=(0, 1)))
    assert np.isnan(mean[2])
    assert np.isnan(level[:, 2]).all()


def test_relative_l2_against_zero_and_against_a_reference():
    x, truth = RNG.normal(size=(2, 3, 4, 5)) + 300.0
    expected = np.linalg.norm((x - truth).reshape(3, -1), axis=1)
    np.testing.assert_allclose(metrics.relative_l2(x, truth), expected / np.linalg.norm(truth.reshape(3, -1), axis=1))
    mean = truth.mean(axis=0)
    np.testing.assert_allclose(metrics.relative_l2(np.broadcast_to(mean, truth.shape), truth, mean), 1.0)
    assert np.isnan(metrics.relative_l2(truth, truth, truth[0])[0])


def test_crps_of_a_gaussian_ensemble_is_the_closed_form():
    y, sigma = 0.7, 1.3
    z = y / sigma
    exact = sigma * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    cases = 4000
    for members in (2, 5):  # the fair score does not depend on the number of members
        ensemble = RNG.normal(0.0, sigma, size=(cases, members, 1))
        assert metrics.crps(ensemble, np.full((cases, 1), y)).mean() == pytest.approx(exact, abs=0.04)


def test_crps_is_the_sum_over_pairs():
    ensemble, truth = RNG.normal(size=(3, 5, 7)), RNG.normal(size=(3, 7))
    pairs = np.abs(ensemble[:, :, None] - ensemble[:, None]).sum(axis=(1, 2)) / (2 * 5 * 4)
    brute = (np.abs(ensemble - truth[:, None]).mean(axis=1) - pairs).mean(axis=1)
    np.testing.assert_allclose(metrics.crps(ensemble, truth), brute)


def test_crps_of_one_member_is_the_absolute_error_and_skips_missing_points():
    truth = np.array([[1.0, np.nan, 4.0]])
    assert metrics.crps(np.array([[[2.0, 9.0, 1.0]]]), truth).tolist() == [2.0]
    with pytest.raises(InputError, match="members"):
        metrics.crps(truth, truth)


def test_pooled_error_weighs_samples_by_their_size():
    x, truth = RNG.normal(size=(2, 3, 4, 5))
    assert metrics.pooled_relative_l2(x, truth) == pytest.approx(np.linalg.norm(x - truth) / np.linalg.norm(truth))
    assert metrics.pooled_relative_l2(x[:1], truth[:1]) == pytest.approx(metrics.relative_l2(x[:1], truth[:1])[0])
    truth[0] *= 1e-6  # a sample near zero rules the mean alone
    assert metrics.relative_l2(x, truth).mean() > 1e5
    assert metrics.pooled_relative_l2(x, truth) < 10
    truth[0] = np.nan
    assert metrics.pooled_relative_l2(x, truth) == pytest.approx(metrics.pooled_relative_l2(x[1:], truth[1:]))
    assert np.isnan(metrics.pooled_relative_l2(x, 0 * x))


def test_scores_in_units_of_a_scale():
    ensemble, truth = RNG.normal(size=(3, 4, 2, 5)), RNG.normal(size=(3, 2, 5))
    scale = np.array([[2.0], [5.0]])
    np.testing.assert_allclose(
        metrics.crps(ensemble, truth, scale=scale), metrics.crps(ensemble / scale, truth / scale)
    )
    own = metrics.spread_skill(ensemble, truth, scale=scale)
    assert own == pytest.approx(metrics.spread_skill(ensemble / scale, truth / scale))


def ensembles(members, *, spread=1.0, cases=50, points=400):
    """Truth and members are draws about a centre that only they share; members with another spread than the truth."""
    centre = 3 * RNG.normal(size=(cases, points))
    truth = centre + RNG.normal(size=(cases, points))
    return centre[:, None] + spread * RNG.normal(size=(cases, members, points)), truth


@pytest.mark.parametrize("members", [2, 3, 8, 19, 20, 39])
def test_a_calibrated_ensemble_is_called_so_whatever_its_members(members):
    ensemble, truth = ensembles(members)
    assert metrics.spread_skill(ensemble, truth) == pytest.approx(1.0, abs=0.02)
    assert metrics.interval_coverage(ensemble, truth).mean() == pytest.approx(0.9, abs=0.01)
    # as exact for numbers that tie: counts, or pixels at the end of their range
    tied = [np.maximum(np.round(x), 0) for x in (ensemble, truth)]
    assert metrics.interval_coverage(*tied).mean() == pytest.approx(0.9, abs=0.01)


def test_an_ensemble_that_is_too_sure_or_too_unsure():
    sure, truth = ensembles(40, spread=0.5)
    exact = np.sqrt(0.25 * (1 + 1 / 40) / (1 + 0.25 / 40))
    assert metrics.spread_skill(sure, truth) == pytest.approx(exact, abs=0.02)
    wide, truth_of_wide = ensembles(400, spread=2.0, cases=10)
    for ensemble, y, spread in ((sure, truth, 0.5), (wide, truth_of_wide, 2.0)):
        exact = 2 * stats.norm.cdf(spread * stats.norm.ppf(0.95)) - 1  # of infinitely many members
        assert metrics.interval_coverage(ensemble, y).mean() == pytest.approx(exact, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 60), st.floats(0.5, 0.99))
def test_intervals_cover_exactly_their_level_of_all_places(members, level):
    """The truth once in each of the places that it may take among the members: no draw, no distribution."""
    ensemble = np.repeat(np.arange(members, dtype=float)[None, :, None], members + 1, axis=2)
    truth = np.arange(members + 1)[None] - 0.5
    assert metrics.interval_coverage(ensemble, truth, level=level)[0] == pytest.approx(level)


def test_calibration_has_no_order_and_skips_missing_points():
    ensemble, truth = ensembles(6, cases=4, points=30)
    members, points = RNG.permutation(6), RNG.permutation(30)
    for metric in (metrics.spread_skill, metrics.interval_coverage):
        own = metric(ensemble, truth)
        np.testing.assert_allclose(metric(ensemble[:, members][:, :, points], truth[:, points]), own)
        holes = truth.copy()
        holes[:, ::3] = np.nan
        keep = np.arange(30) % 3 > 0
        np.testing.assert_allclose(metric(ensemble, holes), metric(ensemble[:, :, keep], truth[:, keep]))
        with pytest.raises(InputError, match="at least 2 members"):
            metric(ensemble[:, :1], truth)
    assert np.isnan(metrics.spread_skill(ensemble, ensemble.mean(axis=1)))


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2), (3, 5)), ((1, 2), (1, 2)), ((3, 2, 2), (3, 2, 2))])
def test_distances_refuse_unequal_sets(shapes):
    a, b = (np.zeros(shape) for shape in shapes)
    for distance in (metrics.two_sample_accuracy, metrics.precision_recall):
        with pytest.raises(InputError, match=r"equal counts|at least 2"):
            distance(a, b)
    if shapes != ((3, 2), (4, 2)):  # which the energy distance takes
        with pytest.raises(InputError, match=r"must both be \(samples, features\), got|at least 2"):
            metrics.energy_distance(a, b)
    with pytest.raises(InputError):
        metrics.sliced_wasserstein(a, b, seed=0)


# --- how sure a number is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_contributions_move_as_the_energy_distance_does(shift: float) -> None:
    """Their variance is that of the distance over draws: to first order the two are the same."""
    rng = np.random.default_rng(0)
    distances, deviations = [], []
    for _ in range(200):
        a, b = rng.normal(size=(60, 3)), rng.normal(shift + 0.3, 1.2, size=(60, 3))
        distances.append(metrics.energy_distance(a, b))
        deviations.append(sum(each.var() / len(each) for each in metrics.energy_contributions(a, b)))
    assert np.sqrt(np.mean(deviations)) == pytest.approx(np.std(distances), rel=0.2)


def test_intervals_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        values = rng.exponential(size=40)
        low, high = metrics.bootstrap_interval([(values, None)], replicates=400, seed=seed)
        held += low <= 1 - values.mean() <= high  # around the mean of the draw, as far as that is off
    assert 0.83 < held / 300 < 0.95


def test_samples_of_one_group_count_as_one() -> None:
    rng = np.random.default_rng(0)
    few = rng.normal(size=30)
    repeated, groups = np.repeat(few, 10), np.repeat(np.arange(30), 10)
    alone = metrics.bootstrap_interval([(few, None)])
    assert metrics.bootstrap_interval([(repeated, groups)]) == pytest.approx(alone, rel=0.1)
    low, high = metrics.bootstrap_interval([(repeated, None)])
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_independent_parts_add_their_variances() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=200), rng.normal(size=200)
    widths = [np.ptp(metrics.bootstrap_interval(parts)) for parts in ([(a, None)], [(b, None)], [(a, None), (b, None)])]
    assert widths[2] == pytest.approx(np.hypot(widths[0], widths[1]), rel=0.1)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(size=12)
    without = np.array([np.delete(values, i).mean() for i in range(12)])
    low, high = metrics.jackknife_interval(without)
    expected = stats.t.interval(0.9, 11, scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=60), st.integers(2, 10))
def test_folds_leave_groups_whole_and_are_about_equal(groups: list[int], folds: int) -> None:
    numbers = metrics.fold_numbers(np.array(groups), folds)
    assert all(len(set(numbers[np.array(groups) == group])) == 1 for group in groups)
    counts = np.bincount(numbers, minlength=folds)
    assert counts.max() - counts.min() <= np.bincount(groups).max()


# --- within conditions --------------------------------------------------------------------------------------------


def test_samples_under_the_wrong_condition_are_seen_within_conditions_only() -> None:
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1, 2], 40)
    test, good = (rng.normal(size=(120, 3)) + 4 * strata[:, None] for _ in range(2))
    wrong = good[::-1]  # as a set as good as before
    assert metrics.energy_distance(test, wrong) == pytest.approx(metrics.energy_distance(test, good))
    right, *_ = metrics.energy_distance_within(test, good, strata, strata)
    assert abs(right) < 0.1
    assert metrics.energy_distance_within(test, wrong, strata, strata)[0] > 1


def test_contributions_within_move_as_their_distance_does() -> None:
    rng = np.random.default_rng(0)
    strata, others = np.repeat([0, 1], [60, 20]), np.repeat([1, 0], [30, 50])
    distances, deviations = [], []
    for _ in range(200):
        a, b = rng.normal(size=(80, 2)) + strata[:, None], rng.normal(0.5, 1.2, size=(80, 2)) + others[:, None]
        distance, of_a, of_b, parts = metrics.energy_distance_within(a, b, strata, others)
        assert distance == pytest.approx((60 * parts[0] + 20 * parts[1]) / 80)
        assert parts[1] == pytest.approx(metrics.energy_distance(a[strata == 1], b[others == 1]))
        distances.append(distance)
        parts = ((of_a, strata, strata), (of_b, others, strata))
        deviations.append(
            sum(
                each[own == s].var() * (each[own == s].size / each.size) ** 2 / each[own == s].size
                for each, own, _ in parts
                for s in (0, 1)
            )
        )
    assert np.sqrt(np.mean(deviations)) == pytest.approx(np.std(distances), rel=0.2)
