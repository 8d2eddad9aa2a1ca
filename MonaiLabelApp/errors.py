"""Refusals: errors that the server raises on purpose, each a reason why it does not do what was asked.

They know nothing of HTTP: `incoming.error_responses` turns them, and the errors of the core, into answers.
"""

from __future__ import annotations

from replica_detection.errors import InputError, ReplicaDetectionError


class RefusedError(ReplicaDetectionError):
    """The server refuses a request. The message gives the reason and what to do, and names no folder of this machine.

    Args:
        detail: the message.
        retry_after: seconds after which the same request may succeed; None where waiting does not help.
    """

    def __init__(self, detail: str, retry_after: int | None = None):
        self.detail, self.retry_after = detail, retry_after
        super().__init__(detail)


class ForbiddenError(RefusedError):
    """Nobody may do this, such as write a training case."""


class UnknownNameError(RefusedError):
    """There is no image, case, model or job of this name."""


class ConflictError(RefusedError):
    """Not possible in the present state: the id is taken, the index is missing, the collection is not scored."""


class AlreadyRunningError(ConflictError):
    """A job of this kind is under way."""


class TooLargeError(RefusedError):
    """The request holds more than the server takes."""


class InvalidRequestError(RefusedError):
    """A value or a file of the request cannot be used."""


class CallerGoneError(RefusedError):
    """The client closed its connection; nobody waits for the answer."""

    def __init__(self, detail: str = "The client went away.", retry_after: int | None = None):
        super().__init__(detail, retry_after)


class FailedError(RefusedError):
    """The server itself failed; the log says where."""


class UnavailableError(RefusedError):
    """Busy, starting, stopping, or without a disk that it can write to."""


class TimeLimitError(RefusedError):
    """The computation took longer than it may, and was ended."""


class DiskFullError(RefusedError):
    """The server's disk or quota is full; nothing of the request was kept."""


class UploadTooLargeError(InputError):
    """An uploaded file is larger than the server takes."""
