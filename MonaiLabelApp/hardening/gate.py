"""Who may come in."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from replica_detection_server.hardening.identity import NOBODY, Identity, identify
from replica_detection_server.hardening.keys import ApiKeys
from replica_detection_server.hardening.oauth import Realm, RealmUnreachableError
from replica_detection_server.hardening.refusing import header_values, refuse

# What a client of MONAI Label asks before it has a token; nothing of the server's data is behind it.
BEFORE_TOKEN = {"/auth/", "/auth", "/auth/token"}


class Gate:
    """Finds out who sends a request; with authentication, refuses it without a valid key or token."""

    def __init__(self, app: ASGIApp, keys: ApiKeys | None = None, realm: Realm | None = None):
        self.app, self.keys, self.realm = app, keys, realm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.realm is not None and scope["path"] in BEFORE_TOKEN:
            await self.app(scope, receive, send)
            return
        try:
            identity = await self._identity(scope)
        except RealmUnreachableError as error:
            await refuse(scope, receive, send, 503, str(error), {"Retry-After": "10"})
            return
        if identity is None:
            what = "an API key" if self.keys else "a token"
            detail = f"This server needs {what}: send it as `Authorization: Bearer ...`."
            await refuse(scope, receive, send, 401, detail, {"WWW-Authenticate": "Bearer"})
            return
        if identity.rank < 0:
            await refuse(scope, receive, send, 403, "Your account has no role on this server.")
            return
        identify(scope, identity)
        await self.app(scope, receive, send)

    async def _identity(self, scope: Scope) -> Identity | None:
        if self.keys is None and self.realm is None:
            return NOBODY
        scheme, _, credential = next(iter(header_values(scope, b"authorization")), "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else ""
        if self.keys is not None:
            given = given or next(iter(header_values(scope, b"x-api-key")), "")
            reader = self.keys.reader(given) if given else None
            return None if reader is None else Identity(reader)
        assert self.realm is not None
        # The first token fetches the realm's key over the network.
        return await run_in_threadpool(self.realm.identity, given) if given else None
