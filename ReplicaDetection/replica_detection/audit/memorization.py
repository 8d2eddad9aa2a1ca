"""Metrics of whole synthetic sets; what they need beyond a result is computed again from index and cohorts.

A result stores the nearest neighbours of its synthetic cases. The metrics also need the nearest synthetic case of each
training case, the holdout, and vectors: all pairs are compared once more, block by block; the distances of the holdout
are kept in the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from replica_detection.audit.distribution_metrics import ct_score, frechet, ms_ssim
from replica_detection.audit.memorization_metrics import (
    AS_PUBLISHED,
    SIZE_MATCHED,
    SetMetric,
    as_published,
    authentic,
    copies,
    memorization_index,
    memorized,
)
from replica_detection.detection.comparison import compare
from replica_detection.detection.null_distances import cross_fitted_distances, holdout_distances
from replica_detection.detection.null_pool import NullPool
from replica_detection.detection.queries import CohortQueries, IndexQueries, Part, Queries, QueryBlock
from replica_detection.errors import ConfigurationError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import Block, Measure
from replica_detection.measures.feature import VectorMeasure
from replica_detection.preparation.loading import load_prepared, nothing_usable
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.progress import Progress, silent
from replica_detection.statistics.distance_ratio import nearest
from replica_detection.statistics.intervals import Estimate

MEMORIZATION_INDEX = "memorization_index"
PAIRS = 100  # of images, for MS-SSIM
# Without an embedding, images averaged down to at most so many voxels an axis stand in for vectors.
_COARSE = {2: 64, 3: 16}
_K = 50  # neighbourhood of the ratio by which leaks are found
_ALPHA = 0.05


@dataclass(frozen=True)
class SetFigure:
    """A figure with what it was computed on: a measure's name, a representation (`vectors: ...`) or `images`."""

    basis: str
    figure: SetMetric


def set_figures(
    index: TrainingIndex,
    synthetic: Cohort,
    holdout: Cohort | None,
    *,
    measures: Sequence[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[list[SetFigure], tuple[str, ...]]:
    """All metrics of one synthetic set, and warnings.

    Holdout cases that are training cases, or nearly so, are left out and named: they would set the threshold so close
    that no copy falls below it. Where they are more than half of the holdout, none of it is used.

    Args:
        index: the training cohort.
        synthetic: the set.
        holdout: real cases that the generator never saw. Without them N_copies and MI take the training cases among
            themselves, and N_mem, CT score and every comparison with unseen cases are undefined and say so.
        measures: names; None: those of the feature level, or where the index has none those of the voxel level.
        device: `cpu` or `cuda`.
        seed: of bootstraps and random draws.

    Raises:
        ConfigurationError: the index does not serve a measure, or has neither feature nor voxel level.
        InputError: no image can be read.
    """
    chosen = _chosen(index, measures, device)
    vectors = _Vectors(index, chosen)
    made = vectors.watching(CohortQueries(synthetic, index))
    found = compare(made, index, chosen, whole=True, progress=progress)
    if not found.ids:
        raise nothing_usable(synthetic.source, (*synthetic.problems, *found.problems))
    null, holdout, warnings = _null(index, holdout, chosen, progress)
    figures: list[SetFigure] = []
    for m in chosen:
        rows = found.by_measure[m.name].rows
        assert rows is not None
        of_measure = _Distances(m, rows, null.rows[m.name], holdout is not None)
        figures += [SetFigure(m.name, f) for f in _of_distances(of_measure, index, seed)]
    unseen = None if holdout is None else vectors.of_cohort(holdout, chosen)
    if len(made.kept):
        figures += [
            SetFigure(f"vectors: {vectors.title}", f)
            for f in _of_vectors(vectors.of_training(), unseen, made.kept, seed)
        ]
    return figures + [SetFigure("images", f) for f in _of_images(index, synthetic, seed)], warnings


def _null(
    index: TrainingIndex, holdout: Cohort | None, measures: Sequence[Measure], progress: Progress
) -> tuple[NullPool, Cohort | None, tuple[str, ...]]:
    """The null without leaks, what is left of the holdout (None: none was given, or it was refused), and warnings."""
    refusal: tuple[str, ...] = ()
    if holdout is not None:
        pool = NullPool.of(
            [holdout_distances(holdout, index, measures, k=_K, whole=True, progress=progress)],
            measures,
            index,
            alpha=_ALPHA,
        )
        if not pool.refused:
            kept = tuple(c for c in holdout.cases if c.id not in pool.removed)
            return pool, replace(holdout, cases=kept), pool.warnings
        refusal = pool.warnings
    among = cross_fitted_distances(index, measures, size=len(index), k=_K, whole=True, progress=progress)
    pool = NullPool.of([among], measures, index, alpha=_ALPHA)
    return pool, None, (*refusal, *pool.warnings)


def _chosen(index: TrainingIndex, names: Sequence[str] | None, device: str) -> list[Measure]:
    served = index.measures(names, device, aligning=False)
    if names is not None:
        return served
    for level in ("feature", "voxel"):
        of_level = [m for m in served if m.level == level]
        if of_level:
            return of_level
    raise ConfigurationError("the index serves masks only; name measures of it")


# ------------------------------------------------------------------------------------------------------- distances


@dataclass(frozen=True)
class _Distances:
    """(Q, N) and (H, N) distances to training of synthetic and null cases; `unseen`: True if the null is a hold-out."""

    measure: Measure
    synthetic: np.ndarray
    null: np.ndarray
    unseen: bool


def _of_distances(d: _Distances, index: TrainingIndex, seed: int) -> list[SetMetric]:
    made, real = nearest(d.synthetic, 1), nearest(d.null, 1)
    figures = [copies(made.distance, real.distance, seed=seed)]
    if d.unseen:
        figures.append(memorized(d.synthetic, d.null, seed=seed))
        figures += as_published(d.synthetic, d.null, seed=seed)
    else:
        figures.append(SetMetric("N_mem", Estimate(), SIZE_MATCHED, note="no hold-out to compare with"))
    wanted = [made.index, real.index] if d.unseen else [made.index]
    to_other = _to_other(index, d.measure, np.unique(np.concatenate(wanted)))
    figures.append(authentic(made.index, made.distance, to_other, seed=seed))
    if d.unseen:
        figures.append(authentic(real.index, real.distance, to_other, "AuthPct of unseen", seed=seed))
    if d.measure.name == MEMORIZATION_INDEX:
        figures += memorization_index(1 - made.distance, 1 - real.distance, seed=seed)
    return figures


def _to_other(index: TrainingIndex, measure: Measure, positions: np.ndarray) -> np.ndarray:
    """(N,) distance of the training cases at `positions` to their nearest one of another patient; +inf elsewhere."""
    to_other = np.full(len(index), np.inf)
    positions = positions[positions >= 0]
    queries = IndexQueries(index, positions.tolist())
    found = compare(queries, index, [measure], across_patients=True, stage="training")
    to_other[positions] = found.by_measure[measure.name].near.distance
    return to_other


# --------------------------------------------------------------------------------------------------------- vectors


class _Vectors:
    """Vectors of cases: those of the embedding, or without one coarse images."""

    def __init__(self, index: TrainingIndex, measures: Sequence[Measure]):
        self.index = index
        self.measure = next((m for m in measures if isinstance(m, VectorMeasure)), None)
        if self.measure is not None:
            self.name, self.title = "embedding", f"embedding {self.measure.embedder.name}"
        else:
            self.name, self.title = "image", "coarse voxels"

    def watching(self, queries: Queries) -> _Watched:
        return _Watched(queries, self)

    def of(self, block: Block) -> np.ndarray:
        """(cases, D) float32."""
        if self.measure is not None:
            return self.measure.vectors(block).astype(np.float32)
        return np.stack([_coarse(image).ravel() for image in block[self.name]]).astype(np.float32)

    def of_training(self) -> np.ndarray:
        return np.concatenate([self.of(block) for _, block in self.index.blocks([self.name])])

    def of_cohort(self, cohort: Cohort, measures: Sequence[Measure]) -> np.ndarray:
        watched = self.watching(CohortQueries(cohort, self.index))
        chosen = [m for m in measures if self.name in m.needs]
        for part in watched.parts(self.index, chosen):
            part.load(self.index, chosen)
        return watched.kept


@dataclass(frozen=True)
class _Watched:
    """Queries whose vectors are kept as they pass by."""

    queries: Queries
    vectors: _Vectors
    seen: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries)

    def parts(self, index: TrainingIndex, measures: Sequence[Measure]) -> list[_WatchedPart]:
        return [_WatchedPart(part, self) for part in self.queries.parts(index, measures)]

    @property
    def kept(self) -> np.ndarray:
        return np.concatenate(self.seen) if self.seen else np.empty((0, 1))


@dataclass(frozen=True)
class _WatchedPart:
    part: Part
    watched: _Watched

    def __len__(self) -> int:
        return len(self.part)

    def load(self, index: TrainingIndex, measures: Sequence[Measure]) -> QueryBlock:
        block = self.part.load(index, measures)
        if self.watched.vectors.name in block.features:
            self.watched.seen.append(self.watched.vectors.of(block.features))
        return block


def _coarse(image: np.ndarray) -> np.ndarray:
    limit = _COARSE.get(image.ndim, 16)
    for axis, size in enumerate(image.shape):
        edges = np.unique(np.linspace(0, size, min(limit, size) + 1).astype(int))
        counts = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
        image = np.add.reduceat(image, edges[:-1], axis=axis) / counts
    return image


def _of_vectors(training: np.ndarray, unseen: np.ndarray | None, made: np.ndarray, seed: int) -> list[SetMetric]:
    if unseen is None:
        return [frechet(made, training, seed=seed), ct_score(training, made[:0], made, seed=seed)]
    size = min(len(made), len(unseen))
    return [
        frechet(made, training, size=size, seed=seed),
        frechet(unseen, training, "FID of unseen", size=size, seed=seed),
        replace(frechet(made, training, seed=seed), variant=AS_PUBLISHED),
        ct_score(training, unseen, made, seed=seed),
    ]


# ---------------------------------------------------------------------------------------------------------- images


def _of_images(index: TrainingIndex, synthetic: Cohort, seed: int) -> list[SetMetric]:
    """MS-SSIM among synthetic and among training images, on pairs drawn at random."""
    rng = np.random.default_rng(seed)
    pairs = _random_pairs(len(synthetic), rng)
    cases = {i: synthetic.cases[i] for pair in pairs for i in pair}
    loaded = load_prepared(list(cases.values()), index.preparation, with_masks=False)
    images = {
        i: prepared.image for i, (_, prepared) in zip(cases, loaded, strict=True) if isinstance(prepared, PreparedImage)
    }
    figures = [ms_ssim([(images[a], images[b]) for a, b in pairs if a in images and b in images], seed=seed)]

    def stored(position: int) -> np.ndarray:
        return index.features([position], ["image"])["image"][0]

    real = [(stored(a), stored(b)) for a, b in _random_pairs(len(index), rng)]
    figures.append(ms_ssim(real, "MS-SSIM of training", seed=seed))
    return figures


def _random_pairs(size: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """At most PAIRS pairs of different positions, each pair once."""
    every = size * (size - 1) // 2
    if every <= PAIRS:
        return [(a, b) for a in range(size) for b in range(a)]
    drawn: set[tuple[int, int]] = set()
    while len(drawn) < PAIRS:
        a, b = (int(v) for v in rng.choice(size, 2, replace=False))
        drawn.add((max(a, b), min(a, b)))
    return sorted(drawn)
