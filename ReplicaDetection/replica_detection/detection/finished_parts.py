"""Parts of a comparison that are finished, kept on disk until the whole of it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica_detection.detection.distances import Distances
from replica_detection.detection.distances_file import read_distances, write_distances
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import Measure
from replica_detection.util.files import is_temporary
from replica_detection.version import __version__

_KEY, _PART = re.compile("[0-9a-f]{24}"), re.compile("[0-9]{6}[.]npz")


@dataclass(frozen=True)
class FinishedParts:
    """A folder with one file for each finished part. Where it cannot be written to, nothing is kept.

    Args:
        folder: holds a folder for each key; other things in it stay.
        key: what the parts depend on (`key_of`); parts of another key are not used.
    """

    folder: Path
    key: str

    def read(self, parts: int) -> dict[int, Distances]:
        """The finished parts of a comparison of so many parts, by their number."""
        found = {n: read_distances(self._path(n)) for n in range(parts) if self._path(n).is_file()}
        return {n: distances for n, distances in found.items() if distances is not None}

    def keep(self, number: int, distances: Distances) -> None:
        """Keeps a part, except where a file of it could not be read: the next run reads it anew."""
        if distances.problems:
            return
        with suppress(OSError):  # a full or read-only disk costs the resumption and not the run
            write_distances(self._path(number), distances)

    def clear(self) -> None:
        """Removes the parts of this comparison, once it is kept otherwise."""
        _remove(self.folder / self.key)

    def _path(self, number: int) -> Path:
        return self.folder / self.key / f"{number:06d}.npz"


def forget(folder: Path) -> None:
    """Removes the parts of all comparisons in a folder, and the folder if nothing else is in it."""
    for inside in folder.iterdir() if folder.is_dir() else ():
        if _KEY.fullmatch(inside.name):
            _remove(inside)
    with suppress(OSError):
        folder.rmdir()


def _remove(of_key: Path) -> None:
    """Removes the parts of one key; what else lies there stays."""
    for part in of_key.iterdir() if of_key.is_dir() else ():
        if _PART.fullmatch(part.name) or is_temporary(part.name):
            part.unlink(missing_ok=True)
    for folder in (of_key, of_key.parent):
        with suppress(OSError):  # not empty
            folder.rmdir()


def key_of(index: TrainingIndex, measures: Sequence[Measure], queries: Sequence[object], *others: object) -> str:
    """A name that is equal for the same comparison of unchanged cases.

    Args:
        queries: what tells the query cases apart, as `state_of` does.
        others: further options, numbers or texts.
    """
    definitions = [(m.name, m.definition, m.device.partition(":")[0]) for m in measures]
    content = json.dumps([__version__, index.content_id, definitions, list(queries), list(others)])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def state_of(cohort: Cohort) -> list[list[Any]]:
    """For each case its id, its patient, and path, size and time of its files; of an image in memory a checksum."""
    states: list[list[Any]] = []
    for case in cohort.cases:
        files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in case.input_files if f.exists()]
        states.append([case.id, case.patient, files, "" if case.files else case.checksum()])
    return states
