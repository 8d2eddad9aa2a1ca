"""A web server on loopback that says what a test's script says, good or bad, and notes what it was asked."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """Each request takes the next step of the script; the last step stays for all that follow."""

    protocol_version = "HTTP/1.1"
    server: Script

    def _handle(self) -> None:
        step = self.server.steps.pop(0) if len(self.server.steps) > 1 else self.server.steps[0]
        if not getattr(step, "unread", False):
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                return  # the client hung up: nothing was asked
            headers = {k.lower(): v for k, v in self.headers.items()}
            self.server.asked.append(Asked(self.command, self.path, headers, body))
        step(self)
        self.close_connection = True

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends an answer; `headers` may replace the length."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


Step = Callable[[Handler], None]


class Script(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, steps: list[Step]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps = steps
        self.asked: list[Asked] = []
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event."""


@contextmanager
def scripted(*steps: Step, tls: ssl.SSLContext | None = None) -> Iterator[Script]:
    server = Script(list(steps))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def says(value: Any, status: int = 200, **headers: str) -> Step:
    """JSON, or bytes as they are; `Retry_After="1"` becomes a header."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda handler: handler.reply(status, body, {k.replace("_", "-"): v for k, v in headers.items()})


def breaks(handler: Handler) -> None:
    """Hangs up without a word, as a server that is killed does."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def truncated(body: bytes, announced: int) -> Step:
    """Announces more than it sends."""
    return lambda handler: handler.reply(200, body, {"Content-Length": str(announced)})


@dataclass
class Held:
    """Answers only when it is released, or never."""

    step: Step
    released: Any = field(default=None)

    def __call__(self, handler: Handler) -> None:
        with suppress(OSError):
            self.released.wait(20)
            self.step(handler)


def refuses_unread(status: int, detail: str) -> Step:
    """Answers an upload without reading it and hangs up."""

    def step(handler: Handler) -> None:
        handler.reply(status, json.dumps({"detail": detail}).encode())

    step.unread = True  # type: ignore[attr-defined]
    return step
