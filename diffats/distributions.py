"""How values, extremes and fine structure of one set of samples differ from another's, as numbers and as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats import metrics

Array = npt.NDArray[Any]
FINE = 0.25  #: cycles per grid step from which on structure is fine: four points or fewer a wave
ALIKE = 1.25  #: a factor within which two sets are as rough as each other
TAIL = 0.001  #: share of all values in a tail
LEVELS = np.concatenate([edge := np.geomspace(1e-4, 0.1, 13), np.linspace(0.15, 0.85, 15), 1 - edge[::-1]])


def value_quantiles(sets: Mapping[str, Array]) -> dict[str, Array]:
    """Quantiles of all values of each set ``(k, *sizes)`` at `LEVELS`, from 0.01 to 99.99 %; NaN are left out.

    Examples
    --------
    >>> found = value_quantiles({"test": np.linspace(0, 1, 101)[None]})
    >>> round(float(found["test"][len(LEVELS) // 2]), 2)
    0.5
    """
    return {name: np.nanquantile(x.astype(np.float64), LEVELS) for name, x in sets.items()}


def extremes(sets: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """The smallest and the largest value of each sample, ``(k,)`` each and in order; samples without values left out.

    Examples
    --------
    >>> low, high = extremes({"test": np.array([[3.0, 5.0], [1.0, 2.0]])})["test"]
    >>> low.tolist(), high.tolist()
    ([1.0, 3.0], [2.0, 5.0])
    """
    found = {}
    for name, x in sets.items():
        flat = x.reshape(len(x), -1)
        flat = flat[np.isfinite(flat).any(axis=1)]
        found[name] = np.sort(np.nanmin(flat, axis=1)), np.sort(np.nanmax(flat, axis=1))
    return found


def tails_sentence(test: Array, generated: Array) -> str:
    """How far both tails of the generated values reach, against those of the test values.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 400))
    >>> tails_sentence(x, 0.5 * x)
    'Measured from the median, the lowest 0.1 % of generated values begin 0.50 times as far out as those of test \
samples, the highest 0.50 times.'
    """
    levels = (TAIL, 0.5, 1 - TAIL)
    ends = [np.nanquantile(x.astype(np.float64), levels) for x in (test, generated)]
    (low, high), (own_low, own_high) = ((middle - first, last - middle) for first, middle, last in ends)
    if not low > 0 or not high > 0:
        return ""
    return (
        f"Measured from the median, the lowest {TAIL:.1%} of generated values begin {own_low / low:.2f} times as far "
        f"out as those of test samples, the highest {own_high / high:.2f} times."
    ).replace("%", " %")


def roughness(sets: Mapping[str, Array], modes: Sequence[str]) -> dict[str, dict[str, float]]:
    """By which factor each set has more power at fine scales than ``test``, along each mode that is long enough.

    The factor is the geometric mean over frequencies from `FINE` on, which is what one sees in a plot with logarithmic
    axes.

    Parameters
    ----------
    sets
        ``(k, *sizes)`` by kind, ``test`` among them, centred. NaN count as zero.
    modes
        The samples' modes.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 6, 16))
    >>> {mode: round(found["generated"], 2) for mode, found in roughness({"test": x, "generated": 2 * x}, "yx").items()}
    {'x': 4.0}
    """
    reference, found = sets["test"], {}
    for axis, mode in enumerate(modes, start=1):
        if mode == "component" or reference.shape[axis] < metrics.LEAST_SPECTRUM:
            continue
        powers = {}
        for name, x in sets.items():
            frequency, power = metrics.power_spectrum(np.nan_to_num(x), axis)
            powers[name] = np.log(np.maximum(power[frequency >= FINE], np.finfo(np.float64).tiny))
        found[mode] = {
            name: math.exp((power - powers["test"]).mean()) for name, power in powers.items() if name != "test"
        }
    return found


def roughness_sentence(found: Mapping[str, Mapping[str, float]]) -> str:
    """Of each direction: too rough, too smooth, or as rough as test samples, by which factor of power.

    A factor is none where it is within 1.25, or nearer to 1 than that of real training samples.

    Examples
    --------
    >>> roughness_sentence({"y": {"generated": 2.1, "train": 1.1}, "x": {"generated": 0.25, "train": 1.1}})
    'At fine scales (four points or fewer a wave) generated samples are too rough by a factor of 2.1 in power along y \
and too smooth by a factor of 4 along x.'
    """
    parts = []
    for mode, factors in found.items():
        own, honest = factors["generated"], factors.get("train", 1.0)
        if abs(math.log(own)) <= max(math.log(ALIKE), abs(math.log(honest))):
            parts.append(f"as rough as test samples along {mode}")
        else:
            word = "rough" if own > 1 else "smooth"
            parts.append(f"too {word} by a factor of {max(own, 1 / own):.2g} along {mode}")
    if not parts:
        return ""
    told = parts[0].replace(" along", " in power along", 1) if "factor" in parts[0] else parts[0]
    listed = ", ".join([told, *parts[1:-1]]) + (f" and {parts[-1]}" if len(parts) > 1 else "")
    return f"At fine scales (four points or fewer a wave) generated samples are {listed}."
