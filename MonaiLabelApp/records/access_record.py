"""The access record: which reader was shown which patient's scan. An append-only file for an auditor.

A line is a JSON object with `number`, `time` (UTC), `reader`, `address`, `action`, `cases`, `training`, `status` and
`previous`, the SHA-256 of the line before it, so that a changed or removed line is noticed. Beside the file, FILE.end
holds the number and SHA-256 of the last line: a removed end is noticed too, and the chain goes on in a new file after
the old one was moved away. Imports with the standard library and filelock alone.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from replica_detection.errors import InputError
from replica_detection_server.util.named_files import open_regular

NONE = ""
_TAIL = 1 << 16
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class End:
    """The end of a record: number and SHA-256 of its last line; 0 and NONE before the first."""

    number: int = 0
    digest: str = NONE


@dataclass(frozen=True)
class Checked:
    """Result of a check of a record; `faults` is empty for a whole one. `begins_late`: a fault is the beginning."""

    first: int
    end: End
    faults: tuple[str, ...]
    torn: tuple[int, ...]
    begins_late: bool = False


class AccessRecord:
    """A record open for appending. One server writes a record at a time.

    Raises:
        InputError: it cannot be opened or made, or another server writes it.
    """

    def __init__(self, path: Path):
        if not path.parent.is_dir():
            raise InputError(path.parent, "is no folder", "Make it, or give another file")
        self.path = path
        self._lock = threading.Lock()
        self._owner = filelock.FileLock(_beside(path, "lock"), mode=0o600)
        try:
            self._owner.acquire(timeout=0)
            self._end_file = self._opened_end()
            self._end = _parsed_end(os.read(self._end_file, 200))
            self._file = self._opened()
        except filelock.Timeout:
            raise InputError(path, "is written by another server", "Give each server a record of its own") from None
        except OSError as error:
            self._owner.release()
            raise InputError(path, f"cannot be written ({error.strerror or error})", "Give another file") from None

    @property
    def end(self) -> End:
        return self._end

    @property
    def is_kept(self) -> bool:
        """True if added lines stay: False once the file, or the note of its end, was removed. A file that was moved
        keeps its lines under its new name."""
        with self._lock:
            return self._has_names()

    def add(self, **said: Any) -> None:
        """Adds a line and returns once it is on the disk. Raises OSError where it is not, or where the file was removed
        and would be gone with this process; then nothing was added."""
        with self._lock:
            before = os.fstat(self._file).st_size
            number = self._end.number + 1
            time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            content = {"number": number, "time": time, **said, "previous": self._end.digest}
            line = json.dumps(content, ensure_ascii=True).encode()
            try:
                self._write(line + b"\n")
                os.fsync(self._file)
                # Last: a line is acknowledged while its file is there.
                if not self._has_names():
                    raise OSError(errno.ENOENT, "its file was removed; SIGHUP begins a new one")
            except OSError:
                # A part of a line would look like damage; it can be removed even on a full disk.
                os.ftruncate(self._file, before)
                raise
            self._end = End(number, hashlib.sha256(line).hexdigest())
            self._note_end()

    def reopen(self) -> None:
        """Goes on in the file that has the name now: another, where the old one was moved away. Raises OSError."""
        with self._lock:
            file = self._opened()
            os.close(self._file)
            self._file = file
            if not os.fstat(self._end_file).st_nlink:
                end_file = self._opened_end()
                os.close(self._end_file)
                self._end_file = end_file
                self._note_end()

    def close(self) -> None:
        with self._lock:
            os.close(self._file)
            os.close(self._end_file)
            self._owner.release()

    def _write(self, line: bytes) -> None:
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _has_names(self) -> bool:
        return all(os.fstat(file).st_nlink for file in (self._file, self._end_file))

    def _note_end(self) -> None:
        os.lseek(self._end_file, 0, os.SEEK_SET)
        os.write(self._end_file, f"{self._end.number:020d} {self._end.digest}\n".encode())

    def _opened_end(self) -> int:
        return open_regular(_beside(self.path, "end"), os.O_RDWR | os.O_CREAT | _NO_LINK)

    def _opened(self) -> int:
        """The file for adding, with a whole last line: what a crash tore stays and is no line of the chain."""
        file = open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINK)
        try:
            if os.name == "posix":
                os.fchmod(file, 0o600)
            if size := os.fstat(file).st_size:
                os.lseek(file, size - 1, os.SEEK_SET)
                if os.read(file, 1) != b"\n":
                    os.write(file, b"\n")
            found = last_line(self.path)
            # The note of the end is not synced with each line: after a crash the file may hold more lines.
            if found.number > self._end.number:
                self._end = found
        except BaseException:
            os.close(file)
            raise
        return file


def last_line(path: Path) -> End:
    """The last whole line of a record; End() where it has none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        room = _TAIL
        while True:
            file.seek(max(0, size - room))
            lines = file.read().splitlines()
            if size > room:
                lines = lines[1:]
            for line in reversed(lines):
                if (content := _content(line)) is not None:
                    return End(content["number"], hashlib.sha256(line).hexdigest())
            if size <= room:
                return End()
            room *= 8


def check(paths: Iterable[Path], *, continued: bool = False) -> Checked:
    """Follows the chain through the files of a record, the oldest first.

    Args:
        continued: the first line may follow on others, in files that are no longer there.

    Raises:
        InputError: a file cannot be read.
    """
    faults: list[str] = []
    torn: list[int] = []
    first, end, path, begins_late = 0, End(), Path(), False
    for path in paths:
        for n, line in _lines(path):
            content = _content(line)
            if content is None:
                torn.append(n)
                continue
            number = content["number"]
            if first == 0:
                first = number
                if (number != 1 or content["previous"] != NONE) and not continued:
                    begins_late = True
                    advice = "give the older files as well, or --continued"
                    faults.append(f"{path.name} begins with number {number}: {advice}")
            elif content["previous"] != end.digest or number != end.number + 1:
                what = f"{number - end.number - 1} are missing" if number > end.number + 1 else "it was changed"
                faults.append(f"{path.name} line {n}, number {number}, does not follow on number {end.number}: {what}")
            end = End(number, hashlib.sha256(line).hexdigest())
    noted = _noted_end(path)
    if noted is not None and noted.number > end.number:
        faults.append(f"the record ended with number {noted.number}, the file ends with number {end.number}")
    elif noted is not None and noted.number == end.number and noted.digest != end.digest:
        faults.append(f"the last line, number {end.number}, was changed")
    return Checked(first, end, tuple(faults), tuple(torn), begins_late)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for n, line in enumerate(file, 1):
                yield n, line.rstrip(b"\n")
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or "it is damaged"
        raise InputError(path, f"cannot be read ({why})", "Give the file of --access-record") from None


def _content(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
        whole = type(content["number"]) is int and content["number"] > 0 and isinstance(content["previous"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if whole else None


def _noted_end(path: Path) -> End | None:
    try:
        return _parsed_end(_beside(path, "end").read_bytes())
    except OSError:
        return None


def _parsed_end(text: bytes) -> End:
    try:
        number, digest = text.decode("ascii").split()
        return End(int(number), digest)
    except ValueError:
        return End()


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")
