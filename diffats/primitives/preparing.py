"""What fields are before they are centred and scaled, and after that was undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from diffats.primitives.climatology import HARMONICS, CyclicMoments
from diffats.primitives.moments import Moments
from diffats.spectrum import Array, as_numpy, unwarned

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Transform:
    """A function that is inverted after generation, and the numbers that it takes.

    ``forward`` and ``inverse`` get an array and its namespace. What is generated may be at the very end of the domain,
    where ``forward`` would be infinite, or beyond it: the nearest number that works is taken.
    """

    forward: Callable[[Array, Any], Array]
    inverse: Callable[[Array, Any], Array]
    least: float = -math.inf
    open: bool = False

    @property
    def domain(self) -> str:
        """The numbers that it takes, in words."""
        if math.isinf(self.least):
            return "all numbers"
        return f"numbers above {self.least:g}" if self.open else f"numbers from {self.least:g} on"


#: What ``data.transform`` may be. Stores hold places in this order: add new ones at its end.
TRANSFORMS = {
    "log": Transform(
        lambda x, xp: xp.log(xp.maximum(x, _constant(x, xp, xp.finfo(x.dtype).smallest_normal))),
        lambda y, xp: xp.exp(y),
        least=0.0,
        open=True,
    ),
    "log1p": Transform(
        lambda x, xp: xp.log1p(xp.maximum(x, _constant(x, xp, xp.finfo(x.dtype).eps - 1))),
        lambda y, xp: xp.expm1(y),
        least=-1.0,
        open=True,
    ),
    "sqrt": Transform(
        lambda x, xp: xp.sqrt(xp.maximum(x, _constant(x, xp, 0.0))),
        lambda y, xp: xp.maximum(y, _constant(y, xp, 0.0)) ** 2,
        least=0.0,
    ),
    "cbrt": Transform(lambda x, xp: xp.sign(x) * xp.abs(x) ** (1 / 3), lambda y, xp: y**3),
    "asinh": Transform(lambda x, xp: xp.asinh(x), lambda y, xp: xp.sinh(y)),
}


def _constant(x: Array, xp: Any, value: float) -> Array:
    return xp.full_like(x[:1], float(value))


@unwarned
def transformed(x: Array, names: Sequence[str], *, inverse: bool = False) -> Array:
    """Samples ``(k, *sizes)`` with their variables transformed, or transformed back; missing values stay missing.

    Parameters
    ----------
    x
        With several variables, these are along its second axis.
    names
        A name of ``TRANSFORMS`` for each variable, ``""`` for none; or nothing at all.

    >>> back = transformed(transformed(np.array([[0.0, 9.0]]), ["log1p"]), ["log1p"], inverse=True)
    >>> back.round(12).tolist()
    [[0.0, 9.0]]
    """
    if not any(names):
        return x
    xp = array_namespace(x)
    out = xp.asarray(x, copy=True)
    for i, name in enumerate(names):
        part = (slice(None), i) if len(names) > 1 else slice(None)
        if name and len(x):
            chosen = TRANSFORMS[name]
            out[part] = (chosen.inverse if inverse else chosen.forward)(x[part], xp)
    return out


def outside_domain(x: NumpyArray, names: Sequence[str], variables: Sequence[object]) -> tuple[int, str] | None:
    """The first sample with a value that its variable's transform does not take, and what is wrong; None without one.

    >>> outside_domain(np.array([[1.0], [-2.0]]), ["log1p"], ["rain"])
    (1, '"rain" is -2 there, and transform "log1p" takes numbers above -1. Use "asinh" or "cbrt", which take all')
    """
    for i, (name, variable) in enumerate(zip(names, variables, strict=False)):
        if not name or math.isinf(TRANSFORMS[name].least):
            continue
        part, chosen = x[:, i] if len(names) > 1 else x, TRANSFORMS[name]
        wrong = (part <= chosen.least) if chosen.open else (part < chosen.least)
        if wrong.any():
            rows = wrong.reshape(len(x), -1)
            row = int(rows.any(axis=1).argmax())
            value = part[row].reshape(-1)[rows[row]].min()
            others = '"asinh" or "cbrt", which take all'
            return row, f'"{variable}" is {value:g} there, and transform "{name}" takes {chosen.domain}. Use {others}'
    return None


class FieldMoments:
    """Moments of fields as they are, and as they are transformed, in one pass whose parts merge in any order.

    Parameters
    ----------
    transforms
        As of `transformed`.
    cyclic
        Those from which a climatology is fitted, where there is to be one.
    """

    def __init__(self, transforms: Sequence[str] = (), cyclic: CyclicMoments | None = None) -> None:
        self.transforms = tuple(transforms)
        self.cyclic = cyclic
        self.raw = Moments()
        self._transformed = Moments()

    @property
    def parts(self) -> int:
        """How many times the numbers of a sample are held."""
        return 1 + bool(self.transforms) + (0 if self.cyclic is None else 1 + HARMONICS)

    def add(self, x: Array, phases: NumpyArray | None = None) -> None:
        """Add samples ``(k, *sizes)``, in physical units, with phases as `CyclicMoments` takes them."""
        self.raw.add(x)
        prepared = transformed(as_numpy(x), self.transforms)
        if self.transforms:
            self._transformed.add(prepared)
        if self.cyclic is not None:
            assert phases is not None
            self.cyclic.add(prepared, phases)

    def merge(self, other: FieldMoments) -> None:
        """Add what others have seen."""
        self.raw.merge(other.raw)
        self._transformed.merge(other._transformed)
        if self.cyclic is not None and other.cyclic is not None:
            self.cyclic.merge(other.cyclic)

    @property
    def prepared(self) -> Moments:
        """Of the fields that are centred and scaled."""
        return self._transformed if self.transforms else self.raw


@dataclass(frozen=True)
class Values:
    """Which values a variable can have.

    Attributes
    ----------
    low, high
        The least and the largest one; infinite where there is none.
    whole
        The integer (or bool) type of a variable of whole numbers; None of others.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: np.dtype[Any] | None = None

    @property
    def any(self) -> bool:
        """Whether there are values that it cannot have."""
        return self.whole is not None or self.low > -math.inf or self.high < math.inf

    def nearest(self, x: NumpyArray) -> NumpyArray:
        """The nearest possible value of each, in the same floating-point type; NaN stays NaN.

        >>> Values(0, np.inf, np.dtype("uint8")).nearest(np.array([-146.0, 3.4, 498.0])).tolist()
        [0.0, 3.0, 255.0]
        """
        low, high = self._limits(x.dtype)
        return np.clip(x if self.whole is None else np.rint(x), x.dtype.type(low), x.dtype.type(high))

    @property
    def exist(self) -> bool:
        """Whether there are any.

        >>> Values(0.2, 0.8).exist, Values(0.2, 0.8, np.dtype("uint8")).exist
        (True, False)
        """
        low, high = self._limits(np.dtype(np.float64))
        return low <= high

    def _limits(self, real: np.dtype[Any]) -> tuple[float, float]:
        if self.whole is None:
            return self.low, self.high
        least, largest = _range(self.whole, real)
        return max(float(np.ceil(self.low)), least), min(float(np.floor(self.high)), largest)

    def typed(self, x: NumpyArray) -> NumpyArray:
        """Nearest values in the variable's type where that is whole numbers; what is no number becomes 0.

        >>> Values(whole=np.dtype("bool")).typed(np.array([0.2, 0.8, np.nan]))
        array([False,  True, False])
        """
        if self.whole is None:
            return x
        return np.nan_to_num(self.nearest(x), nan=0.0).astype(self.whole)


def _range(whole: np.dtype[Any], real: np.dtype[Any]) -> tuple[float, float]:
    """The least and largest whole number of a type that a floating-point type holds, too."""
    if whole.kind == "b":
        return 0.0, 1.0
    info = np.iinfo(whole)
    largest = real.type(info.max)  # may be rounded up
    return float(info.min), float(largest if int(largest) <= info.max else np.nextafter(largest, real.type(0)))


def nearest_possible(x: NumpyArray, variables: Sequence[Values]) -> NumpyArray:
    """Samples ``(k, *sizes)`` with the nearest values that their variables can have.

    Parameters
    ----------
    x
        Decoded; what is in it is lost. With several variables, these are along its second axis.
    variables
        What each can be, in order.
    """
    for i, values in enumerate(variables):
        part = x[:, i] if len(variables) > 1 else x
        if values.any:
            part[...] = values.nearest(part)
    return x
