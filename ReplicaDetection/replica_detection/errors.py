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


class RatingConflictError(InputError):
    """A rating has the id of another one that says something else."""


class StorageError(InputError):
    """A file of the program's own cannot be read or written now; what was asked is not at fault."""


class FullDiskError(StorageError):
    """The disk has no room left; nothing was stored."""


class IndexFormatError(InputError):
    """A training index is missing, damaged, unfinished or of another schema version."""


class ConfigurationError(ReplicaDetectionError):
    """Options that do not go together, or a name that is not known."""


class WorkersLostError(ReplicaDetectionError):
    """Worker processes ended again and again, or a cluster is gone; what is done so far is not at fault."""


class ServerError(ReplicaDetectionError):
    """A call to the server came to nothing; the message is meant for the user.

    `status` is the HTTP status, None where there was no answer; `detail` the server's own explanation, "" without one.
    """

    def __init__(self, message: str, *, status: int | None = None, detail: str = ""):
        self.status, self.detail = status, detail
        super().__init__(message)


class UnreachableError(ServerError):
    """No connection, no trust in the server's certificate, or no answer in time."""


class ConnectionLostError(UnreachableError):
    """The connection broke; whether the server did what it was asked is not known."""


class AccessDeniedError(ServerError):
    """401 or 403: no key, a wrong one, or one that may not do this."""


class NotFoundError(ServerError):
    """404: the server does not know the case, job or page."""


class ServerBusyError(ServerError):
    """503, also after the last retry. `retry_after`: seconds that the server asked to wait, None where it said none."""

    def __init__(self, message: str, *, detail: str = "", retry_after: float | None = None):
        self.retry_after = retry_after
        super().__init__(message, status=503, detail=detail)


class UnexpectedAnswerError(ServerError):
    """The answer is not that of a Replica Detection server of this version, or not whole."""


class CancelledError(ServerError):
    """The caller cancelled."""
