"""Stored arrays whose reading fails with an error of ours: a library's own says neither where nor what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import icechunk
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from diffats.errors import IntegrityError
from diffats.icechunk_releases import reason

#: What a damaged file raises on its way through Icechunk, the codecs and NumPy.
DAMAGE = (icechunk.IcechunkError, OSError, RuntimeError, ValueError, KeyError)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Say of damage what it is found in, and what to do.

    Raises
    ------
    IntegrityError
        In place of what damaged files raise.
    """
    try:
        yield
    except DAMAGE as error:
        raise IntegrityError(
            f"{what} cannot be read ({reason(error)}). `diffats verify` says what is damaged or lost. Bring it back, "
            "or run the stage that makes this group with --restart."
        ) from error


class _Read(BackendArray):
    """A variable of a group, read lazily."""

    def __init__(self, variable: xr.Variable, what: str) -> None:
        self.variable, self.what = variable, what
        # text of any length as objects: NumPy's own type for it cannot become text of one length
        self.shape, self.dtype = variable.shape, np.dtype(object) if variable.dtype.kind == "T" else variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        with reading(self.what):
            return np.asarray(self.variable[key].values, dtype=self.dtype)


def guarded(ds: xr.Dataset, where: str) -> xr.Dataset:
    """A lazy data set, with ``reading`` around whatever is read of it, and with text as objects."""
    ds = ds.assign_coords({name: _text_as_objects(ds.variables[name]) for name in ds.xindexes})
    variables = {name: _guard(var, f"{where}, variable {name}") for name, var in ds.variables.items()}
    variables |= {name: ds.variables[name] for name in ds.xindexes}
    coords = xr.Coordinates({name: variables[name] for name in ds.coords}, indexes=dict(ds.xindexes))
    out = xr.Dataset({name: variables[name] for name in ds.data_vars}, coords, ds.attrs)
    out.encoding = ds.encoding
    return out


def _text_as_objects(variable: xr.Variable) -> xr.Variable:
    if variable.dtype.kind != "T":
        return variable
    return xr.Variable(variable.dims, variable.values.astype(object), variable.attrs, variable.encoding)


def _guard(variable: xr.Variable, what: str) -> xr.Variable:
    lazy: Any = indexing.LazilyIndexedArray(_Read(variable, what))
    return xr.Variable(variable.dims, indexing.CopyOnWriteArray(lazy), variable.attrs, variable.encoding)
