"""One-dimensional Burgers equation by finite volumes: shocks stay sharp, and no wiggle grows beside them.

Monotone reconstruction (MUSCL, minmod limiter), Godunov's flux and a strong-stability-preserving Runge-Kutta step of
second order for the convection; the exact semigroup of the discrete Laplacian for the diffusion, by Fourier transform;
both joined by Strang splitting. Each part does not increase the total variation, so neither does the whole.

References: van Leer, J. Comput. Phys. 32 (1979) 101; Gottlieb, Shu and Tadmor, SIAM Review 43 (2001) 89. The problem is
the one of PDEBench, Takamoto et al. (2022), arXiv:2210.07182.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from diffats.config import Simulate
from diffats.simulate import drawing
from diffats.simulate.drawing import Array

VERSION = 1
DIMS = ("time", "x")
VISCOSITIES = 10.0 ** np.linspace(-5, -1, 9)
END = 2.0
MOST_TOGETHER = 16  # trajectories: their arrays then fit a core's cache
IN_PROCESSES = True
_LEAST_CELLS = 512
_COURANT = 0.5  # above 2/3 the limited step may add variation


def solver() -> str:
    """What solves it."""
    return f"diffats.simulate.burgers_1d {VERSION}: MUSCL finite volumes, at least {_LEAST_CELLS} cells"


def describe(settings: Simulate) -> xr.Dataset:
    """Coordinates and parameters of all samples, and variables that are still to be made."""
    frames, n = drawing.check_sizes(settings, DIMS)
    nu = VISCOSITIES[np.arange(settings.count) % len(VISCOSITIES)]
    field = {"long_name": "velocity, average over a cell"}
    return xr.Dataset(
        {"u": drawing.empty(("sample", *DIMS), (settings.count, frames, n), field)},
        coords={
            "time": drawing.coordinate("time", END / frames * np.arange(frames), "time"),
            "x": drawing.coordinate("x", (np.arange(n) + 0.5) / n, "position, on a periodic interval"),
            "nu": drawing.coordinate("sample", nu, "viscosity, times pi"),
            "held_out": drawing.sides("sample", drawing.held_out(settings, {"nu": nu}), *drawing.NEW),
        },
        attrs={
            "title": "1-D Burgers equation, u_t + u u_x = (nu/pi) u_xx",
            "references": "Takamoto et al. (2022), PDEBench, arXiv:2210.07182",
        },
    )


def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
    """The velocities of some samples, float32 ``(k, time, x)``; the first frame is the initial state."""
    frames, n = drawing.check_sizes(settings, DIMS)
    finer = max(1, math.ceil(_LEAST_CELLS / n))
    states = [
        drawing.random_waves(drawing.state_stream(settings, int(i)), n * finer, averaged=True)
        for i in part["sample"].values
    ]
    u = integrate(np.stack(states), part["nu"].values / math.pi, frames=frames, interval=END / frames)
    return {"u": u.reshape(*u.shape[:2], n, finer).mean(axis=-1).astype(np.float32)}


def integrate(u: Array, viscosity: Array, *, frames: int, interval: float) -> Array:
    """Solve ``u_t + u u_x = viscosity u_xx`` on the periodic unit interval.

    Parameters
    ----------
    u
        Cell averages at time 0, float64 ``(k, n)``.
    viscosity
        ``(k,)``.
    frames, interval
        How many states to return, the first one included, and the time between them.

    Returns
    -------
    ndarray
        ``(k, frames, n)``.
    """
    n = u.shape[1]
    fastest = float(np.abs(u).max())  # and stays so, by the maximum principle
    steps = max(1, math.ceil(interval * fastest * n / _COURANT))
    dt = interval / steps
    laplacian = (2 - 2 * np.cos(2 * math.pi * np.arange(n // 2 + 1) / n)) * n**2
    decay = np.exp(-viscosity[:, None] * laplacian * dt)
    out = np.empty((len(u), frames, n))
    out[:, 0] = u
    for frame in range(1, frames):
        u = _diffuse(u, np.sqrt(decay))
        for step in range(steps):  # the half steps of diffusion between two steps of convection are one
            u = _diffuse(_convect(u, dt * n), decay if step < steps - 1 else np.sqrt(decay))
        out[:, frame] = u
    return out


def _diffuse(u: Array, decay: Array) -> Array:
    return np.asarray(np.fft.irfft(np.fft.rfft(u) * decay, u.shape[1]))


def _convect(u: Array, ratio: float) -> Array:
    """One Runge-Kutta step; ``ratio`` is the time step over the cell."""
    first = u - ratio * _divergence(u)
    return np.asarray(0.5 * (u + first - ratio * _divergence(first)))


def _divergence(u: Array) -> Array:
    """Differences of Godunov's fluxes between limited linear pieces, ``(k, n)``."""
    wide = np.concatenate([u[:, -2:], u, u[:, :2]], axis=1)
    step = np.diff(wide)
    slope = _half_minmod(step[:, :-1], step[:, 1:])  # of cells -1 .. n
    left = np.maximum(wide[:, 1:-2] + slope[:, :-1], 0)  # at the faces of cells 0 .. n - 1
    right = np.minimum(wide[:, 2:-1] - slope[:, 1:], 0)
    return np.asarray(np.diff(0.5 * np.maximum(left * left, right * right)))


def _half_minmod(a: Array, b: Array) -> Array:
    """Half of whichever of two differences is smaller, 0 where they differ in sign.

    >>> _half_minmod(np.array([2.0, -2.0, 2.0]), np.array([4.0, -1.0, -1.0])).tolist()
    [1.0, -0.5, 0.0]
    """
    rising, falling = np.clip(a, 0, np.maximum(b, 0)), np.clip(a, np.minimum(b, 0), 0)
    return np.asarray(0.5 * (rising + falling))
