"""Icechunk repositories of both formats, whatever release is installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import xarray as xr

from diffats.store import Store
from diffats.store.location import forget, storage_for

#: Of the installed release: 1 reads and writes format 1, 2 both.
RELEASE = int(icechunk.__version__.partition(".")[0])
FORMATS = (1, 2)[:RELEASE]
VALUES = np.random.default_rng(0).normal(size=(20, 50))


class Serial:
    """A cluster that needs none."""

    def map(self, function: Any, items: Any, **_: Any) -> Any:
        return ((item, function(item)) for item in items)


def fill(start: int, stop: int) -> dict[str, np.ndarray]:
    return {"v": VALUES[start:stop], "status": np.ones(stop - start, np.int8)}


def empty_repository(place: Path, format_: int) -> None:
    """Make one of a format."""
    options = {"spec_version": format_} if RELEASE > 1 else {}
    icechunk.Repository.create(storage_for(place), **options)


def add_version(place: Path, fingerprint: str) -> None:
    """Write ``VALUES`` as a version of group v."""
    template = xr.Dataset({"v": (("sample", "x"), np.zeros((20, 50)))})
    version = Store.create_or_open(place).begin("v", template, fingerprint=fingerprint, shard=7)
    version.fill(fill, Serial())
    version.finish()


def made_by_other_release(place: Path, release: int) -> None:
    """A repository with version "first" of group v, as a release has made it: 1.1.21, or 2.3.0."""
    shutil.unpack_archive(Path(__file__).with_name(f"icechunk_{release}.zip"), place)


def head_file(place: Path) -> Path:
    """The file that names the newest commit."""
    found = [place / name for name in ("repo", "refs/branch.main/ref.json") if (place / name).exists()]
    assert len(found) == 1
    return found[0]


def fresh(place: Path) -> Store:
    """As another process opens it."""
    forget()
    return Store.open(place)


def problems(place: Path) -> list[str]:
    return [str(problem) for problem in fresh(place).verify()]
