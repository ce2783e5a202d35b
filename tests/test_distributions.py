"""What is said about values, tails and fine structure follows from the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from diffats.distributions import LEVELS, extremes, roughness, roughness_sentence, tails_sentence, value_quantiles

RNG = np.random.default_rng(0)


def smoothed(x: np.ndarray, axis: int) -> np.ndarray:
    return (x + np.roll(x, 1, axis)) / 2


def test_levels_rise_from_tail_to_tail() -> None:
    assert (np.diff(LEVELS) > 0).all()
    np.testing.assert_allclose(LEVELS, 1 - LEVELS[::-1])
    assert LEVELS[0] == pytest.approx(1e-4)


def test_smoothing_and_noise_are_told_apart_by_direction() -> None:
    x = RNG.normal(size=(30, 32, 24))
    found = roughness({"test": x, "generated": smoothed(x, 1), "train": RNG.normal(size=x.shape)}, ("y", "x"))
    text = roughness_sentence(found)
    assert found["y"]["generated"] < 0.5
    assert "too smooth by a factor of" in text
    assert text.index("too smooth") < text.index("along y") < text.index("along x")
    rough = roughness_sentence(roughness({"test": smoothed(x, 2), "generated": x}, ("y", "x")))
    assert "too rough by a factor of" in rough
    assert "too smooth" not in rough


def test_equal_sets_are_as_rough_as_each_other() -> None:
    x = RNG.normal(size=(30, 4, 16))
    text = roughness_sentence(roughness({"test": x, "generated": x, "train": x}, ("y", "x")))
    assert text.endswith("generated samples are as rough as test samples along x.")  # y is too short to tell
    assert roughness_sentence({}) == ""


def test_a_factor_that_real_samples_have_too_is_no_fault() -> None:
    assert "as rough as" in roughness_sentence({"x": {"generated": 1.9, "train": 0.5}})
    assert "too rough by a factor of 1.9" in roughness_sentence({"x": {"generated": 1.9, "train": 0.9}})


def test_quantiles_and_extremes_leave_missing_points_out() -> None:
    x = RNG.normal(size=(5, 6, 7))
    gaps = x.copy()
    gaps[:, :2, :2] = np.nan
    assert np.isfinite(value_quantiles({"test": gaps})["test"]).all()
    low, high = extremes({"test": gaps})["test"]
    np.testing.assert_allclose(low, np.sort(np.nanmin(gaps, axis=(1, 2))))
    np.testing.assert_allclose(high, np.sort(np.nanmax(gaps, axis=(1, 2))))


def test_constant_fields_have_no_tails() -> None:
    assert tails_sentence(np.ones((2, 3)), np.ones((2, 3))) == ""
