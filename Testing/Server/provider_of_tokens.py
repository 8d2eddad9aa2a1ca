"""A provider of tokens over HTTP that can also answer as none should; it signs with real keys."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

CLIENT = "monailabel-app"
ROLE = {r: f"monailabel-{r}" for r in ("user", "annotator", "reviewer", "trainer", "admin")}
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def rsa_key(size: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


def ec_key(algorithm: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[algorithm])


def as_jwk(private: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """The public half of a key as a provider publishes it."""
    kind = RSAAlgorithm if isinstance(private, rsa.RSAPrivateKey) else ECAlgorithm
    named = {} if kid is None else {"kid": kid}
    return {**json.loads(kind.to_jwk(private.public_key())), "use": "sig", **named, **more}


def public_pem(private: Any) -> bytes:
    return private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@dataclass
class Provider:
    """`page` and `keys` are changed by tests; `answers` are whole answers (status, headers, body) by path instead."""

    uri: str = ""
    private: Any = None
    kid: str = ""
    page: dict[str, Any] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failing: bool = False
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)

    def rotate(self) -> None:
        """Another key takes the place of the present one."""
        self.private = rsa_key()
        self.kid = f"key-{time.time_ns()}"
        self.keys = [as_jwk(self.private, self.kid, alg="RS256")]

    def token(self, *roles: str, key: Any = None, algorithm: str = "RS256", header: Any = None, **claims: Any) -> str:
        said = {
            "iss": self.uri,
            "preferred_username": "carla",
            "azp": CLIENT,
            "exp": time.time() + 300,
            "realm_access": {"roles": [ROLE.get(r, r) for r in roles]},
        } | claims
        return jwt.encode(
            {k: v for k, v in said.items() if v is not None},
            key or self.private,
            algorithm,
            {"kid": self.kid, **(header or {})},
        )


@contextmanager
def running_provider() -> Iterator[Provider]:
    mock = Provider()
    mock.rotate()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            mock.asked.append(self.path)
            if self.path in mock.answers:
                mock.answers[self.path](self)
            elif self.path == "/realms/x/.well-known/openid-configuration":
                self._answer(200, mock.page)
            elif self.path == "/realms/x/keys":
                self._answer(200, {"keys": mock.keys})
            elif self.path == "/realms/x":  # Keycloak's own page, which MONAI Label reads
                lines = public_pem(mock.private).decode().strip().splitlines()
                self._answer(200, {"public_key": "".join(lines[1:-1])})
            else:
                self._answer(404, {})

        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            good = form.get("password") == ["right"] and form.get("client_id") == [CLIENT]
            token = {"access_token": mock.token("user"), "token_type": "Bearer", "refresh_token": "secret"}
            self._answer(200 if good else 401, token if good else {"error": "invalid_grant"})

        def _answer(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(500 if mock.failing else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    mock.uri = f"http://127.0.0.1:{server.server_port}/realms/x"
    mock.page = {"issuer": mock.uri, "jwks_uri": f"{mock.uri}/keys", "token_endpoint": f"{mock.uri}/token"}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield mock
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unchecked(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token that PyJWT itself would not make."""

    def part(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    said = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    return (said + b"." + part(sign(said))).decode()
