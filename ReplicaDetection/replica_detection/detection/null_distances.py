"""Distances of real cases that the generator never saw (the null), computed once and kept inside the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from replica_detection.detection.comparison import Distances, compare
from replica_detection.detection.queries import CohortQueries, IndexQueries
from replica_detection.embedding.invariants import FOLDS
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import Measure
from replica_detection.progress import Progress, silent
from replica_detection.util.files import atomic_write


def validation_distances(
    validation: Cohort,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    strict: bool = False,
    progress: Progress = silent,
) -> Distances:
    """Validation cases against the training cohort; a case of a training patient is not compared with that patient."""
    files = []
    for case in validation.cases:
        try:
            files.append([case.id, case.patient, case.checksum()])
        except OSError:  # reported when the case is read
            files.append([case.id, case.patient, "unreadable"])
    queries = CohortQueries(validation, index, strict=strict)

    def of(wanted: Sequence[Measure]) -> Distances:
        return compare(queries, index, wanted, stage="null", kind="validation", progress=progress)

    return _cached(["validation", files], of, index, measures)


def cross_fitted_distances(
    index: TrainingIndex, measures: Sequence[Measure], *, size: int = 500, progress: Progress = silent
) -> Distances:
    """Training cases against the training cases of other patients: each patient is its own fold.

    Leaving out one patient keeps the pool almost as large as the one that synthetic cases are compared with, so the
    nearest distances are comparable. A measure that learnt from the training cohort knows its cases too well (whitened
    by themselves, fewer cases than features are all equally far apart), so it is fitted again on nine tenths of the
    patients and asked about the others. At most `size` cases, spread evenly, bound the cost on large cohorts.
    """
    count = min(size, len(index))
    positions = np.unique(np.linspace(0, len(index) - 1, count).round().astype(int)).tolist() if count else []

    def of(wanted: Sequence[Measure]) -> Distances:
        learning = [m for m in wanted if m.is_fitted_on_training]
        others = [m for m in wanted if m not in learning]
        queries = IndexQueries(index, positions)
        found = compare(queries, index, others, stage="null", kind="cross-fitted", progress=progress)
        learnt = _learnt_again(index, learning, np.array(positions, int), progress) if learning else {}
        return replace(found, by_measure={**found.by_measure, **learnt})

    return _cached(["cross-fitted", positions], of, index, measures)


def _learnt_again(
    index: TrainingIndex, measures: Sequence[Measure], positions: np.ndarray, progress: Progress
) -> dict[str, np.ndarray]:
    """Distances (n, N) of training cases under measures that never saw their patient, nor the others of their fold."""
    fold = index.patients % min(FOLDS, len(np.unique(index.patients)))
    found = {m.name: np.full((len(positions), len(index)), np.inf) for m in measures}
    for number in np.unique(fold[positions]):
        left_out = fold == number
        if left_out.all():
            continue
        again = [m.refit_without(index, left_out) for m in measures]
        rows = np.flatnonzero(left_out[positions])
        queries = IndexQueries(index, positions[rows].tolist())
        part = compare(queries, index, again, left_out=left_out, stage="null", progress=progress)
        for m in measures:
            found[m.name][rows] = part.by_measure[m.name]
    return found


def _cached(
    key: list[object],
    compare_with: Callable[[Sequence[Measure]], Distances],
    index: TrainingIndex,
    measures: Sequence[Measure],
) -> Distances:
    digest = hashlib.sha256(json.dumps([index.content_id, key]).encode()).hexdigest()[:24]
    found: dict[str, np.ndarray] = {}
    ids: tuple[str, ...] | None = None
    for m in measures:
        stored = _read(_path(index, digest, m))
        if stored is not None:
            ids, found[m.name] = stored
    missing = [m for m in measures if m.name not in found]
    if not missing and ids is not None:
        return Distances(ids, found, kind=str(key[0]))
    # All measures again where only some are stored: their rows must belong to the same cases.
    fresh = compare_with(missing)
    if ids is not None and fresh.ids != ids:
        fresh, found = compare_with(measures), {}
    if not fresh.problems:
        # An index that cannot be written to (a shared, read-only one) still serves.
        with suppress(OSError):
            for name, distances in fresh.by_measure.items():
                measure = next(m for m in measures if m.name == name)
                _write(_path(index, digest, measure), fresh.ids, distances)
    return replace(fresh, by_measure={**found, **fresh.by_measure}, details={})


def _path(index: TrainingIndex, digest: str, measure: Measure) -> Path:
    settings = hashlib.sha256(measure.definition.encode()).hexdigest()[:8]
    return index.folder / "nulls" / f"{digest}-{measure.name}-{settings}.npz"


def _read(path: Path) -> tuple[tuple[str, ...], np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return tuple(stored["ids"].tolist()), stored["distances"]
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, ids: Sequence[str], distances: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path, "wb") as f:
        np.savez_compressed(f, ids=np.array(ids, dtype=np.str_), distances=distances)
