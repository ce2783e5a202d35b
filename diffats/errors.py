"""What can go wrong, as types. Each message says what broke, where, what was expected, what came, and the fix.

Input errors (the user's recipe, data or arguments) end a command with exit code 2, all others with 1.
"""

from __future__ import annotations

import re

# Not only up to the next slash: a database's password may hold one.
_USER = re.compile(r"""://(?:[^\s:/@]*:[^\s"'<>]*|[^\s/?#]*)@""")
_SIGNED = re.compile(
    r"([?&][^=&\s]*(?:token|sig|key|secret|password|credential|auth)[^=&\s]*=)[^&\s\"'>)]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """A text without the users, passwords and signatures of the URLs in it, for messages, logs and pages.

    >>> redact("postgresql://ann:pw@host/db: away"), redact("no https://host/u.zarr?sig=ab12&v=1")
    ('postgresql://***@host/db: away', 'no https://host/u.zarr?sig=***&v=1')
    """
    return _SIGNED.sub(r"\1***", _USER.sub("://***@", text))


class DiffatsError(Exception):
    """Base of every error that diffats raises on purpose. Its message holds no URL's password."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(arg) if isinstance(arg, str) else arg for arg in args))


class InputError(DiffatsError, ValueError):
    """Something the user gave cannot work; nothing was computed or lost."""

    exit_code = 2


class MissingPackageError(InputError):
    """A package that this needs is not installed: it belongs to one of the extras."""


class RecipeError(InputError):
    """The recipe is malformed or contradicts itself."""


class SourceError(InputError):
    """The data are missing, unreadable, or do not have what the recipe names."""


class SourceChangedError(SourceError):
    """Samples that were encoded from a growing source are not in it any more, or not the same."""


class NonFiniteError(InputError):
    """A sample holds NaN, infinite or excessive values, which no decomposition can take."""


class RankError(InputError):
    """Ranks or a tolerance that no decomposition of these sizes can have."""


class StoreError(DiffatsError):
    """A store refuses an unsafe write, or holds something else than expected."""


class StoreNotFoundError(InputError, FileNotFoundError):
    """There is no store, group, version or model at this place."""


class RootMismatchError(InputError):
    """The root belongs to another recipe name or to samples of other dims."""


class LockedError(DiffatsError):
    """Another process is writing to this root."""


class IntegrityError(DiffatsError):
    """Stored content does not match its digest."""


class TooManyFailedError(DiffatsError):
    """More samples failed than ``data.max_failed`` allows."""


class SimulationError(DiffatsError):
    """A solver gave numbers that are not finite."""


class TimeLimitError(DiffatsError, TimeoutError):
    """Samples took longer than whoever asked for them gave."""


class TrainingDivergedError(DiffatsError):
    """The training loss is NaN or infinite."""


class DriftError(DiffatsError):
    """The new samples of a growing source are too unlike the first ones for their anchors and statistics."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asked the process to end, which it then does as after Ctrl-C."""
