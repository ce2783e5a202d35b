"""A lattice-Boltzmann solver for two-dimensional incompressible flow past a cylinder: D2Q9, two relaxation times.

No maintained package served: lettuce needs Python 3.12, XLB brings VTK, PyVista and Warp, and lbmpy is under the GPL
and compiles C++ at run time.

The collision is one matrix product for all points, since only three products of velocities are not linear in it.

References: He and Luo, J. Stat. Phys. 88 (1997) 927 (incompressible equilibrium); Ginzburg, Verhaeghe and d'Humieres,
Commun. Comput. Phys. 3 (2008) 427 (even and odd parts relax apart); Bouzidi, Firdaouss and Lallemand, Phys. Fluids 13
(2001) 3452 (walls between points).

Units are the lattice's: cell, step, density 1. Fields are ``(y, x)``, populations ``(9, y, x)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

VELOCITIES = np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)])  # x, y
WEIGHTS = np.array([4 / 9, *(1 / 9,) * 4, *(1 / 36,) * 4])
_OPPOSITE = np.array([0, 3, 4, 1, 2, 7, 8, 5, 6])
_MIRRORED = np.array([0, 1, 4, 3, 2, 8, 7, 6, 5])  # in a wall along x
_MAGIC = 1 / 12  # product of the relaxation times; 3/16 and 1/4 are unstable at the inlet for thin cylinders
_X, _Y = VELOCITIES.T.astype(float)
# Equilibrium of populations f is _LINEAR @ f + _QUADRATIC @ (ux^2, uy^2, ux uy).
_LINEAR = WEIGHTS[:, None] * (1 + 3 * VELOCITIES @ VELOCITIES.T)
_QUADRATIC = WEIGHTS[:, None] * np.stack([4.5 * _X**2 - 1.5, 4.5 * _Y**2 - 1.5, 9 * _X * _Y], axis=1)


def equilibrium(density: Any, ux: Any, uy: Any) -> Array:
    """Populations ``(9, ...)`` of a flow without gradients."""
    linear = np.multiply.outer(WEIGHTS, density) + 3 * (
        np.multiply.outer(WEIGHTS * _X, ux) + np.multiply.outer(WEIGHTS * _Y, uy)
    )
    return np.asarray(linear + np.tensordot(_QUADRATIC, np.stack([ux * ux, uy * uy, ux * uy]), axes=1))


def velocity(f: Array) -> Array:
    """Velocities ``(2, ...)``, along x and y."""
    return np.tensordot(VELOCITIES.T.astype(float), f, axes=1)


def vorticity(u: Array) -> Array:
    """``d uy / dx - d ux / dy`` of velocities ``(2, y, x)`` by central differences, one-sided at the edges."""
    return np.asarray(np.gradient(u[1], axis=1) - np.gradient(u[0], axis=0))


@dataclass(frozen=True)
class Circle:
    """A cylinder's centre and radius, in cells."""

    y: float
    x: float
    radius: float

    def inside(self, height: int, length: int) -> Array:
        """Which points it covers, bool ``(y, x)``."""
        y, x = np.mgrid[:height, :length]
        return np.asarray((y - self.y) ** 2 + (x - self.x) ** 2 <= self.radius**2)

    def cut(self, y: Array, x: Array, direction: Array) -> Array:
        """Where the links from points outside, to their neighbours in a direction, meet it: 0 to 1 from the point."""
        dx, dy = x - self.x, y - self.y
        length = direction @ direction
        half = (dx * direction[0] + dy * direction[1]) / length
        return np.asarray(-half - np.sqrt(half**2 - (dx**2 + dy**2 - self.radius**2) / length))


@dataclass(frozen=True)
class Links:
    """The links that a wall cuts: populations that come back, as weighted sums of three that are there.

    Attributes
    ----------
    target
        Flat indices into ``(9, y, x)``, ``(n,)``.
    source, weight
        ``(3, n)``.
    """

    target: Array
    source: Array
    weight: Array

    @classmethod
    def cut_by(cls, shape: Circle, height: int, length: int) -> Links:
        """Those of a cylinder; beyond the edges there is none."""
        solid = shape.inside(height, length)
        around = np.pad(solid, 1)
        targets, sources, weights = [], [], []
        for i, (cx, cy) in enumerate(VELOCITIES[1:], start=1):
            y, x = np.nonzero(~solid & around[1 + cy : 1 + cy + height, 1 + cx : 1 + cx + length])
            here, behind = y * length + x, (y - cy) * length + x - cx
            o, size = _OPPOSITE[i], height * length
            targets.append(o * size + here)
            sources.append(np.stack([i * size + here, i * size + behind, o * size + here]))
            weights.append(bouzidi(shape.cut(y, x, VELOCITIES[i])))
        return cls(np.concatenate(targets), np.concatenate(sources, axis=1), np.concatenate(weights, axis=1))


def bouzidi(q: Array) -> Array:
    """Weights ``(3, n)`` of the population that leaves towards a wall at ``q``, of the one behind, and of its opposite.

    >>> bouzidi(np.array([0.25, 0.5, 1.0])).T.tolist()
    [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]
    """
    near = np.stack([2 * q, 1 - 2 * q, 0 * q])
    far = np.stack([1 / (2 * q), 0 * q, 1 - 1 / (2 * q)])
    return np.where(q < 0.5, near, far)


@dataclass
class Tunnel:
    """A channel with slipping sides that a cylinder stands in; flow enters on the left.

    Attributes
    ----------
    height, length
        In cells.
    viscosity, speed
        Of the fluid, and of the flow that enters.
    circle
        The cylinder.
    """

    height: int
    length: int
    viscosity: float
    speed: float
    circle: Circle

    def __post_init__(self) -> None:
        shape = (self.height, self.length)
        self._links = Links.cut_by(self.circle, *shape)
        # the populations and, after them, the three products of velocities
        self._state = np.zeros((12, *shape))
        self.set_velocity(*self._start())
        self._collided = np.empty((9, *shape))
        self._products = np.empty((2, self.height * self.length))
        self._matrix = collision(self.viscosity)

    def _start(self) -> Array:
        """Uniform flow, pushed aside behind the cylinder so that vortices are shed soon."""
        y, x = np.mgrid[: self.height, : self.length]
        c = self.circle
        distance = ((x - c.x - 3 * c.radius) ** 2 + (y - c.y) ** 2) / (2 * c.radius) ** 2
        return np.stack([np.full(y.shape, self.speed), 0.5 * self.speed * np.exp(-distance)])

    def set_velocity(self, ux: Array, uy: Array) -> None:
        """Start from a velocity field, ``(y, x)`` each."""
        self._state[:9] = equilibrium(np.ones(ux.shape), ux, uy)

    @cached_property
    def _outside(self) -> Array:
        return ~self.circle.inside(self.height, self.length)

    @property
    def velocity(self) -> Array:
        """Velocities ``(2, y, x)`` now, 0 inside the cylinder."""
        return velocity(self._state[:9]) * self._outside

    def frames(self, number: int, every: int) -> Iterator[Array]:
        """Velocities now, and again after each ``every`` steps."""
        for _ in range(number):
            yield self.velocity
            self.run(every)

    def run(self, steps: int) -> None:
        """Go on for so many steps."""
        for _ in range(steps):
            self._collide()
            self._stream()
            self._flow_through()

    def _collide(self) -> None:
        f, squares = self._state[:9].reshape(9, -1), self._state[9:].reshape(3, -1)
        ux, uy = np.dot(VELOCITIES.T.astype(float), f, out=self._products)
        np.multiply(ux, ux, out=squares[0])
        np.multiply(uy, uy, out=squares[1])
        np.multiply(ux, uy, out=squares[2])
        np.dot(self._matrix, self._state.reshape(12, -1), out=self._collided.reshape(9, -1))

    def _stream(self) -> None:
        """Move every population to the next point; reflect it at the sides, return it from the cylinder."""
        f, collided = self._state[:9], self._collided
        for i, (cx, cy) in enumerate(VELOCITIES):
            f[i, _to(cy), _to(cx)] = collided[i, _to(-cy), _to(-cx)]
            if cy:
                edge = 0 if cy > 0 else -1
                f[i, edge, _to(cx)] = collided[_MIRRORED[i], edge, _to(-cx)]
        links = self._links
        f.reshape(-1)[links.target] = (links.weight * collided.reshape(-1)[links.source]).sum(axis=0)

    def _flow_through(self) -> None:
        """The speed at the first column, density 1 at the last, the rest from next to them."""
        f = self._state[:9]
        density, far = f[:, :, 1].sum(axis=0), f[:, :, -2]
        f[:, :, 0] = equilibrium(density, self.speed + 0 * density, 0 * density)
        f[:, :, -1] = far + np.multiply.outer(WEIGHTS, 1 - far.sum(axis=0))


def _to(step: int) -> slice:
    """The points that something reaches from a neighbour ``step`` before."""
    return slice(max(step, 0), min(step, 0) or None)


def collision(viscosity: float) -> Array:
    """The collision as a matrix ``(9, 12)`` on populations and the products ``ux^2, uy^2, ux uy``."""
    even = 1 / (3 * viscosity + 0.5)
    odd = 1 / (0.5 + _MAGIC / (1 / even - 0.5))
    one, swap = np.eye(9), np.eye(9)[_OPPOSITE]
    relax = 0.5 * even * (one + swap) + 0.5 * odd * (one - swap)
    return np.concatenate([one - relax + relax @ _LINEAR, relax @ _QUADRATIC], axis=1)
