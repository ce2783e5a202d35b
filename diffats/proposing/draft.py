"""A recipe in the making: its keys with the reason of each, and its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffats.toml import in_toml, key_in_toml

_WIDTH, _COLUMN = 120, 40


@dataclass
class Draft:
    """Keys of a recipe in the order in which they are written.

    Attributes
    ----------
    tree
        The recipe as nested mappings.
    notes
        By dotted key or section: why, in a few words.
    besides
        By dotted section: lines that are written as comments below its keys.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    besides: dict[str, list[str]] = field(default_factory=dict)

    def put(self, key: str, value: Any, note: str = "") -> None:
        """Set a dotted key; a key that is there stays, with its note."""
        *sections, last = key.split(".")
        node = self.tree
        for section in sections:
            node = node.setdefault(section, {})
        if last not in node:
            node[last] = value
            self.note(key, note)

    def note(self, key: str, note: str) -> None:
        """Give the reason of a key or section."""
        if note:
            self.notes[key] = note

    def say(self, section: str, line: str) -> None:
        """Add a comment to a section."""
        self.besides.setdefault(section, []).append(line)

    def get(self, key: str) -> Any:
        """The value of a dotted key, None where there is none."""
        node: Any = self.tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def guesses(self) -> list[dict[str, Any]]:
        """Key, value and reason of each key or section that has one."""
        return [{"key": key, "value": self.get(key), "why": note} for key, note in self.notes.items()]

    def to_toml(self, head: Sequence[str]) -> str:
        """The recipe's text, with the reasons as comments.

        >>> draft = Draft()
        >>> draft.put("name", "a"); draft.put("data.modes", ["y", "x"], "dims of a sample")
        >>> print(draft.to_toml(["Made by hand."]))
        # Made by hand.
        name = "a"
        <BLANKLINE>
        [data]
        modes = ["y", "x"]                      # dims of a sample
        <BLANKLINE>
        """
        lines = [line for text in head for line in _comment(text)]
        lines += self._keys(self.tree, "")
        for section, node in _sections(self.tree):
            lines += ["", *_noted(f"[{section}]", self.notes.get(section, "")), *self._keys(node, section)]
        return "\n".join(lines) + "\n"

    def _keys(self, node: Mapping[str, Any], section: str) -> Iterator[str]:
        for key, value in node.items():
            if _is_section(section, key, value):
                continue
            dotted = f"{section}.{key}" if section else key
            yield from _noted(f"{key_in_toml(key)} = {in_toml(value)}", self.notes.get(dotted, ""))
        for text in self.besides.get(section, []):
            yield from _comment(text)


#: Tables that are sections of their own; others are written in a line.
_TABLES = {"data.windows", "data.split", "data.condition"}


def _is_section(section: str, key: str, value: Any) -> bool:
    return isinstance(value, Mapping) and (not section or f"{section}.{key}" in _TABLES)


def _sections(tree: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield name, node
            for key, value in node.items():
                if _is_section(name, key, value):
                    yield f"{name}.{key}", value


def _noted(text: str, note: str) -> Iterator[str]:
    """A line with its reason beside it, or above it where there is no room."""
    line = f"{text + ' ':<{_COLUMN}}# {note}" if note else text
    if len(line) > _WIDTH:
        yield from _comment(note)
        line = text
    yield line


def _comment(text: str) -> Iterator[str]:
    """A comment, in lines that fit."""
    line = "#"
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line


def told(guess: Mapping[str, Any]) -> str:
    """A guess in one line.

    >>> told({"key": "data.center", "value": "point", "why": "there is a mask"})
    'data.center = "point": there is a mask'
    """
    return f"{guess['key']} = {in_toml(guess['value'])}: {guess['why']}"
