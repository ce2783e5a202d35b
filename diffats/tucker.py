"""Tucker decomposition of batches of tensors: ST-HOSVD by Gram matrices, and HOOI.

A sample ``X (n_1, ..., n_N)`` becomes a core ``C (r_1, ..., r_N)`` and factors ``U_k (n_k, r_k)`` with orthonormal
columns, ``X ~ C x_1 U_1 .. x_N U_N``. The last ``N`` axes of an array are the modes, all leading axes are batch.

References
----------
N. Vannieuwenhoven, R. Vandebril, K. Meerbergen, "A new truncation strategy for the higher-order singular value
decomposition", SIAM J. Sci. Comput. 34 (2012).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from diffats.errors import InputError, NonFiniteError, RankError
from diffats.spectrum import (
    Array,
    Truncation,
    as_numpy,
    float_dtype,
    gram_floor,
    leading,
    like,
    mode_dot,
    mode_order,
    native,
    norm2,
    numerical_rank,
    product_order,
    ranks_needed,
    rounding_unit,
    transpose,
    truncated,
    unfold,
    unwarned,
    wide_dtype,
    widen,
)

Ranks = Sequence[int | None]
#: Vectors, their energies and the energy of the others of one mode; called with the energy that is lost already.
Truncate = Callable[[Array, int, Array], Truncation]


@dataclass(frozen=True, eq=False)
class TuckerTensor:
    """Cores and factors of a batch of tensors.

    Attributes
    ----------
    core
        ``(..., r_1, ..., r_N)``; ``r_k = n_k`` where mode ``k`` is not decomposed.
    factors
        By mode: ``(..., n_k, r_k)`` with orthonormal columns, or None where not decomposed.
    spectra
        By mode: ``(..., r_k)`` float64 energies (squared singular values, descending) of the columns kept when the mode
        was truncated, or None.
    norm2
        ``(...)`` float64, the squared norms of the tensors.
    order
        The modes in the order they were truncated.
    discarded
        ``(..., N)`` float64, the energy that each mode's truncation discarded; 0 where not decomposed.
    floor
        Singular values below this share of the largest are rounding noise, not signal.
    residual2
        ``(...)`` squared errors, where they were measured instead of following from the discarded energies.
    """

    core: Array
    factors: tuple[Array | None, ...]
    spectra: tuple[Array | None, ...] = ()
    norm2: Array = None
    order: tuple[int, ...] = ()
    discarded: Array = None
    floor: float = 0.0
    residual2: Array = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """Size of the core by mode."""
        return tuple(self.core.shape[self.core.ndim - len(self.factors) :])

    @property
    def numerical_ranks(self) -> Array:
        """Columns of each mode that carry signal: ``(..., N)`` integers. Kept columns past it are gauge noise."""
        xp = array_namespace(self.core)
        sizes = [
            xp.full(self.norm2.shape, rank, dtype=xp.int64, device=device(self.core))
            if energies is None
            else numerical_rank(energies, self.floor)
            for energies, rank in zip(self.spectra, self.ranks, strict=True)
        ]
        return xp.stack(sizes, axis=-1)

    def error(self) -> Array:
        """Relative error ``|X - X^| / |X|`` in float64, without decoding: ``(...)``; exact for ST-HOSVD."""
        xp = array_namespace(self.core)
        residual2 = xp.sum(self.discarded, axis=-1) if self.residual2 is None else self.residual2
        return ratio(residual2, self.norm2)

    def to_tensor(self) -> Array:
        """The tensors ``C x_1 U_1 .. x_N U_N``: ``(..., n_1, ..., n_N)``."""
        return multi_mode_dot(self.core, self.factors)

    def relative_error(self, x: Array) -> Array:
        """Measured relative error ``|X - X^| / |X|`` in float64: ``(...)``; 0 where both are zero."""
        n_modes = len(self.factors)
        return ratio(norm2(widen(x) - widen(self.to_tensor()), n_modes), norm2(widen(x), n_modes))

    def rotate(self, rotations: Sequence[Array | None]) -> TuckerTensor:
        """The same tensors in another gauge: ``U_k Q_k`` and ``C x_k Q_k^T``.

        Parameters
        ----------
        rotations
            By mode: orthogonal ``(..., r_k, r_k)``, or None to leave the mode as it is.

        Raises
        ------
        InputError
            Where the number of rotations differs from the number of modes, or one is given for a mode without factor.
        """
        if len(rotations) != len(self.factors):
            raise InputError(f"got {len(rotations)} rotations for {len(self.factors)} modes. Give one a mode, or None.")
        factors = list(self.factors)
        for mode, Q in enumerate(rotations):
            if Q is None:
                continue
            if factors[mode] is None:
                raise InputError(f"mode {mode} is not decomposed and cannot be rotated. Give None for it.")
            factors[mode] = factors[mode] @ Q
        core = multi_mode_dot(self.core, [None if Q is None else transpose(Q) for Q in rotations])
        return dataclasses.replace(self, core=core, factors=tuple(factors))


def multi_mode_dot(x: Array, matrices: Sequence[Array | None]) -> Array:
    """Multiply every mode of ``x (..., n_1, ..., n_N)`` by its matrix ``(..., m_k, n_k)``; None: leave the mode."""
    n_modes = len(matrices)
    shape = tuple(x.shape[x.ndim - n_modes :])
    for mode in product_order(shape, tuple(None if matrix is None else matrix.shape[-2] for matrix in matrices)):
        x = mode_dot(x, matrices[mode], mode, n_modes)
    return x


def sthosvd(
    x: Array, ranks: Ranks | None = None, tolerance: float | None = None, *, modes: int | Sequence[int] | None = None
) -> TuckerTensor:
    """Sequentially truncated higher-order SVD of a batch of tensors.

    Parameters
    ----------
    x
        ``(..., n_1, ..., n_N)``; all values finite.
    ranks
        One per mode; None: the mode is not decomposed.
    tolerance
        Instead of ranks: the relative error that no sample may exceed. One set of ranks serves the whole batch.
        float32 data cannot be stored more accurately than about 1e-7.
    modes
        With a tolerance: how many of the last axes are modes; or which axes are decomposed, as negative axis numbers
        (axes ahead of the first are batch, those between are modes that are not decomposed). Where left out, every
        axis is a decomposed mode and there is no batch.

    Raises
    ------
    RankError
        A rank above its size or above the product of the others, or a tolerance outside (0, 1).
    InputError
        NaN or infinite values; neither or both of ranks and tolerance.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(7, 8, 9, 10))
    >>> sthosvd(x, ranks=(3, None, 5)).core.shape
    (7, 3, 9, 5)
    >>> sthosvd(x, tolerance=0.5, modes=3).error().max() <= 0.5
    np.True_
    """
    if (ranks is None) == (tolerance is None):
        raise InputError("give either ranks or a tolerance.")
    if ranks is None:
        assert tolerance is not None
        decomposed = _modes_of(x, modes)
        return _to_tolerance(x, _checked_tolerance(tolerance), decomposed)
    _check_ndim(x, len(ranks))
    shape = x.shape[x.ndim - len(ranks) :]
    check_ranks(_named(ranks), _named(shape))
    wanted = tuple(ranks)
    order = mode_order(shape, wanted)
    return _truncate(
        x, order, len(wanted), lambda y, mode, _lost: truncated(y, mode, wanted[mode] or 1), accurate=False
    )


def hooi(x: Array, ranks: Ranks, *, n_iter_max: int = 50, tol: float = 1e-6) -> TuckerTensor:
    """Higher-order orthogonal iteration: tensorly's, per sample, started from the ST-HOSVD.

    A sample whose error does not fall keeps its ST-HOSVD.

    Parameters
    ----------
    x
        ``(..., n_1, ..., n_N)``; all values finite.
    ranks
        One per mode; None: the mode is not decomposed.
    n_iter_max, tol
        Iterations at most, and the change of the relative error at which they stop.

    Raises
    ------
    RankError, InputError
        As ``sthosvd``.

    >>> x = np.random.default_rng(0).normal(size=(2, 6, 7, 8))
    >>> bool((hooi(x, (2, 3, 4)).error() <= sthosvd(x, (2, 3, 4)).error()).all())
    True
    """
    start = sthosvd(x, ranks)
    n_modes = len(ranks)
    modes = [mode for mode in range(n_modes) if ranks[mode] is not None]
    samples = as_numpy(x).reshape(-1, *x.shape[x.ndim - n_modes :])
    parts = [as_numpy(part) for part in (start.core, *(start.factors[mode] for mode in modes))]
    parts = [part.reshape(len(samples), *part.shape[x.ndim - n_modes :]).copy() for part in parts]
    residual2 = np.empty(len(samples))
    for i, sample in enumerate(samples):
        best, residual2[i] = _refine(sample, [part[i] for part in parts], modes, n_iter_max, tol)
        for part, value in zip(parts, best, strict=True):
            part[i] = value
    batch = x.shape[: x.ndim - n_modes]
    core, *refined = (like(part.reshape(*batch, *part.shape[1:]), start.core) for part in parts)
    factors = dict(zip(modes, refined, strict=True))
    return dataclasses.replace(
        start,
        core=core,
        factors=tuple(factors.get(mode) for mode in range(n_modes)),
        residual2=like(residual2.reshape(batch), start.norm2),
    )


def _refine(
    sample: np.ndarray[Any, Any], start: list[np.ndarray[Any, Any]], modes: list[int], n_iter_max: int, tol: float
) -> tuple[list[np.ndarray[Any, Any]], float]:
    """The better of the start ``[core, *factors]`` and HOOI from it, and its squared error."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    x = sample.astype(np.float64)  # tensorly's stopping rule cancels in float32
    before = _residual2(x, start, modes)
    if not modes or before == 0:
        return start, before
    core, *factors = (part.astype(np.float64) for part in start)
    ranks = [factor.shape[1] for factor in factors]
    with tensorly.backend_context("numpy", local_threadsafe=True):  # whatever else the process uses it with
        (core, factors), _ = partial_tucker(x, ranks, modes=modes, init=(core, factors), n_iter_max=n_iter_max, tol=tol)
    # rounded to the stored dtype before it is judged: the promise is about what the caller gets
    refined = [part.astype(start[0].dtype) for part in (core, *factors)]
    after = _residual2(x, refined, modes)
    return (refined, after) if after < before else (start, before)


def _residual2(x: np.ndarray[Any, Any], parts: list[np.ndarray[Any, Any]], modes: list[int]) -> float:
    matrices: list[Array | None] = [None] * x.ndim
    for mode, factor in zip(modes, parts[1:], strict=True):
        matrices[mode] = factor.astype(np.float64)
    return float(np.sum((x - multi_mode_dot(parts[0].astype(np.float64), matrices)) ** 2))


def check_ranks(
    ranks: Mapping[str, int | None], sizes: Mapping[str, int], fix: str = "set decompose.tolerance"
) -> None:
    """Refuse ranks that no decomposition can have.

    A rank above its size, or above the product of the other ranks (of the sizes, where a mode is not decomposed):
    the extra columns would be arbitrary.

    Parameters
    ----------
    ranks
        By mode; a mode left out or None is not decomposed.
    sizes
        By mode, all modes of a sample.
    fix
        What else the user can do, for the message.

    Raises
    ------
    RankError

    >>> check_ranks({"x": 40}, {"time": 50, "x": 32})
    Traceback (most recent call last):
    ...
    diffats.errors.RankError: rank 40 for mode "x" exceeds its size 32 (sample: time=50, x=32). Use at most 32, or \
set decompose.tolerance.
    """
    sample = ", ".join(f"{mode}={size}" for mode, size in sizes.items())
    given = {mode: rank for mode, rank in ranks.items() if rank is not None}
    for mode, rank in given.items():
        if mode not in sizes:
            raise RankError(f'rank {rank} for mode "{mode}", which the sample does not have ({sample}).')
        if rank < 1:
            raise RankError(f'rank {rank} for mode "{mode}" is not positive (sample: {sample}). Use at least 1.')
        if rank > sizes[mode]:
            raise RankError(
                f'rank {rank} for mode "{mode}" exceeds its size {sizes[mode]} (sample: {sample}). '
                f"Use at most {sizes[mode]}, or {fix}."
            )
    kept = {**sizes, **given}
    for mode, rank in given.items():
        product = math.prod(kept.values()) // rank
        if rank > product:
            raise RankError(
                f'rank {rank} for mode "{mode}" exceeds the product {product} of the other ranks (sample: {sample}; '
                f"a mode without rank counts with its size). Use at most {product}, or {fix}."
            )


def _to_tolerance(x: Array, tolerance: float, decomposed: Sequence[bool]) -> TuckerTensor:
    """ST-HOSVD with the ranks that the most demanding sample needs."""
    n_modes = len(decomposed)
    shape = x.shape[x.ndim - n_modes :]
    rounding = (4 * rounding_unit(x)) ** 2  # what storing the core and factors adds to the squared error
    share = max(tolerance**2 - rounding, tolerance**2 / 2) / max(1, sum(decomposed))

    accurate = tolerance < 10 * gram_floor(max(shape, default=1))

    def truncate(y: Array, mode: int, lost: Array) -> Truncation:
        vectors, energies = leading(y, mode, accurate=accurate)
        rank = int(as_numpy(ranks_needed(energies, share * (energies.sum(-1) + lost))).max(initial=1))
        return vectors[..., :rank], energies[:, :rank], energies[:, rank:].sum(-1)

    _check_finite(_flattened(x, n_modes)[0])
    guess = [max(1, size // 4) if wanted else None for size, wanted in zip(shape, decomposed, strict=True)]
    return _cut(_truncate(x, mode_order(shape, guess), n_modes, truncate, accurate=accurate))


@unwarned
def _truncate(x: Array, order: tuple[int, ...], n_modes: int, truncate: Truncate, *, accurate: bool) -> TuckerTensor:
    """Truncate mode after mode of ``x``."""
    y, batch = _flattened(x, n_modes)
    xp, dtype = array_namespace(y), y.dtype
    if accurate:  # rounding between the modes would cost what an SVD has gained
        y = widen(y)
    factors: list[Array | None] = [None] * n_modes
    spectra: list[Array | None] = [None] * n_modes
    discarded = xp.zeros((len(y), n_modes), dtype=wide_dtype(y), device=device(y))
    total = None
    for mode in order:
        vectors, energies, discarded[:, mode] = truncate(y, mode, discarded.sum(-1))
        if total is None:
            total = energies.sum(-1) + discarded[:, mode]
            if not xp.all(total != 0):  # zeros, or what cannot be squared
                _check_finite(y)
        factor = xp.astype(vectors, y.dtype, copy=False)
        y = mode_dot(y, factor.mT, mode, n_modes)
        factors[mode], spectra[mode] = xp.astype(factor, dtype, copy=False), energies
    if total is None:
        _check_finite(y)
        total = norm2(y, n_modes)

    def restored(part: Array) -> Array:
        return xp.reshape(part, (*batch, *part.shape[1:]))

    return TuckerTensor(
        core=restored(xp.astype(y, dtype, copy=False)),
        factors=tuple(None if factor is None else restored(factor) for factor in factors),
        spectra=tuple(None if energies is None else restored(energies) for energies in spectra),
        norm2=restored(total),
        order=order,
        discarded=restored(discarded),
        floor=_noise_floor(x.shape[x.ndim - n_modes :], rounding_unit(x), accurate),
    )


def _flattened(x: Array, n_modes: int) -> tuple[Array, tuple[int, ...]]:
    """The array as floating tensors ``(B, n_1, ..., n_N)``, and its batch axes."""
    y = native(x)
    xp = array_namespace(y)
    if xp.isdtype(y.dtype, "complex floating"):
        raise InputError("complex values cannot be decomposed. Give real and imaginary part as two variables.")
    if 0 in y.shape:
        raise InputError(f"nothing to decompose: array of shape {tuple(y.shape)}.")
    batch = tuple(y.shape[: y.ndim - n_modes])
    flat = xp.reshape(y, (math.prod(batch), *y.shape[y.ndim - n_modes :]))
    return xp.astype(flat, float_dtype(y), copy=False), batch


def _cut(t: TuckerTensor) -> TuckerTensor:
    """Cut ranks to the product of the others through the core's SVD, which loses nothing."""
    n_modes = len(t.factors)
    for mode, factor in enumerate(t.factors):
        product = math.prod(t.ranks) // t.ranks[mode]
        if factor is not None and t.ranks[mode] > product:
            xp = array_namespace(t.core)
            flat = xp.reshape(t.core, (-1, *t.ranks))
            vectors, _, _ = xp.linalg.svd(widen(unfold(flat, mode)), full_matrices=False)
            shape = (*t.core.shape[: t.core.ndim - n_modes], *vectors.shape[1:])
            turn = xp.reshape(xp.astype(vectors, flat.dtype, copy=False), shape)  # (..., r, product)
            core = mode_dot(t.core, transpose(turn), mode, n_modes)
            factors = (*t.factors[:mode], factor @ turn, *t.factors[mode + 1 :])
            return _cut(dataclasses.replace(t, core=core, factors=factors))
    return t


def _noise_floor(shape: Sequence[int], unit: float, accurate: bool) -> float:
    largest = max(shape, default=1)
    stored = largest * unit
    return stored if accurate else max(stored, gram_floor(largest))


def _modes_of(x: Array, modes: int | Sequence[int] | None) -> list[bool]:
    """For each mode, whether it is decomposed."""
    if modes is None:
        modes = x.ndim
    if isinstance(modes, int):
        _check_ndim(x, modes)
        return [True] * modes
    axes = {axis - x.ndim if axis >= 0 else axis for axis in modes}
    if not axes or len(axes) < len(modes) or min(axes) < -x.ndim or max(axes) >= 0:
        raise InputError(f"modes {tuple(modes)} are not distinct axes of an array with {x.ndim} axes.")
    return [axis in axes for axis in range(min(axes), 0)]


def _checked_tolerance(tolerance: float) -> float:
    if not 0 < tolerance < 1:
        raise RankError(f"tolerance {tolerance} is outside (0, 1). It is a relative error, such as 0.02.")
    return tolerance


def _check_ndim(x: Array, n_modes: int) -> None:
    if n_modes < 1 or x.ndim < n_modes:
        raise InputError(f"{n_modes} modes asked of an array with {x.ndim} axes, shape {tuple(x.shape)}.")


def _check_finite(x: Array) -> None:
    """Refuse what no decomposition can take; ``x`` is ``(B, ...)``."""
    xp = array_namespace(x)
    flat = xp.reshape(x, (len(x), -1))
    peak = xp.maximum(xp.max(flat, axis=1), -xp.min(flat, axis=1))  # carries every NaN and Inf
    bad = as_numpy(~xp.isfinite(peak))
    if bad.any():
        raise NonFiniteError(
            f"sample {int(bad.argmax())} of {bad.size} holds NaN or infinite values ({int(bad.sum())} such samples). "
            'Remove or fill them before the decomposition (data.missing = "mask").'
        )
    if float(peak.max()) > 1e150:
        raise NonFiniteError('values above 1e150 overflow when squared. Scale the data (data.scale = "variable").')


def ratio(residual2: Array, total2: Array) -> Array:
    """Relative error ``sqrt(residual2 / total2)``: 0 where both are zero, infinite where only the total is."""
    xp = array_namespace(residual2)
    zero = total2 == 0
    ratio = xp.sqrt(residual2 / xp.where(zero, xp.ones_like(total2), total2))
    return xp.where(zero & (residual2 > 0), xp.full_like(ratio, xp.inf), ratio)


def _named(values: Sequence[Any]) -> dict[str, Any]:
    return {str(mode): value for mode, value in enumerate(values)}
