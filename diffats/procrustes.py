"""Orthogonal Procrustes: the rotation that brings a factor closest to its anchor."""

from __future__ import annotations

from array_api_compat import array_namespace

from diffats.errors import InputError
from diffats.spectrum import Array, like, transpose, widen


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
    xp = array_namespace(U)
    wide = widen(U)
    L, S, Mt = xp.linalg.svd(transpose(wide) @ like(A, wide), full_matrices=False)
    return xp.astype(L @ Mt, U.dtype, copy=False), xp.astype(xp.clip(S, max=1.0), U.dtype, copy=False)
