"""The panel over a real server: its key, its reader's name, a rating that arrives, and how all that can fail."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import slicer

from qtbench.fixtures import idle, module_widget, panels, slicer_app, wait  # noqa: F401

# ruff: noqa: F811

pytest.importorskip("replica_detection.client", reason="the client is not there")
KEY = "key-of-anna-0123456789abcdef"


def connect(panels, url, key=""):
    ui = panels.source.connection.ui
    ui.urlBox.setEditText(url)
    ui.keyEdit.setText(key)
    ui.connectButton.click()


def message(panels):
    return panels.ui.messageLabel.text if not panels.ui.messageFrame.isHidden() else ""


# --- whatever else may stand at an address


def test_nobody_at_the_address(panels):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    connect(panels, f"http://127.0.0.1:{port}")
    wait(idle(panels), 180)
    assert f"127.0.0.1:{port}" in message(panels)
    assert panels.session.source is None
    assert panels.source.ui.statusLabel.text == "Not connected"


def test_a_server_that_takes_the_call_and_never_answers(panels):
    """The window lives on, and Cancel ends the waiting at once."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        connect(panels, f"http://127.0.0.1:{s.getsockname()[1]}")
        slowest, end = 0.0, time.monotonic() + 1.0
        while time.monotonic() < end:
            before = time.perf_counter()
            slicer.app.processEvents()
            slowest = max(slowest, time.perf_counter() - before)
            time.sleep(0.002)
        assert slowest < 0.3
        assert not panels.ui.activityFrame.isHidden()
        panels.ui.cancelButton.click()
        assert panels.ui.activityFrame.isHidden()
        assert panels.source.connection.ui.connectButton.enabled
        assert not message(panels)


def test_another_web_server(panels):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>a printer</html>")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        connect(panels, f"http://127.0.0.1:{other.server_port}")
        wait(idle(panels), 180)
        other.shutdown()
        thread.join()
    assert message(panels)
    assert panels.session.source is None


def test_an_address_that_is_none(panels):
    connect(panels, "http://127.0.0.1:not-a-port")
    wait(idle(panels), 180)
    assert "not-a-port" in message(panels)
    assert panels.session.source is None


def test_a_key_is_not_sent_in_the_clear_to_another_computer(panels):
    connect(panels, "http://hospital.invalid:8000", "secret-key-0123456789")
    wait(idle(panels), 180)
    assert message(panels)
    assert "secret-key" not in message(panels)
    assert panels.session.source is None


# --- a real server


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    pytest.importorskip("monailabel", reason="the server's packages are not installed")
    import made_collection

    return made_collection.judge(made_collection.make_files(tmp_path_factory.mktemp("served")))


def server_of(collection, work: Path):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Server"))
    from running import running_server

    keys = work / "keys"
    keys.write_text(f"anna:{KEY}\n", encoding="utf-8")
    keys.chmod(0o600)
    folders = {name: collection.folder(name) for name in ("validation", "training_masks", "validation_masks")}
    return running_server(
        collection.folder("synthetic"),
        work=work,
        training=collection.folder("training"),
        index=collection.root / "training.rdindex",
        hardened=True,
        conf={"masks": collection.folder("synthetic_masks"), "api-key-file": keys, **folders},
    )


@pytest.mark.slow
def test_a_reading_on_a_real_server_until_it_is_gone(panels, collection, tmp_path):
    from ReplicaDetectionLib.ServerSource import ServerSource

    with server_of(collection, tmp_path) as server:
        direct = ServerSource(server.url, KEY)
        assert direct.client.wait(direct.client.start_scoring().id).state == "done"
        connect(panels, server.url, "a-wrong-key-0123456789abcdef")
        wait(idle(panels), 180)
        assert panels.session.source is None
        assert "key" in message(panels).lower()
        connect(panels, server.url, KEY)
        wait(lambda: panels.session.list is not None and panels.session.list.items and idle(panels)(), 180)
        assert panels.rating.ui.readerEdit.text == "anna"
        assert not panels.rating.ui.readerEdit.enabled
        panels.worklist.ui.nextUnratedButton.click()
        wait(lambda: panels.session.pair is not None and idle(panels)(), 240)
        first = panels.session.pair.synthetic.id
        assert first == "synthetic_0", "the copy comes first"
        assert panels.session.pair.training.id == "train_2"
        panels.rating.ui.rating4Button.click()
        panels.rating.ui.saveNextButton.click()
        wait(lambda: panels.session.pair is not None and panels.session.pair.synthetic.id != first, 240)
        stored = direct.ratings("anna")
        assert [(r.synthetic_id, r.training_id, r.rating) for r in stored] == [(first, "train_2", 4)]
        assert stored[0].seconds > 0
        wait(idle(panels), 180)
    panels.session.poll()
    wait(lambda: not panels.session.reachable, 240)
    assert "does not answer" in panels.source.ui.statusLabel.text
    panels.rating.ui.rating1Button.click()
    panels.rating.ui.saveButton.click()
    wait(idle(panels), 240)
    assert message(panels)
    assert panels.rating.ui.rating1Button.checked, "the rating is kept for another try"
    assert panels.rating.ui.saveButton.enabled
