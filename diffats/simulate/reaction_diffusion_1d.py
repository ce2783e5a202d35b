"""One-dimensional reaction and diffusion (Fisher-KPP), by exponax: Fourier modes and exponential Runge-Kutta steps.

References: the problem is the one of PDEBench, Takamoto et al. (2022), arXiv:2210.07182; exponax, Koehler et al.
(2024), arXiv:2411.00180.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import Simulate
from diffats.simulate import drawing
from diffats.simulate.accelerated import exponax_version, load_exponax, load_jax
from diffats.simulate.burgers_1d import DIMS, END, VISCOSITIES
from diffats.simulate.drawing import Array

VERSION = 1
RATES = np.array([0.1, 0.5, 1.0, 2.0])
MOST_TOGETHER = 16
IN_PROCESSES = False
_LEAST_POINTS = 1024
_LONGEST_STEP = 0.01
_ORDER = 4


def solver() -> str:
    """What solves it."""
    return f"exponax {exponax_version()}: Fourier, ETDRK{_ORDER}, at least {_LEAST_POINTS} points"


def describe(settings: Simulate) -> xr.Dataset:
    """Coordinates and parameters of all samples, and variables that are still to be made."""
    frames, n = drawing.check_sizes(settings, DIMS)
    number = np.arange(settings.count)
    nu = VISCOSITIES[number % len(VISCOSITIES)]
    rho = RATES[number // len(VISCOSITIES) % len(RATES)]
    return xr.Dataset(
        {"u": drawing.empty(("sample", *DIMS), (settings.count, frames, n), {"long_name": "population density"})},
        coords={
            "time": drawing.coordinate("time", END / frames * np.arange(frames), "time"),
            "x": drawing.coordinate("x", np.arange(n) / n, "position, on a periodic interval"),
            "nu": drawing.coordinate("sample", nu, "diffusivity"),
            "rho": drawing.coordinate("sample", rho, "growth rate"),
            "held_out": drawing.sides("sample", drawing.held_out(settings, {"nu": nu, "rho": rho}), *drawing.NEW),
        },
        attrs={
            "title": "1-D reaction and diffusion (Fisher-KPP), u_t = nu u_xx + rho u (1 - u)",
            "references": "Takamoto et al. (2022), PDEBench, arXiv:2210.07182; Koehler et al. (2024), arXiv:2411.00180",
        },
    )


def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
    """The densities of some samples, float32 ``(k, time, x)``; the first frame is the initial state."""
    frames, n = drawing.check_sizes(settings, DIMS)
    finer = max(1, math.ceil(_LEAST_POINTS / n))
    states = [initial(drawing.state_stream(settings, int(i)), n * finer) for i in part["sample"].values]
    u = integrate(
        np.stack(states), part["nu"].values, part["rho"].values, frames=frames, interval=END / frames, every=finer
    )
    return {"u": u.astype(np.float32)}


def initial(stream: np.random.Generator, n: int) -> Array:
    """A sum of sines stretched between two random densities, ``(n,)`` in 0 to 1."""
    wave = drawing.random_waves(stream, n, averaged=False)
    low, high = stream.uniform(0, 0.3), stream.uniform(0.4, 1)
    return np.asarray(low + (high - low) * (wave - wave.min()) / np.ptp(wave))


def integrate(u: Array, nu: Array, rho: Array, *, frames: int, interval: float, every: int = 1) -> Array:
    """Solve ``u_t = nu u_xx + rho u (1 - u)`` on the periodic unit interval.

    Parameters
    ----------
    u
        Values at time 0, float64 ``(k, n)``.
    nu, rho
        ``(k,)``.
    frames, interval
        How many states to return, the first one included, and the time between them.
    every
        Return one of so many points.

    Returns
    -------
    ndarray
        ``(k, frames, n / every)``.
    """
    return np.asarray(_integrator(u.shape[1], frames, interval, every)(u[:, None], nu, rho))[:, :, 0]


@functools.lru_cache(maxsize=4)
def _integrator(n: int, frames: int, interval: float, every: int) -> Any:
    jax, exponax = load_jax(), load_exponax()
    steps = math.ceil(interval / _LONGEST_STEP - 1e-9)

    def trajectory(u: Any, nu: Any, rho: Any) -> Any:
        stepper = exponax.stepper.reaction.FisherKPP(
            1, 1.0, n, interval / steps, diffusivity=nu, reactivity=rho, order=_ORDER
        )
        repeated = exponax.RepeatedStepper(stepper, steps)
        return exponax.rollout(repeated, frames - 1, include_init=True)(u)[..., ::every]

    return jax.jit(jax.vmap(trajectory))
