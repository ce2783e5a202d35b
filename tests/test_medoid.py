"""Medoid anchors: against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats.errors import InputError
from diffats.medoid import MedoidAccumulator, first_best, mean_anchor, medoid, projection_sum

few = settings(max_examples=20, deadline=None)


def orthonormal(rng, *shape):
    return np.linalg.qr(rng.normal(size=shape))[0]


@st.composite
def factors(draw, min_samples=3):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    samples, r = draw(st.integers(min_samples, 9)), draw(st.integers(1, 4))
    return orthonormal(rng, samples, r + draw(st.integers(1, 5)), r), rng


def distances(U):
    """Squared projection distances between all pairs."""
    P = U @ np.swapaxes(U, -1, -2)
    return 0.5 * np.sum((P[:, None] - P[None]) ** 2, axis=(-2, -1))


@few
@given(factors())
def test_medoid_is_that_of_brute_force_in_any_gauge(case):
    U, rng = case
    expected = int(np.argmin(distances(U).sum(axis=1)))
    assert medoid(U) == expected
    assert medoid(torch.from_numpy(U)) == expected
    r = U.shape[-1]
    assert medoid(U @ orthonormal(rng, len(U), r, r)) == expected
    order = rng.permutation(len(U))
    assert order[medoid(U[order])] == expected


@few
@given(factors())
def test_ties_go_to_the_lowest_index(case):
    U, rng = case
    r = U.shape[-1]
    twice = np.concatenate([U @ orthonormal(rng, len(U), r, r), U])
    for dtype in (np.float32, np.float64):
        assert medoid(twice.astype(dtype)) < len(U)
        assert medoid(U[:2].astype(dtype)) == 0  # of two samples, neither is closer


@few
@given(factors(), st.integers(1, 4))
def test_shards_merge_in_any_order(case, parts):
    U, rng = case
    shards = [shard for shard in np.array_split(U, parts) if len(shard)]
    whole = MedoidAccumulator(U.shape[1])
    for i in rng.permutation(len(shards)):
        part = MedoidAccumulator(U.shape[1])
        part.add(shards[i].astype(np.float64))
        whole.merge(MedoidAccumulator.from_arrays(part.to_arrays()))
    assert whole.count == len(U)
    np.testing.assert_allclose(whole.P, projection_sum(U), atol=1e-12)
    scores = np.concatenate([whole.scores(shard) for shard in shards])
    assert first_best(scores) == medoid(U)
    r = U.shape[-1]
    np.testing.assert_allclose(len(U) * r - scores, distances(U).sum(axis=1), atol=1e-9)
    np.testing.assert_allclose(whole.scores(torch.from_numpy(U)).numpy(), scores, atol=1e-10)


def test_a_sample_without_score_is_no_candidate():
    assert first_best(np.array([np.nan, 2.0, 3.0, np.nan])) == 2


def test_a_shard_without_samples_adds_nothing():
    seen = MedoidAccumulator(4)
    seen.add(np.ones((0, 4, 2)))
    assert seen.count == 0
    assert seen.scores(np.ones((0, 4, 2))).shape == (0,)
    assert (seen.P == 0).all()


def test_labels_are_kept_apart():
    U = orthonormal(np.random.default_rng(0), 5, 3, 6, 2)
    seen = MedoidAccumulator(6, (3,))
    seen.add(U)
    assert seen.scores(U).shape == (5, 3)
    assert [first_best(seen.scores(U)[:, c]) for c in range(3)] == [medoid(U[:, c]) for c in range(3)]
    assert mean_anchor(seen.P, 2).shape == (3, 6, 2)
    assert MedoidAccumulator.from_arrays(seen.to_arrays()).P.shape == (3, 6, 6)


def test_mean_anchor_of_equal_subspaces_is_that_subspace():
    rng = np.random.default_rng(0)
    A = orthonormal(rng, 7, 3)
    U = A @ orthonormal(rng, 4, 3, 3)
    mean = mean_anchor(projection_sum(U), 3)
    np.testing.assert_allclose(mean @ mean.T, A @ A.T, atol=1e-12)


def test_what_has_no_medoid_is_refused():
    with pytest.raises(InputError, match="no medoid"):
        medoid(np.ones((0, 4, 2)))
    with pytest.raises(InputError, match="have no best"):
        first_best(np.array([np.nan, np.nan]))
    with pytest.raises(InputError, match="too long for a medoid"):
        MedoidAccumulator(5000)
    with pytest.raises(InputError, match="do not fit"):
        MedoidAccumulator(4).add(np.ones((3, 5, 2)))
    with pytest.raises(InputError, match="cannot be merged"):
        MedoidAccumulator(4).merge(MedoidAccumulator(5))
