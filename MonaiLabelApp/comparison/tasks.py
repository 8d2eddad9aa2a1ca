"""The two long jobs of the server, in their own process: building the index, and scoring the synthetic images.

Both write their result to disk, whole or not at all. The server, which may be another process, reads it there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from replica_detection.errors import IndexFormatError, InputError
from replica_detection.index.build import open_or_build
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.progress import Progress, silent
from replica_detection.results.result import DetectionResult
from replica_detection_server.collection import cohorts
from replica_detection_server.comparison.scored_result import write_scored
from replica_detection_server.errors import ConflictError, RefusedError, UnavailableError
from replica_detection_server.incoming.error_responses import refusal
from replica_detection_server.settings import embeddings
from replica_detection_server.settings.configuration import Configuration

# Seconds after which the index, or the null, may be ready.
RETRY_SECONDS = 5
_START = "start it with POST /replica/jobs/index"


def open_index(configuration: Configuration) -> TrainingIndex:
    """The index on disk. Raises IndexFormatError where there is none, it cannot be used, or does not fit the launch."""
    index = TrainingIndex.open(configuration.index)
    if found := misfit(configuration, index):
        raise misfit_error(configuration, found)
    return index


def misfit(configuration: Configuration, index: TrainingIndex) -> str:
    """The measures or embeddings that the launch names and the index lacks; "" where it fits.

    Options that the launch does not name may have any value: an index made elsewhere has its own.
    """
    from replica_detection.measures import MEASURES

    lacking = [m for m in configuration.measure_names or () if m in MEASURES and not index.has_features_of(m)]
    if lacking:
        return f"was not made for measure '{lacking[0]}'"
    return "" if embeddings.fits(configuration, index) else "was made with another embedding than the one named"


def misfit_error(configuration: Configuration, found: str) -> IndexFormatError:
    again = "Build it again with `replica-detection index`, or name other measures"
    advice = again if configuration.training is None else "Start POST /replica/jobs/index, which makes it anew"
    return IndexFormatError(configuration.index, found, advice)


def build_index(configuration: Configuration, progress: Progress = silent, *, rebuild: bool = False) -> TrainingIndex:
    """Makes the index, or adds the training cases that it lacks; then the distances that p values rest on.

    One that was made with other options, embeddings among them, is rebuilt.

    Args:
        rebuild: build it again even where it still fits the cohort.

    Raises:
        InputError, ConfigurationError: as `build_index` and `Detector`; without `training`, no finished index.
    """
    cohort = cohorts.training(configuration)
    if cohort is None:
        index = open_index(configuration)
    else:
        configuration.index.parent.mkdir(parents=True, exist_ok=True)
        made = embeddings.make(configuration)
        options = IndexOptions(
            configuration.profile, configuration.measure_names, configuration.segment, made.images, made.slices
        )
        index = open_or_build(cohort, configuration.index, options, rebuild=rebuild, progress=progress)
    # Kept inside the index, where the server finds them.
    detector_for(configuration, index, progress)
    return index


def detector_for(configuration: Configuration, index: TrainingIndex, progress: Progress = silent):
    """A `detection.Detector` with the options of the launch; where its null is missing, one process makes it."""
    import filelock

    from replica_detection.detection.detector import Detector
    from replica_detection.detection.options import DetectionOptions

    options = DetectionOptions(
        measures=configuration.measure_names,
        k=configuration.k,
        alpha=configuration.alpha,
        device=configuration.device,
        null_size=configuration.null_size,
        # The limits on a computation are those of one process; its kernels use all cores.
        workers=1,
    )
    configuration.data.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(configuration.data / ".null.lock"):
        return Detector(index, validation=cohorts.validation(configuration), options=options, progress=progress)


def score(configuration: Configuration, progress: Progress = silent) -> DetectionResult:
    """Judges all synthetic images and writes the result folder, report included.

    Makes the index first where there is none that fits the launch. Raises InputError where there is no image, or
    another process scores.
    """
    from replica_detection.index.rows import move_into_place
    from replica_detection.report import write_report
    from replica_detection.report.pair_loader import PairLoader
    from replica_detection.util.lock import Lock

    try:
        index = open_index(configuration)
    except IndexFormatError:
        if configuration.training is None:
            raise
        index = build_index(configuration, progress)
    cohort = cohorts.studies(configuration)
    if not cohort.cases:
        raise InputError(configuration.studies, "holds no image", "Put synthetic images into it and score again")
    configuration.data.mkdir(parents=True, exist_ok=True)
    with Lock(configuration.data):
        # Before the images are read: one that changes meanwhile is then known to be newer than its score.
        states = {case.id: cohorts.state_of(_files(case)) for case in cohort.cases}
        result = detector_for(configuration, index, progress).detect(
            cohort, masks=configuration.masks, progress=progress
        )
        work = configuration.data / "scored.partial"
        shutil.rmtree(work, ignore_errors=True)
        result.write(work)
        write_scored(work, index.content_id, states)
        write_report(result, work / "report", PairLoader(index, cohort), progress=progress)
        move_into_place(work, configuration.scored)
    return result


def _files(case) -> tuple[Path, ...]:
    return case.input_files


TASKS: dict[str, Callable[[Configuration, Progress], object]] = {"index": build_index, "score": score}


def missing_index(words: str, unusable: IndexFormatError | None, failure: str) -> RefusedError:
    """The refusal without a usable index: the state of the index, and what to do.

    Args:
        words: progress of the job that makes it, "" without one: then waiting would not help.
        unusable: what is wrong with the one that is there.
        failure: why the last job failed, "" where it did not.
    """
    if words:
        return UnavailableError(f"the index is being made: {words}; try again after that", RETRY_SECONDS)
    if unusable is not None:
        return refusal(unusable)
    if failure:
        return ConflictError(f"the index could not be made: {failure} When that is mended, {_START}")
    return ConflictError(f"there is no index yet, and nothing makes it: {_START}")
