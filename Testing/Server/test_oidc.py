"""Tokens without a server: what a provider may sign, what it must not, and providers that answer as none should."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
import time
import warnings
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("fastapi", reason="the server needs it: requirements-server-lean.txt")
pytest.importorskip("cryptography", reason="requirements-server-lean.txt")

import jwt
import requests

from replica_detection.errors import ConfigurationError
from replica_detection_server.access import oauth
from replica_detection_server.access.identity import ROLES
from replica_detection_server.access.oauth import Realm, RealmUnreachableError, is_secure
from replica_detection_server.serving.launch_checks import check_proxies, check_tokens, role_names
from Server.provider_of_tokens import CLIENT, ROLE, as_jwk, ec_key, public_pem, rsa_key, running_provider, unchecked


@pytest.fixture(scope="module")
def shared():
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(shared):
    """The shared one, as it was at first."""
    shared.rotate()
    shared.page = {
        "issuer": shared.uri,
        "jwks_uri": f"{shared.uri}/keys",
        "token_endpoint": f"{shared.uri}/token",
    }
    shared.failing, shared.answers = False, {}
    shared.asked.clear()
    return shared


def _realm(provider, **more) -> Realm:
    return Realm(provider.uri, CLIENT, ROLE, **more)


# ------------------------------------------------------------------------------------------------------- algorithms


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
def test_rsa_keys_sign_with_all_their_algorithms(provider, algorithm):
    provider.keys = [as_jwk(provider.private, provider.kid)]
    assert _realm(provider).identity(provider.token("user", algorithm=algorithm)).reader == "carla"


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
def test_elliptic_keys_sign_with_that_of_their_curve(provider, algorithm):
    key = ec_key(algorithm)
    provider.keys = [as_jwk(key, "curve")]
    token = provider.token("user", key=key, algorithm=algorithm, header={"kid": "curve"})
    assert _realm(provider).identity(token).reader == "carla"


def test_a_key_that_names_its_algorithm_signs_with_no_other(provider):
    assert provider.keys[0]["alg"] == "RS256"
    realm = _realm(provider)
    assert realm.identity(provider.token("user")) is not None
    assert realm.identity(provider.token("user", algorithm="PS256")) is None
    assert realm.identity(provider.token("user", algorithm="RS512")) is None


def test_a_key_that_is_too_short_signs_nothing(provider):
    weak = rsa_key(1024)
    provider.keys = [as_jwk(weak, "weak")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = provider.token("user", key=weak, header={"kid": "weak"})
    assert _realm(provider).identity(token) is None


def test_a_key_for_encryption_or_a_shared_one_signs_nothing(provider):
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"
    other = rsa_key()
    provider.keys += [
        as_jwk(other, "enc", use="enc"),
        {"kty": "oct", "kid": "oct", "k": secret, "alg": "HS256"},
        {"kty": ["RSA"], "kid": "odd"},
        "nonsense",
    ]
    realm = _realm(provider)
    assert realm.identity(provider.token("user")) is not None
    assert realm.identity(provider.token("user", key=other, header={"kid": "enc"})) is None
    claims = {"iss": provider.uri, "preferred_username": "carla", "azp": CLIENT, "exp": time.time() + 300}
    key = jwt.utils.base64url_decode(secret)
    forged = jwt.encode(claims, key, "HS256", {"kid": "oct"})
    assert realm.identity(forged) is None


# --------------------------------------------------------------------------------------------------- tokens refused


def _claims(provider, **more):
    return {
        "iss": provider.uri,
        "preferred_username": "carla",
        "azp": CLIENT,
        "exp": time.time() + 300,
        "realm_access": {"roles": [ROLE["admin"]]},
    } | more


def test_tokens_that_open_nothing(provider):
    now = time.time()
    realm = _realm(provider)
    pem = public_pem(provider.private)
    good = provider.token("admin")
    assert realm.identity(good).rank == ROLES.index("admin")
    claims = _claims(provider)
    bad = {
        "empty": "",
        "no token": "x.y.z",
        "dots": "..",
        "deep": unchecked({"a": json.loads("[" * 500 + "]" * 500)}, claims, lambda said: b""),
        "expired": provider.token("admin", exp=now - 120),
        "without an end": provider.token("admin", exp=None),
        "not yet": provider.token("admin", nbf=now + 120),
        "made in the future": provider.token("admin", iat=now + 120),
        "of another issuer": provider.token("admin", iss="https://login.example/other"),
        "of an issuer that only begins alike": provider.token("admin", iss=f"{provider.uri}/evil"),
        "without an issuer": provider.token("admin", iss=None),
        "signed by another": provider.token("admin", key=rsa_key()),
        "signed with the public key": unchecked(
            {"alg": "HS256", "typ": "JWT", "kid": provider.kid},
            claims,
            lambda said: hmac.new(pem, said, hashlib.sha256).digest(),
        ),
        "unsigned": unchecked({"alg": "none", "kid": provider.kid}, claims, lambda said: b""),
        "unsigned, in capitals": unchecked({"alg": "NONE", "kid": provider.kid}, claims, lambda said: b""),
        "algorithm that is none": unchecked({"alg": ["RS256"], "kid": provider.kid}, claims, lambda said: b"x"),
        "with a key of its own": provider.token(
            "admin", key=(own := rsa_key()), header={"jwk": as_jwk(own, "own"), "kid": "own"}
        ),
        "with the address of a key": provider.token(
            "admin", key=rsa_key(), header={"jku": f"{provider.uri}/mine", "kid": "mine"}
        ),
        "that must be understood": provider.token("admin", header={"crit": ["x"], "x": 1}),
        "for a logout": provider.token("admin", header={"typ": "logout+jwt"}),
        "for another client": provider.token("admin", azp="portal"),
        "for another audience": provider.token("admin", azp=None, aud=["portal"]),
        "for an audience that is none": provider.token("admin", azp=None, aud={"monailabel-app": 1}),
        "of nobody": provider.token("admin", preferred_username=None),
        "of a blank": provider.token("admin", preferred_username="  "),
        "of two lines": provider.token("admin", preferred_username="carla\n2026-01-01 INFO forged"),
        "of a very long name": provider.token("admin", preferred_username="c" * 5000),
        "changed": good[:-10] + ("A" if good[-10] != "A" else "B") + good[-9:],
    }
    assert {name: realm.identity(token) for name, token in bad.items()} == dict.fromkeys(bad)
    assert "/mine" not in " ".join(provider.asked), "the token chose where keys come from"


def test_a_clock_that_is_a_little_off_is_forgiven(provider):
    now = time.time()
    assert _realm(provider).identity(provider.token("user", exp=now - 10, nbf=now + 10)) is not None


def test_an_audience_of_its_own(provider):
    realm = _realm(provider, audience="api://replicas")
    assert realm.identity(provider.token("user", aud=["account", "api://replicas"])) is not None
    assert realm.identity(provider.token("user")) is None, "made for the client, not for this server"
    assert realm.identity(provider.token("user", aud="api://replicas2")) is None


def test_claims_of_other_providers(provider):
    """A flat list under a name of its own, a text of words, another name for the reader."""
    names = {**ROLE, "admin": "Replica.Admins"}
    entra = Realm(provider.uri, CLIENT, names, "email", "roles")
    found = entra.identity(provider.token(email="carla@example.org", roles=["x", "Replica.Admins"]))
    assert (found.reader, found.rank) == ("carla@example.org", ROLES.index("admin"))
    auth0 = Realm(provider.uri, CLIENT, ROLE, roles_claim="https://x.example/#roles")
    assert auth0.identity(provider.token(**{"https://x.example/#roles": [ROLE["user"]]})).rank == 0
    scopes = Realm(provider.uri, CLIENT, {**ROLE, "annotator": "replicas.rate"}, roles_claim="scope")
    assert scopes.identity(provider.token(scope="openid replicas.rate")).rank == 1
    for odd in (None, 7, {"roles": 1}, [["monailabel-user"]], "monailabel-user-not"):
        assert _realm(provider, roles_claim="r").identity(provider.token(r=odd)).rank == -1


# ------------------------------------------------------------------------------------------------------ changing keys


def test_a_provider_that_changes_its_key(provider, monkeypatch):
    realm = _realm(provider)
    old = provider.token("user")
    assert realm.identity(old).reader == "carla"
    asked = len(provider.asked)
    provider.rotate()
    for _ in range(20):
        assert realm.identity(provider.token("user")) is None, "asked again too soon"
    assert len(provider.asked) == asked, "a storm of unknown keys must not become a storm of questions"
    monkeypatch.setattr(oauth, "RETRY_SECONDS", 0)
    assert realm.must_ask(provider.token("admin"))
    assert realm.identity(provider.token("admin")).rank == ROLES.index("admin")
    assert realm.identity(old) is None


def test_both_keys_serve_while_one_takes_the_place_of_the_other(provider):
    old_key, old_kid, old = provider.private, provider.kid, provider.keys
    provider.rotate()
    provider.keys = [*old, *provider.keys]
    realm = _realm(provider)
    assert realm.identity(provider.token("user")) is not None
    assert realm.identity(provider.token("user", key=old_key, header={"kid": old_kid})) is not None
    assert realm.identity(provider.token("user", key=old_key)) is None, "signed by the other than it says"


def test_a_token_that_names_no_key_is_taken_where_there_is_one_alone(provider):
    token = jwt.encode(_claims(provider), provider.private, "RS256")
    assert _realm(provider).identity(token) is not None
    provider.keys.append(as_jwk(rsa_key(), "second"))
    assert _realm(provider).identity(token) is None


def test_known_keys_serve_while_the_provider_is_away(provider, monkeypatch):
    realm = _realm(provider)
    provider.failing = True
    with pytest.raises(RealmUnreachableError):
        realm.identity(provider.token("user"))
    with pytest.raises(RealmUnreachableError):
        realm.token("carla", "right")
    asked = len(provider.asked)
    with pytest.raises(RealmUnreachableError):
        realm.identity(provider.token("user"))
    assert len(provider.asked) == asked, "a storm of tokens must not become a storm of questions"
    provider.failing = False
    monkeypatch.setattr(oauth, "RETRY_SECONDS", 0)
    assert realm.identity(provider.token("user")).reader == "carla"
    provider.failing = True
    monkeypatch.setattr(oauth, "REFRESH_SECONDS", 0)
    assert realm.identity(provider.token("user")).reader == "carla", "the known key still serves"
    monkeypatch.setattr(oauth, "STALE_SECONDS", 0)
    with pytest.raises(RealmUnreachableError):
        realm.identity(provider.token("user"))


# ------------------------------------------------------------------------------------------------- hostile providers


def _sends(status: int, body: bytes, **headers: str):
    def answer(handler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


DISCOVERY = "/realms/x/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("page", {"issuer": "https://login.example/other"}),
        ("page", {"issuer": None}),
        ("page", {"jwks_uri": None}),
        ("page", {"jwks_uri": "file:///etc/passwd"}),
        ("page", {"jwks_uri": "http://keys.example/x"}),
        ("page", {"jwks_uri": "https://user:secret@keys.example/x"}),
        ("page", {"jwks_uri": "https://a b/"}),
        (DISCOVERY, _sends(200, b"[1]")),
        (DISCOVERY, _sends(200, b"<html>")),
        (DISCOVERY, _sends(200, b"[" * 100_000)),
        (DISCOVERY, _sends(404, b"{}")),
        (DISCOVERY, _sends(302, b"", Location="/realms/x/moved")),
        ("/realms/x/keys", _sends(302, b"", Location="/realms/x/moved")),
        ("/realms/x/keys", _sends(200, b'{"keys": 7}')),
        ("/realms/x/keys", _sends(200, b'{"keys": []}')),
    ],
)
def test_providers_that_answer_as_none_should(provider, where, what):
    moved = json.dumps(provider.page).encode()
    provider.answers["/realms/x/moved"] = _sends(200, moved)
    if where == "page":
        provider.page = provider.page | what
    else:
        provider.answers[where] = what
    with pytest.raises(RealmUnreachableError):
        _realm(provider).identity(provider.token("admin"))
    assert "/realms/x/moved" not in provider.asked, "followed to another place"


def test_keys_without_end_are_not_taken_in(provider):
    provider.keys = [*provider.keys, *(["x" * 1000] * 2000)]
    with pytest.raises(RealmUnreachableError):
        _realm(provider).identity(provider.token("user"))


def test_a_provider_that_sends_a_letter_now_and_then_holds_nobody(provider, monkeypatch):
    def drip(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.2)

    monkeypatch.setattr(oauth, "TIMEOUT_SECONDS", 1.0)
    provider.answers[DISCOVERY] = drip
    start = time.monotonic()
    with pytest.raises(RealmUnreachableError):
        _realm(provider).identity(provider.token("user"))
    assert time.monotonic() - start < 10


def test_one_slash_at_the_end_of_the_issuer_may_differ(provider):
    provider.page["issuer"] = provider.uri + "/"
    token = provider.token("user", iss=provider.uri + "/")
    assert _realm(provider).identity(token) is not None
    assert _realm(provider).identity(provider.token("user")) is None, "tokens say exactly what the page says"


def test_a_password_goes_to_no_other_place(provider):
    provider.page["token_endpoint"] = "http://elsewhere.example/token"
    with pytest.raises(RealmUnreachableError):
        _realm(provider).token("carla", "right")
    provider.page["token_endpoint"] = f"{provider.uri}/token"
    assert _realm(provider).token("carla", "wrong") is None
    assert _realm(provider).token("carla", "right")["access_token"]


def test_those_who_sign_in_do_not_take_up_all_threads(provider):
    """While the provider is slow."""
    go = threading.Event()

    def slow(handler) -> None:
        go.wait(30)
        _sends(200, json.dumps(provider.page).encode())(handler)

    provider.answers[DISCOVERY] = slow
    realm, found = _realm(provider), []

    def sign_in() -> None:
        try:
            found.append(realm.token("carla", "right") is not None)
        except RealmUnreachableError:
            found.append("busy")

    threads = [threading.Thread(target=sign_in) for _ in range(oauth.EXCHANGES + 5)]
    for thread in threads:
        thread.start()
    for thread in threads[oauth.EXCHANGES :]:
        thread.join(5)
    try:
        assert found == ["busy"] * 5
    finally:
        go.set()
    for thread in threads:
        thread.join(30)
    assert found[5:] == [True] * oauth.EXCHANGES


# ----------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("address", "secure"),
    [
        ("https://login.example/tenant", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://localhost/x", True),
        ("http://[::1]/x", True),
        ("http://login.example/", False),
        ("http://127.0.0.1.login.example/", False),
        ("http://localhost@login.example/", False),
        ("https://user@login.example/", False),
        ("https:///x", False),
        ("https://login.example:x/", False),
        ("ftp://127.0.0.1/", False),
        ("file:///etc/passwd", False),
    ],
)
def test_which_addresses_are_safe_to_ask(address, secure):
    assert is_secure(address) is secure


def test_options_that_cannot_be():
    for issuer in ("login.example", "http://login.example/x", "https://u:p@login.example"):
        with pytest.raises(ConfigurationError, match="https://"):
            check_tokens(issuer, ())
    with pytest.raises(ConfigurationError, match="need --oidc-issuer"):
        check_tokens("", (), "audience")
    for roles in (("boss=x",), ("admin",), ("admin=",), ("admin=a", "admin=b")):
        with pytest.raises(ConfigurationError, match="ROLE=NAME"):
            check_tokens("https://login.example", roles)
    assert role_names(["admin=a=b"]) == (("admin", "a=b"),)
    for proxy in ("proxy.example", "0.0.0.0/0", "::/0", "10.0.0.1/8", "*"):
        with pytest.raises(ConfigurationError, match="--trusted-proxy"):
            check_proxies([proxy])
    check_proxies(["10.0.0.7", "10.1.0.0/16", "fd00::/8"])


# -------------------------------------------------------------------------------------------------- a real provider


@contextmanager
def _real_provider():
    mock = pytest.importorskip("oidc_provider_mock", reason="requirements-test.txt")
    claims = {"email": "carla@example.org", "roles": ["Replica.Admins"]}
    with mock.run_server_in_thread(user_claims=[mock.User(sub="carla", claims=claims)]) as server:
        yield f"http://localhost:{server.server_port}"


def _signed_in(issuer: str) -> dict:
    """The authorization code flow, as a browser and a client go through it."""
    page = requests.get(f"{issuer}/.well-known/openid-configuration", timeout=20).json()
    wanted = {
        "client_id": "replica-viewer",
        "redirect_uri": "http://127.0.0.1/back",
        "response_type": "code",
        "scope": "openid email roles",
        "nonce": "n1",
    }
    said = requests.post(
        page["authorization_endpoint"],
        params=wanted,
        data={"sub": "carla"},
        allow_redirects=False,
        timeout=20,
    )
    code = parse_qs(urlsplit(said.headers["Location"]).query)["code"][0]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": wanted["redirect_uri"]}
    reply = requests.post(page["token_endpoint"], data=form, auth=("replica-viewer", "any"), timeout=20)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_tokens_of_a_real_provider():
    """Discovery, keys and a token as a provider built with Authlib makes them, by its own sign-in."""
    with _real_provider() as issuer:
        names = {**ROLE, "admin": "Replica.Admins"}
        realm = Realm(issuer, CLIENT, names, "email", "roles", audience="replica-viewer")
        given = _signed_in(issuer)
        found = realm.identity(given["id_token"])
        assert (found.reader, found.rank) == ("carla@example.org", ROLES.index("admin"))
        assert realm.identity(given["access_token"]) is None, "opaque there: no token of ours"
        others = Realm(issuer, CLIENT, names, "email", "roles", audience="another")
        assert others.identity(given["id_token"]) is None
        assert not re.search("[^.]+[.][^.]+[.]", given["access_token"])
