"""Spectra of a tensor's modes: Gram matrices, leading vectors, and how many of them are needed.

Written once against the Python array API standard: NumPy and torch arrays, the last ``N`` axes are the modes and all
leading axes are batch. Energies (squared singular values of a mode's unfolding) are float64 whatever the input is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array, to_device

Array: TypeAlias = Any  # a NumPy or torch array: the array API standard has no type for it

_CHUNK = 2**21  # numbers upcast to float64 at a time: a Gram of float32 data then needs 16 MiB of work space
_PASS = 24.0  # cost of touching a number once, in flops
_EIGH = 30.0  # flops of eigh for an n x n matrix are _EIGH n^3 (it runs far below the speed of a product)
_SVD = 40.0  # the same for the thin SVD of an n x m matrix, _SVD n m^2


def float_dtype(x: Array) -> Any:
    """The dtype in which results for ``x`` are given: at least float32, as ``np.result_type(x, np.float32)``.

    >>> np.dtype(float_dtype(np.zeros(3, np.int16)))
    dtype('float32')
    """
    xp = array_namespace(x)
    if xp.isdtype(x.dtype, "real floating"):
        return x.dtype if x.dtype.itemsize >= 4 else xp.float32
    return xp.float32 if x.dtype.itemsize <= 2 else xp.float64


def rounding_unit(x: Array) -> float:
    """Relative rounding of results for ``x``: the machine epsilon of ``float_dtype``."""
    return float(array_namespace(x).finfo(float_dtype(x)).eps)


def wide_dtype(x: Array) -> Any:
    """The dtype in which sums over ``x`` accumulate: float64, or float32 on a device that has no other."""
    xp = array_namespace(x)
    return xp.float32 if getattr(device(x), "type", "cpu") == "mps" else xp.float64


def widen(x: Array) -> Array:
    """``x`` in the dtype of ``wide_dtype``; ``x`` itself where it has it already."""
    return array_namespace(x).astype(x, wide_dtype(x), copy=False)


def like(array: Array, x: Array) -> Array:
    """``array`` in the namespace, dtype and device of ``x``."""
    xp = array_namespace(x)
    return to_device(xp.asarray(array, dtype=x.dtype), device(x))


def as_numpy(x: Array) -> np.ndarray[Any, Any]:
    """``x`` as a NumPy array: copied from the device, and detached, where it is a torch tensor."""
    return np.asarray(x.detach().cpu() if is_torch_array(x) else x)


def transpose(matrix: Array) -> Array:
    """Swap the last two axes."""
    return array_namespace(matrix).linalg.matrix_transpose(matrix)


def norm2(x: Array, n_modes: int) -> Array:
    """Squared norm over the last ``n_modes`` axes: ``(...)``, float64."""
    xp = array_namespace(x)
    return xp.sum(widen(x) ** 2, axis=tuple(range(x.ndim - n_modes, x.ndim)))


def mode_dot(x: Array, matrix: Array, mode: int, n_modes: int) -> Array:
    """Multiply mode ``mode`` of the tensors ``x`` by matrices.

    Parameters
    ----------
    x
        ``(..., n_1, ..., n_N)``.
    matrix
        ``(..., m, n_mode)``, with the batch axes of ``x`` or with none.
    mode
        Which of the last ``n_modes`` axes, from 0.

    Returns
    -------
    ``(..., n_1, .., m, .., n_N)``

    >>> mode_dot(np.ones((5, 2, 3, 4)), np.ones((7, 3)), 1, 3).shape
    (5, 2, 7, 4)
    """
    xp = array_namespace(x)
    shape = list(x.shape)
    axis = x.ndim - n_modes + mode
    left, right = math.prod(shape[x.ndim - n_modes : axis]), math.prod(shape[axis + 1 :])
    batch = tuple(shape[: x.ndim - n_modes])
    if right == 1:  # the last mode: one product per sample instead of one per row
        y = xp.reshape(x, (*batch, left, shape[axis])) @ transpose(matrix)
    else:
        y = matrix[..., None, :, :] @ xp.reshape(x, (*batch, left, shape[axis], right))
    shape[axis] = matrix.shape[-2]
    return xp.reshape(y, tuple(shape))


def unfold(x: Array, mode: int) -> Array:
    """Unfolding of a batch ``(B, n_1, ..., n_N)`` along one mode: ``(B, n_mode, rest)``."""
    xp = array_namespace(x)
    return xp.reshape(xp.moveaxis(x, mode + 1, 1), (x.shape[0], x.shape[mode + 1], -1))


def gram(x: Array, mode: int) -> Array:
    """Gram matrices of one mode's unfolding, accumulated in float64.

    Parameters
    ----------
    x
        ``(B, n_1, ..., n_N)``.

    Returns
    -------
    ``(B, n_mode, n_mode)``
    """
    xp = array_namespace(x)
    step = max(1, _CHUNK // max(1, math.prod(x.shape[1:])))
    parts = [_gram(unfold(x[i : i + step, ...], mode)) for i in range(0, x.shape[0], step)]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


def _gram(a: Array) -> Array:
    wide = widen(a)  # after unfolding: a copy, where one is needed, is then of the smaller dtype
    return wide @ transpose(wide)


def gram_floor(n: int) -> float:
    """Singular values below this share of the largest are noise in a float64 Gram matrix of size ``n``.

    >>> f"{gram_floor(64):.1e}"
    '1.2e-07'
    """
    return math.sqrt(n * float(np.finfo(np.float64).eps))


def leading(x: Array, mode: int, *, accurate: bool = False) -> tuple[Array, Array]:
    """Left singular vectors and energies of one mode's unfolding.

    By the eigenvectors of the Gram matrix; by a thin SVD where the unfolding is taller than wide, or where
    ``accurate`` asks for singular values that a Gram matrix cannot hold (``gram_floor``).

    Parameters
    ----------
    x
        ``(B, n_1, ..., n_N)``.

    Returns
    -------
    vectors
        ``(B, n, min(n, rest))`` float64, orthonormal columns in descending order of energy.
    energies
        ``(B, n)`` float64, descending, not negative.
    """
    xp = array_namespace(x)
    n = x.shape[mode + 1]
    if accurate or n * n > math.prod(x.shape[1:]):
        return _leading_by_svd(widen(unfold(x, mode)))
    energies, vectors = xp.linalg.eigh(gram(x, mode))
    return xp.flip(vectors, axis=-1), xp.clip(xp.flip(energies, axis=-1), min=0.0)


def _leading_by_svd(a: Array) -> tuple[Array, Array]:
    xp = array_namespace(a)
    n, m = a.shape[-2:]
    if m > n:  # A = R^T Q^T: the small R has A's left singular vectors
        a = transpose(_triangular(transpose(a)))
    vectors, values, _ = xp.linalg.svd(a, full_matrices=False)
    absent = xp.zeros((a.shape[0], max(0, n - m)), dtype=values.dtype, device=device(a))
    return vectors, xp.concat([values**2, absent], axis=-1)


def _triangular(a: Array) -> Array:
    if is_torch_array(a):
        return array_namespace(a).linalg.qr(a, mode="r")[1]
    return np.linalg.qr(a, mode="r")


def ranks_needed(energies: Array, budget: Array) -> Array:
    """Columns each sample must keep so that the energy of the rest stays within its budget.

    Parameters
    ----------
    energies
        ``(..., n)`` descending.
    budget
        ``(...)`` energy that may be discarded.

    Returns
    -------
    ``(...)`` integers, at least 1.

    >>> ranks_needed(np.array([9.0, 4.0, 1.0, 0.5]), np.array(1.6)).item()
    2
    """
    xp = array_namespace(energies)
    tails = xp.flip(xp.cumulative_sum(xp.flip(energies, axis=-1), axis=-1), axis=-1)  # tails[r]: lost by keeping r
    return xp.clip(xp.sum(xp.astype(tails > budget[..., None], xp.int64), axis=-1), min=1)


def numerical_rank(energies: Array, floor: float) -> Array:
    """How many singular values exceed ``floor`` times the largest: ``(...)`` integers; 0 for a zero sample.

    >>> numerical_rank(np.array([4.0, 1.0, 1e-20]), 1e-7).item()
    2
    """
    xp = array_namespace(energies)
    above = (energies > floor**2 * energies[..., :1]) & (energies > 0)
    return xp.sum(xp.astype(above, xp.int64), axis=-1)


def flops(shape: Sequence[int], ranks: Sequence[int | None], order: Sequence[int] | None = None) -> float:
    """Cost model of an ST-HOSVD of one sample: products, eigenproblems and passes over the data, in flops.

    Parameters
    ----------
    shape, ranks
        By mode; a rank of None: not decomposed.
    order
        The modes in the order of truncation; the cheapest where left out.

    >>> flops((50, 64, 64), (4, 12, 12), (0, 1, 2)) < flops((50, 64, 64), (4, 12, 12), (1, 2, 0))
    True
    """
    current, total = list(shape), 0.0
    for mode in mode_order(shape, ranks) if order is None else order:
        rank = ranks[mode]
        if rank is None:
            continue
        n, size = current[mode], math.prod(current)
        rest = size // max(n, 1)
        total += _SVD * n * rest**2 if n > rest else n * size + _EIGH * n**3
        total += (2 * rank + _PASS) * size
        current[mode] = rank
    return total


def mode_order(shape: Sequence[int], ranks: Sequence[int | None]) -> tuple[int, ...]:
    """The cheapest order in which to truncate the decomposed modes, by ``flops``.

    >>> mode_order((200, 128, 128), (5, None, 20))
    (2, 0)
    """
    modes = [mode for mode, rank in enumerate(ranks) if rank is not None]
    if len(modes) > 6:  # the factorial of that is too many: strongest reduction first
        return tuple(sorted(modes, key=lambda mode: (ranks[mode] or 0) / shape[mode]))
    return min(itertools.permutations(modes), key=lambda order: flops(shape, ranks, order))
