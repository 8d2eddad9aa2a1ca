"""Refusal of malformed requests: paths that climb, bodies without end, JSON that cannot be written out again, repeated
headers, forms of many large fields.

Those that pass have one spelling of accents, see names.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette import requests
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replica_detection.io.paths import composed
from replica_detection_server.incoming.client_quirks import BODILESS, WithoutBody, with_true_boundary
from replica_detection_server.incoming.names import MAX_JSON, composed_json, composed_query, json_fault
from replica_detection_server.util.json_replies import header_values, refuse

MAX_BODY = 1 << 20  # of everything but an upload
# A rating with 10,000 letters that are written as \ud83d\ude00 takes 120 KB; nothing that clients send is longer.
MAX_JSON_BODY = 256 << 10
# Longer JSON is read in a thread.
QUICK_JSON = 4096
# A name and a password; no key is needed to send them.
MAX_SIGN_IN = 4096
MAX_URL, MAX_HEADERS = 8192, 32 << 10
MAX_PARAMETERS = 50
# Parameters that may be repeated. Of any other, some readers take the first and some the last.
LISTS = {"/replica/worklist": {"verdict"}}
FORM_OVERHEAD = 1 << 20
# A client that sends nothing for this long within its body is gone.
SILENCE_SECONDS = 60.0
# A client with a lower mean rate, beyond that silence, is ended: 1 GiB may take nine hours.
BYTES_PER_SECOND = 32 * 1024
DRAIN_SECONDS, DRAIN_BYTES = 5.0, 64 << 20
UPLOADS = (
    ("PUT", re.compile(r"/datastore/(image|label)?")),
    ("PUT", re.compile(r"/session/")),
    ("POST", re.compile(r"/infer/[^/]+")),
    ("POST", re.compile(r"/replica/compare")),
)
# Routes that take a form without a file.
FORMS = (("PUT", re.compile(r"/datastore/(image|label)/info")),)
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
NO_JSON = "No JSON is taken here: send a form."
ONLY_JSON = "This is not understood here: send JSON and say so (Content-Type: application/json)."
# Headers about the sender and the body. Host is refused elsewhere. X-Forwarded-For is a list: a proxy may add a line to
# that of the client.
ONCE = (b"authorization", b"x-api-key", b"content-type", b"content-length", b"transfer-encoding", b"content-encoding")
# A session takes the slices of a series as files; of fields no route has more than three.
MAX_FILES, MAX_FIELDS = 2048, 20
# A field holds at most an object of MAX_JSON letters; what is a little larger is refused by its route, by name.
MAX_FIELD = 2 * MAX_JSON


class RequestLimits:
    """Refuses malformed paths and queries, limits bodies while they stream in, and checks JSON before a route does.

    Args:
        max_upload_bytes: the largest file that the upload routes take; all other bodies end at MAX_BODY.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int):
        self.app, self.max_upload_bytes = app, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if fault := url_fault(scope.get("raw_path") or scope["path"].encode(), scope["query_string"]):
            await refuse(scope, receive, send, 400, f"The address {fault}.")
            return
        if fault := parameters_fault(scope["path"], scope["query_string"]):
            await refuse(scope, receive, send, 400, fault)
            return
        scope["path"], scope["query_string"] = composed(scope["path"]), composed_query(scope["query_string"])
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            await refuse(scope, receive, send, 431, f"The headers are larger than {MAX_HEADERS // 1024} KiB.")
            return
        if scope["method"] in BODILESS:
            await self.app(scope, WithoutBody(receive), send)
            return
        limit = self._limit(scope)
        length = next(iter(header_values(scope, b"content-length")), "0")
        if not length.isdigit():
            await refuse(scope, receive, send, 400, "Content-Length must be a number.")
        elif int(length) > limit:
            await _drain(receive)
            await refuse(scope, receive, send, 413, too_large(limit))
        else:
            limited = _Limited(receive, limit)
            try:
                rest = await with_true_boundary(scope, limited)
                body = await self._understood(scope, limited)
            except HTTPException as error:
                await refuse(scope, receive, send, error.status_code, error.detail)
                return
            await self.app(scope, rest if body is None else _Replay(body, receive), send)

    def _limit(self, scope: Scope) -> int:
        if _signs_in(scope):
            return MAX_SIGN_IN
        return self.max_upload_bytes + FORM_OVERHEAD if _is_upload(scope) else MAX_BODY

    async def _understood(self, scope: Scope, limited: _Limited) -> bytes | None:
        """The body, read to check that its route understands it, or None for a form. A route would ignore a body that
        it does not understand."""
        # Some versions of FastAPI take a body of no type as JSON.
        given = next(iter(header_values(scope, b"content-type")), "application/json")
        kind = given.partition(";")[0].strip().lower()
        if kind in FORM_TYPES:
            return None
        if _takes_a_form(scope):
            return await limited.nothing(NO_JSON)
        if kind.startswith("application/") and kind.endswith("json"):
            return await limited.json()
        return await limited.nothing(ONLY_JSON)


def _is_upload(scope: Scope) -> bool:
    return _is_one_of(scope, UPLOADS)


def _takes_a_form(scope: Scope) -> bool:
    return _signs_in(scope) or _is_one_of(scope, (*UPLOADS, *FORMS))


def _is_one_of(scope: Scope, routes: tuple[tuple[str, re.Pattern[str]], ...]) -> bool:
    return any(scope["method"] == method and path.fullmatch(scope["path"]) for method, path in routes)


def _signs_in(scope: Scope) -> bool:
    return bool(re.match(r"/auth(/|$)", scope["path"]))


def parameters_fault(path: str, query: bytes) -> str:
    """The fault of an address's parameters, as a sentence; empty for those that every reader takes alike."""
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        return f"The address has more than {MAX_PARAMETERS} parameters."
    single = [name for name, _ in given if name not in LISTS.get(path, ())]
    return "The address names a parameter twice." if len(set(single)) < len(single) else ""


def url_fault(raw_path: bytes, query: bytes) -> str:
    """The fault of a path and its query as they came, as a clause; empty for a clean one."""
    if len(raw_path) + len(query) > MAX_URL:
        return f"is longer than {MAX_URL} letters"
    if re.search(rb"%(2f|5c)", raw_path, re.IGNORECASE) or b"\\" in raw_path:
        return "hides a path separator"
    try:
        path = unquote_to_bytes(raw_path).decode()
        words = unquote_to_bytes(query.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    if re.search(r"[\x00-\x1f\x7f]", path + words):
        return "holds a control character"
    if any(part in (".", "..") for part in path.split("/")) or "//" in path:
        return "climbs or is not in its shortest form"
    return ""


def too_large(limit: int) -> str:
    size = f"{limit / (1 << 20):.0f} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
    return f"The request is larger than the {size} that this server takes here."


async def _drain(receive: Receive) -> None:
    """Reads a little more of a refused body: many clients read the reply only after they have sent everything."""
    taken = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while taken < DRAIN_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


class _Limited:
    """`receive` that ends a body beyond `limit` with 413, and a client that is silent or too slow with 408."""

    def __init__(self, receive: Receive, limit: int):
        self._receive, self._limit, self._taken, self._complete = receive, limit, 0, False
        self._waited = 0.0

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        start = time.monotonic()
        left = SILENCE_SECONDS + self._taken / BYTES_PER_SECOND - self._waited
        try:
            message = await asyncio.wait_for(self._receive(), min(SILENCE_SECONDS, left))
        except TimeoutError:
            raise HTTPException(408, "The body stopped in the middle, or came too slowly.") from None
        self._waited += time.monotonic() - start
        if message["type"] == "http.request":
            self._taken += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._taken > self._limit:
                await self._rest()
                raise HTTPException(413, too_large(self._limit))
        return message

    async def _rest(self) -> None:
        """Reads the rest of a refused body; nothing follows its end."""
        if not self._complete:
            await _drain(self._receive)

    async def nothing(self, otherwise: str) -> bytes:
        """The body, which is empty; some clients name a type where they send nothing. Else it is refused."""
        while not self._complete and not self._taken:
            if (await self())["type"] == "http.disconnect":
                raise HTTPException(400, "The body stopped in the middle.")
        if self._taken:
            await self._rest()
            raise HTTPException(415, otherwise)
        return b""

    async def json(self) -> bytes:
        """The whole body, which is clean JSON in the composed form, or empty."""
        parts = []
        self._limit = min(self._limit, MAX_JSON_BODY)
        while not self._complete:
            message = await self()
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "The body stopped in the middle.")
            parts.append(message.get("body", b""))
        body = b"".join(parts)
        return await run_in_threadpool(_clean, body) if len(body) > QUICK_JSON else _clean(body)


def _clean(body: bytes) -> bytes:
    """A body of JSON in the composed form; the very same bytes where it is in it already. Raises HTTPException 422."""
    try:
        value = json.loads(body) if body else None
        fault = json_fault(value)
    except (ValueError, RecursionError):
        fault = "is no JSON"
    if fault:
        raise HTTPException(422, f"The body {fault}.")
    made = composed_json(value)
    return body if made == value else json.dumps(made).encode()


class _Replay:
    """`receive` that gives a body which was already read."""

    def __init__(self, body: bytes, receive: Receive):
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class RefuseRepeatedHeaders:
    """Refuses with 400 a request that has one of ONCE twice."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counts = Counter(name.lower() for name, _ in scope["headers"]) if scope["type"] == "http" else Counter()
        twice = next((name.decode() for name in ONCE if counts[name] > 1), "")
        if twice:
            await refuse(scope, receive, send, 400, f"The request has the header {twice} twice.")
        else:
            await self.app(scope, receive, send)


class BoundedParser(MultiPartParser):
    """Starlette's parser with fixed limits. Its default ones let a form hold 1,000 fields of 1 MiB."""

    def __init__(self, headers: Any, stream: Any, **limits: Any):
        super().__init__(
            headers, stream, **{**limits, "max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD}
        )


def limit_forms() -> None:
    """Makes all requests of this process use this parser. It replaces Starlette's by name, because some supported
    versions of FastAPI take no limits."""
    requests.MultiPartParser = BoundedParser  # type: ignore[misc]
