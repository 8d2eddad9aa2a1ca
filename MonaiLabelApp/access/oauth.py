"""Tokens of an OpenID Connect provider. MONAI Label's own check refuses every valid one.

It calls `jwt.decode` without `algorithms`, which PyJWT 2 rejects. It also ignores the audience of a token, keeps the
realm's key for ever, and answers 500 while the realm cannot be reached. Here the provider's own page
(/.well-known/openid-configuration) names its keys (JWKS), as OpenID Connect Discovery 1.0 defines it.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests

from replica_detection_server.access.identity import ROLES, Identity
from replica_detection_server.util.addresses import is_loopback

logger = logging.getLogger(__name__)

# Kinds of keys that may sign a token; never a shared secret (HS), never none.
BY_KEY_TYPE = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
}
# Accepted types in a token's header: an ID token has JWT or no type, an access token of RFC 9068 has at+jwt. A logout
# token, or one for another purpose, is refused.
KINDS = (None, "jwt", "at+jwt", "application/at+jwt")
LEEWAY_SECONDS = 30
# Seconds after which the keys are fetched again: known ones, and those of a token that names an unknown key.
REFRESH_SECONDS = 300
RETRY_SECONDS = 10
# While the provider cannot be reached, its last keys are used for this long.
STALE_SECONDS = 86400
MAX_NAME = 200
EXCHANGES = 4
AWAY = "The provider that signs tokens does not answer. Try again later."


# The algorithms that a key is for, and the key.
_Key = tuple[Sequence[str], Any]


class RealmUnreachableError(Exception):
    """The provider gave no usable answer, so no token can be checked."""


class Realm:
    """Checks tokens against the keys that a provider publishes.

    Args:
        uri: the issuer, such as https://keycloak.example/realms/hospital.
        client_id: the client that asks for tokens with a name and a password.
        role_names: the provider's name of each role in identity.ROLES.
        name_claim, roles_claim: where a token says them; # separates the levels of nested objects.
        audience: whom tokens must have been made for, by their `aud`; "" takes those made for the client, by their
            `azp` or `aud`.
    """

    def __init__(
        self,
        uri: str,
        client_id: str,
        role_names: Mapping[str, str],
        name_claim: str = "preferred_username",
        roles_claim: str = "realm_access#roles",
        audience: str = "",
    ):
        self.uri, self.client_id, self.role_names = uri.rstrip("/"), client_id, dict(role_names)
        self.name_claim, self.roles_claim, self.audience = name_claim, roles_claim, audience
        self._lock = threading.Lock()
        # Sign-ins need no token: they must not take up all threads while the provider is slow.
        self._exchanges = threading.Semaphore(EXCHANGES)
        self._issuer = ""
        self._keys: dict[Any, _Key] = {}
        self._asked = self._answered = -math.inf

    def identity(self, token: str) -> Identity | None:
        """The identity in the token, with rank -1 where it grants no role of ours.

        None where the token is forged, expired, made for another audience, or names nobody.

        Raises:
            RealmUnreachableError: the provider's keys are not known and it does not answer.
        """
        header = _header(token)
        if header is None:
            return None
        key = self._key(header.get("kid"))
        claims = None if key is None else self._claims(token, header, key)
        return None if claims is None else self._of(claims)

    def must_ask(self, token: str) -> bool:
        """True if `identity` would ask the provider over the network, or wait for another that does."""
        header = _header(token)
        return header is not None and self._must_wait(header.get("kid"))

    def forget(self) -> None:
        """Asks the provider for its keys again when the next token comes."""
        self._asked = -math.inf

    def token(self, username: str, password: str) -> dict[str, Any] | None:
        """A token for a name and a password; None where the provider refuses them."""
        if not self._exchanges.acquire(blocking=False):
            raise RealmUnreachableError("Too many are signing in. Try again in a moment.")
        try:
            return self._exchanged(username, password)
        finally:
            self._exchanges.release()

    def _exchanged(self, username: str, password: str) -> dict[str, Any] | None:
        form = {"client_id": self.client_id, "username": username, "password": password, "grant_type": "password"}
        try:
            address = self._discovered().get("token_endpoint")
            if not isinstance(address, str) or not self._is_as_secure(address):
                raise NotFetchedError("it names no address for tokens that can be used")
            status, answer = fetched_json(address, form)
        except NotFetchedError as error:
            raise RealmUnreachableError(AWAY) from error
        if status >= 500:
            raise RealmUnreachableError(AWAY)
        return answer if status == 200 else None

    # --------------------------------------------------------------------------------------------------- its tokens

    def _claims(self, token: str, header: Mapping[str, Any], key: _Key) -> dict[str, Any] | None:
        algorithms, public = key
        if header.get("alg") not in algorithms:
            return None
        options: Any = {"verify_aud": False, "require": ["exp", "iss"], "enforce_minimum_key_length": True}
        try:
            claims: dict[str, Any] = jwt.decode(
                token, public, algorithms=algorithms, issuer=self._issuer, leeway=LEEWAY_SECONDS, options=options
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return claims

    def _of(self, claims: Mapping[str, Any]) -> Identity | None:
        said = claims.get("aud") or ()
        made_for = [said] if isinstance(said, str) else list(said) if isinstance(said, list) else []
        wanted, named = (self.audience, made_for) if self.audience else (self.client_id, [*made_for, claims.get("azp")])
        reader = claim(claims, self.name_claim)
        if wanted not in named or not isinstance(reader, str):
            return None
        reader = reader.strip()
        if not reader or len(reader) > MAX_NAME or not reader.isprintable():
            return None
        granted = claim(claims, self.roles_claim)
        roles = granted.split() if isinstance(granted, str) else granted if isinstance(granted, list) else []
        return Identity(reader, max((n for n, role in enumerate(ROLES) if self.role_names[role] in roles), default=-1))

    # ----------------------------------------------------------------------------------------------------- its keys

    def _is_due(self, kid: Any) -> bool:
        """True if the provider is to be asked: its keys are old, or it may have a new one."""
        return time.monotonic() - self._asked > (REFRESH_SECONDS if self._named(kid) else RETRY_SECONDS)

    def _must_wait(self, kid: Any) -> bool:
        return self._is_due(kid) or not self._keys or (self._lock.locked() and not self._named(kid))

    def _named(self, kid: Any) -> _Key | None:
        keys = self._keys
        if kid is None:  # allowed where there is one key alone
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(kid) if isinstance(kid, str) else None

    def _key(self, kid: Any) -> _Key | None:
        if self._must_wait(kid):
            with self._lock:
                if self._is_due(kid):
                    self._ask()
        if not self._keys or time.monotonic() - self._answered > STALE_SECONDS:
            raise RealmUnreachableError(AWAY)
        return self._named(kid)

    def _ask(self) -> None:
        self._asked = time.monotonic()
        try:
            page = self._discovered()
            status, answer = fetched_json(page["jwks_uri"])
            listed = answer.get("keys") if status == 200 and isinstance(answer, dict) else None
            if not isinstance(listed, list):
                raise NotFetchedError(f"the keys of the provider came with status {status}")
        except NotFetchedError as error:
            logger.error("the provider of tokens cannot be asked: %s", str(error))
            return
        # Of keys with the same name the first counts, as in PyJWT's own client.
        self._keys = {raw["kid"]: key for raw in reversed(listed) if (key := _usable(raw)) is not None}
        self._issuer, self._answered = page["issuer"], time.monotonic()
        if not self._keys:
            logger.error("the provider of tokens has no key that can be used")

    def _discovered(self) -> dict[str, Any]:
        """The provider's page, fetched again. Raises NotFetchedError where it is none, or another provider's."""
        status, page = fetched_json(f"{self.uri}/.well-known/openid-configuration")
        if status != 200 or not isinstance(page, dict):
            raise NotFetchedError(f"the page of the provider came with status {status}")
        issuer, keys = page.get("issuer"), page.get("jwks_uri")
        # One slash at the end is the only thing that may differ from what the administrator wrote.
        if not isinstance(issuer, str) or issuer.rstrip("/") != self.uri:
            raise NotFetchedError("the page of the provider names another issuer")
        if not isinstance(keys, str) or not self._is_as_secure(keys):
            raise NotFetchedError("the page of the provider names no address of keys that can be used")
        return page

    def _is_as_secure(self, address: str) -> bool:
        return is_secure(address) and (address.startswith("https://") or not self.uri.startswith("https://"))


def claim(claims: Any, path: str) -> Any:
    """The value of a token under a name, or under names that are separated by #; None where it has none."""
    if isinstance(claims, Mapping) and path in claims:
        return claims[path]
    for name in path.split("#"):
        claims = claims.get(name) if isinstance(claims, Mapping) else None
    return claims


def _header(token: str) -> dict[str, Any] | None:
    """The header of what looks like a token for us, not yet checked."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    kind = header.get("typ")
    return header if (kind.lower() if isinstance(kind, str) else kind) in KINDS else None


def _usable(raw: Any) -> _Key | None:
    """A key of a provider, as its page of keys describes it; None for one that signs no tokens of ours."""
    if not isinstance(raw, dict) or raw.get("use", "sig") != "sig" or not isinstance(raw.setdefault("kid", ""), str):
        return None
    algorithms = BY_KEY_TYPE.get((str(raw.get("kty")), str(raw.get("crv")) if raw.get("kty") == "EC" else None), ())
    algorithms = tuple(a for a in algorithms if raw.get("alg", a) == a)
    try:
        return (algorithms, jwt.PyJWK(raw, algorithms[0]).key) if algorithms else None
    except (jwt.PyJWTError, ValueError, TypeError):
        return None


TIMEOUT_SECONDS = 10.0
MAX_BYTES = 1 << 20


class NotFetchedError(Exception):
    """There was no answer, or none that can be used; the message names no address."""


def is_secure(address: str) -> bool:
    """True if an address is https, or http to this machine alone, and carries no name or password."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or any(c.isspace() or not c.isprintable() for c in address):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def fetched_json(address: str, form: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer to a GET, or to a POST of a form; None for what is no JSON. Follows no redirect.

    Raises:
        NotFetchedError: no answer in TIMEOUT_SECONDS, or one that is larger than MAX_BYTES.
    """
    found: list[tuple[int, Any] | BaseException] = []

    def fetch() -> None:
        try:
            found.append(_fetched(address, form))
        except BaseException as error:
            found.append(error)

    # The time limits of `requests` count the silence, not the whole: a server that sends a byte now and then would hold
    # the caller for hours. In a thread of its own it holds nobody.
    thread = threading.Thread(target=fetch, name="fetching", daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    if not found:
        raise NotFetchedError("no whole answer in time")
    if isinstance(found[0], NotFetchedError):
        raise found[0]
    if isinstance(found[0], BaseException):
        raise NotFetchedError(type(found[0]).__name__) from found[0]
    return found[0]


def _fetched(address: str, form: Mapping[str, str] | None) -> tuple[int, Any]:
    if not is_secure(address):
        raise NotFetchedError("the address is not https")
    method = "GET" if form is None else "POST"
    headers = {"Accept": "application/json"}
    with requests.request(
        method, address, data=form, headers=headers, timeout=TIMEOUT_SECONDS / 2, allow_redirects=False, stream=True
    ) as reply:
        body = b""
        for part in reply.iter_content(1 << 14):
            body += part
            if len(body) > MAX_BYTES:
                raise NotFetchedError(f"the answer is larger than {MAX_BYTES >> 20} MiB")
    try:
        return reply.status_code, json.loads(body)
    except (ValueError, RecursionError):
        return reply.status_code, None
