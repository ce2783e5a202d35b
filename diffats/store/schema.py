"""What a group looks like: status flags, the template written through xarray, digests of content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import dask.array
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from diffats.digests import json_digest
from diffats.errors import StoreError

Array = npt.NDArray[Any]

#: What can be known of a sample, as CF flags.
STATUS = {"pending": 0, "ok": 1, "non_finite": 2, "all_zero": 3, "not_converged": 4}
PENDING, OK, NON_FINITE, ALL_ZERO, NOT_CONVERGED = STATUS.values()

SAMPLE = "sample"
DIGESTS = "shard_digest"
RECORD = "diffats"  # the group attribute that holds a `Record`
SOURCE_TEXT = "source_text"  # that for what the data set calls its source, where the group has no template to say it
_DIGEST_BYTES = 32
_LARGEST_CHUNK = 2**31 - 1  # Zstandard's limit in numcodecs
_ENCODING = {"_FillValue", "missing_value", "scale_factor", "add_offset", "dtype", "coordinates"}
_ROWS_AT_ONCE = 2**16
_COORDS_AT_ONCE = 2**12  # samples: a worker reads the chunk that its shard is in


def status_attrs() -> dict[str, Any]:
    """CF attributes of a ``status`` variable.

    >>> status_attrs()["flag_meanings"]
    'pending ok non_finite all_zero not_converged'
    """
    return {
        "long_name": "what became of the sample",
        "flag_values": list(STATUS.values()),
        "flag_meanings": " ".join(STATUS),
    }


@dataclass(frozen=True)
class Record:
    """What a version says about itself, beside its arrays."""

    fingerprint: str
    n: int
    shard: int
    filled: tuple[str, ...]
    """Variables that workers fill, sorted."""
    static: Mapping[str, str]
    """Digest of each variable written with the template."""
    complete: bool = False
    digest: str = ""
    attributes: str = ""
    """Digest of a complete version's group attributes, which ``digest`` leaves out."""
    format: int = 1

    def to_attr(self) -> dict[str, Any]:
        """As JSON gives it back."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return tree

    @classmethod
    def from_attr(cls, attr: Mapping[str, Any], where: str) -> Record:
        """The record in a group's attributes.

        Raises
        ------
        StoreError
            Where a later release wrote it.
        """
        if attr.get("format") != cls.format:
            raise StoreError(
                f"{where} has format {attr.get('format')!r}, this release reads {cls.format}. Install a newer diffats."
            )
        return cls(**{**attr, "filled": tuple(attr["filled"])})

    @property
    def n_shards(self) -> int:
        """How many shards there are; none where all was written at once."""
        return math.ceil(self.n / self.shard) if self.filled else 0

    def bounds(self, shard: int) -> tuple[int, int]:
        """First sample of a shard and the one after its last."""
        return shard * self.shard, min((shard + 1) * self.shard, self.n)

    def completed(self, digest: str, attrs: Mapping[str, Any]) -> Record:
        """The record of the finished version."""
        return replace(self, complete=True, digest=digest, attributes=attributes_digest(attrs))


def attributes_digest(attrs: Mapping[str, Any]) -> str:
    """SHA-256 of a group's attributes."""
    return json_digest(dict(attrs))


def plain(attrs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes as JSON gives them back.

    Raises
    ------
    StoreError
        Where a value is not JSON.
    """
    try:
        tree: dict[str, Any] = json.loads(json.dumps(dict(attrs or {})))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"attributes are not JSON ({error}). Give strings, numbers, lists and mappings only."
        ) from error
    if RECORD in tree:
        raise StoreError(f'the attribute "{RECORD}" is the store\'s own. Use another name.')
    return tree


def public_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A group's attributes outside its store, where ``source`` is what the data set says of itself.

    In a store ``source`` is the digest of what was encoded, here ``source_digest``.

    >>> public_attrs({"source": "60a779", "source_text": "a spectrometer"})
    {'source_digest': '60a779', 'source': 'a spectrometer'}
    """
    out = {"source_digest" if key == "source" else key: value for key, value in attrs.items() if key != SOURCE_TEXT}
    text = attrs.get(SOURCE_TEXT)
    if "template" in attrs:
        text = json.loads(attrs["template"])["attrs"].get("source")
    return out if text is None else {**out, "source": text}


def sharded_template(template: xr.Dataset, shard: int, where: str) -> xr.Dataset:
    """The data set that xarray writes: filled variables stand for themselves, nothing of their size is allocated.

    Parameters
    ----------
    template
        Data variables with dim ``sample`` (first) are filled later, all else is written with the template.
    shard
        Samples in a shard.
    where
        Store and group, for messages.

    Raises
    ------
    StoreError
        Where nothing is to be filled, or a shard cannot be one chunk.
    """
    if SAMPLE not in template.sizes or not template.sizes[SAMPLE]:
        raise StoreError(f"{where}: the template has no samples. Give at least one variable with dim {SAMPLE!r}.")
    if shard < 1:
        raise StoreError(f"{where}: shard size {shard} is not positive. Use at least 1.")
    n, names = template.sizes[SAMPLE], filled_names(template)
    ds = template.drop_vars("status", errors="ignore").drop_encoding()
    for name in names:
        _check_filled(template[name], shard, f"{where}, variable {name}")
        ds[name] = _unallocated(template[name])
    ds["status"] = (SAMPLE, np.zeros(n, np.int8), _attrs_of(template, "status") | status_attrs())
    rows = math.ceil(n / shard)
    ds[DIGESTS] = (("shard", "shard_variable", "byte"), np.zeros((rows, len(names), _DIGEST_BYTES), np.uint8))
    return ds


def filled_names(template: xr.Dataset) -> list[str]:
    """Names of the variables that workers fill, ``status`` aside."""
    return sorted(str(name) for name, array in template.data_vars.items() if SAMPLE in array.dims and name != "status")


def _attrs_of(ds: xr.Dataset, name: str) -> dict[str, Any]:
    return dict(ds[name].attrs) if name in ds else {}


def _check_filled(array: xr.DataArray, shard: int, where: str) -> None:
    if array.dims[0] != SAMPLE:
        raise StoreError(
            f"{where}: dims are {array.dims}, expected {SAMPLE!r} first. Transpose the variable in the template."
        )
    if array.dtype.kind not in "biufc":
        raise StoreError(f"{where}: dtype {array.dtype} cannot be filled by shards. Use numbers, or make it a coord.")
    size = min(shard, array.shape[0]) * math.prod(array.shape[1:]) * array.dtype.itemsize
    if size > _LARGEST_CHUNK:
        raise StoreError(
            f"{where}: a shard of {shard} samples takes {size} bytes, at most {_LARGEST_CHUNK} fit one chunk. "
            "Lower compute.shard_samples."
        )


def _unallocated(array: xr.DataArray) -> xr.Variable:
    lazy = dask.array.zeros(array.shape, dtype=array.dtype, chunks=array.shape)
    # What is filled in is final: no reader shall decode it once more.
    return xr.Variable(array.dims, lazy, {key: value for key, value in array.attrs.items() if key not in _ENCODING})


def write_template(
    ds: xr.Dataset, store: Any, group: str, filled: Sequence[str], shard: int, *, grows: bool = False
) -> None:
    """Create a group's arrays and write what is small, through xarray.

    Parameters
    ----------
    ds
        Of `sharded_template`, or a whole small data set.
    store
        Zarr store of a session.
    group
        Name of the group. No array in ``ds`` exists there.
    filled
        Variables stored in one chunk a shard.
    shard
        Samples in a shard.
    grows
        Whether the last shard may become a whole one.
    """
    whole_shards = {str(name): _chunks(ds[name], shard) for name in filled if name in ds}
    if grows:
        whole_shards = {name: (shard, *chunks[1:]) for name, chunks in whole_shards.items()}
    if DIGESTS in ds:
        rows = max(1, _ROWS_AT_ONCE // (_DIGEST_BYTES * max(1, len(filled))))
        whole_shards["status"] = _chunks(ds["status"], _whole(shard, _ROWS_AT_ONCE))
        whole_shards[DIGESTS] = _chunks(ds[DIGESTS], rows)
    encoding: dict[Hashable, dict[str, Any]] = {}
    for name, variable in ds.variables.items():
        # The checksum makes any reader stumble over a changed byte; numbers like these hardly compress, so level 1.
        encoding[name] = {"compressors": (ZstdCodec(level=1), Crc32cCodec())}
        if str(name) in whole_shards:
            encoding[name]["chunks"] = whole_shards[str(name)]
        elif variable.dims[:1] == (SAMPLE,):
            encoding[name]["chunks"] = _chunks(ds[name], _whole(shard, _COORDS_AT_ONCE))
        if variable.dtype.kind in "fc":
            encoding[name] |= {"fill_value": np.nan, "_FillValue": None}
    ready = _no_fixed_strings(ds)
    ready = ready.assign({name: ready[name].compute() for name in ready.variables if str(name) not in whole_shards})
    # The list of coordinates on disk is split at spaces, so xarray writes such coordinates as it writes variables.
    ready = ready.reset_coords([name for name in ready.coords if " " in str(name) and name not in ready.dims])
    ready.to_zarr(store, group=group, mode="a", zarr_format=3, consolidated=False, compute=False, encoding=encoding)


def _whole(shard: int, samples: int) -> int:
    """About so many samples, in whole shards."""
    return shard * max(1, samples // shard)


def _chunks(array: xr.DataArray, first: int) -> tuple[int, ...]:
    return (min(first, array.shape[0]), *(max(1, size) for size in array.shape[1:]))


def _no_fixed_strings(ds: xr.Dataset) -> xr.Dataset:
    """Zarr v3 specifies strings of variable length only."""
    fixed = [name for name, variable in ds.variables.items() if variable.dtype.kind in "US"]
    return ds.assign({name: ds[name].astype(object) for name in fixed}) if fixed else ds


def array_digest(array: Array) -> bytes:
    """SHA-256 over dtype, shape and content.

    >>> array_digest(np.zeros(2)) == array_digest(-np.zeros(2))
    False
    """
    found = hashlib.sha256(json.dumps([_kind(array), list(array.shape)]).encode())
    if array.dtype.kind in "OT":
        for text in array.ravel():
            data = str(text).encode()
            found.update(len(data).to_bytes(8, "little") + data)
    else:
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.digest()


def _kind(array: Array) -> str:
    return "string" if array.dtype.kind in "OT" else array.dtype.newbyteorder("<").str


def open_array(store: Any, group: str, name: str, *, write: bool = False) -> Any:
    """A group's array, as Zarr sees it: no decoding, and every chunk that is written is kept."""
    array = zarr.open_array(store, path=f"{group}/{name}", mode="r+" if write else "r", zarr_format=3)
    # Zarr leaves out chunks equal to the fill value, and takes -0.0 for 0.0; a missing chunk shall always mean damage.
    return array.with_config({"write_empty_chunks": True}) if write else array


def static_digests(store: Any, group: str, filled: Iterable[str]) -> dict[str, str]:
    """Digest of each array of a group that was written with its template, as stored."""
    later = {*filled, DIGESTS} | ({"status"} if filled else set())
    names = sorted(set(zarr.open_group(store, path=group, mode="r", zarr_format=3).array_keys()) - later)
    return {name: array_digest(np.asarray(open_array(store, group, name)[...])).hex() for name in names}


def content_digest(store: Any, group: str, record: Record) -> str:
    """Digest of a whole version: each array's name, dims, attributes and content.

    Attributes of the group are left out: they may tell when and where a version was made.
    """
    described: dict[str, Any] = {}
    for name, array in zarr.open_group(store, path=group, mode="r", zarr_format=3).arrays():
        metadata: Any = array.metadata
        described[name] = [list(metadata.dimension_names or ()), dict(array.attrs)]
    head = json.dumps([described, record.static, record.filled, record.n, record.shard], sort_keys=True)
    found = hashlib.sha256(head.encode())
    if record.filled:
        found.update(array_digest(np.asarray(open_array(store, group, DIGESTS)[...])))
        found.update(array_digest(np.asarray(open_array(store, group, "status")[...])))
    return found.hexdigest()
