"""Text and attributes that every format can hold: valid Unicode, and values that NetCDF has types for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_ENCODINGS = ("utf-8", "cp1252")  # Windows-1252 is Latin-1 with letters in place of some control characters
_INT32, _EXACT = 2**31, 2**53  # the whole numbers of NetCDF's classic formats, and those that float64 holds


def valid_text(text: str | bytes) -> str:
    """Text as valid Unicode without null characters: UTF-8 where it is that, else Windows-1252.

    Libraries hand on what they cannot decode as bytes, or as halves of surrogate pairs, which no file or picture takes.

    >>> valid_text(b"\\xb0C"), valid_text("\\udcb0C"), valid_text("°C"), valid_text(b"K\\x00\\x00")
    ('°C', '°C', '°C', 'K')
    """
    if isinstance(text, str):
        try:
            text.encode()
            return text.replace("\0", "")
        except UnicodeEncodeError:
            text = _bytes_of(text)
    for encoding in _ENCODINGS:
        try:
            return text.decode(encoding).replace("\0", "")
        except UnicodeDecodeError:
            continue
    return text.decode("latin-1").replace("\0", "")


def _bytes_of(text: str) -> bytes:
    """The bytes that Python could not decode, and "?" for other halves of surrogate pairs."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def text_values(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Text of any kind as objects, bytes decoded: Zarr has no text of fixed width. Other values as they are.

    >>> text_values(np.array([b"caf\\xe9", b"bar"]))
    array(['café', 'bar'], dtype=object)
    """
    if values.dtype.kind not in "OSUT":
        return values
    out = values.astype(object)
    for place, value in np.ndenumerate(out):
        if isinstance(value, str | bytes):
            out[place] = valid_text(value)
    return out


def valid_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes whose text is valid; all else as it is.

    >>> valid_attrs({"units": "\\udcb0C", "levels": [1, 2]})
    {'units': '°C', 'levels': [1, 2]}
    """
    return {_valid(key): _valid(value) for key, value in attrs.items()}


def _valid(value: Any) -> Any:
    if isinstance(value, str | bytes):
        return valid_text(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        given = value.tolist()
        mended = _valid(given)
        return value if mended == given else mended
    if isinstance(value, list | tuple):
        return type(value)(_valid(entry) for entry in value)
    return {_valid(k): _valid(entry) for k, entry in value.items()} if isinstance(value, dict) else value


def json_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON has them, and as all of xarray's engines write them.

    These are text, finite numbers and lists of numbers. Anything else, such as Zarr's true, text lists and mappings,
    becomes its JSON text; what has no value is left out. Whole numbers of more than 32 bits become equal floats.

    >>> json_attrs({"a": [1, 2], "flag": True, "tree": {"b": ["c"]}, "units": None, "id": 20260101123456})
    {'a': [1, 2], 'flag': 'true', 'tree': '{"b": ["c"]}', 'id': 20260101123456.0}
    """
    return {_name(key): _plain(value) for key, value in attrs.items() if value is not None}


def _name(key: Any) -> str:
    """A name that NetCDF allows: without slashes and control characters, its first one a letter, a digit or "_"."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]", "_", valid_text(str(key))).strip()
    return name if re.match(r"\w", name) else f"_{name}"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str | bytes):
        return valid_text(value)
    entries = value if isinstance(value, list | tuple) else [value]
    if not all(_is_number(entry) for entry in entries):
        return json.dumps(_valid(value), ensure_ascii=False, default=str) if _is_tree(value) else str(value)
    if any(isinstance(entry, int) and not -_INT32 <= entry < _INT32 for entry in entries):
        entries = [float(entry) for entry in entries]
    return list(entries) if isinstance(value, list | tuple) else entries[0]


def _is_number(value: Any) -> bool:
    """Whether some type of NetCDF's classic formats holds a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= _EXACT
    return isinstance(value, float) and math.isfinite(value)


def _is_tree(value: Any) -> bool:
    return isinstance(value, bool | dict | list | tuple)
