"""Whether what no repository holds is still what was written: a root's checkpoints and bundles, and the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from diffats import bundle
from diffats.errors import DiffatsError, IntegrityError, SourceError
from diffats.stages import decompose, growth
from diffats.stages.workspace import Workspace, find_store, shard_bounds
from diffats.store import Version


def problems(work: Workspace) -> list[str]:
    """What is damaged or has changed, a line each."""
    from diffats.training import damaged_checkpoints

    checkpoints = [text for path in sorted(work.root.glob("training/*")) for text in damaged_checkpoints(path)]
    return [*_source(work), *checkpoints, *_bundles(work.root)]


def _source(work: Workspace) -> list[str]:
    """Whether the source is the one whose samples are stored, by its stamps; by its content, where it grows."""
    store, data = find_store(work.store_location), work.portable["data"]
    try:
        stored = None if store is None else store.latest("tucker")
    except DiffatsError:  # found by the store's own verification
        return []
    if stored is None or json.loads(stored.attrs["recipe"])["data"] != data:
        return []
    try:
        if work.recipe.data.grows:
            return list(_samples(work, stored))
        used = decompose.tucker_version(work)
    except SourceError as error:
        return [str(error)]
    if (used is not None and used.complete) or stored.attrs.get("source", work.source_digest) == work.source_digest:
        return []
    return [
        f'data.source "{work.recipe.data.source}" is not what was encoded: its files, their sizes or times, or its '
        "metadata have changed since. Bring it back, or run the stages again, which encode it anew."
    ]


def _samples(work: Workspace, stored: Version) -> Iterator[str]:
    """Samples of a growing source that are not what was encoded; all are read."""
    source, n = work.recipe.data.source, min(stored.record.n, work.samples.n)
    if n < stored.record.n:
        yield f'data.source "{source}": samples {n} to {stored.record.n - 1} are gone.'
    digests = stored.raw(growth.DIGEST)
    read = partial(growth.read_digests, data=work.data, seed=work.recipe.seed, boundary=work.samples.boundary)
    for bounds in shard_bounds(n, stored.record.shard):
        differs = (read(bounds) != np.asarray(digests[slice(*bounds)])).any(axis=1)
        for i in np.flatnonzero(differs):
            yield f'data.source "{source}": sample {bounds[0] + i} is not what was encoded. Bring it back.'


def _bundles(root: Path) -> list[str]:
    found = []
    for directory in sorted(path for path in root.glob("bundles/*/") if path.suffix != ".partial"):
        try:
            if not (directory / "bundle.json").is_file():
                raise IntegrityError(f"{directory}: bundle.json of this bundle is lost. Train again: it is made anew.")
            bundle.load(directory, device="cpu")
        except DiffatsError as error:
            found.append(str(error))
    return found
