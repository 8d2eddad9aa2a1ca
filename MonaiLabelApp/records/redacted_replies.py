"""The outermost layer: removes server paths from replies, turns failures into JSON, and logs one line for a request."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replica_detection_server.records.redaction import Scrub, where
from replica_detection_server.records.request_log import RequestLog
from replica_detection_server.util.json_replies import refuse

logger = logging.getLogger("replica_detection_server.requests")

# The report is one page with its own scripts and styles; nothing is ever loaded from elsewhere.
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
        b"font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
SCRUBBED = (b"application/json", b"application/problem+json", b"text/")
FAILED = "The server failed at this. The log says where."


class RedactedReplies:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, scrub: Scrub, log: RequestLog | None = None):
        self.app, self.scrub, self.log = app, scrub, log or RequestLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        reply = _Reply(send, self.scrub if scope["path"] != "/openapi.json" else None)
        try:
            await self.app(scope, receive, reply)
        except Exception as error:
            # Starlette raises an error again after it was answered and logged.
            if not reply.status:
                logger.error("failed: %s", where(error))
                await refuse(scope, receive, reply, 500, FAILED)
        self.log(scope, reply.status, time.perf_counter() - start)


class _Reply:
    """`send` that adds the headers, and holds back a reply of text until it is whole, to take the paths out."""

    def __init__(self, send: Send, scrub: Scrub | None):
        self._send, self._scrub = send, scrub
        self.status = 0
        self._held: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._start(message)
        elif self._held is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._release()

    async def _start(self, message: Message) -> None:
        given = [(name.lower(), value) for name, value in message.get("headers", [])]
        present = {name for name, _ in given}
        message["headers"] = [*given, *((name, value) for name, value in HEADERS if name not in present)]
        kind = next((value for name, value in given if name == b"content-type"), b"").lower()
        if self._scrub is not None and kind.startswith(SCRUBBED) and b"content-encoding" not in present:
            self._held = message
        else:
            await self._send(message)

    async def _release(self) -> None:
        assert self._held is not None and self._scrub is not None
        start, self._held = self._held, None
        body = self._scrub.body(bytes(self._body))
        if body != self._body:
            length = (b"content-length", str(len(body)).encode())
            start["headers"] = [h for h in start["headers"] if h[0] != b"content-length"] + [length]
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
