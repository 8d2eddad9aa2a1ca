"""Finding the cases of a folder or a list: which files make one image, and its id, patient and mask."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.errors import InputError
from replica_detection.io.case import Case, Problem, id_fault
from replica_detection.io.cohort_tables import Row, read_decathlon, read_table
from replica_detection.io.layouts import laid_out
from replica_detection.io.mask_matching import with_masks
from replica_detection.io.passed_over import plainly_no_image, tell_passed_over
from replica_detection.io.paths import (
    DICOM_SUFFIXES,
    PAIRED,
    composed,
    file_stem,
    is_dicom_name,
    is_folder,
    is_image_name,
    is_regular,
    paired,
    require_exists,
    require_file,
    walk,
)

if TYPE_CHECKING:
    from replica_detection.io.dicom import Header
    from replica_detection.io.dicom_series import Series

RENAME = "Rename one of them, or list the cohort in a CSV with the columns id,image"
EMPTY_ADVICE = (
    "Give a folder with .nii, .nii.gz, .nrrd, .mha, .mhd, .mgz, .hdr with .img, .npy, .npz, .png, .jpg, .tif or DICOM "
    "files, a CSV with the columns id,image, or a dataset.json"
)


@dataclass
class ProblemLog:
    """Collects problems and ignored DICOM objects; `strict`: the first problem is raised instead.

    `passed_over` are files of no format that is known, some of them perhaps images.
    """

    strict: bool
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Problem] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        if self.strict:
            raise error
        self.problems.append(Problem.of(error))

    def note(self, error: InputError) -> None:
        """Lists what the user should know and what costs no case, so that `strict` does not stop for it."""
        self.problems.append(Problem.of(error))

    def summary(self) -> str:
        """Text in brackets about the files that were left out, to go behind a message; "" where none was."""
        parts = []
        if self.problems:
            parts.append(
                f"{len(self.problems)} left out, the first being {self.problems[0].path}: "
                f"{self.problems[0].message.rstrip('.')}"
            )
        if self.ignored:
            parts.append(f"{len(self.ignored)} DICOM files are not volumes, the first being {self.ignored[0].path}")
        return f" ({'; '.join(parts)})" if parts else ""


def require_folder(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a folder. Raises InputError where there is none; `what` names its content."""
    folder = Path(path)
    require_exists(folder)
    if not is_folder(folder):
        raise InputError(folder, "is not a folder", f"Give the folder that holds {what}")
    return folder


def find_cases(source: Path, mask_folder: Path | None, log: ProblemLog) -> list[Case]:
    """Cases of any kind of source, each id once, with the masks of `mask_folder` or of the source's own layout."""
    require_exists(source)
    beside = None
    if is_folder(source):
        rows = _list_of(source, log)
        if rows is None:
            cases, beside = _cases_of_folder(source, mask_folder, log)
            cases = unique_cases(cases, log, nearest=True)
        else:
            cases = unique_cases(_listed(rows, log), log)
    elif source.suffix.lower() in (".csv", ".tsv"):
        cases = unique_cases(_listed(read_table(source, log.add), log), log)
    elif source.suffix.lower() == ".json":
        cases = unique_cases(_listed(read_decathlon(source, log.add), log), log)
    else:
        cases = cases_of_files([source], source.parent, log)
    images = [case.files[0] for case in cases]
    tell_passed_over(log.passed_over, images, log.add if cases else log.note)
    if not cases:
        raise InputError(source, f"holds no usable image{log.summary()}", EMPTY_ADVICE)
    if mask_folder is None:
        return cases
    return with_masks(cases, source, mask_folder, log.add, log.note, beside)


def _list_of(folder: Path, log: ProblemLog) -> list[Row] | None:
    """Rows of a Decathlon's list in its folder; None where there is no list, or one of nnU-Net, which names no files.

    The first format of nnU-Net names the cases of imagesTr without the numbers of their channels.
    """
    listing = folder / "dataset.json"
    if not (listing.is_file() and (folder / "imagesTr").is_dir()):
        return None
    try:
        rows = read_decathlon(listing, log.add)
    except InputError as error:
        if not error.found.startswith("has no list"):
            log.add(error)
        return None
    if not rows or rows[0].image.is_file():
        return rows
    image = rows[0].image
    ending = image.name[len(file_stem(image)) :]
    return None if image.with_name(f"{file_stem(image)}_0000{ending}").is_file() else rows


def _cases_of_folder(folder: Path, mask_folder: Path | None, log: ProblemLog) -> tuple[list[Case], list[Path] | None]:
    """Cases of the files below a folder; masks among the images, where `mask_folder` is the folder itself."""
    # Binary images may be their own masks; a folder of masks inside the images' folder holds no images.
    own = mask_folder is not None and mask_folder.resolve() == folder.resolve()
    images, dicom = _by_kind(walk(folder, log.add, None if own else mask_folder), log)
    layout = laid_out(images, dicom, folder, log.add, log.note, tell_masks=not own)
    cases = [
        Case(
            layout.ids.get(path, file_stem(path)),
            (path,),
            None if mask_folder is not None else layout.masks.get(path),
            layout.patients.get(path),
        )
        for path in layout.images
    ]
    return _in_order(cases + _series_of(layout.dicom, folder, log)), (layout.beside or None) if own else None


def cases_of_files(
    paths: Iterable[Path], root: Path, log: ProblemLog, header_of: Callable[[Path], Header] | None = None
) -> list[Case]:
    """Cases of given image files, each id once; files of one DICOM series in one folder make one case."""
    images, dicom = _by_kind(paths, log)
    cases = [Case(file_stem(path), (path,)) for path in images]
    return unique_cases(_in_order(cases + _series_of(dicom, root, log, header_of)), log)


def _in_order(cases: list[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: str(case.files[0]))


def _by_kind(paths: Iterable[Path], log: ProblemLog) -> tuple[list[Path], list[Path]]:
    """Image files of formats other than DICOM, and DICOM files; `log` keeps the others."""
    images, dicom = [], []
    for path in paths:
        try:
            if is_image_name(path):
                require_file(path)
                if path.suffix.lower() == ".hdr" and paired(path) is None:
                    found = f"has no voxels {path.stem}{PAIRED} beside it"
                    raise InputError(path, found, "Put both files into one folder")
                images.append(path)
            elif path.suffix.lower() in DICOM_SUFFIXES:
                require_file(path)
                dicom.append(path)
            elif is_regular(path) and not plainly_no_image(path):
                (dicom if is_dicom_name(path) else log.passed_over).append(path)
        except InputError as error:
            log.add(error)
        except OSError as error:
            found = f"cannot be opened ({error.strerror or error})"
            log.add(InputError(path, found, "Give yourself the right to read it"))
    return images, dicom


def _series_of(
    paths: list[Path],
    root: Path,
    log: ProblemLog,
    header_of: Callable[[Path], Header] | None = None,
    called: str | None = None,
) -> list[Case]:
    """One case for each scan of `dicom_series.group`: a copy of a series in another folder is a case of its own.

    `called`: the id of the only scan, for messages.
    """
    if not paths:
        return []
    from replica_detection.io.dicom import read_header
    from replica_detection.io.dicom_series import group

    header_of = header_of or read_header
    found: list[tuple[Path, Header]] = []
    for path in paths:
        try:
            header = header_of(path)
        except InputError as error:
            log.add(error)
            continue
        if header.left_out:
            log.ignored.append(Problem(str(path), f"{header.left_out}."))
        else:
            found.append((path, header))
    series = group(found)
    stacks = Counter(part.folder for part in series if len(part.slices) > 1)
    names = [_series_name(part, root, stacks[part.folder] > 1) for part in series]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    cases: list[Case] = []
    for part, name in zip(series, names, strict=True):
        if name in repeated:
            name = _with_folders(name, part.folder, root, is_stack=len(part.slices) > 1)
            name = _free_name(name, {case.id for case in cases})
        cases.append(Case(name, part.files, patient=part.header.patient))
        _tell(part, called or name, log)
    return cases


def _tell(part: Series, name: str, log: ProblemLog) -> None:
    """Problems of what lies beside a scan: files that are no slice of it, and slices that do not continue it."""
    count = len(part.slices)
    kept = f"scan {name!r}, which keeps its {count} {'slices' if count > 1 else 'slice'}"
    for path, reason in part.foreign:
        log.add(InputError(path, f"{reason}: it is no slice of {kept}", "Move it out of the cohort"))
    if part.apart is not None:
        found = (
            f"states the series of the slices in {part.apart}, which they do not continue at an even gap: scan "
            f"{name!r} holds these {count} alone"
        )
        log.add(InputError(part.files[0], found, "Put all slices of one scan into one folder, or export both again"))


def _series_name(part: Series, root: Path, several: bool) -> str:
    path, header = part.slices[0]
    if len(part.slices) == 1:
        return file_stem(path)
    # Files right below `root` in several folders have no folder of their own; a linked folder goes by its name here.
    home = path.parent if part.folder == root and path.parent != root else part.folder
    folder = composed(Path(os.path.abspath(home)).name)  # noqa: PTH100 resolve() would follow the link
    return f"{folder}_{header.number}" if several and header.number else folder


def _with_folders(name: str, folder: Path, root: Path, *, is_stack: bool) -> str:
    """Name of a case with the folders above it in front: `p1/DICOM` and `p2/DICOM` become `p1_DICOM`, `p2_DICOM`."""
    above = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    return composed("_".join([*(above[:-1] if is_stack else above), name]))


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _listed(rows: list[Row], log: ProblemLog) -> list[Case]:
    """Cases of a list; a missing mask is a problem of the mask, the case stays."""
    cases = []
    for row in rows:
        try:
            case = _listed_case(row, log)
        except InputError as error:
            log.add(InputError(error.path, f"{error.found} ({row.origin})", error.advice))
            continue
        if row.mask is not None:
            try:
                require_file(row.mask)
                case = replace(case, mask=row.mask)
            except InputError as error:
                log.add(
                    InputError(row.mask, f"the mask of case {case.id!r} {error.found} ({row.origin})", error.advice)
                )
        cases.append(case)
    return cases


def _listed_case(row: Row, log: ProblemLog) -> Case:
    name = file_stem(row.image) if row.id is None else row.id
    fault = id_fault(name)
    if fault:
        raise InputError(row.image, f"the case id {name!r} {fault}", "Give it an id that can be a file name")
    if not is_folder(row.image):
        require_file(row.image)
        image = paired(row.image) or row.image if row.image.suffix.lower() == PAIRED else row.image
        if not (is_image_name(image) or is_dicom_name(image)):
            raise InputError(row.image, "is in no format that can be read", EMPTY_ADVICE)
        return Case(name, (image,), patient=row.patient)
    inner = ProblemLog(log.strict)
    paths = [path for path in walk(row.image, inner.add) if is_regular(path) and is_dicom_name(path)]
    series = _series_of(paths, row.image, inner, called=name)
    if len(series) != 1:
        advice = "List one folder for each series, or the file itself"
        raise InputError(row.image, f"is a folder with {len(series)} DICOM series instead of one", advice)
    log.problems += inner.problems
    log.ignored += inner.ignored
    return replace(series[0], id=name, patient=row.patient or series[0].patient)


def unique_cases(cases: list[Case], log: ProblemLog, *, nearest: bool = False) -> list[Case]:
    """Cases with a usable id, the first of each id; with `nearest` that of a folder before that of its subfolders."""
    first: dict[str, Case] = {}
    order = sorted(cases, key=lambda case: len(case.files[0].parts)) if nearest else cases
    for case in order:
        fault = id_fault(case.id)
        if fault:
            log.add(InputError(case.image, f"the case id {case.id!r} {fault}", RENAME))
        elif case.id in first:
            other = first[case.id].image
            log.add(InputError(case.image, f"two files give the case id {case.id!r}, the other is {other}", RENAME))
        else:
            first[case.id] = case
    return [case for case in cases if first.get(case.id) is case]
