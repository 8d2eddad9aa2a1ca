"""All pairs of queries and training cases, block by block: the unit of work is (queries, training cases, measure)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from replica_detection.cohort import Cohort, Problem
from replica_detection.index import BLOCK_BYTES, TrainingIndex
from replica_detection.loading import load_prepared
from replica_detection.measures import AligningMeasure, Block, Measure, features_of, needed_features
from replica_detection.progress import Progress, silent
from replica_detection.registration.retrieval import Placement


@dataclass(frozen=True)
class Distances:
    """`by_measure[name]` is (Q, N) float64 over the cases of an index; +inf where a pair is left out.

    `problems` are query files that could not be read; `warnings` are (case id, text); `kind` is what the queries are
    when they serve as a null. `placements[name]` holds for each query how its candidates were laid upon it, nearest
    first, under a measure that aligns; `affines` (4, 4) lead from the grid to each query's file.
    """

    ids: tuple[str, ...]
    by_measure: dict[str, np.ndarray]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    placements: dict[str, list[list[Placement]]] = field(default_factory=dict)
    affines: tuple[np.ndarray, ...] = ()
    seconds_aligning: float = 0.0


@dataclass(frozen=True)
class QueryBlock:
    """Some query cases with their features and patients (None: nobody's)."""

    ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    features: Block
    warnings: tuple[tuple[str, str], ...] = ()
    affines: tuple[np.ndarray, ...] = ()


class Queries(Protocol):
    """Where query blocks come from."""

    def blocks(self, measures: Sequence[Measure]) -> Iterator[QueryBlock | Problem]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class CohortQueries:
    """Cases read from files and prepared on the way, as the index prepared its own."""

    cohort: Cohort
    index: TrainingIndex
    strict: bool = False

    def __len__(self) -> int:
        return len(self.cohort.cases)

    def blocks(self, measures: Sequence[Measure]) -> Iterator[QueryBlock | Problem]:
        names = needed_features(measures)
        limit = self.index.block_rows(names, BLOCK_BYTES)
        ids: list[str] = []
        patients: list[str | None] = []
        rows: list[dict[str, np.ndarray]] = []
        warnings: list[tuple[str, str]] = []
        affines: list[np.ndarray] = []

        def block() -> QueryBlock:
            features = {n: np.stack([r[n] for r in rows]) for n in names}
            return QueryBlock(tuple(ids), tuple(patients), features, tuple(warnings), tuple(affines))

        with_masks = any(m.needs_mask for m in measures)
        loaded = load_prepared(
            self.cohort.cases,
            self.index.preparation,
            with_masks=with_masks,
            segmenter=self.index.segmenter if with_masks else None,
            strict=self.strict,
        )
        for case, prepared in loaded:
            if isinstance(prepared, Problem):
                yield prepared
                continue
            ids.append(case.id)
            patients.append(case.patient)
            rows.append(features_of(prepared, measures))
            warnings += [(case.id, text) for text in prepared.warnings]
            affines.append(prepared.affine)
            if len(rows) == limit:
                yield block()
                ids, patients, rows, warnings, affines = [], [], [], [], []
        if rows:
            yield block()


@dataclass(frozen=True)
class IndexQueries:
    """Cases of the index itself, as queries against it; a case is never compared with itself."""

    index: TrainingIndex
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def blocks(self, measures: Sequence[Measure]) -> Iterator[QueryBlock | Problem]:
        names = needed_features(measures)
        rows = self.index.block_rows(names, BLOCK_BYTES)
        for start in range(0, len(self.positions), rows):
            part = list(self.positions[start : start + rows])
            entries = [self.index.entries[i] for i in part]
            yield QueryBlock(
                tuple(e.id for e in entries),
                tuple(e.patient for e in entries),
                self.index.features(part, names),
                affines=tuple(np.array(e.affine).reshape(4, 4) for e in entries),
            )


def compare(
    queries: Queries,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    stage: str = "comparing",
    kind: str = "",
    progress: Progress = silent,
) -> Distances:
    """Distances of all queries to all cases of the index, under each measure.

    Pairs of one patient are +inf, and so is a case of the index with itself. Only one block of queries and two blocks
    of training cases are in memory at a time.
    """
    training_patients = np.array([e.patient or "" for e in index.entries], dtype=object)
    own = {id: i for i, id in enumerate(index.ids)} if isinstance(queries, IndexQueries) else {}
    parts: dict[str, list[np.ndarray]] = {m.name: [] for m in measures}
    aligning = [m for m in measures if isinstance(m, AligningMeasure)]
    streamed = [m for m in measures if m not in aligning]
    placements: dict[str, list[list[Placement]]] = {m.name: [] for m in aligning}
    ids: list[str] = []
    problems: list[Problem] = []
    warnings: list[tuple[str, str]] = []
    affines: list[np.ndarray] = []
    total = len(queries) * len(index) * len(measures)
    done, seconds_aligning = 0, 0.0
    progress(stage, 0, total)

    def advance(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(stage, min(done, total), total)

    for queried in queries.blocks(measures):
        if isinstance(queried, Problem):
            problems.append(queried)
            done += len(index) * len(measures)
            continue
        never = _left_out(queried, training_patients, own)
        rows = _streamed(queried, index, streamed, advance)
        start = time.perf_counter()
        for m in aligning:
            rows[m.name], placed = _aligned(queried, index, m, never, advance)
            placements[m.name] += placed
        seconds_aligning += time.perf_counter() - start
        for name, distances in rows.items():
            distances[never] = np.inf
            parts[name].append(distances)
        ids += queried.ids
        warnings += queried.warnings
        affines += queried.affines
    empty = np.empty((0, len(index)))
    return Distances(
        tuple(ids),
        {name: np.concatenate(part) if part else empty for name, part in parts.items()},
        tuple(problems),
        tuple(warnings),
        kind,
        placements,
        tuple(affines),
        seconds_aligning,
    )


def _streamed(
    queried: QueryBlock, index: TrainingIndex, measures: Sequence[Measure], advance: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Distances (Q, N) of measures that take the index block by block."""
    rows = {m.name: np.empty((len(queried.ids), len(index))) for m in measures}
    names = needed_features(measures)
    for start, block in index.blocks(names) if names else ():
        count = len(block[names[0]])
        for m in measures:
            rows[m.name][:, start : start + count] = m.distances(queried.features, block)
            advance(count * len(queried.ids))
    return rows


def _aligned(
    queried: QueryBlock,
    index: TrainingIndex,
    measure: AligningMeasure,
    never: np.ndarray,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, list[list[Placement]]]:
    """Distances (Q, N) and placements of a measure that aligns, one query after the other."""
    rows, placements = np.empty(never.shape), []
    for i in range(len(queried.ids)):
        one = {name: values[i : i + 1] for name, values in queried.features.items()}
        rows[i : i + 1], placed = measure.align(one, index, never[i : i + 1])
        placements += placed
        advance(len(index))
    return rows, placements


def _left_out(queried: QueryBlock, training_patients: np.ndarray, own: dict[str, int]) -> np.ndarray:
    """(Q, N) bool: pairs that are never compared."""
    never = np.zeros((len(queried.ids), len(training_patients)), bool)
    for i, (id, patient) in enumerate(zip(queried.ids, queried.patients, strict=True)):
        if patient is not None:
            never[i] = training_patients == patient
        if id in own:
            never[i, own[id]] = True
    return never
