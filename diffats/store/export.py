"""A plain Zarr tree of some groups."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import icechunk
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore

from diffats.errors import InputError
from diffats.store.schema import DIGESTS, public_attrs


def export_groups(
    sources: Mapping[str, icechunk.Session], destination: Path, under: str, attrs: Mapping[str, Any]
) -> None:
    """Copy groups, chunk by chunk as they are compressed, and consolidate the tree's metadata.

    Parameters
    ----------
    sources
        For each group, the session to read it from.
    destination
        Of the tree.
    under
        The group of the tree that receives them; its root where empty.
    attrs
        Of that group.

    Raises
    ------
    InputError
        Where something else is in the way.
    """
    target = destination / under
    if target.exists() or (destination.exists() and not (destination / "zarr.json").exists()):
        raise InputError(f"{target} exists. Export to another place, or remove it.")
    tree = LocalStore(destination)
    zarr.open_group(tree, mode="a", zarr_format=3)
    zarr.open_group(tree, path=under, mode="a", zarr_format=3).attrs.update(dict(attrs))
    prefix = f"{under}/" if under else ""
    for group, session in sources.items():
        sync(_copy(session, group, tree, prefix))
        copied = zarr.open_group(tree, path=prefix + group, mode="r+", zarr_format=3)
        copied.attrs.put(public_attrs(dict(copied.attrs)))
    with warnings.catch_warnings():
        # Zarr warns that version 3 does not specify it; without it xarray warns that opening is slow.
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(tree, zarr_format=3)


async def _copy(session: icechunk.Session, group: str, tree: LocalStore, prefix: str) -> None:
    store, prototype = session.store, default_buffer_prototype()
    async for key in store.list_prefix(f"{group}/"):
        if key.startswith(f"{group}/{DIGESTS}/"):
            continue
        value = await store.get(key, prototype)
        if value is not None:
            await tree.set(prefix + key, value)
