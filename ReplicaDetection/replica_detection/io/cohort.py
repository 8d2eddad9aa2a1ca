"""Cohort: the images of a folder, of a list, or in memory, each with its patient and its mask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.arrays import SOURCE, cases_of_arrays
from replica_detection.io.case import Case, Problem
from replica_detection.io.case_finding import (
    EMPTY_ADVICE,
    ProblemLog,
    cases_of_files,
    find_cases,
    require_folder,
    unique_cases,
    with_masks,
    with_patients,
)
from replica_detection.util.places import absolute

if TYPE_CHECKING:
    from replica_detection.io.dicom import Header

__all__ = ["Case", "Cohort", "Problem"]


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
        strict: bool = False,
    ) -> Cohort:
        """Finds the cases of a cohort; only DICOM headers are opened, no voxels are read.

        Args:
            source: a folder, searched recursively (hidden files are skipped; files of a DICOM series in one folder are
                one case; a Decathlon folder with `dataset.json` and `imagesTr` is read by that list); a CSV
                `id,image[,mask][,patient]` with paths relative to it, separated by comma, semicolon or tab; a
                Decathlon `dataset.json` (its training part; its test part only where there is no training part);
                or one image file.
            masks: folder of masks. A case's mask has the same file name, or the same name with another extension.
                Cases without one keep `mask=None`. Inside `source`, the folder is not searched for images.
            patients: CSV `id,patient`. Ids that are not in the cohort are ignored; it goes before other sources.
            strict: raise on the first problem instead of listing it.

        Raises:
            InputError: `source`, `masks` or `patients` cannot be used as a whole, no case is left, no mask matches
                any case, or `strict` and a file has a problem.
            ConfigurationError: `masks` or `patients` is no path.
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
        cases = unique_cases(find_cases(source, mask_folder, log), log)
        if not cases:
            raise InputError(source, f"holds no usable image{log.summary()}", EMPTY_ADVICE)
        if mask_folder is not None:
            cases = with_masks(cases, source, mask_folder, log)
        if patients is not None:
            cases = with_patients(cases, Path(patients), log)
        return cls(source, tuple(cases), tuple(log.problems), tuple(log.ignored))

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        *,
        spacing: Any = None,
        affines: Any = None,
        ids: Iterable[str] | None = None,
        patients: Any = None,
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
        if listed:
            cases = with_patients(cases, listed, log)
        return cls(Path(SOURCE), tuple(cases), tuple(log.problems))

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
        strict: bool = False,
    ) -> Cohort:
        """The cohort of whatever names one: a Cohort as it is; a path as `read` takes it; images as `from_arrays` does.

        Args:
            value: a Cohort, a folder, a CSV, a `dataset.json`, an image file, or images in memory.
            spacing, affines, ids: for images in memory alone.
            masks, patients: as `read` or `from_arrays` takes them.
            strict: raise on the first image that cannot be used, instead of listing it in `problems`.

        Raises:
            InputError: as `read` and `from_arrays`.
            ConfigurationError: an argument that the value has no use for.
        """
        in_memory = not isinstance(value, (Cohort, str, os.PathLike))
        if in_memory:
            return cls.from_arrays(
                value, spacing=spacing, affines=affines, ids=ids, patients=patients, masks=masks, strict=strict
            )
        if not (spacing is None and affines is None and ids is None):
            raise ConfigurationError("spacing, affines and ids are for images in memory; files state their own")
        if not isinstance(value, Cohort):
            return cls.read(value, masks=masks, patients=patients, strict=strict)
        if masks is not None or patients is not None:
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
        cases = unique_cases(cases_of_files(files, source, log, header_of), log)
        if masks is not None and cases:
            cases = with_masks(cases, source, require_folder(masks, "the masks"), log)
        return cls(source, tuple(cases), tuple(log.problems), tuple(log.ignored))
