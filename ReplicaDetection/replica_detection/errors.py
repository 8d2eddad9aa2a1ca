"""The one family of exceptions that this package raises on purpose; every message is meant for the user."""

from __future__ import annotations

import os


class ReplicaDetectionError(Exception):
    """Base of all errors that the user can act on. The command line prints the message and exits with 1."""


class InputError(ReplicaDetectionError):
    """A file or folder given by the user cannot be used.

    Args:
        path: what was being read.
        found: what is wrong with it, a clause without a full stop.
        advice: what to do about it, a sentence without a full stop.
    """

    def __init__(self, path: str | os.PathLike[str], found: str, advice: str):
        self.path, self.found, self.advice = os.fspath(path), found, advice
        super().__init__(f"{self.path}: {found}. {advice}.")

    def __reduce__(self):
        return type(self), (self.path, self.found, self.advice)


class IndexFormatError(InputError):
    """A training index is missing, damaged, unfinished or of another schema version."""


class ConfigurationError(ReplicaDetectionError):
    """Options that do not go together, or a name that is not known."""
