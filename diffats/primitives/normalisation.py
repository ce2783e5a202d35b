"""Statistics over samples, and the two normalisations: of fields before the decomposition, of streams after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, device, to_device

from diffats.errors import InputError
from diffats.primitives.layout import Streams
from diffats.spectrum import Array, as_numpy, like

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


def divisors(spread: NumpyArray, values: NumpyArray) -> NumpyArray:
    """What to divide by: the spread, or 1 where it is no more than the rounding of the values around which it is.

    >>> divisors(np.array([2.0, 1e-14]), np.array([5.0, 300.0])).tolist()
    [2.0, 1.0]
    """
    noise = 1e-13 * np.nanmax(np.abs(values), initial=0.0)
    return np.where(spread > noise, spread, 1.0)


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Centred streams of unit scale: an elementwise mean, and one scale per stream.

    One scale for a whole stream keeps near-empty trailing columns as small as they are; a scale per element would
    give their noise the weight of signal.

    Attributes
    ----------
    mean
        By stream: its shape.
    scale
        By stream: root mean square deviation over samples and elements; 1 for a constant stream.
    """

    mean: Mapping[str, NumpyArray]
    scale: Mapping[str, float]

    @classmethod
    def fit(cls, moments: Mapping[str, Moments]) -> Normalisation:
        """From the moments of each stream over the training split.

        Raises
        ------
        InputError
            Where a stream has no samples.
        """
        for name, seen in moments.items():
            if seen.count == 0:
                raise InputError(f'stream "{name}" has no training samples to fit a normalisation to.')
        mean = {name: seen.mean for name, seen in moments.items()}
        spread = {name: np.sqrt(np.mean(seen.variance)) for name, seen in moments.items()}
        return cls(mean, {name: float(divisors(spread[name], mean[name])) for name in moments})

    def apply(self, streams: Streams) -> dict[str, Array]:
        """Centre and scale streams ``{name: (k, *shape)}``."""
        return {n: (part - like(self._known(n), part)) / self.scale[n] for n, part in streams.items()}

    def undo(self, streams: Streams) -> dict[str, Array]:
        """The inverse of ``apply``."""
        return {n: part * self.scale[n] + like(self._known(n), part) for n, part in streams.items()}

    def _known(self, name: str) -> NumpyArray:
        if name not in self.mean:
            raise InputError(f'stream "{name}" has no normalisation; there are {", ".join(self.mean)}.')
        return self.mean[name]

    def to_arrays(self) -> dict[str, NumpyArray]:
        """Means and scales as arrays ``mean_<stream>`` and ``scale_<stream>``."""
        means = {f"mean_{name}": np.asarray(mean) for name, mean in self.mean.items()}
        return means | {f"scale_{name}": np.asarray(scale, np.float64) for name, scale in self.scale.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Normalisation:
        """The normalisation that ``to_arrays`` described."""
        names = [key.removeprefix("mean_") for key in arrays if key.startswith("mean_")]
        mean = {name: np.asarray(arrays[f"mean_{name}"], np.float64) for name in names}
        return cls(mean, {name: float(arrays[f"scale_{name}"]) for name in names})


@dataclass(frozen=True, eq=False)
class FieldScaling:
    """Physical fields to the centred and scaled fields that are decomposed, and back.

    Attributes
    ----------
    mean, scale
        Broadcastable to a sample, in physical units.
    mask
        True where values are missing in every sample, of a sample's shape; None where none are.

    >>> scaling = FieldScaling(np.array([10.0, 10.0]), np.array(2.0), np.array([False, True]))
    >>> scaling.apply(np.array([[14.0, np.nan]])).tolist(), scaling.undo(np.array([[2.0, 0.0]])).tolist()
    ([[2.0, 0.0]], [[14.0, nan]])
    """

    mean: NumpyArray
    scale: NumpyArray
    mask: NumpyArray | None = None

    @classmethod
    def fit(
        cls,
        moments: Moments,
        center: Literal["none", "variable", "point"] = "variable",
        scale: Literal["none", "variable"] = "variable",
        *,
        component: bool = False,
    ) -> FieldScaling:
        """From the moments of the raw training samples.

        Parameters
        ----------
        moments
            Over samples ``(k, *sizes)``; an element that was NaN is masked.
        center
            ``"point"``: the mean field; ``"variable"``: one number per variable; ``"none"``: 0.
        scale
            ``"variable"``: root mean square deviation of each variable from what is subtracted (from its mean, with
            ``center="none"``); ``"none"``: 1.
        component
            Whether the first mode holds the variables.

        Raises
        ------
        InputError
            Where there are no training samples, or all elements of a variable are missing.
        """
        if moments.count == 0:
            raise InputError("no good training sample to fit centring and scaling to.")
        mask = np.isnan(moments.mean)
        axes = tuple(range(int(component), mask.ndim))
        points = np.sum(~mask, axis=axes, keepdims=True)
        if (points == 0).any():
            raise InputError("every value of a variable is missing in the training samples. Remove this variable.")

        def over_points(values: NumpyArray) -> NumpyArray:
            return np.asarray(np.sum(np.where(mask, 0.0, values), axis=axes, keepdims=True) / points)

        variable_mean = over_points(moments.mean)
        subtracted = {"none": np.zeros_like(variable_mean), "variable": variable_mean, "point": moments.mean}[center]
        about = variable_mean if center == "none" else subtracted
        spread = np.sqrt(over_points(moments.variance + (moments.mean - about) ** 2))
        divisor = divisors(spread, about) if scale == "variable" else np.ones_like(spread)
        return cls(np.where(np.isnan(subtracted), 0.0, subtracted), divisor, mask if mask.any() else None)

    def apply(self, x: Array) -> Array:
        """Centre and scale samples ``(k, *sizes)``; masked points become 0."""
        scaled = x - like(self.mean, x)
        scaled /= like(self.scale, x)
        return self._filled(scaled, 0.0)

    def undo(self, x: Array) -> Array:
        """The inverse of ``apply``; masked points become NaN."""
        physical = x * like(self.scale, x)
        physical += like(self.mean, x)
        return self._filled(physical, np.nan)

    def _filled(self, x: Array, value: float) -> Array:
        if self.mask is not None:
            x[:, to_device(array_namespace(x).asarray(self.mask), device(x))] = value
        return x

    def to_arrays(self) -> dict[str, NumpyArray]:
        """Mean, scale and, where there is one, mask."""
        return {"mean": self.mean, "scale": self.scale} | ({} if self.mask is None else {"mask": self.mask})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> FieldScaling:
        """The scaling that ``to_arrays`` described."""
        mask = np.asarray(arrays["mask"], bool) if "mask" in arrays else None
        return cls(np.asarray(arrays["mean"], np.float64), np.asarray(arrays["scale"], np.float64), mask)
