"""Uploaded images that are kept for an hour: MONAI Label's sessions, hardened."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

from replica_detection_server.incoming.names import SESSION

logger = logging.getLogger(__name__)


class UploadSessions(Sessions):
    """Sessions in a folder of their own that only this user can enter.

    Unlike MONAI Label's: an id is checked to be a UUID before it becomes part of a path; the image of a session must
    lie inside its folder; sessions of earlier processes are removed; folders that are no session are left alone.
    """

    def __init__(self, folder: Path, expiry_seconds: int):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        super().__init__(str(folder), expiry_seconds)

    def __bool__(self) -> bool:
        # MONAI Label does this only "if sessions", so not in a new process with an empty table.
        return True

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """The session, or None where there is none, its notes are damaged, or its time is over."""
        if not re.fullmatch(SESSION, session_id):
            return None
        try:
            info = super().get_session(session_id, update_ts=False, fetch_cache=fetch_cache)
            inside = info is not None and self._inside(session_id, Path(info.image))
        except (OSError, ValueError, AttributeError, TypeError):
            info, inside = None, False
        if info is None or not inside or _expired(info):
            return None
        if update_ts:
            info.last_access_ts = int(time.time())
            with suppress(OSError):  # a full disk must not hide the session
                self._write_meta_info(session_id, info)
        return info

    def remove_session(self, session_id: str) -> None:
        if re.fullmatch(SESSION, session_id):
            super().remove_session(session_id)

    def remove_expired(self) -> int:
        """Removes sessions whose time is over and those that cannot be read; returns how many."""
        removed = 0
        for folder in list(self._folders()):
            young = time.time() - folder.stat().st_mtime < 60
            # A session that is being made has no notes yet.
            if not young and self.get_session(folder.name, update_ts=False, fetch_cache=False) is None:
                self.pop(folder.name, None)
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def total_bytes(self) -> int:
        # Other sessions may end meanwhile: a file that is gone counts nothing.
        found = 0
        for session in self._folders():
            for folder, _, names in os.walk(session):
                for name in names:
                    with suppress(OSError):
                        found += (Path(folder) / name).lstat().st_size
        return found

    def _folders(self) -> Iterator[Path]:
        for path in Path(self.store_path).iterdir():
            if re.fullmatch(SESSION, path.name) and path.is_dir() and not path.is_symlink():
                yield path

    def _inside(self, session_id: str, image: Path) -> bool:
        folder = (Path(self.store_path) / session_id).resolve()
        return image.resolve() != folder and image.resolve().is_relative_to(folder)

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        from replica_detection.util.files import atomic_write

        with atomic_write(Path(self.store_path) / session_id / "meta.info") as file:
            file.write(json.dumps(vars(session_info)))


def _expired(info: SessionInfo) -> bool:
    return info.expiry > 0 and info.last_access_ts + info.expiry < time.time()
