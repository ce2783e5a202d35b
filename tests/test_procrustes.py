"""Alignment: against SciPy, and against random rotations."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats.errors import InputError
from diffats.procrustes import align_to_anchor

few = settings(max_examples=20, deadline=None)


def orthonormal(rng, *shape):
    return np.linalg.qr(rng.normal(size=shape))[0]


@st.composite
def factors(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    r = draw(st.integers(1, 5))
    n = r + draw(st.integers(0, 6))
    return orthonormal(rng, 3, n, r), orthonormal(rng, n, r), rng


@few
@given(factors())
def test_rotation_is_scipys_and_beats_random_ones(case):
    U, A, rng = case
    Q, overlap = align_to_anchor(U, A)
    r = A.shape[1]
    for i in range(3):
        expected, _ = scipy.linalg.orthogonal_procrustes(U[i], A)
        best = np.linalg.norm(U[i] @ Q[i] - A)
        assert best == pytest.approx(np.linalg.norm(U[i] @ expected - A), abs=1e-9)
        for turn in orthonormal(rng, 10, r, r):
            assert best <= np.linalg.norm(U[i] @ turn - A) + 1e-12
    np.testing.assert_allclose(np.swapaxes(Q, -1, -2) @ Q, np.broadcast_to(np.eye(r), Q.shape), atol=1e-12)
    cosines = np.stack([np.cos(np.sort(scipy.linalg.subspace_angles(u, A))) for u in U])
    np.testing.assert_allclose(overlap, cosines, atol=1e-7)


@few
@given(factors())
def test_aligned_factor_does_not_depend_on_the_gauge(case):
    U, A, rng = case
    r = A.shape[1]
    turn = orthonormal(rng, 3, r, r)
    Q, overlap = align_to_anchor(U, A)
    turned, overlap_turned = align_to_anchor(U @ turn, A)
    if overlap.min() > 1e-3:
        np.testing.assert_allclose(U @ turn @ turned, U @ Q, atol=1e-9)
    np.testing.assert_allclose(overlap, overlap_turned, atol=1e-9)


@few
@given(factors(), st.sampled_from([np.float32, np.float64]))
def test_torch_gives_the_same_as_numpy(case, dtype):
    U, A, _ = case
    U, A = U.astype(dtype), A.astype(dtype)
    Q, overlap = align_to_anchor(U, A)
    Q_torch, overlap_torch = align_to_anchor(torch.from_numpy(U), torch.from_numpy(A))
    assert Q.dtype == overlap.dtype == dtype
    assert isinstance(Q_torch, torch.Tensor)
    if overlap.min() > 1e-3:
        np.testing.assert_allclose(Q_torch.numpy(), Q, atol=1e-5)
    np.testing.assert_allclose(overlap_torch.numpy(), overlap, atol=1e-6)


def test_each_label_has_its_own_anchor():
    rng = np.random.default_rng(0)
    U, A = orthonormal(rng, 4, 2, 6, 3), orthonormal(rng, 2, 6, 3)
    Q, overlap = align_to_anchor(U, A)
    assert Q.shape == (4, 2, 3, 3)
    assert overlap.shape == (4, 2, 3)
    np.testing.assert_allclose(Q[:, 1], align_to_anchor(U[:, 1], A[1])[0], atol=1e-12)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="size and rank must be equal"):
        align_to_anchor(np.ones((4, 6, 3)), np.ones((6, 2)))
