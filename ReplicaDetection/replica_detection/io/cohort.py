"""Cohort: the images of a folder, of a list, or in memory, each with its patient and its mask."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.arrays import SOURCE, cases_of_arrays
from replica_detection.io.case import Case, Problem
from replica_detection.io.case_finding import (
    ProblemLog,
    cases_of_files,
    find_cases,
    require_folder,
)
from replica_detection.io.mask_matching import with_masks
from replica_detection.io.patients import compiled_pattern, with_pattern, with_table
from replica_detection.util.places import absolute

if TYPE_CHECKING:
    from replica_detection.io.dicom import Header

__all__ = ["Case", "Cohort", "Problem", "read_together"]


@dataclass(frozen=True)
class Cohort:
    """The cases of a folder in the order of their paths, or those of a list or of images in memory in their own order.

    `problems` are files that should have been cases. `ignored` are DICOM objects that no one would compare (scouts,
    reports, presentation states); they do not count as a problem, not even when `strict`.
    """

    source: Path
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()
    ignored: tuple[Problem, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the cases, in their order."""
        return tuple(case.id for case in self.cases)

    @property
    def place(self) -> str:
        """The absolute path of `source`, for what is stored; of images in memory the name that stands for them."""
        return str(self.source) if str(self.source) == SOURCE else absolute(self.source)

    def __len__(self) -> int:
        return len(self.cases)

    @classmethod
    def read(
        cls,
        source: str | os.PathLike[str],
        *,
        masks: str | os.PathLike[str] | None = None,
        patients: str | os.PathLike[str] | None = None,
        patient_pattern: str | None = None,
        strict: bool = False,
    ) -> Cohort:
        """Finds the cases of a cohort.

        No voxels are read, but those of a few files that have the name of another one, which may be its mask.

        Args:
            source: a folder, searched recursively (hidden files are skipped; the files of a DICOM series are one case,
                in one folder or several; masks beside their images are no images; a Decathlon folder with
                `dataset.json` and `imagesTr` is read by that list; the folders of nnU-Net and BIDS are understood);
                a CSV `id,image[,mask][,patient]` with paths relative to it, separated by comma, semicolon or tab; a
                Decathlon `dataset.json` (its training part; its test part only where there is no training part);
                or one image file.
            masks: folder of masks. A case's mask is named by the case id, or else by the image file; `_seg`, `-label`,
                `.seg` and alike may follow. Cases without one keep `mask=None`, and so do those that several fit.
                Inside `source`, the folder is not searched for images.
            patients: CSV `id,patient`; it goes before other sources. Cases without a row are a problem; ids that are
                no case are told.
            patient_pattern: instead, a regular expression that is searched for in the case id, then in the path below
                `source`; its group `patient`, or its first group, is the patient.
            strict: raise on the first problem instead of listing it. What costs no case, such as a mask among the
                images, is listed all the same.

        Raises:
            InputError: `source`, `masks` or `patients` cannot be used as a whole, no case is left, no mask matches
                any case, no case matches `patient_pattern`, or `strict` and a file has a problem.
            ConfigurationError: `masks` or `patients` is no path, `patient_pattern` is no expression with a group, or
                both are given.
        """
        source = Path(source)
        if str(source) == SOURCE:
            raise InputError(source, "were images in memory, which no file holds", "Give the images again")
        for what, given, needed in (("masks", masks, "their folder"), ("patients", patients, "a CSV id,patient")):
            if not isinstance(given, (str, os.PathLike, type(None))):
                found = f"{what} of images in files is of type {type(given).__name__}"
                raise ConfigurationError(f"{found}: give {needed}")
        log = ProblemLog(strict)
        mask_folder = require_folder(masks, "the masks") if masks is not None else None
        _require_one(patients, patient_pattern)
        cases = find_cases(source, mask_folder, log)
        found = cls(source, tuple(cases), tuple(log.problems), tuple(log.ignored))
        return found.with_patients(patients, patient_pattern, strict=strict)

    def with_patients(
        self,
        patients: str | os.PathLike[str] | None = None,
        patient_pattern: str | None = None,
        *,
        beside: Collection[str] = (),
        required: bool = True,
        rows: bool = True,
        strict: bool = False,
    ) -> Cohort:
        """The cohort with the patients of a table, or with those that a pattern finds; itself without either.

        Args:
            patients, patient_pattern, strict: as `read` takes them.
            beside: ids of the other cohort of a run, which the table may list too.
            required: False where the table or the pattern need not fit any case, as for the unseen images of a run.
            rows: tell the ids of the table that are no case, neither here nor in `beside`.

        Raises:
            InputError, ConfigurationError: as `read`.
        """
        _require_one(patients, patient_pattern)
        log, cases = ProblemLog(strict), list(self.cases)
        if patients is not None and cases:
            path = Path(patients)
            cases = with_table(cases, path, self.source, log.add, log.note, beside, required=required, rows=rows)
        elif patient_pattern is not None and cases:
            report = log.add if required else log.note
            cases = with_pattern(cases, patient_pattern, self.source, report, required=required)
        return replace(self, cases=tuple(cases), problems=(*self.problems, *log.problems))

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        *,
        spacing: Any = None,
        affines: Any = None,
        ids: Iterable[str] | None = None,
        patients: Any = None,
        patient_pattern: str | None = None,
        masks: Any = None,
        strict: bool = True,
    ) -> Cohort:
        """Makes a cohort of images in memory.

        An image is a numpy array or a torch tensor, (X, Y, Z) or (X, Y), with one channel in front or without; a MONAI
        MetaTensor; a TorchIO image, or a Subject with one image and at most one label map, which is its mask; or a
        SimpleITK or nibabel image. Their geometry is used. An array has none: it needs `spacing` or `affines`.

        Float32 arrays are not copied: leave them as they are until the work with the cohort is done.

        Args:
            images: a list of images, a batch (N, 1, X, Y, Z) or (N, X, Y, Z), or images by id.
            spacing: voxel size in mm along the array's axes, which are taken to run to the right, front and top: one
                for all images, or one for each. It takes precedence over what an image states.
            affines: instead, (4, 4) from voxel indices to mm RAS+: one for all images, or one for each.
            ids: one for each image. None: `case_0001`, `case_0002` ...
            patients: one for each image, None among them for an image that is a patient of its own; by id; or a CSV
                `id,patient`.
            patient_pattern: instead, a regular expression that is searched for in the ids; its group `patient`, or its
                first group, is the patient.
            masks: one for each image, or by id, of the same kinds as the images; None among them for no mask.
            strict: raise for an image with NaN, with one value everywhere, or with a mask that cannot be used, instead
                of listing it in `problems`.

        Raises:
            InputError: an image that cannot be used; the message names it and says what to do.
            ConfigurationError: arguments that do not go together, such as lists of other lengths.

        Example:
            >>> import numpy as np
            >>> noise = np.random.default_rng(0).normal(size=(3, 1, 8, 9, 10))
            >>> Cohort.from_arrays(noise, spacing=(1.0, 1.0, 2.5)).ids
            ('case_0001', 'case_0002', 'case_0003')
        """
        _require_one(patients, patient_pattern)
        listed = Path(patients) if isinstance(patients, (str, os.PathLike)) else None
        cases, problems = cases_of_arrays(
            images,
            spacing=spacing,
            affines=affines,
            ids=ids,
            patients=None if listed else patients,
            masks=masks,
            strict=strict,
        )
        log = ProblemLog(strict, problems)
        if not cases:
            raise InputError(SOURCE, f"holds no usable image{log.summary()}", "Give a list of images")
        made = cls(Path(SOURCE), tuple(cases), tuple(log.problems))
        return made.with_patients(listed, patient_pattern, strict=strict)

    @classmethod
    def of(
        cls,
        value: Any,
        *,
        spacing: Any = None,
        affines: Any = None,
        ids: Iterable[str] | None = None,
        masks: Any = None,
        patients: Any = None,
        patient_pattern: str | None = None,
        strict: bool = False,
    ) -> Cohort:
        """The cohort of whatever names one: a Cohort as it is; a path as `read` takes it; images as `from_arrays` does.

        Args:
            value: a Cohort, a folder, a CSV, a `dataset.json`, an image file, or images in memory.
            spacing, affines, ids: for images in memory alone.
            masks, patients, patient_pattern: as `read` or `from_arrays` takes them.
            strict: raise on the first image that cannot be used, instead of listing it in `problems`.

        Raises:
            InputError: as `read` and `from_arrays`.
            ConfigurationError: an argument that the value has no use for.
        """
        in_memory = not isinstance(value, (Cohort, str, os.PathLike))
        if in_memory:
            return cls.from_arrays(
                value,
                spacing=spacing,
                affines=affines,
                ids=ids,
                patients=patients,
                patient_pattern=patient_pattern,
                masks=masks,
                strict=strict,
            )
        if not (spacing is None and affines is None and ids is None):
            raise ConfigurationError("spacing, affines and ids are for images in memory; files state their own")
        if not isinstance(value, Cohort):
            return cls.read(value, masks=masks, patients=patients, patient_pattern=patient_pattern, strict=strict)
        if masks is not None or patients is not None or patient_pattern is not None:
            raise ConfigurationError("a Cohort has its own masks and patients; name them where it is made")
        return value

    @classmethod
    def of_files(
        cls,
        source: Path,
        files: Iterable[Path],
        *,
        masks: Path | None = None,
        strict: bool = False,
        header_of: Callable[[Path], Header] | None = None,
    ) -> Cohort:
        """The cases of some image files of `source`, where nothing else is looked at; no file gives an empty cohort.

        `header_of` reads DICOM headers, for a caller that keeps them; without it they are read from the files. Other
        arguments, ids and errors are those of `read`.
        """
        log = ProblemLog(strict)
        cases = cases_of_files(files, source, log, header_of)
        if masks is not None and cases:
            cases = with_masks(cases, source, require_folder(masks, "the masks"), log.add, log.note)
        return cls(source, tuple(cases), tuple(log.problems), tuple(log.ignored))


def read_together(
    training: Any,
    other: Any,
    *,
    masks: Any = None,
    other_masks: Any = None,
    patients: Any = None,
    patient_pattern: str | None = None,
    strict: bool = False,
    known: Collection[str] = (),
) -> tuple[Cohort | None, Cohort | None]:
    """The two cohorts of a run with one table of patients, whose rows are checked against both.

    The table must cover the training images; of the others it lists some, all or none. So it is with the pattern.

    Args:
        training: as `Cohort.of` takes it; None where an index stands for it.
        other: the unseen or second cohort, None without one.
        masks, other_masks: of the two.
        patients, patient_pattern, strict: as `Cohort.of` takes them.
        known: ids of the training cases that the index holds.

    Raises:
        InputError, ConfigurationError: as `Cohort.of`.
    """
    sources = ((training, masks), (other, other_masks))
    _require_one(patients, patient_pattern)
    by_id = patients is not None and not isinstance(patients, (str, os.PathLike))
    if by_id or any(isinstance(source, Cohort) for source, _ in sources):
        first, second = (
            None
            if source is None
            else Cohort.of(source, masks=m, patients=patients, patient_pattern=patient_pattern, strict=strict)
            for source, m in sources
        )
        return first, second
    first, second = (None if source is None else Cohort.of(source, masks=m, strict=strict) for source, m in sources)
    ids = second.ids if second is not None else ()
    if first is not None:
        known = first.ids
        first = first.with_patients(patients, patient_pattern, beside=ids, strict=strict)
    if second is not None:
        alone = training is None
        second = second.with_patients(
            patients, patient_pattern, beside=known, required=alone and not known, rows=alone, strict=strict
        )
    return first, second


def _require_one(patients: Any, patient_pattern: str | None) -> None:
    if patients is not None and patient_pattern is not None:
        raise ConfigurationError("give either patients or patient_pattern")
    if patient_pattern is not None:
        compiled_pattern(patient_pattern)
