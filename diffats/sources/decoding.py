"""Opening with xarray's engines, as all sources are opened: lazily, decoded, without what nobody can read."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import H5NetCDFStore, ZarrStore

from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources import missing
from diffats.sources.safety import zarr_members
from diffats.sources.unreadable import reason, unreadable

# ecCodes brings an old SQLite, whose functions would serve Python's sqlite3, and MLflow, where it is loaded first.
with contextlib.suppress(ImportError):
    import sqlite3  # noqa: F401

logger = logging.getLogger("diffats.sources")
_SCALAR = re.compile("dimension '(.+)' already exists as a scalar variable")  # as xarray says it


def open_xarray(target: Any, **options: Any) -> xr.Dataset:
    """What an engine of xarray opens, or a store of one, decoded by CF conventions.

    Whatever the attributes of a field say of missing values counts. Times that xarray cannot decode stay numbers, with
    a warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnicodeWarning)  # with_valid_text says of all of it how it is read
        raw = _open_raw(target, options)
        if isinstance(target, WholeZarr | ReadableZarr):
            raw = missing.with_zarr_fills(raw, target.zarr_arrays)
        return _decoded(raw)


def _open_raw(target: Any, options: Mapping[str, Any]) -> xr.Dataset:
    """A data set as it is stored, but for single numbers that have the name of a dim; nothing that is read is kept."""
    left: list[str] = []
    while True:
        try:
            raw = xr.open_dataset(target, chunks=None, cache=False, decode_cf=False, drop_variables=left, **options)
        except ValueError as error:
            scalar = _SCALAR.search(str(error))
            if scalar is None or scalar[1] in left:
                raise
            left.append(scalar[1])
        else:
            fix = "a dim of it has the same name. Rename it in the source to use it"
            raw.encoding["notes"] = {
                f'"{name}" is a single number and left out, since {fix}': "ignored" for name in left
            }
            return raw


def _decoded(raw: xr.Dataset) -> xr.Dataset:
    """A stored data set by CF conventions."""
    conforming = missing.conform(raw)
    # decode_coords="all": bounds and grid mappings are coordinates, not fields;
    # decode_timedelta=False: a field in units of "days" stays a number
    settings: dict[str, Any] = {"decode_coords": "all", "decode_timedelta": False}
    try:
        return xr.decode_cf(conforming, **settings)
    except ValueError as error:
        dataset = xr.decode_cf(conforming, decode_times=False, **settings)
        timed = [name for name, variable in dataset.variables.items() if " since " in str(variable.attrs.get("units"))]
        if not any(_is_undecodable(dataset.variables[name]) for name in timed):
            raise
        logger.warning("data.source: times stay numbers, because %s.", reason(error))
        for name in timed:  # under this name nothing that reads the stores tries again
            attrs = dataset.variables[name].attrs
            attrs["undecoded_units"] = attrs.pop("units")
        return dataset


def _is_undecodable(variable: xr.Variable) -> bool:
    """Whether xarray cannot make times of a variable, e.g. of months since; it looks at the ends, as xarray does."""
    ends = variable.isel({dim: slice(None, None, max(1, size - 1)) for dim, size in variable.sizes.items()})
    alone = xr.Variable(ends.dims, ends.values, ends.attrs)  # read here: damage is no matter of units
    try:
        xr.decode_cf(xr.Dataset({"times": alone}))
    except ValueError:
        return True
    return False


def open_zarr(place: Any, path: str, data: Data, **options: Any) -> xr.Dataset:
    """A Zarr group at a path or in a store: with all its arrays, or those that can be read."""
    # xr.open_dataset does not pass the fill value's option on
    how: dict[str, Any] = {"mode": "r", "use_zarr_fill_value_as_mask": True, **options}
    whole = partial(WholeZarr.open_group, place, **how)
    return open_readable(
        lambda: open_xarray(whole()), partial(ReadableZarr.open_group, place, cache_members=False, **how), path, data
    )


class WholeZarr(ZarrStore):
    """A Zarr group with its arrays."""

    @cached_property
    def zarr_arrays(self) -> dict[str, Any]:
        """By name."""
        return dict(self.zarr_group.arrays())


class ReadableZarr(ZarrStore):
    """A Zarr group without the arrays that cannot be read; ``failed`` says why of each, once it was loaded."""

    @cached_property
    def zarr_arrays(self) -> dict[str, Any]:
        """Those that can be read, by name."""
        return {name: member for name, member in self.members.items() if isinstance(member, zarr.Array)}

    @cached_property
    def members(self) -> dict[str, Any]:
        """Arrays and groups whose metadata can be read."""
        found, self.unknown = zarr_members(self.zarr_group)
        return found

    def get_variables(self) -> dict[str, xr.Variable]:
        """The arrays that can be read."""
        found, self.failed = _readable(self.array_keys(), self.open_store_variable)
        self.failed |= self.unknown
        return found


class ReadableHDF5(H5NetCDFStore):
    """An HDF5 group without the arrays that cannot be read; ``failed`` says why of each, once it was loaded."""

    def get_variables(self) -> dict[str, xr.Variable]:
        """The arrays that can be read."""
        found, self.failed = _readable(list(self.ds.variables), self._open)
        return found

    def _open(self, name: str) -> xr.Variable:
        variable: xr.Variable = self.open_store_variable(name, self.ds.variables[name])  # type: ignore[no-untyped-call]
        return variable


def _readable(
    names: Iterable[str], opens: Callable[[str], xr.Variable]
) -> tuple[dict[str, xr.Variable], dict[str, str]]:
    found, failed = {}, {}
    for name in names:
        try:
            variable = opens(name)
            if variable.dims == (name,):
                np.asarray(variable.values)  # as xarray does when it opens
        except unreadable() as error:
            failed[name] = reason(error)
        else:
            found[name] = variable
    return found, failed


def open_readable(
    opens: Callable[[], xr.Dataset], store: Callable[[], ReadableZarr | ReadableHDF5], path: str, data: Data
) -> xr.Dataset:
    """What ``opens`` opens, with all arrays; where that fails, what ``store`` can read, with a warning of the rest.

    Raises
    ------
    SourceError
        Where the recipe names an array that cannot be read.
    """
    try:
        return opens()
    except unreadable():
        readable = store()
        dataset = open_xarray(readable)
        if not readable.failed or not dataset.variables:
            raise
    for name in _named(data).intersection(readable.failed):
        raise SourceError(
            f'data.source "{path}": array "{name}" cannot be read: {readable.failed[name]}. Write it anew, with names '
            "for its dims; xarray's to_zarr and to_netcdf do that."
        )
    for name, why in readable.failed.items():
        logger.warning('data.source: array "%s" of %s is passed over, because it cannot be read: %s.', name, path, why)
    return dataset


def _named(data: Data) -> set[str]:
    """Arrays that a recipe names; dims stand for their coordinates."""
    condition, split = data.condition, data.split
    clocks = [name.partition(".")[0] for name in (*condition.scalars, *data.climatology)]
    names = {*data.variables, *data.modes, *condition.fields, *condition.scalars, *clocks}
    return {str(name) for name in (*names, data.sample_dim, condition.labels, split.coordinate, split.group) if name}
