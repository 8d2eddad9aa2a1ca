"""FolderSource: a finished result folder on disk, read without a server and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.errors import ConfigurationError, InputError, ReplicaDetectionError
from replica_detection.index.entries import Entry, IndexHeader, header_of_result
from replica_detection.io.case import Case
from replica_detection.io.cohort import Cohort
from replica_detection.preparation.profiles import Preparation
from replica_detection.progress import Progress, silent
from replica_detection.readers.ratings import Rating
from replica_detection.readers.worklist import Filter, filtered, next_unrated, ordered, with_ratings
from replica_detection.results.finding import synthetic_and_changed
from replica_detection.results.places import MOVED
from replica_detection.results.result import DetectionResult
from replica_detection.results.schema import (
    API_VERSION,
    AgreementReport,
    Comparison,
    Histogram,
    IndexDescription,
    MeasureDescription,
    RatingReceipt,
    Status,
    Worklist,
    WorklistItem,
    number,
)
from replica_detection.results.views import comparison_of, histograms_of, worklist_item
from replica_detection.version import __version__
from ReplicaDetectionLib.CasePair import CasePair
from ReplicaDetectionLib.Sources import Cancelled, Source, Steps, never

if TYPE_CHECKING:
    from replica_detection.segmentation import Segmenter
    from ReplicaDetectionLib.PairMaking import CommonGrid, ReadImage

RATINGS = "ratings.sqlite"


class FolderSource(Source):
    """Args:
        folder: what `replica-detection detect --output` wrote.
        ratings: the file that ratings go to; None: `ratings.sqlite` in the folder. It is made with the first rating.

    Raises:
        InputError: the folder holds no finished result.
    """

    def __init__(self, folder: str | Path, ratings: str | Path | None = None):
        self.folder = Path(folder)
        self.name = str(folder)
        self.result = DetectionResult.read(self.folder)
        self.ratingsFile = self.folder / RATINGS if ratings is None else Path(ratings)

    def status(self) -> Status:
        """`problem` names files of the result that are missing; the list and the ratings work without them."""
        run, profile = self.result.run, self.result.run.profile
        problem, preparation = "", None
        try:
            preparation = self._preparation
            _ = self._training, self._synthetic
        except ReplicaDetectionError as error:
            problem = str(error)
        index = IndexDescription(
            self.version,
            run.training.cases,
            str(profile.get("profile", "")),
            tuple(profile.get("grid", ())),
            tuple(profile.get("spacing", ())),
            tuple(
                MeasureDescription(m.name, m.level, m.sense, m.definition, number(m.threshold)) for m in run.measures
            ),
            run.null.kind,
            run.null.size,
            run.alpha,
            run.k,
            preparation=preparation,
        )
        scored = sum(math.isfinite(row.score) for row in self.result.summary)
        return Status(
            API_VERSION,
            __version__,
            len(self.result.summary),
            scored,
            run.training.cases,
            "none",
            "",
            0,
            index,
            problem=problem,
        )

    @property
    def version(self) -> str:
        """The index version that ratings store: the time of the run that made the result."""
        return self.result.run.created

    def worklist(
        self,
        *,
        offset: int = 0,
        limit: int = 50,
        sort: str = "score",
        descending: bool = True,
        verdicts: Sequence[str] = (),
        rated: str = "any",
        reader: str = "",
        search: str = "",
    ) -> Worklist:
        chosen = Filter(tuple(verdicts), rated, search)
        found = ordered(filtered(self._items(reader), chosen, reader), sort, descending=descending)
        return Worklist(len(found), offset, tuple(found[offset : offset + limit]), self.version)

    def next(self, reader: str = "", after: str = "") -> WorklistItem | None:
        return next_unrated(self._items(reader), reader, after)

    def comparison(self, syntheticId: str, k: int = 10) -> Comparison:
        try:
            return comparison_of(self.result, syntheticId, k, self.version)
        except KeyError:
            raise InputError(self.folder, f"holds no case '{syntheticId}'", "Read the list again") from None

    def pair(
        self, syntheticId: str, trainingId: str = "", *, progress: Progress = silent, cancelled: Cancelled = never
    ) -> CasePair:
        from ReplicaDetectionLib.PairMaking import placementOf, surfacesOf

        step = Steps(4, progress, cancelled)
        comparison = self.comparison(syntheticId)
        trainingId = trainingId or comparison.nearest_training_id
        step("Reading the synthetic image")
        synthetic, problem = self._read(self._case(self._synthetic, syntheticId))
        step("Reading the training image")
        training, other = self._read(self._case(self._training, trainingId))
        step("Measuring surfaces")
        alignment = comparison.alignment if trainingId == comparison.nearest_training_id else None
        surfaces, missing = surfacesOf(synthetic, training, alignment)
        step("Done")
        return CasePair(
            comparison,
            synthetic.image,
            training.image,
            placementOf(synthetic, training),
            surfaces,
            problem or other or missing,
            alignment,
        )

    def histograms(self) -> list[Histogram]:
        return histograms_of(self.result)

    def saveRating(self, rating: Rating) -> RatingReceipt:
        from replica_detection.readers.rating_store import RatingStore

        RatingStore(self.ratingsFile).add(rating)
        stored = next(r for r in RatingStore(self.ratingsFile).all() if r.rating_id == rating.rating_id)
        return RatingReceipt(stored.rating_id, stored.reader, stored.created)

    def ratings(self, reader: str = "", syntheticId: str = "") -> list[Rating]:
        from replica_detection.readers.rating_store import RatingStore

        if not self.ratingsFile.exists():
            return []
        return [
            r
            for r in RatingStore(self.ratingsFile).latest()
            if reader in ("", r.reader) and syntheticId in ("", r.synthetic_id)
        ]

    def agreement(self) -> AgreementReport:
        from replica_detection.readers.agreement import agreement_report

        return agreement_report(self.ratings(), self.result)

    # --------------------------------------------------------------------------------------------------------- inside

    def _items(self, reader: str) -> list[WorklistItem]:
        return with_ratings([worklist_item(row) for row in self.result.summary], self.ratings(), reader)

    def _case(self, cases: dict[str, Case], caseId: str) -> Case:
        if caseId in cases:
            return cases[caseId]
        gone = InputError(self.folder, f"names the case '{caseId}', whose file is gone", MOVED)
        raise self._cohort[1].get(caseId, gone)

    def _read(self, case: Case) -> tuple[ReadImage, str]:
        """The image with its mask, from a file or made as the run made it; or without a mask, and the reason."""
        from ReplicaDetectionLib.PairMaking import readImage

        try:
            return readImage(case, self._grid, self._segmenter if case.mask is None else None), ""
        except (ImportError, ConfigurationError) as error:
            # The masks came from a network: Slicer has no torch. Or this version would make other masks.
            problem = f"The masks of this result cannot be made here ({error}); give them as files, or use a server."
            return readImage(case, self._grid), problem

    @cached_property
    def _segmenter(self) -> Segmenter | None:
        """Makes masks as the run did. Raises ConfigurationError if this version makes other masks."""
        from replica_detection.segmentation import make_segmenter

        settings = self._index.segmenter
        if settings is None:
            return None
        chosen = {k: v for k, v in settings.items() if k not in ("name", "version")}
        made = make_segmenter(settings["name"], **chosen)
        if json.loads(json.dumps(made.settings())) != settings:
            raise ConfigurationError(f"another version of segmenter '{made.name}' made them")
        return made

    @cached_property
    def _index(self) -> IndexHeader:
        """The training cases with their files, and the grid."""
        return header_of_result(self.result)[1]

    @property
    def _preparation(self) -> Preparation:
        return self._index.preparation

    @cached_property
    def _grid(self) -> CommonGrid:
        from ReplicaDetectionLib.PairMaking import CommonGrid

        return CommonGrid.of(self._preparation)

    @cached_property
    def _training(self) -> dict[str, Case]:
        index = self._index
        if any(entry.in_memory for entry in index.entries):
            found = "was given to the detection in memory, so its images are in no file"
            raise InputError(index.source, found, "Run the detection on a folder of images to see pairs here")
        return {entry.id: _trainingCase(entry) for entry in index.entries}

    @cached_property
    def _synthetic(self) -> dict[str, Case]:
        return {case.id: case for case in self._cohort[0].cases}

    @cached_property
    def _cohort(self) -> tuple[Cohort, dict[str, InputError]]:
        """The synthetic images, and for each that changed since the run what to say of it."""
        return synthetic_and_changed(self.result)


def _trainingCase(entry: Entry) -> Case:
    return Case(entry.id, entry.images, entry.mask_file)
