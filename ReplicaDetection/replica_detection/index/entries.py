"""The rows of a training index and the files they were read from. Imports with numpy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.io.cohort import Case
from replica_detection.io.paths import is_image_name
from replica_detection.preparation.prepare import PreparedImage

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Entry:
    """A training case in the index: its row, and what its files (image, then mask) were when it was read.

    `mask` says who made the mask: "file", the name of a segmenter, or "" for none, also where the file lies there and
    no measure asks for it; `warnings` are the reader's; `affine` (row-major 4 x 4) takes a voxel of the grid to mm RAS+
    of the image file. `image_count` of the files are the image; 0 in an index of a version that did not say.
    """

    id: str
    patient: str | None
    row: int
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    modified_ns: tuple[int, ...]
    sha256: str
    mask: str = ""
    warnings: tuple[str, ...] = ()
    affine: tuple[float, ...] = ()
    image_count: int = 0

    @classmethod
    def of(cls, case: Case, row: int, prepared: PreparedImage) -> Entry:
        files = input_files(case)
        stats = [f.stat() for f in files]
        return cls(
            case.id,
            case.patient,
            row,
            tuple(str(f.resolve()) for f in files),
            tuple(s.st_size for s in stats),
            tuple(s.st_mtime_ns for s in stats),
            checksum(files),
            prepared.mask_origin,
            prepared.warnings,
            tuple(prepared.affine.ravel().tolist()),
            len(case.files),
        )

    @property
    def images(self) -> tuple[str, ...]:
        """The files of the image, without the mask's."""
        if self.image_count:
            return self.files[: self.image_count]
        if self.mask == "file":
            return self.files[:-1]
        # Only a DICOM series has several files; another one behind is a mask that was not used.
        if is_image_name(Path(self.files[0])):
            return self.files[:1]
        return tuple(file for file in self.files if not is_image_name(Path(file)))

    def unchanged(self, case: Case) -> bool:
        """Whether the case's files are still those that were read: same size and time, else same checksum."""
        files = input_files(case)
        try:
            stats = [f.stat() for f in files]
            same_size = tuple(s.st_size for s in stats) == self.sizes
            if same_size and tuple(s.st_mtime_ns for s in stats) == self.modified_ns:
                return True
            return same_size and checksum(files) == self.sha256
        except OSError:
            return False


def input_files(case: Case) -> tuple[Path, ...]:
    """The files of a case that decide what the index stores."""
    return case.files if case.mask is None else (*case.files, case.mask)


def checksum(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of the files, in order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            for part in iter(lambda: f.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()


def entry_from_json(data: dict[str, Any]) -> Entry:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Entry(**fields)


def patient_groups(patients: Sequence[str | None], ids: Sequence[str]) -> np.ndarray:
    """(N,) integers, equal for equal patients; None stands alone (it is never equal to another case)."""
    keys = [("patient", p) if p is not None else ("case", i) for p, i in zip(patients, ids, strict=True)]
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)
