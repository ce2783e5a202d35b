"""What a pattern matches beside the data: indexes and locks of other programs, links whose target is gone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from diffats.errors import SourceError

# What programs write beside a file, called like it with one of these endings (and maybe a digest in between).
_BESIDE = (".idx", ".lock", ".lck", ".md5", ".sha1", ".sha256", ".aux.xml")
_SHOWN = 5


def beside_data(found: Sequence[str]) -> list[str]:
    """Of the matches of a pattern, those that another program wrote beside another match.

    >>> beside_data(["gfs.f000", "gfs.f000.5b7b6.idx", "gfs.f001", "gfs.f001.lock", "table.idx"])
    ['gfs.f000.5b7b6.idx', 'gfs.f001.lock']
    """
    matched = set(found)
    return [path for path in found if path.endswith(_BESIDE) and any(stem in matched for stem in _stems(path))]


def _stems(path: str) -> list[str]:
    """The names of which a name is a longer one, dot by dot."""
    parts = path.split(".")
    return [".".join(parts[:stop]) for stop in range(1, len(parts))]


def check_links(pattern: str, found: Sequence[str]) -> None:
    """Refuse links to files that are not there: data may be missing.

    Raises
    ------
    SourceError
        Which names them and their targets.
    """
    dead = [path for path in found if os.path.islink(path) and not os.path.exists(path)]
    if dead:
        listed = ", ".join(f"{path} -> {os.readlink(path)}" for path in dead[:_SHOWN])
        more = f" and {len(dead) - _SHOWN} more" if len(dead) > _SHOWN else ""
        raise SourceError(
            f'data.source "{pattern}" matches links to files that do not exist: {listed}{more}. Mend or remove them, '
            "or narrow the pattern."
        )


def listed(paths: Sequence[str]) -> str:
    """Some names of files.

    >>> listed(["a/b.idx", "a/c.idx"])
    'b.idx, c.idx'
    """
    names = ", ".join(os.path.basename(path) for path in paths[:_SHOWN])
    return names + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
