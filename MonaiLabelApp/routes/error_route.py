"""Routes whose refusals have one form: `{"detail": "..."}` with the status that fits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from replica_detection.errors import ReplicaDetectionError
from replica_detection.results.schema import ErrorReply
from replica_detection_server.data_folder.disk_errors import storage_refusal
from replica_detection_server.incoming.error_responses import answer_of, refusal
from replica_detection_server.incoming.request_faults import in_words

# For the OpenAPI page: further answers of all these routes.
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": words}
    for status, words in {
        403: "not allowed",
        404: "no such case, image or job",
        409: "not possible as things are",
        413: "too large",
        422: "a request that cannot be",
        503: "busy, or not ready yet: come again after Retry-After seconds",
        507: "the server's disk is full",
    }.items()
}


class ErrorRoute(APIRoute):
    """Turns the core's errors, and faults of the request, into answers that people can read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                raise HTTPException(422, in_words(error)) from error
            except ReplicaDetectionError as error:
                raise answer_of(refusal(error)) from error
            except Exception as error:
                if (found := storage_refusal(error)) is not None:
                    raise answer_of(found) from error
                raise

        return guarded
