"""From a query to its few most alike training cases, each with the motion that lays it on the query.

Coarse to fine: every case and every mirroring is searched at about a thousand voxels (Searched), the better starts are
registered there and at some thousand voxels, the best cases at the finest level. A copy that did not move, or was only
mirrored, is looked for among some thousand voxels at once: what is left of one that lost a part may be too little for
a thousand. The numbers below bound the cost of a query in cohorts of any size, apart from the search itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from replica_detection.registration import CANDIDATES
from replica_detection.registration.optimization import Limits, merit, register, template
from replica_detection.registration.pyramid import Level, structure
from replica_detection.registration.search import Searched, mirrorings

# A turned copy ranks far down before it is registered: only in cohorts of thousands is any start left out.
STARTS, KEPT, KEPT_BY_SEARCH, KEPT_IN_PLACE = 32_768, 64, 16, 8
ITERATIONS = (8, 12, 12)
# Cases compared in place at a time, which bounds the memory.
ROWS = 256


@dataclass(frozen=True)
class Placement:
    """A training case laid on a query.

    A position u of the query lies at `matrix @ u + shift` in the training case, both in mm from the centre of the grid
    along its axes; `mirroring` (3,) of +1 and -1 is the part of `matrix` that is no rotation. `correlation` is that of
    the locally normalized images over the overlap, `overlap` the share of the query's structure that it covers;
    `correlation_before` is that of the pair as it lies.
    """

    training: int
    matrix: np.ndarray
    shift: np.ndarray
    mirroring: np.ndarray
    correlation: float
    overlap: float
    merit: float
    correlation_before: float


@dataclass(frozen=True)
class TrainingPyramids:
    """The training cohort as retrieval needs it: the coarse and the middle level of all cases, the fine one on demand.

    Args:
        chain: the three levels of the grid.
        coarse, middle: (N, X, Y, Z) float32.
        fine: gives the fine level of the cases at the given positions.
        limits: what counts as a plausible motion.
    """

    chain: tuple[Level, ...]
    coarse: np.ndarray
    middle: np.ndarray
    fine: Callable[[Sequence[int]], np.ndarray]
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def searched(self) -> Searched:
        return Searched(self.coarse, self.chain[0])

    def place(self, query: Sequence[np.ndarray], allowed: np.ndarray, candidates: int = CANDIDATES) -> list[Placement]:
        """The training cases most alike after the best motion, best first.

        Args:
            query: the three levels of the query's pyramid.
            allowed: (N,) bool, the cases that may be named.
            candidates: so many cases at most.

        Returns:
            Empty where the query shows no structure or no case is allowed.
        """
        coarse = template(query[0], self.chain[0])
        if not len(coarse.value) or not allowed.any():
            return []
        ways = mirrorings(self.chain[0])
        score, shift = self.searched.shifts(query[0])
        score[~allowed] = -np.inf
        order = np.argsort(-score, axis=None, kind="stable")[:STARTS]
        order = order[np.isfinite(score.ravel()[order])]
        case, way = np.divmod(order, len(ways))
        # Each start also from the centre: a large shift may have won by chance.
        which, flips = np.tile(case, 2), np.tile(ways[way], (2, 1))
        shifts = np.concatenate([shift[case, way], np.zeros((len(case), 3))])
        matrices = np.stack([np.diag(f) for f in flips])
        found = merit(self._register(coarse, self.coarse, matrices, shifts, which, flips, 0), self.limits)
        half = len(case)
        best = np.where(found[:half] >= found[half:], np.arange(half), np.arange(half) + half)
        kept = best[np.argsort(-found[best], kind="stable")[:KEPT]]
        kept = np.array(list(dict.fromkeys([*kept.tolist(), *best[:KEPT_BY_SEARCH].tolist()])))

        as_it_lies = correlations_in_place(query[1], self.middle, ways)
        as_it_lies[~allowed] = -np.inf
        order = np.argsort(-as_it_lies, axis=None, kind="stable")[:KEPT_IN_PLACE]
        there, mirrored = np.divmod(order[np.isfinite(as_it_lies.ravel()[order])], len(ways))
        matrices = np.concatenate([matrices[kept], np.stack([np.diag(way) for way in ways])[mirrored]])
        shifts = np.concatenate([shifts[kept], np.zeros((len(there), 3))])
        which, flips = np.concatenate([which[kept], there]), np.concatenate([flips[kept], ways[mirrored]])
        middle = template(query[1], self.chain[1])
        found = merit(self._register(middle, self.middle, matrices, shifts, which, flips, 1), self.limits)
        first: dict[int, int] = {}
        for s in np.argsort(-found, kind="stable").tolist():
            first.setdefault(int(which[s]), s)
        kept = np.array(list(first.values())[:candidates])

        matrices, shifts, which, flips = matrices[kept], shifts[kept], which[kept], flips[kept]
        named = which.tolist()
        last, cases = template(query[2], self.chain[2]), self.fine(named)
        result = self._register(last, cases, matrices, shifts, np.arange(len(named)), flips, 2)
        figures = merit(result, self.limits)
        return [
            Placement(
                named[s],
                matrices[s],
                shifts[s],
                flips[s],
                float(result[s, 0]),
                float(result[s, 1]),
                float(figures[s]),
                correlation_in_place(query[2], cases[s]),
            )
            for s in np.argsort(-figures, kind="stable")
        ]

    def _register(self, query, training, matrices, shifts, which, flips, level: int) -> np.ndarray:
        return register(
            query, training, matrices, shifts, which, flips, iterations=ITERATIONS[level], limits=self.limits
        )


def correlations_in_place(query: np.ndarray, training: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """(N, F) correlations of a query (X, Y, Z) with cases (N, X, Y, Z) over the query's structure, mirrored in each of
    the ways but not moved; 0 where either shows none."""
    inside = structure(query)
    count = int(inside.sum())
    found = np.zeros((len(training), len(ways)))
    if count < 2:
        return found
    centred = np.where(inside, query - query[inside].mean(), 0).astype(np.float32)
    mirrored = [tuple(slice(None, None, int(s)) for s in way) for way in ways]
    value = np.stack([centred[m].ravel() for m in mirrored], 1)
    counted = np.stack([inside[m].ravel() for m in mirrored], 1).astype(np.float32)
    length = float(np.linalg.norm(centred))
    for start in range(0, len(training), ROWS):
        rows = training[start : start + ROWS].reshape(-1, query.size)
        variance = (rows**2) @ counted - (rows @ counted) ** 2 / count
        found[start : start + ROWS] = (rows @ value) / (length * np.sqrt(np.maximum(variance, 1e-6)) + 1e-12)
    return found


def correlation_in_place(query: np.ndarray, training: np.ndarray) -> float:
    """Of two images of one level as they lie, over the query's structure; 0 where either shows none."""
    inside = structure(query)
    a, b = query[inside].astype(np.float64), training[inside].astype(np.float64)
    if len(a) < 2 or not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
