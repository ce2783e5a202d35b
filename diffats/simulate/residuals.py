"""How well fields solve the equation that they are said to solve, measured on the stored grid and frames.

Stored frames are far apart and shocks lie between points, so differences from frame to frame would judge the storage
and not the field. The equation is therefore tested in its weak form (Messenger and Bortz, Multiscale Model. Simul. 19
(2021) 1474, arXiv:2005.04339): averaged in time over a smooth window, whose derivative stands in for that of the field,
and in space over a Gaussian, by Fourier transform. What remains of the truth is the floor, and belongs beside every
number of a model.

There is nothing for ``karman``: its data are the vorticity alone, in a part of the channel, and neither the velocity
that carries it nor what enters the part follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np
import xarray as xr
from scipy.linalg import toeplitz

from diffats.config import Problem, Simulate
from diffats.errors import InputError
from diffats.simulate import burgers_1d, burgers_2d, reaction_diffusion_1d
from diffats.simulate.drawing import Array

WINDOW = 0.1  #: half width of the window in time, as a share of all frames
SMOOTHING = 0.02  #: standard deviation of the Gaussian in space, as a share of the domain
_WINDOW_POWER = 4  # of 1 - s^2: smooth enough that sums over a few frames are as good as integrals
_LEAST_HALF_WIDTH = 2  # frames
_ROUNDING = 1e-10  # terms that are smaller than this share of the field are not there

# Every unknown q of the equation q_t + sum of terms = 0, averaged in space, with the averages of the terms.
_Balance = list[tuple[Array, list[Array]]]


def residual(problem: Problem, fields: Array, parameters: Mapping[str, Array]) -> Array:
    """Relative residual of the equation for each field, in its weak form.

    The root mean square of what the averaged terms leave, over the root of the sum of their mean squares, for the
    whole field: 0 solves the equation, 1 is what terms leave that know nothing of each other. At most the root of the
    number of terms.

    Parameters
    ----------
    problem
        One of `EQUATIONS`.
    fields
        ``(k, *modes)`` as `diffats simulate` stores them: ``(k, time, x)``; burgers_2d ``(k, 2, time, y, x)``.
    parameters
        ``(k,)`` each: ``nu``; ``nu`` and ``rho``; ``gamma`` and ``delta``.

    Returns
    -------
    ndarray
        ``(k,)`` float64. NaN where a field is not finite.

    Raises
    ------
    InputError
        Where the problem has no equation that its fields could be held against, a parameter is missing, or the arrays
        do not fit.

    Examples
    --------
    >>> time, x = 2.0 / 50 * np.arange(50)[:, None], np.arange(64) / 64
    >>> decaying = 1e-4 * np.exp(-0.4 * np.pi * time) * np.sin(2 * np.pi * x)  # too faint to steepen
    >>> bool(residual("burgers_1d", decaying[None], {"nu": np.array([0.1])}) < 1e-3)
    True
    >>> bool(residual("burgers_1d", decaying[None], {"nu": np.array([1e-5])}) > 0.9)
    True
    """
    equation, values = _checked(problem, fields, parameters)
    described = _described(equation.module, problem, fields.shape)
    interval = float(described["time"][1] - described["time"][0])
    out = np.empty(len(fields))
    for i, field in enumerate(fields):  # one by one: the terms of a field take several times its memory
        own = {name: float(value[i]) for name, value in values.items()}
        out[i] = _relative(equation.balance(np.asarray(field, dtype=np.float64), own, described), interval)
    return out


def _checked(problem: str, fields: Array, parameters: Mapping[str, Array]) -> tuple[_Equation, dict[str, Array]]:
    if problem not in EQUATIONS:
        raise InputError(
            f'problem "{problem}" has no equation that its fields could be held against. '
            f"Those that have one: {', '.join(EQUATIONS)}."
        )
    equation = EQUATIONS[problem]
    missing = [name for name in equation.parameters if name not in parameters]
    if missing:
        raise InputError(f'the residual of "{problem}" needs the parameter "{missing[0]}" of each field. Give it.')
    values = {name: np.asarray(parameters[name], dtype=np.float64) for name in equation.parameters}
    wrong = {name: value.shape for name, value in values.items() if value.shape != fields.shape[:1]}
    if fields.ndim != 1 + len(equation.dims) or wrong:
        raise InputError(
            f'the residual of "{problem}" takes fields (sample, {", ".join(equation.dims)}), and of each parameter a '
            f"number for each of them; got fields {fields.shape} and {wrong or 'parameters that fit'}."
        )
    return equation, values


def _described(module: ModuleType, problem: Problem, shape: tuple[int, ...]) -> xr.Dataset:
    """Grid and coefficients as the problem defines them for fields of this shape."""
    sizes = dict(zip(module.DIMS, shape[-len(module.DIMS) :], strict=True))
    if sizes["time"] < 2 * _LEAST_HALF_WIDTH + 1:
        raise InputError(f'the residual of "{problem}" needs {2 * _LEAST_HALF_WIDTH + 1} frames, got {sizes["time"]}.')
    described: xr.Dataset = module.describe(Simulate(problem=problem, sizes=sizes))
    return described


def _relative(balance: _Balance, interval: float) -> float:
    """Residual over the size of the terms, both averaged in time."""
    left, size = 0.0, 0.0
    for unknown, terms in balance:
        window, slope = _windows(len(unknown), interval)
        averaged = [-np.tensordot(slope, unknown, 1), *(np.tensordot(window, term, 1) for term in terms)]
        least = _ROUNDING * np.abs(unknown).max() / (len(unknown) * interval)
        left += float(np.mean(sum(averaged) ** 2))
        size += max(sum(float(np.mean(term**2)) for term in averaged), float(least) ** 2)
    return math.sqrt(left / size) if size else 0.0


def _windows(frames: int, interval: float) -> tuple[Array, Array]:
    """Weights of the frames in each window and in its derivative, ``(windows, frames)``.

    A constant has the average 1, and a line of slope 1 the derivative 1, exactly.
    """
    half = max(_LEAST_HALF_WIDTH, round(WINDOW * frames))
    s = np.arange(-half, half + 1) / half
    window, slope = (1 - s**2) ** _WINDOW_POWER, -s * (1 - s**2) ** (_WINDOW_POWER - 1)
    window, slope = window / window.sum(), slope / -(slope @ s * half * interval)
    return _sliding(window, frames), _sliding(slope, frames)


def _sliding(weights: Array, frames: int) -> Array:
    """The weights at every place where all of them fit, ``(places, frames)``."""
    places = frames - len(weights) + 1
    row, column = np.r_[weights, np.zeros(places - 1)], np.r_[weights[0], np.zeros(places - 1)]
    return np.asarray(toeplitz(column, row))


def _averaged(x: Array, *orders: int, smoothing: float = SMOOTHING) -> Array:
    """Average in space of a derivative, by Fourier transform; ``orders`` along the last axes, all periodic."""
    axes = tuple(range(x.ndim - len(orders), x.ndim))
    transformed = np.fft.rfftn(x, axes=axes)
    for axis, order in zip(axes, orders, strict=True):
        n = x.shape[axis]
        number = np.fft.rfftfreq(n, 1 / n) if axis == axes[-1] else np.fft.fftfreq(n, 1 / n)
        wave = 2 * math.pi * number
        factor = (1j * wave) ** order * np.exp(-0.5 * (wave * smoothing) ** 2)
        transformed *= factor.reshape(-1, *[1] * (x.ndim - axis - 1))
    return np.asarray(np.fft.irfftn(transformed, [x.shape[axis] for axis in axes], axes=axes))


# --- the equations ------------------------------------------------------------------------------------------------


def _burgers_1d(u: Array, values: Mapping[str, float], described: xr.Dataset) -> _Balance:
    """As a conservation law, which holds across shocks too."""
    return [(_averaged(u, 0), [_averaged(u * u / 2, 1), -values["nu"] / math.pi * _averaged(u, 2)])]


def _reaction_diffusion_1d(u: Array, values: Mapping[str, float], described: xr.Dataset) -> _Balance:
    growth = values["rho"] * u * (1 - u)
    return [(_averaged(u, 0), [-values["nu"] * _averaged(u, 2), -_averaged(growth, 0)])]


def _burgers_2d(uv: Array, values: Mapping[str, float], described: xr.Dataset) -> _Balance:
    """Both components together. The difficulties are relative to the solver's grid, which may be finer."""
    squares = float(described["nu"][0] / described["gamma"][0])  # 1 / (4 n^2), n the solver's points
    nu, scale = values["gamma"] * squares, values["delta"] * math.sqrt(squares)
    u, v = uv
    balance = []
    for q in (u, v):
        along, across = _averaged(q, 0, 1, smoothing=0), _averaged(q, 1, 0, smoothing=0)
        carried, spread = scale * _averaged(u * along + v * across, 0, 0), _averaged(q, 2, 0) + _averaged(q, 0, 2)
        balance.append((_averaged(q, 0, 0), [carried, -nu * spread]))
    return balance


class _Equation:
    """How the fields of a problem are held against its equation."""

    def __init__(
        self,
        module: ModuleType,
        variables: tuple[str, ...],
        parameters: tuple[str, ...],
        balance: Callable[[Array, Mapping[str, float], xr.Dataset], _Balance],
    ) -> None:
        self.module, self.variables, self.parameters, self.balance = module, variables, parameters, balance
        self.dims: tuple[str, ...] = module.DIMS if len(variables) == 1 else ("component", *module.DIMS)


#: Problems whose fields have a residual.
EQUATIONS = {
    "burgers_1d": _Equation(burgers_1d, ("u",), ("nu",), _burgers_1d),
    "reaction_diffusion_1d": _Equation(reaction_diffusion_1d, ("u",), ("nu", "rho"), _reaction_diffusion_1d),
    "burgers_2d": _Equation(burgers_2d, ("u", "v"), ("gamma", "delta"), _burgers_2d),
}
