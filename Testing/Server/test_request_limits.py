"""Bodies and parameters that are refused before a route sees them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Annotated

import pytest

pytest.importorskip("fastapi", reason="the server needs it: requirements-server-lean.txt")

from fastapi import FastAPI, Form, UploadFile
from starlette import requests as of_starlette
from starlette.responses import JSONResponse

from replica_detection_server.incoming import names, request_limits
from replica_detection_server.incoming.request_limits import (
    MAX_BODY,
    MAX_FIELD,
    MAX_FIELDS,
    MAX_JSON_BODY,
    MAX_SIGN_IN,
    ONCE,
    BoundedParser,
    RefuseRepeatedHeaders,
    RequestLimits,
    limit_forms,
)
from Server.asgi_calls import Reply, call

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
UPLOADS = [
    ("PUT", "/datastore/image"),
    ("PUT", "/datastore/label"),
    ("PUT", "/session/"),
    ("POST", "/infer/segmentation"),
    ("POST", "/replica/compare"),
]
RATING = json.dumps({"comment": "\U0001f600" * 10_000, "reader": "anna"}).encode()


def _asked(method: str, path: str, body: bytes = b"", query: str = "", headers=JSON, announced: bool = True) -> Reply:
    """The answer of what stands before a route that says how long the body is which it got."""

    async def inside(scope, receive, send):
        length = 0
        while True:
            message = await receive()
            length += len(message["body"])
            if not message["more_body"]:
                break
        await JSONResponse(length)(scope, receive, send)

    app = RequestLimits(inside, 1 << 30)
    sent = {**headers, "Content-Length": str(len(body))} if announced else headers
    return asyncio.run(call(app, path, method=method, body=body, query=query, headers=sent))


@pytest.mark.parametrize(("method", "path"), UPLOADS)
@pytest.mark.parametrize("body", [b"{}", b"[" + b"0," * 200 + b"0]", b"[" + b"0," * MAX_JSON_BODY + b"0]"])
def test_uploads_are_no_json(method, path, body):
    reply = _asked(method, path, body)
    assert reply.status == 415 and b"form" in reply.body


@pytest.mark.parametrize(("method", "path"), UPLOADS)
def test_a_client_that_names_json_and_sends_nothing_is_let_through(method, path):
    assert _asked(method, path).status == 200


def test_the_longest_rating_fits_and_longer_json_does_not():
    assert len(RATING) > 100_000
    assert _asked("POST", "/replica/ratings", RATING).body == str(len(RATING)).encode()
    reply = _asked("POST", "/replica/ratings", b"[" + b"0," * (MAX_JSON_BODY // 2) + b"0]")
    assert reply.status == 413 and b"256 KiB" in reply.body


@pytest.mark.parametrize(
    ("method", "path", "headers", "length"),
    [
        ("POST", "/replica/ratings", JSON, MAX_JSON_BODY + 1),
        ("POST", "/train/encoder", JSON, MAX_BODY + 1),
        ("PUT", "/session/", JSON, 5000),
        ("PUT", "/datastore/image/info", JSON, 5000),
        ("POST", "/train/encoder", {"Content-Type": "text/plain"}, 5000),
    ],
)
@pytest.mark.parametrize("announced", [True, False])
def test_what_came_whole_is_refused_at_once(method, path, headers, length, announced):
    """Nothing comes after the end of a body; `call` waits for ever there, as a client that stays does."""
    start = time.monotonic()
    reply = _asked(method, path, b"[" + b"1" * (length - 2) + b"]", headers=headers, announced=announced)
    assert reply.status in (413, 415) and time.monotonic() - start < request_limits.DRAIN_SECONDS / 2


def test_long_json_is_read_in_a_thread_and_bad_json_is_told_so(monkeypatch):
    used = []
    real = request_limits.json_fault

    def noted(value):
        used.append(threading.get_ident())
        return real(value)

    monkeypatch.setattr(request_limits, "json_fault", noted)
    assert _asked("POST", "/replica/ratings", RATING).status == 200
    assert used and threading.get_ident() not in used
    assert _asked("POST", "/replica/ratings", b"{" * 10_000).status == 422
    assert _asked("POST", "/replica/ratings", b'["' + b"x" * 5000 + b'", NaN]').status == 422


@pytest.mark.parametrize("path", ["/auth", "/auth/", "/auth/token", "/auth/token/valid"])
def test_before_the_gate_there_is_no_json_and_little_of_anything(path):
    assert _asked("POST", path, b"{}").status == 415
    assert _asked("POST", path, b"[" + b"0," * 500_000 + b"0]").status == 413
    assert _asked("POST", path, b"username=anna&password=" + b"x" * 2000, headers=FORM).status == 200
    assert _asked("POST", path, b"username=anna&password=" + b"x" * MAX_SIGN_IN, headers=FORM).status == 413


# -------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/datastore/image", "image=a&image=b"),
        ("/datastore/image", "image=a&x=1&image="),
        ("/datastore/image", "image=a&%69mage=b"),
        ("/replica/ratings", "reader=a&reader=a"),
        ("/replica/worklist", "limit=1&limit=2"),
        ("/replica/cases/a/comparison", "verdict=novel&verdict=replica"),
        ("/datastore/image", "&".join(f"x{n}=1" for n in range(51))),
    ],
)
def test_parameters_that_readers_take_differently(path, query):
    assert _asked("GET", path, query=query).status == 400


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/replica/worklist", "verdict=novel&verdict=replica&limit=5"),
        ("/datastore/image", "&".join(f"x{n}=1" for n in range(50))),
        ("/datastore/image", ""),
    ],
)
def test_parameters_that_all_read_alike(path, query):
    assert _asked("GET", path, query=query).status == 200


# ------------------------------------------------------------------------------------------------------------- forms


@pytest.fixture
def form(monkeypatch):
    """A route with files and a field, as those of this server."""
    monkeypatch.setattr(of_starlette, "MultiPartParser", of_starlette.MultiPartParser)
    limit_forms()
    app = FastAPI()

    @app.put("/session/")
    def create(files: list[UploadFile], params: Annotated[str, Form()] = "{}") -> list[int]:
        return [len(files), len(params)]

    def sent(*parts: tuple[str, bytes]) -> Reply:
        pieces = (b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (n.encode(), v) for n, v in parts)
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        body = b"".join(pieces) + b"--b--\r\n"
        return asyncio.run(call(app, "/session/", method="PUT", body=body, headers=headers))

    return sent


FILE = ('name="files"; filename="x.dcm"', b"slice")


def test_a_series_of_many_files_is_taken(form):
    assert json.loads(form(*[FILE] * 2000, ('name="params"', b"x" * MAX_FIELD)).body) == [2000, MAX_FIELD]


@pytest.mark.parametrize(
    "parts", [[('name="params"', b"x" * (MAX_FIELD + 1))], [('name="more"', b"x")] * (MAX_FIELDS + 1)]
)
def test_large_and_many_fields_are_refused(form, parts):
    assert form(FILE, *parts).status == 400


def test_too_many_files_are_refused(form):
    assert form(*[FILE] * 3000).status == 400


def test_the_parser_is_the_one_that_requests_use(form):
    assert of_starlette.MultiPartParser is BoundedParser


@pytest.mark.parametrize("name", [name.decode() for name in ONCE])
@pytest.mark.parametrize("second", ["1", "2"])
def test_a_header_that_comes_twice_is_refused(name, second):
    """Here the first would count, elsewhere the last."""
    app = RefuseRepeatedHeaders(JSONResponse({}))
    assert asyncio.run(call(app, headers=[(name, "1")])).status == 200
    reply = asyncio.run(call(app, headers=[(name, "1"), ("Accept", "*/*"), (name.upper(), second)]))
    assert reply.status == 400 and name in json.loads(reply.body)["detail"]


def _seen(path: str, query: str = "", body: bytes = b"", headers=JSON) -> tuple[str, str, bytes]:
    """Path, parameters and body as a route gets them."""
    seen: list = []

    async def inside(scope, receive, send):
        request = of_starlette.Request(scope, receive)
        seen.extend([scope["path"], dict(request.query_params), await request.body()])
        await JSONResponse({})(scope, receive, send)

    sent = {**headers, "Content-Length": str(len(body))}
    reply = asyncio.run(call(RequestLimits(inside, 1 << 30), path, method="POST", query=query, body=body, headers=sent))
    assert reply.status == 200, reply.body
    return tuple(seen)


@pytest.mark.parametrize("headers", [JSON, {}])
def test_accents_have_one_form_whatever_form_a_request_gives_them(headers):
    query = "search=e%CC%81tude&reader=Mu%CC%88ller+%26+A&verdict="
    body = b'{"synthetic_id": "e\\u0301tude", "more": [{"u\xcc\x88": 2.0}], "seconds": 1e300, "on": true, "n": 2}'
    path, parameters, got = _seen("/replica/cases/e\u0301tude/comparison", query, body, headers)
    assert path == "/replica/cases/\u00e9tude/comparison"
    assert parameters == {"search": "\u00e9tude", "reader": "M\u00fcller & A", "verdict": ""}
    found = json.loads(got)
    assert found == {"synthetic_id": "\u00e9tude", "more": [{"\u00fc": 2.0}], "seconds": 1e300, "on": True, "n": 2}
    assert [type(found[name]) for name in ("seconds", "on", "n")] == [float, bool, int]


def test_what_is_in_that_form_already_is_passed_on_byte_by_byte():
    body = b'{ "a":1.50, "b" : "\\u00e9" }'
    assert _seen("/replica/ratings", "a=1&b=%c3%a9", body)[2] == body


def test_notes_in_a_form_have_one_form_of_accents():
    assert names.json_object('{"e\\u0301": ["u\\u0308"]}', "params") == {"\u00e9": ["\u00fc"]}


@pytest.mark.parametrize("body", [b'{"rating": NaN}', b"{", b"[" * 2000])
def test_a_body_without_a_type_is_looked_at_as_json(body):
    assert _asked("POST", "/replica/ratings", body, headers={}).status == 422
