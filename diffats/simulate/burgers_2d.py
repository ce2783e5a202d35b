"""Two-dimensional Burgers equation, two velocity components, by exponax.

Viscosity and convection are given as exponax's difficulties, which are relative to the solver's grid. That has at least
the paper's 128 points, of which fewer may be stored: coarse data then show the same flows.

Reference: exponax and APEBench, Koehler et al. (2024), arXiv:2411.00180.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import Simulate
from diffats.errors import RecipeError
from diffats.simulate import drawing
from diffats.simulate.accelerated import exponax_version, load_exponax, load_jax
from diffats.simulate.drawing import Array

VERSION = 1
DIMS = ("time", "y", "x")
GAMMA, DELTA = (1.5, 10.0), (0.1, 1.0)
MOST_TOGETHER = 8
IN_PROCESSES = False
_STEPS, _LEAST_POINTS = 200, 128  # of the paper; a finer grid takes more steps to carry the flow as far
_HIGHEST_WAVE, _POWER_LAW = 4, 3.0
_ORDER = 2  # within 3e-4 of the fourth order, in half the time


def solver() -> str:
    """What solves it."""
    grid = f"at least {_LEAST_POINTS} points, two thirds of the modes kept"
    return f"exponax {exponax_version()}: Fourier, ETDRK{_ORDER}, {grid}"


def describe(settings: Simulate) -> xr.Dataset:
    """Coordinates and parameters of all samples, and variables that are still to be made."""
    frames, n, finer = _sizes(settings)
    stream = drawing.parameter_stream(settings)
    gamma = np.exp(stream.uniform(math.log(GAMMA[0]), math.log(GAMMA[1]), settings.count))
    delta = stream.uniform(*DELTA, settings.count)
    side = drawing.held_out(settings, {"gamma": gamma, "delta": delta})
    shape, dims = (settings.count, frames, n, n), ("sample", *DIMS)
    kind = {"long_name": "initial state", "flag_values": np.arange(2, dtype=np.int8)}
    return xr.Dataset(
        {
            "u": drawing.empty(dims, shape, {"long_name": "velocity along x"}),
            "v": drawing.empty(dims, shape, {"long_name": "velocity along y"}),
        },
        coords={
            "time": drawing.coordinate("time", _every(frames, n * finer) * np.arange(frames), "steps of the solver"),
            "y": drawing.coordinate("y", np.arange(n) / n, "position, on a periodic square"),
            "x": drawing.coordinate("x", np.arange(n) / n, "position, on a periodic square"),
            "gamma": drawing.coordinate("sample", gamma, "diffusion difficulty"),
            "delta": drawing.coordinate("sample", delta, "convection difficulty"),
            "nu": drawing.coordinate("sample", gamma / (4 * (n * finer) ** 2), "viscosity, in squares and steps"),
            "initial_state": (
                "sample",
                (np.arange(settings.count) % 2).astype(np.int8),
                {**kind, "flag_meanings": "fourier_series gaussian_random_field"},
            ),
            "held_out": drawing.sides("sample", side, *drawing.NEW),
        },
        attrs={
            "title": "2-D Burgers equation, u_t + b (u . grad) u = nu lap u, nu = gamma / (4 n^2), b = delta / (2 n), "
            "n the solver's points along an axis",
            "references": "Koehler et al. (2024), APEBench, arXiv:2411.00180",
        },
    )


def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
    """Both components of some samples, float32 ``(k, time, y, x)``; the first frame is the initial state."""
    frames, n, finer = _sizes(settings)
    points = n * finer
    states = initial(part["sample"].values, part["initial_state"].values == 1, n=points, seed=settings.seed)
    gamma, delta = part["gamma"].values, part["delta"].values
    uv = integrate(states, gamma, delta, frames=frames, steps=_every(frames, points), every=finer)
    return {"u": uv[:, :, 0].astype(np.float32), "v": uv[:, :, 1].astype(np.float32)}


def _sizes(settings: Simulate) -> tuple[int, int, int]:
    """Frames, points along an axis, and how many times as many the solver has."""
    frames, ny, nx = drawing.check_sizes(settings, DIMS)
    if ny != nx:
        raise RecipeError(f'simulate.sizes: problem "burgers_2d" is on a square, got y = {ny}, x = {nx}.')
    return frames, nx, max(1, math.ceil(_LEAST_POINTS / nx))


def _every(frames: int, points: int) -> int:
    """Steps from one frame to the next."""
    return max(1, round(_STEPS * points / _LEAST_POINTS / frames))


def initial(trajectories: Array, is_gaussian: Array, *, n: int, seed: int) -> Array:
    """States at time 0, ``(k, 2, y, x)``: Gaussian random fields where asked for, else sums of the first waves."""
    return np.asarray(_initial(n, seed)(trajectories, is_gaussian))


@functools.lru_cache(maxsize=4)
def _initial(n: int, seed: int) -> Any:
    jax, exponax = load_jax(), load_exponax()
    fourier = exponax.ic.RandomTruncatedFourierSeries(2, cutoff=_HIGHEST_WAVE, max_one=True)
    gaussian = exponax.ic.GaussianRandomField(2, powerlaw_exponent=_POWER_LAW, max_one=True)

    def state(trajectory: Any, is_gaussian: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), trajectory))
        parts = [jax.numpy.where(is_gaussian, gaussian(n, key=key), fourier(n, key=key)) for key in keys]
        return jax.numpy.concatenate(parts)

    return jax.jit(jax.vmap(state))


def integrate(uv: Array, gamma: Array, delta: Array, *, frames: int, steps: int, every: int = 1) -> Array:
    """Solve ``u_t + b (u . grad) u = nu lap u`` on the periodic unit square.

    Parameters
    ----------
    uv
        States at time 0, float64 ``(k, 2, y, x)`` with component 0 along x, of magnitude 1.
    gamma, delta
        Difficulties of diffusion and convection, ``(k,)``: ``nu = gamma / (4 n^2)`` and ``b = delta / (2 n)``.
    frames, steps
        How many states to return, the first one included, and the steps of length 1 between them.
    every
        Return one of so many points along each axis.

    Returns
    -------
    ndarray
        ``(k, frames, 2, y / every, x / every)``.
    """
    # exponax's axes are (component, x, y), with component 0 along the first of them
    turned = np.swapaxes(uv, -1, -2)
    return np.swapaxes(np.asarray(_integrator(uv.shape[-1], frames, steps, every)(turned, gamma, delta)), -1, -2)


@functools.lru_cache(maxsize=4)
def _integrator(n: int, frames: int, steps: int, every: int) -> Any:
    jax, exponax = load_jax(), load_exponax()

    def trajectory(uv: Any, gamma: Any, delta: Any) -> Any:
        stepper = exponax.stepper.Burgers(
            2, 1.0, n, 1.0, diffusivity=gamma / (4 * n**2), convection_scale=delta / (2 * n), order=_ORDER
        )
        repeated = exponax.RepeatedStepper(stepper, steps)
        return exponax.rollout(repeated, frames - 1, include_init=True)(uv)[..., ::every, ::every]

    return jax.jit(jax.vmap(trajectory))
