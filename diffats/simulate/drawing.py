"""What all problems draw alike: seeded random streams, sums of sines, and which trajectories are held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.config import Simulate
from diffats.errors import RecipeError

Array = npt.NDArray[Any]

WAVES, HIGHEST_WAVE = 2, 4
NEW = ("new_trajectory", "new_parameters")
# Streams of random numbers, so that one more draw in one place changes nothing elsewhere.
_SPLIT, _PARAMETERS, _STATES = range(3)


def check_sizes(settings: Simulate, dims: Sequence[str]) -> tuple[int, ...]:
    """The lengths of a problem's dims, in order.

    Raises
    ------
    RecipeError
        Where the recipe gives other dims, or parameters to hold out that the problem does not have.
    """
    for option, owner in (("clips", "karman"), ("strips", "image_patches")):
        if getattr(settings, option) > 1 and settings.problem != owner:
            raise RecipeError(
                f'simulate.{option} is for problem "{owner}", and this is "{settings.problem}". Remove it.'
            )
    if set(settings.sizes) != set(dims):
        raise RecipeError(
            f'simulate.sizes names {", ".join(settings.sizes) or "no dim"}, but problem "{settings.problem}" has '
            f"{', '.join(dims)}. Give each of them a length."
        )
    return tuple(settings.sizes[dim] for dim in dims)


def parameter_stream(settings: Simulate) -> np.random.Generator:
    """Random numbers for the parameters of all trajectories."""
    return np.random.default_rng([settings.seed, _PARAMETERS])


def state_stream(settings: Simulate, trajectory: int) -> np.random.Generator:
    """Random numbers for the initial state of one trajectory, whatever others are made."""
    return np.random.default_rng([settings.seed, _STATES, trajectory])


def held_out(settings: Simulate, parameters: Mapping[str, Array]) -> Array:
    """The side of each trajectory, int8: 2 where a parameter lies in a held-out range, 1 for a share of the others.

    Raises
    ------
    RecipeError
        Where a range names no parameter, or holds none of its values or all of them.

    >>> settings = Simulate(problem="karman", sizes={}, count=10, test=0.25, held_out={"re": (60, 70)})
    >>> held_out(settings, {"re": np.array([50, 65, 80, 85, 88.0])}).tolist()
    [0, 2, 0, 1, 0]
    """
    number = next(len(values) for values in parameters.values())
    side = np.zeros(number, dtype=np.int8)
    for name, (low, high) in settings.held_out.items():
        if name not in parameters:
            raise RecipeError(
                f'simulate.held_out names "{name}", which problem "{settings.problem}" does not vary '
                f"({', '.join(parameters)})."
            )
        side[_within(parameters[name], low, high)] = 2
    known = np.flatnonzero(side == 0)
    if len(known) < 2 or (settings.held_out and len(known) == number):
        raise RecipeError(
            f"simulate.held_out {dict(settings.held_out)} leaves {len(known)} of {number} trajectories for training. "
            "Choose a range that holds some values of the parameter, and not nearly all."
        )
    chosen = np.random.default_rng([settings.seed, _SPLIT]).permutation(known)[: share_of(len(known), settings.test)]
    side[chosen] = 1
    return side


def sides(dim: str, side: Array, *meanings: str) -> xr.Variable:
    """The coordinate by which recipes hold samples out; ``meanings`` name its values from 1 on."""
    flags = np.arange(len(meanings) + 1, dtype=np.int8)
    names = " ".join(("training", *meanings))
    return xr.Variable(dim, side, {"long_name": "side of the split", "flag_values": flags, "flag_meanings": names})


def _within(values: Array, low: float, high: float) -> Array:
    slack = 1e-9 * np.abs(values)  # a range may end at a value
    return np.asarray((values >= low - slack) & (values <= high + slack))


def share_of(number: int, share: float) -> int:
    """At least one of ``number``, and about this share of them."""
    return max(1, round(number * share))


def random_waves(stream: np.random.Generator, n: int, *, averaged: bool) -> Array:
    """A sum of sines on the periodic unit interval, ``(n,)``: two of wave numbers 1 to 4, amplitudes below 1.

    Where ``averaged``, its averages over n cells; else its values at n points, the first at 0.

    >>> wave = random_waves(np.random.default_rng(0), 64, averaged=True)
    >>> bool(abs(wave.mean()) < 1e-12), bool(abs(wave).max() < 2)
    (True, True)
    """
    number = stream.integers(1, HIGHEST_WAVE + 1, WAVES)
    amplitude, phase = stream.uniform(0, 1, WAVES), stream.uniform(0, 2 * math.pi, WAVES)
    x = (np.arange(n) + 0.5 * averaged) / n
    smoothed = amplitude * np.sinc(number / n) if averaged else amplitude
    return np.asarray(smoothed @ np.sin(2 * math.pi * np.outer(number, x) + phase[:, None]))


def empty(dims: Sequence[str], shape: Sequence[int], attrs: Mapping[str, Any]) -> xr.Variable:
    """A float32 variable that is still to be made, without memory."""
    return xr.Variable(tuple(dims), np.broadcast_to(np.float32(0), tuple(shape)), {**attrs, "units": "1"})


def coordinate(dims: str, values: Any, name: str, units: str = "1", **attrs: Any) -> xr.Variable:
    """A coordinate with its name for people."""
    return xr.Variable(dims, values, {"long_name": name, "units": units, **attrs})
