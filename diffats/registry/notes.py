"""Descriptions on a tracker's pages: what is ours is written again, what a person wrote stays."""

from __future__ import annotations

NOTE_TAG = "mlflow.note.content"  # of runs and experiments; models have a field
MAX_NOTE = 5000
OWN = "*Written by diffats, which replaces it as long as this line is here.*"
_EARLIER = ("Generative model of fields, by diffats.", "Diffusion model on aligned tensor primitives of ")


def owned(text: str | None) -> bool:
    """Whether a description may be replaced: there is none, or it is ours.

    >>> owned(None), owned(signed("A run.")), owned("Looks wrong to me.")
    (True, True, False)
    """
    return not text or OWN in text or text.startswith(_EARLIER)


def signed(text: str) -> str:
    """A description as we write it, within the length that trackers take; whole lines only."""
    kept = text[: MAX_NOTE - len(OWN) - 2]
    return f"{kept if kept == text else kept.rpartition(chr(10))[0]}\n\n{OWN}"
