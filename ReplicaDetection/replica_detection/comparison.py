"""All pairs of queries and training cases, block by block: the unit of work is (queries, training cases, measure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from replica_detection.cohort import Cohort, Problem
from replica_detection.index import BLOCK_BYTES, TrainingIndex
from replica_detection.loading import load_prepared
from replica_detection.measures import Block, Described, Measure, SearchingMeasure, features_of, needed_features
from replica_detection.progress import Progress, silent


@dataclass(frozen=True)
class Distances:
    """`by_measure[name]` is (Q, N) float64 over the cases of an index; +inf where a pair is left out.

    `problems` are query files that could not be read; `warnings` are (case id, text); `kind` is what the queries are
    when they serve as a null. `details[name]` are further numbers of each pair, (Q, N) each, of measures that have any.
    """

    ids: tuple[str, ...]
    by_measure: dict[str, np.ndarray]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    details: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryBlock:
    """Some query cases with their features and patients (None: nobody's)."""

    ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    features: Block
    warnings: tuple[tuple[str, str], ...] = ()


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

        def block() -> QueryBlock:
            features = {n: np.stack([r[n] for r in rows]) for n in names}
            return QueryBlock(tuple(ids), tuple(patients), features, tuple(warnings))

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
            if len(rows) == limit:
                yield block()
                ids, patients, rows, warnings = [], [], [], []
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
            )


def compare(
    queries: Queries,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    left_out: np.ndarray | None = None,
    stage: str = "comparing",
    kind: str = "",
    progress: Progress = silent,
) -> Distances:
    """Distances of all queries to all cases of the index, under each measure.

    Pairs of one patient are +inf, and so is a case of the index with itself, and every pair with a training case in
    `left_out` ((N,) bool). Only one block of queries and two blocks of training cases are in memory at a time.
    """
    training_patients = np.array([e.patient or "" for e in index.entries], dtype=object)
    own = {id: i for i, id in enumerate(index.ids)} if isinstance(queries, IndexQueries) else {}
    parts: dict[str, list[Described]] = {m.name: [] for m in measures}
    ids: list[str] = []
    problems: list[Problem] = []
    warnings: list[tuple[str, str]] = []
    total = len(queries) * len(index) * len(measures)
    done = 0
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
        never = (
            np.zeros((len(queried.ids), len(index)), bool)
            if left_out is None
            else np.tile(left_out, (len(queried.ids), 1))
        )
        for i, patient in enumerate(queried.patients):
            if patient is not None:
                never[i] |= training_patients == patient
            if queried.ids[i] in own:
                never[i, own[queried.ids[i]]] = True
        for name, described in _against_all(queried, index, measures, never, advance).items():
            parts[name].append(described)
        ids += queried.ids
        warnings += queried.warnings
    return Distances(
        tuple(ids),
        {m.name: _stacked([d.distances for d in parts[m.name]], len(index)) for m in measures},
        tuple(problems),
        tuple(warnings),
        kind,
        {
            m.name: {
                key: _stacked([d.details[key] for d in parts[m.name]], len(index)) for key in parts[m.name][0].details
            }
            for m in measures
            if parts[m.name] and parts[m.name][0].details
        },
    )


def _against_all(
    queried: QueryBlock,
    index: TrainingIndex,
    measures: Sequence[Measure],
    never: np.ndarray,
    advance: Callable[[int], None],
) -> dict[str, Described]:
    """One block of queries against the whole index; pairs in `never` (Q, N) are +inf."""
    found: dict[str, Described] = {}
    streamed = []
    for m in measures:
        if isinstance(m, SearchingMeasure):
            found[m.name] = m.search(queried.features, never)
            advance(never.size)
        else:
            streamed.append(m)
            found[m.name] = Described(np.empty(never.shape), {})
    names = needed_features(streamed)
    for start, block in index.blocks(names) if names else ():
        count = len(block[names[0]])
        for m in streamed:
            distances, details = found[m.name].distances, found[m.name].details
            distances[:, start : start + count] = m.distances(queried.features, block)
            for key, values in m.details(queried.features, block).items():
                details.setdefault(key, np.empty(never.shape, np.float32))[:, start : start + count] = values
            advance(count * len(queried.ids))
    for described in found.values():
        described.distances[never] = np.inf
    return found


def _stacked(parts: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty((0, width))
