"""Blocks of query cases, from the files of a cohort or from the index itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from replica_detection.index.training_index import BLOCK_BYTES, TrainingIndex
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.measures import (
    Block,
    Measure,
    features_of,
    needed_features,
)
from replica_detection.preparation.loading import load_prepared


@dataclass(frozen=True)
class QueryBlock:
    """Some query cases with their features and patients (None: unknown)."""

    ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    features: Block
    warnings: tuple[tuple[str, str], ...] = ()
    affines: tuple[np.ndarray, ...] = ()
    voxels: tuple[str, ...] = ()


class Queries(Protocol):
    """A source of query blocks."""

    def blocks(self, measures: Sequence[Measure]) -> Iterator[QueryBlock | Problem]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class CohortQueries:
    """Cases read from files and prepared like those of the index."""

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
        voxels: list[str] = []

        def block() -> QueryBlock:
            features = {n: np.stack([r[n] for r in rows]) for n in names}
            return QueryBlock(tuple(ids), tuple(patients), features, tuple(warnings), tuple(affines), tuple(voxels))

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
            voxels.append(prepared.voxels)
            if len(rows) == limit:
                yield block()
                ids, patients, rows, warnings, affines, voxels = [], [], [], [], [], []
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
                voxels=tuple(e.voxels for e in entries),
            )
