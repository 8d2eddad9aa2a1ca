"""Engine: the opened index, the scored collection and single comparisons, shared by all requests of the server.

Everything is opened when it is first needed, and again when another process changes its files. Requests run in a pool
of threads: shared data is read-only or behind a lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from replica_detection.errors import IndexFormatError, ReplicaDetectionError
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.results.schema import (
    Comparison,
    IndexDescription,
    Job,
    MeasureDescription,
    number,
)
from replica_detection_server.collection import cohorts
from replica_detection_server.collection.studies import Studies
from replica_detection_server.comparison import tasks
from replica_detection_server.comparison.scored_result import ScoredResult
from replica_detection_server.errors import ConflictError, UnavailableError, UnknownNameError
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.util.caching import FileCache, LruCache
from replica_detection_server.util.progress import Pace, throttled

if TYPE_CHECKING:
    from replica_detection.detection.detector import Detector
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.preparation.prepare import PreparedImage
    from replica_detection.segmentation import Segmenter
    from replica_detection.surfaces.distances import SurfaceComparison

logger = logging.getLogger(__name__)

TellNull = Callable[[Job | None, str, int], None]

# A request waits this long for the null before it is asked to come again.
PATIENCE_SECONDS = 20.0
KEPT_CASES, KEPT_SURFACES = 12, 8


@dataclass(frozen=True)
class OpenedIndex:
    """An index as it was at one moment; `version` changes whenever a distance could.

    `misfit` names what the launch asks for and the index lacks, `wanted` the measures that the launch names.
    """

    index: TrainingIndex
    version: str
    misfit: str = ""
    wanted: tuple[str, ...] | None = None

    @cached_property
    def measures(self) -> tuple[MeasureDescription, ...]:
        """The measures of comparisons, without thresholds. Raises as `TrainingIndex.measures` and its embedders."""
        chosen = self.index.measures(self.wanted)
        return tuple(MeasureDescription(m.name, m.level, m.sense, m.definition) for m in chosen)

    @cached_property
    def positions(self) -> dict[str, int]:
        return {id: i for i, id in enumerate(self.index.ids)}

    @property
    def has_masks(self) -> bool:
        return "mask" in self.index.feature_names

    @cached_property
    def segmenter(self) -> Segmenter | None:
        """Makes the masks of synthetic images that have none; a network is read from its file only once."""
        return self.index.segmenter if self.has_masks else None

    def stored(self, training_id: str) -> PreparedImage:
        """A training case as it was compared; 404 for an unknown id."""
        from replica_detection.report.pair_loader import PairLoader

        if training_id not in self.positions:
            raise UnknownNameError(f"the index holds no training case '{training_id}'")
        return PairLoader(self.index, None).stored(training_id)


class Engine:
    """The index, the scored collection and comparisons of one server.

    Args:
        configuration: what the server was started with.
        index_failure: why the index could not be made, "" where nothing is known to have failed.
        null_size: cases of the null of an index by its version, 0 where it is unknown.
        index_words: progress of the job that makes the index, "" without one.

    `tell_null` is called with the null while it is being made (else None), the index's version, and the null's size
    once it is there.
    """

    def __init__(
        self,
        configuration: Configuration,
        index_failure: Callable[[], str] = str,
        null_size: Callable[[str], int] = lambda version: 0,
        index_words: Callable[[], str] = str,
    ):
        self.configuration, self.index_failure = configuration, index_failure
        self.null_size, self.index_words = null_size, index_words
        self.tell_null: TellNull = lambda job, version, size: None
        self._lock = threading.RLock()
        self._index: FileCache[OpenedIndex] = FileCache(configuration.index / "index.json", self._open_index)
        self._scored: FileCache[ScoredResult] = FileCache(
            configuration.scored / "detection.json", lambda: ScoredResult.read(configuration.scored)
        )
        self.found = Studies.of(configuration)
        self._null: _NullInTheMaking | None = None
        # Comparisons take all cores, so they run one after the other.
        self._turn = threading.Lock()
        self._cases: LruCache[PreparedImage] = LruCache(KEPT_CASES)
        self._surfaces: LruCache[SurfaceComparison] = LruCache(KEPT_SURFACES)

    # ------------------------------------------------------------------------------------------------ what there is

    def studies(self) -> Cohort:
        """The synthetic images as they are now."""
        return self.found.now().cohort

    def case(self, synthetic_id: str) -> Case:
        """A synthetic image by its id; 404 for an unknown one."""
        found = self.found.case(synthetic_id)
        if found is None:
            raise UnknownNameError(f"there is no synthetic image '{synthetic_id}'")
        return found

    def opened(self) -> OpenedIndex | None:
        """The index as it is on disk now; None where it has not been made yet.

        Raises IndexFormatError where it is damaged, or was made for other measures or embeddings than the launch names.
        """
        found = self._index.now()
        if found is not None and found.misfit:
            raise tasks.misfit_error(self.configuration, found.misfit)
        return found

    def required_index(self) -> OpenedIndex:
        """The index. Raises as `tasks.missing_index` where there is none that can be used."""
        try:
            found, unusable = self.opened(), None
        except IndexFormatError as error:
            found, unusable = None, error
        if found is None:
            raise tasks.missing_index(self.index_words(), unusable, self.index_failure()) from unusable
        return found

    def scored(self) -> ScoredResult | None:
        """The scored collection as it is on disk now; None before the first scoring, and where it is damaged."""
        try:
            return self._scored.now()
        except ReplicaDetectionError as error:
            logger.warning("the scores cannot be read, score the collection again: %s", error)
            return None

    def training(self) -> TrainingIndex | None:
        """The index if it can be used, else None."""
        try:
            opened = self.opened()
        except ReplicaDetectionError:
            return None
        return None if opened is None else opened.index

    def required_scores(self) -> ScoredResult:
        found = self.scored()
        if found is None:
            self.required_index()
            if words := self.index_words():
                raise ConflictError(f"the collection is being scored: {words}; try again after that")
            raise ConflictError("the collection is not scored yet: POST /replica/jobs/score")
        return found

    def describe_index(self) -> IndexDescription | None:
        """The index for clients; thresholds and null are known once it was used."""
        opened = self.opened()
        if opened is None:
            return None
        index, scored = opened.index, self.scored()
        run = scored.result.run if scored is not None and scored.index_version == opened.version else None
        thresholds = {m.name: m.threshold for m in run.measures} if run is not None else {}
        null_size = run.null.size if run is not None else self.null_size(opened.version)
        # With validation scans the kind is known once these were compared with the training scans' own distances.
        unscored = "cross-fitted" if self.configuration.validation is None else ""
        return IndexDescription(
            opened.version,
            len(index),
            index.preparation.profile,
            index.preparation.grid,
            index.preparation.spacing,
            tuple(replace(m, threshold=number(thresholds.get(m.name))) for m in opened.measures),
            unscored if run is None else run.null.kind,
            null_size,
            self.configuration.alpha,
            self.configuration.k,
            None if index.segmenter_settings is None else str(index.segmenter_settings["name"]),
            index.preparation,
        )

    # ---------------------------------------------------------------------------------------------------- comparing

    def known_comparison(self, synthetic_id: str, k: int) -> Comparison | None:
        """A synthetic image against the training cohort, from the scores; None where they are not current."""
        case, opened, scored = self.case(synthetic_id), self.required_index(), self.scored()
        if scored is not None and scored.is_current(case, opened.version):
            return scored.comparison(case.id, k)
        return None

    def compare(self, case: Case, k: int) -> Comparison:
        """Any image against the training cohort, under every measure.

        Raises:
            InputError: the image or its mask cannot be read.
            UnavailableError: where the index or the null is still being made.
        """
        detector, version = self.detector()
        try:
            with self._turn:
                result = detector.detect(Cohort(case.image.parent, (case,)))
        except IndexFormatError as error:
            opened = self.opened()
            if opened is not None and opened.version == version:
                raise
            detail = "the index was made anew meanwhile; ask again"
            raise UnavailableError(detail, 1) from error
        return ScoredResult(result, version, {}).comparison(case.id, k)

    def detector(self) -> tuple[Detector, str]:
        """The detector for the present index, and the index's version; if there is none, it is made in the background.

        Raises UnavailableError while it is being made, or the error that stopped that.
        """
        opened = self.required_index()
        making = self._making(opened)
        if not making.done.wait(PATIENCE_SECONDS):
            detail = f"the comparison is being prepared: {making.words}; try again after that"
            raise UnavailableError(detail, tasks.RETRY_SECONDS)
        if making.detector is None:
            with self._lock:
                self._null = None if self._null is making else self._null
            raise making.error or ReplicaDetectionError("the comparison could not be prepared")
        return making.detector, opened.version

    def prepare(self) -> None:
        """Starts to make what the first comparison needs, in the background."""
        self._making(self.required_index())

    def prepared(self, case: Case) -> PreparedImage:
        """An image on the grid of the index, with the mask that comparisons use. Raises InputError as reading does."""
        from replica_detection.preparation.loading import load_prepared

        opened = self.required_index()

        def prepare() -> PreparedImage:
            with self._turn:
                _, found = next(
                    load_prepared(
                        [case],
                        opened.index.preparation,
                        with_masks=opened.has_masks,
                        segmenter=opened.segmenter,
                        strict=True,
                    )
                )
            assert not isinstance(found, Problem)  # strict
            return found

        files = case.input_files
        return self._cases.get((files, opened.version, cohorts.state_of(files)), prepare)

    def surfaces(self, synthetic_id: str, training_id: str) -> tuple[SurfaceComparison, PreparedImage, PreparedImage]:
        """The surfaces of a pair's masks, in mm along the axes of the common grid, and both cases.

        Raises ConflictError where either has no mask or an empty one, or the images are 2D.
        """
        from replica_detection.surfaces.distances import compare_surfaces

        case, opened = self.case(synthetic_id), self.required_index()
        training = opened.stored(training_id)
        if not opened.has_masks:
            raise ConflictError("the index holds no masks: build it with masks, or with a segmenter")
        if len(opened.index.preparation.grid) != 3:
            raise ConflictError("surfaces need 3D images")
        synthetic = self.prepared(case)
        for name, prepared in (("synthetic", synthetic), ("training", training)):
            if prepared.mask is None or not prepared.mask.any():
                raise ConflictError(f"the {name} image has no mask, or an empty one")

        def compare() -> SurfaceComparison:
            assert synthetic.mask is not None and training.mask is not None
            with self._turn:
                return compare_surfaces(
                    synthetic.mask, training.mask, np.diag([*opened.index.preparation.spacing, 1.0])
                )

        files = case.input_files
        key = (files, training_id, opened.version, cohorts.state_of(files))
        return self._surfaces.get(key, compare), synthetic, training

    def aligned(self, synthetic_id: str, training_id: str) -> tuple[PreparedImage, PreparedImage]:
        """A synthetic image and a training case aligned to it, both on the common grid.

        Raises UnknownNameError where this pair was not aligned: it is no candidate, or nothing was scored yet.
        """
        from replica_detection.report.pair_loader import PairLoader

        case, opened, scored = self.case(synthetic_id), self.required_index(), self.scored()
        training = opened.stored(training_id)
        current = scored is not None and scored.is_current(case, opened.version)
        alignment = scored.result.alignment(case.id, training_id) if scored is not None and current else None
        if alignment is None:
            raise UnknownNameError("no alignment is known for this pair")
        synthetic = self.prepared(case)
        return synthetic, PairLoader(opened.index, None).resample(training, alignment, synthetic.affine)

    def _making(self, opened: OpenedIndex) -> _NullInTheMaking:
        with self._lock:
            if self._null is None or self._null.version != opened.version:
                if self._null is not None:
                    self._null.cancel()
                self._null = _NullInTheMaking(self.configuration, opened, self.tell_null)
            return self._null

    def _open_index(self) -> OpenedIndex:
        from replica_detection.index.training_index import TrainingIndex

        index = TrainingIndex.open(self.configuration.index)
        found = tasks.misfit(self.configuration, index)
        return OpenedIndex(index, index.content_id, found, self.configuration.measure_names)


class _StoppedError(Exception):
    pass


class _NullInTheMaking:
    """A detector that a thread is making; quick if the null is already stored in the index."""

    def __init__(self, configuration: Configuration, opened: OpenedIndex, tell: TellNull):
        self.version, self._tell = opened.version, tell
        self._tell_seldom = throttled(lambda *_: tell(self._job(), opened.version, 0), 0.2)
        self.done = threading.Event()
        self.detector: Detector | None = None
        self.error: ReplicaDetectionError | None = None
        self._pace, self._start = Pace(), time.monotonic()
        self._pace.note("null", 0, 0)
        self._stopping = False
        threading.Thread(target=self._make, args=(configuration, opened), name="null", daemon=True).start()

    @property
    def words(self) -> str:
        """The present stage and its progress."""
        return self._pace.words

    def _job(self) -> Job:
        pace, seconds = self._pace, round(time.monotonic() - self._start, 1)
        return Job(
            "null", "null", "running", pace.stage, pace.done, pace.total, seconds, "", pace.words, pace.seconds_left
        )

    def cancel(self) -> None:
        self._stopping = True

    def _make(self, configuration: Configuration, opened: OpenedIndex) -> None:
        try:
            detector = tasks.detector_for(configuration, opened.index, self._progress)
            # The null is made. From here on one image is judged at a time, and its errors are the answer.
            detector.options = replace(detector.options, strict=True)
            self.detector = detector
        except ReplicaDetectionError as error:
            self.error = error
        except Exception as error:
            self.error = ReplicaDetectionError(f"the comparison could not be prepared ({type(error).__name__})")
        finally:
            self._tell(None, self.version, 0 if self.detector is None else len(self.detector.null.ids))
            self.done.set()

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._pace.note(stage, done, total)
        self._tell_seldom(stage, done, total)
        if self._stopping:
            raise _StoppedError
