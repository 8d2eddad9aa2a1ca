"""Query cases in parts, from the files of a cohort or from the index itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from replica_detection.index.training_index import BLOCK_BYTES, TrainingIndex
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.measures import (
    Block,
    Measure,
    features_of,
    needed_features,
)
from replica_detection.preparation.loading import load_prepared

# A comparison is cut into about this many parts, of at most so many cases. Neither depends on the number of workers,
# so that no bit of a result does.
PARTS, MOST_CASES = 32, 32
# Bytes of the distances of a part to all training cases.
ROWS_BYTES = 128 * 2**20


@dataclass(frozen=True)
class QueryBlock:
    """Some query cases with their features and patients (None: unknown), and the problems of those left out."""

    ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    features: Block
    warnings: tuple[tuple[str, str], ...] = ()
    affines: tuple[np.ndarray, ...] = ()
    voxels: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


class Part(Protocol):
    """A few query cases, by name or position: small enough to be sent to where they are compared."""

    def load(self, index: TrainingIndex, measures: Sequence[Measure]) -> QueryBlock:
        """The cases, prepared like those of the index, with the features that the measures need."""

    def __len__(self) -> int: ...


class Queries(Protocol):
    """A source of query cases."""

    def parts(self, index: TrainingIndex, measures: Sequence[Measure]) -> Sequence[Part]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class CohortQueries:
    """Cases read from files and prepared like those of the index."""

    cohort: Cohort
    index: TrainingIndex
    strict: bool = False

    def __len__(self) -> int:
        return len(self.cohort.cases)

    def parts(self, index: TrainingIndex, measures: Sequence[Measure]) -> list[CohortPart]:
        cases = self.cohort.cases
        return [CohortPart(cases[part], self.strict) for part in cut(len(cases), index, measures)]

    def blocks(self, measures: Sequence[Measure]) -> Iterator[QueryBlock]:
        """The cases in order, with their features alone, for who compares them himself."""
        for part in self.parts(self.index, measures):
            yield part.load(self.index, measures)


@dataclass(frozen=True)
class CohortPart:
    """Some cases of a cohort."""

    cases: tuple[Case, ...]
    strict: bool = False

    def __len__(self) -> int:
        return len(self.cases)

    def load(self, index: TrainingIndex, measures: Sequence[Measure]) -> QueryBlock:
        with_masks = any(m.needs_mask for m in measures)
        loaded = load_prepared(
            self.cases,
            index.preparation,
            with_masks=with_masks,
            segmenter=index.segmenter if with_masks else None,
            strict=self.strict,
        )
        names = needed_features(measures)
        ready, problems, rows = [], [], []
        for case, prepared in loaded:
            if isinstance(prepared, Problem):
                problems.append(prepared)
            else:
                ready.append((case, prepared))
                rows.append(features_of(prepared, measures))
        return QueryBlock(
            tuple(case.id for case, _ in ready),
            tuple(case.patient for case, _ in ready),
            {n: np.stack([r[n] for r in rows]) for n in names} if rows else {},
            tuple((case.id, text) for case, prepared in ready for text in prepared.warnings),
            tuple(prepared.affine for _, prepared in ready),
            tuple(prepared.voxels for _, prepared in ready),
            tuple(problems),
        )


@dataclass(frozen=True)
class IndexQueries:
    """Cases of the index itself, as queries against it; a case is never compared with itself."""

    index: TrainingIndex
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def parts(self, index: TrainingIndex, measures: Sequence[Measure]) -> list[IndexPart]:
        positions = tuple(self.positions)
        return [IndexPart(positions[part]) for part in cut(len(positions), index, measures)]


@dataclass(frozen=True)
class IndexPart:
    """Some cases of the index.

    Args:
        positions: in the index.
        fold: (N,) bool, the training cases that measures which are fitted on the cohort are refitted without, and which
            are left out; None: all measures as they are.
    """

    positions: tuple[int, ...]
    fold: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def load(self, index: TrainingIndex, measures: Sequence[Measure]) -> QueryBlock:
        entries = [index.entries[i] for i in self.positions]
        return QueryBlock(
            tuple(e.id for e in entries),
            tuple(e.patient for e in entries),
            index.features(self.positions, needed_features(measures)),
            affines=tuple(np.array(e.affine).reshape(4, 4) for e in entries),
            voxels=tuple(e.voxels for e in entries),
        )


def cut(cases: int, index: TrainingIndex, measures: Sequence[Measure]) -> list[slice]:
    """Parts of so many cases: many enough for all workers, and each small enough for the memory of one."""
    by_features = index.block_rows(needed_features(measures), BLOCK_BYTES)
    by_rows = ROWS_BYTES // max(8 * len(index) * len(measures), 1)
    size = max(1, min(-(-cases // PARTS), MOST_CASES, by_features, by_rows))
    return [slice(start, min(start + size, cases)) for start in range(0, cases, size)]
