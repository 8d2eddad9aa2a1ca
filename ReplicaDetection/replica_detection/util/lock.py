"""One writer at a time in a folder."""

from __future__ import annotations

from pathlib import Path

from replica_detection.errors import InputError


class Lock:
    """One process at a time writes into a folder; the lock goes with the process that held it."""

    def __init__(self, folder: Path):
        from filelock import FileLock

        self.folder, self.path = folder, folder / ".lock"
        self.lock = FileLock(self.path, timeout=0)

    def __enter__(self) -> None:
        from filelock import Timeout

        try:
            self.lock.acquire()
        except Timeout:
            found = "is being written by another process"
            raise InputError(self.folder, found, "Wait until it is finished, or choose another name") from None

    def __exit__(self, *exc: object) -> None:
        self.lock.release()
        self.path.unlink(missing_ok=True)
