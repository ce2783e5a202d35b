"""All writing: versioned groups of samples in an Icechunk repository, filled shard by shard from many workers.

`Store` opens a repository, `Version` is one version of a group in it, `writer_lock` keeps a second writer out.
"""

from diffats.store.lock import is_being_written, writer_lock
from diffats.store.opening import open_version
from diffats.store.schema import ALL_ZERO, NON_FINITE, NOT_CONVERGED, OK, PENDING, SOURCE_TEXT, STATUS, status_attrs
from diffats.store.store import Store
from diffats.store.verify import Problem
from diffats.store.version import Version

__all__ = [
    "ALL_ZERO",
    "NON_FINITE",
    "NOT_CONVERGED",
    "OK",
    "PENDING",
    "Problem",
    "SOURCE_TEXT",
    "STATUS",
    "Store",
    "Version",
    "is_being_written",
    "open_version",
    "status_attrs",
    "writer_lock",
]
