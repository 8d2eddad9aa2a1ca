"""A lock that lets one process at a time write into a folder."""

from __future__ import annotations

from pathlib import Path

from replica_detection.errors import InputError


class Lock:
    """A context manager around writing into a folder; the system releases the lock when its process ends.

    Entering raises InputError where another process holds the lock.
    """

    def __init__(self, folder: Path):
        from filelock import FileLock

        self.folder, self.path = folder, folder / ".lock"
        self.lock = FileLock(self.path, timeout=0)

    def __enter__(self) -> None:
        from filelock import Timeout

        try:
            self.lock.acquire()
        except Timeout:
            reason = "is being written by another process"
            raise InputError(self.folder, reason, "Wait until it is finished, or choose another name") from None

    def __exit__(self, *exc: object) -> None:
        self.lock.release()
        self.path.unlink(missing_ok=True)
