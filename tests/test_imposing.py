"""A given slice takes the place of the generated one, and what it tells of the others is what least squares say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats.imposing import Imposing


@st.composite
def cases(draw: st.DrawFn) -> tuple[Imposing, np.ndarray, np.ndarray]:
    """Shares of any place, samples, and given slices; with variables or without."""
    component = draw(st.booleans())
    sizes = tuple(draw(st.lists(st.integers(2, 4), min_size=2, max_size=3)))
    sizes = (2, *sizes) if component else sizes
    axis = draw(st.integers(1 + component, len(sizes)))
    slices = sizes[axis - 1]
    index = draw(st.integers(0, slices - 1))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shares = np.where(rng.random((1 + component, slices)) < 0.4, 0.0, rng.random((1 + component, slices)))
    shares[:, index] = 1.0
    fields = rng.normal(size=(3, *sizes)).astype(draw(st.sampled_from(["f4", "f8"])))
    wanted = rng.normal(size=np.take(fields, 0, axis).shape).astype(draw(st.sampled_from(["f4", "f8"])))
    return Imposing(axis, index, shares), fields, wanted


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_slice_is_the_given_one_and_others_get_their_share(case: tuple[Imposing, np.ndarray, np.ndarray]) -> None:
    known, fields, wanted = case
    out = known.impose(fields.copy(), wanted)
    np.testing.assert_array_equal(out.take(known.index, known.axis), wanted)  # exactly
    change = wanted - fields.take(known.index, known.axis)
    for place in range(fields.shape[known.axis]):
        before, after = fields.take(place, known.axis), out.take(place, known.axis)
        share = known.shares[:, place].reshape(-1, *(1,) * (change.ndim - 2))
        untouched = np.broadcast_to(share == 0, change.shape)
        np.testing.assert_array_equal(after[untouched], before[untouched])
        if place != known.index:
            np.testing.assert_allclose(after, before + share * change, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_what_is_missing_stays_missing_and_changes_nothing_there(
    case: tuple[Imposing, np.ndarray, np.ndarray],
) -> None:
    known, fields, wanted = case
    own = np.moveaxis(fields, known.axis, 0)[known.index]
    own[0].flat[0] = np.nan  # land in what is generated
    wanted[1].flat[-1] = np.nan  # not known in what is given
    before = fields.copy()
    out = known.impose(fields, wanted)
    assert np.array_equal(np.isnan(out), np.isnan(before))
    slices, old = np.moveaxis(out, known.axis, 0), np.moveaxis(before, known.axis, 0)
    np.testing.assert_array_equal(slices[:, 0].reshape(len(slices), -1)[:, 0], old[:, 0].reshape(len(slices), -1)[:, 0])
    np.testing.assert_array_equal(
        slices[:, 1].reshape(len(slices), -1)[:, -1], old[:, 1].reshape(len(slices), -1)[:, -1]
    )


@pytest.mark.parametrize("component", [False, True])
def test_shares_are_those_of_least_squares(component: bool) -> None:
    rng = np.random.default_rng(0)
    truth = 280 + rng.normal(size=(40, 2, 5, 6))
    errors = rng.normal(size=truth.shape) * np.array([1.0, 100.0])[:, None, None]  # variables of unlike units
    errors[:, :, 1:] += np.array([1.3, 0.7, 0.2, -0.4])[:, None] * errors[:, :, :1]
    if not component:
        truth, errors = truth[:, 0], errors[:, 0]
    axis = 1 + component
    found = Imposing.fit(truth - errors, truth, axis, -5, component=component)
    assert found.index == 0
    for variable in range(1 + component):
        part = errors[:, variable] if component else errors
        own = part[:, 0].reshape(-1, 1)
        expected = [np.linalg.lstsq(own, part[:, place].ravel(), rcond=None)[0][0] for place in range(5)]
        np.testing.assert_allclose(found.shares[variable], np.clip(expected, 0, 1), atol=1e-9)
    first = np.moveaxis(errors, axis, 0)[0]
    assert found.off == pytest.approx(np.linalg.norm(first) / np.linalg.norm(np.moveaxis(truth, axis, 0)[0]))


def test_imposing_with_fitted_shares_never_enlarges_the_error_they_were_fitted_to() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(30, 4, 8))
    errors = rng.normal(size=truth.shape).cumsum(axis=1)
    found = Imposing.fit(truth - errors, truth, 1, 0)
    left = truth - found.impose(truth - errors, truth[:, 0])
    assert (np.square(left).sum(axis=(0, 2)) <= np.square(errors).sum(axis=(0, 2))).all()
    assert np.square(left).sum() < 0.8 * np.square(errors).sum()


def test_samples_without_error_or_with_missing_points_can_be_fitted() -> None:
    truth = np.random.default_rng(0).normal(size=(3, 4, 5))
    perfect = Imposing.fit(truth, truth, 1, 2)
    assert perfect.shares.tolist() == [[0, 0, 1, 0]]
    holes = truth.copy()
    holes[..., 0] = np.nan
    assert np.isfinite(Imposing.fit(holes + 1, holes, 1, 2).shares).all()


def test_what_was_measured_comes_back_from_json() -> None:
    known = Imposing(2, 1, np.array([[0.25, 1.0], [0.5, 1.0]]), 0.125)
    again = Imposing.from_dict(json.loads(json.dumps(known.to_dict())), 2, -1, (2, 2))
    assert (again.axis, again.index, again.off) == (2, 1, 0.125)
    np.testing.assert_array_equal(again.shares, known.shares)
