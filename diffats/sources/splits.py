"""Training and test samples: by sample, by block, or by coordinate; seeded. No two sides share a point of the source.

Of a source that grows, what is held out follows from the seed and a number alone (of the sample, of the block, or of a
coordinate's value in order of appearance), or from a boundary that stays: a sample never changes sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffats.config import Split
from diffats.errors import SourceError
from diffats.sources.cuts import Cuts, Grid, Ints

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def by_sample(
    cuts: Cuts, grid: Grid, split: Split, seed: int, *, grows: bool = False, groups: Ints | None = None
) -> tuple[Mask, Mask]:
    """A seeded share of the entries of the dim of samples, each with all its windows.

    Without such a dim, a share of the windows; of those that overlap, by blocks: see `by_block`.

    Parameters
    ----------
    groups
        ``(positions,)``: entries with the same number stay on one side. Numbers follow the order of appearance.

    Returns
    -------
    keep, is_test
        ``(n,)`` each, over all candidates.
    """
    if grid.positions is None and grid.overlaps:
        return by_block(cuts, grid, split, seed, grows=grows)
    n = cuts.n if grid.positions is None else grid.positions
    held = _held_numbers(np.arange(n) if groups is None else groups, split, seed, grows=grows)
    is_test = held if grid.positions is None else held[cuts.position]
    return np.ones_like(is_test), is_test


def _held_numbers(numbers: Ints, split: Split, seed: int, *, grows: bool) -> Mask:
    """Of entries with these numbers, ``0 .. k - 1``, those with a seeded choice of numbers: about ``split.test``."""
    sizes = np.bincount(numbers)
    if grows:
        return np.asarray(lasting_choice(len(sizes), split.test, [seed, 1])[numbers])
    order = np.random.default_rng([seed, 1]).permutation(len(sizes))
    count = _count(len(sizes), split.test)
    if sizes.max() > 1:  # groups may be of any size: as many as come closest to the share
        count = 1 + int(np.abs(sizes[order].cumsum()[: max(1, len(sizes) - 1)] - split.test * len(numbers)).argmin())
    return np.asarray(np.isin(numbers, order[:count]))


def lasting_choice(n: int, share: float, seed: list[int]) -> Mask:
    """One of every ``1 / share`` consecutive numbers below ``n``, which one is random: more numbers change none before.

    >>> short, long = lasting_choice(30, 0.3, [0]), lasting_choice(100, 0.3, [0])
    >>> int(long.sum()), bool((long[:30] == short).all())
    (30, True)
    """
    strata = int(n * share) + 2
    bounds = np.floor(np.arange(strata + 1) / share).astype(np.int64)
    within = np.random.default_rng(seed).random(strata)
    chosen = bounds[:-1] + np.floor(within * np.diff(bounds)).astype(np.int64)
    is_test = np.zeros(n, dtype=bool)
    is_test[chosen[chosen < n]] = True
    return is_test


def _count(n: int, share: float) -> int:
    return max(1, round(n * share))


def by_block(cuts: Cuts, grid: Grid, split: Split, seed: int, *, grows: bool = False) -> tuple[Mask, Mask]:
    """A seeded choice of blocks; windows that touch both sides, or are nearer than ``split.gap``, are dropped.

    The same blocks are held out in every entry of the dim of samples. In a source that grows every block counts, also a
    last one that is not full yet, and its share is of the blocks rather than of the windows.

    Returns
    -------
    keep, is_test
        ``(n,)`` each, over all candidates. No kept test window shares a grid point with a kept training window.

    Raises
    ------
    SourceError
        Where blocks are smaller than windows, or too few to hold about the share out.
    """
    blocks, counts = block_lengths(grid, split), block_counts(grid, split, grows=grows)
    total = int(np.prod(list(counts.values())))
    if total < 2:
        raise SourceError(
            f"data.split: the field {_shown(grid.length)} holds one block of {_shown(blocks)}, and two are "
            f"needed to hold one out. Set a smaller data.split.block, or {_otherwise(grid)}."
        )
    low = block_numbers(cuts, grid, split, grows=grows)
    high = {d: np.minimum((start + grid.size[d] - 1) // blocks[d], counts[d] - 1) for d, start in cuts.starts.items()}
    first, last = _with_gap(cuts, grid, split, blocks, counts)
    volume = np.prod([high[d] - low[d] + 1 for d in low], axis=0)
    order = np.random.default_rng([seed, 2]).permutation(total)

    def sides(chosen: int) -> tuple[Mask, Mask]:
        held = np.zeros(total, dtype=np.int64)
        held[np.flatnonzero(lasting_choice(total, split.test, [seed, 2])) if grows else order[:chosen]] = 1
        held = held.reshape(tuple(counts.values()))
        inside = _box_sums(held, list(low.values()), list(high.values()))
        return _box_sums(held, first, last) == 0, inside == volume

    train, test = sides(0 if grows else _blocks_needed(sides, total, split.test))
    if not test.any() or not train.any():
        raise SourceError(
            f"data.split: with {total} blocks of {_shown(blocks)} in a field of {_shown(grid.length)} no choice leaves "
            f"both training and test windows. Set a smaller data.split.block, a smaller stride, or {_otherwise(grid)}."
        )
    if not grows and test.sum() > train.sum() and split.test < 0.5:
        each = "" if grid.positions is None else ", the same for each entry of data.sample_dim"
        raise SourceError(
            f"data.split: {total} blocks of {_shown(blocks)} in a field of {_shown(grid.length)}{each}, are too few: "
            f"nearest to data.split.test = {split.test:g} are {int(test.sum())} test and {int(train.sum())} training "
            f"samples. Set a smaller data.split.block, or {_otherwise(grid)}."
        )
    return train | test, test


def _with_gap(
    cuts: Cuts, grid: Grid, split: Split, blocks: Mapping[str, int], counts: Mapping[str, int]
) -> tuple[list[Ints], list[Ints]]:
    """The first and the last block ``(n,)`` along each windowed dim that lies in a window, or nearer than the gap."""
    first: list[Ints] = []
    last: list[Ints] = []
    for dim, start in cuts.starts.items():
        gap, end = split.gap.get(dim, 0), grid.length[dim] - 1
        for place, out in ((np.maximum(start - gap, 0), first), (start + grid.size[dim] - 1 + gap, last)):
            out.append(np.minimum(np.minimum(place, end) // blocks[dim], counts[dim] - 1))
    return first, last


def _otherwise(grid: Grid) -> str:
    """What serves where blocks do not."""
    if grid.positions is not None:
        return 'by = "sample", which holds out entries of data.sample_dim'
    return "smaller windows" if grid.overlaps else 'by = "sample"'


def block_lengths(grid: Grid, split: Split) -> dict[str, int]:
    """Points of a block along each windowed dim.

    Raises
    ------
    SourceError
        Where no window fits in one.
    """
    return {dim: _block_length(dim, grid, split) for dim in grid.size}


def block_counts(grid: Grid, split: Split, *, grows: bool) -> dict[str, int]:
    """Blocks along each windowed dim."""
    number = _started_blocks if grows else _rounded_blocks
    blocks = block_lengths(grid, split)
    return {dim: max(1, number(grid.length[dim], blocks[dim], grid.size[dim])) for dim in grid.size}


def block_numbers(cuts: Cuts, grid: Grid, split: Split, *, grows: bool) -> dict[str, Ints]:
    """The block ``(n,)`` along each windowed dim in which samples begin."""
    blocks, counts = block_lengths(grid, split), block_counts(grid, split, grows=grows)
    return {dim: np.minimum(start // blocks[dim], counts[dim] - 1) for dim, start in cuts.starts.items()}


def _blocks_needed(sides: Any, total: int, share: float) -> int:
    """The number of held-out blocks whose test share is closest to ``share``; the share grows with the number."""

    def share_of(chosen: int) -> float:
        train, test = (int(side.sum()) for side in sides(chosen))
        return test / (train + test) if train + test else 0.0

    low, high = 1, total - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if share_of(middle) >= share else (middle + 1, high)
    before = share_of(low - 1) if low > 1 else 0.0
    return low - 1 if before > 0 and share - before < share_of(low) - share else low


def _block_length(dim: str, grid: Grid, split: Split) -> int:
    block = split.block.get(dim, 2 * grid.size[dim])
    if block < grid.size[dim]:
        raise SourceError(
            f'data.split.block {block} for dim "{dim}" is below the window size {grid.size[dim]}: no window '
            f"fits in a block. Use at least {grid.size[dim]}."
        )
    return block


def _rounded_blocks(length: int, block: int, size: int) -> int:
    """Blocks along a dim; what is left over is a block where a window fits in it, else part of the last one."""
    whole, rest = divmod(length, block)
    return whole + (rest >= size)


def _started_blocks(length: int, block: int, size: int) -> int:
    """Blocks along a dim, whole or begun."""
    return -(-length // block)


def _box_sums(values: Any, low: list[Any], high: list[Any]) -> Any:
    """Sums of ``values`` over boxes ``low..high`` (inclusive), by the summed-area table."""
    table = np.pad(values, [(1, 0)] * values.ndim)
    for axis in range(values.ndim):
        table = table.cumsum(axis=axis)
    total = 0
    for corner in np.ndindex(*(2,) * values.ndim):
        sign = (-1) ** (values.ndim - sum(corner))
        total = total + sign * table[tuple(h + 1 if up else lo for up, h, lo in zip(corner, high, low, strict=True))]
    return total


def by_marks(cuts: Cuts, dim: str, held: Mask, *, sample_dim: str | None) -> tuple[Mask, Mask]:
    """Hold out the points of ``dim`` where ``held``; windows that touch both sides are dropped. ``(n,)`` each."""
    if dim == sample_dim:
        assert cuts.position is not None
        is_test: Mask = held[cuts.position]
        return np.ones_like(is_test), is_test
    sums = np.concatenate([[0], np.cumsum(held)])
    start, size = cuts.starts[dim], cuts.size[dim]
    inside = sums[start + size] - sums[start]
    is_test = inside == size
    return is_test | (inside == 0), is_test


def held_values(
    values: Any,
    split: Split,
    seed: int,
    *,
    ordered: bool,
    least: int = 1,
    boundary: int | None = None,
    grows: bool = False,
) -> Mask:
    """Which entries of a coordinate are held out.

    The explicit ``split.values``; else the last share where the coordinate is ``ordered`` (a dim's own), so that the
    test lies after the training, and at least ``least`` entries; else a seeded share of the distinct values. With a
    ``boundary``, the entry where an earlier held-out share began, all that is not before it in order is held out.

    Raises
    ------
    SourceError
        Where a value does not occur.
    """
    if split.values:
        same = [_equal(values, value, str(split.coordinate)) for value in split.values]
        return np.asarray(np.logical_or.reduce(same))
    if boundary is not None:
        return np.asarray(values >= values[boundary])
    if ordered:
        held = np.zeros(len(values), dtype=bool)
        held[_last_share(values, split, least)] = True
        return held
    distinct, first = np.unique(values, return_index=True)
    if grows:
        known = distinct[np.argsort(first, kind="stable")]  # in order of appearance
        return np.isin(values, known[lasting_choice(len(known), split.test, [seed, 3])])
    chosen = np.random.default_rng([seed, 3]).permutation(len(distinct))[: _count(len(distinct), split.test)]
    return np.isin(values, distinct[chosen])


def first_held(values: Any, split: Split, *, least: int) -> int:
    """The entry at which the held-out end of an ordered coordinate begins."""
    return int(_last_share(values, split, least)[0])


def _last_share(values: Any, split: Split, least: int) -> Any:
    """Entries of the last share, in order of their values."""
    return np.argsort(values, kind="stable")[-max(least, _count(len(values), split.test)) :]


def _equal(values: Any, value: float | str, name: str) -> Mask:
    if values.dtype.kind in "fiub" and not isinstance(value, str):
        same = np.isclose(values.astype(float), value, rtol=1e-9, atol=0)
    elif values.dtype.kind in "MO" and not all(isinstance(v, str) for v in values[:1]):
        text = f"{value:g}" if isinstance(value, float) else value  # "2001" is every time in that year
        same = np.array([_iso(entry).startswith(text) for entry in values])
    else:
        same = np.array([str(entry) == str(value) for entry in values])
    if not same.any():
        known = [_iso(v) for v in np.unique(values)]
        shown = ", ".join(known[:8]) + (f", ... {known[-1]}" if len(known) > 8 else "")
        raise SourceError(
            f'data.split.values holds {value!r}, which coordinate "{name}" does not take. Its values are: {shown}.'
        )
    return np.asarray(same)


def _iso(value: Any) -> str:
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def _shown(sizes: Any) -> str:
    return ", ".join(f"{dim}={n}" for dim, n in sizes.items())
