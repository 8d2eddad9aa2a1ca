"""The inputs of a run: a training index from whatever the caller gives, and those of a finished run opened again."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.build import open_or_build
from replica_detection.index.entries import HEADER_FILE, header_of_result
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort, read_together
from replica_detection.progress import Progress, silent
from replica_detection.results.finding import masks_of_result, synthetic_of_result, validation_of_result
from replica_detection.results.result import DetectionResult

INDEX_SUFFIX = ".rdindex"
_OWN_MASKS = "segmenter and training_masks are for training images; an index has its own masks"


@dataclass(frozen=True)
class RunInputs:
    """The index and the cohorts that a result was made from; a result in memory holds them."""

    index: TrainingIndex
    synthetic: Cohort
    validation: Cohort | None


def index_from(
    training: Any,
    *,
    options: IndexOptions | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> TrainingIndex:
    """Opens or builds the index of a training cohort.

    Args:
        training: a TrainingIndex, the path of an index folder, or training images as `Cohort.of` takes them.
        options: of an index that is built; None: the defaults.
        folder: where the index of training images is kept for later runs; an index that still fits is used again.
            None: a temporary folder, which goes with the index.

    Raises:
        ConfigurationError: options for an index that is there already.
        InputError: no training image can be used. IndexFormatError: the index cannot be opened.
    """
    if isinstance(training, TrainingIndex) or _is_index(training):
        options = options or IndexOptions()
        if options.segmenter is not None:
            raise ConfigurationError(_OWN_MASKS)
        if options.embedding is not None or options.slice_embedding is not None:
            raise ConfigurationError("embedding and slice_embedding are for training images; an index has its own")
        return training if isinstance(training, TrainingIndex) else TrainingIndex.open(Path(training))
    options = options or IndexOptions()
    cohort = Cohort.of(training, strict=options.strict)
    if folder is not None:
        return open_or_build(cohort, folder, options, progress=progress)
    temporary = tempfile.mkdtemp(prefix="replica-detection-")
    try:
        index = open_or_build(cohort, Path(temporary) / f"index{INDEX_SUFFIX}", options, progress=progress)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    index.held = _TemporaryFolder(temporary)
    return index


def cohorts_of_run(
    training: Any,
    other: Any,
    *,
    masks: Any = None,
    other_masks: Any = None,
    patients: Any = None,
    patient_pattern: str | None = None,
    strict: bool = False,
) -> tuple[Cohort | TrainingIndex, Cohort | None]:
    """The two cohorts of a run; a table or pattern of patients is checked against both together.

    Args:
        training: an index, the path of one, or training images as `Cohort.of` takes them.
        other: the images that are compared with it, as `Cohort.of` takes them; None without any.
        masks, other_masks, patients, patient_pattern, strict: as `Cohort.of` takes them.

    Returns:
        The index, or the cohort of the training images, as `index_from` takes either; the other cohort.

    Raises:
        ConfigurationError, InputError, IndexFormatError: as `index_from` and `Cohort.of`.
    """
    check_patients(patients if patient_pattern is None else patient_pattern, training, other)
    given = {"other_masks": other_masks, "patients": patients, "patient_pattern": patient_pattern, "strict": strict}
    if isinstance(training, TrainingIndex) or _is_index(training):
        index = training if isinstance(training, TrainingIndex) else TrainingIndex.open(Path(training))
        if masks is not None:
            raise ConfigurationError(_OWN_MASKS)
        return index, read_together(None, other, known=index.ids, **given)[1]
    cohort, second = read_together(training, other, masks=masks, **given)
    assert cohort is not None
    return cohort, second


def check_patients(patients: Any, training: Any, other: Any) -> None:
    """Raises ConfigurationError for patients that nothing would ask for, or that would be those of two cohorts.

    Args:
        patients: as the caller gives them, for the cases of `training` and of `other`.
        training: as `index_from` takes it.
        other: the images that are compared with it, None without any.
    """
    if patients is None:
        return
    if other is None and (isinstance(training, TrainingIndex) or _is_index(training)):
        raise ConfigurationError("patients are of images that are read; an index has its own")
    if other is not None and not isinstance(patients, (str, os.PathLike, Mapping)):
        raise ConfigurationError(
            "patients is a list, and there are two cohorts: give it to Cohort.from_arrays for each, or name them by id"
        )


class _TemporaryFolder:
    """A folder that goes when the last copy of the index in it goes, and with the process that made it."""

    def __init__(self, folder: str):
        weakref.finalize(self, _remove, folder, os.getpid())

    def __deepcopy__(self, memo: dict[int, Any]) -> _TemporaryFolder:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a pickled index uses the folder but does not own it


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked process shares the folder with the one that made it
        shutil.rmtree(folder, ignore_errors=True)


def _is_index(training: Any) -> bool:
    """True for the path of an index, or one that is named as an index."""
    if not isinstance(training, (str, os.PathLike)):
        return False
    path = Path(training)
    return path.suffix == INDEX_SUFFIX or ((path / HEADER_FILE).is_file() and (path / "features.zarr").exists())


def index_of(result: DetectionResult) -> TrainingIndex:
    """The index that a run used: where it was, else where it moved together with the result.

    Raises:
        InputError: it is in neither place. IndexFormatError: what lies there is no index, or one of other images.
    """
    held = result.inputs
    return held.index if isinstance(held, RunInputs) else TrainingIndex.open(header_of_result(result)[0])


def synthetic_of(result: DetectionResult, source: Any = None) -> Cohort:
    """The synthetic cohort of a run, with the masks that the run read: where it was, else where it moved together with
    the result. What changed since the run is left out and listed as a problem.

    Args:
        source: the images, where they are no longer where they were; as `Cohort.of` takes them.

    Raises:
        InputError: the images are in neither place, or all of them are others now.
    """
    held = result.inputs
    if source is None:
        return held.synthetic if isinstance(held, RunInputs) else synthetic_of_result(result)
    # The folder of masks that the run noted goes with files; what is in memory has its own.
    in_files = isinstance(source, (str, os.PathLike))
    return Cohort.of(source, masks=masks_of_result(result) if in_files else None)


def validation_of(
    result: DetectionResult, *, masks: Any = None, patients: Any = None, patient_pattern: str | None = None
) -> Cohort | None:
    """The unseen real images of a run, found as the synthetic ones are; None where it had none.

    Args:
        masks, patients, patient_pattern: as `Cohort.of` takes them.

    Raises:
        InputError: the images are in neither place, or all of them are others now.
    """
    held = result.inputs
    if masks is None and patients is None and patient_pattern is None and isinstance(held, RunInputs):
        return held.validation
    return validation_of_result(result, masks=masks, patients=patients, patient_pattern=patient_pattern)


def as_result(result: DetectionResult | str | os.PathLike[str]) -> DetectionResult:
    """The result itself, or the one that the folder holds. Raises InputError for a folder without a whole result."""
    if isinstance(result, DetectionResult):
        return result
    if not isinstance(result, (str, os.PathLike)):
        raise InputError(repr(result)[:80], "is no result", "Give a DetectionResult or the folder of one")
    return DetectionResult.read(Path(result))
