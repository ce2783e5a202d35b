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
    single = [f"{_key(key)} = {_value(value)}" for key, value in known.items() if not isinstance(value, Mapping)]
    sections = ["\n".join(single)] if single else []
    for key, value in known.items():
        if isinstance(value, Mapping):
            lines = [f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None]
            sections.append("\n".join([f"[{_key(key)}]", *lines]))
    return "\n\n".join(sections)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf and nan, as TOML writes them
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
