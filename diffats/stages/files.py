"""Whether what no repository holds is still what was written: a root's checkpoints and bundles, and the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import bundle
from diffats.compute import open_cluster
from diffats.errors import DiffatsError, IntegrityError, SourceError
from diffats.progress import LoggedProgress
from diffats.requirements import require
from diffats.sources import DIGEST_BYTES
from diffats.sources.parts import files_along
from diffats.stages import decompose, growth
from diffats.stages.growth import DIGEST
from diffats.stages.workspace import Progress, Workspace, find_store, shard_bounds
from diffats.store import Version

Array = npt.NDArray[Any]

_SHOWN = 20  # lines about samples
_RESTORE = "Bring the source back, or run the stages again: a source that has changed is encoded anew."
_RESTORE_GROWN = "Bring the source back, or encode all of it anew: `diffats decompose RECIPE.toml --restart`."


def problems(work: Workspace, *, progress: Progress | None = None) -> list[str]:
    """What is damaged or has changed, a line each. All samples of the source are read.

    Parameters
    ----------
    progress
        Called with samples read, all samples, and those that are not what was encoded; logged where left out.
    """
    checkpoints = [text for path in sorted(work.root.glob("training/*")) for text in _checkpoints(path)]
    source = _source(work, progress or LoggedProgress("verify, source"))
    return [*source, *checkpoints, *_bundles(work.root)]


# --- the source ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoded:
    """What is stored of the source's samples: their digests ``(n, 16)`` (None of an earlier release) and places."""

    version: Version
    digests: Array | None
    coords: xr.Dataset

    @classmethod
    def find(cls, work: Workspace) -> _Encoded | None:
        """Of the Tucker forms that the recipe uses, or, where its source has changed, used; None where they are lost.

        Damage of the store itself is for the store's own verification to tell.
        """
        try:
            version = _newest(work)
            if version is None:
                return None
            ds = version.dataset(indexes=False)
            names = [name for name, coord in ds.coords.items() if coord.dims[:1] == ("sample",)]
            digests = ds[DIGEST].values if DIGEST in version.record.filled else None
            return cls(version, digests, ds[names].load())
        except SourceError:
            raise
        except DiffatsError:
            return None

    @property
    def n(self) -> int:
        """How many samples are stored."""
        return self.version.record.n


def _newest(work: Workspace) -> Version | None:
    store = find_store(work.store_location)
    if store is None:
        return None
    used = decompose.tucker_version(work)
    if used is not None and used.complete:
        return used
    newest = store.latest("tucker")
    if newest is None:
        return None
    recipe, mine = json.loads(newest.attrs["recipe"]), work.portable
    return newest if (recipe["data"], recipe["seed"]) == (mine["data"], mine["seed"]) else None


def _source(work: Workspace, progress: Progress) -> Iterator[str]:
    """Whether the source holds the samples that are stored."""
    where = f'data.source "{work.recipe.data.source}"'
    try:
        encoded = _Encoded.find(work)
        found = [] if encoded is None else list(_differences(work, encoded, progress))
    except SourceError as error:
        yield str(error)
        return
    fix = _RESTORE_GROWN if work.recipe.data.grows else _RESTORE
    yield from (f"{where}: {text}.{'' if i else f' {fix}'}" for i, text in enumerate(found))


def _differences(work: Workspace, encoded: _Encoded, progress: Progress) -> Iterator[str]:
    if encoded.digests is None:
        if encoded.version.attrs.get("source") != work.source_digest:
            yield "its files, their sizes or times, or its metadata have changed since it was encoded"
        return
    yield from growth.lost_files(work, encoded.version)
    n = work.samples.n
    if n < encoded.n or (n > encoded.n and not work.recipe.data.grows):
        yield f"it has {n} samples, and {encoded.n} were encoded"
    yield from (f"its samples were encoded {text}" for text in growth.kind_differences(work, encoded.version))
    yield from _samples(work, encoded, encoded.digests, progress)


def _samples(work: Workspace, encoded: _Encoded, before: Array, progress: Progress) -> Iterator[str]:
    """Samples that are not what was encoded, a line for each run of them; all are read."""
    now, unreadable = _digests(work, encoded.version.record.shard, progress)
    both = min(len(before), len(now))
    differs = np.ones(len(before), bool)
    differs[:both] = (before[:both] != now[:both]).any(axis=1)
    there = {each.tobytes() for each in now}
    moved = np.array([bool(d) and each.tobytes() in there for d, each in zip(differs, before, strict=True)])
    lost = np.flatnonzero(differs & ~moved)
    runs = np.split(lost, np.flatnonzero(np.diff(lost) > 1) + 1) if lost.size else []
    for run in runs[:_SHOWN]:
        why = f" ({unreadable[int(run[0])]})" if int(run[0]) in unreadable else ""
        yield f"{_named(work, encoded, int(run[0]), int(run[-1]))} not what was encoded{why}"
    if len(runs) > _SHOWN:
        yield f"{sum(map(len, runs[_SHOWN:]))} more samples are not what was encoded"
    if moved.any():
        yield f"{moved.sum()} samples, the first of them sample {moved.argmax()}, are at other places"
    if not differs.any():
        names = growth.moved_coordinates(encoded.coords, _coords(work, encoded))
        yield from (f'coordinate "{name}" of its samples has other values than were stored' for name in names)


def _digests(work: Workspace, shard: int, progress: Progress) -> tuple[Array, dict[int, str]]:
    """Digests ``(n, 16)`` of all samples as the source has them now, and why some cannot be read."""
    n, done = work.samples.n, 0
    digests, unreadable = np.zeros((n, DIGEST_BYTES), np.uint8), dict[int, str]()
    read = partial(_read, data=work.data, seed=work.recipe.seed, boundary=work.samples.boundary)
    with open_cluster(work.recipe.compute) as cluster:
        for (start, stop), (found, errors) in cluster.map(read, shard_bounds(n, shard)):
            digests[start:stop] = found
            unreadable |= errors
            done += stop - start
            progress(done, n, len(unreadable))
    return digests, unreadable


def _read(bounds: tuple[int, int], **opened: Any) -> tuple[Array, dict[int, str]]:
    """Digests of the samples of a run, zeros for those that cannot be read, and why they cannot."""
    try:
        return growth.read_digests(bounds, **opened), {}
    except SourceError as error:
        start, stop = bounds
        if stop - start == 1:
            return np.zeros((1, DIGEST_BYTES), np.uint8), {start: str(error).removesuffix(".")}
        middle = (start + stop) // 2
        (a, why_a), (b, why_b) = _read((start, middle), **opened), _read((middle, stop), **opened)
        return np.concatenate([a, b]), why_a | why_b


def _named(work: Workspace, encoded: _Encoded, first: int, last: int) -> str:
    """Samples by number, coordinates and file."""
    coords = encoded.coords
    words = growth.place_of(coords, first, growth.places_of(coords))
    words += f" to {last}" if last > first else ""
    files = _files(work, first, last)
    words += f" in {files[0]}" if len(files) == 1 else f" in {files[0]} to {files[-1]}" if files else ""
    return f"{words} {'are' if last > first else 'is'}"


def _files(work: Workspace, first: int, last: int) -> list[str]:
    """The files of a glob that some samples are read from."""
    samples, dim = work.samples, work.samples.growing_dim
    at = samples.position if dim == samples.data.sample_dim else samples.starts[dim]
    if at is None or last >= samples.n:
        return []
    low, high = at[first : last + 1].min(), at[first : last + 1].max() + samples.data.windows.size.get(dim, 1)
    found, start = [], 0
    for name, length in files_along(samples.dataset, dim):
        if start < high and start + length > low:
            found.append(name)
        start += length
    return found


def _coords(work: Workspace, encoded: _Encoded) -> xr.Dataset:
    return decompose.template(work, decompose.layout_of(encoded.version), encoded.version.record.shard)


# --- trainings and models -----------------------------------------------------------------------------------------


def _checkpoints(directory: Path) -> list[str]:
    require("checking the checkpoints of a training", "train")
    from diffats.training import damaged_checkpoints

    return damaged_checkpoints(directory)


def _bundles(root: Path) -> list[str]:
    found = []
    for directory in sorted(root.glob("bundles/[!.]*/")):
        try:
            if not (directory / "bundle.json").is_file():
                raise IntegrityError(f"{directory}: bundle.json of this bundle is lost. Train again: it is made anew.")
            bundle.load(directory, device="cpu")
        except DiffatsError as error:
            found.append(str(error))
    return found
