"""What a server started ends with it, whatever ended it: processes of processes, and those that hear no signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import psutil

from replica_detection_server.util import process_guard
from Server.conftest import until

# A job that has a process of its own, both deaf to what asks them to end, and neither in the server's session.
DEAF = (
    "import signal, subprocess, sys, time\n"
    "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
    "depth = int(sys.argv[1])\n"
    "if depth: subprocess.Popen([sys.executable, '-c', sys.argv[2], str(depth - 1), sys.argv[2]], "
    "start_new_session=True)\n"
    "time.sleep(600)\n"
)
# A server that starts such a job from a thread that ends at once.
SERVER = (
    "import subprocess, sys, threading, time\n"
    "from pathlib import Path\n"
    "from replica_detection_server.util.process_guard import guarded\n"
    "deaf = sys.argv[1]\n"
    "with guarded(Path(sys.argv[2])):\n"
    "    start = lambda: subprocess.Popen([sys.executable, '-c', deaf, '2', deaf], start_new_session=True)\n"
    "    thread = threading.Thread(target=start)\n"
    "    thread.start(); thread.join()\n"
    "    print('started', flush=True)\n"
    "    sys.stdin.read()\n"
)


@contextmanager
def _server(note: Path) -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """The server and all that it started; the guard is the last."""
    command = [sys.executable, "-c", SERVER, DEAF, str(note)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    below: list[psutil.Process] = []
    try:
        assert process.stdout.readline() == "started\n"
        until(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 4, "not all started", seconds=60)
        below = psutil.Process(process.pid).children(recursive=True)
        below.sort(key=lambda child: "replica_detection_server.util.process_guard" in child.cmdline())
        assert "replica_detection_server.util.process_guard" in below[-1].cmdline()
        yield process, below
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        for left in below:
            if left.is_running():
                left.kill()


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _gone(processes: list[psutil.Process]) -> None:
    for process in processes:
        until(lambda p=process: not _lives(p), f"{process} lives on", seconds=30)


def test_all_of_them_end_with_a_killed_server(tmp_path):
    with _server(tmp_path / "note") as (server, below):
        server.kill()
        server.wait()
        _gone(below)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_guard_outlives_the_signals_that_end_a_server(tmp_path):
    with _server(tmp_path / "note") as (server, below):
        for number in (signal.SIGINT, signal.SIGTERM):
            below[-1].send_signal(number)
        time.sleep(0.5)
        assert all(_lives(process) for process in below)
        server.kill()
        server.wait()
        _gone(below)


def test_the_end_of_a_server_waits_for_theirs(tmp_path):
    with _server(tmp_path / "note") as (server, below):
        server.stdin.close()
        assert server.wait(30) == 0
        assert not any(_lives(process) for process in below)


def test_the_next_server_ends_what_a_killed_guard_could_not(tmp_path):
    note = tmp_path / "note"
    with _server(note) as (server, below):
        below[-1].kill()
        server.kill()
        server.wait()
        time.sleep(0.5)
        assert all(_lives(process) for process in below[:-1])
        with process_guard.guarded(note):
            assert not any(_lives(process) for process in below[:-1])
        assert process_guard.MARK not in os.environ


def test_no_other_process_is_ended(tmp_path):
    """Neither one without a mark nor one of another server, whatever the note of the last one says."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    marks = (None, "", "0" * 32, "f" * 31)
    others = [subprocess.Popen(sleep, env=os.environ | ({} if m is None else {process_guard.MARK: m})) for m in marks]
    try:
        (tmp_path / "note").write_text("f" * 32, encoding="utf-8")
        for note in ("note", "empty", "none"):
            (tmp_path / "empty").write_text("", encoding="utf-8")
            with process_guard.guarded(tmp_path / note):
                assert len((tmp_path / note).read_text(encoding="utf-8")) == 32
        (tmp_path / "note").write_bytes(b"\xff\xfe")
        assert process_guard.end_marked("") == 0
        with process_guard.guarded(tmp_path / "note"):
            pass
        assert all(other.poll() is None for other in others)
    finally:
        for other in others:
            other.kill()
            other.wait()
