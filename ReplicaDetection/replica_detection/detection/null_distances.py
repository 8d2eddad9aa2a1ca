"""Distances of the null: real cases that the generator never saw. Computed once and kept inside the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from replica_detection.detection.comparison import compare
from replica_detection.detection.distances import Distances
from replica_detection.detection.distances_file import read_distances, write_distances
from replica_detection.detection.finished_parts import FinishedParts, key_of
from replica_detection.detection.queries import CohortQueries, IndexPart, IndexQueries, Queries, cut
from replica_detection.embedding.invariants import FOLDS
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import Measure
from replica_detection.progress import Progress, silent
from replica_detection.workers.runner import Runner

# Folder, in that of the null distances, of the parts of a comparison that was interrupted.
UNFINISHED = "unfinished"


def unfinished_nulls(index: Path) -> Path:
    """The folder, in that of an index, of the parts of a null that is not finished."""
    return index / "nulls" / UNFINISHED


def holdout_distances(
    holdout: Cohort,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    k: int = 50,
    whole: bool = False,
    strict: bool = False,
    runner: Runner | None = None,
    progress: Progress = silent,
) -> Distances:
    """Distances of holdout scans to the training cohort.

    A scan of a training patient is not compared with that patient's scans.

    Args:
        k, whole, runner, progress: as `comparison.compare` has them.
        strict: raise the InputError of the first image that cannot be used.
    """
    files = []
    for case in holdout.cases:
        try:
            files.append([case.id, case.patient, case.checksum()])
        except OSError:  # reported when the case is read
            files.append([case.id, case.patient, "unreadable"])
    null = _Null(index, "validation", files, k, whole, runner, progress)
    queries = CohortQueries(holdout, index, strict=strict)
    return null.cached(measures, lambda wanted: null.compared(queries, wanted, "cases"))


def cross_fitted_distances(
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    size: int = 500,
    k: int = 50,
    whole: bool = False,
    runner: Runner | None = None,
    progress: Progress = silent,
) -> Distances:
    """Distances of training cases to the training cases of other patients: each patient is its own fold.

    Leaving out one patient keeps the pool almost as large as for synthetic cases, so the nearest distances are
    comparable. A measure that is fitted on the training cohort is biased for its own cases (fewer cases than features,
    whitened by themselves, are all equally far apart). It is refitted on nine tenths of the patients and applied to the
    rest.

    Args:
        size: largest number of cases, spread evenly over the index; it bounds the cost on large cohorts.
        k, whole, runner, progress: as `comparison.compare` has them.
    """
    count = min(size, len(index))
    positions = np.unique(np.linspace(0, len(index) - 1, count).round().astype(int)).tolist() if count else []
    null = _Null(index, "cross-fitted", positions, k, whole, runner, progress)

    def compute(wanted: Sequence[Measure]) -> Distances:
        fitted = [m for m in wanted if m.is_fitted_on_training]
        others = [m for m in wanted if m not in fitted]
        distances = null.compared(IndexQueries(index, positions), others, "cases")
        if not fitted or not positions:
            return distances
        queries = _FoldQueries(index, np.array(positions, int))
        refitted = null.compared(queries, fitted, "folds")
        back = np.argsort(queries.order, kind="stable").tolist()
        return replace(distances, by_measure={**distances.by_measure, **refitted.taken(back).by_measure})

    return null.cached(measures, compute)


@dataclass(frozen=True)
class _FoldQueries:
    """Cases of the index, fold by fold, for measures that are refitted without the patients of the fold."""

    index: TrainingIndex
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def folds(self) -> np.ndarray:
        """(N,) the fold of each training case."""
        patients = self.index.patients
        fold: np.ndarray = patients % min(FOLDS, len(np.unique(patients)))
        return fold

    @property
    def order(self) -> np.ndarray:
        """(n,) the positions in the order in which `parts` has them, as rows of `positions`."""
        return np.argsort(self.folds[self.positions], kind="stable")

    def parts(self, index: TrainingIndex, measures: Sequence[Measure]) -> list[IndexPart]:
        folds, parts = self.folds, []
        for number in np.unique(folds[self.positions]):
            left_out = folds == number
            rows = self.positions[left_out[self.positions]]
            parts += [IndexPart(tuple(rows[part].tolist()), left_out) for part in cut(len(rows), index, measures)]
        return parts


@dataclass(frozen=True)
class _Null:
    """The null cases of one origin, and how they are compared.

    Args:
        kind: "validation" or "cross-fitted".
        cases: what tells these null cases from others.
    """

    index: TrainingIndex
    kind: str
    cases: Sequence[object]
    k: int
    whole: bool
    runner: Runner | None
    progress: Progress
    _parts: dict[str, FinishedParts] = field(default_factory=dict)

    def compared(self, queries: Queries, measures: Sequence[Measure], part: str) -> Distances:
        """The comparison of null cases with training cases of other patients; goes on where a killed one stopped.

        Args:
            part: a word that tells the comparisons of one null apart.
        """
        key = key_of(self.index, measures, self.cases, self.kind, part, self.k, self.whole)
        self._parts[key] = FinishedParts(unfinished_nulls(self.index.folder), key)
        return compare(
            queries,
            self.index,
            measures,
            k=self.k,
            across_patients=True,
            whole=self.whole,
            stage="null",
            kind=self.kind,
            runner=self.runner,
            finished=self._parts[key],
            progress=self.progress,
        )

    def cached(self, measures: Sequence[Measure], compute: Callable[[Sequence[Measure]], Distances]) -> Distances:
        """The stored distances of the measures, and those that `compute` returns for the missing ones."""
        stored = {m.name: read_distances(self._path(m)) for m in measures}
        known = {name: distances for name, distances in stored.items() if distances is not None}
        missing = [m for m in measures if m.name not in known]
        if not missing and known:
            return self._together(known)
        fresh = compute(missing)
        # The rows of all measures must belong to the same cases.
        if any(distances.ids != fresh.ids for distances in known.values()):
            fresh, known = compute(measures), {}
        if not fresh.problems:
            # A read-only index can still be used.
            with suppress(OSError):
                for m in measures:
                    if m.name in fresh.by_measure:
                        write_distances(self._path(m), fresh.under([m.name]))
        for finished in self._parts.values():
            finished.clear()
        return self._together({**known, **dict.fromkeys(fresh.by_measure, fresh)}, fresh)

    def _together(self, by_name: dict[str, Distances], first: Distances | None = None) -> Distances:
        first = first or next(iter(by_name.values()))
        return replace(first, by_measure={name: found.by_measure[name] for name, found in by_name.items()})

    @property
    def _folder(self) -> Path:
        return self.index.folder / "nulls"

    def _path(self, measure: Measure) -> Path:
        content = json.dumps([self.index.content_id, self.kind, self.cases, self.k, self.whole])
        digest = hashlib.sha256(content.encode()).hexdigest()[:24]
        settings = hashlib.sha256(measure.definition.encode()).hexdigest()[:8]
        return self._folder / f"{digest}-{measure.name}-{settings}.npz"
