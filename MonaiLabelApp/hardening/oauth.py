"""Tokens of an OpenID Connect realm (Keycloak): MONAI Label's own check refuses every valid one.

It calls `jwt.decode` without `algorithms`, which PyJWT 2 takes for an attack; it also never looks who a token was
made for, keeps the realm's key for ever, and answers 500 while the realm is away.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import jwt
import requests

from replica_detection_server.hardening.identity import ROLES, Identity

logger = logging.getLogger(__name__)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
TIMEOUT_SECONDS = 10
# A realm that changes its key is noticed after this; asked no more often, whatever tokens arrive.
REFRESH_SECONDS = 300
RETRY_SECONDS = 10


class RealmUnreachableError(Exception):
    """The realm did not answer, so that no token can be checked."""


class Realm:
    """Checks tokens against the public key that the realm publishes.

    Args:
        uri: address of the realm, such as https://keycloak.example/realms/hospital.
        client_id: the client that tokens must have been made for (`azp` or `aud`).
        role_names: the realm's name of each role in identity.ROLES.
        name_claim, roles_claim: where a token says them; # separates the levels of nested objects.
    """

    def __init__(
        self,
        uri: str,
        client_id: str,
        role_names: Mapping[str, str],
        name_claim: str = "preferred_username",
        roles_claim: str = "realm_access#roles",
    ):
        self.uri, self.client_id, self.role_names = uri.rstrip("/"), client_id, dict(role_names)
        self.name_claim, self.roles_claim = name_claim, roles_claim
        self._lock = threading.Lock()
        self._key = ""
        self._asked = -math.inf

    def identity(self, token: str) -> Identity | None:
        """Who the token names, with rank -1 where it grants no role of ours; None where it is forged, expired, made for
        another client, or names nobody.

        Raises:
            RealmUnreachableError: the realm's key is not known and the realm does not answer.
        """
        key = self._public_key(REFRESH_SECONDS)
        claims = self._claims(token, key)
        if claims is None and self._public_key(RETRY_SECONDS) != key:
            claims = self._claims(token, self._key)
        return None if claims is None else self._of(claims)

    def token(self, username: str, password: str) -> dict[str, Any] | None:
        """A token for a name and a password; None where the realm refuses them."""
        try:
            address = self._get(f"{self.uri}/.well-known/openid-configuration")["token_endpoint"]
            form = {"client_id": self.client_id, "username": username, "password": password, "grant_type": "password"}
            reply = requests.post(address, data=form, timeout=TIMEOUT_SECONDS)
        except (requests.RequestException, KeyError, ValueError) as error:
            raise RealmUnreachableError("The realm does not answer. Try again later.") from error
        if reply.status_code >= 500:
            raise RealmUnreachableError("The realm does not answer. Try again later.")
        return reply.json() if reply.status_code == 200 else None

    def _claims(self, token: str, key: str) -> dict[str, Any] | None:
        options: Any = {"verify_aud": False, "require": ["exp"]}
        try:
            claims: dict[str, Any] = jwt.decode(token, key, algorithms=ALGORITHMS, options=options)
        except (jwt.InvalidTokenError, jwt.InvalidKeyError, ValueError):
            return None
        return claims

    def _of(self, claims: Mapping[str, Any]) -> Identity | None:
        audience = claims.get("aud") or ()
        made_for = {claims.get("azp"), *([audience] if isinstance(audience, str) else audience)}
        reader, granted = _claim(claims, self.name_claim), _claim(claims, self.roles_claim)
        if self.client_id not in made_for or not isinstance(reader, str) or not reader:
            return None
        roles = granted if isinstance(granted, list) else []
        return Identity(reader, max((n for n, role in enumerate(ROLES) if self.role_names[role] in roles), default=-1))

    def _public_key(self, max_age: float) -> str:
        with self._lock:
            if time.monotonic() - self._asked > (max_age if self._key else RETRY_SECONDS):
                self._asked = time.monotonic()
                try:
                    key = self._get(self.uri)["public_key"]
                    self._key = f"-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----"
                except (requests.RequestException, KeyError, ValueError):
                    logger.error("the realm that signs tokens does not answer")
            if not self._key:
                raise RealmUnreachableError("The realm that signs tokens does not answer. Try again later.")
            return self._key

    def _get(self, address: str) -> Any:
        reply = requests.get(address, timeout=TIMEOUT_SECONDS)
        reply.raise_for_status()
        return reply.json()


def _claim(claims: Any, path: str) -> Any:
    for name in path.split("#"):
        claims = claims.get(name) if isinstance(claims, Mapping) else None
    return claims
