"""A version of a group that begins with the samples of an earlier one; no chunk of these is copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import icechunk
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from diffats.errors import StoreError
from diffats.store import schema
from diffats.store.schema import DIGESTS, SAMPLE, Record
from diffats.store.version import Version


def grow_group(
    session: icechunk.Session, previous: Version, template: xr.Dataset, attrs: Mapping[str, Any] | None
) -> Record:
    """Make the head's copy of a version longer: what is filled is resized, all else is written anew.

    The shards that have new samples are pending. The old ones in them are not: the chunks hold them till then.

    Parameters
    ----------
    session
        Whose head holds the arrays of ``previous``.
    previous
        A complete version.
    template
        Of the new one.
    attrs
        Attributes of the group, besides the template's.

    Returns
    -------
    Record
        Of the new version, with the fingerprint of the previous one.

    Raises
    ------
    StoreError
        Where the template has fewer samples, or other variables, dims or dtypes.
    """
    group, record, n = previous.group, previous.record, template.sizes[SAMPLE]
    where = f"store {previous.store.location}, group {group}"
    _check(previous, template, where)
    ready = schema.sharded_template(template, record.shard, where).assign_attrs(schema.plain(attrs))
    kept = record.n // record.shard if n > record.n else record.n_shards
    ready["status"][: record.n] = previous.status()
    ready[DIGESTS][:kept] = previous.shard_digests()[:kept]
    root = zarr.open_group(session.store, path=group, mode="r+", zarr_format=3)
    for name in list(root.array_keys()):
        if name in record.filled:
            array = schema.open_array(session.store, group, name, write=True)
            array.resize((n, *array.shape[1:]))
        else:
            del root[name]
    root.attrs.put({})
    schema.write_template(ready.drop_vars(record.filled), session.store, group, record.filled, record.shard)
    static = schema.static_digests(session.store, group, record.filled)
    return Record(record.fingerprint, n, record.shard, record.filled, static)


def _check(previous: Version, template: xr.Dataset, where: str) -> None:
    record = previous.record
    if template.sizes[SAMPLE] < record.n:
        raise StoreError(f"{where}: a version of {record.n} samples cannot grow to {template.sizes[SAMPLE]}.")
    if tuple(schema.filled_names(template)) != record.filled:
        raise StoreError(
            f"{where}: the template fills {', '.join(schema.filled_names(template))}, the version that grows has "
            f"{', '.join(record.filled)}. Begin anew with --restart."
        )
    for name in record.filled:
        array = previous.raw(name)
        if array.chunks[0] != record.shard:
            raise StoreError(f"{where}, variable {name}: one chunk holds {array.chunks[0]} samples. Use --restart.")
    previous.check_template(template.isel({SAMPLE: slice(record.n)}))


def copy_group(source: icechunk.Session, target: icechunk.Session, group: str) -> None:
    """Bring a group of an old snapshot back to the head, chunk by chunk as stored."""
    sync(_copied(source.store, target.store, f"{group}/"))


async def _copied(source: icechunk.IcechunkStore, target: icechunk.IcechunkStore, prefix: str) -> None:
    prototype = default_buffer_prototype()
    async for key in source.list_prefix(prefix):
        content = await source.get(key, prototype)
        if content is not None:
            await target.set(key, content)
