"""What a sample is: an entry of a dim, or a window cut from long dims; and which samples are held out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import Split
from diffats.errors import SourceError
from diffats.proposing.dims import Meaning, hours_between, meaning_of, seasons, step_in_words
from diffats.sources import splits
from diffats.sources.cuts import Grid
from diffats.sources.naming import unknown_name
from diffats.sources.sides import FEW_TEST_SAMPLES

_TEST, _MOST_TEST = 0.1, 0.2  # share held out; and where that would be too few
_LENGTHS = (64, 48, 32, 24, 16, 12, 8)
_BY_STEP = {  # hours: window lengths that are whole days, weeks, years
    1.0: (48, 24, 12),
    3.0: (56, 40, 24, 16, 8),
    6.0: (28, 20, 12, 8),
    24.0: (28, 21, 14, 7),
    730.0: (24, 12),
}
_SHORTEST, _LEAST_PATCH = 4, 16  # windows; and edges of patches as long as there are other choices
_GOOD_RUNS, _MOST_TEST_RUNS = 12, 0.3  # held out, so that intervals tell; and the share where there are few
_FEW_YEARS = 1.5  # which have no seasons to speak of
_FEW_RUNS = 5  # below which none of them is held out whole
_COUNTED = 10**6  # windows above which their test share is not counted
_BLOCKS = 20  # blocks along a series that is cut into windows
_BLOCKS_OF_YEARS = 60  # and along one that has seasons, so that the test blocks lie in all of them
_PICTURES = 30  # samples without a time from which on they stay whole, even if few are held out
_MANY_NUMBERS = 2**22  # of a sample, above which windows are cut though there are samples enough


@dataclass(frozen=True)
class Sampling:
    """What the section ``[data]`` says of samples.

    Attributes
    ----------
    modes
        Dims of a sample, in order.
    sample_dim
        None where windows of one long field are the samples.
    size, stride
        Of windows, by dim.
    split
        The section ``[data.split]``.
    notes
        By key of ``[data]``: why.
    """

    modes: tuple[str, ...]
    sample_dim: str | None
    size: dict[str, int] = field(default_factory=dict)
    stride: dict[str, int] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def choose_samples(
    dataset: xr.Dataset, sizes: Mapping[str, int], given: Mapping[str, Any], *, beside: int = 1
) -> Sampling:
    """Choose the dim of samples, or windows, so that there are at least 50 test samples where the data have them.

    Parameters
    ----------
    sizes
        Dims of the fields, in order.
    given
        What is given of the section ``[data]``; ``sample_dim`` and ``windows`` are taken as they are.
    beside
        Variables that are put together in a sample.

    Raises
    ------
    SourceError
        Where no dim could be samples and none is long enough for windows.
    """
    meanings = {dim: meaning_of(dataset, dim) for dim in sizes}
    sample_dim, why = _sample_dim(sizes, meanings, given)
    if sample_dim is not None and sample_dim not in sizes:
        raise unknown_name("data.sample_dim", sample_dim, sizes, where="the source")
    modes = tuple(dim for dim in sizes if dim != sample_dim)
    if not modes:
        raise SourceError(f'the fields have no dim beside "{sample_dim}", so a sample would be one number.')
    notes = {"sample_dim": why} if sample_dim else {}
    n = sizes[sample_dim] if sample_dim else 1
    if given.get("windows", {}).get("size"):
        size, stride = dict(given["windows"]["size"]), dict(given["windows"].get("stride", {}))
        whole = Sampling(modes, sample_dim, size, stride, notes=notes)
        return _with_split(whole, sizes, dataset)
    numbers = beside * math.prod(sizes[mode] for mode in modes)
    whole = Sampling(modes, sample_dim, notes=notes)
    enough = n * _MOST_TEST >= FEW_TEST_SAMPLES or (n >= _PICTURES and "time" not in [meanings[mode] for mode in modes])
    if sample_dim and enough and numbers <= _MANY_NUMBERS:
        return _with_split(whole, sizes, dataset)
    found = _cut(whole, dataset, sizes, meanings)
    if found is not None:
        return found
    if sample_dim and n >= 3:
        return _with_split(whole, sizes, dataset)
    shown = ", ".join(f"{dim} {size}" for dim, size in sizes.items())
    raise SourceError(
        f"no dim of the fields ({shown}) has the 3 entries that samples need at least, and none is long enough to cut "
        "windows from. Give more data, several files as a glob for example, or name the dim of samples with "
        "--set data.sample_dim=NAME."
    )


def _sample_dim(
    sizes: Mapping[str, int], meanings: Mapping[str, Meaning], given: Mapping[str, Any]
) -> tuple[str | None, str]:
    """The dim of samples, and why; None where windows make the samples."""
    if given.get("sample_dim"):
        return str(given["sample_dim"]), "as given"
    named = [dim for dim, meaning in meanings.items() if meaning == "sample"]
    if named:
        chosen = max(named, key=lambda dim: sizes[dim])
        return chosen, f"{sizes[chosen]} entries"
    first = next(iter(sizes))
    if "time" in meanings.values():
        time = next(dim for dim, meaning in meanings.items() if meaning == "time")
        if meanings[first] == "unknown" and first != time and sizes[first] >= 3:
            return first, f"the first dim, whose {sizes[first]} entries are no place and no time"
        if len(sizes) > 2 and sizes[time] < 2 * _SHORTEST and sizes[time] >= 3:
            return time, f"{sizes[time]} times, too few to cut windows along time"
        return None, ""
    if meanings[first] == "unknown" and sizes[first] >= 3:
        return first, f"the first dim, whose {sizes[first]} entries are no place and no time"
    return None, ""


# --- windows ------------------------------------------------------------------------------------------------------


def _cut(
    whole: Sampling, dataset: xr.Dataset, sizes: Mapping[str, int], meanings: Mapping[str, Meaning]
) -> Sampling | None:
    """Windows along time, else along the two longest dims of space: the first choice with enough test samples."""
    best: tuple[float, Sampling] | None = None
    for size, stride in _candidates(whole, dataset, sizes, meanings):
        made = _with_split(Sampling(whole.modes, whole.sample_dim, size, stride, notes=whole.notes), sizes, dataset)
        train, test = count(made, sizes)
        worth = min(test, train / 3)  # test samples, as far as there are three times as many to train on
        if best is None or worth > best[0]:
            best = worth, made
        if worth >= FEW_TEST_SAMPLES:
            break
    if best is None or best[0] < 1:
        return None
    made = best[1]
    why = "the longest tried that gives" if best[0] >= FEW_TEST_SAMPLES else "no length tried gives"
    note = f"{_window_note(made, dataset)}; {why} {FEW_TEST_SAMPLES} test samples"
    notes = {**made.notes, "windows": note}
    return Sampling(made.modes, made.sample_dim, made.size, made.stride, made.split, notes)


def _window_note(made: Sampling, dataset: xr.Dataset) -> str:
    dim, length = next(iter(made.size.items()))
    step = made.stride.get(dim, length)
    if len(made.size) > 1:
        shape = " x ".join(map(str, made.size.values()))
        return f"a sample is a patch of {shape} points; the next one begins {step} point{'s' * (step > 1)} further"
    unit = step_in_words(hours_between(dataset, dim))
    of = "" if unit == "step" else f" of {unit if unit[0].isdigit() else f'a {unit}'}"
    return f"a sample is {length} steps{of} along {dim}; the next one begins {step} later"


def _candidates(
    whole: Sampling, dataset: xr.Dataset, sizes: Mapping[str, int], meanings: Mapping[str, Meaning]
) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Window sizes and strides: long windows first, side by side; then with ever more overlap; then short ones."""
    time = next((mode for mode in whole.modes if meanings[mode] == "time" and sizes[mode] >= 2 * _SHORTEST), None)
    if time is not None:
        lengths = [n for n in _lengths(dataset, time) if 2 * n <= sizes[time]]
        dims = [time]
    else:
        places = [mode for mode in whole.modes if meanings[mode] in ("space", "longitude", "unknown", "time")]
        places = places or list(whole.modes)
        dims = sorted(sorted(places, key=lambda mode: -sizes[mode])[:2], key=whole.modes.index)
        dims = [dim for dim in dims if sizes[dim] >= 2 * _SHORTEST]
        lengths = [n for n in _LENGTHS if all(3 * n <= sizes[dim] for dim in dims)]
    if not dims:
        return
    least = 1 if time is not None else _LEAST_PATCH
    long, short = [n for n in lengths if n >= least], [n for n in (*lengths, 6, _SHORTEST) if n < least]
    short = short or [n for n in (6, _SHORTEST) if n < min(lengths, default=8)]
    for chosen, parts in ((long, (1,)), (long, (2,)), (long, (4, 8)), (short, (1, 2, 4))):
        for length, part in itertools.product(chosen, parts):
            if length // part:
                yield dict.fromkeys(dims, length), ({} if part == 1 else dict.fromkeys(dims, length // part))


def _lengths(dataset: xr.Dataset, dim: str) -> tuple[int, ...]:
    hours = hours_between(dataset, dim) or 0.0
    natural = (lengths for step, lengths in _BY_STEP.items() if abs(hours - step) < 0.06 * step)
    return next(natural, _LENGTHS)


# --- the split ----------------------------------------------------------------------------------------------------


def _with_split(made: Sampling, sizes: Mapping[str, int], dataset: xr.Dataset) -> Sampling:
    """Hold out blocks of a series, whole runs of an ensemble, or samples."""
    entries = 0 if made.sample_dim is None else sizes[made.sample_dim]
    if made.size and entries < _FEW_RUNS:
        blocks = {}
        for dim, n in made.size.items():
            many = _BLOCKS if seasons(dataset, dim) < _FEW_YEARS else _BLOCKS_OF_YEARS
            blocks[dim] = _block(n, made.stride.get(dim, n), sizes[dim], len(made.size), many)
        shown, where = " x ".join(map(str, blocks.values())), " and ".join(blocks)
        why = f"whole blocks of {shown} points along {where} are held out; no window is in both parts"
        split: dict[str, Any] = {"by": "block", "test": _MOST_TEST, "block": blocks}
        if len(made.size) == 1:  # a series, whose neighbouring windows are alike
            split["gap"] = dict(made.size)
            why += ", and one window on either side of a block is left out"
    elif made.size:
        split = {"test": _share_of_runs(entries)}
        why = f"whole entries of {made.sample_dim} are held out, each with all its windows"
    else:
        split = {"test": _TEST if entries * _TEST >= FEW_TEST_SAMPLES else _MOST_TEST}
        why = "single samples are held out, chosen by the seed"
    return Sampling(made.modes, made.sample_dim, made.size, made.stride, split, {**made.notes, "split": why})


def _share_of_runs(runs: int) -> float:
    """The share of whole runs that is held out: more of few, which tell little.

    >>> [_share_of_runs(runs) for runs in (10, 40, 60, 100)]
    [0.3, 0.3, 0.2, 0.2]
    """
    return _MOST_TEST if runs * _MOST_TEST >= _GOOD_RUNS else _MOST_TEST_RUNS


def _block(size: int, stride: int, length: int, dims: int, many: int) -> int:
    """A block of some windows, of which there are about so many along a series that few windows lie across two."""
    many = many if 2 * stride >= size else many // 2  # windows that overlap more lie across two blocks more often
    wanted = length / (many if dims == 1 else max(2, round(math.sqrt(many))))
    return max(2 * size, stride * round(wanted / stride))


def count(made: Sampling, sizes: Mapping[str, int], seed: int = 0) -> tuple[int, int]:
    """About how many training and test samples a choice would give; none where it cannot be split."""
    stride = {dim: made.stride.get(dim, n) for dim, n in made.size.items()}
    entries = None if made.sample_dim is None else sizes[made.sample_dim]
    grid = Grid(entries, {dim: sizes[dim] for dim in made.size}, made.size, stride)
    total, share = math.prod(grid.shape), made.split["test"]
    if made.split.get("by") != "block" or total > _COUNTED:
        whole = entries if made.split.get("by") != "block" and entries else total
        test = max(1, round(whole * share)) * (total // whole)
        return total - test, test
    try:
        keep, is_test = splits.by_block(grid.cuts(), grid, Split.model_validate(made.split), seed)
    except SourceError:
        return 0, 0
    return int(np.count_nonzero(keep & ~is_test)), int(np.count_nonzero(keep & is_test))
