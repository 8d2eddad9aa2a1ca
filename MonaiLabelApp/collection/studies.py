"""The files of the studies' folder that are studies, and their ids: one rule for all lists.

A study is an image file that lies in the folder itself, or a DICOM series anywhere below it. Its id is that of the
core: the name without its extension, a series has the name of its folder. A link is followed if it leads to a place
inside the folder, or inside one that the administrator names. Devices, pipes and empty files are never opened. All
other files are left out, with a reason.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.errors import InputError
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.io.paths import DICOM_SUFFIXES, IMAGE_SUFFIXES, composed, is_dicom_name, is_image_name
from replica_detection_server.settings.case_ids import TRAINING, suffix_of
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.util.file_state import NOTES, FileStates, State, state_of_file

if TYPE_CHECKING:
    from replica_detection.io.dicom import Header

logger = logging.getLogger(__name__)


# Where MONAI Label keeps labels, beside the images.
LABELS = "labels"
# Short enough for a file name on every system, with an extension and the mark of a temporary file.
LONGEST_ID = 230
SHOWN = 3

LINK = "link that leads out of the folder"
NOWHERE = "link to nothing"
NO_FILE = "no regular file (a pipe, device or socket)"
EMPTY = "empty file"
FORBIDDEN = "file or folder that cannot be opened (no permission)"
NO_TEXT = "name that is not valid Unicode or holds a control character"
SPACE = "name that begins or ends with a space"
LONG = "name that is too long"
RESERVED = f"name that begins with {TRAINING}"
BELOW = "image in a subfolder, where only DICOM series are taken"
OTHER = "image in a format that the server does not serve (convert it to .nii.gz)"
IN_TWO = "header whose voxels lie in another file"
TAKEN = "id that another study has"
AGAIN = "folder that is in the list already"
NO_VOLUME = "DICOM object that is no volume"
UNREADABLE = "file that cannot be read as an image"
NO_IMAGE = "file that is no image"
MASK = "mask that cannot be used"


@dataclass(frozen=True)
class LeftOut:
    """A file or folder, by its name below the studies' folder; `reason` is one of the words above."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The studies of a folder, and the files that were left out."""

    cohort: Cohort
    left_out: tuple[LeftOut, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self.cohort.cases}

    @cached_property
    def reasons(self) -> dict[str, int]:
        """Number of files left out for each reason, the most frequent first; no names."""
        return dict(Counter(item.reason for item in self.left_out).most_common())

    def words(self) -> list[str]:
        """Sentences for the administrator: the number of studies and of files left out, with a few names for each
        reason."""
        series = sum(is_series(case) for case in self.cohort.cases)
        said = [f"{len(self.cohort)} studies" + (f", {series} of them DICOM series" if series else "") + "."]
        for reason, count in self.reasons.items():
            names = [item.name for item in self.left_out if item.reason == reason][:SHOWN]
            more = f" and {count - SHOWN} more" if count > SHOWN else ""
            help_with_it = "; --allow-links-to DIR takes links into DIR" if reason == LINK else ""
            said.append(f"Left out, {reason}: {', '.join(map(printable, names))}{more}{help_with_it}.")
        alike = Counter(id.casefold() for id in self.cohort.ids)
        if same := [id for id in self.cohort.ids if alike[id.casefold()] > 1]:
            said.append(
                f"Ids that differ in upper and lower case alone: {', '.join(map(printable, same[: 2 * SHOWN]))}. On "
                "Windows and macOS the downloaded file of one takes the place of the other's."
            )
        return said


class Studies:
    """The studies' folder. May be shared by threads.

    Args:
        folder: of the synthetic images.
        masks: folder of their masks.
        links: folders that links may lead into, beside `folder`.
        without: folders below `folder` that are not looked into, such as the server's own.
    """

    def __init__(
        self, folder: Path, masks: Path | None = None, links: Sequence[Path] = (), without: Sequence[Path] = ()
    ):
        self.folder, self._masks, self._links = folder, masks, tuple(links)
        self._private = tuple(own for own in without if not _same(own, folder) and own.is_relative_to(folder))
        # Binary images may be their own masks.
        self._without = self._private + ((masks,) if masks is not None and not _same(masks, folder) else ())
        self._lock = threading.RLock()
        self._headers = _Headers()
        self._listing: Listing | None = None
        self._seen = FileStates()
        # Size and time of each file before it was looked into.
        self._before: dict[Path, State] = {}

    @classmethod
    def of(cls, configuration: Configuration) -> Studies:
        own = (configuration.data, configuration.index)
        return cls(configuration.studies, configuration.masks, configuration.link_folders, own)

    def now(self) -> Listing:
        """The studies as they are now; the same object for as long as nothing changed. May be empty."""
        with self._lock:
            if self._listing is None or not self._seen.unchanged():
                before = self._listing
                self._listing = self._found()
                if self._listing.reasons != ({} if before is None else before.reasons):
                    counts = ", ".join(f"{count} x {reason}" for reason, count in self._listing.reasons.items())
                    logger.warning("%d studies; left out: %s", len(self._listing.cohort), counts or "nothing any more")
            return self._listing

    def case(self, study_id: str) -> Case | None:
        """A study by its id, its files looked at again: none was replaced by a link or a device since it was listed."""
        case = self.now().by_id.get(composed(study_id))
        if case is None or not self.all_servable(case.files):
            return None
        return case if case.mask is None or self._is_mask(case.mask) else replace(case, mask=None)

    def all_servable(self, files: Sequence[Path]) -> bool:
        """True if all are regular files with content whose places, links followed, are inside the allowed folders."""
        parents = {path.parent for path in files}
        plain = {parent for parent in parents if self.is_inside(parent)}
        return all(
            is_file_with_content(path) and ((not path.is_symlink() and path.parent in plain) or self.is_inside(path))
            for path in files
        )

    def is_inside(self, path: Path, *more: Path) -> bool:
        """True if a place, links followed, lies in the folder, or in one that links may lead into, or in `more`."""
        try:
            real = path.resolve(strict=True)
            if any(real.is_relative_to(own.resolve()) for own in self._private):
                return False
            return any(real.is_relative_to(root.resolve()) for root in (self.folder, *self._links, *more))
        except (OSError, RuntimeError, ValueError):
            return False

    # ------------------------------------------------------------------------------------------------------- looking

    def _found(self) -> Listing:
        self._seen, self._before, left_out = FileStates(), {}, _LeftOuts(self.folder)
        if self._masks is not None:
            self._seen.note_folder(self._masks)
        files = list(self._walk(left_out))
        with self._headers.kept():
            cohort = self._cohort(files)
        for problem in (*cohort.problems, *cohort.ignored):
            self._seen.note_file(Path(problem.path), self._before.get(Path(problem.path)))
            left_out.add(Path(problem.path), _why(problem, cohort.ignored, self.folder))
        cases = []
        for case in cohort.cases:
            if fault := _id_fault(case.id):
                left_out.add(case.image, fault)
                continue
            if case.mask is not None and not self._is_mask(case.mask):
                left_out.add(case.mask, MASK)
                case = replace(case, mask=None)
            # A synthetic image belongs to no patient: it is compared with all of them.
            cases.append(replace(case, patient=None))
        told = tuple(
            Problem(as_text(item.name), f"{item.reason}.") for item in left_out.items if item.reason != NO_IMAGE
        )
        return Listing(Cohort(self.folder, tuple(cases), told), tuple(left_out.items))

    def _cohort(self, files: Sequence[Path]) -> Cohort:
        try:
            return Cohort.of_files(self.folder, files, masks=self._masks, header_of=self._headers)
        except InputError:  # a folder of masks that is still empty must not stop the server
            logger.warning("the masks of the studies are not used: the folder holds no mask with the name of a study")
            return Cohort.of_files(self.folder, files, header_of=self._headers)

    def _walk(self, left_out: _LeftOuts) -> Iterator[Path]:
        """Image files of the folder itself, and DICOM files below it, by name."""
        entered = {_identity(folder) for folder in self._without}
        waiting = [self.folder]
        while waiting:
            current = waiting.pop()
            self._seen.note_folder(current)
            identity = _identity(current)
            if identity is not None and identity in entered:
                if not any(_same(current, folder) for folder in self._without):
                    left_out.add(current, AGAIN)
                continue
            try:
                paths = [path for path in sorted(current.iterdir()) if not self._is_own(path)]
            except OSError:
                left_out.add(current, FORBIDDEN)
                continue
            entered.add(identity)
            self._before.update((path, state_of_file(path)) for path in paths)
            kinds = [(path, self._kind(path)) for path in paths]
            for path, kind in kinds:
                if kind == "study":
                    yield path
                elif kind != "folder":
                    # It may still be being written.
                    self._seen.note_file(path, self._before[path])
                    left_out.add(path, kind)
            waiting += [path for path, kind in reversed(kinds) if kind == "folder"]

    def _is_own(self, path: Path) -> bool:
        """True if it is hidden, or belongs to MONAI Label."""
        hidden = path.name.startswith(".") or path.name == "__MACOSX"
        return hidden or (path.parent == self.folder and (path.name == LABELS or path.name.startswith(NOTES)))

    def _kind(self, path: Path) -> str:
        """ "study", "folder", or why it is left out."""
        if not is_text(path.name):
            return NO_TEXT
        try:
            if path.is_symlink() and not path.exists():
                return NOWHERE
            if path.is_symlink() and not self.is_inside(path):
                return LINK
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                return "folder"
            if not stat.S_ISREG(status.st_mode):
                return NO_FILE
            return self._kind_of_file(path, status)
        except OSError:
            return FORBIDDEN

    def _kind_of_file(self, path: Path, status: os.stat_result) -> str:
        is_image = is_image_name(path)
        if status.st_size == 0:
            return EMPTY if is_image or path.suffix.lower() in DICOM_SUFFIXES else NO_IMAGE
        if not is_image:
            return "study" if is_dicom_name(path) else NO_IMAGE
        if path.parent != self.folder:
            return BELOW
        if not suffix_of(path.name):
            return IN_TWO if path.name.lower().endswith(IMAGE_SUFFIXES) else OTHER
        return "study" if os.access(path, os.R_OK) else FORBIDDEN

    def _is_mask(self, path: Path) -> bool:
        roots = () if self._masks is None else (self._masks,)
        return is_file_with_content(path) and self.is_inside(path, *roots)


class _LeftOuts:
    def __init__(self, folder: Path):
        self._folder = folder
        self.items: list[LeftOut] = []

    def add(self, path: Path, reason: str) -> None:
        name = path.relative_to(self._folder) if path.is_relative_to(self._folder) else Path(path.name)
        self.items.append(LeftOut(str(name), reason))


class _Headers:
    """Reads DICOM headers, and keeps those of unchanged files: a folder that is being filled is read many times."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[int, int, int], Header]] = {}
        self._used = self._kept

    def __call__(self, path: Path) -> Header:
        """Raises InputError as `dicom.read_header`."""
        from replica_detection.io.dicom import read_header

        status = path.stat()
        state = status.st_ino, status.st_size, status.st_mtime_ns
        known = self._kept.get(path)
        header = known[1] if known is not None and known[0] == state else read_header(path)
        self._used[path] = state, header
        return header

    def kept(self) -> _Headers:
        self._used = {}
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._kept = self._used


def is_series(case: Case) -> bool:
    """True if a case is DICOM, in one file or many."""
    return not suffix_of(case.files[0].name)


def printable(name: str) -> str:
    """A file name for a terminal: quoted, shortened, and without characters that control the terminal."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def as_text(name: str) -> str:
    """A file name as valid text: bytes that are not Unicode become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _why(problem: Problem, ignored: Sequence[Problem], folder: Path) -> str:
    """The reason for a problem of the core."""
    if problem in ignored:
        return NO_VOLUME
    if not Path(problem.path).is_relative_to(folder) or problem.message.startswith("several masks"):
        return MASK
    if problem.message.startswith("two files give"):
        return TAKEN
    return NO_TEXT if problem.message.startswith("the case id") else UNREADABLE


def _id_fault(study_id: str) -> str:
    if study_id != study_id.strip():
        return SPACE
    if study_id.startswith(TRAINING):
        return RESERVED
    if not is_text(study_id) or study_id.startswith("."):
        return NO_TEXT
    return LONG if len(study_id.encode("utf-8")) > LONGEST_ID else ""


def is_text(name: str) -> bool:
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def is_file_with_content(path: Path) -> bool:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _same(one: Path, other: Path) -> bool:
    identity = _identity(one)
    return identity is not None and identity == _identity(other)
