"""How the two sides of a split lie to each other, for people: counts, the gap, what is held out, what is doubtful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from diffats.sources import spacing, splits
from diffats.sources.samples import Samples
from diffats.sources.unreadable import values_of

Array = np.ndarray[Any, Any]

FEW_TEST_SAMPLES = 50
_SHOWN, _SHOWN_ENDS = 5, 3
_ONE = {"entries": "entry", "stretches": "stretch", "blocks": "block", "windows": "window"}


def describe(samples: Samples) -> dict[str, Any]:
    """What a split has made, as JSON-able data.

    Returns
    -------
    dict
        ``by`` and ``holds_out`` (`Samples.holds_out`); ``share`` of the samples that are test samples; ``test_groups``
        in which these may depend on each other; ``gaps`` by dim (see `gaps`); ``held_out``, with ``along`` (dims),
        ``kind``, ``count`` and the first few as text in ``first``.

    >>> import tempfile, pathlib
    >>> from diffats.config import Data
    >>> from diffats.sources import open_samples
    >>> path = pathlib.Path(tempfile.mkdtemp(), "series.npy")
    >>> np.save(path, np.arange(240.0).reshape(120, 2))
    >>> data = Data(source=str(path), modes=["t", "x"], windows={"size": {"t": 4}},
    ...             split={"by": "coordinate", "coordinate": "t"})
    >>> found = describe(open_samples(data))
    >>> found["test_groups"], found["gaps"]["t"]["points"], found["held_out"]["first"]
    (3, 0, ['108 .. 119'])
    """
    return {
        "by": samples.data.split.by,
        "holds_out": samples.holds_out,
        "share": float(samples.is_test.mean()),
        "test_groups": len(np.unique(samples.groups(np.flatnonzero(samples.is_test)))),
        "gaps": gaps(samples),
        "held_out": held_out(samples),
    }


def cautions(samples: Samples) -> list[str]:
    """What a reader of test figures should know, one sentence each."""
    found, split = [], samples.data.split
    test = int(samples.is_test.sum())
    groups = len(np.unique(samples.groups(np.flatnonzero(samples.is_test))))
    if test < FEW_TEST_SAMPLES:
        found.append(f"Only {test} test samples: differences may be chance; have {FEW_TEST_SAMPLES} or more.")
    elif groups < FEW_TEST_SAMPLES:
        found.append(
            f"The {test} test samples make {groups} group{'s' if groups > 1 else ''} that do not depend on each other: "
            f"figures may be as uncertain as those of {groups} sample{'s' if groups > 1 else ''}."
        )
    share = test / samples.n
    if not split.values and not samples.data.grows and not split.test / 2 <= share <= 2 * split.test:
        found.append(f"{share:.0%} of the samples are test samples, and data.split.test asks for {split.test:.0%}.")
    return found


# --- the gap ------------------------------------------------------------------------------------------------------


def gaps(samples: Samples) -> dict[str, dict[str, Any]]:
    """How far apart training and test samples are that face each other, where any do.

    Along windowed dims, and along a dim of samples that is time; other entries of a dim of samples are no distance
    apart.

    Returns
    -------
    dict
        By dim: the fewest ``points`` between two of them; how far their nearest points are apart by the dim's
        coordinate (``distance`` in ``unit``; seconds of times), None where it has no numbers or times.
    """
    places, found = _lying(samples), {}
    for dim, start in places.items():
        if dim == samples.data.sample_dim and not is_time(samples, dim):
            continue
        before, after = _facing(dim, places, samples.is_test)
        if len(before):
            last = start[before] + samples.grid.size.get(dim, 1) - 1
            distance, unit = _distance(samples, dim, last, start[after])
            found[dim] = {"points": int((start[after] - last).min()) - 1, "distance": distance, "unit": unit}
    return found


def _lying(samples: Samples) -> dict[str, Array]:
    """Where samples lie along the dim of samples and along windowed dims."""
    position, dim = samples.position, samples.data.sample_dim
    return ({} if dim is None or position is None else {dim: position}) | samples.starts


def is_time(samples: Samples, dim: str) -> bool:
    """Whether the coordinate of a dim holds times."""
    values = values_of(samples.dataset[dim])[:2] if dim in samples.dataset.indexes else np.zeros(0)
    return values.dtype.kind in "MO" and spacing.differences(values) is not None


def _facing(dim: str, places: dict[str, Array], is_test: Array) -> tuple[Array, Array]:
    """Pairs of samples of two sides, one after the other along a dim, that lie alike along all others."""
    others = [place for name, place in places.items() if name != dim]
    order = np.lexsort((places[dim], *others))
    alike = np.ones(len(order) - 1, bool)
    for place in others:
        alike &= np.diff(place[order]) == 0
    pairs = np.flatnonzero(alike & (is_test[order[1:]] != is_test[order[:-1]]))
    return order[pairs], order[pairs + 1]


def _distance(samples: Samples, dim: str, last: Array, first: Array) -> tuple[float | None, str | None]:
    """The least distance by the dim's coordinate between points, and its unit."""
    if dim not in samples.dataset.indexes:
        return None, None
    coord = samples.dataset[dim]
    values = values_of(coord)
    if spacing.differences(values[:2]) is None:
        return None, None
    steps = np.abs(values[first] - values[last])
    if values.dtype.kind in "MmO":
        return float(np.min(steps.astype("m8[us]")) / np.timedelta64(1, "s")), "s"
    return float(steps.min()), str(coord.attrs.get("units", ""))


# --- what is held out ---------------------------------------------------------------------------------------------


def held_out(samples: Samples) -> dict[str, Any]:
    """Which runs, or stretches of which dims, are held out: see `describe`."""
    dim, position = samples.data.sample_dim, samples.position
    if dim is not None and position is not None:
        runs = np.unique(position[samples.is_test])
        if not np.isin(runs, position[~samples.is_test]).any():
            return _entries(samples, dim, runs)
    for dim in samples.starts:
        stretches = _stretches(samples, dim)
        if stretches is not None:
            shown = [_between(samples, dim, *ends) for ends in stretches[:_SHOWN_ENDS]]
            return {"along": [dim], "kind": "stretches", "count": len(stretches), "first": shown}
    return _boxes(samples)


def held_out_text(held: Mapping[str, Any]) -> str:
    """What `held_out` found, in words.

    >>> held_out_text({"kind": "entries", "along": ["run"], "count": 9, "first": ["3", "7"]})
    '9 entries of run: 3, 7 and 7 more'
    """
    first, count = held["first"], held["count"]
    kind = held["kind"] if count > 1 else _ONE[held["kind"]]
    named = (", " if held["kind"] == "entries" else "; ").join(first)
    more = f" and {count - len(first)} more" if 1 < len(first) < count else ""
    return f"{count} {kind} of {', '.join(held['along'])}: {named}{more}"


def _entries(samples: Samples, dim: str, runs: Array) -> dict[str, Any]:
    """Entries of the dim of samples, or the groups that they are in: the ends where they stand together in order."""
    name = samples.data.split.group or dim
    values = values_of(samples.dataset[name])[runs] if name in samples.dataset.variables else runs
    labels = list(dict.fromkeys(_text(value) for value in values))
    if name == dim and len(runs) > 2 and int(np.ptp(runs)) == len(runs) - 1:
        return {"along": [dim], "kind": "entries", "count": len(runs), "first": [f"{labels[0]} .. {labels[-1]}"]}
    return {"along": [name], "kind": "entries", "count": len(labels), "first": labels[:_SHOWN]}


def _stretches(samples: Samples, dim: str) -> list[tuple[int, int]] | None:
    """First and last points of the stretches of a dim that test windows cover; None where training windows do, too."""
    length, size = samples.grid.length[dim], samples.sizes[dim]
    test, train = (_covered(samples.starts[dim][side], size, length) for side in (samples.is_test, ~samples.is_test))
    if (test & train).any():
        return None
    edges = np.flatnonzero(np.diff(np.concatenate([[False], test, [False]]).astype(np.int8)))
    return [(int(first), int(stop) - 1) for first, stop in edges.reshape(-1, 2)]


def _covered(starts: Array, size: int, length: int) -> Array:
    """Which points some window covers."""
    ends = np.bincount(starts, minlength=length + 1) - np.bincount(starts + size, minlength=length + 1)
    return np.asarray(ends[:length].cumsum() > 0)


def _boxes(samples: Samples) -> dict[str, Any]:
    """Held-out blocks of several dims; windows where no blocks are."""
    test = samples.places.take(np.flatnonzero(samples.is_test))
    grid, split, grows = samples.grid, samples.data.split, samples.data.grows
    kind = "blocks" if samples.holds_out == "blocks" else "windows"
    if kind == "blocks":
        lengths, counts = splits.block_lengths(grid, split), splits.block_counts(grid, split, grows=grows)
        numbers = splits.block_numbers(test, grid, split, grows=grows)
        ends = {d: np.where(n == counts[d] - 1, grid.length[d], (n + 1) * lengths[d]) for d, n in numbers.items()}
        starts = {d: n * lengths[d] for d, n in numbers.items()}
    else:
        starts, ends = dict(test.starts), {d: start + grid.size[d] for d, start in test.starts.items()}
    boxes = np.unique(np.stack([[starts[d], ends[d] - 1] for d in starts]).transpose(2, 0, 1), axis=0)
    shown = [
        ", ".join(f"{d} {_between(samples, d, *box[i])}" for i, d in enumerate(starts)) for box in boxes[:_SHOWN_ENDS]
    ]
    return {"along": list(starts), "kind": kind, "count": len(boxes), "first": shown}


def _between(samples: Samples, dim: str, first: int, last: int) -> str:
    coord = samples.dataset[dim] if dim in samples.dataset.indexes else xr.DataArray(np.arange(last + 1), dims=[dim])
    return f"{_text(values_of(coord[first]))} .. {_text(values_of(coord[last]))}"


def _text(value: Any) -> str:
    """A coordinate's value for people: times as long as they need be."""
    value = value.item() if isinstance(value, np.ndarray) and value.dtype.kind in "OTUSb" else value
    if np.asarray(value).dtype.kind == "M":
        return str(np.datetime_as_string(np.asarray(value), unit="auto"))
    if np.asarray(value).dtype.kind == "f":
        return f"{float(value):.6g}"
    return str(value.decode() if isinstance(value, bytes) else value)
