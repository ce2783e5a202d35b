"""GRIB files, by cfgrib and ecCodes: nothing is written beside them."""

from __future__ import annotations

import re
from typing import Any

import xarray as xr

from diffats.config import Data
from diffats.errors import SourceError
from diffats.requirements import require
from diffats.sources.decoding import open_xarray

ENDINGS = (".grib", ".grib2", ".grb", ".grb2")


def open_grib(path: str, data: Data) -> xr.Dataset:
    """The fields of a GRIB file; of one with several kinds of levels, those that ``data.group`` chooses.

    Raises
    ------
    MissingPackageError
        Where cfgrib is not installed.
    SourceError
        Where it holds fields that are no one array, or is not on this machine.
    """
    require(f"data.source {path}, which is GRIB,", "grib")
    if "://" in path:
        raise SourceError(f'data.source "{path}" is GRIB, which is read from a disk only. Copy it to this machine.')
    chosen = keys_of(data.group) if data.group else {}
    from cfgrib import DatasetBuildError

    try:
        # indexpath: cfgrib would leave an index beside each file; errors: it would leave fields out
        dataset = open_xarray(path, engine="cfgrib", indexpath="", errors="raise", filter_by_keys=chosen)
    except DatasetBuildError as error:
        differs = re.search(r"key='(\w+)'", str(error))
        what = f', which differ in "{differs[1]}"' if differs else ""
        raise SourceError(
            f'data.source "{path}" holds several kinds of fields{what}. Choose one by its GRIB keys, for example '
            'data.group = "typeOfLevel=surface" or "typeOfLevel=heightAboveGround,level=2"; grib_ls lists them.'
        ) from error
    if not dataset.data_vars:
        raise SourceError(
            f'data.source "{path}" has no field with data.group = "{data.group}". Check the keys; grib_ls lists them.'
        )
    dataset.attrs.pop("history", None)  # cfgrib's, with the time of reading: the source would change each minute
    for variable in dataset.variables.values():
        variable.attrs.pop("dtype", None)  # asks others to decode hours as time differences, which stay numbers here
    return dataset


def keys_of(group: str) -> dict[str, Any]:
    """The GRIB keys that a ``data.group`` stands for.

    >>> keys_of("typeOfLevel=heightAboveGround, level=2")
    {'typeOfLevel': 'heightAboveGround', 'level': 2}
    """
    pairs = [part.partition("=") for part in group.split(",")]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise SourceError(
            f'data.group "{group}": GRIB has no groups but keys. Write them like "typeOfLevel=surface", with commas '
            "between several."
        )
    return {key.strip(): _number(value.strip()) for key, _, value in pairs}


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text
