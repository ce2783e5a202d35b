"""Medoid anchors: the sample whose factor is closest to all others in the projection metric.

With ``d(U, V)^2 = r - |U^T V|_F^2`` the medoid is ``argmax_i tr(U_i^T P U_i)``, ``P = sum_j U_j U_j^T``: two passes,
independent of the gauge of each factor, and ``P`` is a sum that is taken shard by shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from diffats.errors import InputError
from diffats.spectrum import Array, as_numpy, like, rounding_unit, transpose, widen

LARGEST_MODE = 4096  # P of a mode this long takes 128 MiB


def projection_sum(U: Array) -> Array:
    """``sum_j U_j U_j^T`` in float64: ``(samples, ..., n, r)`` to ``(..., n, n)``."""
    xp = array_namespace(U)
    columns = xp.reshape(xp.moveaxis(widen(U), 0, -2), (*U.shape[1:-1], U.shape[0] * U.shape[-1]))
    return columns @ transpose(columns)


def projection_scores(U: Array, P: Array) -> Array:
    """``tr(U_i^T P U_i)`` in float64: ``(samples, ..., n, r)`` and ``(..., n, n)`` to ``(samples, ...)``."""
    xp = array_namespace(U)
    wide = widen(U)
    return xp.sum((P @ wide) * wide, axis=(-2, -1))


def first_best(scores: Array, unit: float = float(np.finfo(np.float32).eps)) -> int:
    """Index of the highest score, the lowest index on ties; a score of NaN is no candidate.

    Two scores tie where they differ by less than rounding, ``unit`` being that of the stored factors (float32 where
    left out): equal subspaces in another gauge give scores that are equal in mathematics only.

    >>> first_best(np.array([1.0, 3.0, 3.0 - 1e-15]))
    1
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not np.isfinite(values).any():
        raise InputError(
            f"scores of shape {values.shape} have no best. Give one score per sample, at least one finite."
        )
    best = float(np.nanmax(values))
    return int(np.argmax(values >= best - max(8 * unit, 1e-13) * abs(best)))


def medoid(U: Array) -> int:
    """Index of the sample with the smallest sum of squared projection distances to all others.

    Parameters
    ----------
    U
        ``(samples, n, r)`` with orthonormal columns.

    Returns
    -------
    The index, the lowest on ties.

    Raises
    ------
    InputError
        Where there is no sample, or ``U`` has other than 3 axes.

    >>> x_axis, y_axis = np.eye(2)[:, :1], np.eye(2)[:, 1:]
    >>> medoid(np.stack([y_axis, x_axis, -x_axis]))
    1
    """
    if U.ndim != 3 or U.shape[0] == 0:
        raise InputError(f"factors of shape {tuple(U.shape)} have no medoid. Give (samples, n, r) with samples >= 1.")
    scores = projection_scores(U, projection_sum(U))
    return first_best(as_numpy(scores), rounding_unit(U))


def mean_anchor(P: Array, r: int) -> Array:
    """The subspace closest to all in the mean: the top ``r`` eigenvectors of ``P (..., n, n)``, ``(..., n, r)``.

    >>> mean_anchor(np.diag([1.0, 5.0, 3.0]), 2).round(6).tolist() == [[0, 0], [1, 0], [0, 1]]
    True
    """
    xp = array_namespace(P)
    _, vectors = xp.linalg.eigh(P)
    return xp.flip(vectors, axis=-1)[..., :r]


class MedoidAccumulator:
    """The sum ``P`` of projections over shards, and the scores that choose the medoid.

    Parameters
    ----------
    n
        Size of the mode.
    batch
        Shape of labelled axes, each of which gets its own anchor (the channels of a patch primitive).

    Raises
    ------
    InputError
        Where the mode is too long for ``P`` to be held.

    >>> first, second = MedoidAccumulator(2), MedoidAccumulator(2)
    >>> U = np.stack([np.eye(2)[:, 1:], np.eye(2)[:, :1], -np.eye(2)[:, :1]])
    >>> first.add(U[:1]); second.add(U[1:]); first.merge(second)
    >>> first.scores(U).tolist(), first.count
    ([1.0, 2.0, 2.0], 3)
    """

    def __init__(self, n: int, batch: tuple[int, ...] = ()) -> None:
        if n > LARGEST_MODE:
            raise InputError(
                f"a mode of size {n} is too long for a medoid or mean anchor (at most {LARGEST_MODE}). "
                "Do not align this mode (align.modes), or coarsen it."
            )
        self.P: np.ndarray[Any, np.dtype[np.float64]] = np.zeros((*batch, n, n))
        self.count = 0

    def add(self, U: Array) -> None:
        """Add factors ``(samples, *batch, n, r)``."""
        expected = self.P.shape[:-1]
        if tuple(U.shape[1:-1]) != expected:
            raise InputError(
                f"factors of shape {tuple(U.shape)} do not fit (samples, {', '.join(map(str, expected))}, r)."
            )
        self.P += as_numpy(projection_sum(U))
        self.count += U.shape[0]

    def merge(self, other: MedoidAccumulator) -> None:
        """Add what another accumulator has seen; the order does not matter."""
        if other.P.shape != self.P.shape:
            raise InputError(f"sums of shapes {self.P.shape} and {other.P.shape} cannot be merged.")
        self.P += other.P
        self.count += other.count

    def scores(self, U: Array) -> Array:
        """``tr(U_i^T P U_i)`` of factors ``(samples, *batch, n, r)``: ``(samples, *batch)`` float64."""
        return projection_scores(U, like(self.P, widen(U[:0])))

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The state as arrays."""
        return {"P": self.P, "count": np.asarray(self.count)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> MedoidAccumulator:
        """The accumulator that ``to_arrays`` described."""
        P = np.array(arrays["P"], dtype=np.float64)
        made = cls(P.shape[-1], P.shape[:-2])
        made.P, made.count = P, int(arrays["count"])
        return made
