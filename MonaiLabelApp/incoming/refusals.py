"""Errors of the core as answers of the server."""

from __future__ import annotations

from pathlib import Path

from fastapi import HTTPException

from replica_detection.errors import (
    FullDiskError,
    IndexFormatError,
    InputError,
    ReplicaDetectionError,
    StorageError,
)
from replica_detection_server.computing.jobs import AlreadyRunningError
from replica_detection_server.data_folder.disk_errors import storage_refusal

RETRY_SECONDS = 5
_START = "start it with POST /replica/jobs/index"


def no_index(words: str, unusable: IndexFormatError | None, failure: str) -> HTTPException:
    """There is no index to compare with, or none that can be used: what becomes of it, and what to do.

    Args:
        words: how far the job is that makes it, "" where none does: then it is 409, for waiting would not help.
        unusable: what is wrong with the one that is there.
        failure: why the last job failed, "" where it did not.
    """
    if words:
        detail = f"the index is being made: {words}; try again after that"
        return HTTPException(503, detail, headers={"Retry-After": str(RETRY_SECONDS)})
    if unusable is not None:
        return refusal(unusable)
    if failure:
        return HTTPException(409, f"the index could not be made: {failure} When that is mended, {_START}")
    return HTTPException(409, f"there is no index yet, and nothing makes it: {_START}")


def refusal(error: ReplicaDetectionError) -> HTTPException:
    """The status that fits an error, and its message without the folders of this machine."""
    if (found := storage_refusal(error)) is not None:
        return found
    if isinstance(error, StorageError):
        status = 507 if isinstance(error, FullDiskError) else 503
        return HTTPException(status, f"{Path(error.path).name}: {error.found}. {error.advice}. Nothing was stored.")
    if isinstance(error, InputError):
        status = 409 if isinstance(error, IndexFormatError) else 422
        return HTTPException(status, f"{Path(error.path).name}: {error.found}. {error.advice}.")
    return HTTPException(409 if isinstance(error, AlreadyRunningError) else 422, str(error))
