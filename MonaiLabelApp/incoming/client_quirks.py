"""Corrections for the headers of MONAI Label's client and of its module for Slicer.

With a token they keep one set of headers for all requests and write each body's type and length into it. A later GET or
DELETE then announces a body that never comes, and the upload that makes a session carries the type of the request
before it.
"""

from __future__ import annotations

import re

from starlette.types import Message, Receive, Scope

from replica_detection_server.util.json_replies import header_values

BODILESS = ("GET", "HEAD", "DELETE", "OPTIONS")
_FIRST_PART = re.compile(rb"--([0-9A-Za-z'()+_,./:=?-]{1,70})\r\nContent-Disposition: form-data;", re.IGNORECASE)
_PEEKED = 200


class WithoutBody:
    """`receive` of a request without a body, whatever its headers announce; it only waits for the end of the client."""

    def __init__(self, receive: Receive):
        self._receive, self._begun = receive, False

    async def __call__(self) -> Message:
        if not self._begun:
            self._begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await self._receive())["type"] == "http.request":
            pass
        return message


async def with_true_boundary(scope: Scope, receive: Receive) -> Receive:
    """Corrects the request's type to that of its body, whose first line names the boundary between its parts.

    Returns `receive` of the whole body. Anything but a form is left as it came. Raises what `receive` raises.
    """
    if (scope["method"], scope["path"]) != ("PUT", "/session/"):
        return receive
    read: list[Message] = []
    start = b""
    while len(start) < _PEEKED and (not read or read[-1].get("more_body", False)):
        read.append(await receive())
        start += read[-1].get("body", b"")

    async def replayed() -> Message:
        return read.pop(0) if read else await receive()

    found = _FIRST_PART.match(start)
    if found is None or f"boundary={found[1].decode()}" in "".join(header_values(scope, b"content-type")):
        return replayed
    kind = b"multipart/form-data; boundary=" + found[1]
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    scope["headers"] = [*others, (b"content-type", kind)]
    return replayed
