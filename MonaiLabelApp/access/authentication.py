"""Authentication of each request by a key or a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replica_detection_server.access.hashing_queue import BusyError, HashingQueue
from replica_detection_server.access.identity import NOBODY, ROLES, Identity, identify
from replica_detection_server.access.keys import KEY_ROLES, ApiKeys, KeyOwner, key_id
from replica_detection_server.access.oauth import Realm, RealmUnreachableError
from replica_detection_server.access.wrong_key_delays import Delays
from replica_detection_server.util.addresses import address_of, neighbourhood
from replica_detection_server.util.json_replies import header_values, refuse

# Clients of MONAI Label ask for these before they have a token. They give no data of the server.
BEFORE_TOKEN = {"/auth/", "/auth", "/auth/token"}
# Threads for questions to the provider of tokens, and questions that may wait for one.
ASKING, ASKING_WAIT = 2, 64
# A longer key or token cannot be valid.
MAX_CREDENTIAL = 16 << 10
TOO_MANY = "Too many wrong keys came from your address. Wait a minute and try again."
T = TypeVar("T")


@dataclass
class Keyring:
    """The keys in use. They can be replaced while the server runs."""

    keys: ApiKeys


class Authentication:
    """Finds out who sends a request; with authentication, refuses it without a valid key or token."""

    def __init__(self, app: ASGIApp, keyring: Keyring | None = None, realm: Realm | None = None):
        self.app, self.keyring, self.realm = app, keyring, realm
        self.delays, self.turns = Delays(), HashingQueue()
        self._limiter: CapacityLimiter | None = None
        self._asking = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (self.keyring or self.realm) is not None and scope["path"] in BEFORE_TOKEN:
            await self.app(scope, receive, self._late_refusal(scope, send))
            return
        try:
            found = await self._found(scope)
        except (RealmUnreachableError, BusyError) as error:
            await refuse(scope, receive, send, 503, str(error), {"Retry-After": "10"})
            return
        if isinstance(found, Identity) and found.rank >= 0:
            identify(scope, found)
            await self.app(scope, receive, send)
        elif isinstance(found, Identity):
            await refuse(scope, receive, send, 403, "Your account has no role on this server.")
        else:
            await self._refuse(scope, receive, send, found)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, detail: str) -> None:
        """`detail`: the reason, or "" for an invalid key or token, whose refusal waits."""
        challenge = {"WWW-Authenticate": "Bearer"}
        if not detail:
            if not await self.delays.wrong_key(address_of(scope)):
                await refuse(scope, receive, send, 429, TOO_MANY, {**challenge, "Retry-After": "60"})
                return
            detail = "This API key is not known." if self.keyring else "This token is not valid."
        await refuse(scope, receive, send, 401, detail, challenge)

    def _needed(self) -> str:
        what = "an API key" if self.keyring else "a token"
        return f"This server needs {what}: send it as `Authorization: Bearer ...`."

    def _late_refusal(self, scope: Scope, send: Send) -> Send:
        """`send` for a password exchange. If the provider refuses it, the answer waits like that to a wrong key."""

        async def late(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                await self.delays.wrong_key(address_of(scope))
            await send(message)

        return late

    async def _found(self, scope: Scope) -> Identity | str:
        """The sender of the request; else the reason for a refusal, "" for an invalid key or token."""
        if self.keyring is None and self.realm is None:
            return NOBODY
        scheme, _, credential = next(iter(header_values(scope, b"authorization")), "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else ""
        if self.keyring is not None:
            other = next(iter(header_values(scope, b"x-api-key")), "")
            if given and other:
                return "Send one key: `Authorization: Bearer ...` or X-API-Key."
            given = given or other
        if not given:
            return self._needed()
        if len(given) > MAX_CREDENTIAL:
            return ""
        return await (self._by_key(scope, given, self.keyring) if self.keyring else self._by_token(given))

    async def owner(self, scope: Scope, given: str, keyring: Keyring) -> KeyOwner | None:
        """The owner of a key, expired or not; None for an unknown key. Raises BusyError where too many are being
        checked."""
        found = keyring.keys.quick(given)
        if found is None or isinstance(found, KeyOwner):
            return found
        return await self.turns.run(neighbourhood(address_of(scope)), key_id(given), found)

    async def _by_key(self, scope: Scope, given: str, keyring: Keyring) -> Identity | str:
        owner = await self.owner(scope, given, keyring)
        if owner is None:
            return ""
        if owner.has_expired:
            return "This key has expired. Ask the administrator of the server for a new one."
        return Identity(owner.name, ROLES.index(KEY_ROLES[owner.role]))

    async def _by_token(self, given: str) -> Identity | str:
        realm = self.realm
        assert realm is not None
        # A check that must ask the provider over the network does not hold up tokens whose signature is known.
        if realm.must_ask(given):
            return await self._in_thread(lambda: realm.identity(given)) or ""
        return realm.identity(given) or ""

    async def _in_thread(self, check: Callable[[], T]) -> T:
        if self._asking >= ASKING_WAIT:
            raise BusyError
        if self._limiter is None:
            self._limiter = CapacityLimiter(ASKING)
        self._asking += 1
        try:
            return await to_thread.run_sync(check, limiter=self._limiter)
        finally:
            self._asking -= 1
