"""What goes wrong in a route, as JSON with a `detail` that says what to do."""

from __future__ import annotations

import logging

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from starlette.exceptions import HTTPException as StarletteHTTPException

from replica_detection.errors import ReplicaDetectionError
from replica_detection_server.data_folder.disk_errors import storage_refusal
from replica_detection_server.incoming.refusals import refusal
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
