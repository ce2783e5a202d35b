"""Text and attributes are valid whatever others wrote, and every engine of xarray writes what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffats.attributes import json_attrs, text_values, valid_attrs, valid_text

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # halves of surrogate pairs, too
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, st.binary(max_size=8))
TREE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3), max_leaves=6
)


@given(TEXT)
def test_valid_text_stays(text: str) -> None:
    assert valid_text(text) == valid_text(text.encode()) == text


@given(st.binary())
def test_bytes_become_text_that_can_be_encoded(raw: bytes) -> None:
    text = valid_text(raw)
    text.encode()
    assert text == valid_text(raw.decode("utf-8", "surrogateescape"))  # as h5py hands them on
    assert "\0" not in text


@given(st.text(st.characters(codec="cp1252", exclude_characters="\0")))
def test_text_of_windows_and_latin_1_is_read_as_such(text: str) -> None:
    raw = text.encode("cp1252")
    try:
        expected = raw.decode()  # where it is UTF-8 by chance, that is what it says
    except UnicodeDecodeError:
        expected = text
    assert valid_text(raw) == expected


@given(st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT)))
def test_attributes_that_are_valid_stay(attrs: dict[str, Any]) -> None:
    assert valid_attrs(attrs) == attrs


def test_arrays_in_attributes_stay_where_they_are_valid() -> None:
    given = {"a": np.array(["b"], object), "c": np.zeros(2), "d": np.array([], "S3")}
    assert all(value is given[name] for name, value in valid_attrs(given).items())
    assert valid_attrs({"a": np.array([b"\xb0"])}) == {"a": ["°"]}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(attrs=st.dictionaries(ANY_TEXT.filter(lambda name: 0 < len(name) < 20), TREE, max_size=3))
def test_every_engine_writes_json_attributes(attrs: dict[str, Any], tmp_path: Path) -> None:
    plain = json_attrs(attrs)
    assert json_attrs(json.loads(json.dumps(plain))) == plain
    # NetCDF has names of its own that mean how numbers are stored
    plain = {f"a{key}": value for key, value in plain.items()}
    dataset = xr.Dataset({"u": ("x", np.zeros(2), plain)}, attrs=plain)
    for engine in ("h5netcdf", "netcdf4", *(["scipy"] if "".join(plain).isascii() else [])):  # SciPy has other names
        path = tmp_path / f"{engine}.nc"
        path.unlink(missing_ok=True)
        dataset.to_netcdf(path, engine=engine)
    dataset.to_zarr(tmp_path / "a.zarr", mode="w", consolidated=False)
    with xr.open_dataset(tmp_path / "h5netcdf.nc", engine="h5netcdf") as back:
        assert set(back["u"].attrs) == set(plain)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (True, "true"),
        ([True, False], "[true, false]"),
        ({"b": [1, None]}, '{"b": [1, null]}'),
        (["a", "ü"], '["a", "ü"]'),
        ([[1, 2], [3, 4]], "[[1, 2], [3, 4]]"),
        (2**40, float(2**40)),
        (2**70, str(2**70)),
        ([1, 2**40], [1.0, float(2**40)]),
        (np.float32(0.5), 0.5),
        (np.array([1, 2], "u1"), [1, 2]),
        ([], []),
        (float("nan"), "nan"),
        (b"\xb0C", "°C"),
        ("K\0\0", "K"),
    ],
)
def test_what_becomes_of_a_value(value: Any, plain: Any) -> None:
    (got,) = json_attrs({"a": value}).values()
    assert (type(got), got) == (type(plain), plain)


def test_what_has_no_value_is_no_attribute() -> None:
    assert json_attrs({"units": None, "a/b": 1, "-c": 2}) == {"a_b": 1, "_-c": 2}


@pytest.mark.parametrize("values", [np.array([b"caf\xe9", b"bar"]), np.array(["caf\udce9", b"bar"], object)])
def test_text_of_any_kind_becomes_objects(values: np.ndarray) -> None:
    assert text_values(values).tolist() == ["café", "bar"]
    numbers = np.arange(3.0)
    assert text_values(numbers) is numbers
