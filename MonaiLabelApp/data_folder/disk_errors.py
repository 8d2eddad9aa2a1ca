"""A disk that is full or cannot be written: a fault of the server, never of the request."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator

from replica_detection_server.errors import DiskFullError, RefusedError, UnavailableError

FULL = "The server's disk is full: nothing of this request was kept. Tell its administrator, and send it again later."
UNWRITABLE = "The server cannot write to its disk. Tell its administrator, and send the request again later."
BUSY = "The server has too many files open. Send the request again later."
# Bytes that can be left on a full disk: less than one block of a file system.
NOTHING_FREE = 64 * 1024
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_UNWRITABLE = {errno.EROFS, errno.EIO}
_BUSY = {errno.EMFILE, errno.ENFILE}


def storage_refusal(error: BaseException) -> RefusedError | None:
    """The refusal where the cause of an error, however deep, is the server's storage; else None.

    DiskFullError for a disk or quota that is full, UnavailableError for one that cannot be written and for too many
    open files.
    """
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in _FULL | _UNWRITABLE | _BUSY:
            return _of_errno(link.errno)
        if isinstance(link, sqlite3.Error):
            # The lowest byte is the kind, the others say more of it.
            kind = (getattr(link, "sqlite_errorcode", 0) or 0) & 0xFF
            if kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and nothing_is_free()):
                return DiskFullError(FULL)
            if kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                return UnavailableError(UNWRITABLE)
        # Libraries in C++ do not give the reason for a failed write.
        if isinstance(link, RuntimeError) and nothing_is_free():
            return DiskFullError(FULL)
    return None


def nothing_is_free() -> bool:
    """True if the disk of temporary files, which is that of the data folder, is full."""
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free < NOTHING_FREE
    except OSError:
        return False


def _of_errno(number: int | None) -> RefusedError:
    if number in _FULL:
        return DiskFullError(FULL)
    return UnavailableError(BUSY if number in _BUSY else UNWRITABLE)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
