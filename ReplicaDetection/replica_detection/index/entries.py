"""The header of a training index (`index.json`): its cases, and how it was made. Imports with numpy alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import IndexFormatError
from replica_detection.io.case import Case, Problem
from replica_detection.io.paths import is_image_name
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.preparation.profiles import Preparation
from replica_detection.util.versions import package_versions

SCHEMA_VERSION = 3
HEADER_FILE = "index.json"


@dataclass(frozen=True)
class Entry:
    """A training case in the index: its row, and what its files (image, then mask) were when it was read.

    `mask` says who made the mask: "file", the name of a segmenter, or "" for none, also where the file lies there and
    no measure asks for it; `warnings` are the reader's; `affine` (row-major 4 x 4) takes a voxel of the grid to mm RAS+
    of the image file. `image_count` of the files are the image; 0 in an index of a version that did not say. An image
    in memory has no files, and its mask, if it was given, is from an "array"; `sha256` is `Case.checksum`.
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
        files = case.input_files
        stats = [f.stat() for f in files]
        return cls(
            case.id,
            case.patient,
            row,
            tuple(str(f.resolve()) for f in files),
            tuple(s.st_size for s in stats),
            tuple(s.st_mtime_ns for s in stats),
            case.checksum(),
            prepared.mask_origin,
            prepared.warnings,
            tuple(prepared.affine.ravel().tolist()),
            len(case.files),
        )

    @property
    def in_memory(self) -> bool:
        """True for an image that was given in memory: there is no file to read it from again."""
        return not self.files

    @property
    def images(self) -> tuple[str, ...]:
        """The files of the image, without the mask's."""
        if self.in_memory:
            return ()
        if self.image_count:
            return self.files[: self.image_count]
        if self.mask == "file":
            return self.files[:-1]
        # Only a DICOM series has several files; another one behind is a mask that was not used.
        if is_image_name(Path(self.files[0])):
            return self.files[:1]
        return tuple(file for file in self.files if not is_image_name(Path(file)))

    def unchanged(self, case: Case) -> bool:
        """True while the case is the one that was read: files of the same size and time, else the same checksum."""
        files = case.input_files
        try:
            stats = [f.stat() for f in files]
            same_size = tuple(s.st_size for s in stats) == self.sizes
            if files and same_size and tuple(s.st_mtime_ns for s in stats) == self.modified_ns:
                return True
            return same_size and case.checksum() == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class IndexHeader:
    """The content of `index.json`.

    Args:
        preparation: grid, spacing and intensity mapping of the stored images.
        measures: names of the measures that the index was built for.
        requested: the names that the user gave, None where they gave none.
        segmenter: settings of what made the missing masks; None without one.
        embedders: settings of the embedders of `images` and of `slices`.
        source: where the training cohort was read from.
        entries: the cases, in the order of the cohort.
        problems: training files that were left out.
        versions: of the packages that built it.
    """

    preparation: Preparation
    measures: tuple[str, ...]
    requested: tuple[str, ...] | None
    segmenter: dict[str, Any] | None
    embedders: dict[str, Any]
    source: str
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()
    versions: dict[str, str] = field(default_factory=package_versions)

    def to_json(self) -> dict[str, Any]:
        """The header as `index.json` holds it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "preparation": self.preparation.to_json(),
            "measures": list(self.measures),
            "requested": None if self.requested is None else list(self.requested),
            "segmenter": self.segmenter,
            "encoders": self.embedders,
            "source": self.source,
            "entries": [asdict(e) for e in self.entries],
            "problems": [asdict(p) for p in dict.fromkeys(self.problems)],
            "versions": self.versions,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> IndexHeader:
        """The header that `to_json` gave. Raises KeyError, TypeError or ValueError for another content."""
        return cls(
            Preparation.from_json(data["preparation"]),
            tuple(data["measures"]),
            None if data["requested"] is None else tuple(data["requested"]),
            data["segmenter"],
            data["encoders"],
            data["source"],
            tuple(entry_from_json(e) for e in data["entries"]),
            tuple(Problem(**p) for p in data["problems"]),
            data["versions"],
        )


def read_header(folder: Path) -> IndexHeader:
    """Reads the header of an index folder; the stored features are not looked at.

    Raises:
        IndexFormatError: there is no finished index, it is damaged, or it has another schema version.
    """
    path = folder / HEADER_FILE
    if not path.is_file():
        unfinished = folder.with_name(folder.name + ".partial").is_dir()
        found = "is no finished index" + (" (an interrupted build lies beside it)" if unfinished else "")
        raise IndexFormatError(folder, found, "Run `replica-detection index` with this folder as output")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexFormatError(path, f"cannot be read ({error})", "Build the index again") from error
    if version != SCHEMA_VERSION:
        found = f"has schema version {version}, this program reads {SCHEMA_VERSION}"
        raise IndexFormatError(path, found, "Build the index again with this version")
    try:
        return IndexHeader.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IndexFormatError(folder, f"is damaged ({error})", "Build the index again") from error


def entry_from_json(data: dict[str, Any]) -> Entry:
    """The entry that `dataclasses.asdict` and JSON made of one."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Entry(**fields)


def patient_groups(patients: Sequence[str | None], ids: Sequence[str]) -> np.ndarray:
    """(N,) integers, equal for equal patients; None stands alone (it is never equal to another case)."""
    keys = [("patient", p) if p is not None else ("case", i) for p, i in zip(patients, ids, strict=True)]
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)
