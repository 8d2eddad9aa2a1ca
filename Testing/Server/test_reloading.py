"""A certificate that is renewed under a running server; keys and records in test_serve_operation.py."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server needs it: requirements-server-lean.txt")
pytest.importorskip("cryptography", reason="makes the certificates of this test")

import requests
import uvicorn
from cryptography.hazmat.primitives import serialization
from starlette.responses import JSONResponse

from replica_detection_server.hardening import reloading
from Server.running import free_port
from Server.test_client_tls import certificate


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


def test_without_a_certificate_nothing_is_said(caplog):
    config = uvicorn.Config(lambda scope: None, log_config=None)
    config.load()
    assert reloading._certificate(config) == ""
