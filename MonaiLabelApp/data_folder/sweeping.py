"""Removal of files that requests, jobs and killed servers leave behind in the server's folder."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from replica_detection.util.files import is_temporary

# Age in seconds of files that only a failed request can have left: every request takes less.
LEFTOVER_SECONDS = 3600
# Zarr writes `<name>.<random>.partial` first.
_OF_ZARR = re.compile(r".+\.[0-9a-f]{32}\.partial")
TEMPORARY, UPLOADS, WORKER = "tmp", "uploads", "worker-"


def clean(data: Path, studies: Path) -> None:
    """Removes the files of an earlier server; call it while no server and no job of one uses the folder."""
    for name in (TEMPORARY, UPLOADS):
        _remove(_entries(data / name), 0)
    shutil.rmtree(data / "scored.partial", ignore_errors=True)
    for folder in (data / "scored", data / "training.rdindex"):
        old = folder.with_name(folder.name + ".old")
        # The server was killed between the two moves that replace an old result.
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _remove(_unfinished(data), 0)
    # Others may write into this folder too.
    among = (path for path in _entries(studies) if is_temporary(path.name))
    _remove(chain(among, _unfinished(studies / "labels")), LEFTOVER_SECONDS)


def sweep(data: Path, *, jobs_run: bool) -> None:
    """Removes files older than any request. Temporary files may be as old as a job: they stay while one runs."""
    _remove(_entries(data / UPLOADS), LEFTOVER_SECONDS)
    if not jobs_run:
        for path in _entries(data / TEMPORARY):
            # A worker's own folder stays, however old; only its content is removed.
            _remove(_entries(path) if path.name.startswith(WORKER) else iter([path]), LEFTOVER_SECONDS)


def _remove(paths: Iterator[Path], older_than: float) -> None:
    for path in paths:
        with suppress(OSError):
            # The server's working folder is one of them.
            if path == Path.cwd() or time.time() - path.lstat().st_mtime < older_than:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _entries(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from folder.iterdir()


def _unfinished(folder: Path) -> Iterator[Path]:
    """Files that were being written, the server's own and those of Zarr."""
    for parent, _, files in os.walk(folder):
        yield from (Path(parent) / name for name in files if is_temporary(name) or _OF_ZARR.fullmatch(name))
