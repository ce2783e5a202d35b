"""Ranks, and which modes to align, from some samples: a small error, and factors that overlap with their anchor.

One full decomposition of each sample gives the error of all ranks at once, and for each mode how much factors of each
rank overlap with their medoid. Both together choose, over tensor primitives of every set of aligned modes and, for
pictures, over matrix primitives of some patches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats.medoid import LARGEST_MODE
from diffats.primitives import Layout, RankErrors, affordable
from diffats.primitives.layout import PIXEL
from diffats.spectrum import leading
from diffats.stages.pilot import typical_overlap

Array = npt.NDArray[Any]

#: The median over samples of the smallest overlap that is aimed at.
OVERLAP = 0.1
_ERRORS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)  # aimed at, in this order
_NUMBERS = 2**16  # of a primitive, where samples are large
# Least overlap and compression, in the order in which they are given up.
_LEVELS = ((OVERLAP, 4.0), (OVERLAP, 2.0), (OVERLAP, 1.25), (0.05, 2.0), (0.02, 1.25), (0.0, 1.0))
_TRIED, _PATCHES_TRIED = 16, 6  # ranks of a mode, and kinds of patches
_COMBINED = 2**18  # combinations of ranks
_SMALL_MODE = 16  # such a mode may be aligned at full rank, and is not cut into patches beside longer ones
_PIXELS, _PATCHES = (16, 512), (8, 1024)  # in a patch, and patches in a sample, at least and at most
_EDGE = (4, 32)  # points along an edge of a patch


@dataclass(frozen=True)
class Choice:
    """A layout, and what is expected of it.

    Attributes
    ----------
    layout
        With its ranks.
    error
        Root-mean-square error, relative to the samples' deviation from their mean.
    overlap
        Median over samples of the smallest overlap with the anchor, of the aligned mode where it is least.
    """

    layout: Layout
    error: float
    overlap: float


def choose(fields: Array, anomalies: Array, sizes: Mapping[str, int], *, keep: Sequence[str] = ()) -> Choice | None:
    """The layout with the fewest numbers for the smallest error that factors allow which overlap with their anchor.

    Parameters
    ----------
    fields, anomalies
        ``(k, *sizes)``: what is decomposed, and what its error is relative to.
    sizes
        By mode.
    keep
        Modes of which one at least stays whole in the core, so that the network has tokens along it.

    Returns
    -------
    None where no layout is smaller than a sample.

    >>> rng = np.random.default_rng(0)
    >>> x = np.einsum("ni,yi,xi->nyx", rng.normal(size=(20, 2)), np.eye(16, 2), np.eye(12, 2))
    >>> x += 0.001 * rng.normal(size=x.shape)
    >>> choice = choose(x, x, {"y": 16, "x": 12})
    >>> choice.error < 0.1, choice.overlap > 0.1, choice.layout.compression > 4
    (True, True, True)
    """
    found = [*_tensor_choices(fields, anomalies, sizes, keep), *_matrix_choices(fields, anomalies, sizes)]
    return best(found)


def best(choices: Sequence[Choice]) -> Choice | None:
    """The choice with the fewest numbers among those of the smallest error aimed at that any reaches."""
    smaller = [choice for choice in choices if choice.layout.compression > 1]
    for overlap, compression in _LEVELS:
        good = [
            choice
            for choice in smaller
            if choice.overlap >= overlap
            and choice.layout.compression >= compression
            and choice.layout.numbers <= max(_NUMBERS, choice.layout.raw_numbers // 1000)
        ]
        for error in _ERRORS:
            reached = [choice for choice in good if choice.error <= error]
            if reached:
                return min(reached, key=lambda choice: choice.layout.numbers)
    return min(smaller, key=lambda choice: (choice.overlap < OVERLAP, choice.error), default=None)


def _tried(candidates: Array, most: int) -> list[int]:
    """Places of some ranks among those whose errors are known, dense where ranks are small; the last is the size."""
    wanted = np.geomspace(1, candidates[-1], most)
    return sorted({int(np.abs(candidates - rank).argmin()) for rank in wanted})


# --- tensor primitives --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Option:
    """A rank of a mode, which is its size where the mode is not aligned, its place among the errors, its overlap."""

    rank: int
    place: int
    aligned: bool
    overlap: float = 1.0


def _tensor_choices(fields: Array, anomalies: Array, sizes: Mapping[str, int], keep: Sequence[str]) -> Iterator[Choice]:
    """For each overlap and each error aimed at, the ranks of fewest numbers; and those of the smallest error."""
    if len(sizes) < 2:
        return
    modes = tuple(sizes)
    whole = Layout("tgp", modes, sizes, dict.fromkeys(modes, 1), modes)
    few = affordable(len(fields), whole)
    errors = RankErrors.measure(fields[few], anomalies[few], whole)
    options = [_options(fields[few], axis, errors.candidates[axis], len(modes)) for axis in range(len(modes))]
    error = np.sqrt(errors.lost[np.ix_(*([option.place for option in tried] for tried in options))])
    numbers, overlap = _costs(options, tuple(sizes.values()), [modes.index(mode) for mode in keep])
    for least, target in itertools.product({level for level, _ in _LEVELS}, (*_ERRORS, None)):
        good = (overlap >= least) & (numbers < whole.raw_numbers)
        wanted = (
            np.where(good, error, np.inf) if target is None else np.where(good & (error <= target), numbers, np.inf)
        )
        place = np.unravel_index(int(wanted.argmin()), wanted.shape)
        if np.isfinite(wanted[place]):
            picked = [tried[i] for tried, i in zip(options, place, strict=True)]
            ranks = {mode: option.rank for mode, option in zip(modes, picked, strict=True) if option.aligned}
            layout = Layout("tgp", modes, sizes, ranks, tuple(ranks))
            yield Choice(layout, float(error[place]), float(overlap[place]))


def _options(fields: Array, axis: int, candidates: Array, n_modes: int) -> list[_Option]:
    """A mode left whole, and ranks at which it can be aligned."""
    n = fields.shape[1 + axis]
    found = [_Option(n, len(candidates) - 1, aligned=False)]
    if n > LARGEST_MODE or n == 1:
        return found
    U = leading(fields.astype(np.float64), axis)[0]
    for place in _tried(candidates, min(_TRIED, int(_COMBINED ** (1 / n_modes)))):
        rank = int(candidates[place])
        if rank == n <= _SMALL_MODE:
            found.append(_Option(n, place, aligned=True))  # all columns: they turn onto any anchor
        elif rank < n and rank <= U.shape[-1]:
            found.append(_Option(rank, place, True, typical_overlap(U[..., :rank])))
    return found


def _costs(options: Sequence[Sequence[_Option]], sizes: Sequence[int], keep: Sequence[int]) -> tuple[Array, Array]:
    """Numbers and overlap of every combination; infinitely many numbers where no layout is like that."""

    def grid(values: Sequence[Sequence[float]]) -> list[Array]:
        return list(np.meshgrid(*(np.array(each, np.float64) for each in values), indexing="ij", sparse=True))

    ranks = grid([[option.rank for option in tried] for tried in options])
    aligned = grid([[option.aligned for option in tried] for tried in options])
    overlap: Array = np.ones(())
    for each in grid([[option.overlap for option in tried] for tried in options]):
        overlap = np.minimum(overlap, each)
    core: Array = np.asarray(math.prod(ranks))
    numbers = core + sum(n * rank * yes for n, rank, yes in zip(sizes, ranks, aligned, strict=True))
    possible = np.asarray(sum(aligned) >= 2)
    if keep:
        possible = possible & (sum(aligned[axis] for axis in keep) < len(keep))
    for rank, yes in zip(ranks, aligned, strict=True):
        possible = possible & ((rank * rank <= core) | (yes == 0))  # a rank is at most the product of the others
    return np.where(possible, numbers, np.inf), np.broadcast_to(overlap, numbers.shape)


# --- matrix primitives --------------------------------------------------------------------------------------------


def _matrix_choices(fields: Array, anomalies: Array, sizes: Mapping[str, int]) -> Iterator[Choice]:
    for patch in _patches(sizes):
        whole = Layout("mgp", tuple(sizes), sizes, {PIXEL: 1}, (PIXEL,), patch)
        few = affordable(len(fields), whole)
        (candidates,), lost = (errors := RankErrors.measure(fields[few], anomalies[few], whole)).candidates, errors.lost
        tensors = whole.arrange(fields[few].astype(np.float64))
        U = leading(tensors.reshape(-1, *tensors.shape[-2:]), 1)[0]
        U = U.reshape(*tensors.shape[:-2], *U.shape[1:])
        for place in _tried(candidates, _TRIED):
            rank = int(candidates[place])
            if rank > min(whole.working_sizes.values()):
                break
            layout = Layout("mgp", whole.modes, sizes, {PIXEL: rank}, (PIXEL,), patch)
            if layout.compression > 1:
                yield Choice(layout, math.sqrt(float(lost[place])), typical_overlap(U[..., :rank]))


def _patches(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Patches of pictures: samples of one or two long modes, beside short ones such as colours; squarest first."""
    longest = sorted(sizes, key=lambda mode: -sizes[mode])[:2]
    long = [
        mode for mode, n in sizes.items() if n > _SMALL_MODE or (mode in longest and max(sizes.values()) <= _SMALL_MODE)
    ]
    beside = math.prod(n for mode, n in sizes.items() if mode not in long)
    if len(long) > 2 or "component" in long or beside > _SMALL_MODE:
        return []
    least = _EDGE[0] if len(long) == 2 else 2
    edges = [
        [edge for edge in range(least, min(n // 2, _EDGE[1]) + 1) if not n % edge]
        for n in (sizes[mode] for mode in long)
    ]
    points = math.prod(sizes[mode] for mode in long)
    found = [dict(zip(long, lengths, strict=True)) for lengths in itertools.product(*edges)]
    if len(long) == 2:
        found = [patch for patch in found if _fits(math.prod(patch.values()), points)]
    return sorted(found, key=lambda patch: max(patch.values()) / min(patch.values()))[:_PATCHES_TRIED]


def _fits(pixels: int, points: int) -> bool:
    return _PIXELS[0] <= pixels <= _PIXELS[1] and _PATCHES[0] <= points // pixels <= _PATCHES[1]
