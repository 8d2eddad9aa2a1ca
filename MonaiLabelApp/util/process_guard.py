"""Processes that the server starts end with it, also after `kill -9`, and so do those that they start.

MONAI Label starts its jobs by commands that cannot be changed, and a job starts further processes. All of them inherit
a mark in their environment, a random word. A guard, a small process beside the server, waits at a pipe for the server's
end and then ends all processes with the mark. A new server does the same with the mark of the previous one, in case its
guard was killed too. No other process has the word by chance, and psutil does not signal a process whose number was
reused.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

MARK = "REPLICA_DETECTION_RUN"
SECONDS = 10


@contextmanager
def guarded(note: Path | None = None) -> Iterator[None]:
    """Ends the processes of an earlier server; those started from now on end with this process, or with the block.

    Args:
        note: file that keeps the mark for the next server. None: only the guard knows it.
    """
    if note is not None:
        with suppress(OSError, UnicodeDecodeError):
            end_marked(note.read_text(encoding="ascii"))
    mark = secrets.token_hex(16)
    if note is not None:
        note.write_text(mark, encoding="ascii")
    guard = _guard(mark)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]
        assert guard.stdin is not None
        guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            guard.wait(2 * SECONDS)


def guard_this_process() -> None:
    """As `guarded`, until this process ends."""
    stack = ExitStack()
    stack.enter_context(guarded())
    atexit.register(stack.close)


def end_marked(mark: str) -> int:
    """Kills every process with the mark, waits until they are gone, and returns their number."""
    ended: set[psutil.Process] = set()
    end = time.monotonic() + SECONDS
    # A process that starts while another is killed is found by a further search.
    while (found := _marked(mark)) and time.monotonic() < end:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)
        ended.update(found)
    return len(ended)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter() if mark else ():
        # The environment of other users' processes and of those that are just ending cannot be read.
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _guard(mark: str) -> subprocess.Popen:
    guard = subprocess.Popen(
        [sys.executable, "-m", "replica_detection_server.util.process_guard"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != MARK},
        start_new_session=True,  # a terminal that is closed ends a whole session
    )
    assert guard.stdin is not None
    with suppress(BrokenPipeError):
        guard.stdin.write(mark.encode() + b"\n")
        guard.stdin.flush()
    return guard


def main() -> None:
    """The guard."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    mark = sys.stdin.readline().strip()
    sys.stdin.read()
    end_marked(mark)


if __name__ == "__main__":
    main()
