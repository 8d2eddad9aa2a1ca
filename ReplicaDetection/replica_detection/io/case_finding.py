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
from replica_detection.io.cohort_tables import Row, read_decathlon, read_patients, read_table
from replica_detection.io.paths import (
    DICOM_SUFFIXES,
    composed,
    file_stem,
    is_dicom_name,
    is_folder,
    is_image_name,
    is_regular,
    require_exists,
    require_file,
    walk,
)

if TYPE_CHECKING:
    from replica_detection.io.dicom import Header

RENAME = "Rename one of them, or list the cohort in a CSV with the columns id,image"
EMPTY_ADVICE = (
    "Give a folder with .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .png, .jpg or DICOM files, a CSV with the columns "
    "id,image, or a dataset.json"
)


@dataclass
class ProblemLog:
    """Collects problems and ignored DICOM objects; `strict`: the first problem is raised instead."""

    strict: bool
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Problem] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        if self.strict:
            raise error
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
    """Cases of any kind of source, ids not yet unique."""
    require_exists(source)
    if is_folder(source):
        listing = source / "dataset.json"
        if listing.is_file() and (source / "imagesTr").is_dir():
            return _listed(read_decathlon(listing, log.add), log)
        # Binary images may be their own masks; a folder of masks inside the images' folder holds no images.
        own = mask_folder is not None and mask_folder.resolve() == source.resolve()
        return cases_of_files(walk(source, log.add, None if own else mask_folder), source, log)
    if source.suffix.lower() in (".csv", ".tsv"):
        return _listed(read_table(source, log.add), log)
    if source.suffix.lower() == ".json":
        return _listed(read_decathlon(source, log.add), log)
    return cases_of_files([source], source.parent, log)


def cases_of_files(
    paths: Iterable[Path], root: Path, log: ProblemLog, header_of: Callable[[Path], Header] | None = None
) -> list[Case]:
    """Cases of image files; files of one DICOM series in one folder make one case."""
    cases, dicom = [], []
    for path in paths:
        try:
            if is_image_name(path):
                require_file(path)
                cases.append(Case(file_stem(path), (path,)))
            elif path.suffix.lower() in DICOM_SUFFIXES:
                require_file(path)
                dicom.append(path)
            elif is_regular(path) and is_dicom_name(path):
                dicom.append(path)
        except InputError as error:
            log.add(error)
        except OSError as error:
            found = f"cannot be opened ({error.strerror or error})"
            log.add(InputError(path, found, "Give yourself the right to read it"))
    return sorted(cases + _series_of(dicom, root, log, header_of), key=lambda case: str(case.files[0]))


def _series_of(
    paths: list[Path], root: Path, log: ProblemLog, header_of: Callable[[Path], Header] | None = None
) -> list[Case]:
    """One case per (folder, SeriesInstanceUID): a copy of a series in another folder is a case of its own."""
    if not paths:
        return []
    from replica_detection.io.dicom import read_header

    header_of = header_of or read_header
    series: dict[tuple[Path, str], list[tuple[Path, Header]]] = {}
    for path in paths:
        try:
            header = header_of(path)
        except InputError as error:
            log.add(error)
            continue
        if header.left_out:
            log.ignored.append(Problem(str(path), f"{header.left_out}."))
        else:
            series.setdefault((path.parent, header.series), []).append((path, header))
    stacks = Counter(folder for (folder, _), slices in series.items() if len(slices) > 1)
    names = {key: _series_name(slices, stacks[key[0]] > 1) for key, slices in series.items()}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    cases: list[Case] = []
    for key, slices in series.items():
        name = names[key]
        if name in repeated:
            name = _free_name(_with_folders(name, key[0], root, is_stack=len(slices) > 1), {case.id for case in cases})
        cases.append(Case(name, tuple(path for path, _ in slices), patient=slices[0][1].patient))
    return cases


def _series_name(slices: list, several: bool) -> str:
    path, header = slices[0]
    if len(slices) == 1:
        return file_stem(path)
    # A linked folder goes by the name that it has here.
    folder = composed(Path(os.path.abspath(path.parent)).name)  # noqa: PTH100 resolve() would follow the link
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
            case = _listed_case(row)
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


def _listed_case(row: Row) -> Case:
    name = file_stem(row.image) if row.id is None else row.id
    fault = id_fault(name)
    if fault:
        raise InputError(row.image, f"the case id {name!r} {fault}", "Give it an id that can be a file name")
    if not is_folder(row.image):
        require_file(row.image)
        if not (is_image_name(row.image) or is_dicom_name(row.image)):
            raise InputError(row.image, "is in no format that can be read", EMPTY_ADVICE)
        return Case(name, (row.image,), patient=row.patient)
    inner = ProblemLog(strict=True)
    paths = [path for path in walk(row.image, inner.add) if is_regular(path) and is_dicom_name(path)]
    series = _series_of(paths, row.image, inner)
    if len(series) != 1:
        advice = "List one folder for each series, or the file itself"
        raise InputError(row.image, f"is a folder with {len(series)} DICOM series instead of one", advice)
    return replace(series[0], id=name, patient=row.patient or series[0].patient)


def unique_cases(cases: list[Case], log: ProblemLog) -> list[Case]:
    """Cases with a usable id, the first of each id."""
    first: dict[str, Case] = {}
    for case in cases:
        fault = id_fault(case.id)
        if fault:
            log.add(InputError(case.image, f"the case id {case.id!r} {fault}", RENAME))
        elif case.id in first:
            other = first[case.id].image
            log.add(InputError(case.image, f"two files give the case id {case.id!r}, the other is {other}", RENAME))
        else:
            first[case.id] = case
    return list(first.values())


def with_masks(cases: list[Case], source: Path, folder: Path, log: ProblemLog) -> list[Case]:
    by_name: dict[str, Path] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in walk(folder, log.add):
        if is_image_name(path) and is_regular(path):
            by_name.setdefault(composed(path.name), path)
            by_stem.setdefault(file_stem(path), []).append(path)
    if not by_stem:
        raise InputError(
            folder, "holds no mask", "Give the folder that holds the masks, as .nii.gz, .nrrd, .mha or .png"
        )
    matched = [c if c.mask is not None else replace(c, mask=_mask_of(c, by_name, by_stem, log.add)) for c in cases]
    if all(case.mask is None for case in matched):
        found = (
            f"no mask has the name of a case, e.g. mask {next(iter(by_stem))!r} and case {cases[0].id!r} of {source}"
        )
        raise InputError(
            folder, found, "Name each mask like its image, or list both in a CSV with the columns id,image,mask"
        )
    return matched


def _mask_of(
    case: Case, by_name: dict[str, Path], by_stem: dict[str, list[Path]], report: Callable[[InputError], None]
) -> Path | None:
    if len(case.files) == 1:
        same = by_name.get(composed(case.files[0].name))
        if same is not None:
            return same
    for name in dict.fromkeys((case.id, file_stem(case.files[0]))):
        found = by_stem.get(name, [])
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            report(InputError(found[0], f"several masks fit case {case.id!r}: {names}", "Keep one of them"))
        if found:
            return found[0] if len(found) == 1 else None
    return None


def with_patients(cases: list[Case], path: Path, log: ProblemLog) -> list[Case]:
    patients = read_patients(path)
    if not patients.keys() & {case.id for case in cases}:
        found = f"lists no case of this cohort, e.g. id {next(iter(patients), '')!r} and case {cases[0].id!r}"
        log.add(InputError(path, found, "Use the ids of the cohort, file names without extension"))
    return [replace(case, patient=patients.get(case.id) or case.patient) for case in cases]
