"""Many files as one data set, without Dask and without reading them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from diffats.errors import SourceError


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
    """Arrays of one shape along a new first axis."""

    def __init__(self, parts: Sequence[xr.Variable]) -> None:
        self.parts = list(parts)
        self.shape, self.dtype = (len(parts), *parts[0].shape), np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        chosen = self.parts[key[0]]
        if isinstance(chosen, xr.Variable):
            return np.asarray(chosen[key[1:]].values, dtype=self.dtype)
        empty = np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *key[1:])]
        pieces = [np.asarray(part[key[1:]].values, dtype=self.dtype)[None] for part in chosen]
        return np.concatenate([empty, *pieces])


def join(
    datasets: Sequence[xr.Dataset], names: Sequence[str], *, dim: str | None, sample_dim: str | None
) -> xr.Dataset:
    """One lazy data set of many.

    Files with the same variables are put one after the other along ``dim``, or along the one dim whose coordinate
    differs; a ``dim`` that no file has becomes a new dim, one file each. Files with different variables are merged.

    Raises
    ------
    SourceError
        Where the files do not fit together, or the dim cannot be told from their coordinates.
    """
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for index, dataset in enumerate(datasets):
        groups[frozenset(str(name) for name in dataset.data_vars)].append(index)
    joined = [
        _join_group([datasets[i] for i in members], [names[i] for i in members], dim, sample_dim)
        for members in groups.values()
    ]
    if len(joined) == 1:
        return joined[0]
    try:
        return xr.merge(joined, join="exact", compat="identical", combine_attrs="override")
    except (ValueError, xr.MergeError) as error:
        raise SourceError(
            f"data.source: {len(datasets)} files with different variables do not fit together: {error} "
            "Give a glob of files that share their coordinates."
        ) from error


def _join_group(datasets: list[xr.Dataset], names: list[str], dim: str | None, sample_dim: str | None) -> xr.Dataset:
    if len(datasets) == 1:
        return datasets[0]
    dim = dim or _differing_dim(datasets, names, sample_dim)
    if dim not in datasets[0].dims:
        return _stack(datasets, names, dim)
    for dataset, name in zip(datasets, names, strict=True):
        _check_fits(datasets[0], dataset, names[0], name, dim)
    order = _order(datasets, dim)
    parts = [datasets[i] for i in order]
    first = parts[0]
    variables = {
        name: _join_variable([part.variables[name] for part in parts], dim) if dim in var.dims else var
        for name, var in first.variables.items()
    }
    coords = {name: variables[name] for name in first.coords}
    joined = xr.Dataset({name: variables[name] for name in first.data_vars}, coords=coords, attrs=first.attrs)
    joined.encoding["parts"] = [(names[i], dim, int(datasets[i].sizes[dim])) for i in order]
    return joined


def _join_variable(parts: list[xr.Variable], dim: str) -> xr.Variable:
    if parts[0].ndim == 1:  # coordinates and the like: small, and cftime objects need no special care
        merged: xr.Variable = xr.Variable.concat([p.to_base_variable() for p in parts], dim)  # type: ignore[no-untyped-call]
        merged.encoding = dict(parts[0].encoding)
        return merged
    lazy = indexing.LazilyIndexedArray(JoinedArray(parts, parts[0].dims.index(dim)))
    return xr.Variable(parts[0].dims, lazy, parts[0].attrs, dict(parts[0].encoding))


def _stack(datasets: list[xr.Dataset], names: list[str], dim: str) -> xr.Dataset:
    along = _scalars(datasets, dim)
    if along is not None:
        order = [int(i) for i in np.argsort(along.to_index(), kind="stable")]
        datasets, names, along = [datasets[i] for i in order], [names[i] for i in order], along[order]
    first = datasets[0]
    for dataset, path in zip(datasets, names, strict=True):
        if dict(dataset.sizes) != dict(first.sizes):
            raise SourceError(
                f"data.source: {path} has dims {dict(dataset.sizes)}, but {names[0]} has {dict(first.sizes)}, so they "
                f'cannot be stacked along the new dim "{dim}". Give files of one shape, or another data.concat_dim.'
            )
        _check_alike(first, dataset, names[0], path, dim)
    variables: dict[Any, xr.Variable] = {}
    for name, var in first.data_vars.items():
        parts = [dataset.variables[name] for dataset in datasets]
        variables[name] = xr.Variable(
            (dim, *var.dims), indexing.LazilyIndexedArray(StackedArray(parts)), var.attrs, var.encoding
        )
    coords = {name: coord.variable for name, coord in first.coords.items()}
    joined = xr.Dataset(variables, coords=coords if along is None else {**coords, dim: along}, attrs=first.attrs)
    joined.encoding["parts"] = [(name, dim, 1) for name in names]
    return joined


def _scalars(datasets: list[xr.Dataset], dim: str) -> xr.Variable | None:
    """The coordinate along the new dim where each file has a single value of it, such as its time."""
    if not all(dim in dataset.coords and not dataset[dim].ndim for dataset in datasets):
        return None
    values = [xr.Variable((dim,), [dataset[dim].values[()]], dataset[dim].attrs) for dataset in datasets]
    merged: xr.Variable = xr.Variable.concat(values, dim)  # type: ignore[no-untyped-call]
    merged.encoding = dict(datasets[0][dim].encoding)
    return merged


def _differing_dim(datasets: list[xr.Dataset], names: list[str], sample_dim: str | None) -> str:
    first = datasets[0]
    differing = [
        str(dim)
        for dim in first.dims
        if dim in first.indexes and any(not _same_index(first, dataset, dim) for dataset in datasets[1:])
    ]
    if len(differing) == 1:
        return differing[0]
    if not differing and sample_dim is not None:
        return sample_dim
    found = f"several do ({', '.join(differing)})" if differing else "none does"
    raise SourceError(
        f"data.source: {len(datasets)} files ({names[0]}, ...) are joined along the dim whose coordinate differs, "
        f"but {found}. Set data.concat_dim."
    )


def _same_index(first: xr.Dataset, other: xr.Dataset, dim: object) -> bool:
    return dim in other.indexes and first.indexes[dim].equals(other.indexes[dim])


def _check_fits(first: xr.Dataset, other: xr.Dataset, first_name: str, name: str, dim: str) -> None:
    for other_dim, size in first.sizes.items():
        if other_dim == dim:
            continue
        got = other.sizes.get(other_dim)
        if got != size:
            raise SourceError(
                f'data.source: dim "{other_dim}" has {size} points in {first_name} but {got} in {name}; only "{dim}", '
                "along which files are joined, may differ. Narrow the glob, or set data.concat_dim."
            )
    _check_alike(first, other, first_name, name, dim)


def _check_alike(first: xr.Dataset, other: xr.Dataset, first_name: str, name: str, dim: str) -> None:
    """Refuse a file whose numbers mean something else than the first one's, or lie elsewhere."""
    for var, here in first.variables.items():
        if var not in other.variables:
            raise SourceError(
                f'data.source: "{var}" is in {first_name} but not in {name}. Narrow the glob to files of one kind.'
            )
        there = other.variables[var]
        for what, a, b in (
            ("dims", here.dims, there.dims),
            ("values that are", _kind(here), _kind(there)),
            ("units", here.attrs.get("units"), there.attrs.get("units")),
        ):
            if a != b and None not in (a, b):
                raise SourceError(
                    f'data.source: variable "{var}" has {what} {a} in {first_name} but {b} in {name}. '
                    "Narrow the glob to files of one kind, or convert them."
                )
        if var in first.indexes and dim not in here.dims and not _same_points(here, there):
            raise SourceError(
                f'data.source: coordinate "{var}" has other values in {name} than in {first_name}, and only those of '
                f'"{dim}", along which files are joined, may differ. Narrow the glob, or bring them onto one grid.'
            )


def _kind(variable: xr.Variable) -> str:
    """What decides whether values of two files can stand in one array: kinds of numbers do, calendars do not."""
    if variable.dtype.kind in "fiub":
        return "real numbers"
    calendar = getattr(variable.to_index(), "calendar", None) if variable.ndim == 1 else None
    return f"dates of calendar {calendar}" if calendar else str(variable.dtype.type.__name__)


def _same_points(a: xr.Variable, b: xr.Variable) -> bool:
    if a.dtype.kind in "fiub":  # files differ in their last digits where one of them was float32
        return bool(np.allclose(a.values, b.values, rtol=1e-5, atol=1e-8, equal_nan=True))
    return bool((a.values == b.values).all())


def _order(datasets: list[xr.Dataset], dim: str) -> list[int]:
    """By the first coordinate value where there is one (names need not sort like times), else as named."""
    if not all(dim in dataset.indexes and dataset.sizes[dim] for dataset in datasets):
        return list(range(len(datasets)))
    descending = all(
        len(dataset.indexes[dim]) > 1 and dataset.indexes[dim].is_monotonic_decreasing for dataset in datasets
    )
    firsts = [dataset.indexes[dim][0] for dataset in datasets]
    return sorted(range(len(datasets)), key=lambda i: firsts[i], reverse=descending)
