"""What libraries raise for content that they cannot read, as our error."""

from __future__ import annotations

import struct
import sys
import tokenize
import zipfile
import zlib
from typing import Any

import icechunk
import numpy as np
import xarray as xr

from diffats.errors import SourceError

# Of xarray's engines, zarr and its codecs, h5py, fsspec and icechunk.
_KINDS = (
    *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError, EOFError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, icechunk.IcechunkError),
)


# Errors that are none of those, by the modules that have them once they are loaded.
_OWN = {"botocore.exceptions": "BotoCoreError", "gribapi.errors": "GribInternalError"}


def unreadable() -> tuple[type[Exception], ...]:
    """Those, and the own errors of botocore and ecCodes where these are loaded: missing credentials are no OSError."""
    return (*_KINDS, *(getattr(sys.modules[module], name) for module, name in _OWN.items() if module in sys.modules))


def reason(error: BaseException) -> str:
    """The first line of an error, without its full stop."""
    text = str(error).strip().splitlines()
    return (text[0][:300] if text else type(error).__name__).rstrip(".")


def values_of(array: xr.DataArray | xr.Variable) -> np.ndarray[Any, Any]:
    """The numbers of a lazy array, read now.

    Raises
    ------
    SourceError
        Where they cannot be read: metadata may be fine where content is damaged or gone.
    """
    try:
        return np.asarray(array.values)
    except SourceError:
        raise
    except unreadable() as error:
        dims = ", ".join(map(str, array.dims))
        name = f'"{array.name}"' if isinstance(array, xr.DataArray) else f"a coordinate along {dims}"
        place = f" of {array.encoding['source']}" if "source" in array.encoding else ""
        raise SourceError(
            f"data.source: {name}{place} cannot be read: {reason(error)}. It is damaged, or was changed or removed "
            "while it was read. Mend it, and run the same command; what was committed stays."
        ) from error
