"""The server's folder belongs to one user of the machine and to one server, with everything in it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from replica_detection.errors import InputError, ReplicaDetectionError
from replica_detection_server.data_folder.sweeping import clean
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.util.process_guard import guarded

OTHERS = stat.S_IRWXG | stat.S_IRWXO
UMASK = 0o077


@contextmanager
def private_folder(given: Configuration) -> Iterator[list[str]]:
    """The data folder, readable by this user alone and used by one server at a time; yields warnings.

    Files and processes of an earlier server are removed. All files that this one writes are readable by this user
    alone.

    Raises:
        ReplicaDetectionError: another server uses the folder.
        InputError: it cannot be written to, or belongs to another user.
    """
    folder, umask = given.data, os.umask(UMASK)
    try:
        with _locked(folder):
            said = make_private(folder) + readable_index(given.index, folder)
            try:
                with guarded(folder / ".serve.run"):
                    clean(folder, given.studies)
                    yield said
            finally:
                os.chdir(folder)
                shutil.rmtree(folder / "tmp", ignore_errors=True)
    finally:
        os.umask(umask)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / ".serve.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ReplicaDetectionError(f"another server uses {folder}. Stop it, or give another --data.") from None
    except OSError as error:
        raise InputError(folder, f"cannot be written to ({error.strerror or error})", "Give another --data") from None
    try:
        yield
    finally:
        lock.release()


def make_private(folder: Path) -> list[str]:
    """Removes the rights of group and others from a folder and its content; links are not followed.

    Returns the failures, for a warning; none where the platform has no such rights.

    Raises:
        InputError: the folder belongs to another user.
    """
    if os.name != "posix":
        return []
    if folder.stat().st_uid != os.geteuid():
        raise InputError(
            folder,
            "belongs to another user, who could read and change everything in it",
            "Make the server's user its owner (chown -R), or give another --data",
        )
    if not _closed(folder):
        return [f"Other users of this machine can enter {folder}: its drive keeps no rights. Use a drive that does."]
    still = [path for path in _below(folder) if not _closed(path)]
    if not still:
        return []
    return [
        f"The rights of {len(still)} files in {folder} could not be changed, such as {still[0].relative_to(folder)}: "
        "make the server's user their owner (chown -R)."
    ]


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent) / name for name in (*folders, *files))


def _closed(path: Path) -> bool:
    """True if nobody else has rights to it, once they were taken."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return True
        if status.st_mode & OTHERS:
            path.chmod(stat.S_IMODE(status.st_mode) & stat.S_IRWXU)
        return not path.lstat().st_mode & OTHERS
    except FileNotFoundError:
        return True
    except OSError:
        return False


def readable_index(index: Path, data: Path) -> list[str]:
    """A warning if others can read an index that lies elsewhere: it holds the training scans."""
    if os.name != "posix" or index.is_relative_to(data) or not index.exists() or not index.stat().st_mode & OTHERS:
        return []
    return [f"Other users of this machine can enter {index}, which holds the training scans: chmod -R go-rwx it."]
