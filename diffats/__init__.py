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
    from diffats.bundle import Bundle

__version__ = version("diffats")
__all__ = ["load"]


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
    """
    from diffats import bundle

    if str(location).startswith("models:/"):
        from diffats import registry

        location = registry.download(str(location))
    return bundle.load(location)
