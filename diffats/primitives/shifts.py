"""Shifts along periodic modes, done on primitives: what the shifted field would be encoded as.

A shift turns rows of a factor, or slices of a core that keeps the mode. A factor is then aligned to its anchor anew,
so that ``shift(encode(X)) = encode(shift(X))`` without decomposing again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffats.errors import InputError
from diffats.primitives.layout import PATCH, Layout, Streams
from diffats.procrustes import align_to_anchor
from diffats.spectrum import mode_dot, transpose

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shifts:
    """Random shifts of samples along the modes at whose ends the fields wrap around.

    Attributes
    ----------
    layout
        Of the primitives.
    modes
        Periodic modes. Along a mode that is cut into patches, shifts are by whole patches.
    anchors
        By aligned mode; None leaves the factors as they are, turned by the shift.
    condition_dims
        Dims of the conditions that are fields, without that of samples, by name (``"initial"``, ``"field_<name>"``).

    Raises
    ------
    InputError
        Where a mode is none of the sample's, or one of a matrix primitive that is not cut into patches.

    >>> layout = Layout("tgp", ("y", "x"), {"y": 4, "x": 6}, {"y": 2, "x": 2}, ("y", "x"))
    >>> Shifts(layout, ("x",)).draw(2, np.random.default_rng(0)).shape
    (2, 1)
    """

    layout: Layout
    modes: tuple[str, ...]
    anchors: Streams | None = None
    condition_dims: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fitting = [mode for mode in self.layout.modes if mode != "component" and mode not in self.layout.labelled]
        for mode in self.modes:
            if mode not in fitting:
                kind = "cut into patches" if self.layout.labelled else "of a sample"
                raise InputError(f'train.shift names "{mode}", no mode {kind}. Use some of: {", ".join(fitting)}.')

    def draw(self, k: int, rng: np.random.Generator) -> Array:
        """Shifts ``(k, modes)`` in grid steps, uniform over all that there are."""
        steps = [self.layout.patch.get(mode, 1) for mode in self.modes]
        counts = [self.layout.sizes[mode] // step for mode, step in zip(self.modes, steps, strict=True)]
        return np.stack([step * rng.integers(n, size=k) for n, step in zip(counts, steps, strict=True)], axis=1)

    def apply(self, streams: Streams, shifts: Array) -> dict[str, Array]:
        """Streams ``{name: (k, *shape)}`` of the samples shifted by ``(k, modes)`` grid steps."""
        out = {name: np.asarray(values) for name, values in streams.items()}
        for mode, by in zip(self.modes, shifts.T, strict=True):
            if mode in self.layout.patch:
                out["core"] = self._shift_patches(out["core"], mode, by)
            elif mode in self.layout.aligned:
                self._shift_factor(out, mode, by)
            else:
                out["core"] = rolled(out["core"], by, 1 + self.layout.streams[0].dims.index(mode))
        return out

    def apply_to_conditions(self, conditions: Mapping[str, Array], shifts: Array) -> dict[str, Array]:
        """Conditions ``{name: (k, ...)}`` of the shifted samples."""
        out = dict(conditions)
        for name, dims in self.condition_dims.items():
            along = {
                1 + list(dims).index(mode): by for mode, by in zip(self.modes, shifts.T, strict=True) if mode in dims
            }
            if along:
                out[name] = rolled_along(out[name], along)
        return out

    def _shift_factor(self, out: dict[str, Array], mode: str, by: Array) -> None:
        name, n_modes = f"factor_{mode}", len(self.layout.working_modes)
        U = rolled(out[name], by, 1)
        if self.anchors is not None:
            Q, _ = align_to_anchor(U, self.anchors[mode])
            U = U @ Q
            axis = self.layout.working_modes.index(mode)
            out["core"] = np.asarray(mode_dot(out["core"], transpose(Q), axis, n_modes))
        out[name] = np.asarray(U)

    def _shift_patches(self, core: Array, mode: str, by: Array) -> Array:
        layout = self.layout
        counts = [layout.sizes[m] // length for m, length in layout.patch.items()]
        axis = 1 + len(layout.labelled)
        assert layout.streams[0].dims[axis - 1] == PATCH
        grid = core.reshape(*core.shape[:axis], *counts, *core.shape[axis + 1 :])
        along = list(layout.patch).index(mode)
        return rolled(grid, by // layout.patch[mode], axis + along).reshape(core.shape)


def rolled(x: Array, by: Array, axis: int) -> Array:
    """Each row of ``x`` ``(k, ...)`` rolled by its own ``by`` ``(k,)`` along an axis, as ``numpy.roll`` does.

    >>> rolled(np.array([[1, 2, 3], [1, 2, 3]]), np.array([0, 1]), 1).tolist()
    [[1, 2, 3], [3, 1, 2]]
    """
    return rolled_along(x, {axis: by})


def rolled_along(x: Array, along: Mapping[int, Array]) -> Array:
    """The same along several axes at once, each with its ``by``: two copies of a part of a row for each axis."""
    out = np.empty_like(x)
    for i, (row, rolled_row) in enumerate(zip(x, out, strict=True)):  # no index arrays
        halves = [_halves(axis, int(by[i]) % x.shape[axis], x.shape[axis]) for axis, by in along.items()]
        for parts in itertools.product(*halves):
            there, here = [slice(None)] * row.ndim, [slice(None)] * row.ndim
            for axis, to, source in parts:
                there[axis - 1], here[axis - 1] = to, source
            rolled_row[tuple(there)] = row[tuple(here)]
    return out


def _halves(axis: int, shift: int, n: int) -> list[tuple[int, slice, slice]]:
    """Where the two parts of an axis that is rolled go, and where they come from."""
    parts = [(axis, slice(shift, None), slice(None, n - shift))]
    return [*parts, (axis, slice(None, shift), slice(n - shift, None))] if shift else parts
