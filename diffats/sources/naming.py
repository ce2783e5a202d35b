"""Error messages about names: what was asked for, what there is, and the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from diffats.errors import SourceError

LIKE = 0.5  # a name less like the one asked for than this is no suggestion


def unknown_name(key: str, name: str, known: Iterable[object], *, where: str) -> SourceError:
    """The error for a name that does not exist.

    >>> print(unknown_name("data.variables", "temp", ["t2m", "temperature"], where="the source"))
    data.variables names "temp", which the source does not have (it has: t2m, temperature). Did you mean "temperature"?
    >>> print(unknown_name("data.modes", "level", ["y", "x"], where="the source"))
    data.modes names "level", which the source does not have (it has: y, x). Give one that it has.
    """
    names = [str(entry) for entry in known]
    if not names:
        return SourceError(f'{key} names "{name}", but {where} has none at all. Check data.source and data.group.')
    nearest = max(names, key=lambda entry: _likeness(name.lower(), entry.lower()))
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    like = _likeness(name.lower(), nearest.lower()) >= LIKE
    advice = f'Did you mean "{nearest}"?' if like else "Give one that it has."
    return SourceError(f'{key} names "{name}", which {where} does not have (it has: {listed}). {advice}')


def _likeness(name: str, entry: str) -> float:
    contained = min(len(name), len(entry)) > 2 and (
        name in entry or entry in name
    )  # "temp" is nearer to "temperature" than to "t2m"
    return difflib.SequenceMatcher(None, name, entry).ratio() + contained
