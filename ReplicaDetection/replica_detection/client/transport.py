"""HTTP as the client needs it: TLS, retries, streaming, and errors in plain words.

Each call has a connection of its own, so that one `Transport` serves many threads. Proxies of the environment are not
used: images of patients go to the server that was named, or nowhere.
"""

from __future__ import annotations

import http.client
import json
import random
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from replica_detection.client.address import Address
from replica_detection.client.cancelling import POLL, Cancel, check, never, pause
from replica_detection.client.multipart import BLOCK, Multipart, ending
from replica_detection.errors import (
    AccessDeniedError,
    ConnectionLostError,
    InputError,
    NotFoundError,
    ServerBusyError,
    ServerError,
    UnexpectedAnswerError,
    UnreachableError,
)
from replica_detection.progress import Progress, silent
from replica_detection.util.files import atomic_write, write_advice

MOST_JSON = 2**28
MOST_REDIRECTS = 5
LONGEST_PAUSE = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request. `timeout`: seconds without a byte from the server; `idempotent`: True if it may be sent again when
    it is not known whether the server carried it out."""

    method: str
    path: str
    query: Mapping[str, Any]
    timeout: float
    body: bytes | Multipart | None = None
    idempotent: bool = True
    cancel: Cancel = never


class Answer:
    """The body of a good answer, read block by block."""

    def __init__(self, response: http.client.HTTPResponse, call: Call, transport: Transport):
        self._response, self._call, self._transport = response, call, transport
        length = response.headers.get("Content-Length", "")
        self.length = int(length) if length.isdecimal() else None

    @property
    def file_ending(self) -> str:
        """The known extension of the file name that the server gave, "" without one. The name itself is not used."""
        return ending(Path(self._response.headers.get_filename() or ""))

    def blocks(self) -> Iterator[bytes]:
        """The body, block by block. Raises ConnectionLostError where it ends too early, CancelledError."""
        done = 0
        while True:
            check(self._call.cancel)
            with self._transport.plain_words(self._call):
                block = self._response.read1(BLOCK)
            if not block:
                break
            done += len(block)
            yield block
        if self.length is not None and done != self.length:
            raise ConnectionLostError(f"{self._transport} broke off after {done} of {self.length} bytes. Try again.")


class Transport:
    """HTTP exchanges with one server. `str()` names the server in a sentence.

    Args:
        retries: number of times that a call is repeated when the server is busy or the connection broke.
    """

    def __init__(self, address: Address, retries: int):
        self.address, self._retries = address, retries

    def __str__(self) -> str:
        return f"The server at {self.address.url}"

    def send(self, call: Call, receive: Callable[[Answer], T]) -> T:
        """Sends the call and returns the result of `receive`; repeats both after a failure that is worth a retry."""
        attempt = 0
        while True:
            try:
                return self._once(call, receive)
            except ServerBusyError as error:
                if attempt >= self._retries:
                    raise
                asked = error.retry_after or 0.0
            except ConnectionLostError:
                if attempt >= self._retries or not call.idempotent:
                    raise
                asked = 0.0
            # Growing and jittered, so that many clients do not come back together.
            pause(min(LONGEST_PAUSE, max(asked, 0.25 * 2**attempt) * random.uniform(1, 1.5)), call.cancel)
            attempt += 1

    def json(self, call: Call) -> Any:
        """The answer, read as JSON. Raises UnexpectedAnswerError for anything else."""

        def receive(answer: Answer) -> bytes:
            body = bytearray()
            for block in answer.blocks():
                body += block
                if len(body) > MOST_JSON:
                    raise UnexpectedAnswerError(f"{self} answered more than {MOST_JSON} bytes of text.")
            return bytes(body)

        body = self.send(call, receive)
        try:
            return json.loads(body)
        except ValueError as error:
            raise self.not_understood(f"no JSON: {_one_line(body[:80].decode(errors='replace'))}") from error

    def download(
        self, call: Call, target: Path, stem: str, suffix: str | None = None, progress: Progress = silent
    ) -> Path:
        """Streams the answer into a file, which is whole or not there.

        Args:
            target: a file, or a folder, where the file is called `stem` and its format's extension.
            suffix: the format's extension; None: that of the name which the server gives the file.
            progress: called with ("downloading", bytes, bytes in all or 0).

        Raises:
            InputError: the file cannot be written, or `target` has the extension of another image format.
        """

        def receive(answer: Answer) -> Path:
            path = self._named(Path(target), stem, suffix or answer.file_ending)
            done = 0
            with _writable(path), atomic_write(path, "wb") as file:
                for block in answer.blocks():
                    file.write(block)
                    done += len(block)
                    progress("downloading", done, answer.length or 0)
            return path

        return self.send(call, receive)

    def not_understood(self, what: str) -> UnexpectedAnswerError:
        advice = "Check the address; client and server may also be of different versions."
        return UnexpectedAnswerError(f"{self} gave an answer that this program does not understand ({what}). {advice}")

    @contextmanager
    def plain_words(self, call: Call) -> Iterator[None]:
        """Turns failures of the network into errors of this package, in plain words."""
        unreachable = f"{self} cannot be reached"
        try:
            yield
        except TimeoutError as error:
            raise UnreachableError(f"{self} did not answer within {call.timeout:g} seconds.") from error
        except ssl.SSLCertVerificationError as error:
            advice = "If your institution has its own certificate authority, give its certificate as ca_file."
            raise UnreachableError(f"{self} cannot be trusted: {error.verify_message}. {advice}") from error
        except (ConnectionRefusedError, socket.gaierror) as error:
            advice = "Check that the server runs and that the address is right."
            raise UnreachableError(f"{unreachable}: {error.strerror or error}. {advice}") from error
        except (ConnectionError, ssl.SSLEOFError, http.client.IncompleteRead) as error:
            advice = "Try again." if self.address.tls is not None else "Try again. Does the server expect https://?"
            raise ConnectionLostError(f"{self} broke the connection ({type(error).__name__}). {advice}") from error
        except http.client.HTTPException as error:
            raise self.not_understood(f"no HTTP: {_one_line(str(error) or type(error).__name__)}") from error
        except ssl.SSLError as error:
            raise UnreachableError(f"{unreachable} over https: {error.reason}.") from error
        except OSError as error:
            raise UnreachableError(f"{unreachable}: {error.strerror or error}.") from error

    # --------------------------------------------------------------------------------------------------- one exchange

    def _once(self, call: Call, receive: Callable[[Answer], T]) -> T:
        said = {k: str(v).lower() if isinstance(v, bool) else v for k, v in call.query.items() if v is not None}
        query = urlencode(said, doseq=True)
        target = self.address.path + call.path + (f"?{query}" if query else "")
        for _ in range(MOST_REDIRECTS):
            with closing(self._connection(call.timeout)) as connection:
                with self.plain_words(call):
                    response = self._exchange(connection, call, target)
                with closing(response):
                    if response.status < 300:
                        return receive(Answer(response, call, self))
                    if response.status >= 400:
                        with self.plain_words(call):
                            body = response.read(2**16)
                        raise self._refusal(response, body)
                    target = self._elsewhere(response, call, target)
        raise UnexpectedAnswerError(f"{self} sends from one page to another without end.")

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        host, port, tls = self.address.host, self.address.port, self.address.tls
        if tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=tls, blocksize=BLOCK)
        return http.client.HTTPConnection(host, port, timeout=timeout, blocksize=BLOCK)

    def _exchange(self, connection: http.client.HTTPConnection, call: Call, target: str) -> http.client.HTTPResponse:
        headers = {"Accept": "*/*", "Connection": "close"}
        headers |= self.address.authorization
        body: Any = call.body
        if isinstance(call.body, Multipart):
            headers |= call.body.headers
            body = call.body.blocks(call.cancel)
        elif call.body is not None:
            headers["Content-Type"] = "application/json"
        connection.connect()
        waiting_for = connection.sock
        # A server that refuses an upload answers and closes the connection before it has read all of it.
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            connection.request(call.method, target, body, headers)
        _wait(waiting_for, call)
        return connection.getresponse()

    def _elsewhere(self, response: http.client.HTTPResponse, call: Call, target: str) -> str:
        """The target of a redirect within this server. Neither key nor images follow a redirect to another server."""
        try:
            new = urlsplit(urljoin(self.address.origin + target, response.headers.get("Location", "")))
            same = self.address.is_at(new)
        except ValueError as error:
            raise self.not_understood("a redirect to no address") from error
        if call.method != "GET" or not same:
            where = _one_line(f"{new.scheme}://{new.netloc}{new.path}")
            advice = "Nothing was sent there; if you trust that address, connect to it instead."
            raise UnexpectedAnswerError(f"{self} sends on to {where}. {advice}", status=response.status)
        return new.path + (f"?{new.query}" if new.query else "")

    def _refusal(self, response: http.client.HTTPResponse, body: bytes) -> ServerError:
        status, detail = response.status, _detail(body) or f"{response.status} {_one_line(response.reason)}"
        said = f"{detail.rstrip('.')}."
        if status == 503:
            asked = _retry_after(response.headers.get("Retry-After"))
            return ServerBusyError(f"{self} is busy: {said} Try again later.", detail=detail, retry_after=asked)
        if status == 401:
            what = "does not accept this key" if self.address.authorization else "asks for a key"
            return AccessDeniedError(f"{self} {what}: {said}", status=status, detail=detail)
        kind = {403: AccessDeniedError, 404: NotFoundError}.get(status, ServerError)
        what = "failed" if status >= 500 else "refused this"
        return kind(f"{self} {what}: {said}", status=status, detail=detail)

    def _named(self, target: Path, stem: str, suffix: str) -> Path:
        if target.is_dir():
            if not suffix:
                raise self.not_understood("a file of unknown format")
            return target / f"{stem}{suffix}"
        if suffix and ending(target) not in ("", suffix):
            raise InputError(target, f"has another extension than the image's own '{suffix}'", f"Name it *{suffix}")
        return target


def _wait(waiting_for: socket.socket, call: Call) -> None:
    """Waits until the answer begins. A read would wait as well, but could not be cancelled."""
    deadline = time.monotonic() + call.timeout
    with selectors.DefaultSelector() as selector:
        selector.register(waiting_for, selectors.EVENT_READ)
        while not selector.select(POLL):
            check(call.cancel)
            if time.monotonic() > deadline:
                raise TimeoutError


def _detail(body: bytes) -> str:
    """The server's explanation in one line; of a list of faults (FastAPI's validation), each with its field."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return ""
    if isinstance(detail, list):
        faults = [d for d in detail if isinstance(d, dict)]
        detail = "; ".join(f"{'.'.join(map(str, d.get('loc') or ()))}: {d.get('msg', '')}" for d in faults)
    return _one_line(detail) if isinstance(detail, str) else ""


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:1000]


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number of them or a date; None for neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        raise InputError(path, found, write_advice(error)) from error
