"""Open a version of a group as a data set."""

from __future__ import annotations

import xarray as xr

from diffats.attributes import json_attrs
from diffats.errors import StoreNotFoundError
from diffats.store.schema import public_attrs
from diffats.store.store import Store
from diffats.store.version import Version

_GENERATED = "samples"  # a group, and the repository that holds it


def open_version(location: str, group: str, version: str | None = None) -> xr.Dataset:
    """See `diffats.open_version`."""
    store = _find(location, group)
    if version is None:
        newest = store.latest(group)
        if newest is None:
            groups = ", ".join(dict.fromkeys(entry["group"] for entry in store.versions())) or "none"
            raise StoreNotFoundError(f"store {store.location} has no finished group {group}. Its groups: {groups}.")
        return described(newest)
    found = store.resolve(version, group)
    if not found:
        known = ", ".join(entry["snapshot"] for entry in store.versions() if entry["group"] == group) or "none"
        raise StoreNotFoundError(
            f'store {store.location} has no version "{version}" of group {group}. Its versions: {known}.'
        )
    return described(Version(store, group, found[-1]["snapshot"]))


def described(version: Version) -> xr.Dataset:
    """A version's content, with the attributes that a reader expects."""
    ds = version.dataset()
    ds.attrs = json_attrs(public_attrs(ds.attrs))
    return ds


def _find(location: str, group: str) -> Store:
    for place in (f"{location}/{_GENERATED if group == _GENERATED else 'store'}", location):
        try:
            return Store.open(place)
        except StoreNotFoundError:
            continue
    raise StoreNotFoundError(f"{location}: there is no store. Give a recipe's root, or a repository.")
