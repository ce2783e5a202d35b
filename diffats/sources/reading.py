"""Reading many windows with few reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from diffats.sources.cuts import Cuts
from diffats.sources.unreadable import values_of

_SLAB_BYTES = 128 * 2**20  # a slab held in memory beside the samples it is cut into
_WASTE = 2  # a slab may cost at most this many times what its windows cost one by one

Array = np.ndarray[Any, Any]


def read_windows(
    array: xr.DataArray,
    cuts: Cuts,
    *,
    sample_dim: str | None,
    dims: Sequence[str],
    dtype: Any = None,
    convert: Callable[[Array], Array] = np.asarray,
) -> Array:
    """Windows of a lazy array, ``(k, *dims)``.

    Neighbouring windows are read as one slab and cut in memory, since overlapping windows (and windows in one chunk)
    would otherwise be read and decompressed many times.

    Parameters
    ----------
    array
        With ``dims``, and ``sample_dim`` or not.
    cuts
        Places of the ``k`` samples.
    dtype
        Of the result; the array's own where left out.
    convert
        Applied to each slab, elementwise, before cutting.
    """
    moving = [dim for dim in (sample_dim, *cuts.size) if dim is not None and dim in array.dims]
    order = [*moving, *(dim for dim in dims if dim not in moving)]
    kept = [dim for dim in order if dim != sample_dim]
    shape = tuple(cuts.size.get(dim, array.sizes[dim]) for dim in kept)
    out = np.empty((cuts.n, *shape), dtype=dtype if dtype is not None else array.dtype)
    low = np.stack([_start(cuts, dim, sample_dim) for dim in moving], axis=1) if moving else np.zeros((cuts.n, 0), int)
    extent = np.array([1 if dim == sample_dim else cuts.size[dim] for dim in moving], dtype=np.int64)
    chunk = np.array([_chunk(array, dim) for dim in moving], dtype=np.int64)
    item = out.dtype.itemsize * math.prod(array.sizes[dim] for dim in order[len(moving) :])
    for members, start, stop in slabs(low, extent, chunk, limit=max(1, _SLAB_BYTES // max(1, item))):
        where = {dim: slice(int(a), int(b)) for dim, a, b in zip(moving, start, stop, strict=True)}
        block = convert(values_of(array.isel(where).transpose(*order)))
        for i in members:
            out[i] = block[
                tuple(_inside(dim, a, n, sample_dim) for dim, a, n in zip(moving, low[i] - start, extent, strict=True))
            ]
    axes = [kept.index(dim) for dim in dims]
    return np.ascontiguousarray(out.transpose(0, *(axis + 1 for axis in axes)))


def _start(cuts: Cuts, dim: str, sample_dim: str | None) -> Array:
    start = cuts.position if dim == sample_dim else cuts.starts[dim]
    assert start is not None
    return start


def _inside(dim: str, start: int, length: int, sample_dim: str | None) -> int | slice:
    return int(start) if dim == sample_dim else slice(int(start), int(start + length))


def _chunk(array: xr.DataArray, dim: str) -> int:
    sizes = array.encoding.get("preferred_chunks") or {}
    return int(sizes.get(dim) or 1)


def slabs(low: Array, extent: Array, chunk: Array, *, limit: int) -> Iterator[tuple[list[int], Array, Array]]:
    """Group boxes ``low .. low + extent`` (k, m) into slabs: members, start and stop of each.

    A slab grows while what must be decoded for it stays within twice the sum over its boxes, and it stays within
    ``limit`` points.

    >>> boxes = np.array([[0], [2], [4], [90]])
    >>> [(members, int(a[0]), int(b[0])) for members, a, b in slabs(boxes, np.array([4]), np.array([1]), limit=100)]
    [([0, 1, 2], 0, 8), ([3], 90, 94)]
    """
    members: list[int] = []
    start = stop = np.zeros(0, dtype=np.int64)
    spent = 0
    for i in np.lexsort(low.T[::-1]) if low.shape[1] else np.arange(len(low)):
        box, end = low[i], low[i] + extent
        cost = _decoded(box, end, chunk)
        a, b = (np.minimum(start, box), np.maximum(stop, end)) if members else (box, end)
        if members and (_decoded(a, b, chunk) > _WASTE * (spent + cost) or math.prod((b - a).tolist()) > limit):
            yield members, start, stop
            members, spent, a, b = [], 0, box, end
        members.append(int(i))
        start, stop, spent = a, b, spent + cost
    if members:
        yield members, start, stop


def _decoded(start: Array, stop: Array, chunk: Array) -> int:
    """Points in the chunks that a box touches."""
    return math.prod((-(-stop // chunk) * chunk - start // chunk * chunk).tolist())
