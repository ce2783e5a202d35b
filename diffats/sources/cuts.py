"""Where samples lie: positions along a dim of samples, and windows along long dims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffats.errors import SourceError

Ints = np.ndarray[Any, np.dtype[np.int64]]
_MOST = 10**8  # places that are listed take some bytes each


@dataclass(frozen=True)
class Cuts:
    """Places of ``n`` samples.

    ``position`` (n,) is along the dim of samples (None without one); ``starts`` (n,) for each windowed dim. Samples are
    ordered by position, then by the start along each windowed dim, in tensor order, the last one fastest.
    """

    position: Ints | None
    starts: Mapping[str, Ints]
    size: Mapping[str, int]
    n: int

    def take(self, indices: Any) -> Cuts:
        """The places of some of the samples (indices or a mask)."""
        position = None if self.position is None else self.position[indices]
        starts = {dim: start[indices] for dim, start in self.starts.items()}
        n = len(position) if position is not None else len(next(iter(starts.values())))
        return Cuts(position, starts, self.size, n)

    def groups(self, of: Ints | None = None, *, divided: bool = False) -> Ints:
        """Numbers of the groups ``(n,)`` in which samples may depend on each other.

        All windows of one entry along the dim of samples, or of all entries with the same number in ``of``
        (positions,); without such a dim, and within entries that are ``divided``, windows that begin in one cell of a
        window's size.
        """
        marks = []
        if self.position is not None:
            marks.append(self.position if of is None else of[self.position])
        if self.position is None or divided:
            marks += [start // self.size[dim] for dim, start in self.starts.items()]
        return np.unique(np.stack(marks, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Grid:
    """All candidate samples: ``positions`` times ``counts`` windows along each windowed dim."""

    positions: int | None
    length: Mapping[str, int]
    size: Mapping[str, int]
    stride: Mapping[str, int]

    @property
    def counts(self) -> tuple[int, ...]:
        """Windows along each windowed dim."""
        return tuple((self.length[d] - self.size[d]) // self.stride[d] + 1 for d in self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Positions (one without a dim of samples), then windows along each windowed dim."""
        return (1 if self.positions is None else self.positions, *self.counts)

    @property
    def overlaps(self) -> bool:
        """Whether neighbouring windows share points."""
        return any(n > 1 and self.stride[d] < self.size[d] for n, d in zip(self.counts, self.size, strict=True))

    def cuts(self) -> Cuts:
        """The places of all candidates.

        Raises
        ------
        SourceError
            Where there are more than can be listed.

        >>> cuts = Grid(None, {"x": 10}, {"x": 4}, {"x": 3}).cuts()
        >>> cuts.n, cuts.starts["x"].tolist()
        (3, [0, 3, 6])
        """
        n = math.prod(self.shape)
        if n > _MOST:
            raise SourceError(
                f"data: {n} samples would be cut, at most {_MOST} can be. Raise data.windows.stride, or take a part of "
                "the source."
            )
        places = np.unravel_index(np.arange(n), self.shape)
        starts = {dim: places[axis].astype(np.int64) * self.stride[dim] for axis, dim in enumerate(self.size, start=1)}
        position = None if self.positions is None else places[0].astype(np.int64)
        return Cuts(position, starts, self.size, n)
