"""Coordinates that a group has from the groups above it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import PurePosixPath

import xarray as xr

logger = logging.getLogger("diffats.sources")


def with_parents(dataset: xr.Dataset, group: str, opens: Callable[[str | None], xr.Dataset]) -> xr.Dataset:
    """A group with the coordinates of the groups above it, the nearest first.

    These are the coordinates of its dims, as `xarray.open_datatree` has them, and what its variables name as their
    coordinates (CF conventions, section 2.7), such as a latitude over two dims.

    Parameters
    ----------
    dataset, group
        The group and its path.
    opens
        Opens a group by its path; None is the root.
    """
    named = {word for variable in dataset.variables.values() for word in _coordinates(variable).split()}
    for place in PurePosixPath(group.strip("/")).parents:
        above = opens(None if str(place) == "." else str(place))
        found = {}
        for name, variable in above.variables.items():
            if name in dataset.variables or not (name in above.indexes or name in named):
                continue
            if any(dim not in dataset.sizes for dim in variable.dims):
                continue
            if all(dataset.sizes[dim] == size for dim, size in variable.sizes.items()):
                found[name] = above[name].variable
            else:
                text = 'data.source: coordinate "%s" above group "%s" has another length than its dim in it: left out.'
                logger.warning(text, name, group)
        dataset = dataset.assign_coords(found)
    return dataset


def _coordinates(variable: xr.Variable) -> str:
    return str(variable.encoding.get("coordinates") or variable.attrs.get("coordinates") or "")
