"""What tells a model version from any other: digests, whole in a file beside the model, short in one tag.

People read the tags of a version, so that digests have one of their own, the last. Versions of earlier releases had a
tag for each digest; they are understood.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IDENTITY_FILE = "identity.json"
IDENTITY_TAG = "diffats.identity"
FILES_TAG = "diffats.files"  # of earlier releases, as every other tag that began so
DATA = "data_digest"
LENGTH = 16  # digits of a digest in the tag; that of the file is whole, for it is what files are checked against


def short(digest: str) -> str:
    """The digits of a digest that a tag shows."""
    return digest[:LENGTH]


def shortened(identity: Mapping[str, Any]) -> dict[str, str]:
    """Every digest of an identity as a tag shows it."""
    return {name: short(str(digest)) for name, digest in identity.items()}


def write(folder: Path, identity: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Write the file into a model's folder; the version's tag.

    Parameters
    ----------
    folder
        Of the model.
    identity
        Digests by name.
    files
        SHA-256 of every other file of the model, by its path.
    """
    text = json.dumps({**identity, "files": files}, indent=1, sort_keys=True)
    (folder / IDENTITY_FILE).write_text(text, encoding="utf-8")
    return json.dumps({**shortened(identity), "file": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True)


def of(tags: Mapping[str, str]) -> dict[str, str]:
    """The short digests of a version, from its tags.

    >>> of({"diffats.identity": '{"anchor": "0aba1a37c651c339"}'}), of({"diffats.anchor": "0aba1a37c651c339f4"})
    ({'anchor': '0aba1a37c651c339'}, {'anchor': '0aba1a37c651c339'})
    """
    if IDENTITY_TAG in tags:
        try:
            return {str(name): str(digest) for name, digest in json.loads(tags[IDENTITY_TAG]).items()}
        except (ValueError, AttributeError):  # a person has changed the tag
            return {}
    earlier = {name: digest for name, digest in tags.items() if name.startswith("diffats.") and name != FILES_TAG}
    return {name.removeprefix("diffats."): short(digest) for name, digest in earlier.items()}
