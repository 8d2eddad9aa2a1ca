"""The one place where errors become HTTP answers: JSON with a `detail` that says what to do."""

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
from replica_detection_server.errors import (
    CallerGoneError,
    ConflictError,
    DiskFullError,
    FailedError,
    ForbiddenError,
    InvalidRequestError,
    RefusedError,
    TimeLimitError,
    TooLargeError,
    UnavailableError,
    UnknownNameError,
    UploadTooLargeError,
)
from replica_detection_server.incoming.request_faults import in_words
from replica_detection_server.records.redacted_replies import FAILED
from replica_detection_server.records.redaction import where

logger = logging.getLogger(__name__)

STATUS: dict[type[RefusedError], int] = {
    ForbiddenError: 403,
    UnknownNameError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    InvalidRequestError: 422,
    CallerGoneError: 499,
    FailedError: 500,
    UnavailableError: 503,
    TimeLimitError: 504,
    DiskFullError: 507,
}
_KINDS = {status: kind for kind, status in STATUS.items()}
_INVALID = (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)


def kind_of(error: RefusedError) -> type[RefusedError]:
    """The key of STATUS that an error falls under."""
    return next(kind for kind in type(error).__mro__ if kind in STATUS)


def answer_of(error: RefusedError) -> HTTPException:
    """The HTTP answer of a refusal, with Retry-After where it says when to come back."""
    headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return HTTPException(STATUS[kind_of(error)], error.detail, headers)


def refusal(error: ReplicaDetectionError) -> RefusedError:
    """The refusal that an error of the core means, with its message without the folders of this machine."""
    if (found := storage_refusal(error)) is not None:
        return found
    if isinstance(error, RefusedError):
        return error
    if not isinstance(error, InputError):
        return InvalidRequestError(str(error))
    detail = f"{Path(error.path).name}: {error.found}. {error.advice}."
    if isinstance(error, StorageError):
        full = isinstance(error, FullDiskError)
        return (DiskFullError if full else UnavailableError)(f"{detail} Nothing was stored.")
    if isinstance(error, UploadTooLargeError):
        return TooLargeError(detail)
    return (ConflictError if isinstance(error, IndexFormatError) else InvalidRequestError)(detail)


def known_refusal(error: Exception) -> RefusedError | None:
    """The refusal that any error means, with a line in the log for the storage; None for a failure of the server."""
    if (found := storage_refusal(error)) is not None:
        logger.error("storage: %s", where(error))
        return found
    if isinstance(error, ReplicaDetectionError):
        return refusal(error)
    if isinstance(error, MONAILabelException):
        missing = "not found" in error.msg.lower() or "there is no" in error.msg.lower()
        if missing or error.error in _INVALID:
            return (UnknownNameError if missing else InvalidRequestError)(error.msg)
    # A task that is not ours may raise its refusal as an HTTPException.
    if isinstance(error, StarletteHTTPException) and error.status_code < 500:
        return _KINDS.get(error.status_code, InvalidRequestError)(str(error.detail))
    return None


async def _refused(request: Request, error: Exception) -> JSONResponse:
    found = known_refusal(error)
    if found is None:
        logger.error("failed: %s", where(error))
        found = FailedError(FAILED)
    answer = answer_of(found)
    return JSONResponse({"detail": answer.detail}, answer.status_code, answer.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    # FastAPI says 400 where it cannot put a body on the disk.
    if storage_refusal(error) is not None:
        return await _refused(request, error)
    return await http_exception_handler(request, error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": in_words(error)}, 422)


def register(app: FastAPI) -> None:
    """Adds the handlers of all errors to an application that has not started yet."""
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind in (ReplicaDetectionError, MONAILabelException, Exception):
        app.add_exception_handler(kind, _refused)


def register_refusals(app: FastAPI) -> None:
    """Adds the handler of refusals alone to MONAI Label's own application, which runs already."""
    app.add_exception_handler(RefusedError, _refused)
    app.middleware_stack = None  # Starlette builds it at the next request, with the handler
