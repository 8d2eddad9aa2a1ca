"""The access record by itself: the chain, what removes or tears a line, files that cannot be written."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from fastapi import FastAPI
from starlette.responses import Response

from replica_detection.errors import InputError
from replica_detection_server.access.identity import Identity, identify
from replica_detection_server.records import recorded_replies
from replica_detection_server.records.access_record import AccessRecord, check
from replica_detection_server.records.recorded_replies import RecordedReplies, action_of
from replica_detection_server.records.request_log import cases_of
from replica_detection_server.stock import datastore
from Server.asgi_calls import call

posix = pytest.mark.skipif(os.name != "posix", reason="rights and limits of POSIX")


def _written(path, n: int, first: int = 0) -> None:
    record = AccessRecord(path)
    for i in range(first, first + n):
        record.add(reader="anna", action="image", cases=[f"syn_{i:03d}"], training=[], status=200)
    record.close()


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def _file_limit(size: int):
    """No file of this process may grow beyond a size: writing fails as on a full disk, at the same place."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
def test_a_record_is_private_and_only_added_to(tmp_path):
    path = tmp_path / "access"
    path.touch(0o644)
    _written(path, 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "access.end").stat().st_mode) == 0o600
    before = path.read_bytes()
    _written(path, 2, 3)
    assert path.read_bytes().startswith(before)
    assert [line["number"] for line in _lines(path)] == [1, 2, 3, 4, 5]
    assert check([path]).faults == ()


@pytest.mark.parametrize("gone", range(6))
def test_a_removed_line_is_noticed(tmp_path, gone):
    """The first, one in the middle, the last."""
    path = tmp_path / "access"
    _written(path, 6)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    assert len(check([path]).faults) == 1


@pytest.mark.parametrize("changed", range(6))
def test_a_changed_line_is_noticed(tmp_path, changed):
    path = tmp_path / "access"
    _written(path, 6)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[changed] = lines[changed].replace(b"anna", b"bert")
    path.write_bytes(b"".join(lines))
    assert len(check([path]).faults) == 1


def test_lines_in_another_order_or_of_another_record_are_noticed(tmp_path):
    path, other = tmp_path / "access", tmp_path / "other"
    _written(path, 6)
    _written(other, 6, 50)
    lines, others = path.read_bytes().splitlines(keepends=True), other.read_bytes().splitlines(keepends=True)
    for made in ([*lines[:2], lines[3], lines[2], *lines[4:]], [*lines[:3], *others[3:]], [*lines, lines[-1]]):
        path.write_bytes(b"".join(made))
        assert check([path]).faults


def test_a_removed_file_is_noticed_also_after_the_server_went_on(tmp_path):
    path = tmp_path / "access"
    _written(path, 4)
    path.unlink()
    _written(path, 1)
    assert check([path]).faults


def test_the_chain_goes_on_through_files_that_were_moved_away(tmp_path):
    path, old = tmp_path / "access", tmp_path / "access.1"
    record = AccessRecord(path)
    record.add(action="image")
    path.rename(old)
    record.add(action="image")  # the mover has not told the server yet
    record.reopen()
    record.add(action="image")
    record.close()
    _written(path, 1)
    assert [len(_lines(p)) for p in (old, path)] == [2, 2]
    assert check([old, path]).faults == ()
    assert check([path]).faults and check([path], continued=True).faults == ()
    assert check([path, old]).faults
    packed = tmp_path / "access.1.gz"
    packed.write_bytes(gzip.compress(old.read_bytes()))
    assert check([packed, path]).faults == ()
    # Moved away while no server ran.
    path.rename(tmp_path / "access.0")
    _written(path, 1)
    assert check([packed, tmp_path / "access.0", path]).faults == ()


def test_what_a_crash_tore_is_told_and_the_chain_goes_on(tmp_path):
    path = tmp_path / "access"
    _written(path, 3)
    with path.open("ab") as file:
        file.write(b'{"number": 4, "time": "20')
    _written(path, 2, 3)
    found = check([path])
    assert (found.faults, found.torn, found.end.number) == ((), (4,), 5)
    # A line that was only made to look so is missed in the chain.
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    assert check([path]).faults


def test_after_a_crash_the_file_knows_more_than_the_note_of_its_end(tmp_path):
    path = tmp_path / "access"
    _written(path, 3)
    noted = (tmp_path / "access.end").read_bytes()
    _written(path, 2, 3)
    (tmp_path / "access.end").write_bytes(noted)
    assert check([path]).faults == ()
    _written(path, 1, 5)
    assert check([path]).faults == () and check([path]).end.number == 6


def test_one_server_writes_a_record_at_a_time(tmp_path):
    record = AccessRecord(tmp_path / "access")
    with pytest.raises(InputError, match="another server"):
        AccessRecord(tmp_path / "access")
    record.close()
    AccessRecord(tmp_path / "access").close()


@posix
def test_files_that_cannot_be_a_record(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder", "none/access"):
        with pytest.raises(InputError):
            AccessRecord(tmp_path / name)


def test_many_threads_make_one_chain(tmp_path):
    record = AccessRecord(tmp_path / "access")
    threads = [threading.Thread(target=lambda: [record.add(action="image") for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.close()
    found = check([tmp_path / "access"])
    assert (found.faults, found.end.number) == ((), 160)


@posix
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    path = tmp_path / "access"
    record = AccessRecord(path)
    record.add(action="image")
    size = path.stat().st_size
    with _file_limit(size + 40), pytest.raises(OSError):
        record.add(action="image")
    assert path.stat().st_size == size
    record.add(action="image")
    record.close()
    assert check([path]).faults == () and len(_lines(path)) == 2


# -------------------------------------------------------------------------------------------------------- middleware


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("GET", "/datastore/image", "image"),
        ("GET", "/datastore/label", "label"),
        ("GET", "/datastore/dataset", "dataset"),
        ("GET", "/replica/cases/syn_001/comparison", "comparison"),
        ("POST", "/replica/compare", "comparison of an upload"),
        ("GET", "/replica/masks/train:t1", "mask"),
        ("GET", "/replica/difference/s/t", "difference"),
        ("GET", "/replica/aligned/s/t", "aligned image"),
        ("GET", "/replica/surfaces/s/t", "surface"),
        ("GET", "/replica/surfaces/s/t/statistics", "surface"),
        ("GET", "/replica/report", "report"),
        ("POST", "/replica/ratings", "rating"),
        ("POST", "/infer/replica_matches", "inference"),
        ("GET", "/info/", ""),
        ("HEAD", "/datastore/image", ""),
        ("GET", "/replica/worklist", ""),
    ],
)
def test_what_is_recorded(method, path, action):
    assert action_of({"method": method, "path": path}) == action


def _shown(path, reader="anna\nforged", **how):
    """One request through the middleware over a route that serves a scan."""
    served = []

    async def inside(scope, receive, send):
        scope["route"] = object()
        scope["path_params"] = {"synthetic_id": "syn\n{}", "training_id": "train:t1"}
        served.append(1)
        await Response(b"scan" * 1000, how.get("status", 200))(scope, receive, send)

    record = AccessRecord(path)
    recorded = RecordedReplies(inside, record)

    async def app(scope, receive, send):
        identify(scope, Identity(reader))
        await recorded(scope, receive, send)

    with _file_limit(how["limit"]) if "limit" in how else nullcontext():
        reply = asyncio.run(call(app, "/replica/difference/x/y", address="192.0.2.9"))
    record.close()
    assert served
    return reply


def test_a_line_says_who_saw_what_and_names_cannot_forge_another(tmp_path):
    path = tmp_path / "access"
    assert _shown(path).body == b"scan" * 1000
    (line,) = _lines(path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "number": 1,
        "reader": "anna\nforged",
        "address": "192.0.2.9",
        "action": "difference",
        "cases": ["syn\n{}"],
        "training": ["t1"],
        "status": 200,
        "previous": "",
    }


@posix
@pytest.mark.parametrize("gone", ["access", "access.end"])
def test_a_removed_record_takes_no_further_line_until_it_is_opened_again(tmp_path, gone):
    path = tmp_path / "access"
    record = AccessRecord(path)
    record.add(case="a")
    assert record.is_kept
    (tmp_path / gone).unlink()
    assert not record.is_kept
    for _ in range(2):
        with pytest.raises(OSError, match="removed"):
            record.add(case="b")
    record.reopen()
    assert record.is_kept
    record.add(case="c")
    record.close()
    assert [line["case"] for line in _lines(path)] == (["c"] if gone == "access" else ["a", "c"])
    assert check([path]).begins_late == (gone == "access") and check([path], continued=True).faults == ()


def test_a_record_that_was_moved_away_is_kept(tmp_path):
    path = tmp_path / "access"
    record = AccessRecord(path)
    path.rename(tmp_path / "moved")
    record.add(case="a")
    assert record.is_kept
    record.close()
    assert [line["case"] for line in _lines(tmp_path / "moved")] == ["a"]


@posix
def test_what_cannot_be_recorded_is_not_shown(tmp_path):
    path = tmp_path / "access"
    _shown(path)
    before = path.read_bytes()
    reply = _shown(path, limit=len(before) + 30)
    assert reply.status == 507 and b"scan" * 2 not in reply.body and b"access record" in reply.body
    assert path.read_bytes() == before
    # What shows nothing is answered all the same.
    assert _shown(path, limit=len(before) + 30, status=404).status == 404


@pytest.mark.parametrize("query", ["image=one&image=two", "&".join([*(f"x{n}=1" for n in range(200)), "image=two"])])
@pytest.mark.parametrize("path", ["/datastore/image", "/infer/segmentation"])
def test_what_the_route_takes_is_what_is_recorded(path, query):
    """FastAPI takes the last of a name, of any number of parameters."""
    scope = {"route": object(), "path_params": {}, "path": path, "query_string": query.encode()}
    assert cases_of(scope) == ["two"]


@pytest.mark.parametrize(
    ("asked", "cases", "training"),
    [
        ("/datastore/image?image=syn_1", ["syn_1"], []),
        ("/datastore/image?image=train:t1", [], ["t1"]),
        ("/datastore/label?label=syn_1&tag=final", ["syn_1"], []),
    ],
)
def test_routes_note_themselves_what_they_serve(tmp_path, monkeypatch, asked, cases, training):
    """With nothing read from the address, as when its reader is fooled."""
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"scan")
    monkeypatch.setattr(recorded_replies, "cases_of", lambda scope: [])
    monkeypatch.setattr(datastore, "image_file", lambda image: scan)
    monkeypatch.setattr(datastore, "known_label", lambda label, tag: scan)
    application = FastAPI()
    application.state.authentication = "none"
    application.include_router(datastore.router)
    record = AccessRecord(tmp_path / "access")

    async def app(scope, receive, send):
        identify(scope, Identity("anna"))
        await RecordedReplies(application, record)(scope, receive, send)

    path, _, query = asked.partition("?")
    reply = asyncio.run(call(app, path, query=query))
    record.close()
    assert reply.body == b"scan"
    (line,) = _lines(tmp_path / "access")
    assert (line["cases"], line["training"]) == (cases, training)


# ----------------------------------------------------------------------------------------------------------- command


def _command(*paths) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "replica_detection", "check-access-record", *map(str, paths)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_the_command_for_auditors(tmp_path):
    path = tmp_path / "access"
    _written(path, 5)
    done = _command(path)
    assert done.returncode == 0 and "lines 1 to 5" in done.stdout
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    done = _command(path)
    assert done.returncode == 1 and "ended with number 5" in done.stdout
    assert done.stdout.startswith("the record ended")
    done = _command(tmp_path / "none")
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_a_missing_beginning_is_no_change(tmp_path):
    """After logrotate has moved the first file away, as deploy/ has it: by date, the last one not compressed yet."""
    path = tmp_path / "access.jsonl"
    for n, moved in enumerate(("access.jsonl-20260101", "access.jsonl-20260201", None)):
        _written(path, 2, 2 * n)
        if moved:
            path.rename(tmp_path / moved)
    first = tmp_path / "access.jsonl-20260101"
    packed = first.with_name(f"{first.name}.gz")
    packed.write_bytes(gzip.compress(first.read_bytes()))
    first.unlink()
    done = _command(*sorted(tmp_path.glob("access.jsonl-*")), path)
    assert done.returncode == 0 and "lines 1 to 6" in done.stdout

    done = _command(path)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1 and "was changed" not in said and "the beginning of the access record" in said
    assert "access.jsonl begins with number 5: give the older files as well, or --continued." in said
    done = _command("--continued", path)
    assert done.returncode == 0 and "lines 5 to 6" in done.stdout

    path.write_bytes(path.read_bytes().replace(b"anna", b"bert"))
    done = _command(path)
    assert done.returncode == 1 and "the access record was changed" in " ".join((done.stdout + done.stderr).split())
