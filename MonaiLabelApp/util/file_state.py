"""States of files and folders, by which a change is noticed."""

from __future__ import annotations

import os
import time
from pathlib import Path

# MONAI Label writes its notes among the studies.
NOTES = "datastore_v2.json"

State = tuple[int, int]
Entry = tuple[str, int, bool, bool]


class FileStates:
    """States of files and folders when they were read, to tell if they have changed since."""

    def __init__(self) -> None:
        self._states: dict[Path, State] = {}
        self._entries: dict[Path, frozenset[Entry] | None] = {}
        self._unsettled: set[Path] = set()

    def note_file(self, path: Path, state: State | None = None) -> None:
        """Keeps the given state of a file from before it was read; without one, its state now."""
        self._states.setdefault(path, state or state_of_file(path))

    def note_folder(self, path: Path) -> None:
        """Keeps the entries of a folder, before they are read."""
        self._note(path, state_of_file(path))
        self._entries[path] = _entries(path)

    def unchanged(self) -> bool:
        return all(self._is_same(path, state) for path, state in list(self._states.items()))

    def _is_same(self, path: Path, before: State) -> bool:
        now = state_of_file(path)
        if path not in self._entries:
            return now == before
        if now == before and path not in self._unsettled:
            return True
        # The time of a folder changes with MONAI Label's own files in it, too.
        self._note(path, now)
        return _entries(path) == self._entries[path]

    def _note(self, path: Path, state: State) -> None:
        self._states[path] = state
        # Two changes within one tick of the file system's clock have the same time.
        (self._unsettled.add if time.time_ns() - state[1] < 10**9 else self._unsettled.discard)(path)


def state_of_file(path: Path) -> State:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _entries(folder: Path) -> frozenset[Entry] | None:
    """Names, places on the disk and kinds of what lies in a folder, hidden files and MONAI Label's aside."""
    try:
        with os.scandir(folder) as found:
            listed = [entry for entry in found if not entry.name.startswith((".", NOTES))]
            # A device may get the place of the file that it replaces.
            return frozenset((e.name, e.inode(), e.is_symlink(), e.is_file(follow_symlinks=False)) for e in listed)
    except OSError:
        return None
