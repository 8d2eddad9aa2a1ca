"""Prepared images of a synthetic case and a training case, for pictures of a finished result."""

from __future__ import annotations

import numpy as np

from replica_detection.detection.run_inputs import index_of, synthetic_of
from replica_detection.errors import ReplicaDetectionError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.measures.segmentation import has_mask
from replica_detection.preparation.loading import load_prepared
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.registration.alignment import Alignment
from replica_detection.results.pair import Pair
from replica_detection.results.result import DetectionResult


class PairLoader:
    """Loads the two images of a pair on the grid of the index.

    Args:
        index: the training cohort.
        queries: cohort of the first case of a pair; None: the index itself.
    """

    def __init__(self, index: TrainingIndex, queries: Cohort | None):
        self.index = index
        self.has_masks = "mask" in index.feature_names
        # Built once: a network is read from its file each time it is built.
        self.segmenter = index.segmenter if self.has_masks and queries is not None else None
        self.positions = {id: i for i, id in enumerate(index.ids)}
        self.cases: dict[str, Case] | None = None if queries is None else {c.id: c for c in queries.cases}

    def __call__(self, query_id: str, training_id: str, alignment: Alignment | None = None) -> Pair | None:
        """The pair, with the training image resampled by `alignment` if it is given; None where an image is missing."""
        if training_id not in self.positions:
            return None
        try:
            training = self.stored(training_id)
            query = self.stored(query_id) if self.cases is None else self._read(query_id)
        except ReplicaDetectionError:
            return None
        if query is None:
            return None
        if alignment is not None:
            training = self.resample(training, alignment, query.affine)
        return Pair(query.image, training.image, self.index.preparation.spacing, query.mask, training.mask)

    def resample(self, training: PreparedImage, alignment: Alignment, query_affine: np.ndarray) -> PreparedImage:
        """A training case resampled to a query on the common grid; `query_affine` (4, 4) is that of the query."""
        from replica_detection.registration.transforms import resample, to_training

        preparation = self.index.preparation
        matrix = to_training(alignment, preparation, query_affine, training.affine)
        mask = None if training.mask is None else resample(training.mask, matrix, preparation, labels=True)
        return PreparedImage(resample(training.image, matrix, preparation), mask, affine=query_affine)

    def stored(self, case_id: str) -> PreparedImage:
        """A case of the index, with its mask if it has one. Raises KeyError for an unknown id."""
        names = ["image", "mask"] if self.has_masks else ["image"]
        features = self.index.features([self.positions[case_id]], names)
        mask = features["mask"][0] if self.has_masks and has_mask(features["mask"])[0] else None
        affine = np.array(self.index.entries[self.positions[case_id]].affine).reshape(4, 4)
        return PreparedImage(features["image"][0], mask, affine=affine)

    def _read(self, case_id: str) -> PreparedImage | None:
        assert self.cases is not None
        if case_id not in self.cases:
            return None
        _, prepared = next(
            load_prepared(
                [self.cases[case_id]], self.index.preparation, with_masks=self.has_masks, segmenter=self.segmenter
            )
        )
        return None if isinstance(prepared, Problem) else prepared


def loader_of_result(result: DetectionResult) -> PairLoader | None:
    """The loader of a result's pairs; None where its index or its synthetic images cannot be read."""
    return loader_or_reason(result)[0]


def loader_or_reason(result: DetectionResult) -> tuple[PairLoader | None, str]:
    """The loader of a result's pairs and ""; or None and the reason, in the words of the error."""
    try:
        return PairLoader(index_of(result), synthetic_of(result)), ""
    except ReplicaDetectionError as error:
        return None, str(error)
