"""Near-duplicates inside a synthetic set: images nearer to each other than training cases of different patients are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replica_detection.detection.distances import Distances
from replica_detection.detection.null_distances import cross_fitted_distances
from replica_detection.detection.queries import CohortQueries
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import Block, Measure, needed_features
from replica_detection.progress import Progress, silent
from replica_detection.statistics.combination import Combination, combined
from replica_detection.statistics.distance_ratio import Nearest, evidence, nearest
from replica_detection.statistics.null import Null, benjamini_hochberg, near_duplicates, tail_needed

SHARE = 0.05
HALFWAY = 0.5
SMALLEST_NEIGHBOURHOOD = 5


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are near-duplicates of each other, directly or through others of the group; or all `identical`."""

    ids: tuple[str, ...]
    identical: bool


@dataclass(frozen=True)
class NearDuplicates:
    """The groups of a set, and what limits the search for them."""

    groups: list[DuplicateGroup]
    warnings: tuple[str, ...] = ()


def near_duplicate_groups(
    synthetic: Cohort,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    alpha: float = 0.05,
    null_size: int = 500,
    progress: Progress = silent,
) -> NearDuplicates:
    """Groups of two or more near-duplicates; every other image stands alone.

    Two things must come together, each of which has its own way of misleading. The distance ratio is unusual: the same
    statistics as for replicas, with other synthetic images in the place of training cases and training cases among
    those of other patients as the null (a blurred set lies near together, but no pair stands out). And the distance
    itself is one that at most SHARE of training cases have to their nearest: where a set falls into few kinds of
    images, the ratio of any two of one kind is small.

    A set larger than the training cohort has more chances of a near neighbour by accident; its p values are raised to
    those of so many chances, 1 - (1 - p)^(set / cohort). An image that the generator repeats more often than the
    ratio's neighbourhood (a tenth of the smaller set) is large has an ordinary ratio; it is found by its distance
    alone, below HALFWAY times the smallest real one. Images at distance 0 under every measure are identical. Where
    too few training cases can be compared for a p value of alpha, the ratio says nothing, and a warning says so.

    Args:
        measures: of the index; the same ones prepare and compare the synthetic images.
        alpha: false discovery rate of the near-duplicates.
        null_size: training cases used as the null, at most.
    """
    names = needed_features(measures)
    with tempfile.TemporaryDirectory(prefix="replica-detection-") as folder:
        spool = _Spool(Path(folder), names, len(synthetic))
        done = 0
        for block in CohortQueries(synthetic, index).blocks(measures):
            if block.ids:
                spool.add(block.ids, block.features)
            done += len(block.ids) + len(block.problems)
            progress("reading", done, len(synthetic))
        if len(spool.ids) < 2:
            return NearDuplicates([])
        distances = _all_pairs(spool, measures, index.block_rows(names), progress)
        ids = spool.ids
        del spool  # its files must be closed before their folder can go
    k = max(SMALLEST_NEIGHBOURHOOD, min(len(ids), len(index)) // 10)
    null = cross_fitted_distances(index, measures, size=null_size, k=k, progress=progress)
    partner, near, too_few = _near(distances, null, k, measures, alpha, len(index))
    same = np.all([d == 0 for d in distances.values()], axis=0)
    warning = (
        f"only {too_few} training images of different patients could be compared with each other, too few to say which "
        "distance ratio is unusual: among the synthetic images only copies and the very nearest are near-duplicates"
    )
    return NearDuplicates(_groups(ids, partner, near, same), () if too_few is None else (warning,))


class _Spool:
    """Features of cases on disk, so that a set may be larger than the memory."""

    def __init__(self, folder: Path, names: Sequence[str], cases: int):
        self.folder, self.names, self.cases = folder, names, cases
        self.ids: list[str] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, ids: Sequence[str], features: Block) -> None:
        start = len(self.ids)
        for number, name in enumerate(self.names):
            if name not in self.arrays:
                shape = (self.cases, *features[name].shape[1:])
                path = self.folder / f"{number}.npy"
                self.arrays[name] = np.lib.format.open_memmap(path, "w+", features[name].dtype, shape)
            self.arrays[name][start : start + len(ids)] = features[name]
        self.ids += ids

    def blocks(self, rows: int) -> Iterator[tuple[slice, Block]]:
        for start in range(0, len(self.ids), rows):
            part = slice(start, min(start + rows, len(self.ids)))
            yield part, {name: np.array(array[part]) for name, array in self.arrays.items()}


def _all_pairs(spool: _Spool, measures: Sequence[Measure], rows: int, progress: Progress) -> dict[str, np.ndarray]:
    """(Q, Q) distances of each measure, +inf on the diagonal."""
    size = len(spool.ids)
    distances = {m.name: np.full((size, size), np.inf) for m in measures}
    done, total = 0, size * size * len(measures)
    for first, queries in spool.blocks(rows):
        for second, others in spool.blocks(rows):
            for m in measures:
                distances[m.name][first, second] = m.distances(queries, others)
                done += (first.stop - first.start) * (second.stop - second.start)
                progress("near-duplicates", done, total)
    for table in distances.values():
        np.fill_diagonal(table, np.inf)
    return distances


def _near(
    distances: dict[str, np.ndarray],
    null: Distances,
    k: int,
    measures: Sequence[Measure],
    alpha: float,
    training_cases: int,
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """(Q,) position of each image's nearest other one, and (Q,) bool: whether the two are near-duplicates.

    Third, the number of null cases where these are too few for a p value of alpha, else None.
    """
    levels = tuple(m.level for m in measures)
    size = len(distances[measures[0].name])
    found = [nearest(distances[m.name], k) for m in measures]
    real = [null.by_measure[m.name].near for m in measures]
    values = np.stack([evidence(n.ratio) for n in found], 1)
    null_values = np.stack([evidence(n.ratio) for n in real], 1)
    leaked = near_duplicates(null_values, levels)
    null_values = null_values[~leaked]
    combination = Combination.fit(null_values, levels)
    null_evidence = combined(combination.null_by_group(null_values))
    with_tail = tail_needed(len(null_values), len(values), alpha)
    fitted = Null.fit(null_evidence, with_tail=with_tail)
    p = fitted.p_values(combined(combination.by_group(values)))
    chances = max(1.0, (size - 1) / max(training_cases - 1, 1))
    unusual = benjamini_hochberg(1 - (1 - p) ** chances) <= alpha
    real_distances = [_finite(n.distance[~leaked]) for n in real]
    usual = [np.quantile(d, SHARE) if len(d) else 0.0 for d in real_distances]
    halfway = [HALFWAY * d.min() if len(d) else 0.0 for d in real_distances]
    near = (unusual & _most_below(found, usual, levels)) | _most_below(found, halfway, levels)
    standard = np.nan_to_num(combination.standard(values), nan=-np.inf)
    choices = np.stack([n.index for n in found], 1)
    compared = int(np.isfinite(null_values).any(1).sum())
    too_few = compared if fitted.tail is None and 1 / (compared + 1) > alpha else None
    return choices[np.arange(len(choices)), standard.argmax(1)], near, too_few


def _most_below(found: Sequence[Nearest], limits: Sequence[float], levels: tuple[str, ...]) -> np.ndarray:
    """(Q,) bool: whether the nearest distance is below its limit under most measures of any level."""
    below = np.stack([n.distance < limit for n, limit in zip(found, limits, strict=True)], 1)
    of_level = [below[:, [i for i, name in enumerate(levels) if name == level]] for level in dict.fromkeys(levels)]
    return np.any([part.mean(1) > 0.5 for part in of_level], axis=0)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _groups(ids: Sequence[str], partner: np.ndarray, near: np.ndarray, same: np.ndarray) -> list[DuplicateGroup]:
    leader = list(range(len(ids)))

    def root(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    edges = [(int(i), int(partner[i])) for i in np.flatnonzero(near) if partner[i] >= 0]
    for i, j in [*edges, *np.argwhere(same).tolist()]:
        a, b = sorted((root(i), root(j)))
        leader[b] = a
    members: dict[int, list[int]] = {}
    for i in range(len(ids)):
        members.setdefault(root(i), []).append(i)
    return [
        DuplicateGroup(tuple(ids[i] for i in group), all(same[group[0], i] for i in group[1:]))
        for group in members.values()
        if len(group) > 1
    ]
