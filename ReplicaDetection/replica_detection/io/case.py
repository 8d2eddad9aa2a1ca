"""Case: one image of a cohort, in files or in memory. Problem: a file or image that was left out."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.image import Volume
from replica_detection.io.paths import companion


@dataclass(frozen=True)
class Case:
    """One image of a cohort.

    Args:
        id: the file name without its (double) extension, or the id that the CSV gives. A DICOM series has the name of
            its folder.
        files: one file, or all files of a DICOM series in the order of their names (the reader sorts by position).
            None at all for an image in memory.
        mask: the file that holds its mask, None without one.
        patient: whose image it is. None: the case is its own patient. From DICOM it is the start of the SHA-256 of
            PatientID, so that the number itself lands in no output; short numbers can still be found by trying all.
        volume: the image itself, where it is in memory and not in files.
        labels: its mask (the shape of the volume's array, whole numbers), where that is in memory.
    """

    id: str
    files: tuple[Path, ...]
    mask: Path | None = None
    patient: str | None = None
    volume: Volume | None = None
    labels: np.ndarray | None = field(default=None, compare=False)

    @property
    def image(self) -> Path:
        """The file, or the folder of a series that has several files; for an image in memory a name for messages."""
        if not self.files:
            return Path(f"<array {self.id}>")
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    @property
    def has_mask(self) -> bool:
        """True where a mask was given, as a file or in memory."""
        return self.mask is not None or self.labels is not None

    @property
    def input_files(self) -> tuple[Path, ...]:
        """All files that the case is read from: those of the image, what lies beside these, then that of the mask."""
        mask = () if self.mask is None else (self.mask,)
        beside = tuple(other for file in (*self.files, *mask) if (other := companion(file)) is not None)
        return (*self.files, *beside, *mask)

    def checksum(self) -> str:
        """SHA-256 over the bytes of its files, in order; in memory over dtype, shape and bytes of image, affine, mask.

        Raises OSError where a file cannot be read.
        """
        if self.volume is None:
            return checksum(self.input_files)
        digest = hashlib.sha256()
        for array in (self.volume.array, self.volume.affine, self.labels):
            if array is not None:
                digest.update(f"{array.dtype.str} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Problem:
    """A file that was left out, and why; `message` says what was found and what to do."""

    path: str
    message: str

    @classmethod
    def of(cls, error: InputError) -> Problem:
        return cls(error.path, f"{error.found}. {error.advice}.")


def folders_of(cases: Iterable[Case]) -> list[Path]:
    """The folders in which the files of the cases lie, each once, in order; none for images in memory."""
    return list(dict.fromkeys(f.parent for case in cases for f in case.input_files))


def checksum(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of the files, in order. Raises OSError where one cannot be read."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            for part in iter(lambda: f.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()


def id_fault(name: str) -> str:
    """The reason why `name` cannot name rows and files of a result; empty when it can."""
    if not name.strip() or name in (".", ".."):
        return "is empty"
    if re.search(r"[/\\]", name):
        return "holds a path separator"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        return "holds a control character or is not valid Unicode"
    return ""
