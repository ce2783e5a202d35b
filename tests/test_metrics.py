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
    a, b = RNG.normal(size=(2, 200, 2))
    assert 0.4 < metrics.two_sample_accuracy(a, b) < 0.6
    assert metrics.two_sample_accuracy(a, b + 20) == 1.0
    assert metrics.two_sample_accuracy(a, a + 1e-9) == 0.0  # copies


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


def test_crps_of_one_member_is_the_absolute_error_and_skips_missing_points():
    truth = np.array([[1.0, np.nan, 4.0]])
    assert metrics.crps(np.array([[[2.0, 9.0, 1.0]]]), truth).tolist() == [2.0]
    with pytest.raises(InputError, match="members"):
        metrics.crps(truth, truth)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2), (3, 5)), ((1, 2), (1, 2)), ((3, 2, 2), (3, 2, 2))])
def test_distances_refuse_unequal_sets(shapes):
    a, b = (np.zeros(shape) for shape in shapes)
    for distance in (metrics.energy_distance, metrics.two_sample_accuracy):
        with pytest.raises(InputError, match=r"equal counts|at least 2"):
            distance(a, b)
    with pytest.raises(InputError):
        metrics.sliced_wasserstein(a, b, seed=0)
