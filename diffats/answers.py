"""Generated fields as a service answers them: in JSON, or as bytes of NetCDF or Zarr in base64."""

from __future__ import annotations

import base64
import io
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.attributes import json_attrs


def as_json(fields: xr.Dataset) -> dict[str, Any]:
    """What ``xr.Dataset.from_dict`` reads: dims, coordinates, attributes such as units, and values as nested lists.

    Missing values are null. Times are numbers with CF units, which ``xr.decode_cf`` reads.

    >>> as_json(xr.Dataset({"t": ("sample", [1.0, np.nan], {"units": "K"})}))["data_vars"]
    {'t': {'dims': ['sample'], 'attrs': {'units': 'K'}, 'data': [1.0, None]}}
    """
    described = {str(name): _variable(str(name), each) for name, each in fields.variables.items()}
    return {
        "dims": {str(dim): size for dim, size in fields.sizes.items()},
        "attrs": json_attrs(fields.attrs),
        "coords": {name: each for name, each in described.items() if name in fields.coords},
        "data_vars": {name: each for name, each in described.items() if name in fields.data_vars},
    }


def _variable(name: str, variable: xr.Variable) -> dict[str, Any]:
    dated = variable.dtype.kind == "O" and all(isinstance(value, cftime.datetime) for value in variable.values.flat)
    timed = variable.dtype.kind in "mM" or (dated and variable.size > 0)
    plain = xr.conventions.encode_cf_variable(variable, name=name) if timed else variable
    values = plain.to_numpy()
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        values = values.astype(object)
        values[~finite] = None  # JSON has no NaN
    return {"dims": list(map(str, plain.dims)), "attrs": json_attrs(plain.attrs), "data": values.tolist()}


def as_arrays(fields: xr.Dataset) -> dict[str, npt.NDArray[Any]]:
    """Every variable and coordinate by name.

    >>> as_arrays(xr.Dataset({"t": ("sample", [1.0, 2.0])}))
    {'t': array([1., 2.])}
    """
    return {str(name): variable.to_numpy() for name, variable in fields.variables.items()}


def as_netcdf(fields: xr.Dataset) -> dict[str, str]:
    """A NetCDF-4 file, which ``xr.open_dataset(io.BytesIO(base64.b64decode(answer["data"])))`` reads."""
    return _in_base64("netcdf", bytes(fields.to_netcdf(engine="h5netcdf")))


def as_zarr(fields: xr.Dataset) -> dict[str, str]:
    """A Zarr group in a zip archive, which ``xr.open_zarr`` reads where it is unpacked."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(packed, "w") as archive:
        fields.to_zarr(directory, zarr_format=2, consolidated=True)
        for path in sorted(path for path in Path(directory).rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(directory))
    return _in_base64("zarr", packed.getvalue())


def _in_base64(kind: str, content: bytes) -> dict[str, str]:
    return {"format": kind, "encoding": "base64", "data": base64.b64encode(content).decode("ascii")}


@dataclass(frozen=True)
class Format:
    """A form of an answer.

    Attributes
    ----------
    write
        Makes it from a data set.
    bytes_a_number
        What a number of a field takes in it, about.
    """

    write: Callable[[xr.Dataset], Any]
    bytes_a_number: int


FORMATS = {
    "xarray": Format(lambda fields: fields, 8),
    "json": Format(as_json, 20),
    "arrays": Format(as_arrays, 20),
    "netcdf": Format(as_netcdf, 6),
    "zarr": Format(as_zarr, 6),
}
