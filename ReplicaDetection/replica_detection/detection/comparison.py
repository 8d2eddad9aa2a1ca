"""All pairs of queries and training cases, block by block: the unit of work is (queries, training cases, measure)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

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


@dataclass(frozen=True)
class Distances:
    """`by_measure[name]` is (Q, N) float64 over the cases of an index; +inf where a pair is left out.

    `problems` are query files that could not be read; `warnings` are (case id, text); `kind` is what the queries are
    when they serve as a null. `placements[name]` holds for each query how its candidates were laid upon it, nearest
    first, under a measure that aligns; `affines` (4, 4) lead from the grid to each query's file. `details[name]` are
    further numbers of each pair, (Q, N) each, of measures that have any.
    """

    ids: tuple[str, ...]
    by_measure: dict[str, np.ndarray]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    placements: dict[str, list[list[Placement]]] = field(default_factory=dict)
    affines: tuple[np.ndarray, ...] = ()
    seconds_aligning: float = 0.0
    details: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


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
    parts: dict[str, list[MeasureOutput]] = {m.name: [] for m in measures}
    placements: dict[str, list[list[Placement]]] = {m.name: [] for m in measures if isinstance(m, AligningMeasure)}
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
        if left_out is not None:
            never |= left_out
        found = _streamed(queried, index, measures, advance)
        for m in measures:
            if isinstance(m, SearchingMeasure):
                found[m.name] = m.search(queried.features, never)
                advance(never.size)
        start = time.perf_counter()
        for together in _by_source(measures):
            for m, described, placed in _aligned(queried, index, together, never, advance):
                found[m.name] = described
                placements[m.name] += placed
        seconds_aligning += time.perf_counter() - start
        for name, described in found.items():
            described.distances[never] = np.inf
            parts[name].append(described)
        ids += queried.ids
        warnings += queried.warnings
        affines += queried.affines
    return Distances(
        tuple(ids),
        {m.name: _stacked([d.distances for d in parts[m.name]], len(index)) for m in measures},
        tuple(problems),
        tuple(warnings),
        kind,
        placements,
        tuple(affines),
        seconds_aligning,
        {
            m.name: {
                key: _stacked([d.details[key] for d in parts[m.name]], len(index)) for key in parts[m.name][0].details
            }
            for m in measures
            if parts[m.name] and parts[m.name][0].details
        },
    )


def _streamed(
    queried: QueryBlock, index: TrainingIndex, measures: Sequence[Measure], advance: Callable[[int], None]
) -> dict[str, MeasureOutput]:
    """Those of the measures that take the index block by block."""
    chosen = [m for m in measures if not isinstance(m, (SearchingMeasure, AligningMeasure))]
    shape = (len(queried.ids), len(index))
    found = {m.name: MeasureOutput(np.empty(shape), {}) for m in chosen}
    names = needed_features(chosen)
    for start, block in index.blocks(names) if names else ():
        count = len(block[names[0]])
        for m in chosen:
            distances, details = found[m.name].distances, found[m.name].details
            distances[:, start : start + count] = m.distances(queried.features, block)
            for key, values in m.details(queried.features, block).items():
                details.setdefault(key, np.empty(shape, np.float32))[:, start : start + count] = values
            advance(count * len(queried.ids))
    return found


def _by_source(measures: Sequence[Measure]) -> list[list[AligningMeasure]]:
    """The measures that align, those that share a search together."""
    found: dict[str, list[AligningMeasure]] = {}
    for m in measures:
        if isinstance(m, AligningMeasure):
            found.setdefault(m.source, []).append(m)
    return list(found.values())


def _aligned(
    queried: QueryBlock,
    index: TrainingIndex,
    measures: Sequence[AligningMeasure],
    never: np.ndarray,
    advance: Callable[[int], None],
) -> list[tuple[AligningMeasure, MeasureOutput, list[list[Placement]]]]:
    """Measures that share a search, one query after the other, each with how it placed each query's candidates."""
    found: list[tuple[AligningMeasure, MeasureOutput, list[list[Placement]]]] = [
        (m, MeasureOutput(np.full(never.shape, np.inf), {}), []) for m in measures
    ]
    for i in range(len(queried.ids)):
        one = {name: values[i : i + 1] for name, values in queried.features.items()}
        candidates = measures[0].place(one, index, ~never[i])
        for m, described, placements in found:
            compared = m.compare(one, candidates, index)
            for distance, placement in compared:
                described.distances[i, placement.training] = distance
            placements.append([placement for _, placement in compared])
            advance(len(index))
    return found


def _left_out(queried: QueryBlock, training_patients: np.ndarray, own: dict[str, int]) -> np.ndarray:
    """(Q, N) bool: pairs that are never compared."""
    never = np.zeros((len(queried.ids), len(training_patients)), bool)
    for i, (id, patient) in enumerate(zip(queried.ids, queried.patients, strict=True)):
        if patient is not None:
            never[i] = training_patients == patient
        if id in own:
            never[i, own[id]] = True
    return never


def _stacked(parts: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty((0, width))
