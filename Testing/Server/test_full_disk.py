"""A disk that is really full, under a real server: the answer is 507, and what was acknowledged stays."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import numpy as np
import requests

from Core.made_up import cohort, volume, write
from replica_detection.errors import InputError
from replica_detection_server.data_folder.disk_errors import storage_refusal
from replica_detection_server.errors import DiskFullError, UnknownNameError
from replica_detection_server.incoming.error_responses import answer_of, refusal
from Server.conftest import until
from Server.running import Server, running_server

MEBIBYTES = 48


@dataclass(frozen=True)
class OnDisk:
    server: Server
    disk: Path

    def __call__(self, method: str, path: str, **how) -> requests.Response:
        return requests.request(method, self.server.url + path, timeout=120, **how)

    def fill(self) -> None:
        """To the last byte."""
        with (self.disk / "filling").open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def empty(self) -> None:
        (self.disk / "filling").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def full(small_disk, tmp_path_factory) -> Iterator[OnDisk]:
    """Studies and data lie on the small disk, logs and training scans elsewhere."""
    work = tmp_path_factory.mktemp("work")
    training = cohort(work / "training", 6, prefix="trn")
    studies = cohort(small_disk / "studies", 2, 200, "syn")
    conf = {"measures": "mae"}
    with running_server(
        studies, work=work, training=training, data=small_disk / "data", conf=conf, hardened=True
    ) as server:
        on = OnDisk(server, small_disk)
        until(lambda: on("GET", "/ready").json()["checks"]["index"], "no index", 300)
        yield on


def rating(number: int) -> dict:
    return {"rating_id": f"rating-{number}", "reader": "anna", "synthetic_id": "syn_000", "training_id": "trn_000"} | {
        "rating": 1 + number % 4
    }


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("image") / "new.nii.gz", volume(300)).read_bytes()


@pytest.mark.slow
def test_a_full_disk_is_not_the_fault_of_the_client(full, image):
    session = full("PUT", "/session/", files={"files": ("a.nii.gz", image)}).json()["session_id"]
    assert full("POST", "/replica/ratings", json=rating(0)).status_code == 201
    label = full("POST", "/infer/vessels?image=syn_000&output=image").content
    saved = full("PUT", "/datastore/label?image=syn_001&tag=final", files={"label": ("l.nii.gz", label)})
    assert saved.status_code == 200, saved.text
    large = np.random.default_rng(0).bytes(3 << 20)  # does not stay in memory while it is received
    asked: dict[str, Callable[[], requests.Response]] = {
        "image": lambda: full("PUT", "/datastore/image?image=new", files={"file": ("a.nii.gz", image)}),
        "large image": lambda: full("PUT", "/datastore/image?image=large", files={"file": ("a.nii.gz", large)}),
        "label": lambda: full("PUT", "/datastore/label?image=syn_000&tag=b", files={"label": ("l.nii.gz", label)}),
        "notes": lambda: full("PUT", "/datastore/image/info?image=syn_000", data={"info": '{"a": "b"}'}),
        "session": lambda: full("PUT", "/session/", files={"files": ("a.nii.gz", image)}),
        "large session": lambda: full("PUT", "/session/", files={"files": ("a.nii.gz", large)}),
        "comparison": lambda: full("POST", "/replica/compare", files={"file": ("a.nii.gz", image)}),
        "mask": lambda: full("POST", "/infer/vessels?image=syn_000"),
        "mask as NRRD": lambda: full(
            "POST", "/infer/vessels?image=syn_000", data={"params": '{"result_extension": ".nrrd"}'}
        ),
        "difference": lambda: full("GET", "/replica/difference/syn_000/trn_000"),
        "table": lambda: full("GET", "/replica/ratings?format=csv"),
    }
    reading = ("/info/", "/replica/status", "/datastore/?output=all", "/datastore/image?image=syn_000")
    full.fill()
    try:
        stored, n = [0], 0
        while (reply := full("POST", "/replica/ratings", json=rating(n := n + 1))).status_code == 201:
            stored.append(n)  # there may be room in the pages that the file has
            assert n < 5000
        assert reply.status_code == 507 and reply.json()["detail"], reply.text
        full.fill()
        found = {name: ask() for name, ask in asked.items()}
        for name, reply in found.items():
            print(f"{name:14s} {reply.status_code} {reply.text[:100]}")
        # What takes a page or two may find them; then it is kept.
        small = {name: found.pop(name) for name in ("notes", "mask as NRRD")}
        assert {reply.status_code for reply in small.values()} <= {200, 507}
        assert {name: reply.status_code for name, reply in found.items()} == dict.fromkeys(found, 507)
        for reply in found.values():
            assert "full" in reply.json()["detail"] and str(full.disk) not in reply.text
        assert {path: full("GET", path).status_code for path in reading} == dict.fromkeys(reading, 200)
        # Reading ratings takes a page or two for SQLite's notes.
        assert {full("GET", path).status_code for path in ("/replica/worklist", "/replica/ratings")} <= {200, 507}
        assert full("GET", f"/session/{session}").status_code == 200
        assert full("GET", "/health").status_code == 200
        time.sleep(2.5)  # the answer of /ready is kept so long
        assert full("GET", "/ready").json()["checks"]["disk"] is False
        job = full("POST", "/replica/jobs/score")
        assert job.status_code in (202, 507)
        if job.status_code == 202:
            until(lambda: _job(full, job)["state"] == "failed", "the job goes on", 180)
            assert "full" in _job(full, job)["message"] or "No space" in _job(full, job)["message"]
    finally:
        full.empty()
    kept = {r["rating_id"] for r in full("GET", "/replica/ratings?all=true").json()}
    assert {f"rating-{n}" for n in stored} <= kept
    notes = full("GET", "/datastore/image/info?image=syn_000").json()
    assert ("a" in notes) == (small["notes"].status_code == 200)
    assert full("POST", "/replica/ratings", json=rating(6000)).status_code == 201
    assert full("GET", "/datastore/label?label=syn_001&tag=final").content == label
    assert full("PUT", "/datastore/image?image=new", files={"file": ("a.nii.gz", image)}).status_code == 200
    assert not list(full.server.data.glob("tmp/upload-*"))


def _job(full: OnDisk, job: requests.Response) -> dict:
    return full("GET", f"/replica/jobs/{job.json()['id']}").json()


# --------------------------------------------------------------------------------------------------------- which errors


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOSPC, 507),
        (getattr(errno, "EDQUOT", errno.ENOSPC), 507),
        (errno.EFBIG, 507),
        (errno.EROFS, 503),
        (errno.EIO, 503),
        (errno.EMFILE, 503),
        (errno.ENOENT, 422),
        (errno.EACCES, 422),
    ],
)
def test_the_cause_of_an_error_decides(number, status):
    try:
        try:
            raise OSError(number, os.strerror(number), "/secret/place.nii.gz")
        except OSError as error:
            raise InputError("/secret/place.nii.gz", "cannot be written", "Try another") from error
    except InputError as error:
        found = answer_of(refusal(error))
    assert found.status_code == status and "/secret" not in found.detail


def test_a_full_database(tmp_path):
    connection = sqlite3.connect(tmp_path / "small.sqlite", isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count = 3")
    with pytest.raises(sqlite3.OperationalError) as found:
        connection.execute("INSERT INTO t VALUES (randomblob(100000))")
    assert isinstance(storage_refusal(found.value), DiskFullError)


def test_other_errors_are_others(tmp_path):
    assert storage_refusal(UnknownNameError("no")) is None and storage_refusal(ValueError("x")) is None
    if shutil.disk_usage(tmp_path).free > 1 << 20:
        assert storage_refusal(RuntimeError("x")) is None
