"""The header of a training index (`index.json`): its cases, and how it was made. Imports with numpy alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import IndexFormatError
from replica_detection.io.case import Case, Problem, checksum
from replica_detection.io.paths import is_image_name
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.preparation.profiles import Preparation
from replica_detection.results.finding import index_places
from replica_detection.results.places import MOVED
from replica_detection.results.result import DetectionResult
from replica_detection.util.places import candidates, relative_path
from replica_detection.util.versions import package_versions

SCHEMA_VERSION = 4
# Version 3 did not store paths from the folder of the index.
READABLE = (3, SCHEMA_VERSION)
HEADER_FILE = "index.json"


@dataclass(frozen=True)
class Entry:
    """A training case in the index: its row, and what its files (image, then mask) were when it was read.

    `mask` says who made the mask: "file", the name of a segmenter, or "" for none, also where the file lies there and
    no measure asks for it; `warnings` are the reader's; `affine` (row-major 4 x 4) takes a voxel of the grid to mm RAS+
    of the image file. `image_count` of the files are the image; 0 in an index of a version that did not say. An image
    in memory has no files, and its mask, if it was given, is from an "array"; `sha256` is `Case.checksum`. `voxels` is
    `PreparedImage.voxels`; "" in an index of a version that did not store it.

    `files` are absolute, `relative` the same files from the folder of the index ("" on another drive); the index lies
    in `folder` now, "" for an entry that was not read from one. `located` and `mask_file` are the files as they lie
    now, also where the index moved together with them.
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
    relative: tuple[str, ...] = ()
    folder: str = field(default="", compare=False)
    voxels: str = ""

    @classmethod
    def of(cls, case: Case, row: int, prepared: PreparedImage, folder: Path) -> Entry:
        """The entry of a case that was read and prepared, for an index that is to lie beside or in `folder`."""
        files = case.input_files
        stats = [f.stat() for f in files]
        resolved = tuple(str(f.resolve()) for f in files)
        return cls(
            case.id,
            case.patient,
            row,
            resolved,
            tuple(s.st_size for s in stats),
            tuple(s.st_mtime_ns for s in stats),
            case.checksum(),
            prepared.mask_origin,
            prepared.warnings,
            tuple(prepared.affine.ravel().tolist()),
            len(case.files),
            tuple(relative_path(f, folder) for f in resolved),
            voxels=prepared.voxels,
        )

    @property
    def in_memory(self) -> bool:
        """True for an image that was given in memory: there is no file to read it from again."""
        return not self.files

    @property
    def located(self) -> tuple[Path, ...]:
        """The files as they lie now: where they were, or beside the index if it moved together with them.

        Where other files took the old place, those are chosen that are the ones that were read. The old paths where
        nothing is found.
        """
        stated = tuple(Path(f) for f in self.files)
        if not self.relative or not self.folder or self._same(stated, by_content=False):
            return stated
        pairs = zip(stated, self.relative, strict=True)
        places = [candidates(file, beside, Path(self.folder)) or [file] for file, beside in pairs]
        first, last = tuple(p[0] for p in places), tuple(p[-1] for p in places)
        return last if first != last and self._same(last) and not self._same(first) else first

    @property
    def images(self) -> tuple[Path, ...]:
        """The files of the image as they lie now, without the mask's."""
        located = self.located
        if self.in_memory:
            return ()
        if self.image_count:
            return located[: self.image_count]
        if self.mask == "file":
            return located[:-1]
        # Only a DICOM series has several files; another one behind is a mask that was not used.
        if is_image_name(located[0]):
            return located[:1]
        return tuple(file for file in located if not is_image_name(file))

    @property
    def mask_file(self) -> Path | None:
        """The file of the mask as it lies now; None without one, and for a mask that a segmenter made."""
        return self.located[-1] if self.mask == "file" else None

    def to_json(self) -> dict[str, Any]:
        """The entry as `index.json` and the journal of a build hold it."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    def unchanged(self, case: Case) -> bool:
        """True while the case is the one that was read: files of the same size and time, else the same checksum."""
        if case.files:
            return self._same(case.input_files)
        return not self.files and case.checksum() == self.sha256

    def _same(self, files: Sequence[Path], *, by_content: bool = True) -> bool:
        """True for the files that were read, by size and time; where only the time differs, by content if asked."""
        try:
            stats = [f.stat() for f in files]
            if tuple(s.st_size for s in stats) != self.sizes:
                return False
            same_time = tuple(s.st_mtime_ns for s in stats) == self.modified_ns
            return same_time or (by_content and checksum(files) == self.sha256)
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
            "entries": [e.to_json() for e in self.entries],
            "problems": [asdict(p) for p in dict.fromkeys(self.problems)],
            "versions": self.versions,
        }

    @property
    def content_id(self) -> str:
        """SHA-256 over preparation, measures and the checksums of all cases: changes when a distance could."""
        parts: list[Any] = [
            self.preparation.to_json(),
            self.measures,
            [(e.id, e.patient, e.sha256) for e in self.entries],
        ]
        parts += [self.segmenter, self.embedders]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path) -> IndexHeader:
        """The header that `to_json` gave, of the index in `folder`.

        Raises KeyError, TypeError or ValueError for another content.
        """
        return cls(
            Preparation.from_json(data["preparation"]),
            tuple(data["measures"]),
            None if data["requested"] is None else tuple(data["requested"]),
            data["segmenter"],
            data["encoders"],
            data["source"],
            tuple(entry_from_json(e, folder) for e in data["entries"]),
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
    if version not in READABLE:
        found = f"has schema version {version}, this program reads {' and '.join(map(str, READABLE))}"
        raise IndexFormatError(path, found, "Build the index again with this version")
    try:
        return IndexHeader.from_json(data, folder.absolute())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IndexFormatError(folder, f"is damaged ({error})", "Build the index again") from error


def header_of_result(result: DetectionResult) -> tuple[Path, IndexHeader]:
    """The folder and the header of the index that a run used: where it was, else where it moved with the result.

    Where another index took its place, the one with the same images is chosen, and after it one that grew since.

    Raises:
        InputError: there is none. IndexFormatError: what lies there is no index, or one of other images.
    """
    index_id = "" if result.places is None else result.places.index_id
    places, best, failure = index_places(result), None, None
    for place in places:
        try:
            header = read_header(place)
        except IndexFormatError as error:
            failure = failure or error
            continue
        if index_id and header.content_id == index_id:
            return place, header
        if best is None and {e.id for e in header.entries} >= set(result.neighbors.training_ids):
            best = place, header
    if best is not None:
        return best
    found = "holds other training images than those of this result"
    raise failure or IndexFormatError(places[0], found, MOVED)


def entry_from_json(data: dict[str, Any], folder: Path) -> Entry:
    """The entry that `Entry.to_json` and JSON made of one, in the index in `folder`."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Entry(**fields, folder=str(folder))


def patient_groups(patients: Sequence[str | None], ids: Sequence[str]) -> np.ndarray:
    """(N,) integers, equal for equal patients; None stands alone (it is never equal to another case)."""
    keys = [("patient", p) if p is not None else ("case", i) for p, i in zip(patients, ids, strict=True)]
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)
