"""Archives of image files, unpacked so that no member lands outside the folder or fills the disk."""

from __future__ import annotations

import errno
import gzip
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from replica_detection.errors import InputError

MAX_MEMBERS = 10_000
CHUNK = 1 << 20
# A tar header that claims a name of gigabytes would be read into memory as a whole.
MAX_READ = 4 << 20
MAX_DIRECTORY = 16 << 20
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, ValueError, OverflowError, IndexError, RuntimeError),
)
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x07"
_ADVICE = "Pack the image files alone, with plain names, as .zip, .tar or .tar.gz"


def unpack(archive: Path, folder: Path, max_bytes: int) -> int:
    """Unpacks a .zip, .tar or .tar.gz into an existing empty folder and returns the number of files.

    Args:
        max_bytes: limit of all members together, counted as they are written, not taken from their headers.

    Raises:
        InputError: it is none of these, is damaged or encrypted, or holds a member that is a link or device, has a
            path outside the folder, comes twice, or goes beyond the limits. What was written by then is in `folder`.
    """
    written = files = 0
    try:
        for name, source in _members(archive, max_bytes):
            target = folder.joinpath(*_parts(archive, name))
            files += 1
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("xb") as file:
                while chunk := source.read(CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise _too_large(archive, max_bytes)
                    file.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(archive.name, "holds a name twice", _ADVICE) from error
    except OSError as error:
        # A damaged header points beyond the file; a full disk is another error.
        if error.errno not in (None, errno.EINVAL, errno.ENAMETOOLONG):
            raise
        raise InputError(archive.name, "is damaged", _ADVICE) from error
    except _DAMAGED as error:
        raise InputError(archive.name, "is no archive, or damaged", _ADVICE) from error
    if not files:
        raise InputError(archive.name, "holds no file", _ADVICE)
    return files


def _members(archive: Path, max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    with archive.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        yield from _zip_members(archive)
    elif start[:2] == b"\x1f\x8b":
        with gzip.open(archive, "rb") as unzipped:
            # Twice the limit: headers and padding of very small members count too.
            yield from _tar_members(archive, _Guarded(archive, unzipped, 2 * max_bytes + MAX_READ))
    else:
        with archive.open("rb") as file:
            yield from _tar_members(archive, _Guarded(archive, file, 2 * max_bytes + MAX_READ))


def _tar_members(archive: Path, file: Any) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for number, member in enumerate(tar):
            # tarfile keeps every header, and nothing reads them again.
            tar.members = []  # type: ignore[attr-defined]
            _require_few(archive, number + 1)
            if member.isdir():
                _parts(archive, member.name)
                continue
            source = tar.extractfile(member) if member.isreg() else None
            if source is None:
                raise InputError(archive.name, f"member '{_shown(member.name)}' is a link or device", _ADVICE)
            yield member.name, source


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    _check_directory(archive)
    with zipfile.ZipFile(archive) as zipped:
        _require_few(archive, len(zipped.infolist()))
        for member in zipped.infolist():
            kind = member.external_attr >> 28
            if member.is_dir():
                _parts(archive, member.filename)
                continue
            if kind not in (0, 0o10):
                raise InputError(archive.name, f"member '{_shown(member.filename)}' is a link or device", _ADVICE)
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    archive.name,
                    f"member '{_shown(member.filename)}' is encrypted or of an unusual compression",
                    _ADVICE,
                )
            yield member.filename, zipped.open(member)


def _check_directory(archive: Path) -> None:
    """Refuses a central directory that would take much memory, before zipfile reads it as a whole."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - 65_557 - 20))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise InputError(archive.name, "is no complete zip file", _ADVICE)
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if _END_64 in tail[max(0, at - 20) : at] or length > MAX_DIRECTORY:
        raise InputError(archive.name, "holds more members than the server takes", _ADVICE)


def _require_few(archive: Path, members: int) -> None:
    """Folders count too: each takes as much of the server as an empty file."""
    if members > MAX_MEMBERS:
        raise InputError(archive.name, f"holds more than {MAX_MEMBERS} files", _ADVICE)


def _shown(name: str) -> str:
    """The name of a member for messages: characters that cannot be printed become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:200])


def _parts(archive: Path, name: str) -> list[str]:
    """The folders and name of a member.

    Raises:
        InputError: it is absolute, climbs, names a drive or stream of Windows, or holds a control character.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    outside = name.startswith(("/", "\\")) or ".." in parts or ":" in name
    if (
        outside
        or not parts
        or re.search("[\x00-\x1f\x7f\ud800-\udfff]", name)
        or any(len(part) > 200 for part in parts)
    ):
        raise InputError(archive.name, f"member '{_shown(name)}' has a path that cannot be used", _ADVICE)
    return parts


def _too_large(archive: Path, max_bytes: int) -> InputError:
    return InputError(archive.name, f"unpacks to more than {max_bytes / 2**20:.0f} MiB", "Send fewer files at a time")


class _Guarded(io.RawIOBase):
    """A file for tarfile that gives at most `limit` bytes in all and MAX_READ at once."""

    def __init__(self, archive: Path, file: Any, limit: int):
        self._archive, self._file, self._limit = archive, file, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset > self._limit:
            raise _too_large(self._archive, self._limit)
        return int(self._file.seek(offset))

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ or self.tell() + size > self._limit:
            raise _too_large(self._archive, self._limit)
        return bytes(self._file.read(size))
