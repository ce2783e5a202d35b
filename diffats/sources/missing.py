"""What counts as missing: whatever a variable's attributes say of it, told in the one way that xarray decodes."""

from __future__ import annotations

import logging
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.backends.zarr import FillValueCoder
from xarray.core import indexing

logger = logging.getLogger("diffats.sources")
Array = np.ndarray[Any, Any]

FILL, OTHER_FILL, UNSIGNED = "_FillValue", "missing_value", "_Unsigned"
_LOW, _HIGH, _RANGE = "valid_min", "valid_max", "valid_range"
_SPELLINGS = {  # without case, underscores and the like
    **dict.fromkeys(("fillvalue", "fillval"), FILL),
    **dict.fromkeys(("missingvalue", "missingvalues", "missingval", "codemissingvalue"), OTHER_FILL),
    "validmin": _LOW,
    "validmax": _HIGH,
    "validrange": _RANGE,
    "unsigned": UNSIGNED,
}
_TRUTH = {"true": "true", "1": "true", "false": "false", "0": "false"}
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?)[fFdDlLsSbBuU]{0,3}")
_NAMES_OTHERS = ("coordinates", "bounds", "climatology")  # attributes that name variables which are no fields
_OFF = 0.01  # of a step of packed numbers, by which a bound in other units may be off


class FilledArray(BackendArray):
    """Stored numbers with one fill value instead of all values that count as missing."""

    def __init__(self, variable: xr.Variable, absent: Absent, fill: Any, dtype: Any = None) -> None:
        self.variable, self.absent, self.fill = variable, absent, fill
        self.shape, self.dtype = variable.shape, np.dtype(variable.dtype if dtype is None else dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Array:
        stored = np.asarray(self.variable[key].values)
        return np.asarray(np.where(self.absent.among(stored), self.fill, stored), dtype=self.dtype)

    def put_in(self, attrs: Mapping[Any, Any]) -> xr.Variable:
        """The variable with these numbers and attributes."""
        lazy = indexing.LazilyIndexedArray(self)
        return xr.Variable(self.variable.dims, lazy, attrs, dict(self.variable.encoding))


@dataclass(frozen=True)
class Absent:
    """What counts as missing among stored numbers.

    Attributes
    ----------
    dtype
        What the stored numbers are read as.
    values
        Single values, the first of which stands for all.
    low, high
        Numbers below and above are missing.
    """

    dtype: np.dtype[Any]
    values: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    @property
    def cuts(self) -> bool:
        """Whether the bounds exclude numbers of the type."""
        lowest, highest = _ends(self.dtype)
        return self.low > lowest or self.high < highest

    def among(self, stored: Array) -> Array:
        """Which of some stored numbers are missing."""
        x = stored if stored.dtype.kind == self.dtype.kind else stored.view(self.dtype)
        lowest, highest = _ends(self.dtype)
        gone = np.isin(x, np.asarray(self.values, self.dtype)) if self.values else np.zeros(x.shape, bool)
        if self.low > lowest:
            gone = gone | (x < self.low)
        if self.high < highest:
            gone = gone | (x > self.high)
        return np.asarray(gone)

    def fill(self, *, packed: bool) -> Any:
        """What stands for missing values; None for whole numbers that are not packed and have none."""
        if self.values:
            return self.values[0]
        if self.dtype.kind == "f":
            return np.nan
        lowest, highest = _ends(self.dtype)
        return (lowest if self.low > lowest else highest) if packed and self.cuts else None


# --- a data set ---------------------------------------------------------------------------------------------------

TAKEN, GUESSED, IGNORED = "taken", "guessed", "ignored"  # kinds of notes: how an attribute was read


def conform(raw: xr.Dataset) -> xr.Dataset:
    """An undecoded data set whose fields say by ``_FillValue``, of the stored type, what is missing.

    Attributes of another type, number of values or spelling count, too, and so do bounds of valid values; those of
    whole numbers that nothing else makes floats are left to `as_numbers`. What conforms stays as it is. What is to be
    said is in ``encoding``, for `say`.

    >>> raw = xr.Dataset({"u": (("y", "x"), np.float32([[1, -999.9]]), {"missing_value": "-999.9f"})})
    >>> xr.decode_cf(conform(raw))["u"].values
    array([[ 1., nan]], dtype=float32)
    """
    passed, new, notes = _no_fields(raw), {}, dict(raw.encoding.get("notes", {}))
    for name, variable in raw.variables.items():
        if name not in passed and variable.dtype.kind in "fiu":
            attributes = _Attributes.of(str(name), variable.dtype, variable.attrs)
            made = _conformed(variable, attributes)
            if made is not variable:
                new[name] = made
            notes |= attributes.notes
    conforming = raw.assign(new)
    conforming.encoding = {**raw.encoding, "notes": notes}
    return conforming


def say(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Log how attributes of files were read, each note once; returns where xarray alone would read them otherwise."""
    notes: dict[str, str] = {}
    for dataset in datasets:
        notes |= dataset.encoding.pop("notes", {})
    for text, kind in notes.items():
        logger.log(logging.INFO if kind == TAKEN else logging.WARNING, "data.source: %s", text)
    return [text for text, kind in notes.items() if kind != IGNORED]


def with_zarr_fills(raw: xr.Dataset, arrays: Mapping[str, zarr.Array[Any]]) -> xr.Dataset:
    """An undecoded Zarr data set in which attributes say what is missing.

    The ``fill_value`` of an array of version 2 is a missing value, as xarray writes it there; but 0 is what other
    writers leave where nobody chose one, so it is none unless an attribute says so. In version 3 it never is.
    """
    new = {}
    for name, array in arrays.items():
        if name in raw.variables:
            new[name] = raw.variables[name].copy(deep=False)
            new[name].attrs = _zarr_attrs(array, raw.variables[name].attrs)
    made = raw.assign(new)
    made.encoding = dict(raw.encoding)
    zeros = [name for name, variable in new.items() if FILL in raw.variables[name].attrs and FILL not in variable.attrs]
    if zeros and arrays[zeros[0]].metadata.zarr_format == 2:
        text = f"fill_value 0 of Zarr version 2, without the attribute {FILL}, is no missing value: {', '.join(zeros)}"
        made.encoding["notes"] = {**raw.encoding.get("notes", {}), text: TAKEN}
    return made


def _zarr_attrs(array: zarr.Array[Any], attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes of a variable of which ``_FillValue`` is what there is for it, and may be the array's fill value."""
    made, told, fill = {key: value for key, value in attrs.items() if key != FILL}, array.attrs.get(FILL), None
    if array.metadata.zarr_format == 2 and not (array.dtype.kind in "biuf" and array.fill_value == 0):
        fill = array.fill_value
    if told is not None:
        made[FILL] = _decoded_fill(told, array.dtype)
        if fill is not None:
            made[OTHER_FILL] = np.array([*(numbers(attrs.get(OTHER_FILL)) or []), fill])
    elif fill is not None:
        made[FILL] = fill
    return made


def _decoded_fill(told: Any, dtype: np.dtype[Any]) -> Any:
    """The fill value of an attribute in JSON, where xarray writes a float as the base64 text of its bytes."""
    if dtype.kind in "iuf" and numbers(told) is not None:
        return told
    try:
        return FillValueCoder.decode(told, dtype)
    except (ValueError, TypeError, struct.error):
        return told


def as_numbers(array: xr.DataArray) -> xr.DataArray:
    """A decoded array, of which whole numbers outside of their bounds are NaN; other arrays as they are.

    >>> values = xr.DataArray(np.int16([3, 700]), dims="x", attrs={"valid_range": [0, 100]})
    >>> as_numbers(values).values, as_numbers(values).dtype
    (array([ 3., nan], dtype=float32), dtype('float32'))
    """
    if array.dtype.kind not in "iu":
        return array
    absent = _Attributes.of(str(array.name), array.dtype, array.attrs).bounds
    if not absent.cuts:
        return array
    filled = FilledArray(array.variable, absent, np.nan, np.result_type(np.float32, array.dtype))
    return xr.DataArray(filled.put_in(array.attrs), array.coords, name=array.name)


def counts_as_missing(array: xr.DataArray) -> str:
    """What of a decoded array counts as missing, in words; empty where nothing does.

    >>> counts_as_missing(xr.DataArray(np.zeros(2), dims="x", attrs={"valid_min": 0.5}, name="u"))
    'u outside of valid_min 0.5'
    """
    fills = {key: array.encoding.get(key) for key in (FILL, OTHER_FILL)}
    texts = [f"{key} {value}" for key, value in fills.items() if value is not None and not _is_nan(value)]
    bounds = [f"{key} {_shown(array.attrs[key])}" for key in (_LOW, _HIGH, _RANGE) if key in array.attrs]
    texts += [f"outside of {' and '.join(bounds)}"] if bounds else []
    return f"{array.name} {' or '.join(texts)}" if texts else ""


def _no_fields(raw: xr.Dataset) -> set[str]:
    """Names of coordinates, which lack nothing."""
    trees = [raw.attrs, *(variable.attrs for variable in raw.variables.values())]
    named = {word for attrs in trees for key in _NAMES_OTHERS for word in str(attrs.get(key, "")).split()}
    return named.union(map(str, raw.dims))


def _conformed(variable: xr.Variable, attributes: _Attributes) -> xr.Variable:
    """The variable itself where xarray decodes it right."""
    absent, attrs = attributes.absent, attributes.attrs
    fill = absent.fill(packed=attributes.packing() is not None)
    wrapped = fill is not None and (len(absent.values) > 1 or absent.cuts)
    if not wrapped and not attributes.odd:
        return variable
    if absent.values or (wrapped and variable.dtype.kind != "f"):
        attrs.pop(OTHER_FILL, None)
        attrs[FILL] = fill = np.array(fill, absent.dtype).astype(variable.dtype)[()]
    if wrapped:
        return FilledArray(variable, absent, fill).put_in(attrs)
    changed = variable.copy(deep=False)
    changed.attrs = attrs
    return changed


# --- the attributes of a variable ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bound:
    """A bound of stored numbers: whether it is a lower one, and the least and the largest number that it can mean."""

    lower: bool
    least: Any
    largest: Any


@dataclass
class _Attributes:
    """Attributes of a variable that say what is missing, by whatever name.

    Attributes
    ----------
    name, dtype
        Of the variable.
    attrs
        All of its attributes, as xarray shall see them.
    fills
        Missing values, by the names that they have.
    limits
        Bounds of valid values, by standard names.
    notes
        What is to be said, and of which kind it is.
    odd
        Whether ``attrs`` are not those of the variable, or xarray would not take them as they are meant.
    """

    name: str
    dtype: np.dtype[Any]
    attrs: dict[Any, Any]
    fills: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    odd: bool = False

    @classmethod
    def of(cls, name: str, dtype: np.dtype[Any], attrs: Mapping[Any, Any]) -> _Attributes:
        """Read under whatever spelling they have; the standard one goes before."""
        made = cls(name, dtype, dict(attrs))
        for key, value in attrs.items():
            standard = _SPELLINGS.get(re.sub(r"[\W_]", "", str(key)).lower())
            if standard is None or (key != standard and (standard in attrs or not _read(standard, value))):
                continue
            if key != standard:
                made.note(f"the attribute {key} {_shown(value)} is taken as {standard}", GUESSED)
                made.odd = True
            if standard == UNSIGNED:
                made._read_unsigned(value)
            else:
                (made.fills if standard in (FILL, OTHER_FILL) else made.limits)[standard] = value
        return made

    def note(self, text: str, kind: str) -> None:
        """Keep something to be said."""
        self.notes[f'"{self.name}": {text}'] = kind

    def _read_unsigned(self, given: Any) -> None:
        meant = _TRUTH.get(_text(given).strip().lower())
        if self.dtype.kind == "f" or meant is None:
            self.attrs.pop(UNSIGNED, None)
            self.odd = True
        elif given != meant:
            self.attrs[UNSIGNED] = meant
            self.odd = True
            self.note(f'{UNSIGNED} {_shown(given)} is taken as "{meant}"', TAKEN)

    @property
    def read_as(self) -> np.dtype[Any]:
        """The type as which stored numbers are read: see the attribute ``_Unsigned``."""
        kind = {("i", "true"): "u", ("u", "false"): "i"}.get((self.dtype.kind, str(self.attrs.get(UNSIGNED))))
        return self.dtype if kind is None else np.dtype(f"{self.dtype.byteorder}{kind}{self.dtype.itemsize}")

    @property
    def absent(self) -> Absent:
        """What is missing: single values, and what is outside of the bounds."""
        found = dict.fromkeys(value for key in self.fills for value in self._values(key))
        return replace(self.bounds, values=tuple(found))

    def _values(self, key: str) -> list[Any]:
        given, dtype, text = self.fills[key], self.read_as, _is_text(self.fills[key])
        read = [number for number in numbers(given) or [] if not math.isnan(number)]
        values = list(dict.fromkeys(value for number in read for value in as_stored(number, dtype)))
        other_sign = dtype != self.dtype
        if numbers(given) is None and _text(given).strip():
            self.note(f"{key} {_shown(given)} is no number, so nothing counts as missing by it", IGNORED)
        if values:
            seen = values if other_sign and key == FILL else [v for v in values if v in read]
            if text or set(values) != set(seen):
                shown = " and ".join(str(value) for value in values)
                self.note(f"{key} {_shown(given)} is taken as {shown} of {dtype}", TAKEN)
                self.odd = True
            self.odd |= len(values) > 1 or (other_sign and read != values and not _fits(read[0], self.dtype))
        elif text or other_sign or (dtype.kind != "f" and not read):
            self.attrs.pop(key, None)
            self.odd = True
        return values

    # -- bounds of valid values ----------------------------------------------------------------------------------

    @property
    def bounds(self) -> Absent:
        """What is outside of the bounds, in stored numbers; nothing where these make no sense."""
        found = [self._bound(*place) for place in ((_LOW, 0, 1), (_HIGH, 0, 1), (_RANGE, 0, 2), (_RANGE, 1, 2))]
        lows = [bound.least for bound in found if bound is not None and bound.lower]
        highs = [bound.largest for bound in found if bound is not None and not bound.lower]
        absent = Absent(self.read_as, (), max(lows, default=-math.inf), min(highs, default=math.inf))
        if absent.low < absent.high:
            return absent
        given = " and ".join(f"{key} {_shown(value)}" for key, value in self.limits.items())
        self.note(f"{given} leaves no range of values, and is not heeded", IGNORED)
        return Absent(self.read_as)

    def _bound(self, key: str, index: int, count: int) -> _Bound | None:
        if key not in self.limits:
            return None
        given = numbers(self.limits[key])
        if given is None or len(given) != count:
            expected = "a number" if count == 1 else "two numbers"
            self.note(f"{key} {_shown(self.limits[key])} is not {expected}, and is not heeded", IGNORED)
            return None
        number, dtype, packing = given[index], self.read_as, self.packing()
        lower = key == _LOW or (key == _RANGE and index == 0)
        if not math.isfinite(number):
            return None
        if dtype.kind == "f":
            values = as_stored(number, dtype)
            return _Bound(lower, min(values), max(values)) if values else None
        if packing is not None and not _is_whole(number):  # of the type of decoded numbers: a bound of these
            scale, offset = packing
            place = (float(number) - offset) / scale
            return _Bound(lower if scale > 0 else not lower, math.ceil(place - _OFF), math.floor(place + _OFF))
        if dtype.kind == "u" and self.dtype.kind == "i" and number < 0:
            number = int(number) + 2 ** (8 * dtype.itemsize)
        return _Bound(lower, math.ceil(number), math.floor(number))

    def packing(self) -> tuple[float, float] | None:
        """Scale factor and offset; None without any."""
        given = [numbers(self.attrs.get(key)) for key in ("scale_factor", "add_offset")]
        if given == [None, None]:
            return None
        scale, offset = (
            default if not many else float(many[0]) for many, default in zip(given, (1.0, 0.0), strict=True)
        )
        return (scale, offset) if scale and math.isfinite(scale) and math.isfinite(offset) else None


# --- numbers ------------------------------------------------------------------------------------------------------


def numbers(value: Any) -> list[Any] | None:
    """The numbers that an attribute holds, as numbers or as text; None where it holds anything else.

    >>> numbers("-999.f, 1e20"), numbers(np.float64(3)), numbers(b"-99L"), numbers("none")
    ([-999.0, 1e+20], [np.float64(3.0)], [-99], None)
    """
    if value is None:
        return None
    if not _is_text(value):
        array = np.ravel(value)
        return list(array) if array.dtype.kind in "fiu" else None
    words = [word for word in re.split(r"[\s,;\[\](){}]+", _text(value)) if word]
    read = [_number(word) for word in words]
    return [number for number in read if number is not None] if read and None not in read else None


def _number(word: str) -> int | float | None:
    if re.fullmatch(r"[-+]?(nan|inf(inity)?)[fFdD]?", word, re.IGNORECASE):
        return math.nan if "nan" in word.lower() else math.copysign(math.inf, -(word[0] == "-") or 1)
    match = _NUMBER.fullmatch(word)
    if match is None:
        return None
    plain = match[1].lower().replace("d", "e")
    return int(plain) if re.fullmatch(r"[-+]?\d+", plain) else float(plain)


def as_stored(number: Any, dtype: np.dtype[Any]) -> list[Any]:
    """What a number can be in an array of a type: its rounded value, or both of a float32 in float64.

    >>> as_stored(-999.9, np.dtype("f4")), as_stored(-1, np.dtype("u1")), as_stored(1.5, np.dtype("i2"))
    ([np.float32(-999.9)], [255], [])
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            rounded = dtype.type(number)
        both = [rounded]
        if isinstance(number, np.floating) and number.dtype.itemsize < dtype.itemsize:
            both.append(dtype.type(float(str(number))))
        return list(dict.fromkeys(value for value in both if np.isinf(value) == math.isinf(number)))
    if math.isinf(number) or number != int(number):
        return []
    whole, (lowest, highest) = int(number), _ends(dtype)
    if dtype.kind == "u" and -(2 ** (8 * dtype.itemsize - 1)) <= whole < 0:
        whole += 2 ** (8 * dtype.itemsize)  # as the same bits read with a sign
    if dtype.kind == "i" and highest < whole < 2 ** (8 * dtype.itemsize):
        whole -= 2 ** (8 * dtype.itemsize)
    return [whole] if lowest <= whole <= highest else []


def _ends(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The least and the largest number of a type."""
    return (-math.inf, math.inf) if dtype.kind == "f" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def _fits(number: Any, dtype: np.dtype[Any]) -> bool:
    lowest, highest = _ends(dtype)
    return bool(lowest <= number <= highest)


def _is_whole(number: Any) -> bool:
    """Whether a number is of a type of whole numbers."""
    return isinstance(number, int | np.integer)


def _read(standard: str, value: Any) -> bool:
    """Whether an attribute holds what one of this standard name should."""
    return _text(value).strip().lower() in _TRUTH if standard == UNSIGNED else numbers(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes) or np.asarray(value).dtype.kind in "SUOT"


def _text(value: Any) -> str:
    parts = np.ravel(np.asarray(value, dtype=object))
    return " ".join(part.decode("latin-1") if isinstance(part, bytes) else str(part) for part in parts)


def _shown(value: Any) -> str:
    text = _text(value)
    return f'"{text}"' if _is_text(value) else text


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)
