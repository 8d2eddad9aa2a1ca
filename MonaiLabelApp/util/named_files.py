"""Files that the administrator names, opened while the server runs. A pipe or device of such a name would block the
server: opening it may wait for ever, and reading it may never end. Imports with the standard library alone.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.paths import require_readable

LARGEST = 4 << 20
# No waiting for the other end of a pipe, no terminal that takes over, no translation of line ends.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
    """As `os.open`, for a regular file alone. Raises OSError for anything else, and never waits."""
    with suppress(FileNotFoundError):  # `flags` decide about a missing file
        _require_regular(os.stat(path))  # noqa: PTH116 opening some devices already does something
    file = os.open(path, flags | _FLAGS, mode)
    try:
        _require_regular(os.fstat(file))  # the name may belong to another file now
    except BaseException:
        os.close(file)
        raise
    return file


def read_named_file(path: Path, advice: str) -> bytes:
    """The content of a regular file.

    Raises:
        InputError: it is a pipe or device, cannot be read, or is longer than LARGEST bytes.
    """
    require_readable(path)
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror or error})", advice) from None
    if len(content) > LARGEST:
        raise InputError(path, f"is longer than {LARGEST >> 20} MiB", advice)
    return content


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
