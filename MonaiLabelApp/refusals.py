"""Errors of the core as answers of the server."""

from __future__ import annotations

from pathlib import Path

from fastapi import HTTPException

from replica_detection.errors import IndexFormatError, InputError, ReplicaDetectionError
from replica_detection_server.jobs import AlreadyRunningError
from replica_detection_server.storage import storage_refusal


def refusal(error: ReplicaDetectionError) -> HTTPException:
    """The status that fits an error, and its message without the folders of this machine."""
    if (found := storage_refusal(error)) is not None:
        return found
    if isinstance(error, InputError):
        status = 409 if isinstance(error, IndexFormatError) else 422
        return HTTPException(status, f"{Path(error.path).name}: {error.found}. {error.advice}.")
    return HTTPException(409 if isinstance(error, AlreadyRunningError) else 422, str(error))
