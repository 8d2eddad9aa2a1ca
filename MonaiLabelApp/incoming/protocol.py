"""HTTP/1.1 of one connection: uvicorn's, with limits on slow headers, slow readers and bodies that never come."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from replica_detection_server.incoming.connections import Connections, Limits
from replica_detection_server.util.json_replies import refuse

CLOSE = (b"connection", b"close")
TWO_LENGTHS = "A request has either a Content-Length or a Transfer-Encoding."
# What a client may still send after the answer to a request whose body it was sending.
LINGER_BYTES = 64 << 20


class BoundedHttp(H11Protocol):
    """An answer that is sent before the body is whole ends its connection: the rest is never read as a request.

    MONAI Label's client announces bodies with GET and DELETE that it never sends.
    """

    def __init__(self, *given: Any, **how: Any):
        super().__init__(*given, **how)
        self.limits = Limits()  # those of the server are set with the connection
        self._application: ASGIApp = self.app
        self.app = self._answer
        self._head_since: float | None = time.monotonic()
        self._lingers_since: float | None = None
        self._received = 0
        self._body_since = time.monotonic()
        self._all_sent = (self._body_since, 0)

    # --------------------------------------------------------------------------------------------------- the protocol

    def connection_made(self, transport: Any) -> None:
        self._plain = transport
        super().connection_made(_Transport(self, transport))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._lingers_since is None:
            super().data_received(data)
        elif self._received > LINGER_BYTES:
            self._plain.abort()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = self.cycle
        self._head_since, self._received, self._body_since = None, 0, time.monotonic()

        # Where a proxy uses the one and this server the other, the rest of a body is read as a request.
        both = {b"content-length", b"transfer-encoding"} <= {name.lower() for name, _ in scope.get("headers", ())}

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and (cycle.more_body or both):
                others = [h for h in message.get("headers", ()) if h[0].lower() != b"connection"]
                message = {**message, "headers": [*others, CLOSE]}
            await send(message)

        if both:
            await refuse(scope, receive, closing, 400, TWO_LENGTHS)
        else:
            await self._application(scope, receive, closing)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def end_when_read(self) -> None:
        """Closes the connection; while the client still sends, only after it had time to read the answer (RFC 9112,
        9.6)."""
        if self._lingers_since is not None or self._plain.is_closing():
            return
        if self.cycle is None or not self.cycle.more_body:
            self._plain.close()
        else:
            self._linger()

    def _linger(self) -> None:
        self._lingers_since, self._received = time.monotonic(), 0
        self.flow.resume_reading()
        if self._plain.can_write_eof():
            self._plain.write_eof()

    @property
    def is_ending(self) -> bool:
        return self._lingers_since is not None or self._plain.is_closing()

    # ---------------------------------------------------------------------------------------------- whose turn it is

    def keeps_waiting(self, now: float) -> bool:
        """True while the server waits for the client, or if the client has been too slow for long."""
        if self._lingers_since is not None or self._between_requests():
            return True
        return self.cycle.more_body and self._too_slow(now, self._body_since, self._received, "impatient")

    def check(self, now: float, unsent: int) -> bool:
        """True if the client is within its time; called every second with the bytes that it has not taken yet."""
        transport: _Transport = self.transport  # type: ignore[assignment]
        sent = transport.written - unsent
        # Bytes in the buffers of the operating systems count as read: the client's own progress is unknown.
        if unsent == 0:
            self._all_sent = (now, sent)
        elif self._too_slow(now, self._all_sent[0], sent - self._all_sent[1], "grace"):
            return False
        if self._lingers_since is not None:
            if now - self._lingers_since > self.limits.linger_seconds and unsent == 0:
                self._plain.close()
        elif self._between_requests() and not self._plain.is_closing():
            begun = self.cycle is None or bool(self.conn.trailing_data[0])
            self._head_since = (self._head_since or now) if begun else None
            if self._head_since is not None and now - self._head_since > self.limits.head_seconds:
                self._refuse(408, "The request's headers did not come in time.")
        return True

    def _between_requests(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is h11.IDLE)

    def _too_slow(self, now: float, since: float, transferred: int, patience: str) -> bool:
        allowed = self.limits.grace_seconds if patience == "grace" else self.limits.impatient_seconds
        return now - since > allowed + transferred / self.limits.bytes_per_second

    def _refuse(self, status: int, detail: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._plain.close()
            return
        body = b'{"detail":"%s"}' % detail.encode("ascii")
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), CLOSE]
        events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self._linger()


class BoundedServer(uvicorn.Server):
    """A server whose connections are counted in a table."""

    def __init__(self, config: uvicorn.Config, connections: Connections):
        super().__init__(config)
        self.connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with self.connections.guarding(asyncio.get_running_loop()):
            await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.connections.close()
        await super().shutdown(sockets)


class _Transport:
    """The transport as uvicorn sees it: counts what it writes, and closes when the client has read."""

    def __init__(self, protocol: BoundedHttp, transport: Any):
        self._protocol, self._transport = protocol, transport
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self._transport.write(data)

    def close(self) -> None:
        self._protocol.end_when_read()

    def is_closing(self) -> bool:
        return self._protocol.is_ending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
