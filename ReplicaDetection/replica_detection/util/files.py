"""Atomic writes: a file is written beside the target, then moved over it, so that it is whole or not there."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# `.<name>.<random>.tmp`, with an extension after it where the format is known by it.
_TEMPORARY = re.compile(r"\.(?:.+\.)?[0-9a-f]{16}\.tmp(?:\.[a-z.]+)?", re.DOTALL)


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file in the folder of `path`, and move it to `path` when the block ends without an error.

    After an error the temporary file is deleted and `path` is as before.

    Args:
        path: the final file; its folder must exist. It gets the permissions of any new file of this user.
        mode: "w" (UTF-8 text) or "wb".

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    # surrogateescape: file names that are not valid text in the locale's encoding keep their bytes.
    options: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    # "x" creates the file with O_CREAT | O_EXCL, and the kernel applies the umask. A process can only read its umask by
    # setting it, and for that moment other threads would create files that everyone can write.
    file = temporary.open(mode.replace("w", "x"), **options)
    try:
        with file as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_advice(error: BaseException, otherwise: str = "Check that its folder exists and the disk has room") -> str:
    """Advice on a file that cannot be written, by the error of the system; `otherwise` where that is none of these."""
    known = {
        errno.ENAMETOOLONG: "Give it a shorter name: a name with its extension may have 255 bytes",
        errno.ENOSPC: "Make room on the disk",
        errno.EACCES: "Give yourself the right to write there, or choose another folder",
        errno.EROFS: "Choose a folder on a disk that can be written",
    }
    return known.get(error.errno or 0, otherwise) if isinstance(error, OSError) else otherwise


def is_temporary(name: str) -> bool:
    """True for the name of a temporary file, which a process is writing or was killed while writing."""
    return _TEMPORARY.fullmatch(name) is not None
