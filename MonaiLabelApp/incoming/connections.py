"""Limits on the number of connections and on the time of each, below HTTP.

A client counts from the accept on: before TLS, a header or a key. Where all places are taken, a client that keeps the
server waiting is closed first, so that one that sends its request is served.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from replica_detection_server.util.addresses import is_loopback

MAX_CONNECTIONS, PER_ADDRESS = 500, 100
TICK_SECONDS = 1.0
# Open files beside connections: uploads, images, the index, logs, pipes of job processes.
OTHER_FILES = 256
# Seconds after which a TLS connection is closed, even without the client's closing message.
SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True)
class Limits:
    """`per_address` counts other machines: behind a proxy on this machine all clients have one address.

    `grace_seconds` and `bytes_per_second`: a client may be silent, or slower than the rate, for the grace in all; then
    its transfer ends. `impatient_seconds` takes its place while others wait for a connection.
    """

    connections: int = MAX_CONNECTIONS
    per_address: int = PER_ADDRESS
    handshakes_per_address: int = 40
    handshake_seconds: float = 10.0
    head_seconds: float = 10.0
    linger_seconds: float = 10.0
    grace_seconds: float = 60.0
    impatient_seconds: float = 5.0
    bytes_per_second: float = 32 * 1024


class Waiting(Protocol):
    """The state of a connection as HTTP knows it: see `protocol.BoundedHttp`."""

    limits: Limits

    def connection_made(self, transport: Any) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> Any: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def keeps_waiting(self, now: float) -> bool: ...
    def check(self, now: float, unsent: int) -> bool: ...


class Connections:
    """All connections of a server, the oldest first."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.refused = 0
        self._all: dict[Connection, None] = {}
        self._of: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, new: Connection) -> bool:
        """True if there is a place, after the connection of a client that keeps the server waiting has ended."""
        limits, address = self.limits, new.address
        most = limits.connections if address == "" else limits.per_address
        hands = [c for c in self._all if c.address == address and c.inner is None] if new.tls is not None else []
        if len(hands) >= limits.handshakes_per_address:
            hands[0].end()
        if self._of[address] >= most:
            victim = self._waiting(address)
        elif len(self._all) >= limits.connections:
            victim = next(filter(None, (self._waiting(a) for a, _ in self._of.most_common())), None)
        else:
            self._add(new)
            return True
        if victim is None:
            self.refused += 1
            return False
        victim.end()
        self._add(new)
        return True

    def remove(self, connection: Connection) -> None:
        if self._all.pop(connection, self) is None:
            self._of[connection.address] -= 1
            if not self._of[connection.address]:
                del self._of[connection.address]

    def close(self) -> None:
        """Ends the watch and all connections without an answer in progress; for the end of the server."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        for connection in [c for c in self._all if c.keeps_waiting(now)]:
            connection.end()

    @contextmanager
    def guarding(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Servers that are created in the block take connections through here; TLS too, which begins only then."""
        original = loop.create_server

        async def create_server(make: Callable[[], Any], *places: Any, ssl: Any = None, **how: Any) -> Any:
            return await original(lambda: Connection(self, make, ssl), *places, **how)

        changed = cast(Any, loop)
        changed.create_server = create_server
        try:
            yield
        finally:
            changed.create_server = original
        self._timer = loop.call_later(TICK_SECONDS, self._tick, loop)

    def _add(self, connection: Connection) -> None:
        self._all[connection] = None
        self._of[connection.address] += 1

    def _waiting(self, address: str) -> Connection | None:
        now = time.monotonic()
        return next((c for c in self._all if c.address == address and c.keeps_waiting(now)), None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        for connection in list(self._all):
            connection.check(now)
        self._timer = loop.call_later(TICK_SECONDS, self._tick, loop)


class Connection(asyncio.Protocol):
    """One accepted connection, from the accept to its end; `inner` speaks HTTP once there is something to read."""

    def __init__(self, table: Connections, make: Callable[[], Waiting], tls: ssl.SSLContext | None):
        self.table, self.tls = table, tls
        self.address = ""
        self.inner: Waiting | None = None
        self._make = make
        self._early: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._raw: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self.address = _address(transport.get_extra_info("peername"))
        if not self.table.admit(self):
            if self.tls is None:
                self._raw.write(FULL)
                self._raw.close()
            else:
                self._raw.abort()
        elif self.tls is None:
            self._begin(self._raw)
        else:
            self._raw.pause_reading()
            self._task = asyncio.get_running_loop().create_task(self._handshake(self._raw, self.tls))

    async def _handshake(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
        try:
            transport = await asyncio.get_running_loop().start_tls(
                raw,
                self,
                tls,
                server_side=True,
                ssl_handshake_timeout=self.table.limits.handshake_seconds,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except (OSError, asyncio.CancelledError):  # ssl.SSLError and TimeoutError are OSError
            self.end()
            return
        if transport is None or transport.is_closing():
            self.end()
            return
        self._begin(transport)

    def _begin(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.inner = self._make()
        self.inner.limits = self.table.limits
        self.inner.connection_made(transport)
        for data in self._early:  # came with the last words of the handshake
            self.inner.data_received(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.inner is None:
            self._early.append(data)
        else:
            self.inner.data_received(data)

    def eof_received(self) -> Any:
        return None if self.inner is None else self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.table.remove(self)
        if self.inner is not None:
            self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self.inner is not None:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        if self.inner is not None:
            self.inner.resume_writing()

    def keeps_waiting(self, now: float) -> bool:
        """True while the server waits for the client, so that its place can be given to another."""
        return self.inner is None or self.inner.keeps_waiting(now)

    def check(self, now: float) -> None:
        """Ends the connection if the client has used up its time."""
        if self.inner is None or self._raw is None or self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if self._transport is not self._raw:
            unsent += self._raw.get_write_buffer_size()
        if not self.inner.check(now, unsent):
            self.end()

    def end(self) -> None:
        self.table.remove(self)
        if self._raw is not None:
            self._raw.abort()


def open_files(connections: int) -> int:
    """Lets the process have that many connections and its files beside them, as far as the system allows.

    Returns how many connections there may be.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    wanted = connections + OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(8, min(connections, soft - OTHER_FILES))


def _answer(status: str, detail: str) -> bytes:
    body = f'{{"detail":"{detail}"}}'
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 5\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode("ascii")


FULL = _answer("503 Service Unavailable", "The server has no connection left. Try again later.")


def _address(peer: Any) -> str:
    """The key of a client's count: an address, the network of an IPv6 address; "" for this machine."""
    host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if is_loopback(str(address)):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
