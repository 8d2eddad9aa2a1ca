"""Connections that are slow, silent or too many: real sockets against the protocol of the server, plain and with TLS.

The times are shorter than those of a launch; everything else is what `replica-detection serve` runs.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import uvicorn

from replica_detection_server.incoming import connections
from replica_detection_server.incoming.connections import (
    OTHER_FILES,
    Connections,
    Limits,
    _address,
    open_files,
)
from replica_detection_server.incoming.protocol import BoundedHttp, BoundedServer
from Server.conftest import until

QUICK = Limits(
    connections=20,
    per_address=5,
    handshakes_per_address=8,
    handshake_seconds=1.5,
    head_seconds=1.5,
    linger_seconds=0.4,
    grace_seconds=2.0,
    impatient_seconds=0.5,
    bytes_per_second=2 << 20,
)
GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 24 << 20


async def application(scope, receive, send):
    """Answers with the method and the length of the body; /large with many bytes, /now without reading the body."""
    if scope["type"] != "http":
        return
    length = 0
    if scope["path"] == "/body":
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            length += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
    body = bytes(LARGE) if scope["path"] == "/large" else json.dumps([scope["method"], length]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    for start in range(0, len(body), 1 << 20):
        await send({"type": "http.response.body", "body": body[start : start + (1 << 20)], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True)
class Served:
    port: int
    table: Connections
    trusted: ssl.SSLContext | None

    def connect(self, tls: bool = True) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        if self.trusted is None or not tls:
            return made
        return self.trusted.wrap_socket(made, server_hostname="localhost")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "certificate.pem"]
    try:
        subprocess.run(made, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate")
    return folder / "certificate.pem", folder / "key.pem"


@contextmanager
def serving(limits: Limits, certificate: tuple[Path, Path] | None) -> Iterator[Served]:
    table = Connections(limits)

    listener = socket.create_server(("127.0.0.1", 0))
    files = {} if certificate is None else {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    server = BoundedServer(
        uvicorn.Config(
            application,
            http=BoundedHttp,
            loop="asyncio",
            ws="none",
            log_config=None,
            timeout_graceful_shutdown=1,
            **files,
        ),
        table,
    )
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    trusted = None if certificate is None else ssl.create_default_context(cafile=str(certificate[0]))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connections, "TICK_SECONDS", 0.2)
            yield Served(listener.getsockname()[1], table, trusted)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module", params=["plain", "tls"])
def served(request) -> Iterator[Served]:
    with serving(QUICK, request.getfixturevalue("certificate") if request.param == "tls" else None) as running:
        yield running


def everything(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except (ConnectionError, ssl.SSLError):
        pass
    return found


def one_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of the next answer."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        assert part, f"the server ended the connection after {head!r}"
        head += part
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = b""
    while len(body) < length and (part := connection.recv(length - len(body))):
        body += part
    return head, body


def ended(connection: socket.socket, within: float = 15.0) -> bool:
    connection.settimeout(within)
    try:
        return everything(connection) is not None
    except TimeoutError:
        return False


# ----------------------------------------------------------------------------------------------------- announced bodies


@pytest.mark.parametrize("announced", [b"Content-Length: 42", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
def test_a_body_that_never_comes(served, method, announced):
    """The answer comes at once, ends the connection, and what follows is no request."""
    with served.connect() as connection:
        connection.sendall(method + b" /x HTTP/1.1\r\nHost: localhost\r\n" + announced + b"\r\n\r\n")
        head, _ = one_answer(connection) if method != b"HEAD" else (connection.recv(4096), b"")
        assert head.startswith(b"HTTP/1.1 200") and b"connection: close" in head.lower()
        # Behind a proxy this would be the next client's request, or this client's disguised as another's.
        smuggled = GET.replace(b"/x", b"/body")
        try:
            connection.sendall(smuggled)
        except (ConnectionError, ssl.SSLError):
            return
        assert b"HTTP/1.1" not in everything(connection)


def test_a_body_that_comes_late_does_not_break_the_answer(served):
    with served.connect() as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 42\r\n\r\n")
        time.sleep(0.3)
        connection.sendall(b"x" * 42)
        head, body = one_answer(connection)
    assert head.startswith(b"HTTP/1.1 200") and json.loads(body)[0] == "GET"


def test_requests_one_after_the_other_keep_their_connection(served):
    with served.connect() as connection:
        for _ in range(3):
            connection.sendall(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello")
            head, body = one_answer(connection)
            assert json.loads(body) == ["POST", 5] and b"connection: close" not in head.lower()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_lengths_in_one_request(served, order):
    """What is left of the body by one length must not be answered as a request."""
    lengths = (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n")
    head = b"POST /body HTTP/1.1\r\nHost: localhost\r\n" + lengths[order[0]] + lengths[order[1]] + b"\r\n"
    with served.connect() as connection:
        connection.sendall(head + b"0\r\n\r\n" + GET)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400") and b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == 1 and b"Transfer-Encoding" in answer


def test_no_request_at_all_is_told_so(served):
    with served.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400") and json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


# ----------------------------------------------------------------------------------------------------------------- time


def test_headers_that_trickle(served):
    with served.connect() as connection:
        start = time.monotonic()
        connection.sendall(b"GET /x HTTP/1.1\r\n")
        connection.settimeout(0.2)
        answer = b""
        while not answer and time.monotonic() - start < 20:
            try:
                connection.sendall(b"X-A: b\r\n")
                answer = connection.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


@pytest.mark.parametrize("sent", [b"", b"G"])
def test_a_connection_without_a_request(served, sent):
    with served.connect() as connection:
        connection.sendall(sent)
        assert ended(connection)


def test_headers_that_trickle_after_a_request(served):
    with served.connect() as connection:
        connection.sendall(GET)
        one_answer(connection)
        connection.sendall(b"GET /x")
        assert ended(connection)


def test_a_reader_that_does_not_read(served):
    """Its answer is dropped; it does not lie in the server's memory for ever."""
    with served.connect() as connection:
        connection.sendall(GET.replace(b"/x", b"/large"))
        until(lambda: len(served.table) > 0, "the connection is not counted")
        until(lambda: not len(served.table), "the server still holds the answer", 30)


def test_a_slow_reader_that_goes_on_gets_everything(served):
    with served.connect() as connection:
        connection.sendall(GET.replace(b"/x", b"/large"))
        received, start = 0, time.monotonic()
        while received < LARGE:
            part = connection.recv(1 << 20)
            assert part
            received += len(part)
            if received > (time.monotonic() - start) * 2 * QUICK.bytes_per_second:
                time.sleep(0.05)


def test_a_handshake_that_stops(served):
    if served.trusted is None:
        pytest.skip("plain connections shake no hands")
    with served.connect(tls=False) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert ended(connection)
    until(lambda: not len(served.table), "its place is still taken")


# --------------------------------------------------------------------------------------------------------------- number


@pytest.mark.parametrize(
    "sent", [b"", b"GET /x HTTP/1.1\r\nX-A:", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"]
)
def test_more_connections_than_places(served, sent):
    """All places are taken by clients that do nothing; one that sends its request is answered nevertheless."""
    with ExitStack() as kept:
        for _ in range(QUICK.connections + 10):
            connection = kept.enter_context(served.connect())
            connection.sendall(sent)
        for _ in range(3):
            with served.connect() as client:
                client.sendall(GET)
                assert one_answer(client)[0].startswith(b"HTTP/1.1 200")
        assert 0 < len(served.table) <= QUICK.connections


def test_half_handshakes_do_not_keep_others_out(served):
    if served.trusted is None:
        pytest.skip("plain connections shake no hands")
    with ExitStack() as kept:
        for _ in range(60):
            kept.enter_context(served.connect(tls=False)).sendall(b"\x16\x03\x01\x02\x00\x01")
        with served.connect() as client:
            client.sendall(GET)
            assert one_answer(client)[0].startswith(b"HTTP/1.1 200")
        assert 0 < len(served.table) <= QUICK.handshakes_per_address + 1


def test_bodies_that_trickle_make_room(served):
    head = b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
    with ExitStack() as kept:
        for _ in range(QUICK.connections):
            kept.enter_context(served.connect()).sendall(head)
        time.sleep(2 * QUICK.impatient_seconds)
        with served.connect() as client:
            client.sendall(GET)
            assert one_answer(client)[0].startswith(b"HTTP/1.1 200")


def test_connections_of_one_address():
    """What a machine of the network may hold; sockets of this machine all have one address, which has no such limit."""
    assert [_address((a, 1)) for a in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == ["", "", ""]
    assert _address(("::ffff:192.0.2.1", 1)) == _address(("192.0.2.1", 1)) == "192.0.2.1"
    assert _address(("2001:db8::1", 1, 0, 0)) == _address(("2001:db8::2", 1, 0, 0)) != _address(("2001:db8:1::1", 1))
    assert _address(None) == _address(("", 1)) == ""


def test_one_address_does_not_take_the_places_of_others(monkeypatch):
    """Addresses of the loopback stand for machines of a network."""
    monkeypatch.setattr(connections, "is_loopback", lambda host: False)

    def come_from(served: Served, address: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", served.port), timeout=20, source_address=(address, 0))

    # None of them ends by itself, however busy this machine is.
    unhurried = replace(QUICK, head_seconds=300, linger_seconds=300, grace_seconds=300)
    with serving(unhurried, None) as served, ExitStack() as kept:
        other = kept.enter_context(come_from(served, "127.0.0.3"))
        for _ in range(3 * unhurried.per_address):
            kept.enter_context(come_from(served, "127.0.0.2"))
        other.sendall(GET)
        assert one_answer(other)[0].startswith(b"HTTP/1.1 200"), "it came first, and others were too many"
        until(lambda: len(served.table) == unhurried.per_address + 1, "others were too many, or too few")


def test_places_that_are_all_in_use():
    """Whoever is being answered keeps the connection; the next one is told to come back."""
    with serving(replace(QUICK, connections=2), None) as served, ExitStack() as kept:
        for _ in range(2):
            kept.enter_context(served.connect()).sendall(GET.replace(b"/x", b"/large"))
        time.sleep(0.2)
        with served.connect() as client:
            answer = everything(client)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] and served.table.refused == 1


def test_files_for_all_connections():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert open_files(500) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500 + OTHER_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
