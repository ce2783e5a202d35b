"""Spectra of a tensor's modes: Gram matrices, leading vectors, and how many of them are needed.

The same lines serve NumPy arrays, on which workers need no torch, and torch tensors, on a GPU. The last ``N`` axes are
the modes and all leading axes are batch. Energies (squared singular values of a mode's unfolding) are float64 whatever
the input is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array, to_device

from diffats.requirements import missing, require

Array: TypeAlias = Any  # a NumPy or torch array: the array API standard has no type for it
Truncation: TypeAlias = tuple[Array, Array, Array]  # vectors, their energies, energy of the others

_ROW = 512  # numbers summed in their own precision
_CHUNK = 2**21  # numbers converted or reordered at a time, which then take 16 MiB of work space
_SYRK_FROM = 100  # rows from which a symmetric product is faster than a batch of general ones
# A float32 Gram is good enough where the smallest kept energy and the lost energy are more than these shares of the
# whole: tests/test_tucker.py holds it against float64. Below the third, squares of float32 numbers vanish.
_SMALLEST_KEPT, _SMALLEST_LOST, _UNDERFLOW = 2e-6, 3e-5, 1e-20
_FEW_OF = 160  # rows from which a few eigenvectors are computed without the others
_ITERATIONS = 4
_CONVERGED = 2e-4  # energy that the last iteration may have gained, of the energy that is lost
# The cost model's units: what else takes as long as one flop of a large matrix product, measured on one core.
_READ, _REORDER = 24.0, 120.0  # reading a number once; reordering it, too
_EIGH = 6000.0  # eigh of an n x n matrix takes _EIGH n^2: it is bound by its small steps
_NARROW = 16  # a product of fewer rows takes as long as one of so many


#: NumPy's warnings of what overflows or is not a number are off: the kernels look for that themselves.
unwarned = np.errstate(all="ignore")


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


def native(x: Array) -> Array:
    """``x`` as the kernels take it: without a gradient, in the byte order of this machine."""
    if is_torch_array(x):
        return x.detach()
    array = np.asarray(x)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def encoding_device(name: str) -> str:
    """Where samples are decomposed, for ``compute.device``.

    A CUDA device where that is asked for or ``"auto"`` finds one; else the CPU (for ``"mps"`` too: it has no float64).

    Raises
    ------
    MissingPackageError
        Where a CUDA device is asked for without torch. ``"auto"`` finds none then.

    >>> encoding_device("mps")
    'cpu'
    """
    kind = name.partition(":")[0]
    if kind == "cuda":
        require(f'compute.device = "{name}"', "train")
        return name
    if kind != "auto" or "torch" in missing("train"):
        return "cpu"
    import torch  # takes seconds

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(x: Array, name: str) -> Array:
    """A NumPy array where ``compute.device`` has it decomposed: as it is on the CPU, a torch tensor on a GPU."""
    where = encoding_device(name)
    if where == "cpu":
        return x
    import torch

    return torch.tensor(x, device=where)


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


@unwarned
def norm2(x: Array, n_modes: int) -> Array:
    """Squared norm over the last ``n_modes`` axes: ``(...)``, float64.

    float32 numbers are squared and summed in float32 by rows, whose sums are added in float64; a sample for which that
    overflows or vanishes goes by float64.
    """
    xp, batch = array_namespace(x), tuple(x.shape[: x.ndim - n_modes])
    flat = xp.reshape(x, (math.prod(batch), math.prod(x.shape[x.ndim - n_modes :])))
    sums = _sums_of_squares(flat)
    if flat.dtype != wide_dtype(flat):
        doubtful = xp.nonzero(~xp.isfinite(sums) | (sums < _UNDERFLOW))[0]
        for i in doubtful.tolist():  # one at a time: they take twice the memory
            sums[i] = _sums_of_squares(widen(flat[i : i + 1]))[0]
    return xp.reshape(sums, batch)


def _sums_of_squares(flat: Array) -> Array:
    xp, count = array_namespace(flat), flat.shape[1] // _ROW  # explicit below: there may be no sample at all
    rows, rest = xp.reshape(flat[:, : count * _ROW], (len(flat), count, _ROW)), flat[:, count * _ROW :]
    return xp.sum(widen(xp.vecdot(rows, rows)), axis=-1) + widen(xp.vecdot(rest, rest))


@unwarned
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
    xp, y, by = array_namespace(x), x, matrix
    if y.dtype != by.dtype:
        both = xp.result_type(y.dtype, by.dtype)
        y, by = xp.astype(y, both, copy=False), xp.astype(by, both, copy=False)
    shape = list(y.shape)
    axis = y.ndim - n_modes + mode
    left, right = math.prod(shape[y.ndim - n_modes : axis]), math.prod(shape[axis + 1 :])
    batch = shape[: y.ndim - n_modes]
    samples = math.prod(batch)
    if right == 1:  # the last mode: one product per sample instead of one per row
        y = xp.reshape(y, (*batch, left, shape[axis])) @ by.mT
    elif left > 1 and (right < _NARROW or (by.ndim > 2 and samples > 1)):
        # many small products, or a copy of the matrix for each: the mode goes first, which copies the tensor once
        first = xp.moveaxis(xp.reshape(y, (samples, left, shape[axis], right)), 1, 2)
        product = by @ xp.reshape(first, (*batch, shape[axis], left * right))
        y = xp.moveaxis(xp.reshape(product, (samples, by.shape[-2], left, right)), 1, 2)
    else:
        y = by[..., None, :, :] @ xp.reshape(y, (*batch, left, shape[axis], right))
    shape[axis] = by.shape[-2]
    return xp.reshape(y, tuple(shape))


def unfold(x: Array, mode: int) -> Array:
    """Unfolding of a batch ``(B, n_1, ..., n_N)`` along one mode: ``(B, n_mode, rest)``."""
    xp = array_namespace(x)
    return xp.reshape(xp.moveaxis(x, mode + 1, 1), (x.shape[0], x.shape[mode + 1], -1))


@unwarned
def gram(x: Array, mode: int, dtype: Any) -> Array:
    """Gram matrices of one mode's unfolding.

    Parameters
    ----------
    x
        ``(B, n_1, ..., n_N)``.
    dtype
        In which the products are taken and summed.

    Returns
    -------
    ``(B, n_mode, n_mode)``
    """
    xp, n, columns = array_namespace(x), x.shape[mode + 1], math.prod(x.shape[mode + 2 :])
    out = xp.empty((x.shape[0], n, n), dtype=dtype, device=device(x))
    step = max(1, _CHUNK // max(1, math.prod(x.shape[1:])))
    for i in range(0, x.shape[0], step):
        part = xp.astype(x[i : i + step], dtype, copy=False)
        # the last mode's unfolding is the transpose of what lies in memory: nothing is copied
        a = xp.reshape(part, (part.shape[0], -1, n)).mT if columns == 1 else unfold(part, mode)
        _symmetric(a, out[i : i + step])
    return out


def _symmetric(a: Array, out: Array) -> None:
    """``A A^T`` of each ``A (n, m)``; NumPy sees the symmetry and does half of the work."""
    array_namespace(a).matmul(a, a.mT, out=out)


def gram_floor(n: int) -> float:
    """Singular values below this share of the largest are noise in a float64 Gram matrix of size ``n``.

    >>> f"{gram_floor(64):.1e}"
    '1.2e-07'
    """
    return math.sqrt(n * float(np.finfo(np.float64).eps))


def leading(x: Array, mode: int, *, accurate: bool = False) -> tuple[Array, Array]:
    """All left singular vectors and energies of one mode's unfolding, in float64.

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
    y = native(x)
    if accurate or _is_tall(y, mode):
        return _by_svd(widen(unfold(y, mode)))
    return _by_eigh(gram(y, mode, wide_dtype(y)))


@unwarned
def truncated(x: Array, mode: int, rank: int) -> Truncation:
    """The first left singular vectors of one mode's unfolding, and the energy they keep.

    By the smaller of the two Gram matrices. Those of float32 data are float32 where that is accurate enough, and
    float64 for the other samples.

    Parameters
    ----------
    x
        ``(B, n_1, ..., n_N)``.
    rank
        At most ``min(n_mode, rest)``.

    Returns
    -------
    vectors
        ``(B, n_mode, rank)`` float64, orthonormal columns in descending order of energy.
    energies
        ``(B, rank)`` float64, their energies.
    discarded
        ``(B)`` float64, the energy of the others. A sample whose squares are not finite has no energy at all.
    """
    solve = _tall if _is_tall(x, mode) else _wide
    wide = wide_dtype(x)
    found = solve(x, mode, rank, x.dtype)
    if x.dtype == wide:
        return found
    columns = math.prod(x.shape[1:]) // x.shape[mode + 1]
    enough = _enough(*found, whole=rank == x.shape[mode + 1], columns=columns)
    doubtful = array_namespace(x).nonzero(~enough)[0]
    if len(doubtful):
        for kept, better in zip(found, solve(x[doubtful], mode, rank, wide), strict=True):
            kept[doubtful] = better
    return found


def _enough(_vectors: Array, energies: Array, discarded: Array, *, whole: bool, columns: int) -> Array:
    """Which samples' Gram matrices were accurate enough in float32, in which long sums are less accurate."""
    total = energies.sum(-1) + discarded
    unit = total * max(1.0, math.sqrt(columns / 2**15))
    enough = (energies[:, -1] > _SMALLEST_KEPT * unit) & (total > _UNDERFLOW)
    return enough if whole else enough & (discarded > _SMALLEST_LOST * unit)


def _is_tall(x: Array, mode: int) -> bool:
    return bool(x.shape[mode + 1] ** 2 > math.prod(x.shape[1:]))


def _wide(x: Array, mode: int, rank: int, dtype: Any) -> Truncation:
    return _top(_finite(gram(x, mode, dtype)), rank)


def _tall(x: Array, mode: int, rank: int, dtype: Any) -> Truncation:
    """By ``A^T A = V S V^T``: QR makes the orthogonal columns of ``A V`` orthonormal, whatever their lengths."""
    a = unfold(x, mode)
    right, energies, discarded = _top(_finite(gram(a.mT, 0, dtype)), rank)
    return array_namespace(x).linalg.qr(widen(a) @ right)[0], energies, discarded


def _finite(g: Array) -> Array:
    """Matrices of samples with NaN, infinite or too large values become zero: LAPACK would refuse the whole batch."""
    xp = array_namespace(g)
    bad = xp.nonzero(~xp.isfinite(xp.sum(g, axis=(-2, -1))))[0]
    if len(bad):
        g[bad] = 0.0
    return g


def _top(g: Array, rank: int) -> Truncation:
    """First eigenvectors of positive semidefinite matrices ``(B, n, n)``, their energies, and the sum of the others.

    A few of many come from subspace iteration; a sample on which it has not converged gets a full decomposition.
    """
    xp, width = array_namespace(g), _width(rank)
    if g.shape[-1] < _FEW_OF or 3 * width > g.shape[-1]:
        return _all(g, rank)
    q = like(_start(g.shape[-1], width), g)
    for _ in range(_ITERATIONS):
        q = xp.linalg.qr(g @ q)[0]
    _, _, before = _ritz(g, q, rank)
    vectors, energies, kept = _ritz(g, g @ q, rank)
    total = _trace(g)
    out = vectors, energies, xp.clip(total - kept, min=0.0)
    late = xp.nonzero(kept - before > _CONVERGED * out[2] + 8 * xp.finfo(g.dtype).eps * total)[0]
    if len(late):
        for part, exact in zip(out, _all(g[late], rank), strict=True):
            part[late] = exact
    return out


def _ritz(g: Array, q: Array, rank: int) -> Truncation:
    """Best vectors within the span of ``q``, their energies, and the sum of these."""
    xp = array_namespace(g)
    q = xp.linalg.qr(widen(q))[0]
    h = q.mT @ widen(g @ xp.astype(q, g.dtype, copy=False))
    turn, energies = _by_eigh((h + h.mT) / 2)
    return q @ turn[..., :rank], energies[:, :rank], energies[:, :rank].sum(-1)


def _width(rank: int) -> int:
    """Vectors that are iterated so that the first ``rank`` converge fast."""
    return rank + max(8, rank // 2)


def _all(g: Array, rank: int) -> Truncation:
    if g.dtype == wide_dtype(g):
        vectors, energies = _by_eigh(g)
        return vectors[..., :rank], energies[:, :rank], energies[:, rank:].sum(-1)
    # faster in float32, and then made as orthonormal as float64 is by a step of the Newton-Schulz iteration
    xp = array_namespace(g)
    v, wide = widen(xp.flip(xp.linalg.eigh(g)[1], axis=-1)[..., :rank]), widen(g)
    v = 1.5 * v - 0.5 * v @ (v.mT @ v)
    energies = xp.clip(xp.sum(v * (wide @ v), axis=-2), min=0.0)
    return v, energies, xp.clip(_trace(g) - energies.sum(-1), min=0.0)


def _trace(g: Array) -> Array:
    return widen(array_namespace(g).linalg.diagonal(g)).sum(-1)


@functools.lru_cache(maxsize=16)
def _start(n: int, width: int) -> np.ndarray[Any, Any]:
    """Gaussian vectors, always the same ones."""
    return np.random.default_rng(0).standard_normal((n, width))


def _by_eigh(g: Array) -> tuple[Array, Array]:
    """Eigenvectors and eigenvalues, descending, in float64."""
    xp = array_namespace(g)
    energies, vectors = (xp.flip(part, axis=-1) for part in xp.linalg.eigh(g))
    # NumPy flips by a view, with which products are slow
    return xp.asarray(vectors, copy=True), xp.clip(energies, min=0.0)


def _by_svd(a: Array) -> tuple[Array, Array]:
    xp = array_namespace(a)
    n, m = a.shape[-2:]
    if m > n:  # A = R^T Q^T: the small R has A's left singular vectors
        a = xp.linalg.qr(a.mT)[1].mT
    vectors, values, _ = xp.linalg.svd(a, full_matrices=False)
    none = xp.zeros((*values.shape[:-1], max(0, n - m)), dtype=values.dtype, device=device(values))
    return vectors, xp.concat([values**2, none], axis=-1)


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
    """Cost model of an ST-HOSVD of one sample: products, eigenproblems and passes over the data.

    In flops of a large matrix product, which take as long.

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
        if rank is not None:
            total += _truncation_cost(current, mode, rank)
            current[mode] = rank
    return total


def _truncation_cost(shape: Sequence[int], mode: int, rank: int) -> float:
    size = math.prod(shape)
    n = min(shape[mode], size // max(shape[mode], 1))  # of the smaller Gram matrix
    products = n * (1 if n >= _SYRK_FROM else 2) + 2 * max(rank, _NARROW)
    width = _width(rank)
    steps = _EIGH * n**2 if n < _FEW_OF or 3 * width > n else 4 * (_ITERATIONS + 2) * n**2 * width + _EIGH * width**2
    between = math.prod(shape[:mode]) > 1 and math.prod(shape[mode + 1 :]) > 1
    return size * (products + 2 * _READ + (_REORDER if between else 0)) + steps


def mode_order(shape: Sequence[int], ranks: Sequence[int | None]) -> tuple[int, ...]:
    """The cheapest order in which to truncate the decomposed modes, by ``flops``.

    >>> mode_order((200, 128, 128), (5, None, 20))
    (2, 0)
    """
    modes = [mode for mode, rank in enumerate(ranks) if rank is not None]
    if len(modes) > 6:  # the factorial of that is too many: strongest reduction first
        return tuple(sorted(modes, key=lambda mode: (ranks[mode] or 0) / shape[mode]))
    return min(itertools.permutations(modes), key=lambda order: flops(shape, ranks, order))


@functools.lru_cache(maxsize=256)
def product_order(shape: tuple[int, ...], sizes: tuple[int | None, ...]) -> tuple[int, ...]:
    """The cheapest order in which to multiply modes of these sizes by matrices of so many rows.

    >>> product_order((4, 12, 12), (50, None, 64))
    (2, 0)
    """
    modes = [mode for mode, size in enumerate(sizes) if size is not None]

    def cost(order: Sequence[int]) -> int:
        current, total = list(shape), 0
        for mode in order:
            total += math.prod(current) * (sizes[mode] or 1)
            current[mode] = sizes[mode] or 1
        return total

    if len(modes) > 6:
        return tuple(sorted(modes, key=lambda mode: (sizes[mode] or 1) / shape[mode]))
    return min(itertools.permutations(modes), key=cost)
