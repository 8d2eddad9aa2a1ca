"""Lines of the log without a server: addresses, codes of cases, floods, and what must not break a line."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import os
import stat

import pytest

pytest.importorskip("fastapi", reason="the server needs it: requirements-server-lean.txt")

from starlette.responses import JSONResponse
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from replica_detection.errors import InputError
from replica_detection_server.access.identity import Identity, identify
from replica_detection_server.records import log_sampling
from replica_detection_server.records.case_codes import SECRET, CaseCodes
from replica_detection_server.records.log_sampling import Sampler
from replica_detection_server.records.redacted_replies import RedactedReplies
from replica_detection_server.records.redaction import Scrub, WithoutPatients, configuration
from replica_detection_server.records.request_log import RequestLog
from replica_detection_server.serving.launch_checks import both_families
from replica_detection_server.util.addresses import address_of, neighbourhood
from Server.asgi_calls import call


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.1", 1), "192.0.2.1"),
        (("::ffff:192.0.2.1", 1), "192.0.2.1"),
        (("2001:DB8:0:0::1", 1), "2001:db8::1"),
        (("evil\n2026-01-01 INFO forged", 0), "-"),
        (("", 0), "-"),
        (None, "-"),
    ],
)
def test_addresses_are_addresses(client, address):
    assert address_of({"client": client}) == address


def test_one_client_of_ipv6_is_one_network():
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::2:3") != neighbourhood("2001:db9::1")
    assert neighbourhood("192.0.2.1") != neighbourhood("192.0.2.2")


@pytest.mark.parametrize(
    ("peer", "trusted", "forwarded", "address"),
    [
        ("127.0.0.1", (), "203.0.113.9", "127.0.0.1"),
        ("10.0.0.7", ("10.0.0.7",), "203.0.113.9", "203.0.113.9"),
        ("::ffff:10.0.0.7", ("10.0.0.7",), "203.0.113.9", "203.0.113.9"),
        ("10.0.0.8", ("10.0.0.7",), "203.0.113.9", "10.0.0.8"),
        ("10.0.0.7", ("10.0.0.7",), "1.2.3.4, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.7", ("10.0.0.0/24",), "1.2.3.4, 203.0.113.9, 10.0.0.9", "203.0.113.9"),
        ("10.0.0.7", ("10.0.0.0/24",), ["1.2.3.4", "203.0.113.9, 10.0.0.9"], "203.0.113.9"),
        ("10.0.0.7", ("10.0.0.0/24",), ["203.0.113.9", "10.0.0.9"], "203.0.113.9"),
        ("10.0.0.7", ("10.0.0.7",), "x\ty", "-"),
        ("10.0.0.7", ("10.0.0.7",), "", "10.0.0.7"),
    ],
)
def test_a_proxy_is_believed_where_told_so(peer, trusted, forwarded, address):
    """As launch.py sets uvicorn up: the right-most address that is no trusted proxy's, in however many lines."""
    found = []

    async def inside(scope, receive, send):
        found.append(address_of(scope))
        await JSONResponse({})(scope, receive, send)

    app = ProxyHeadersMiddleware(inside, both_families(trusted)) if trusted else inside
    lines = [forwarded] if isinstance(forwarded, str) else forwarded
    asyncio.run(call(app, headers=[("X-Forwarded-For", line) for line in lines], address=peer))
    assert found == [address]


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_codes_of_cases_are_keyed_and_their_secret_private(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    codes = CaseCodes(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a" / SECRET).stat().st_mode) == 0o600
    assert codes.code("syn_001") == CaseCodes(tmp_path / "a", make=False).code("syn_001")
    assert codes.code("syn_001") != CaseCodes(tmp_path / "b").code("syn_001")
    assert len(codes.code("syn_001")) == 12 and codes.code("train:x") != codes.code("x")
    with pytest.raises(InputError):
        CaseCodes(tmp_path, make=False)
    (tmp_path / "a" / SECRET).write_text("short", encoding="utf-8")
    with pytest.raises(InputError):
        CaseCodes(tmp_path / "a")


# ------------------------------------------------------------------------------------------------------------ floods


def _envelope(tmp_path, status_of=lambda scope: 200, reader="", named=True) -> RedactedReplies:
    async def inside(scope, receive, send):
        scope["route"] = type("Route", (), {"path": "/cases/{synthetic_id}/comparison"})
        scope["path_params"] = {"synthetic_id": "syn_001"}
        if reader:
            identify(scope, Identity(reader))
        await JSONResponse({}, status_of(scope))(scope, receive, send)

    return RedactedReplies(inside, Scrub([]), RequestLog(CaseCodes(tmp_path), named=named))


def _said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "replica_detection_server.requests"]


def test_a_line_has_address_reader_and_code_and_no_id(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    asyncio.run(call(_envelope(tmp_path, reader="anna"), "/replica/cases/syn_001/comparison"))
    (line,) = _said(caplog)
    code = CaseCodes(tmp_path).code("syn_001")
    assert line.startswith("GET /replica/cases/{synthetic_id}/comparison 200 ")
    assert line.endswith(f" 192.0.2.1 'anna' case {code}") and "syn_001" not in line


def test_a_flood_of_refusals_is_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    app = _envelope(tmp_path, lambda scope: 401)
    asyncio.run(_many(app, 5000))
    lines = _said(caplog)
    assert len(lines) == log_sampling.EACH
    app.log._say_refused(now=True)
    assert f"and {5000 - log_sampling.EACH:,} more refused in the last minute" in _said(caplog)[-1]
    assert "192.0.2.1" in _said(caplog)[-1]


async def _many(app, n: int, address=lambda n: "192.0.2.1") -> None:
    for i in range(n):
        await call(app, address=address(i))


def test_a_flood_from_many_addresses_is_counted_too_and_readers_are_not(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    app = _envelope(tmp_path, lambda scope: 401)
    asyncio.run(_many(app, 3000, lambda n: f"10.0.{n // 250}.{n % 250}"))
    assert len(_said(caplog)) == log_sampling.ALL
    assert len(app.log._refused._seen) <= log_sampling.SOURCES + 1
    caplog.clear()
    asyncio.run(_many(_envelope(tmp_path, reader="anna"), 300))
    assert len(_said(caplog)) == 300


def test_those_without_a_name_cannot_flood_with_what_is_open_to_all(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    asyncio.run(_many(_envelope(tmp_path), 300))
    assert len(_said(caplog)) == log_sampling.EACH
    caplog.clear()
    asyncio.run(_many(_envelope(tmp_path, named=False), 300))
    assert len(_said(caplog)) == 300, "without authentication nobody has a name"


def test_the_count_is_told_when_the_flood_is_over(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    app = _envelope(tmp_path, lambda scope: 404)
    app.log._refused.seconds = 0.3

    async def scene() -> None:
        await _many(app, 50)
        await asyncio.sleep(1.0)

    asyncio.run(scene())
    told = [line for line in _said(caplog) if "more refused" in line]
    assert told and sum(int(line.split()[1].replace(",", "")) for line in told) + len(_said(caplog)) - len(told) == 50


def test_each_minute_begins_anew():
    sampler = Sampler("refused", each=2, all=10, seconds=0)
    assert [sampler.admits("a") for _ in range(4)] == [True, True, False, False]
    assert sampler.summary() == "and 2 more refused in the last minute (2 of a)"
    assert sampler.admits("a") and sampler.summary() == ""


def test_the_log_file_keeps_its_history_in_a_flood_of_broken_requests(tmp_path):
    """uvicorn warns of each; what a client can cause without a key is counted."""
    settings = configuration(tmp_path, Scrub([]))
    handler = settings["handlers"]["file"]
    lines = WithoutPatients(Scrub([]))
    passed = 0
    for _ in range(10_000):
        record = logging.LogRecord("uvicorn.error", logging.WARNING, "x.py", 7, "Invalid HTTP request.", (), None)
        kept = [lines.filter(record), lines.filter(record)]  # for the console and the file
        assert kept[0] == kept[1]
        passed += kept[0]
    assert passed == log_sampling.EACH and handler["filters"] == ["without_patients"]
    other = logging.LogRecord(
        "replica_detection_server.computing.jobs", logging.WARNING, "y.py", 9, "a job failed", (), None
    )
    assert lines.filter(other), "others are heard meanwhile"


def test_a_line_stays_a_line():
    words = "anna\n2026-01-01 00:00:00 INFO uvicorn: forged\r\x1b[2J\u2028\x00"
    record = logging.LogRecord("replica_detection_server.x", logging.INFO, "x.py", 7, "by %s", (words,), None)
    assert WithoutPatients(Scrub([])).filter(record)
    text = record.getMessage()
    assert text.splitlines() == [text] and text.isprintable() and "forged" in text


@pytest.mark.parametrize("behind", ["", "<", "</td>", "&quot;", "&#39;", "/a.nii<br>", " x", '"', "\n"])
@pytest.mark.parametrize("folder", ["/srv/studies", "/srv/R&D/o'brien", "/srv/M\u00fcller"])
def test_folders_are_hidden_in_pages_too(folder, behind):
    scrub = Scrub([(folder, "<hidden>"), ("/srv/R", "<other>")])
    written = {folder, html.escape(folder), html.escape(folder).replace("&#x27;", "&#39;"), json.dumps(folder)[1:-1]}
    for form in written:
        assert scrub.text(f"<td>{form}{behind}") == f"<td><hidden>{behind}"
    assert "<hidden>" not in scrub.text(f"{folder}2")
