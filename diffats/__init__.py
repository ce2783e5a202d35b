"""Aligned tensor primitives of spatiotemporal fields, and diffusion models on them.

>>> import diffats
>>> diffats.load("no/such/place")
Traceback (most recent call last):
...
diffats.errors.StoreNotFoundError: no/such/place: no trained model here. Train one with `diffats train RECIPE.toml`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from diffats.bundle import Bundle

__version__ = version("diffats")
__all__ = ["load", "open_version"]


def load(location: str | Path) -> Bundle:
    """Open a trained model.

    Parameters
    ----------
    location
        A recipe's root, a bundle's directory, or a registered model: ``"models:/indian-pines@champion"``.

    Returns
    -------
    Bundle
        With ``sample``, ``encode`` and ``decode``; a path needs no server.

    Raises
    ------
    StoreNotFoundError
        Where there is no model.
    MissingPackageError
        Where the model is registered and MLflow is not installed, or the model is to sample and torch is not.
    """
    from diffats import bundle

    if str(location).startswith("models:/"):
        from diffats.requirements import require

        require("a registered model", "track")
        from diffats import registry

        location = registry.download(str(location))
    return bundle.load(location)


def open_version(location: str | Path, group: str = "primitives", version: str | None = None) -> xr.Dataset:
    """Open a stored version of a group, lazily.

    Parameters
    ----------
    location
        A recipe's ``root`` (or its ``store``), or a repository: ``"runs/demo/store"``, ``"s3://bucket/demo/store"``.
    group
        "scaling", "tucker", "anchor", "primitives", "normalisation" or "samples"; ``diffats inspect`` lists them.
    version
        Its id or the first characters of it, or a tag; the newest finished one where left out.

    Returns
    -------
    xr.Dataset
        Whose values are read when they are asked for.

    Raises
    ------
    StoreNotFoundError
        Where there is no such version.

    Examples
    --------
    >>> open_version("no/such/place")
    Traceback (most recent call last):
    ...
    diffats.errors.StoreNotFoundError: no/such/place: there is no store. Give a recipe's root, or a repository.
    """
    from diffats.store import open_version

    return open_version(str(location), group, version)
