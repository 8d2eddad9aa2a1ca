"""deploy/nginx.conf in front of a real server: only its paths, ports and names are replaced."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import monailabel.client.client
import requests

from Core.made_up import cohort, volume, write
from replica_detection.client import ReplicaClient
from Server.running import Server, free_port, running_server

pytestmark = pytest.mark.slow

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin:/usr/bin")
ANNA = "key-of-anna-for-these-tests"
MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/main.log;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/conf.d/*.conf;
}}
"""


@dataclass(frozen=True)
class Proxied:
    url: str
    port: int
    folder: Path
    certificate: Path
    server: Server

    def __call__(self, method: str, path: str, **how) -> requests.Response:
        headers = {"Authorization": f"Bearer {ANNA}", **how.pop("headers", {})}
        return requests.request(
            method, self.url + path, headers=headers, verify=str(self.certificate), timeout=60, **how
        )

    def connect(self) -> ssl.SSLSocket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=40)
        return ssl.create_default_context(cafile=str(self.certificate)).wrap_socket(made, server_hostname="localhost")


@pytest.fixture(scope="module")
def proxied(tmp_path_factory) -> Iterator[Proxied]:
    if NGINX is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "conf.d").mkdir()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "server.key", "-out", "server.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    (folder / "keys").write_text(f"anna:{ANNA} role=admin\n", encoding="utf-8")
    (folder / "keys").chmod(0o600)
    studies = cohort(folder / "studies", 2, 200, "syn")
    training = cohort(folder / "training", 6, prefix="trn")
    conf = {"api_key_file": folder / "keys", "trusted_proxy": "127.0.0.1", "measures": "mae"}
    with running_server(studies, work=folder, training=training, hardened=True, conf=conf) as server:
        port = free_port()
        text = CONFIGURATION.read_text(encoding="utf-8")
        for old, new in (
            ("server 127.0.0.1:8000;", f"server 127.0.0.1:{server.port};"),
            ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
            ("server_name replicas.hospital.example;", "server_name localhost;"),
            ("/etc/replica-detection/", f"{folder}/"),
            ("/var/log/nginx/", f"{folder}/"),
        ):
            assert old in text
            text = text.replace(old, new)
        (folder / "conf.d" / "replica-detection.conf").write_text(text, encoding="utf-8")
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder), encoding="utf-8")
        with (folder / "output").open("wb") as output:
            nginx = subprocess.Popen([NGINX, "-c", str(folder / "nginx.conf")], stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(nginx, port, folder)
            yield Proxied(f"https://localhost:{port}", port, folder, folder / "server.pem", server)
        finally:
            nginx.terminate()
            nginx.wait(20)


def _wait(nginx: subprocess.Popen, port: int, folder: Path) -> None:
    end = time.monotonic() + 30
    while True:
        assert nginx.poll() is None and time.monotonic() < end, (folder / "output").read_text(encoding="utf-8")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


def test_our_client(proxied):
    client = ReplicaClient(proxied.url, key=ANNA, ca_file=proxied.certificate)
    assert client.status().reader == "anna"
    assert proxied("GET", "/health").json()["status"] == "ok"
    assert requests.get(f"{proxied.url}/info/", verify=str(proxied.certificate), timeout=60).status_code == 401
    assert proxied("GET", "/info/", headers={"Host": "evil.example"}).status_code == 421


def test_monai_labels_client(proxied, tmp_path, monkeypatch):
    """It announces bodies that nginx, too, would wait for."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(proxied.certificate))
    client = monailabel.client.client.MONAILabelClient(proxied.url, str(tmp_path), "anna")
    assert client.auth_enabled()
    client.update_auth(client.auth_token("anna", ANNA))
    start = time.monotonic()
    image = write(tmp_path / "image.nii.gz", volume(300))
    client.next_sample("most_replica_like", {})
    assert client.info()["name"] == "Replica Detection"
    session = client.create_session(str(image))["session_id"]
    client.infer("vessels", "", {}, session_id=session)
    client.get_session(session)
    client.remove_session(session)
    client.datastore()
    assert time.monotonic() - start < 28, "a body was waited for"


def test_the_address_of_the_client_and_no_case_in_the_logs(proxied):
    assert proxied("GET", "/datastore/image?image=syn_000").status_code == 200
    assert proxied("GET", "/replica/cases/none/comparison").status_code in (404, 409, 503)
    for log in proxied.folder.glob("replica-detection*.log"):
        text = log.read_text(encoding="utf-8")
        assert "syn_000" not in text and "cases" not in text
    assert "GET 200" in (proxied.folder / "replica-detection.log").read_text(encoding="utf-8")


def test_slow_headers_and_half_handshakes(proxied):
    """All that come stay ten seconds at most, and others are served meanwhile."""
    with ExitStack() as kept:
        slow = [kept.enter_context(proxied.connect()) for _ in range(120)]
        for connection in slow:
            connection.sendall(b"GET /info/ HTTP/1.1\r\nX-A: b\r\n")
        for _ in range(50):
            half = kept.enter_context(socket.create_connection(("127.0.0.1", proxied.port), timeout=40))
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
        start = time.monotonic()
        assert proxied("GET", "/info/").status_code == 200
        assert time.monotonic() - start < 9
        for connection in (slow[0], slow[-1], half):
            answer = _until_the_end(connection)
            assert not answer or answer.startswith(b"HTTP/1.1 408")


def test_too_large_and_too_many(proxied):
    with proxied.connect() as connection:
        head = f"PUT /datastore/image?image=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2 << 30}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413") and b'{"detail"' in answer
    with requests.Session() as session:
        session.verify, codes = str(proxied.certificate), set()
        end = time.monotonic() + 60
        while 429 not in codes and time.monotonic() < end:
            with ExitStack() as kept:
                connections = [kept.enter_context(proxied.connect()) for _ in range(10)]
                for connection in connections:
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 60)
                for connection in connections:
                    codes |= {int(c) for c in re.findall(rb"HTTP/1.1 (\d+)", _some(connection))}
    assert 429 in codes and codes <= {200, 429}


def test_a_server_that_is_away(proxied, tmp_path):
    """Last: it ends the server."""
    proxied.server.process.terminate()
    proxied.server.process.wait(30)
    time.sleep(5)  # requests of the test before count for their time
    reply = proxied("GET", "/info/")
    assert reply.status_code == 503 and reply.json()["detail"] and reply.headers["Retry-After"]


def _until_the_end(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(4096):
            found += part
    except (ConnectionError, ssl.SSLError):
        pass
    return found


def _some(connection: socket.socket) -> bytes:
    """What comes until nothing comes for two seconds."""
    connection.settimeout(2)
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except (TimeoutError, ConnectionError, ssl.SSLError):
        pass
    return found
