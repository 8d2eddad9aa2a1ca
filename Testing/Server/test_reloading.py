"""A certificate that is renewed under a running server; keys and records in test_serve_operation.py."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server needs it: requirements-server-lean.txt")
pytest.importorskip("cryptography", reason="makes the certificates of this test")

import requests
import uvicorn
from cryptography.hazmat.primitives import serialization
from starlette.responses import JSONResponse

from replica_detection_server.access.keys import ApiKeys
from replica_detection_server.records.access_record import AccessRecord
from replica_detection_server.records.redaction import LogFile, Scrub, WithoutPatients
from replica_detection_server.serving import reloading
from replica_detection_server.util.named_files import LARGEST
from Server.running import free_port
from Server.test_client_tls import certificate

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")


@pytest.fixture
def served(tmp_path):
    """uvicorn with a certificate of a first authority; the second's lie ready."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        certificate(tmp_path / name, "127.0.0.1")
    used = tmp_path / "server.pem"
    shutil.copyfile(tmp_path / "first" / "server.pem", used)

    async def app(scope, receive, send):
        await JSONResponse({"well": True})(scope, receive, send)

    config = uvicorn.Config(
        app, port=free_port(), ssl_certfile=used, ssl_keyfile=used, log_config=None, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.05)
    yield tmp_path, config
    server.should_exit = True
    thread.join(30)


def _trusts(folder: Path, config: uvicorn.Config, authority: str) -> bool:
    try:
        url = f"https://127.0.0.1:{config.port}/"
        return requests.get(url, verify=str(folder / authority / "authority.pem"), timeout=20).json() == {"well": True}
    except requests.exceptions.SSLError:
        return False


def test_new_connections_get_the_renewed_certificate(served, caplog):
    caplog.set_level("INFO")
    folder, config = served
    assert _trusts(folder, config, "first") and not _trusts(folder, config, "second")
    shutil.copyfile(folder / "second" / "server.pem", folder / "server.pem")
    reloading._tried("the certificate", lambda: reloading._certificate(config))
    assert "reload: the certificate: new connections" in caplog.text
    assert _trusts(folder, config, "second") and not _trusts(folder, config, "first")


def test_a_faulty_certificate_is_not_taken(served, caplog):
    folder, config = served
    good = (folder / "second" / "server.pem").read_bytes()
    key = serialization.load_pem_private_key(good, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    own_key = good[: good.index(b"-----BEGIN CERTIFICATE")]
    other = (folder / "first" / "server.pem").read_bytes()
    faulty = {
        "empty": b"",
        "no key": good[len(own_key) :],
        "cut": good[:-80],
        "key of another": own_key + other[other.index(b"-----BEGIN CERTIFICATE") :],
        "encrypted key": locked + good[len(own_key) :],
    }
    for what, content in faulty.items():
        (folder / "server.pem").write_bytes(content)
        caplog.clear()
        reloading._tried("the certificate", lambda: reloading._certificate(config))
        assert "the certificate stays as it was" in caplog.text, what
        assert _trusts(folder, config, "first"), what
    (folder / "server.pem").unlink()
    reloading._tried("the certificate", lambda: reloading._certificate(config))
    assert _trusts(folder, config, "first")


ODD = ["pipe", "folder", "device", "endless"]


def _odd(path: Path, what: str) -> None:
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(LARGEST + 1)


def _in_time(done: Callable[[], object]) -> None:
    """Fails where it waits; a pipe has nobody at its other end here."""
    thread = threading.Thread(target=done, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits"


@posix
@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("of", ["certificate", "key"])
def test_certificate_and_key_that_are_no_files_hold_up_nobody(served, caplog, what, of):
    folder, config = served
    odd = folder / "odd"
    _odd(odd, what)
    setattr(config, "ssl_certfile" if of == "certificate" else "ssl_keyfile", odd)
    _in_time(lambda: reloading._tried("the certificate", lambda: reloading._certificate(config)))
    assert "reload: the certificate stays as it was: odd: " in caplog.text
    assert _trusts(folder, config, "first")


@posix
@pytest.mark.parametrize("what", ODD)
def test_keys_that_are_no_file_hold_up_nobody(tmp_path, caplog, what):
    odd = tmp_path / "odd"
    _odd(odd, what)
    _in_time(lambda: reloading._tried("the key file", lambda: ApiKeys.read(odd) and ""))
    assert "reload: the key file stays as it was: odd: " in caplog.text


@posix
@pytest.mark.parametrize("what", ODD[:-1])
def test_a_record_goes_on_in_its_file_where_another_thing_has_the_name(tmp_path, caplog, what):
    record = AccessRecord(tmp_path / "access")
    (tmp_path / "access").rename(tmp_path / "moved")
    _odd(tmp_path / "access", what)
    _in_time(lambda: reloading._tried("the access record", lambda: record.reopen() or ""))
    assert "reload: the access record stays as it was: " in caplog.text
    record.add(case="a")
    record.close()
    assert b'"a"' in (tmp_path / "moved").read_bytes()


@posix
@pytest.mark.parametrize("what", ODD[:-1])
def test_a_log_goes_on_in_its_file_where_another_thing_has_the_name(tmp_path, caplog, what):
    file = LogFile(tmp_path / "log", encoding="utf-8")
    (tmp_path / "log").rename(tmp_path / "moved")
    _odd(tmp_path / "log", what)
    _in_time(lambda: reloading._tried("the log", lambda: file.reopen() or ""))
    assert "reload: the log stays as it was: " in caplog.text
    _in_time(lambda: file.handle(logging.makeLogRecord({"msg": "heard"})))
    file.close()
    assert (tmp_path / "moved").read_text(encoding="utf-8") == "heard\n"


def test_lines_of_reloads_are_never_counted_away():
    lines = WithoutPatients(Scrub([]))
    record = logging.LogRecord(reloading.__name__, logging.ERROR, "x.py", 7, "reload: x stays as it was", (), None)
    for _ in range(1000):
        again = logging.makeLogRecord(dict(record.__dict__))
        assert lines.filter(again) and again.msg.startswith("reload: ")


def test_without_a_certificate_nothing_is_said(caplog):
    config = uvicorn.Config(lambda scope: None, log_config=None)
    config.load()
    assert reloading._certificate(config) == ""
