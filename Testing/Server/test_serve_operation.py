"""A running server: keys that change under it, roles, the access record, and what its log says of whom."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import requests

from replica_detection_server.access.keys import made_key
from replica_detection_server.records.access_record import check
from replica_detection_server.records.case_codes import CaseCodes
from Server import collections_on_disk
from Server.collections_on_disk import ANNA, COPIED, COPY, Collections, reviewing
from Server.conftest import until
from Server.running import Server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")]

ADMIN, PROXY = "key-of-ada-who-looks-after-it", "127.0.0.1"


@dataclass(frozen=True)
class Running:
    server: Server
    collections: Collections
    record: Path
    trainer: str

    @property
    def keys(self) -> Path:
        return self.collections.folder / "keys"

    def ask(self, key: str, path: str, method: str = "GET", address: str = "192.0.2.1", **how) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": address}
        return requests.request(method, self.server.url + path, headers=headers, timeout=120, **how)

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]

    def log(self) -> str:
        return (self.server.data / "logs" / "server.log").read_text(encoding="utf-8")

    def reload(self, said: str) -> None:
        """SIGHUP, and until the log says what came of it."""
        before = self.log().count(said)
        os.kill(self.server.pid, signal.SIGHUP)
        until(lambda: self.log().count(said) > before, f"no word of '{said}':\n{self.server.log_text()[-2000:]}", 60)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("operation")
    collections = collections_on_disk.make(folder)
    trainer, line = made_key("tom", "trainer", hashed=True)
    with (folder / "keys").open("a", encoding="utf-8") as keys:
        keys.write(f"ada:{ADMIN} role=admin\n{line}\n")
    record = folder / "access-record"
    args = ["--access-record", str(record), "--trusted-proxy", PROXY]
    with reviewing(collections, folder / "work", args) as server:
        yield Running(server, collections, record, trainer)


def test_roles_of_keys(running):
    """A reader rates and labels, a trainer trains, an administrator removes; each may what those before may."""
    asked = {
        "labels": ("PUT", "/datastore/image/info?image=none"),
        "trains": ("POST", "/train/none"),
        "removes": ("DELETE", "/datastore/image?id=none"),
        "removes a label": ("DELETE", "/datastore/label?id=none&tag=final"),
    }
    found = {
        key: {
            what: running.ask(key, path, method, data={"info": "{}"} if method == "PUT" else None).status_code
            for what, (method, path) in asked.items()
        }
        for key in (ANNA, running.trainer, ADMIN)
    }
    assert list(found[ANNA].values()) == [404, 403, 403, 403]
    assert list(found[running.trainer].values()) == [404, 404, 403, 403]
    assert list(found[ADMIN].values()) == [404, 404, 404, 404]
    for method in ("POST", "DELETE"):
        path = "/replica/jobs/index" if method == "POST" else f"/replica/jobs/{_index_job(running)}"
        assert running.ask(ANNA, path, method).status_code == 403
    sent = {"rating_id": "", "reader": "", "synthetic_id": COPY, "training_id": COPIED, "rating": 4}
    assert running.ask(ANNA, "/replica/ratings", "POST", json=sent).status_code == 201


def _index_job(running) -> str:
    return next(job["id"] for job in running.ask(ANNA, "/replica/jobs").json() if job["kind"] == "index")


def test_who_saw_which_scan_is_on_record(running):
    before = len(running.lines())
    pair = f"{COPY}/{COPIED}"
    asked = {
        f"/datastore/image?image={COPY}": ("image", [COPY], []),
        f"/datastore/image?image=train:{COPIED}": ("image", [], [COPIED]),
        f"/replica/masks/train:{COPIED}": ("mask", [], [COPIED]),
        f"/replica/difference/{pair}": ("difference", [COPY], [COPIED]),
        f"/replica/surfaces/{pair}": ("surface", [COPY], [COPIED]),
    }
    for path in asked:
        assert running.ask(running.trainer, path, address="198.51.100.7").status_code == 200, path
    found = running.ask(ANNA, f"/replica/cases/{COPY}/comparison?k=3").json()
    running.ask(ANNA, "/datastore/image?image=none")
    lines = running.lines()[before:]
    assert [(r["action"], r["cases"], r["training"]) for r in lines[:5]] == list(asked.values())
    assert {(r["reader"], r["address"], r["status"]) for r in lines[:5]} == {("tom", "198.51.100.7", 200)}
    shown = {n["training_id"] for m in found["measures"] for n in m["neighbors"]}
    assert (lines[5]["reader"], lines[5]["action"], lines[5]["cases"]) == ("anna", "comparison", [COPY])
    assert set(lines[5]["training"]) == shown | {found["nearest_training_id"]} and len(shown) >= 3
    assert (lines[6]["cases"], lines[6]["status"]) == (["none"], 404)
    assert check([running.record]).faults == ()
    assert not {ANNA, running.trainer} & set(running.record.read_text(encoding="utf-8").split('"'))


def test_a_comparison_of_an_upload_says_which_training_scans_it_showed(running):
    file = running.collections.studies / f"{COPY}.nii.gz"
    before = len(running.lines())
    for path in ("/replica/compare?k=2", "/infer/replica_matches?output=json"):
        with file.open("rb") as content:
            reply = running.ask(ANNA, path, "POST", files={"file": ("x.nii.gz", content)})
        assert reply.status_code == 200, reply.text
    lines = running.lines()[before:]
    assert [r["action"] for r in lines] == ["comparison of an upload", "inference"]
    assert all(COPIED in r["training"] and len(r["training"]) >= 2 for r in lines)


def test_what_cannot_be_recorded_is_not_shown(running):
    """The limit on files of the process does what a full disk does."""
    import resource

    path = f"/datastore/image?image=train:{COPIED}"
    whole = running.ask(ANNA, path).content
    before = resource.prlimit(running.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(running.server.pid, resource.RLIMIT_FSIZE, (running.record.stat().st_size + 20, before[1]))
    try:
        reply = running.ask(ANNA, path)
        assert reply.status_code == 507 and "access record" in reply.json()["detail"]
        assert whole[:50] not in reply.content
        assert running.ask(ANNA, "/info/").status_code == 200
    finally:
        resource.prlimit(running.server.pid, resource.RLIMIT_FSIZE, before)
    assert running.ask(ANNA, path).content == whole
    assert check([running.record]).faults == ()


def test_a_removed_record_shows_nothing_and_is_told(running):
    path = f"/datastore/image?image={COPY}"
    whole = running.record.read_bytes()
    running.record.unlink()
    reply = running.ask(ANNA, path)
    assert reply.status_code == 503 and "access record" in reply.json()["detail"]
    assert "the access record cannot be written (its file was removed" in running.log()
    until(lambda: running.ask("", "/ready").json()["checks"]["record"] is False, "/ready does not tell", 10)
    assert "access record was removed" in running.ask("", "/ready").json()["detail"]
    running.reload("reload: the access record: opened again")
    assert running.ask(ANNA, path).status_code == 200
    found = check([running.record])
    assert found.begins_late and found.first > 1 and check([running.record], continued=True).faults == ()
    running.record.write_bytes(whole + running.record.read_bytes())
    running.reload("reload: the access record: opened again")
    assert check([running.record]).faults == ()


def test_the_console_shows_no_python(running):
    assert "timeloop" not in running.server.log_text() and "<function" not in running.server.log_text()


def test_the_log_names_address_and_code_and_no_case(running):
    running.ask(ANNA, f"/datastore/image?image=train:{COPIED}", address="203.0.113.50")
    code = CaseCodes(running.server.data, make=False).code(f"train:{COPIED}")
    # The line is written when the reply has been sent.
    until(lambda: f"203.0.113.50 'anna' case {code}" in running.log(), "no line for the request")
    assert COPIED not in running.log() and COPY not in running.log()
    for words in ("started: version", "job index begun", "job index ended after"):
        assert words in running.log()


def test_a_flood_of_wrong_keys_leaves_the_log_its_history_and_costs_time(running):
    """The right key of the same address is answered at once."""
    size = len(running.log())
    took = []
    for n in range(8):
        start = time.monotonic()
        assert running.ask(f"wrong-{n}", "/info/", address="203.0.113.66").status_code == 401
        took.append(time.monotonic() - start)
    assert took[-1] > 1.5 and sum(took[-3:]) > 3, took
    for _ in range(300):
        requests.get(running.server.url + "/info/", headers={"X-Forwarded-For": "203.0.113.66"}, timeout=20)
    assert running.ask(ANNA, "/info/", address="203.0.113.66").status_code == 200
    assert len(running.log()) - size < 5000
    assert "started: version" in running.log()


# ------------------------------------------------------------------------------------------------------ SIGHUP, last


def test_keys_are_read_again_while_it_runs(running):
    """A new key opens, a removed one no longer, also on a connection that is open; a faulty file changes nothing."""
    text = running.keys.read_text(encoding="utf-8")
    new = "key-of-nora-who-came-later"
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {ANNA}"
        assert session.get(running.server.url + "/info/", timeout=20).status_code == 200
        running.keys.write_text(text.replace("anna:", "nora:").replace(ANNA, new), encoding="utf-8")
        running.reload("reload: the key file: 4 keys are in use")
        assert session.get(running.server.url + "/info/", timeout=20).status_code == 401
    assert running.ask(new, "/replica/status").json()["reader"] == "nora"
    assert running.ask(running.trainer, "/info/").status_code == 200
    for faulty in ("", "nobody\n", f"x:{new} role=boss\n", text + text):
        running.keys.write_text(faulty, encoding="utf-8")
        running.reload("reload: the key file stays as it was: ")
        assert running.ask(new, "/info/").status_code == 200, faulty
    running.keys.unlink()
    running.reload(f"reload: the key file stays as it was: {running.keys.name}: cannot be read")
    assert running.ask(new, "/info/").status_code == 200
    running.keys.write_text(text, encoding="utf-8")
    running.keys.chmod(0o600)
    running.reload("reload: the key file: 4 keys are in use")
    assert running.ask(ANNA, "/info/").status_code == 200
    assert new not in running.log() and running.server.process.poll() is None


def test_record_and_log_go_on_in_new_files(running):
    """As logrotate leaves them."""
    running.ask(ANNA, f"/datastore/image?image={COPY}")
    old = running.record.with_name("access-record.1")
    log = running.server.data / "logs" / "server.log"
    running.record.rename(old)
    log.rename(log.with_name("server.log.old"))
    os.kill(running.server.pid, signal.SIGHUP)
    until(lambda: running.record.exists() and log.exists() and "reload" in running.log(), "no new file", 60)
    assert running.ask(ANNA, f"/datastore/image?image={COPY}").status_code == 200
    assert len(running.lines()) == 1
    assert check([old, running.record]).faults == ()
