"""What can go wrong, as types. Each message says what broke, where, what was expected, what came, and the fix.

Input errors (the user's recipe, data or arguments) end a command with exit code 2, all others with 1.
"""

from __future__ import annotations


class DiffatsError(Exception):
    """Base of every error that diffats raises on purpose."""

    exit_code = 1


class InputError(DiffatsError, ValueError):
    """Something the user gave cannot work; nothing was computed or lost."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe is malformed or contradicts itself."""


class SourceError(InputError):
    """The data are missing, unreadable, or do not have what the recipe names."""


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


class TrainingDivergedError(DiffatsError):
    """The training loss is NaN or infinite."""
