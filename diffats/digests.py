"""SHA-256 digests of texts, of JSON and of files, as hexadecimal text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_OWN = "digest"  # the key under which a signed description has its own


def text_digest(text: str) -> str:
    """Of a text in UTF-8.

    >>> text_digest("a")[:8]
    'ca978112'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def json_digest(content: Any, *, default: Callable[[Any], Any] | None = None) -> str:
    """Of what JSON can hold, whatever the order of its keys.

    Parameters
    ----------
    default
        Makes text of what JSON cannot hold, as in ``json.dumps``.

    >>> json_digest({"a": 1, "b": (2, 3)}) == json_digest({"b": [2, 3], "a": 1})
    True
    """
    return text_digest(json.dumps(content, sort_keys=True, default=default))


def file_digest(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signed(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description as JSON has it, with its own digest under the key ``digest``.

    >>> is_signed(signed({"step": 3})), is_signed({**signed({"step": 3}), "step": 4}), is_signed({"step": 3})
    (True, False, False)
    """
    as_read = json.loads(json.dumps({key: value for key, value in description.items() if key != _OWN}))
    return {**as_read, _OWN: json_digest(as_read)}


def is_signed(description: Mapping[str, Any]) -> bool:
    """Whether a description matches the digest that it has."""
    return bool(description.get(_OWN) == signed(description)[_OWN])
