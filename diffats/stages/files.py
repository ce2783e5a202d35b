"""Whether what no repository holds is still what was written: a root's checkpoints and bundles, and the source."""

from __future__ import annotations

import json
from pathlib import Path

from diffats import bundle
from diffats.errors import DiffatsError, IntegrityError, SourceError
from diffats.stages.workspace import Workspace, find_store


def problems(work: Workspace) -> list[str]:
    """What is damaged or has changed, a line each."""
    from diffats.training import damaged_checkpoints

    checkpoints = [text for path in sorted(work.root.glob("training/*")) for text in damaged_checkpoints(path)]
    return [*_source(work), *checkpoints, *_bundles(work.root)]


def _source(work: Workspace) -> list[str]:
    """Whether the source is the one whose samples are stored. One that grows is compared by the stage that grows it."""
    store, data = find_store(work.store_location), work.portable["data"]
    try:
        stored = None if store is None else store.latest("tucker")
    except DiffatsError:  # found by the store's own verification
        return []
    if stored is None or work.recipe.data.grows or json.loads(stored.attrs["recipe"])["data"] != data:
        return []
    try:
        same = stored.attrs.get("source", work.source_digest) == work.source_digest
    except SourceError as error:
        return [str(error)]
    return (
        []
        if same
        else [
            f'data.source "{work.recipe.data.source}" is not what was encoded: its files, their sizes or times, or its '
            "metadata have changed since. Bring it back, or run the stages again, which encode it anew."
        ]
    )


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
