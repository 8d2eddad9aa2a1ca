"""What goes wrong in a route, as JSON with a `detail` that says what to do."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from starlette.exceptions import HTTPException as StarletteHTTPException

from replica_detection.errors import (
    FullDiskError,
    IndexFormatError,
    InputError,
    ReplicaDetectionError,
    StorageError,
)
from replica_detection_server.data_folder.disk_errors import storage_refusal
from replica_detection_server.errors import AlreadyRunningError
from replica_detection_server.incoming.request_faults import in_words
from replica_detection_server.records.redacted_replies import FAILED
from replica_detection_server.records.redaction import where

logger = logging.getLogger(__name__)

_ASKED_WRONGLY = (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)


def as_refusal(error: Exception) -> HTTPException:
    """The refusal that tells a caller what was wrong; a failure of the server itself is 500 and a line in the log."""
    found = known_refusal(error)
    if found is None:
        logger.error("failed: %s", where(error))
        return HTTPException(500, FAILED)
    return found


def known_refusal(error: Exception) -> HTTPException | None:
    """The refusal that an error means; None for a failure of the server itself."""
    if (found := storage_refusal(error)) is not None:
        logger.error("storage: %s", where(error))
        return found
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, ReplicaDetectionError):
        return refusal(error)
    if isinstance(error, MONAILabelException):
        missing = "not found" in error.msg.lower() or "there is no" in error.msg.lower()
        if missing or error.error in _ASKED_WRONGLY:
            return HTTPException(404 if missing else 422, error.msg)
    return None


def register(app: FastAPI) -> None:
    """Adds the handlers to an application."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        refusal = as_refusal(error)
        return JSONResponse({"detail": refusal.detail}, refusal.status_code)

    async def said(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        # FastAPI says 400 where it cannot put a body on the disk.
        return await http_exception_handler(request, as_refusal(error) if storage_refusal(error) else error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"detail": in_words(error)}, 422)

    app.add_exception_handler(StarletteHTTPException, said)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (ReplicaDetectionError, MONAILabelException, Exception):
        app.add_exception_handler(kind, refused)


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
