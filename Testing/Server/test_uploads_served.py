"""Hostile uploads through every door of a running server: what it answers, opens and takes in memory."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import requests

from replica_detection.client import ReplicaClient
from Server import collections_on_disk
from Server.collections_on_disk import ANNA
from Server.made_uploads import (
    bare_png,
    deflated_dicom,
    dicom,
    jpeg,
    metaimage,
    nifti,
    nrrd,
    packed_metaimage,
    packed_zeros,
    voxels,
    whole_files,
)
from Server.running import Server, running_server

pytestmark = pytest.mark.slow

# What one refused upload may take of the server's memory; the images themselves would take GiB.
MEMORY_MIB = 200


@dataclass(frozen=True)
class Door:
    """A way in for a file: what it answers to (name, content)."""

    name: str
    send: Callable[[Server, str, bytes], requests.Response]


def ask(server: Server, method: str, path: str, **how) -> requests.Response:
    return requests.request(
        method, server.url + path, timeout=120, headers={"Authorization": f"Bearer {ANNA}"}, **how
    )  # fmt: skip


def _archive(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"a/{name}", content)
        archive.writestr("a/IM0001.dcm", dicom())
    return file.getvalue()


GOOD = ("good.nii", nifti())
UNPROTECTED = [
    Door("compare", lambda s, n, c: ask(s, "POST", "/replica/compare", files={"file": (n, c)})),
    Door("mask", lambda s, n, c: ask(s, "POST", "/replica/compare", files={"file": GOOD, "mask": (n, c)})),
    Door("infer", lambda s, n, c: ask(s, "POST", "/infer/vessels?output=json", files={"file": (n, c)})),
    Door("label", lambda s, n, c: ask(s, "POST", "/infer/vessels?output=json", files={"file": GOOD, "label": (n, c)})),
    Door("session", lambda s, n, c: ask(s, "PUT", "/session/", files={"files": (n, c)})),
    Door(
        "series", lambda s, n, c: ask(s, "PUT", "/session/", files=[("files", ("1.dcm", dicom())), ("files", (n, c))])
    ),
    Door(
        "archive",
        lambda s, n, c: ask(s, "PUT", "/session/?uncompress=true", files={"files": ("a.zip", _archive(n, c))}),
    ),
    Door("image", lambda s, n, c: ask(s, "PUT", "/datastore/image?image=new", files={"file": (n, c)})),
    Door("stored label", lambda s, n, c: ask(s, "PUT", "/datastore/label?image=syn_000", files={"label": (n, c)})),
]  # fmt: skip
EVERY_DOOR = pytest.mark.parametrize("door", UNPROTECTED, ids=lambda door: door.name.replace(" ", "_"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Server]:
    collections = collections_on_disk.make(folder / "collections")
    (folder / "work").mkdir()
    with running_server(
        collections.studies,
        work=folder / "work",
        training=collections.training,
        conf=collections.options | {"measures": "mae"},
        hardened=True,
    ) as started:
        client = ReplicaClient(started.url, key=ANNA)
        for job in client.jobs():
            assert client.wait(job.id, every=0.1).state == "done"
        yield started


@pytest.fixture(scope="module")
def secret(folder) -> Path:
    path = folder / "secret"
    path.write_bytes(voxels().tobytes())
    os.mkfifo(folder / "pipe")
    return path


@EVERY_DOOR
def test_a_reference_is_refused_at_every_door_with_the_same_words(server, secret, door):
    names = [str(secret), f"{secret}-absent", "/dev/ptmx", str(secret.parent / "pipe"), "../../keys", "LIST\na"]
    said = set()
    for name in names:
        replies = [door.send(server, "x.mha", metaimage(file=name))]
        if not name.startswith("LIST"):
            replies.append(door.send(server, "x.nrrd", nrrd(f"data file: {name}\n")))
        for reply in replies:
            assert reply.status_code == 422, reply.text
            said.add(reply.json()["detail"].partition(":")[2])
            assert "secret" not in reply.text and str(secret.parent) not in reply.text
    assert len(said) == 1 and "itself" in said.pop()
    assert not (server.studies / "new.mha").exists() and not (server.studies / "new.nrrd").exists()


BOMBS = {
    "600.nii.gz": lambda: (
        gzip.compress(nifti(size=(600, 600, 600), data=b"") + bytes(16 << 20)) + packed_zeros(400, 31)
    ),
    "600.mha": lambda: packed_metaimage(packed_zeros(400), size=(600, 600, 600)),
    "600.nrrd": lambda: nrrd(size=(600, 600, 600), encoding="gzip", data=packed_zeros(400, 31)),
    "small.nii.gz": lambda: nifti(pack=True) + packed_zeros(400, 31),
    "small.mha": lambda: packed_metaimage(packed_zeros(400)),
    "small.nrrd": lambda: nrrd(encoding="gzip", data=packed_zeros(400, 31)),
    "wide.png": lambda: bare_png((20000, 20000), packed_zeros(400)),
    "small.png": lambda: bare_png((40, 30), packed_zeros(400)),
    "wide.jpg": lambda: jpeg().replace(b"\0\x1e\0\x28", b"\xff\xdc\xff\xdc"),
    "many.dcm": lambda: dicom(NumberOfFrames=100000),
    "deflated.dcm": lambda: deflated_dicom(more=400 << 20),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of another process is read from /proc")
@pytest.mark.parametrize("name", sorted(BOMBS))
def test_small_uploads_that_unfold_to_gigabytes(server, name):
    content = BOMBS[name]()
    assert len(content) < 1 << 20
    doors = [door for door in UNPROTECTED if door.name in ("compare", "infer", "session", "image")]
    for door in doors:
        before = _reset_peak(server.pid)
        reply = door.send(server, name, content)
        assert reply.status_code in (413, 422), reply.text
        assert _peak(server.pid) - before < MEMORY_MIB << 20, (
            f"{door.name} took {(_peak(server.pid) - before) >> 20} MiB"
        )


@pytest.mark.parametrize("name", sorted(n for n in whole_files() if not n.endswith((".png", ".jpg", ".dcm"))))
def test_good_files_are_compared(server, name):
    while (reply := UNPROTECTED[0].send(server, name, whole_files()[name])).status_code == 503:
        pass
    assert reply.status_code == 200 and reply.json()["verdict"]


@pytest.mark.parametrize("name", sorted(whole_files()))
def test_good_files_are_kept(server, name):
    for door in UNPROTECTED[4:7]:
        reply = door.send(server, name, whole_files()[name])
        assert reply.status_code == 200, reply.text
        assert ask(server, "DELETE", f"/session/{reply.json()['session_id']}").status_code == 200


def _status(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(text.split(f"{field}:")[1].split()[0]) << 10


def _reset_peak(pid: int) -> int:
    """Resident memory now, from which on the peak is counted."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")
    return _status(pid, "VmRSS")


def _peak(pid: int) -> int:
    return _status(pid, "VmHWM")
