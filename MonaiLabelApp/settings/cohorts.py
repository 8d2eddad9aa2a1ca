"""The cohorts of a running server, and what the ids of training cases look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.io.cohort import Cohort
from replica_detection.io.paths import IMAGE_SUFFIXES, file_stem
from replica_detection_server.settings.configuration import Configuration

if TYPE_CHECKING:
    pass

# The two collections share one list of ids at MONAI Label; this marks the training cases.
TRAINING = "train:"
# MONAI Label knows one file for an image; these formats keep header and voxels in two.
SUFFIXES = tuple(s for s in IMAGE_SUFFIXES if s not in (".nhdr", ".mhd"))


def study_id(name: str) -> str:
    return file_stem(Path(name))


def suffix_of(name: str) -> str:
    """The extension of an image's file name, `.nii.gz` counting as one; "" for anything else."""
    return next((s for s in SUFFIXES if name.lower().endswith(s)), "")


def studies(configuration: Configuration) -> Cohort:
    """The synthetic images, by the rule of `studies.py`. May be empty."""
    from replica_detection_server.collection.studies import Studies

    return Studies.of(configuration).now().cohort


def training(configuration: Configuration) -> Cohort | None:
    if configuration.training is None:
        return None
    return Cohort.read(configuration.training, masks=configuration.training_masks, patients=configuration.patients)


def validation(configuration: Configuration) -> Cohort | None:
    if configuration.validation is None:
        return None
    return Cohort.read(configuration.validation, masks=configuration.validation_masks, patients=configuration.patients)


Files = tuple[tuple[int, int], ...]


def state_of(files: Sequence[Path]) -> Files:
    """Size and time of each file, by which a changed one is known; (-1, -1) for one that is gone."""
    found = []
    for path in files:
        try:
            status = path.stat()
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((-1, -1))
    return tuple(found)
