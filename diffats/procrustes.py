"""Orthogonal Procrustes: the rotation that brings a factor closest to its anchor."""

from __future__ import annotations

import torch

from diffats.errors import InputError
from diffats.spectrum import Array, as_torch, back, like, widen

_LEAST = 0.03  # cosines below it come from an SVD


def align_to_anchor(U: Array, A: Array) -> tuple[Array, Array]:
    """The gauge in which factors are closest to their anchor.

    ``U^T A = L S M^T`` gives ``Q = L M^T``, which minimises ``|U Q - A|_F`` over all orthogonal matrices, reflections
    included. ``U Q`` does not depend on the gauge in which ``U`` came.

    Parameters
    ----------
    U
        ``(..., n, r)`` with orthonormal columns.
    A
        ``(n, r)``, or with trailing batch axes of ``U`` in front.

    Returns
    -------
    Q
        ``(..., r, r)`` orthogonal.
    overlap
        ``(..., r)``: descending cosines of the principal angles between ``U`` and ``A``. ``U Q`` is a continuous
        function of the subspace only where the smallest is above 0.

    Raises
    ------
    InputError
        Where the shapes do not match.

    References
    ----------
    P. Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31 (1966).

    Examples
    --------
    >>> import numpy as np
    >>> A, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 3)))
    >>> Q, overlap = align_to_anchor(A[:, [2, 0, 1]], A)
    >>> np.allclose(A[:, [2, 0, 1]] @ Q, A), np.allclose(overlap, 1)
    (True, True)
    """
    if U.ndim < 2 or A.ndim < 2 or tuple(U.shape[-2:]) != tuple(A.shape[-2:]):
        raise InputError(
            f"a factor of shape {tuple(U.shape)} cannot be aligned to an anchor of shape {tuple(A.shape)}: "
            "size and rank must be equal. Choose the anchor from factors of the same ranks."
        )
    wide = widen(as_torch(U))
    M = wide.mT @ like(A, wide)
    Q, overlap = _polar(M.reshape(-1, *M.shape[-2:]))
    Q, overlap = Q.reshape(M.shape), overlap.reshape(M.shape[:-1])
    dtype = as_torch(U).dtype
    return back(Q.to(dtype), U), back(overlap.clamp(max=1.0).to(dtype), U)


def _polar(M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthogonal factor ``L M^T`` of ``L S M^T``, and ``S``, descending.

    By the eigenvectors of ``M^T M``, which take half the time of an SVD, except where a singular value is so small that
    its square has lost the digits that the factor needs.
    """
    squares, V = torch.linalg.eigh(M.mT @ M)
    squares, V = squares.flip(-1), V.flip(-1)
    values = squares.clamp(min=_LEAST**2).sqrt()
    Q = (M @ V / values[:, None, :]) @ V.mT
    small = torch.nonzero(squares[:, -1] < _LEAST**2)[:, 0]
    if len(small):
        L, S, Mt = torch.linalg.svd(M[small], full_matrices=False)
        Q[small], values[small] = L @ Mt, S
    return Q, values
