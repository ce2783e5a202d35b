"""Mean and variance of every number over samples, in one pass whose parts merge in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffats.errors import InputError
from diffats.spectrum import as_numpy

NumpyArray = np.ndarray[Any, Any]

_BLOCK = 2**16  # numbers taken in float64 at a time: they stay in the cache


class Moments:
    """Count, mean and sum of squared deviations of every element over samples; parts merge in any order.

    References
    ----------
    T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).

    >>> whole, part = Moments(), Moments()
    >>> whole.add(np.array([[1.0], [2.0]])); part.add(np.array([[6.0]])); whole.merge(part)
    >>> whole.count, whole.mean.tolist(), whole.variance.round(6).tolist()
    (3, [3.0], [4.666667])
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: NumpyArray = np.zeros(())
        self.M2: NumpyArray = np.zeros(())

    def add(self, x: Any) -> None:
        """Add samples ``(k, *shape)``."""
        x = as_numpy(x)
        if len(x) == 0:
            return
        part = Moments()
        part.count = len(x)
        flat = x.reshape(len(x), -1)
        mean, M2 = np.empty(flat.shape[1]), np.empty(flat.shape[1])
        step = max(1, _BLOCK // len(x))
        for i in range(0, flat.shape[1], step):
            block = flat[:, i : i + step].astype(np.float64)
            mean[i : i + step] = block.mean(axis=0)
            block -= mean[i : i + step]
            M2[i : i + step] = np.einsum("ij,ij->j", block, block)
        part.mean, part.M2 = mean.reshape(x.shape[1:]), M2.reshape(x.shape[1:])
        self.merge(part)

    def merge(self, other: Moments) -> None:
        """Add what other moments have seen; the order does not matter."""
        if other.count == 0:
            return
        if self.count and self.mean.shape != other.mean.shape:
            raise InputError(f"moments of shapes {self.mean.shape} and {other.mean.shape} cannot be merged.")
        if self.count == 0:
            self.count, self.mean, self.M2 = other.count, other.mean.copy(), other.M2.copy()
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.mean += delta * (other.count / total)
        self.M2 += other.M2
        delta *= delta
        delta *= self.count * other.count / total
        self.M2 += delta
        self.count = total

    @property
    def variance(self) -> NumpyArray:
        """Population variance of every element."""
        return self.M2 / max(self.count, 1)

    def to_arrays(self) -> dict[str, NumpyArray]:
        """The state as arrays."""
        return {"count": np.asarray(self.count), "mean": self.mean, "M2": self.M2}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Moments:
        """The moments that ``to_arrays`` described."""
        made = cls()
        made.count = int(arrays["count"])
        made.mean, made.M2 = np.asarray(arrays["mean"], np.float64), np.asarray(arrays["M2"], np.float64)
        return made
