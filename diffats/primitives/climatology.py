"""A mean that depends on the phase of the year or day: harmonics, fitted in one pass whose parts merge in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffats.errors import InputError
from diffats.primitives.moments import Moments

NumpyArray = np.ndarray[Any, Any]

#: Of each cycle, as climatologists usually keep: they smooth a year to about a month and a half.
HARMONICS = 4
_BLOCK = 2**16  # numbers taken in float64 at a time
_LEAST = 1e-8  # harmonics that the phases of the training samples cannot tell apart share what they explain


def harmonics(phases: NumpyArray) -> NumpyArray:
    """Cosines and sines of phases ``(..., cycles)``: ``(..., 2 HARMONICS cycles)``.

    >>> harmonics(np.array([[0.0], [0.25]])).round(12)[:, :4].tolist()
    [[1.0, 1.0, 1.0, 1.0], [0.0, -1.0, -0.0, 1.0]]
    """
    angles = 2 * np.pi * phases[..., None, :] * np.arange(1, HARMONICS + 1)[:, None]
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=-2)
    return np.asarray(waves.reshape(*phases.shape[:-1], -1))


@dataclass(frozen=True, eq=False)
class Climatology:
    """What is subtracted at each phase beside the mean over all phases.

    Attributes
    ----------
    coefficients
        ``(harmonics, *sizes)``, with size 1 along the mode of time.
    axis
        That of a sample along which time runs; None where a sample has one time.
    """

    coefficients: NumpyArray
    axis: int | None = None

    def at(self, phases: NumpyArray, dtype: Any = np.float64) -> NumpyArray:
        """Of samples whose points of time have phases ``(k, points, cycles)``: ``(k, *sizes)``."""
        waves = harmonics(phases).astype(dtype)
        k, points, count = waves.shape
        shape = [n for axis, n in enumerate(self.coefficients.shape[1:]) if axis != self.axis]
        flat = waves.reshape(-1, count) @ self.coefficients.reshape(count, -1).astype(dtype)
        out = flat.reshape(k, points, *shape)
        return out[:, 0] if self.axis is None else np.moveaxis(out, 1, 1 + self.axis)


class CyclicMoments:
    """Means of fields and harmonics, and the sums of products of their deviations.

    Parameters
    ----------
    axis
        Of a sample, along which time runs; None where a sample has one time.

    References
    ----------
    T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
    with products in place of squares.
    """

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.fields = Moments()  # over samples and points of time
        self.waves: NumpyArray = np.zeros(0)  # their mean, (harmonics,)
        self.products: NumpyArray = np.zeros((0, 0))  # (harmonics, harmonics)
        self.mixed: NumpyArray = np.zeros((0, 0))  # (harmonics, *sizes)

    def add(self, x: NumpyArray, phases: NumpyArray) -> None:
        """Add samples ``(k, *sizes)`` whose points of time have phases ``(k, points, cycles)``."""
        if not len(x):
            return
        if self.axis is not None:
            x = np.moveaxis(x, 1 + self.axis, 1)
            x = x.reshape(-1, *x.shape[2:])
        part, waves = CyclicMoments(self.axis), harmonics(phases).reshape(len(x), -1)
        part.fields.add(x)
        part.waves = waves.mean(axis=0)
        waves = waves - part.waves
        part.products = waves.T @ waves
        flat, mixed = x.reshape(len(x), -1), np.empty((waves.shape[1], x[0].size))
        step = max(1, _BLOCK // len(x))
        mean = part.fields.mean.reshape(-1)
        for i in range(0, flat.shape[1], step):
            mixed[:, i : i + step] = waves.T @ (flat[:, i : i + step].astype(np.float64) - mean[i : i + step])
        part.mixed = mixed.reshape(-1, *x.shape[1:])
        self.merge(part)

    def merge(self, other: CyclicMoments) -> None:
        """Add what others have seen; the order does not matter."""
        if other.fields.count == 0:
            return
        if self.fields.count == 0:
            self.waves, self.products, self.mixed = other.waves.copy(), other.products.copy(), other.mixed.copy()
        else:
            total = self.fields.count + other.fields.count
            share, weight = other.fields.count / total, self.fields.count * other.fields.count / total
            apart = other.waves - self.waves
            self.products += other.products + weight * np.multiply.outer(apart, apart)
            self.mixed += other.mixed + weight * np.multiply.outer(apart, other.fields.mean - self.fields.mean)
            self.waves = self.waves + share * apart
        self.fields.merge(other.fields)

    def fit(self) -> tuple[Moments, Climatology]:
        """The least-squares harmonics, and moments of what they leave: about the mean over all phases."""
        if self.fields.count == 0:
            raise InputError("no good training sample to fit a climatology to.")
        inverse = np.linalg.pinv(self.products, rcond=_LEAST, hermitian=True)
        coefficients = np.tensordot(inverse, self.mixed, axes=1)
        left = Moments()
        left.count = self.fields.count
        left.mean = self.fields.mean - np.tensordot(self.waves, coefficients, axes=1)
        left.M2 = np.maximum(self.fields.M2 - (coefficients * self.mixed).sum(axis=0), 0.0)
        if self.axis is not None:
            coefficients = np.expand_dims(coefficients, 1 + self.axis)
            left.mean, left.M2 = (np.expand_dims(values, self.axis) for values in (left.mean, left.M2))
        return left, Climatology(np.nan_to_num(coefficients), self.axis)
