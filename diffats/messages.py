"""What other libraries tell by nothing but an English message: one table.

Everywhere else types, codes and attributes decide. A test provokes each of these with the installed release, so that a
release that says it otherwise is noticed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """Words that a failure or a warning is known by.

    Attributes
    ----------
    library
        Whose words they are.
    pattern
        A regular expression that is found in the text; its first group that takes part holds a code, where there is
        one.
    why
        Why nothing else tells.
    """

    library: str
    pattern: str
    why: str

    def is_in(self, error: object) -> bool:
        """Whether a failure says so."""
        return re.search(self.pattern, str(error)) is not None

    def code(self, error: object) -> str | None:
        """The code inside the words, or None where they are not there.

        >>> MESSAGES["operating system"].code("Unable to copy data: No space left on device (os error 28)")
        '28'
        """
        found = re.search(self.pattern, str(error))
        return None if found is None else next((group for group in found.groups() if group), None)


_NO_KIND = "errors of release 1 have one type and no code"
#: Icechunk 1's words, by the kind that Icechunk 2 gives such a failure.
KINDS_OF_ICECHUNK_1 = {
    "repository-not-found": Message("icechunk 1", "the repository doesn't exist", _NO_KIND),
    "unsupported-spec-version": Message("icechunk 1", "uses Icechunk v2 format", _NO_KIND),
    "parent-directory-not-clean": Message("icechunk 1", "only be created in clean prefixes", _NO_KIND),
    "serialization": Message("icechunk 1", "cannot serialize ref json", _NO_KIND),
    "config-deserialization": Message("icechunk 1", "error in config deserialization", _NO_KIND),
    "tag-already-exists": Message("icechunk 1", "tag already exists", _NO_KIND),
    "snapshot-timestamp": Message("icechunk 1", "invalid snapshot timestamp ordering", _NO_KIND),
}

_ONE_KIND = "all that a request can end in is of one kind, object-store"
_PLAIN_WARNING = "it has no category of its own"
MESSAGES = {
    # Storage under Icechunk
    "operating system": Message("Rust, under icechunk", r"\(os error (\d+)\)", _ONE_KIND),
    "S3 code": Message(
        "the AWS SDK, under icechunk",
        r'code: "(\w+)"|unhandled error \((\w+)\)|service error(?:: |\n *\|-> )(\w+):',
        _ONE_KIND,
    ),
    "no credentials": Message("the AWS SDK, under icechunk", "credential provider", _ONE_KIND),
    "request not sent": Message(
        "the AWS SDK and reqwest, under icechunk", "dispatch failure|error sending request", _ONE_KIND
    ),
    "request refused": Message("the AWS SDK, under icechunk", "service error", _ONE_KIND),
    # Others
    "other environment": Message(
        "distributed", "Error during deserialization of the task graph", "it is a RuntimeError like the work's own"
    ),
    # Warnings, as regular expressions of their beginnings
    "arrays of tensors": Message("numpy", "__array__ implementation doesn't accept a copy", _PLAIN_WARNING),
    "type hints": Message("mlflow", ".*Any type hint is inferred as AnyType", _PLAIN_WARNING),
}
