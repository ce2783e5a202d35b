"""What fields are before they are centred and scaled, and after that was undone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NumpyArray = np.ndarray[Any, Any]


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
        low, high = self.low, self.high
        if self.whole is not None:
            least, largest = _range(self.whole, x.dtype)
            low, high, x = max(float(np.ceil(low)), least), min(float(np.floor(high)), largest), np.rint(x)
        return np.clip(x, x.dtype.type(low), x.dtype.type(high))

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
