"""Hundreds of bad requests to the real server: nothing fails inside it, and nothing outside its folders changes.

Three sources: schemathesis on the server's own OpenAPI page, strings that climb in every parameter of every route, and
raw bytes that no HTTP client would send.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")
pytest.importorskip("schemathesis", reason="requirements-test.txt")

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from Core.made_up import cohort
from Server.running import Server, running_server

pytestmark = pytest.mark.slow

GENERATED = 5  # for each route, each in both ways: as its page says, and not
ESCAPED = "zz-escaped"
CLIMBING = [
    f"../{ESCAPED}",
    f"../../../../../../../../tmp/{ESCAPED}",
    f"/tmp/{ESCAPED}",
    f"..\\..\\{ESCAPED}",
    f"%2e%2e%2f{ESCAPED}",
    f"....//{ESCAPED}",
    f"{ESCAPED}\x00.nii.gz",
    f"train:../../{ESCAPED}",
    "/etc/passwd",
    "../canary.nii.gz",
    "..",
    "a" * 5000,
    "${jndi:ldap://127.0.0.1/x}",
    "'; DROP TABLE ratings; --",
    "<script>alert(1)</script>",
    "\ud7ff\U0010ffff\u202e",
]


@dataclass
class Tried:
    """What came back, and what must not have."""

    answers: Counter = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def note(self, what: str, reply: requests.Response) -> None:
        self.answers[reply.status_code] += 1
        if reply.status_code >= 500 and reply.status_code != 503:
            self.failed.append(f"{reply.status_code} {what}: {reply.text[:200]}")
        elif reply.status_code >= 400 and reply.request.method != "HEAD":
            kind = reply.headers.get("content-type", "")
            if not kind.startswith("application/json") or not isinstance(reply.json().get("detail"), str):
                self.failed.append(f"{reply.status_code} {what}: no detail but {kind} {reply.text[:200]}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Folders inside folders, each with something that must stay as it is."""
    outer = tmp_path_factory.mktemp("outer")
    inner = outer / "one" / "two"
    inner.mkdir(parents=True)
    for folder in (outer, outer / "one", inner):
        (folder / "canary.nii.gz").write_bytes(folder.name.encode())
        (folder / "passwd").write_text("secret", encoding="utf-8")
    cohort(inner / "training", 6, prefix="trn")
    cohort(inner / "studies", 4, 200, "syn")
    (inner / "home").mkdir()
    (inner / "work").mkdir()
    return outer


@pytest.fixture(scope="module")
def server(tree) -> Iterator[Server]:
    inner = tree / "one" / "two"
    with running_server(
        inner / "studies",
        work=inner / "work",
        training=inner / "training",
        data=inner / "data",
        hardened=True,
        env={"HOME": str(inner / "home")},
        args=("--max-upload-mb", "1"),
    ) as running:
        while any(j["state"] in ("queued", "running") for j in requests.get(running.url + "/replica/jobs").json()):
            time.sleep(0.2)
        yield running


def _guarded(tree: Path) -> dict[str, str]:
    """Checksum of every file that no request may touch, and every name beside it."""
    free = (tree / "one/two/data", tree / "one/two/studies", tree / "one/two/work")
    return {
        str(p.relative_to(tree)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(tree.rglob("*"))
        if not any(p.is_relative_to(f) for f in free)
    }


def _escaped(tree: Path) -> list[Path]:
    """Whatever has the name that the climbing strings would make."""
    places = [Path("/"), Path("/tmp"), Path.cwd(), Path.home(), tree]
    near = [p for place in places for p in place.glob(f"*{ESCAPED}*")]
    return near + [p for p in tree.rglob(f"*{ESCAPED}*") if not p.is_relative_to(tree / "one/two/studies")]


def _page(server: Server) -> dict:
    return requests.get(server.url + "/openapi.json", timeout=10).json()


def _known(name: str, n: int) -> str | None:
    """A value that exists, so that requests come past the first check."""
    known = {
        "image": f"syn_00{n % 3}",
        "label": f"syn_00{n % 3}",
        "synthetic_id": f"syn_00{n % 3}",
        "training_id": f"trn_00{n % 3}",
        "case_id": "train:trn_001",
        "model": ("replica_matches", "vessels", "hemorrhage")[n % 3],
        "strategy": "most_replica_like",
        "tag": "final",
    }
    return known.get(name)


def test_requests_generated_from_the_page(server, tree):
    """Every route, by and against its own description; half of the former with ids that exist."""
    before, tried, sent = _guarded(tree), Tried(), 0
    schema = schemathesis.openapi.from_dict(_page(server))
    session = requests.Session()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            for case in _cases(operation, mode):
                sent += 1
                if mode is schemathesis.GenerationMode.POSITIVE and sent % 2:
                    _settle(case, sent)
                reply = _call(case, server, session)
                if reply is not None:
                    tried.note(f"{case.method} {reply.request.url}", reply)
    print(f"{sum(tried.answers.values())} generated requests: {dict(sorted(tried.answers.items()))}")
    assert not tried.failed, "\n".join(tried.failed)
    assert sum(tried.answers.values()) >= 300
    assert _guarded(tree) == before
    assert requests.get(server.url + "/info/", timeout=10).status_code == 200


def _cases(operation, mode) -> list:
    cases: list = []

    @settings(
        max_examples=GENERATED,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case):
        cases.append(case)

    try:
        collect()
    except Exception as error:  # nothing can be said against a route without parameters
        if mode is schemathesis.GenerationMode.POSITIVE or "Unsatisfiable" not in type(error).__name__:
            raise
    return cases[:GENERATED]


def _settle(case, n: int) -> None:
    for values in (case.path_parameters, case.query):
        for name in list(values or ()):
            if (value := _known(name, n)) is not None:
                values[name] = value


def _call(case, server: Server, session: requests.Session) -> requests.Response | None:
    """None for what the client itself refuses to send, such as a header with a line break."""
    try:
        how = case.as_transport_kwargs(base_url=server.url)
        return session.request(**how, timeout=60)
    except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError, ValueError):
        return None


def test_strings_that_climb(server, tree):
    """In each parameter of each route, the others as they should be."""
    before, tried = _guarded(tree), Tried()
    session = requests.Session()
    for path, methods in _page(server)["paths"].items():
        for method, route in methods.items():
            parameters = [p for p in route.get("parameters", ()) if p["in"] in ("path", "query")]
            strings = [p["name"] for p in parameters if "string" in json.dumps(p["schema"])]
            for name in strings:
                for n, text in enumerate(CLIMBING):
                    # All strings where a file is written or read, else a few of them.
                    if n % 4 and not path.startswith(("/datastore", "/infer", "/session", "/replica/masks")):
                        continue
                    _climb(server, session, tried, method, path, parameters, name, text)
    print(f"{sum(tried.answers.values())} climbing requests: {dict(sorted(tried.answers.items()))}")
    assert not tried.failed, "\n".join(tried.failed)
    assert sum(tried.answers.values()) >= 200
    assert _guarded(tree) == before
    assert not _escaped(tree)


def _climb(server, session, tried, method, path, parameters, name, text) -> None:
    target, query = path, {}
    for p in parameters:
        value = text if p["name"] == name else _known(p["name"], 0)
        if p["in"] == "path":
            target = target.replace(f"{{{p['name']}}}", quote(value or "x", safe=""))
        elif value is not None:
            query[p["name"]] = value
    files = {}
    if method in ("put", "post"):
        files = dict.fromkeys(("file", "label", "files"), (text, b"x"))
    data = {"params": json.dumps({"image": text}), "info": json.dumps({text: text})} if files else None
    prepared = requests.Request(method.upper(), server.url + target, params=query, files=files, data=data).prepare()
    tried.note(f"{method} {path} {name}={text[:40]!r}", session.send(prepared, timeout=60))


RAW = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /session/..%2f..%2fetc HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /datastore/image?image=%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /datastore/image?image=%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil.example/info/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET //evil.example/info/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"TRACE /info/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"BREW /info/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /replica/ratings HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /replica/ratings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /info/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /replica/ratings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"GET /info/ HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x00\xff\xfe garbage\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


def _json_post(path: bytes, body: bytes, kind: bytes = b"application/json", method: bytes = b"POST") -> bytes:
    head = method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: " + kind
    return head + b"\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body


RAW += [
    _json_post(path, body)
    for path in (b"/replica/ratings", b"/activelearning/most_replica_like", b"/train/build_index")
    for body in (
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"rating": NaN}',
        b'{"client_id": "\\ud800"}',
        b'{"client_id": "\\u0000"}',
        b"\xff\xfe",
        b"1e999",
        b"1" * 10_000,
        b'"x"',
        b"[]",
    )
]
RAW += [
    _json_post(path, body, kind, b"PUT")
    for path in (b"/session/", b"/datastore/image?image=new")
    for body, kind in (
        (b"", b"multipart/form-data"),
        (b"", b"multipart/form-data; boundary="),
        (b"--b", b"multipart/form-data; boundary=b"),
        (b"--b\r\n\r\nx\r\n--b--", b"multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--b--', b"multipart/form-data; boundary=b"),
        (
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="../../zz-escaped"\r\n\r\nx\r\n--b--\r\n',
            b"multipart/form-data; boundary=b",
        ),
        (b"\xff" * 1000, b"multipart/form-data; boundary=\xff\xff"),
        (b"x" * 1000, b"text/plain; charset=utf-7"),
    )
]


def _answer(port: int, request: bytes) -> bytes:
    """The first bytes of the answer; none where the server waits for more, or just ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        try:
            connection.sendall(request)
            return connection.recv(4096)
        except (ConnectionError, TimeoutError):
            return b""


def test_raw_bytes(server, tree):
    before, answers = _guarded(tree), Counter()
    for request in RAW:
        answer = _answer(server.port, request)
        status = answer.split(b" ", 2)[1:2]
        answers[status[0].decode() if status else "none"] += 1
        assert not status or not status[0].startswith(b"5") or status[0] == b"503", (request[:200], answer[:300])
    print(f"{len(RAW)} raw requests: {dict(answers)}")
    # One is a file whose name climbs; what it holds is no image, so that it is refused as well.
    assert answers["200"] == 0 and answers["none"] <= 5
    assert _guarded(tree) == before
    assert not _escaped(tree)
    assert requests.get(server.url + "/info/", timeout=10).status_code == 200
    assert "Traceback" not in server.log_text()
