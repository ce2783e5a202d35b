"""What a decoded sample looks like: a description without data, and its JSON form."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from diffats.attributes import json_attrs, text_values
from diffats.errors import InputError
from diffats.primitives import Values
from diffats.sources import spacing

Array = np.ndarray[Any, Any]
log = logging.getLogger("diffats.decode")

# Attributes that describe stored numbers or a whole axis, and are wrong for decoded values or offsets.
_STORED_ONLY = ("valid_min", "valid_max", "valid_range", "actual_range", "_FillValue", "missing_value")
_ABSOLUTE_ONLY = ("standard_name", "bounds", "calendar", "climatology", *_STORED_ONLY)


def make_template(
    dataset: xr.Dataset,
    variables: Sequence[str],
    modes: Sequence[str],
    *,
    dtype: Any,
    windows: Mapping[str, int],
    sample_dim: str | None,
) -> xr.Dataset:
    """Describe one decoded sample.

    Data variables have the dims ``modes`` and hold no memory; the type of whole numbers is in their encoding.
    Coordinates along whole dims are the source's own, with
    bounds and grid mappings; along a windowed dim the coordinate is the offset from the window's start where it is
    evenly spaced, else there is none.
    """
    sizes = {mode: windows.get(mode, dataset.sizes[mode]) for mode in modes}
    gone = {sample_dim, *windows}
    coords = {
        name: _plain_coordinate(coord.variable)
        for name, coord in dataset.coords.items()
        if not gone.intersection(coord.dims) and _belongs(coord, modes, dataset)
    }
    for dim, size in windows.items():
        if dim in dataset.indexes:
            offset = _offset(dataset[dim], size)
            if offset is not None:
                coords[dim] = offset
    data = {
        name: xr.Variable(
            tuple(modes),
            _empty(tuple(sizes.values()), dtype),
            _field_attrs(dataset[name].variable, coords),
            _type_of(dataset[name]),
        )
        for name in variables
    }
    return xr.Dataset(data, coords=coords, attrs=json_attrs(dataset.attrs))


def _type_of(array: xr.DataArray) -> dict[str, Any]:
    """What a template's variable has as encoding: the type of whole numbers, which decoded samples get again."""
    return {"dtype": array.dtype} if array.dtype.kind in "iub" else {}


def _empty(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.broadcast_to(np.zeros((), dtype=dtype), shape)


def _belongs(coord: xr.DataArray, modes: Sequence[str], dataset: xr.Dataset) -> bool:
    """Coordinates of the sample's dims; bounds have one dim more, which no other variable needs."""
    if coord.name in modes and coord.name not in coord.dims:
        return False  # it has the name of a mode, and is something else
    extra = [dim for dim in coord.dims if dim not in modes]
    return not extra or (len(extra) < coord.ndim and extra[0] not in dataset.indexes)


def _field_attrs(variable: xr.Variable, coords: Mapping[Hashable, xr.Variable]) -> dict[str, Any]:
    packed = {"scale_factor", "add_offset", "_FillValue", "missing_value"}.intersection(variable.encoding)
    attrs = {key: value for key, value in json_attrs(variable.attrs).items() if not (packed and key in _STORED_ONLY)}
    mapping = variable.encoding.get("grid_mapping", attrs.pop("grid_mapping", None))
    if mapping is not None and mapping in coords:
        attrs["grid_mapping"] = mapping
    return attrs


def _plain_coordinate(variable: xr.Variable) -> xr.Variable:
    """A loaded coordinate with its CF description as attributes and its time units kept."""
    attrs = json_attrs(variable.attrs)
    if "bounds" in variable.encoding:
        attrs["bounds"] = variable.encoding["bounds"]
    kept = {key: variable.encoding[key] for key in ("units", "calendar") if key in variable.encoding}
    encoding = kept if variable.dtype.kind in "MmO" else {}
    return xr.Variable(variable.dims, _wide(text_values(np.array(variable.values))), attrs, encoding)


def _wide(values: Array) -> Array:
    """Numbers of 16 bits as float32, which NetCDF has."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _offset(coord: xr.DataArray, size: int) -> xr.Variable | None:
    """The coordinate from a window's start: numbers, or time differences (also of cftime dates)."""
    values = coord.values
    if coord.ndim != 1:
        return None
    steps = spacing.differences(values)
    if steps is None or not spacing.even(steps):
        return None
    step = steps[0] if len(steps) else steps.dtype.type(0)
    numeric = values.dtype.kind in "fiu"
    places = np.arange(size)
    offset = places * step
    if numeric:
        offset = offset.astype(values.dtype if values.dtype.kind != "u" else np.int64)
    attrs = {key: value for key, value in json_attrs(coord.attrs).items() if key not in _ABSOLUTE_ONLY}
    attrs["long_name"] = f"{coord.attrs.get('long_name', coord.name)}, from the window's start"
    return xr.Variable(coord.dims, offset, attrs)


def decoded_dataset(x: Array, template: xr.Dataset, coords: Mapping[str, xr.Variable] | None = None) -> xr.Dataset:
    """Decoded samples as a data set of named dims; whole numbers have their type again.

    Parameters
    ----------
    x
        ``(k, *sizes)``: a sample's modes as the template has them, after a component mode where there are several
        variables.
    template
        From ``Samples.template`` or ``template_from_json``.
    coords
        More coordinates along ``sample``, e.g. ``Samples.sample_coords(indices)``.

    Raises
    ------
    InputError
        Where the shape does not fit.

    Examples
    --------
    >>> template = xr.Dataset({"t": (("y", "x"), np.zeros((2, 3)), {"units": "K"})})
    >>> decoded_dataset(np.ones((4, 2, 3)), template)["t"].sizes
    Frozen({'sample': 4, 'y': 2, 'x': 3})
    """
    names = list(template.data_vars)
    shape = template[names[0]].shape
    expected = (len(names), *shape) if len(names) > 1 else shape
    if x.shape[1:] != expected:
        raise InputError(
            f"decoded samples have shape {x.shape[1:]}, expected {expected} ({', '.join(map(str, names))})."
        )
    data = {}
    for i, name in enumerate(names):
        variable = template[name].variable
        values = x[:, i] if len(names) > 1 else x
        if "dtype" in variable.encoding:
            if not np.isfinite(values).all():
                log.warning(
                    'some decoded values of "%s" are no numbers, and are 0 as %s', name, variable.encoding["dtype"]
                )
            values = Values(whole=variable.encoding["dtype"]).typed(values)
        data[name] = xr.Variable(("sample", *variable.dims), values, variable.attrs)
    samples = {"sample": xr.Variable("sample", np.arange(len(x), dtype=np.int64)), **(coords or {})}
    return xr.Dataset(data, coords={**template.coords, **samples}, attrs=template.attrs)


def template_to_json(template: xr.Dataset) -> str:
    """A template as JSON text: CF-encoded, so that any calendar survives, and exact.

    >>> text = template_to_json(xr.Dataset({"t": ("x", np.zeros(2, np.float32))}, coords={"x": [0.1, 0.2]}))
    >>> template_from_json(text)["t"].dtype, template_from_json(text)["x"].values
    (dtype('float32'), array([0.1, 0.2]))
    """
    data = {
        str(name): {"dims": list(v.dims), "shape": list(v.shape), "dtype": str(v.dtype), "attrs": json_attrs(v.attrs)}
        | ({"whole": str(v.encoding["dtype"])} if "dtype" in v.encoding else {})
        for name, v in template.data_vars.items()
    }
    coords = {str(name): _coordinate_json(coord.variable, str(name)) for name, coord in template.coords.items()}
    return json.dumps({"data": data, "coords": coords, "attrs": json_attrs(template.attrs)})


def _coordinate_json(variable: xr.Variable, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"dims": list(variable.dims), "shape": list(variable.shape)}
    base = variable.to_base_variable()
    if base.dtype.kind == "m":  # kept out of CF: its unit is part of the dtype
        base = xr.Variable(base.dims, base.values.astype(np.int64), base.attrs)
        entry["timedelta"] = str(variable.dtype)
    encoded = (
        base if base.dtype.kind in "USTO" and not _is_time(base) else xr.conventions.encode_cf_variable(base, name=name)
    )
    entry["attrs"] = {key: value for key, value in json_attrs(encoded.attrs).items() if key != "_FillValue"}
    values = np.asarray(encoded.values)
    if values.dtype.kind in "USTO":
        return {**entry, "text": [str(value) for value in text_values(values).ravel()]}
    little = values.astype(values.dtype.newbyteorder("<"))
    return {**entry, "dtype": little.dtype.str, "data": base64.b64encode(little.tobytes()).decode()}


def _is_time(variable: xr.Variable) -> bool:
    return bool(variable.size) and hasattr(variable.values.ravel()[0], "calendar")


def template_from_json(text: str) -> xr.Dataset:
    """The template that ``template_to_json`` wrote."""
    tree = json.loads(text)
    coords = {name: _coordinate_from(entry) for name, entry in tree["coords"].items()}
    decoded = xr.decode_cf(xr.Dataset(coords=coords), decode_timedelta=False, decode_coords=False)
    for name, entry in tree["coords"].items():
        if "timedelta" in entry:
            decoded = decoded.assign_coords(
                {name: (entry["dims"], decoded[name].values.astype(entry["timedelta"]), decoded[name].attrs)}
            )
    data = {
        name: xr.Variable(
            tuple(e["dims"]),
            _empty(tuple(e["shape"]), np.dtype(e["dtype"])),
            json_attrs(e["attrs"]),
            {"dtype": np.dtype(e["whole"])} if "whole" in e else {},
        )
        for name, e in tree["data"].items()
    }
    return xr.Dataset(data, coords=decoded.coords, attrs=json_attrs(tree["attrs"]))


def _coordinate_from(entry: Mapping[str, Any]) -> xr.Variable:
    if "text" in entry:
        values: Array = np.array(entry["text"], dtype=object)
    else:
        values = np.frombuffer(base64.b64decode(entry["data"]), dtype=entry["dtype"])
        values = values.astype(values.dtype.newbyteorder("="))
    return xr.Variable(tuple(entry["dims"]), values.reshape(entry["shape"]), json_attrs(entry["attrs"]))
