"""Records the patients that a reply shows before it is sent; a reply that cannot be recorded is not sent."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterable
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replica_detection.results.schema import Comparison
from replica_detection_server.access.identity import NOBODY
from replica_detection_server.records.access_record import AccessRecord
from replica_detection_server.records.request_log import cases_of
from replica_detection_server.settings.case_ids import TRAINING
from replica_detection_server.util.addresses import address_of
from replica_detection_server.util.json_replies import refuse

logger = logging.getLogger(__name__)

# Method, address, and what a reader does with it. The first that fits counts.
ACTIONS = tuple(
    (method, re.compile(path), action)
    for method, path, action in (
        ("GET", "/datastore/image", "image"),
        ("GET", "/datastore/label", "label"),
        ("GET", "/datastore/dataset", "dataset"),
        ("GET", "/session/[^/]+", "session"),
        ("POST", "/infer/[^/]+", "inference"),
        ("POST", "/batch/infer/[^/]+", "batch inference"),
        ("POST", "/replica/compare", "comparison of an upload"),
        ("GET", "/replica/cases/[^/]+/comparison", "comparison"),
        ("GET", "/replica/cases/[^/]+/files", "files"),
        ("GET", "/replica/masks/[^/]+", "mask"),
        ("GET", "/replica/difference/[^/]+/[^/]+", "difference"),
        ("GET", "/replica/aligned/[^/]+/[^/]+", "aligned image"),
        ("GET", "/replica/surfaces/[^/]+/[^/]+(/statistics)?", "surface"),
        ("GET", "/replica/report", "report"),
        ("POST", "/replica/ratings", "rating"),
        ("GET", "/replica/ratings", "ratings"),
    )
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_RECORDED = (
    "This cannot be written into the access record, so it is not shown. Tell the administrator of the server."
)


def shows(connection: HTTPConnection, cases: Iterable[str] = (), training: Iterable[str] = ()) -> None:
    """Notes the cases that the reply of a route shows, beside those that its address names.

    `cases` may hold training cases as `train:<id>`.
    """
    held = connection.scope.setdefault("state", {}).setdefault("shown", ([], []))
    held[0].extend(cases)
    held[1].extend(training)


def shows_matches(connection: HTTPConnection, found: Comparison) -> Comparison:
    """Notes the training cases of a comparison; returns it."""
    near = [item.training_id for measure in found.measures for item in measure.neighbors]
    shows(connection, training=[found.nearest_training_id, *(m.nearest_training_id for m in found.measures), *near])
    return found


def shows_answer(connection: HTTPConnection, answer: Any) -> None:
    """The same for the answer of a model of MONAI Label, where it is a comparison as JSON."""
    measures = answer.get("measures") if isinstance(answer, dict) else None
    for measure in measures or ():
        near = [item["training_id"] for item in measure.get("neighbors", ())]
        shows(connection, training=[measure.get("nearest_training_id", ""), *near])


class RecordedReplies:
    """Middleware behind authentication."""

    def __init__(self, app: ASGIApp, record: AccessRecord):
        self.app, self.record = app, record
        self._limiter: CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        action = action_of(scope) if scope["type"] == "http" else ""
        if not action:
            await self.app(scope, receive, send)
            return
        refused = False

        async def recording(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                try:
                    await self._add(scope, action, message["status"])
                except OSError as error:
                    logger.error("the access record cannot be written (%s)", error.strerror)
                    refused = message["status"] < 400
                    if refused:
                        status = 507 if error.errno in FULL else 503
                        await refuse(scope, receive, send, status, NOT_RECORDED, {"Retry-After": "60"})
            if not refused:
                await send(message)

        await self.app(scope, receive, recording)

    async def _add(self, scope: Scope, action: str, status: int) -> None:
        if self._limiter is None:
            # One line after the other: a slow disk must not take up the threads of the routes.
            self._limiter = CapacityLimiter(1)
        state = scope.get("state", {})
        reader = state.get("identity", NOBODY).reader
        cases, training = _shown(scope, state)
        await to_thread.run_sync(
            lambda: self.record.add(
                reader=reader,
                address=address_of(scope),
                action=action,
                cases=cases,
                training=training,
                status=status,
            ),
            limiter=self._limiter,
        )


def action_of(scope: Scope) -> str:
    """The action of a request on a patient's scan; "" for none."""
    return next(
        (does for method, path, does in ACTIONS if scope["method"] == method and path.fullmatch(scope["path"])), ""
    )


def _shown(scope: Scope, state: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Ids of the synthetic images and of the training cases."""
    cases, training = state.get("shown", ([], []))
    named = cases_of(scope)
    all_named = [*named, *cases]
    synthetic = [case for case in all_named if case and not case.startswith(TRAINING)]
    real = [case.removeprefix(TRAINING) for case in all_named if case.startswith(TRAINING)]
    return list(dict.fromkeys(synthetic)), list(dict.fromkeys(case for case in (*real, *training) if case))
