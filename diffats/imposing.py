"""The given slice in the place of the generated one; the other slices corrected by what it tells of their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Imposing:
    """How a given slice is imposed on generated samples.

    The slice itself becomes the given one. What it was off by is also added to each other slice, times a share from 0
    to 1 that belongs to its place: the least-squares regression of a slice's error on that of the given slice, over
    training samples that were generated again. This is optimal interpolation with one coefficient a slice and variable.

    Attributes
    ----------
    axis, index
        The axis of samples ``(k, *sizes)`` along which the slice is one, and its place there, not negative.
    shares
        ``(variables, slices)``, or ``(1, slices)`` without a mode of variables; 1 at the given slice.
    off
        By how much of the given slice generated ones were off before, on the same training samples; None if unknown.

    >>> known = Imposing(axis=1, index=0, shares=np.array([[1.0, 0.5, 0.0]]))
    >>> known.impose(np.zeros((1, 3, 2)), np.array([[4.0, 2.0]])).tolist()
    [[[4.0, 2.0], [2.0, 1.0], [0.0, 0.0]]]
    """

    axis: int
    index: int
    shares: Array
    off: float | None = None

    @classmethod
    def alone(cls, axis: int, index: int, sizes: tuple[int, ...]) -> Self:
        """Of a sample of these sizes: the slice alone, nothing else is changed."""
        slices = sizes[axis - 1]
        place = index % slices
        return cls(axis, place, np.eye(slices)[place : place + 1])

    @classmethod
    def fit(cls, generated: Array, truth: Array, axis: int, index: int, *, component: bool = False) -> Self:
        """From samples ``(k, *sizes)`` that were generated under the conditions of known ones.

        Parameters
        ----------
        generated, truth
            As the model sees them before centring, transformed where there is a transform; NaN points do not count.
        axis, index
            See `Imposing`; a negative index counts from the end.
        component
            Whether the first mode holds the variables, which then have shares of their own.
        """
        alone = cls.alone(axis, index, truth.shape[1:])
        variables, slices = truth.shape[1] if component else 1, truth.shape[axis]
        products, squares, sizes, errors = np.zeros((variables, slices)), np.zeros((variables, 1)), 0.0, 0.0
        for made, true in zip(generated, truth, strict=True):  # one at a time: float64 copies of all are too large
            error = np.nan_to_num(_by_slice(true.astype(np.float64) - made, axis - 1, variables))
            own = error[:, alone.index]
            products += np.einsum("ctp,cp->ct", error, own)
            squares += (own**2).sum(axis=1, keepdims=True)
            given = np.nan_to_num(_by_slice(true.astype(np.float64), axis - 1, variables)[:, alone.index])
            sizes, errors = sizes + float(np.sum(given**2)), errors + float(np.sum(own**2))
        shares = np.clip(products / np.where(squares > 0, squares, 1.0), 0.0, 1.0)
        shares[:, alone.index] = 1.0
        return cls(axis, alone.index, shares, np.sqrt(errors / sizes) if sizes > 0 else None)

    def impose(self, fields: Array, given: Array) -> Array:
        """Generated samples ``(k, *sizes)`` with the given slices ``(k, *sizes but one)``.

        Points that are missing in either stay as they are. ``fields`` may be changed in place; what comes back holds
        the given numbers exactly. With a transform, both are numbers that it has transformed, so that sums stay in its
        range; then `place` puts the given numbers back.
        """
        out = fields.astype(np.result_type(fields, given), copy=False)
        slices = np.moveaxis(out, self.axis, 0)
        own = slices[self.index]
        known = np.isfinite(given) & np.isfinite(own)
        correction = np.where(known, given - np.where(known, own, 0), 0).astype(out.dtype, copy=False)
        by_variable = (-1, *(1,) * (correction.ndim - 2))
        for place, share in enumerate(self.shares.T.astype(out.dtype)):
            if place != self.index and share.any():
                slices[place] += share.reshape(by_variable) * correction
        return self.place(out, given)

    def place(self, fields: Array, given: Array) -> Array:
        """Samples that hold the given slices, and are otherwise as they are; may change them in place."""
        own = np.moveaxis(fields, self.axis, 0)[self.index]
        known = np.isfinite(given) & np.isfinite(own)
        own[known] = given[known]
        return fields

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as JSON data."""
        return {"shares": self.shares.tolist(), "off": self.off}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], axis: int, index: int, sizes: tuple[int, ...]) -> Self:
        """The same again, of a sample of these sizes."""
        shares = np.asarray(tree["shares"], dtype=np.float64)
        return cls(axis, index % sizes[axis - 1], shares, tree["off"])

    def described(self, dim: str) -> str:
        """What is done, in words.

        >>> Imposing(1, 0, np.array([[1.0, 0.5, 0.0]]), 0.12).described("time")
        'time[0] is the given one (generated, it was 12 % off); the others are corrected by 0 to 50 % of that'
        >>> Imposing.alone(1, -1, (3, 8)).described("time")
        'time[2] is the given one; the others are as they were generated'
        """
        off = "" if self.off is None else f" (generated, it was {100 * self.off:.2g} % off)"
        others = np.delete(self.shares, self.index, axis=1)
        done = "as they were generated"
        if others.any():
            done = f"corrected by {100 * others.min():.0f} to {100 * others.max():.0f} % of that"
        return f"{dim}[{self.index}] is the given one{off}; the others are {done}"


def _by_slice(x: Array, axis: int, variables: int) -> Array:
    """A sample as ``(variables, slices, points)``."""
    lead = np.moveaxis(x, axis, int(variables > 1))
    return lead.reshape(variables, x.shape[axis], -1)
