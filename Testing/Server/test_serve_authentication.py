"""Keys and tokens against the real server; the realm is a mock that signs with a real RSA key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")
pytest.importorskip("cryptography", reason="requirements-server-lean.txt")

import jwt
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from Core.made_up import cohort
from replica_detection_server.hardening import oauth
from replica_detection_server.hardening.oauth import Realm, RealmUnreachableError
from Server.running import Server, running_server

pytestmark = pytest.mark.slow

ODD = Path(__file__).with_name("odd_app")
ANNA, BERND = "key-of-anna-for-these-tests", "key-of-bernd-for-these-tests"
CLIENT = "monailabel-app"
ROLE = {r: f"monailabel-{r}" for r in ("user", "annotator", "reviewer", "admin")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohorts")
    cohort(folder / "training", 6, prefix="trn")
    cohort(folder / "studies", 2, 200, "syn")
    return folder


def _ready(server: Server, headers: dict[str, str]) -> None:
    while any(
        j["state"] in ("queued", "running") for j in requests.get(server.url + "/replica/jobs", headers=headers).json()
    ):
        time.sleep(0.2)


# -------------------------------------------------------------------------------------------------------------- keys


@pytest.fixture(scope="module")
def keyed(folders, tmp_path_factory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("keyed")
    keys = work / "keys"
    keys.write_text(f"anna:{ANNA}\nDr. Bernd:{BERND}\n")
    keys.chmod(0o644)
    with running_server(
        folders / "studies",
        work=work,
        training=folders / "training",
        hardened=True,
        conf={"api_key_file": keys},
    ) as server:
        _ready(server, {"X-API-Key": ANNA})
        yield server


def _as(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _as("wrong"),
        _as(""),
        _as(ANNA[:-1]),
        _as(f"{ANNA}x"),
        {"Authorization": ANNA},
        {"Authorization": f"Basic {base64.b64encode(f'anna:{ANNA}'.encode()).decode()}"},
        {"X-API-Key": "anna"},
        {"X-API-Key": "é".encode("latin-1").decode("latin-1")},
        {"Cookie": f"key={ANNA}"},
    ],
)
def test_without_a_key_nothing_is_open(keyed, headers):
    reply = requests.get(keyed.url + "/info/", headers=headers, timeout=10)
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"] == "Bearer" and "API key" in reply.json()["detail"]


def test_every_route_needs_the_key(keyed):
    page = requests.get(keyed.url + "/openapi.json", headers=_as(ANNA), timeout=10).json()["paths"]
    for path, methods in {**page, "/openapi.json": {"get": 0}, "/": {"get": 0}, "/none": {"get": 0}}.items():
        for method in methods:
            reply = requests.request(method, keyed.url + path.replace("{", "").replace("}", ""), timeout=10)
            assert reply.status_code == 401, (method, path)


@pytest.mark.parametrize("headers", [_as(ANNA), {"Authorization": f"bearer  {ANNA}"}, {"X-API-Key": ANNA}])
def test_a_key_opens(keyed, headers):
    status = requests.get(keyed.url + "/replica/status", headers=headers, timeout=10).json()
    assert (status["reader"], status["authentication"]) == ("anna", "key")


def test_ratings_carry_the_name_of_the_key(keyed):
    sent = {"rating_id": "", "reader": "anna", "synthetic_id": "syn_000", "training_id": "trn_000", "rating": 3}
    receipt = requests.post(keyed.url + "/replica/ratings", headers=_as(BERND), json=sent, timeout=10)
    assert receipt.status_code == 201 and receipt.json()["reader"] == "Dr. Bernd"
    stored = requests.get(keyed.url + "/replica/ratings", headers=_as(BERND), timeout=10).json()
    assert [r["reader"] for r in stored] == ["Dr. Bernd"]


def test_an_id_of_another_reader_tells_nothing_of_that_readers_rating(keyed):
    """Whatever is said under it, the answer is the same."""
    one = {"rating_id": "r-of-anna", "reader": "", "synthetic_id": "syn_001", "training_id": "trn_001", "rating": 3}
    url = keyed.url + "/replica/ratings"
    assert requests.post(url, headers=_as(ANNA), json=one, timeout=10).status_code == 201
    answers = {
        (reply.status_code, reply.text)
        for value in (1, 2, 3, 4)
        for reply in [requests.post(url, headers=_as(BERND), json={**one, "rating": value}, timeout=10)]
    }
    assert len(answers) == 1 and answers.pop()[0] == 409


def test_the_next_case_is_that_of_the_key(keyed):
    """`client_id` cannot speak for another reader."""
    sent = {"rating_id": "", "reader": "", "synthetic_id": "syn_001", "training_id": "trn_000", "rating": 1}
    requests.post(keyed.url + "/replica/ratings", headers=_as(ANNA), json=sent, timeout=10).raise_for_status()
    path = "/activelearning/most_replica_like"
    found = requests.post(keyed.url + path, headers=_as(ANNA), json={"client_id": "x"}, timeout=10).json()
    assert found["id"] == "syn_000"


def test_monai_labels_client_sends_a_key_as_its_token(keyed):
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(keyed.url)
    client.update_auth({"token_type": "Bearer", "access_token": ANNA})
    assert client.info()["name"] == "Replica Detection"


def test_keys_lie_nowhere(keyed):
    """Not in the log, not in the data folder, not in the environment that job processes inherit."""
    assert ANNA not in keyed.log_text() and "chmod 600" in keyed.log_text()
    for path in keyed.data.rglob("*"):
        if path.is_file():
            assert ANNA.encode() not in path.read_bytes(), path
    environment = Path(f"/proc/{keyed.pid}/environ")
    if environment.exists():
        assert ANNA.encode() not in environment.read_bytes()


# ------------------------------------------------------------------------------------------------------------ tokens


def _pair() -> tuple[rsa.RSAPrivateKey, str]:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, base64.b64encode(public).decode()


@dataclass
class MockRealm:
    """What Keycloak answers: the realm's page with its public key, its configuration, and tokens for a password."""

    uri: str = ""
    private: Any = None
    public: str = ""
    asked: list[str] = field(default_factory=list)
    failing: bool = False

    def rotate(self) -> None:
        self.private, self.public = _pair()

    def token(self, *roles: str, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        said = {
            "preferred_username": "carla",
            "azp": CLIENT,
            "exp": time.time() + 300,
            "realm_access": {"roles": [ROLE.get(r, r) for r in roles]},
        } | claims
        return jwt.encode({k: v for k, v in said.items() if v is not None}, key or self.private, algorithm)


@pytest.fixture(scope="module")
def realm() -> Iterator[MockRealm]:
    with _mock_realm() as mock:
        yield mock


@contextmanager
def _mock_realm() -> Iterator[MockRealm]:
    mock = MockRealm()
    mock.rotate()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            mock.asked.append(self.path)
            configuration = {"token_endpoint": f"{mock.uri}/token", "issuer": mock.uri}
            known = {"/realms/x": {"public_key": mock.public}}
            self._answer(200, known.get(self.path, configuration))

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
    mock.uri = f"http://127.0.0.1:{server.server_port}/realms/x"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield mock
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def tokened(folders, realm, tmp_path_factory) -> Iterator[Server]:
    with running_server(
        folders / "studies",
        work=tmp_path_factory.mktemp("tokened"),
        training=folders / "training",
        hardened=True,
        conf={"realm_uri": realm.uri},
    ) as server:
        _ready(server, _as(realm.token("user")))
        yield server


def _status(server: Server, token: str, method: str = "GET", path: str = "/info/", **how) -> int:
    return requests.request(method, server.url + path, headers=_as(token), timeout=20, **how).status_code


def test_monai_label_refuses_every_token(folders, realm, tmp_path):
    """Its call of PyJWT names no algorithm."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "main.py").write_bytes((ODD / "main.py").read_bytes())
    environment = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm.uri, "ODD_BASE": "stock"}
    with running_server(
        folders / "studies", work=tmp_path, training=folders / "training", app=app, env=environment
    ) as server:
        assert _status(server, realm.token("user", "annotator", "reviewer", "admin")) == 401
        assert _status(server, realm.token(), "POST", "/reload") == 200


def test_a_good_token(tokened, realm):
    status = requests.get(tokened.url + "/replica/status", headers=_as(realm.token("user")), timeout=20).json()
    assert (status["reader"], status["authentication"]) == ("carla", "token")


def test_bad_tokens(tokened, realm):
    other, _ = _pair()
    pem = f"-----BEGIN PUBLIC KEY-----\n{realm.public}\n-----END PUBLIC KEY-----"
    forged = _hs256({"preferred_username": "carla", "azp": CLIENT, "exp": time.time() + 300}, pem.encode())
    good = realm.token("user")
    bad = {
        "none": "",
        "no token": "x.y.z",
        "expired": realm.token("user", exp=time.time() - 60),
        "without an end": realm.token("user", exp=None),
        "signed by another": realm.token("user", key=other),
        "signed with the public key": forged,
        "unsigned": jwt.encode({"preferred_username": "carla", "azp": CLIENT, "exp": 2**33}, "", "none"),
        "for another client": realm.token("user", azp="portal"),
        "for another audience": realm.token("user", azp=None, aud=["portal"]),
        "of nobody": realm.token("user", preferred_username=None),
        "changed": good[:-10] + ("A" if good[-10] != "A" else "B") + good[-9:],
    }
    assert {name: _status(tokened, token) for name, token in bad.items()} == dict.fromkeys(bad, 401)
    assert _status(tokened, realm.token("user", azp=None, aud=[CLIENT])) == 200


def _hs256(claims: dict, secret: bytes) -> str:
    """PyJWT itself does not make such a token."""

    def part(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    said = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    return (said + b"." + part(hmac.new(secret, said, hashlib.sha256).digest())).decode()


@pytest.mark.parametrize(
    ("roles", "reads", "labels", "removes"),
    [
        ((), 403, 403, 403),
        (("somebody",), 403, 403, 403),
        (("user",), 200, 403, 403),
        (("annotator",), 200, 404, 403),
        (("reviewer",), 200, 404, 403),
        (("admin",), 200, 404, 404),
    ],
)
def test_roles(tokened, realm, roles, reads, labels, removes):
    """A higher role includes the lower ones; what is not allowed is refused before the image is looked up."""
    token = realm.token(*roles)
    assert _status(tokened, token) == reads
    assert _status(tokened, token, "PUT", "/datastore/image/info?image=none") == labels
    assert _status(tokened, token, "DELETE", "/datastore/image?id=none") == removes
    assert _status(tokened, token, "POST", "/train/none") == removes
    assert _status(tokened, token, "GET", "/replica/worklist") == reads


def test_readers_do_not_see_each_others_ratings(tokened, realm):
    """By default where callers are known; reviewers and admins see what everybody said."""

    def ask(who: str, role: str, path: str, **query):
        token = realm.token(role, preferred_username=who)
        return requests.get(f"{tokened.url}/replica/{path}", headers=_as(token), params=query, timeout=20)

    for reader, value in (("dora", 4), ("emil", 1)):
        sent = {"rating_id": "", "reader": "", "synthetic_id": "syn_000", "training_id": "trn_000", "rating": value}
        token = realm.token("annotator", preferred_username=reader)
        requests.post(f"{tokened.url}/replica/ratings", headers=_as(token), json=sent, timeout=20).raise_for_status()
    for role, seen in (("user", ["emil"]), ("annotator", ["emil"]), ("reviewer", ["dora", "emil"])):
        assert [r["reader"] for r in ask("emil", role, "ratings").json()] == seen
        assert ("dora" in ask("emil", role, "ratings", format="csv", all=True).text) == ("dora" in seen)
        assert [r["reader"] for r in ask("emil", role, "ratings", reader="dora").json()] == seen[:-1]
        item = next(i for i in ask("emil", role, "worklist").json()["items"] if i["synthetic_id"] == "syn_000")
        assert (item["rating"], item["readers"]) == (1, len(seen))
        assert ask("emil", role, "agreement").status_code == (200 if "dora" in seen else 403)
    unrated = next(i for i in ask("frida", "annotator", "worklist").json()["items"] if i["synthetic_id"] == "syn_000")
    assert (unrated["rating"], unrated["readers"]) == (None, 0)
    assert ask("frida", "annotator", "next").json()["synthetic_id"] == "syn_000"
    assert "reviewer" in ask("frida", "annotator", "agreement").json()["detail"]


def test_what_clients_ask_before_they_have_a_token(tokened, realm):
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

    client = MONAILabelClient(tokened.url)
    assert client.auth_enabled()
    client.update_auth(client.auth_token("carla", "right"))
    assert client.auth_valid_token() and client.info()["name"] == "Replica Detection"
    with pytest.raises(MONAILabelClientException) as error:
        client.auth_token("carla", "wrong")
    assert error.value.status_code == 401
    assert requests.get(tokened.url + "/auth/token/valid", timeout=10).status_code == 401


def test_the_key_is_fetched_once(tokened, realm):
    before = len(realm.asked)
    for _ in range(5):
        assert _status(tokened, realm.token("user")) == 200
    assert len(realm.asked) == before


def _checked(realm: MockRealm) -> Realm:
    return Realm(realm.uri, CLIENT, ROLE)


def test_a_realm_that_changes_its_key(monkeypatch):
    with _mock_realm() as mock:
        checked = _checked(mock)
        old = mock.token("user")
        assert checked.identity(old).reader == "carla"
        mock.rotate()
        assert checked.identity(mock.token("user")) is None, "asked again too soon"
        monkeypatch.setattr(oauth, "RETRY_SECONDS", 0)
        assert checked.identity(mock.token("admin")).rank == 3
        assert checked.identity(old) is None


def test_a_realm_that_is_away(monkeypatch):
    with _mock_realm() as mock:
        checked = _checked(mock)
        mock.failing = True
        with pytest.raises(RealmUnreachableError):
            checked.identity(mock.token("user"))
        with pytest.raises(RealmUnreachableError):
            checked.token("carla", "right")
        asked = len(mock.asked)
        with pytest.raises(RealmUnreachableError):
            checked.identity(mock.token("user"))
        assert len(mock.asked) == asked, "a storm of tokens must not become a storm of questions"
        mock.failing = False
        monkeypatch.setattr(oauth, "RETRY_SECONDS", 0)
        assert checked.identity(mock.token("user")).reader == "carla"
        mock.failing = True
        monkeypatch.setattr(oauth, "REFRESH_SECONDS", 0)
        assert checked.identity(mock.token("user")).reader == "carla", "the known key still serves"


def test_no_answer_while_the_realm_is_away(folders, realm, tmp_path):
    with running_server(
        folders / "studies",
        work=tmp_path,
        training=folders / "training",
        hardened=True,
        conf={"realm_uri": "http://127.0.0.1:9/realms/x"},
    ) as server:
        reply = requests.get(server.url + "/info/", headers=_as(realm.token("user")), timeout=20)
        assert reply.status_code == 503 and reply.headers["Retry-After"] and "realm" in reply.json()["detail"]
