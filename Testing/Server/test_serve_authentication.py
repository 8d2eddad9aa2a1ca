"""Keys and tokens against the real server; the provider of tokens signs with a real key."""

from __future__ import annotations

import base64
import http.client
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")
pytest.importorskip("cryptography", reason="requirements-server-lean.txt")

import requests

from Core.made_up import cohort
from Server.conftest import until
from Server.provider_of_tokens import CLIENT, Provider, rsa_key, running_provider
from Server.running import Server, running_server

pytestmark = pytest.mark.slow

ODD = Path(__file__).with_name("odd_app")
ANNA, BERND = "key-of-anna-for-these-tests", "key-of-bernd-for-these-tests"


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
    keys.write_text(f"anna:{ANNA}\nDr. Bernd:{BERND}\n", encoding="utf-8")
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
    # What MONAI Label's module for Slicer asks before it asks its user for a name and a password.
    del page["/auth/"], page["/auth/token"]
    for path, methods in {**page, "/openapi.json": {"get": 0}, "/": {"get": 0}, "/none": {"get": 0}}.items():
        for method in methods:
            reply = requests.request(method, keyed.url + path.replace("{", "").replace("}", ""), timeout=10)
            assert reply.status_code == 401, (method, path)


@pytest.mark.parametrize("headers", [_as(ANNA), {"Authorization": f"bearer  {ANNA}"}, {"X-API-Key": ANNA}])
def test_a_key_opens(keyed, headers):
    status = requests.get(keyed.url + "/replica/status", headers=headers, timeout=10).json()
    assert (status["reader"], status["authentication"]) == ("anna", "key")


def test_two_keys_in_one_request_are_refused(keyed):
    """And a body of two types: whoever stands before the server may read the other one."""
    for name, values in (("Authorization", (f"Bearer {ANNA}", f"Bearer {BERND}")), ("Content-Type", ("a/b", "c/d"))):
        connection = http.client.HTTPConnection(keyed.url.removeprefix("http://"), timeout=20)
        connection.putrequest("GET", "/replica/status")
        if name != "Authorization":
            connection.putheader("X-API-Key", ANNA)
        for value in values:
            connection.putheader(name, value)
        connection.endheaders()
        reply = connection.getresponse()
        assert reply.status == 400 and f"{name.lower()} twice".encode() in reply.read()
        connection.close()


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


def test_what_a_client_says_of_its_address_is_not_believed(keyed):
    """Not even one of this machine: no --trusted-proxy was given."""
    headers = {**_as(ANNA), "X-Forwarded-For": "203.0.113.5", "Forwarded": "for=203.0.113.5"}
    assert requests.get(keyed.url + "/replica/jobs", headers=headers, timeout=10).status_code == 200
    log = keyed.data / "logs" / "server.log"
    until(lambda: "ms 127.0.0.1 'anna'" in log.read_text(encoding="utf-8"), "no line for the request")
    assert "203.0.113.5" not in log.read_text(encoding="utf-8")


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


@pytest.fixture(scope="module")
def realm() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


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
    """More of them in test_oidc.py, without a server."""
    good = realm.token("user")
    bad = {
        "no token": "x.y.z",
        "expired": realm.token("user", exp=time.time() - 60),
        "signed by another": realm.token("user", key=rsa_key()),
        "for another client": realm.token("user", azp="portal"),
        "changed": good[:-10] + ("A" if good[-10] != "A" else "B") + good[-9:],
    }
    assert {name: _status(tokened, token) for name, token in bad.items()} == dict.fromkeys(bad, 401)
    assert _status(tokened, realm.token("user", azp=None, aud=[CLIENT])) == 200


@pytest.mark.parametrize(
    ("roles", "reads", "labels", "removes"),
    [
        ((), 403, 403, 403),
        (("somebody",), 403, 403, 403),
        (("user",), 200, 403, 403),
        (("annotator",), 200, 404, 403),
        (("reviewer",), 200, 404, 403),
        (("trainer",), 200, 404, 403),
        (("admin",), 200, 404, 404),
    ],
)
def test_roles(tokened, realm, roles, reads, labels, removes):
    """A higher role includes the lower ones; what is not allowed is refused before the image is looked up."""
    token = realm.token(*roles)
    assert _status(tokened, token) == reads
    assert _status(tokened, token, "PUT", "/datastore/image/info?image=none") == labels
    assert _status(tokened, token, "DELETE", "/datastore/image?id=none") == removes
    assert _status(tokened, token, "POST", "/train/none") == (404 if "trainer" in roles else removes)
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
        assert ask("emil", role, "status").json()["sees_all_ratings"] == ("dora" in seen)
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


def test_no_answer_while_the_realm_is_away(folders, realm, tmp_path):
    with running_server(
        folders / "studies",
        work=tmp_path,
        training=folders / "training",
        hardened=True,
        conf={"realm_uri": "http://127.0.0.1:9/realms/x"},
    ) as server:
        reply = requests.get(server.url + "/info/", headers=_as(realm.token("user")), timeout=20)
        assert reply.status_code == 503 and reply.headers["Retry-After"] and "does not answer" in reply.json()["detail"]
