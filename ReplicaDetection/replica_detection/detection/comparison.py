"""Comparison of queries with an index, in blocks: the unit of work is (queries, training cases, measure)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from replica_detection.detection.distances import Distances
from replica_detection.detection.queries import IndexQueries, Queries, QueryBlock
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Problem
from replica_detection.measures import (
    AligningMeasure,
    Measure,
    MeasureOutput,
    SearchingMeasure,
    needed_features,
)
from replica_detection.progress import Progress, silent
from replica_detection.registration.placement import Placement


def compare(
    queries: Queries,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    across_patients: bool = False,
    left_out: np.ndarray | None = None,
    stage: str = "comparing",
    kind: str = "",
    progress: Progress = silent,
) -> Distances:
    """Distances of all queries to all cases of the index, under each measure.

    Left out (+inf) are a case of the index with itself, every pair with a training case in `left_out`, and pairs of one
    patient if `across_patients`. At most one block of queries and two blocks of training cases are in memory.

    Args:
        across_patients: compare different patients only, as null cases are. A synthetic image is compared with all:
            one that carries a training patient's id may be a copy of that very patient's scan.
        left_out: (N,) bool.
        stage: name of the work for `progress`.
        kind: kept in the result, see `Distances`.
        progress: called with (stage, pairs done, pairs in all).
    """
    training_patients = np.array([e.patient or "" for e in index.entries], dtype=object)
    own_position = {id: i for i, id in enumerate(index.ids)} if isinstance(queries, IndexQueries) else {}
    collected = _Collector(measures, len(index))
    meter = _Meter(progress, stage, len(queries) * len(index) * len(measures))
    meter.advance(0)
    for block in queries.blocks(measures):
        if isinstance(block, Problem):
            collected.problems.append(block)
            meter.done += len(index) * len(measures)
            continue
        same_patient = _pairs_of_one_patient(block, training_patients)
        excluded = _own_pairs(block, own_position, len(index))
        if across_patients:
            excluded |= same_patient
        else:
            collected.warnings += _carried_ids(block, same_patient & ~excluded)
        if left_out is not None:
            excluded |= left_out
        outputs = _streamed(block, index, measures, meter.advance)
        for m in measures:
            if isinstance(m, SearchingMeasure):
                outputs[m.name] = m.search(block.features, excluded)
                meter.advance(excluded.size)
        start = time.perf_counter()
        for sharing in _by_source(measures):
            for m, output, placements in _aligned(block, index, sharing, excluded, meter.advance):
                outputs[m.name] = output
                collected.placements[m.name] += placements
        collected.seconds_aligning += time.perf_counter() - start
        collected.add(block, outputs, excluded)
    return collected.distances(kind)


@dataclass
class _Meter:
    """Counts pairs of cases, and reports them."""

    progress: Progress
    stage: str
    total: int
    done: int = 0

    def advance(self, pairs: int) -> None:
        self.done += pairs
        self.progress(self.stage, min(self.done, self.total), self.total)


class _Collector:
    """Gathers the outputs of one block of queries after the other."""

    def __init__(self, measures: Sequence[Measure], training_cases: int):
        self.training_cases = training_cases
        self.outputs: dict[str, list[MeasureOutput]] = {m.name: [] for m in measures}
        self.placements: dict[str, list[list[Placement]]] = {
            m.name: [] for m in measures if isinstance(m, AligningMeasure)
        }
        self.ids: list[str] = []
        self.problems: list[Problem] = []
        self.warnings: list[tuple[str, str]] = []
        self.affines: list[np.ndarray] = []
        self.voxels: list[str] = []
        self.left_out: list[int] = []
        self.seconds_aligning = 0.0

    def add(self, block: QueryBlock, outputs: Mapping[str, MeasureOutput], excluded: np.ndarray) -> None:
        """Takes the outputs of a block; pairs in `excluded` (Q, N) become +inf."""
        for name, output in outputs.items():
            output.distances[excluded] = np.inf
            self.outputs[name].append(output)
        self.ids += block.ids
        self.warnings += block.warnings
        self.affines += block.affines
        self.voxels += block.voxels
        self.left_out += excluded.sum(1).tolist()

    def distances(self, kind: str) -> Distances:
        return Distances(
            ids=tuple(self.ids),
            by_measure={name: self._stacked([o.distances for o in blocks]) for name, blocks in self.outputs.items()},
            voxels=tuple(self.voxels),
            left_out=tuple(self.left_out),
            problems=tuple(self.problems),
            warnings=tuple(self.warnings),
            kind=kind,
            placements=self.placements,
            affines=tuple(self.affines),
            seconds_aligning=self.seconds_aligning,
            details={
                name: {key: self._stacked([o.details[key] for o in blocks]) for key in blocks[0].details}
                for name, blocks in self.outputs.items()
                if blocks and blocks[0].details
            },
        )

    def _stacked(self, blocks: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(blocks) if blocks else np.empty((0, self.training_cases))


def _streamed(
    block: QueryBlock, index: TrainingIndex, measures: Sequence[Measure], advance: Callable[[int], None]
) -> dict[str, MeasureOutput]:
    """Outputs of the measures that read the index block by block."""
    chosen = [m for m in measures if not isinstance(m, (SearchingMeasure, AligningMeasure))]
    shape = (len(block.ids), len(index))
    outputs = {m.name: MeasureOutput(np.empty(shape), {}) for m in chosen}
    names = needed_features(chosen)
    for start, training in index.blocks(names) if names else ():
        count = len(training[names[0]])
        for m in chosen:
            distances, details = outputs[m.name].distances, outputs[m.name].details
            distances[:, start : start + count] = m.distances(block.features, training)
            for key, values in m.details(block.features, training).items():
                details.setdefault(key, np.empty(shape, np.float32))[:, start : start + count] = values
            advance(count * len(block.ids))
    return outputs


def _by_source(measures: Sequence[Measure]) -> list[list[AligningMeasure]]:
    """The measures that align, grouped by the search that they share."""
    groups: dict[str, list[AligningMeasure]] = {}
    for m in measures:
        if isinstance(m, AligningMeasure):
            groups.setdefault(m.source, []).append(m)
    return list(groups.values())


def _aligned(
    block: QueryBlock,
    index: TrainingIndex,
    measures: Sequence[AligningMeasure],
    excluded: np.ndarray,
    advance: Callable[[int], None],
) -> list[tuple[AligningMeasure, MeasureOutput, list[list[Placement]]]]:
    """Outputs of measures that share a search, one query after the other, with each query's candidates."""
    outputs: list[tuple[AligningMeasure, MeasureOutput, list[list[Placement]]]] = [
        (m, MeasureOutput(np.full(excluded.shape, np.inf), {}), []) for m in measures
    ]
    for i in range(len(block.ids)):
        query = {name: values[i : i + 1] for name, values in block.features.items()}
        candidates = measures[0].candidates(query, index, ~excluded[i])
        for m, output, placements in outputs:
            compared = m.compare(query, candidates, index)
            for distance, placement in compared:
                output.distances[i, placement.training] = distance
            placements.append([placement for _, placement in compared])
            advance(len(index))
    return outputs


def _pairs_of_one_patient(block: QueryBlock, training_patients: np.ndarray) -> np.ndarray:
    """(Q, N) bool: pairs of one patient, as far as patients are known."""
    same = np.zeros((len(block.ids), len(training_patients)), bool)
    for i, patient in enumerate(block.patients):
        if patient is not None:
            same[i] = training_patients == patient
    return same


def _own_pairs(block: QueryBlock, own_position: Mapping[str, int], training_cases: int) -> np.ndarray:
    """(Q, N) bool: pairs of a case of the index with itself."""
    own = np.zeros((len(block.ids), training_cases), bool)
    for i, id in enumerate(block.ids):
        if id in own_position:
            own[i, own_position[id]] = True
    return own


def _carried_ids(block: QueryBlock, same_patient: np.ndarray) -> Iterator[tuple[str, str]]:
    """(case id, text) of the queries that state a training patient's id, as a copied DICOM header does."""
    for id, row in zip(block.ids, same_patient, strict=True):
        if row.any():
            yield id, "the file carries the patient id of a training case; it was compared with that case all the same"
