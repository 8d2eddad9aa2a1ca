"""Distances of the null: real cases that the generator never saw. Computed once and kept inside the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from replica_detection.detection.comparison import compare
from replica_detection.detection.distances import Distances
from replica_detection.detection.queries import CohortQueries, IndexQueries
from replica_detection.embedding.invariants import FOLDS
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import Measure
from replica_detection.progress import Progress, silent
from replica_detection.util.files import atomic_write

_null_cases = partial(compare, across_patients=True, stage="null")


def holdout_distances(
    holdout: Cohort,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    strict: bool = False,
    progress: Progress = silent,
) -> Distances:
    """Distances of holdout scans to the training cohort.

    A scan of a training patient is not compared with that patient's scans.
    """
    files = []
    for case in holdout.cases:
        try:
            files.append([case.id, case.patient, case.checksum()])
        except OSError:  # reported when the case is read
            files.append([case.id, case.patient, "unreadable"])
    queries = CohortQueries(holdout, index, strict=strict)

    def compute(wanted: Sequence[Measure]) -> Distances:
        return _null_cases(queries, index, wanted, kind="validation", progress=progress)

    return _cached(["validation", files], compute, index, measures)


def cross_fitted_distances(
    index: TrainingIndex, measures: Sequence[Measure], *, size: int = 500, progress: Progress = silent
) -> Distances:
    """Distances of training cases to the training cases of other patients: each patient is its own fold.

    Leaving out one patient keeps the pool almost as large as for synthetic cases, so the nearest distances are
    comparable. A measure that is fitted on the training cohort is biased for its own cases (fewer cases than features,
    whitened by themselves, are all equally far apart). It is refitted on nine tenths of the patients and applied to the
    rest.

    Args:
        size: largest number of cases, spread evenly over the index; it bounds the cost on large cohorts.
    """
    count = min(size, len(index))
    positions = np.unique(np.linspace(0, len(index) - 1, count).round().astype(int)).tolist() if count else []

    def compute(wanted: Sequence[Measure]) -> Distances:
        fitted = [m for m in wanted if m.is_fitted_on_training]
        others = [m for m in wanted if m not in fitted]
        queries = IndexQueries(index, positions)
        distances = _null_cases(queries, index, others, kind="cross-fitted", progress=progress)
        refitted = _refitted_distances(index, fitted, np.array(positions, int), progress) if fitted else {}
        return replace(distances, by_measure={**distances.by_measure, **refitted})

    return _cached(["cross-fitted", positions], compute, index, measures)


def _refitted_distances(
    index: TrainingIndex, measures: Sequence[Measure], positions: np.ndarray, progress: Progress
) -> dict[str, np.ndarray]:
    """Distances (n, N) of training cases under measures refitted without the patients of their fold."""
    fold = index.patients % min(FOLDS, len(np.unique(index.patients)))
    distances = {m.name: np.full((len(positions), len(index)), np.inf) for m in measures}
    for number in np.unique(fold[positions]):
        left_out = fold == number
        if left_out.all():
            continue
        refitted = [m.refit_without(index, left_out) for m in measures]
        rows = np.flatnonzero(left_out[positions])
        queries = IndexQueries(index, positions[rows].tolist())
        part = _null_cases(queries, index, refitted, left_out=left_out, progress=progress)
        for m in measures:
            distances[m.name][rows] = part.by_measure[m.name]
    return distances


def _cached(
    key: list[object],
    compute: Callable[[Sequence[Measure]], Distances],
    index: TrainingIndex,
    measures: Sequence[Measure],
) -> Distances:
    """The stored distances of the measures, and those that `compute` returns for the missing ones.

    Args:
        key: first the kind of the null, then what it depends on beside index and measures.
    """
    digest = hashlib.sha256(json.dumps([index.content_id, key]).encode()).hexdigest()[:24]
    stored: dict[str, np.ndarray] = {}
    ids: tuple[str, ...] | None = None
    voxels: tuple[str, ...] = ()
    for m in measures:
        content = _read(_path(index, digest, m))
        if content is not None:
            ids, voxels, stored[m.name] = content
    missing = [m for m in measures if m.name not in stored]
    if not missing and ids is not None:
        return Distances(ids, stored, voxels, kind=str(key[0]))
    fresh = compute(missing)
    # The rows of all measures must belong to the same cases.
    if ids is not None and fresh.ids != ids:
        fresh, stored = compute(measures), {}
    if not fresh.problems:
        # A read-only index can still be used.
        with suppress(OSError):
            for name, distances in fresh.by_measure.items():
                measure = next(m for m in measures if m.name == name)
                _write(_path(index, digest, measure), fresh, distances)
    return replace(fresh, by_measure={**stored, **fresh.by_measure}, details={})


def _path(index: TrainingIndex, digest: str, measure: Measure) -> Path:
    settings = hashlib.sha256(measure.definition.encode()).hexdigest()[:8]
    return index.folder / "nulls" / f"{digest}-{measure.name}-{settings}.npz"


def _read(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray] | None:
    """Ids, voxels and distances of the null cases; None where they are not stored."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return tuple(stored["ids"].tolist()), tuple(stored["voxels"].tolist()), stored["distances"]
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, null: Distances, distances: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path, "wb") as f:
        ids, voxels = np.array(null.ids, dtype=np.str_), np.array(null.voxels, dtype=np.str_)
        np.savez_compressed(f, ids=ids, voxels=voxels, distances=distances)
