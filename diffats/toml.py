"""Plain data as TOML text, which the standard library reads and does not write."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any


def toml(tree: Mapping[str, Any]) -> str:
    """A mapping as TOML: single values first, then a section for each mapping, those within it in one line.

    What is None is left out: TOML has no such value.

    Examples
    --------
    >>> print(toml({"name": "a", "data": {"modes": ["y", "x"], "windows": {"size": {"y": 4}}, "group": None}}))
    name = "a"
    <BLANKLINE>
    [data]
    modes = ["y", "x"]
    windows = { size = { y = 4 } }
    """
    known = {key: value for key, value in tree.items() if value is not None}
    single = [
        f"{key_in_toml(key)} = {in_toml(value)}" for key, value in known.items() if not isinstance(value, Mapping)
    ]
    sections = ["\n".join(single)] if single else []
    for key, value in known.items():
        if isinstance(value, Mapping):
            lines = [f"{key_in_toml(k)} = {in_toml(v)}" for k, v in value.items() if v is not None]
            sections.append("\n".join([f"[{key_in_toml(key)}]", *lines]))
    return "\n\n".join(sections)


def key_in_toml(key: str) -> str:
    """A key in TOML, in quotes where it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else in_toml(key)


def in_toml(value: Any) -> str:
    """A value in TOML.

    >>> in_toml({"time": 6, "a b": [1.5, True, 'say "x"']})
    '{ time = 6, "a b" = [1.5, true, "say \\\\"x\\\\""] }'
    """
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{key_in_toml(k)} = {in_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf and nan, as TOML writes them
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
