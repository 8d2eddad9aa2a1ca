"""Prepared images of a synthetic case and a training case, for pictures of a finished result."""

from __future__ import annotations

from pathlib import Path

from replica_detection.cohort import Case, Cohort, Problem
from replica_detection.errors import ReplicaDetectionError
from replica_detection.index import TrainingIndex
from replica_detection.loading import load_prepared
from replica_detection.report import Pair


class PairLoader:
    """Gives the two images of a pair on the grid of the index.

    Args:
        index: the training cohort.
        queries: where the first case of a pair comes from; None: from the index itself.
    """

    def __init__(self, index: TrainingIndex, queries: Cohort | None):
        self.index = index
        self.positions = {id: i for i, id in enumerate(index.ids)}
        self.cases: dict[str, Case] | None = None if queries is None else {c.id: c for c in queries.cases}

    def __call__(self, query_id: str, training_id: str) -> Pair | None:
        """None where either image is gone or cannot be read any more."""
        if training_id not in self.positions:
            return None
        try:
            training = self._stored(training_id)
            query = self._stored(query_id) if self.cases is None else self._read(query_id)
        except ReplicaDetectionError:
            return None
        return None if query is None else Pair(query, training, self.index.preparation.spacing)

    def _stored(self, case_id: str):
        return self.index.features([self.positions[case_id]], ["image"])["image"][0]

    def _read(self, case_id: str):
        assert self.cases is not None
        if case_id not in self.cases:
            return None
        _, prepared = next(load_prepared([self.cases[case_id]], self.index.preparation, with_masks=False))
        return None if isinstance(prepared, Problem) else prepared.image


def loader_of_result(index: str, synthetic: str) -> PairLoader | None:
    """The loader for a result on disk, from what its `detection.json` names; None where either has moved."""
    try:
        return PairLoader(TrainingIndex.open(Path(index)), Cohort.read(Path(synthetic)))
    except ReplicaDetectionError:
        return None
