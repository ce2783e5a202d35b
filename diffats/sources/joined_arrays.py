"""Arrays of many files as one array that is read piece by piece."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from diffats.sources.unreadable import values_of


class JoinedArray(BackendArray):
    """Arrays one after the other along an axis; a slice touches only the parts it needs."""

    def __init__(self, parts: Sequence[xr.Variable], axis: int) -> None:
        self.parts, self.axis = list(parts), axis
        lengths = [part.shape[axis] for part in parts]
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
        shape = list(parts[0].shape)
        shape[axis] = int(self.offsets[-1])
        self.shape, self.dtype = tuple(shape), np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        along = key[self.axis]
        if not isinstance(along, slice):
            part = int(np.searchsorted(self.offsets, along, side="right")) - 1
            return self._part(part, key, int(along) - int(self.offsets[part]))
        start, stop, step = along.indices(self.shape[self.axis])
        pieces = []
        for part in range(len(self.parts)):
            low, high = int(self.offsets[part]), int(self.offsets[part + 1])
            first = max(start, start + -(-(low - start) // step) * step)  # the first index of the slice at or after low
            if first < min(stop, high):
                pieces.append(self._part(part, key, slice(first - low, min(stop, high) - low, step)))
        if not pieces:
            return self._part(0, key, slice(0, 0))
        return np.concatenate(pieces, axis=self.axis - sum(not isinstance(k, slice) for k in key[: self.axis]))

    def _part(self, part: int, key: tuple[Any, ...], along: int | slice) -> np.ndarray[Any, Any]:
        picked = self.parts[part][(*key[: self.axis], along, *key[self.axis + 1 :])]
        return np.asarray(picked.values, dtype=self.dtype)


class StackedArray(BackendArray):
    """Arrays of one shape along a new first axis, each at as many entries as it has ``lengths``."""

    def __init__(self, parts: Sequence[xr.Variable], lengths: Sequence[int]) -> None:
        self.parts, self.part_of = list(parts), np.repeat(np.arange(len(parts)), lengths)
        self.shape = (len(self.part_of), *parts[0].shape)
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        chosen = self.part_of[key[0]]
        if not isinstance(key[0], slice):
            return self._part(int(chosen), key)
        if not len(chosen):
            return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *key[1:])]
        numbers, places = np.unique(chosen, return_inverse=True)
        pieces = np.stack([self._part(int(number), key) for number in numbers])
        return pieces if np.array_equal(places, np.arange(len(pieces))) else np.asarray(pieces[places])

    def _part(self, number: int, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        return np.asarray(self.parts[number][key[1:]].values, dtype=self.dtype)


class TurnedArray(BackendArray):
    """An array with its axes in another order."""

    def __init__(self, whole: xr.Variable, dims: Sequence[Hashable]) -> None:
        self.whole, self.axes = whole, [whole.dims.index(dim) for dim in dims]
        self.shape, self.dtype = tuple(whole.shape[axis] for axis in self.axes), whole.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        inner: list[Any] = [slice(None)] * len(key)
        for axis, k in zip(self.axes, key, strict=True):
            inner[axis] = k if isinstance(k, slice) else slice(int(k), int(k) + 1)
        turned = np.asarray(self.whole[tuple(inner)].values).transpose(self.axes)
        return np.asarray(turned[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)])


def joined(parts: Sequence[xr.Variable], dim: Hashable) -> xr.Variable:
    """Variables one after the other along one of their dims."""
    if parts[0].ndim == 1:  # coordinates and the like: small, and cftime objects need no special care
        merged: xr.Variable = xr.Variable.concat([p.to_base_variable() for p in parts], dim)  # type: ignore[no-untyped-call]
        merged.encoding = dict(parts[0].encoding)
        return merged
    lazy = indexing.LazilyIndexedArray(JoinedArray(parts, parts[0].dims.index(dim)))
    return xr.Variable(parts[0].dims, lazy, parts[0].attrs, dict(parts[0].encoding))


def stacked(parts: Sequence[xr.Variable], dim: Hashable, lengths: Sequence[int]) -> xr.Variable:
    """Variables along a new dim, each at as many entries as it has ``lengths``."""
    lazy = indexing.LazilyIndexedArray(StackedArray(parts, lengths))
    return xr.Variable((dim, *parts[0].dims), lazy, parts[0].attrs, dict(parts[0].encoding))


def repeated(parts: Sequence[xr.Variable], dim: Hashable, lengths: Sequence[int]) -> xr.Variable:
    """Single values along a new dim, each at as many entries as it has ``lengths``; they are read now."""
    values = [xr.Variable((dim,), [values_of(part)[()]], part.attrs) for part in parts]
    merged: xr.Variable = xr.Variable.concat(values, dim)  # type: ignore[no-untyped-call]
    merged = merged[np.repeat(np.arange(len(parts)), lengths)]
    merged.encoding = dict(parts[0].encoding)
    return merged


def turned(variable: xr.Variable, dims: Sequence[Hashable]) -> xr.Variable:
    """A variable with its dims in another order."""
    lazy = indexing.LazilyIndexedArray(TurnedArray(variable, dims))
    return xr.Variable(dims, lazy, variable.attrs, dict(variable.encoding))
