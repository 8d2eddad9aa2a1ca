"""`replica-detection serve` with the arguments as they are, from any folder."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from Server.running import TIMEOUT, stop


@contextmanager
def started(arguments: Sequence[str], folder: Path, log: Path) -> Iterator[subprocess.Popen]:
    """The process, without a terminal and on a free port; ended with the block."""
    command = [sys.executable, "-m", "replica_detection", "serve", "--port", "0", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            stop(process)


def url_of(process: subprocess.Popen, log: Path) -> str:
    """Where it serves, once it says so."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serves (http\S+)", log.read_text(encoding="utf-8")):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8"))
