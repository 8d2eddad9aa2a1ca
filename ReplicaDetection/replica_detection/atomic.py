"""Files that are either whole or not there: written beside the target, then moved over it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file in the folder of `path` and moves it to `path` when the block ends without an error.

    Args:
        path: the final file; its folder must exist.
        mode: "w" (UTF-8 text) or "wb".
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        # surrogateescape: file names that are no text in the locale's coding are written back as the bytes they were.
        how: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        with os.fdopen(handle, mode, **how) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        # mkstemp makes 0600; a result is shared like any other file of the user.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
