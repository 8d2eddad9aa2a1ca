"""`datastore_v2.json`, where MONAI Label keeps the notes on images and labels: written whole or not at all, and set
aside where it is damaged."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel

from replica_detection.io.cohort import Case
from replica_detection.util.files import atomic_write
from replica_detection_server.collection.studies import is_series
from replica_detection_server.settings.case_ids import suffix_of

logger = logging.getLogger(__name__)

# Notes on a hundred thousand images take less.
MOST_BYTES = 256 << 20
# A series is sent as one file of this format.
VOLUME = ".nii.gz"


class DamagedError(Exception):
    """The file is no store of MONAI Label's; the message says why, without the file's words."""


class DatastoreFile:
    """The file, and what it was when this process read or wrote it last."""

    def __init__(self, path: Path):
        self.path = path
        self._known: tuple[int, int, int] | None = None

    @property
    def state(self) -> tuple[int, int, int] | None:
        """Changes whenever the file does; None without one."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def read_if_new(self) -> LocalDatastoreModel | None:
        """The content; None where there is no file, or only what this process knows already.

        Raises DamagedError for whatever is no store: cut short, of another kind, a folder, a pipe.
        """
        state = self.state
        if state is None or state == self._known:
            return None
        self._known = state
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError("is no regular file")
            if status.st_size > MOST_BYTES:
                raise DamagedError("is too large")
            return LocalDatastoreModel.model_validate_json(self.path.read_bytes())
        except OSError as error:
            raise DamagedError(f"cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise DamagedError("is empty" if status.st_size == 0 else "is damaged") from error

    def write(self, store: LocalDatastoreModel) -> None:
        """Raises OSError where it cannot be written; what was there before then stays."""
        text = json.dumps(store.model_dump(exclude={"base_path"}), indent=2, default=str)
        try:
            with atomic_write(self.path) as file:
                file.write(text)
        except OSError:
            self._known = None
            raise
        self._known = self.state

    def set_aside(self) -> str:
        """Gives the file another name beside it, and returns that name. Raises OSError where it cannot be renamed."""
        name = f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        free, number = self.path.with_name(name), 1
        while os.path.lexists(free):
            number += 1
            free = self.path.with_name(f"{name}-{number}")
        self.path.rename(free)
        self._known = None
        return free.name

    def sweep(self) -> None:
        """Removes what a killed process left half-written."""
        for path in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            with suppress(OSError):
                path.unlink()


def table_entry(case: Case, known: ImageLabelModel | None, labels: dict[str, dict[str, Path]]) -> ImageLabelModel:
    """A study in MONAI Label's table: what its files say, with the notes that are known."""
    name = f"{case.id}{VOLUME}" if is_series(case) else case.files[0].name
    made = ImageLabelModel(image=_noted(name, known.image if known is not None else None))
    for tag, files in labels.items():
        if case.id in files:
            made.labels[tag] = _noted(files[case.id].name, None if known is None else known.labels.get(tag))
    return made


def _noted(name: str, known: DataModel | None) -> DataModel:
    info = {"ts": int(time.time()), "name": name} if known is None else known.info
    return DataModel(ext=name[len(name) - len(suffix_of(name)) :], info=info)
