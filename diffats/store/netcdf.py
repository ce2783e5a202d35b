"""One NetCDF-4 file of some groups."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from diffats.errors import InputError
from diffats.store.opening import described
from diffats.store.store import Store
from diffats.store.version import Version


def export_netcdf(stores: Mapping[str, Store], destination: Path) -> None:
    """Write the newest complete version of each group; the file is there whole or not at all.

    Parameters
    ----------
    stores
        By the group of the file that receives theirs, its root where empty.
    destination
        Of the file. One variable at a time is held in memory.

    Raises
    ------
    InputError
        Where something is in the way.
    """
    if destination.exists():
        raise InputError(f"{destination} exists. Export to another place, or remove it.")
    partial = destination.with_name(f"{destination.name}.partial")
    partial.unlink(missing_ok=True)
    for under, store in stores.items():
        for group, snapshot in store.current().items():
            ds = described(Version(store, group, snapshot))
            place = f"{under}/{group}" if under else group
            writable(ds).to_netcdf(partial, group=place, mode="a", engine="h5netcdf")
    os.replace(partial, destination)


def writable(ds: xr.Dataset) -> xr.Dataset:
    """The data set with attributes that NetCDF has: what is nested becomes JSON, what is true or false 1 or 0."""
    out = ds.copy()
    out.attrs = {name: _plain(value) for name, value in ds.attrs.items()}
    for variable in out.variables.values():
        variable.attrs = {name: _plain(value) for name, value in variable.attrs.items()}
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    nested = value is None or isinstance(value, Mapping)
    nested |= isinstance(value, list) and (not value or not all(isinstance(x, int | float) for x in value))
    return json.dumps(value) if nested else value
