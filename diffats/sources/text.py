"""Text of a source made valid once, when it is opened: what it says then can be written, compared and drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fsspec
import scipy.io
import xarray as xr

from diffats.attributes import valid_attrs, valid_text
from diffats.config import Data

logger = logging.getLogger("diffats.sources")

_LOST = "\ufffd"  # what stands for bytes that are not UTF-8 where they were replaced
_SHOWN = 8


def with_valid_text(datasets: Iterable[xr.Dataset]) -> list[xr.Dataset]:
    """Data sets whose attributes and names are valid Unicode; those that were are handed on as they are.

    One warning tells where text was not UTF-8 and how it was read.
    """
    found: dict[str, None] = {}
    mended = [_mended(dataset, found) for dataset in datasets]
    if found:
        listed = ", ".join(list(found)[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        logger.warning("data.source: text that is not UTF-8 is read as Windows-1252: %s.", listed)
    return mended


def _mended(dataset: xr.Dataset, found: dict[str, None]) -> xr.Dataset:
    entries = [(f"of {name}" if name else "of the source", each) for name, each in _described(dataset)]
    wrong = [(whose, each) for whose, each in entries if repr(valid_attrs(each.attrs)) != repr(dict(each.attrs))]
    names = {name: valid_text(str(name)) for name in {*dataset.variables, *dataset.dims}}
    names = {name: valid for name, valid in names.items() if valid != name}
    if not wrong and not names:
        return dataset
    mended = dataset.copy()
    for (whose, each), (_, copied) in zip(entries, _described(mended), strict=True):
        valid = valid_attrs(each.attrs)
        pairs = zip(valid.items(), each.attrs.items(), strict=True)
        changed = [key for new, (key, old) in pairs if repr(new) != repr((key, old))]
        kept = [valid_text(str(key)) for key in changed if not _only_nulls(each, key)]
        found.update(dict.fromkeys(f'"{key}" {valid_text(whose)}' for key in kept))
        copied.attrs = valid
    found.update(dict.fromkeys(f'the name "{name}"' for name in names.values()))
    return mended.rename(names)


def _only_nulls(entry: Any, key: Any) -> bool:
    """Whether an attribute is valid but for null characters, which pad text of fixed width."""
    value = entry.attrs.get(key)
    return isinstance(value, str) and value.replace("\0", "") == valid_text(value)


def _described(dataset: xr.Dataset) -> Iterator[tuple[str, Any]]:
    """The data set and its variables, which have attributes."""
    yield "", dataset
    for name, variable in dataset.variables.items():
        yield str(name), variable


def with_lost_text(dataset: xr.Dataset, engine: str, path: str, data: Data) -> xr.Dataset:
    """A data set with the bytes of text that SciPy's and netCDF4's engines replace where they are not UTF-8."""
    lost = [
        (name, key)
        for name, each in _described(dataset)
        for key, value in each.attrs.items()
        if isinstance(value, str) and _LOST in value
    ]
    names = {name: _utf8_name(str(name)) for name in {*dataset.variables, *dataset.dims}} if engine == "scipy" else {}
    names = {name: text for name, text in names.items() if text != name}
    if lost and engine in _READERS:
        raw = _READERS[engine](path, data, lost)
        for name, each in _described(dataset):
            each.attrs.update({key: raw[whose, key] for whose, key in lost if whose == name and (whose, key) in raw})
    return dataset.rename(names) if names else dataset


def _utf8_name(name: str) -> str:
    """A name that SciPy decoded as Latin-1, which NetCDF says is UTF-8."""
    try:
        return name.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return name


def _read_with_scipy(path: str, data: Data, wanted: list[tuple[str, Any]]) -> dict[tuple[str, Any], Any]:
    target = fsspec.open(path, "rb", **data.storage_options).open() if "://" in path else path
    with scipy.io.netcdf_file(target, "r", mmap="://" not in path) as file:
        return {(name, key): getattr(file.variables[name] if name else file, key) for name, key in wanted}


def _read_with_netcdf4(path: str, data: Data, wanted: list[tuple[str, Any]]) -> dict[tuple[str, Any], Any]:
    import netCDF4

    with netCDF4.Dataset(path) as file:
        group = file[data.group] if data.group else file
        texts = {
            (name, key): (group[name] if name else group).getncattr(key, encoding="latin-1")
            for name, key in wanted
            if not name or name in group.variables
        }
    return {place: text.encode("latin-1") for place, text in texts.items()}


_READERS: dict[str, Callable[[str, Data, list[tuple[str, Any]]], dict[tuple[str, Any], Any]]] = {
    "scipy": _read_with_scipy,
    "netcdf4": _read_with_netcdf4,
}
