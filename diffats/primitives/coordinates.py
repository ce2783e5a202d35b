"""Coordinates of a stream in which its numbers vary by themselves, each with a deviation of its own.

Noise of one size for all numbers drowns the fine parts of a field from the first level to the last, since they vary
10^4 times less than the smooth ones. Turned along its points onto principal axes, a number's deviation is known, and
dividing by a power of it brings noise and data to one shape ("A Fourier Space Perspective on Diffusion Models", arXiv
2505.11278, for images).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from diffats.primitives.layout import PATCH, Stream
from diffats.primitives.moments import Moments
from diffats.spectrum import Array, as_numpy, like, mode_dot, unfold

NumpyArray = np.ndarray[Any, Any]

LEADING = 1024  # principal axes along a longer mode; what is left there has one deviation
SKETCH = LEADING + 16  # columns of the sketch from which they are found


def turned_axes(stream: Stream) -> tuple[int, ...]:
    """The axes of a stream that are turned: a factor's points, and each axis of points that the core keeps.

    A stream without any has no coordinates. The patches of a matrix primitive are no axis of points: turned along them
    reaction_diffusion_1d lost a third (docs/choices.md).

    >>> turned_axes(Stream("core", ("component", "y", "rank_x"), (2, 16, 4)))
    (1,)
    >>> turned_axes(Stream("factor_x", ("x", "rank_x"), (16, 4), "x"))
    (0,)
    """
    if stream.mode is not None:
        return (len(stream.dims) - 2,)
    if PATCH in stream.dims:
        return ()
    kept = [axis for axis, dim in enumerate(stream.dims) if not dim.startswith("rank_") and dim != "component"]
    return tuple(axis for axis in kept if stream.shape[axis] > 1)


def basis_shapes(stream: Stream) -> dict[int, tuple[int, int]]:
    """Shape of the basis along each axis of a stream that is turned."""
    lengths = {axis: stream.shape[axis] for axis in turned_axes(stream)}
    return {axis: (n, min(n, LEADING)) for axis, n in lengths.items()}


class Products:
    """Moments of a stream, and along some of its axes the products of deviations, summed over samples and the rest.

    Along an axis of ``n <= 1024`` points the products are ``(n, n)``. Along a longer one they are kept as a sketch
    ``(n, 1040)``: their product with a fixed random matrix. Parts merge in any order.

    References
    ----------
    J. Tropp, A. Yurtsever, M. Udell, V. Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data" (2017).
    """

    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes
        self.moments = Moments()
        self.sums: dict[int, NumpyArray] = {}

    def add(self, x: Any) -> None:
        """Add samples ``(k, *shape)``."""
        x = as_numpy(x)
        if len(x) == 0:
            return
        part = Products(self.axes)
        part.moments.add(x)
        if self.axes:
            deviations = x.astype(np.float64) - part.moments.mean
            part.sums = {axis: _products(deviations, axis) for axis in self.axes}
        self.merge(part)

    def merge(self, other: Products) -> None:
        """Add what others have seen; the order does not matter."""
        mine, theirs = self.moments, other.moments
        if theirs.count == 0:
            return
        if mine.count == 0:
            self.sums = {axis: sums.copy() for axis, sums in other.sums.items()}
        else:
            between = np.sqrt(mine.count * theirs.count / (mine.count + theirs.count)) * (theirs.mean - mine.mean)
            for axis, sums in other.sums.items():
                self.sums[axis] += sums + _products(between[None], axis)
        mine.merge(theirs)

    def basis(self, axis: int) -> NumpyArray:
        """Principal axes ``(n, q)`` with orthonormal columns, those of the largest deviations first."""
        sums = self.sums[axis]
        n = len(sums)
        if n <= LEADING:
            return _signed(np.linalg.eigh((sums + sums.T) / 2)[1][:, ::-1])
        inner = _test_matrix(n, sums.shape[1]).T @ sums
        values, vectors = np.linalg.eigh((inner + inner.T) / 2)
        seen = values > n * np.finfo(np.float64).eps * values[-1]  # what is below is rounding
        root = np.where(seen, vectors, 0.0) / np.sqrt(np.where(seen, values, 1.0))
        return _signed(np.linalg.svd(sums @ root, full_matrices=False)[0][:, :LEADING])


def _products(deviations: NumpyArray, axis: int) -> NumpyArray:
    """Of deviations ``(k, *shape)``: ``(n, n)``, or the sketch of it."""
    rows = unfold(deviations, axis)  # (k, n, rest)
    rows = np.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1)
    n = len(rows)
    return np.asarray(rows @ (rows.T if n <= LEADING else rows.T @ _test_matrix(n, min(n, SKETCH))))


@lru_cache(maxsize=4)
def _test_matrix(n: int, columns: int) -> NumpyArray:
    return np.random.default_rng(n).standard_normal((n, columns))


def _signed(vectors: NumpyArray) -> NumpyArray:
    """Columns whose largest entry is positive, so that they do not depend on the library that found them."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return np.ascontiguousarray(vectors * np.where(largest < 0, -1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Turn:
    """An orthogonal matrix ``(n, n)`` whose first columns are a basis ``(n, q)``.

    Attributes
    ----------
    matrices
        The matrix itself where ``q = n``; else ``V`` and ``V T`` of ``I - V T V^T``, the product of ``q`` Householder
        reflections, with which it is applied in ``4 n q`` operations to a column. The first columns then have the
        basis' directions and signs of their own.

    References
    ----------
    R. Schreiber, C. Van Loan, "A storage-efficient WY representation for products of Householder transformations"
    (1989).
    """

    matrices: tuple[Array, ...]

    @classmethod
    def from_basis(cls, basis: NumpyArray) -> Turn:
        """From orthonormal columns ``(n, q)``."""
        n, q = basis.shape
        if q == n:
            return cls((basis,))
        from scipy.linalg import qr  # of long modes alone

        (packed, tau), _ = qr(basis, mode="raw")
        V = np.tril(packed, -1)[:, :q] + np.eye(n, q)
        T = np.linalg.solve(np.eye(q) + tau[:, None] * np.triu(V.T @ V, 1), np.diag(tau))
        return cls((V, V @ T))

    def forward(self, x: Array, axis: int, n_modes: int) -> Array:
        """Numbers on the principal axes, of numbers at points along ``axis`` of the last ``n_modes``."""
        if len(self.matrices) == 1:
            return mode_dot(x, self.matrices[0].mT, axis, n_modes)
        V, VT = self.matrices
        return x - mode_dot(mode_dot(x, VT.mT, axis, n_modes), V, axis, n_modes)

    def back(self, x: Array, axis: int, n_modes: int) -> Array:
        """The inverse of ``forward``."""
        if len(self.matrices) == 1:
            return mode_dot(x, self.matrices[0], axis, n_modes)
        V, VT = self.matrices
        return x - mode_dot(mode_dot(x, V.mT, axis, n_modes), VT, axis, n_modes)

    def like(self, x: Array) -> Turn:
        """The same in the namespace, dtype and device of ``x``."""
        return Turn(tuple(like(matrix, x) for matrix in self.matrices))


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The map of one centred and scaled stream to numbers with deviations of their own: ``z = (B^T y) / d^beta``.

    Attributes
    ----------
    bases
        Principal axes ``(n, q)`` by axis of the stream.
    deviation
        ``d``, of the stream's shape: root mean square of the turned numbers, relative to that of the whole stream;
        nowhere below ``floor`` times the largest.
    beta
        0: numbers keep their deviations; 1: all have deviation one.
    """

    bases: Mapping[int, NumpyArray]
    deviation: NumpyArray
    beta: float

    @classmethod
    def fit(cls, bases: Mapping[int, NumpyArray], variance: NumpyArray, *, beta: float, floor: float) -> Coordinates:
        """From the variance of the turned numbers, of the stream's shape; ``floor`` is a share of the largest."""
        spread = np.sqrt(variance)
        for axis, basis in bases.items():
            spread = _one_for_the_rest(spread, axis, basis.shape[1])
        largest = spread.max(initial=0.0)
        return cls(dict(bases), np.maximum(spread, floor * largest) if largest > 0 else np.ones_like(spread), beta)

    @classmethod
    def random(cls, stream: Stream, beta: float, rng: np.random.Generator) -> Coordinates:
        """On random axes, as a stand-in where only shapes matter."""
        bases = {axis: np.linalg.qr(rng.normal(size=shape))[0] for axis, shape in basis_shapes(stream).items()}
        return cls(bases, rng.uniform(0.5, 1.0, size=stream.shape), beta)

    @cached_property
    def turns(self) -> dict[int, Turn]:
        """By axis."""
        return {axis: Turn.from_basis(basis) for axis, basis in self.bases.items()}

    @cached_property
    def divisor(self) -> NumpyArray:
        """``d^beta``, of the stream's shape."""
        return np.asarray(self.deviation**self.beta)

    def turn(self, y: Array) -> Array:
        """A stream ``(k, *shape)`` on its principal axes."""
        for axis, turn in self.turns.items():
            y = turn.like(y).forward(y, axis, self.deviation.ndim)
        return y

    def apply(self, y: Array) -> Array:
        """A centred and scaled stream ``(k, *shape)`` in these coordinates."""
        return self.turn(y) / like(self.divisor, y)

    def undo(self, z: Array) -> Array:
        """The inverse of ``apply``."""
        y = z * like(self.divisor, z)
        for axis, turn in self.turns.items():
            y = turn.like(y).back(y, axis, self.deviation.ndim)
        return y


def _one_for_the_rest(spread: NumpyArray, axis: int, leading: int) -> NumpyArray:
    """Deviations, those beyond the leading principal axes replaced by their root mean square along the axis."""
    rest = np.moveaxis(spread, axis, 0)[leading:]
    if len(rest) == 0:
        return spread
    out = np.moveaxis(spread.copy(), axis, 0)
    out[leading:] = np.sqrt(np.mean(rest**2, axis=0))
    return np.moveaxis(out, 0, axis)
