"""What a sample is generated from, as read from the source: labels, scalars and fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from diffats.attributes import valid_text
from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources.cuts import Cuts
from diffats.sources.reading import read_windows
from diffats.sources.unreadable import values_of

Array = np.ndarray[Any, Any]
_PIECE_BYTES = 64 * 2**20
_MANY_CLASSES = 1000


@dataclass(frozen=True)
class Labels:
    """The classes of a label variable, ascending, and their names; the last is of missing values if ``has_missing``."""

    classes: Array
    names: tuple[str, ...]
    has_missing: bool

    def codes(self, values: Array) -> Array:
        """The class number of each value, int64.

        Raises
        ------
        SourceError
            Where a value is not among the classes (``flag_values`` that do not cover the data).
        """
        plain, missing = _plain(values)
        codes = np.clip(np.searchsorted(self.classes, plain), 0, len(self.classes) - 1)
        wrong = (self.classes[codes] != plain) & ~missing
        if wrong.any() or (missing.any() and not self.has_missing):
            shown = plain[wrong].ravel()[0] if wrong.any() else "a missing value"
            raise SourceError(
                f"data.condition.labels: {shown} is not among the variable's flag_values ({_listed(self.classes)}). "
                "Correct flag_values, or remove it and flag_meanings."
            )
        return np.where(missing, len(self.classes), codes).astype(np.int64)


def find_labels(array: xr.DataArray) -> Labels:
    """The classes of a label variable: its CF ``flag_values``, or else its distinct values, read in pieces.

    Raises
    ------
    SourceError
        Where it holds no classes.
    """
    flags, meanings = array.attrs.get("flag_values"), array.attrs.get("flag_meanings")
    if flags is not None and array.dtype.kind in "iufb":
        values = np.unique(np.atleast_1d(flags))
        given = str(meanings or "").split()
        order = np.argsort(np.atleast_1d(flags), kind="stable")
        named = [given[i] for i in order] if len(given) == len(order) == len(values) else _names(values)
        has_missing = array.dtype.kind == "f"
        return Labels(values, _with_missing(named, has_missing), has_missing)
    distinct: Array | None = None
    has_missing = False
    for piece in _pieces(array):
        plain, missing = _plain(piece)
        found = np.unique(plain[~missing])
        distinct = found if distinct is None else np.union1d(distinct, found)
        has_missing |= bool(missing.any())
        if len(distinct) > _MANY_CLASSES:
            raise SourceError(
                f'data.condition.labels: "{array.name}" has more than {_MANY_CLASSES} distinct values, '
                "so it is no class. Name it in data.condition.scalars."
            )
    if distinct is None or not len(distinct):
        raise SourceError(f'data.condition.labels: "{array.name}" holds no values. Name a variable with classes.')
    return Labels(distinct, _with_missing(_names(distinct), has_missing), has_missing)


def _names(classes: Array) -> list[str]:
    """A name for each class; of numbers as short as keeps them apart.

    >>> _names(np.array([1.0, 2.5])), _names(np.array([1000001.0, 1000002.0]))
    (['1', '2.5'], ['1000001', '1000002'])
    """
    if classes.dtype.kind != "f":
        return [str(value) for value in classes]
    short = [f"{value:g}" for value in classes]
    return short if len(set(short)) == len(short) else [f"{value:.17g}" for value in classes]


def _with_missing(names: Sequence[str], has_missing: bool) -> tuple[str, ...]:
    """The names, and last that of the class of missing values, which no other has."""
    last = "missing"
    while last in names:
        last = f"({last})"
    return (*names, last) if has_missing else tuple(names)


def _pieces(array: xr.DataArray) -> Iterator[Array]:
    if not array.ndim:
        yield values_of(array).reshape(1)
        return
    row = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    step = max(1, _PIECE_BYTES // row)
    for start in range(0, array.shape[0], step):
        yield values_of(array[start : start + step])


def _plain(values: Array) -> tuple[Array, Any]:
    """Values that compare, and where they are missing (NaN, None, an empty string)."""
    if values.dtype.kind in "OTUS":
        flat = [_text(value) for value in values.ravel()]
        text = np.array(flat, dtype=str).reshape(values.shape)
        return text, text == ""
    if values.dtype.kind == "f":
        missing = np.isnan(values)
        return np.where(missing, 0, values), missing
    return values, np.zeros(values.shape, dtype=bool)


def _text(value: Any) -> str:
    if isinstance(value, str | bytes):
        return valid_text(value)
    return "" if value is None or value != value else str(value)


def _listed(values: Array) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def read_labels(array: xr.DataArray, labels: Labels, cuts: Cuts, sample_dim: str | None) -> Array:
    """The majority class of each sample, the lowest code on ties. ``(k,)`` int64."""
    dims = [str(dim) for dim in array.dims if dim != sample_dim]
    codes = read_windows(array, cuts, sample_dim=sample_dim, dims=dims, dtype=np.int64, convert=labels.codes)
    flat = codes.reshape(cuts.n, math.prod(codes.shape[1:]))  # of a shard without training samples, too
    counts = np.stack([(flat == code).sum(axis=1) for code in range(len(labels.names))], axis=1)
    return np.asarray(counts.argmax(axis=1), dtype=np.int64)


def read_scalar(array: xr.DataArray, cuts: Cuts, sample_dim: str | None) -> Array:
    """One number a sample, float64 ``(k,)``: its own, the constant, or the mean over its window."""
    dims = [str(dim) for dim in array.dims if dim != sample_dim]
    values = read_windows(array, cuts, sample_dim=sample_dim, dims=dims, dtype=np.float64)
    return np.asarray(values.reshape(cuts.n, math.prod(values.shape[1:])).mean(axis=1))


def check_conditions(dataset: xr.Dataset, data: Data, cut: tuple[str, ...], clocks: tuple[str, ...] = ()) -> None:
    """Refuse conditions that cannot be read; only metadata and per-sample scalars are looked at, but no clocks.

    Raises
    ------
    SourceError
        Where a dim, a dtype or a value does not do.
    """
    moving = (data.sample_dim, *cut)
    for name in (name for name in data.condition.scalars if name not in clocks):
        array = dataset[name]
        _check_numbers(array, "data.condition.scalars")
        extra = [str(dim) for dim in array.dims if dim not in moving]
        if extra:
            raise SourceError(
                f'data.condition.scalars: "{name}" has dim "{extra[0]}" ({_dims(array)}), '
                "but a scalar is one number a sample. Name it in data.condition.fields."
            )
        if array.dims in ((), (data.sample_dim,)) and array.dtype.kind == "f":
            missing = int(np.isnan(values_of(array)).sum())
            if missing:
                raise SourceError(
                    f'data.condition.scalars: "{name}" is missing for {missing} of {array.size} samples. '
                    "Fill it, or leave it out."
                )
    for name in data.condition.fields:
        _check_numbers(dataset[name], "data.condition.fields")
    label = data.condition.labels
    if label and dataset[label].dtype.kind in "cmMV":
        raise SourceError(
            f'data.condition.labels: "{label}" is {dataset[label].dtype}, expected integers, text or numbers for '
            "classes. Name another variable."
        )


def _check_numbers(array: xr.DataArray, key: str) -> None:
    if array.dtype.kind not in "fiub":
        raise SourceError(
            f'{key}: "{array.name}" is {array.dtype}, expected real numbers. '
            + (
                "Name it in data.condition.labels."
                if array.dtype.kind in "OTUS"
                else "Convert it to numbers, or leave it out."
            )
        )


def _dims(array: xr.DataArray) -> str:
    return ", ".join(f"{dim}={n}" for dim, n in array.sizes.items())
