"""/health, /ready and /metrics of a real server with keys, and its limits of connections as the launch sets them."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import httpx
import requests
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from Core.made_up import cohort
from replica_detection_server.computing.queue import Queue
from replica_detection_server.serving import health
from replica_detection_server.serving.health import Health
from replica_detection_server.settings.launch_settings import Settings
from Server.conftest import until
from Server.running import Server, running_server

PROJECT = Path(__file__).resolve().parents[2]
ANNA, BERND = "key-of-anna-for-these-tests", "key-of-bernd-for-these-tests"
CONNECTIONS = 40


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "keys").write_text(f"anna:{ANNA}\nbernd:{BERND} role=admin\n", encoding="utf-8")
    (folder / "keys").chmod(0o600)
    studies = cohort(folder / "studies", 2, 200, "syn")
    training = cohort(folder / "training", 6, prefix="trn")
    conf = {"api_key_file": folder / "keys", "max_connections": CONNECTIONS, "measures": "mae"}
    with running_server(studies, work=folder, training=training, hardened=True, conf=conf) as server:
        yield server


def get(server: Server, path: str, key: str = "", **headers: str) -> requests.Response:
    given = {**({"Authorization": f"Bearer {key}"} if key else {}), **headers}
    return requests.get(server.url + path, headers=given, timeout=60)


# ------------------------------------------------------------------------------------------------------- without a key


@pytest.mark.slow
def test_health_without_a_key(served):
    reply = get(served, "/health")
    assert reply.status_code == 200 and reply.json() == {"status": "ok", "checks": {"queue": True}}
    assert requests.head(served.url + "/health", timeout=60).status_code == 200
    assert requests.post(served.url + "/health", timeout=60).status_code == 405
    assert get(served, "/health/").status_code == get(served, "/healthy").status_code == 401
    assert get(served, "/health", Host="evil.example").status_code == 421


@pytest.mark.slow
def test_ready_without_a_key_and_without_data(served):
    """Not before the index is loaded; then with nothing but yes and no."""
    until(lambda: get(served, "/ready").status_code == 200, get(served, "/ready").text, 300)
    answer = get(served, "/ready").json()
    assert answer == {"status": "ok", "checks": dict.fromkeys(("index", "queue", "disk", "space", "record"), True)}


@pytest.mark.slow
def test_the_container_asks_for_health(served):
    """With the command of the Dockerfile, on the port of this server."""
    line = next(n for n in (PROJECT / "Dockerfile").read_text(encoding="utf-8").splitlines() if "HEALTHCHECK" in n)
    command = json.loads(line.partition("CMD ")[2])
    assert "/health" in command[2]
    for port, code in ((served.port, 0), (9, 1)):
        run = [sys.executable, "-c", command[2].replace("8000", str(port))]
        assert subprocess.run(run, capture_output=True, timeout=60).returncode == code, shlex.join(run)


def _asked(application: FastAPI, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Health(application, application))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(ask())


def _application(data: Path) -> FastAPI:
    application = FastAPI()
    application.state.settings, application.state.queue = Settings(data), Queue()
    return application


def test_a_stuck_queue(tmp_path, monkeypatch):
    application = _application(tmp_path)
    monkeypatch.setattr(health, "STUCK_MARGIN_SECONDS", -(10.0**6))
    assert _asked(application, "/health").status_code == 503 or not application.state.queue.running

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(Health(application, application))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            async with application.state.queue.slot():
                found = [await client.get(path) for path in ("/health", "/ready")]
            monkeypatch.undo()
            return [*found, await client.get("/health")]

    stuck, not_ready, moving = asyncio.run(ask())
    assert stuck.status_code == not_ready.status_code == 503 and moving.status_code == 200
    assert "longer than it may" in stuck.json()["detail"] and not not_ready.json()["checks"]["queue"]


def test_a_data_folder_that_is_not_there(tmp_path):
    """And no index yet; the answer says neither where nor how much."""
    reply = _asked(_application(tmp_path / "gone"), "/ready")
    assert reply.status_code == 503 and str(tmp_path) not in reply.text
    assert reply.json()["checks"] == {"index": False, "queue": True, "disk": False, "space": False, "record": True}


# -------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.slow
def test_metrics_for_admins(served):
    assert get(served, "/metrics").status_code == 401
    assert get(served, "/metrics", ANNA).status_code == 403
    get(served, "/datastore/image?image=syn_000", ANNA)
    get(served, "/datastore/image?image=Smith_John", ANNA)
    reply = get(served, "/metrics", BERND)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }

    def requests_to(route: str, status: str) -> float:
        labels = (("method", "GET"), ("route", route), ("status", status))
        return values["replica_detection_requests_total", *labels]

    assert requests_to("/datastore/image", "200") >= 1 and requests_to("/datastore/image", "404") >= 1
    assert requests_to("/health", "200") >= 1 and requests_to("-", "401") >= 1
    assert values["replica_detection_request_seconds_count", ("route", "/datastore/image")] >= 2
    assert values["replica_detection_studies",] == 2 and values["replica_detection_ratings",] == 0
    assert 0 < values["replica_detection_disk_free_bytes",] < values["replica_detection_disk_bytes",]
    assert 1 <= values["replica_detection_connections",] <= CONNECTIONS
    assert any(name[0] == "replica_detection_jobs" for name in values)
    assert "syn_000" not in reply.text and "Smith" not in reply.text and str(served.data) not in reply.text


# ---------------------------------------------------------------------------------------------------------- connections


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /info/ HTTP/1.1\r\nX-A:", b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n"])
def test_a_key_opens_while_others_hold_all_connections(served, sent):
    with ExitStack() as kept:
        for _ in range(2 * CONNECTIONS):
            kept.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60)).sendall(sent)
        for _ in range(3):
            assert get(served, "/info/", ANNA).status_code == 200
        count = re.search(r"^replica_detection_connections (\S+)", get(served, "/metrics", BERND).text, re.MULTILINE)
        assert float(count[1]) <= CONNECTIONS


@pytest.mark.slow
def test_slow_headers_end_after_ten_seconds(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        start = time.monotonic()
        connection.sendall(b"GET /info/ HTTP/1.1\r\n")
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - start > 9


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_announced_body_that_never_comes(served, method):
    """With a key and without."""
    for key, status in ((BERND, "200" if method == "GET" else "404"), ("", "401")):
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
            head = (
                f"{method} /datastore/image?image=syn_000&id=none HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n"
            )
            connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 42\r\n\r\n".encode())
            answer = connection.recv(4096)
        assert answer.startswith(f"HTTP/1.1 {status}".encode()) and b"connection: close" in answer.lower(), answer
