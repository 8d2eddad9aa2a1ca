"""Files that are either whole or not there: written beside the target, then moved over it."""

from __future__ import annotations

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
    """Opens a temporary file in the folder of `path` and moves it to `path` when the block ends without an error.

    Args:
        path: the final file; its folder must exist. It gets the rights of any new file of this user.
        mode: "w" (UTF-8 text) or "wb".
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    # surrogateescape: file names that are no text in the locale's coding are written back as the bytes they were.
    how: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    # "x" lets the system apply the umask. To ask for the umask is to set it, for all threads, for a moment.
    made = temporary.open(mode.replace("w", "x"), **how)
    try:
        with made as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def is_temporary(name: str) -> bool:
    """True for the name of a file that a process is writing, or left unfinished."""
    return _TEMPORARY.fullmatch(name) is not None
