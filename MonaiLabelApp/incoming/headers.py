"""Headers that a request may have once: where two readers take different ones of two, each sees another request."""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from replica_detection_server.util.json_replies import refuse

# Who sends the request, and what its body is. Host has a refusal of its own, and X-Forwarded-For is a list: a proxy may
# add a line to that of the client.
ONCE = (b"authorization", b"x-api-key", b"content-type", b"content-length", b"transfer-encoding", b"content-encoding")


class OnlyOnce:
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
