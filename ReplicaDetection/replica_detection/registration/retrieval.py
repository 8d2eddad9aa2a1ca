"""From a query to its few most similar training cases, each with the transform that aligns it to the query.

Coarse to fine: every case and every mirroring is searched at about a thousand voxels (`ShiftSearch`). The better starts
are registered there and at some thousand voxels, the best cases at the finest level. A copy in place, or one that was
only mirrored, is searched among some thousand voxels at once: what is left of a copy that lost a part may be too little
for a thousand. The numbers below bound the cost of a query in cohorts of any size, apart from the search itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from replica_detection.registration import CANDIDATES
from replica_detection.registration.optimization import Limits, merit, register, template
from replica_detection.registration.placement import Placement
from replica_detection.registration.pyramid import Level, structure
from replica_detection.registration.search import ShiftSearch, mirrorings

# A turned copy ranks far down before it is registered: only in cohorts of thousands is any start left out.
STARTS, KEPT, KEPT_BY_SEARCH, KEPT_IN_PLACE = 32_768, 64, 16, 8
ITERATIONS = (8, 12, 12)
# Cases compared in place at a time, which bounds the memory.
ROWS = 256
# Voxels count as cubes where no side is longer than another by more than this factor.
OBLONG = 1.15


@dataclass(frozen=True)
class Starts:
    """Motions to be improved in place, each of one training case onto the query.

    Args:
        case: (S,) the training case.
        flips: (S, 3) +1 and -1, the mirrored axes.
        matrices, shifts: (S, 3, 3) and (S, 3), in units of `length`.
        length: (S, 3) the unit of length along each axis, in mm.
    """

    case: np.ndarray
    flips: np.ndarray
    matrices: np.ndarray
    shifts: np.ndarray
    length: np.ndarray

    @classmethod
    def mirrored(cls, case: np.ndarray, flips: np.ndarray, shifts: np.ndarray, length: np.ndarray) -> Starts:
        """Only mirrored and shifted, by (S, 3) mm."""
        return cls(case, flips, flips[:, :, None] * np.eye(3), shifts / length, length)

    def at(self, rows: np.ndarray) -> Starts:
        return Starts(*(values[rows] for values in self._parts()))

    def followed_by(self, others: Starts) -> Starts:
        return Starts(*(np.concatenate(pair) for pair in zip(self._parts(), others._parts(), strict=True)))

    def in_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """(S, 3, 3) and (S, 3)."""
        return self.matrices * self.length[:, :, None] / self.length[:, None, :], self.shifts * self.length

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.case, self.flips, self.matrices, self.shifts, self.length


@dataclass(frozen=True)
class TrainingPyramids:
    """The training cohort as retrieval needs it: the coarse and the middle level of all cases, the fine one on demand.

    Args:
        chain: the three levels of the grid.
        coarse, middle: (N, X, Y, Z) float32.
        fine: gives the fine level of the cases at the given positions.
        limits: what counts as a plausible motion.
        voxel: (3,) sides of a voxel of the files, of geometric mean 1. Where they differ, a copy may have been turned
            on its voxels as if these were cubes, as training pipelines do, which is no rotation in mm: both are
            looked for.
    """

    chain: tuple[Level, ...]
    coarse: np.ndarray
    middle: np.ndarray
    fine: Callable[[Sequence[int]], np.ndarray]
    limits: Limits = field(default_factory=Limits)
    voxel: tuple[float, ...] = (1.0, 1.0, 1.0)

    @cached_property
    def units(self) -> np.ndarray:
        """(1 or 2, 3) the unit of length along each axis, in which motions are rotations, scale and shift."""
        oblong = max(self.voxel) > OBLONG * min(self.voxel)
        return np.array([(1.0, 1.0, 1.0), self.voxel] if oblong else [(1.0, 1.0, 1.0)])

    @cached_property
    def shown(self) -> np.ndarray:
        """(N,) bool: the cases that show anything."""
        return np.array(self.coarse.any(axis=(1, 2, 3)))

    @cached_property
    def searched(self) -> ShiftSearch:
        return ShiftSearch(self.coarse, self.chain[0])

    def place(self, query: Sequence[np.ndarray], allowed: np.ndarray, candidates: int = CANDIDATES) -> list[Placement]:
        """The training cases most alike after the best motion, best first.

        Args:
            query: the three levels of the query's pyramid.
            allowed: (N,) bool, the cases that may be named.
            candidates: so many cases at most.

        Returns:
            Empty where the query shows no structure or no case is allowed.
        """
        allowed = allowed & self.shown
        if not structure(query[0]).any() or not allowed.any():
            return []
        ways = mirrorings(self.chain[0])
        score, shift = self.searched.shifts(query[0])
        score[~allowed] = -np.inf
        order = np.argsort(-score, axis=None, kind="stable")[:STARTS]
        order = order[np.isfinite(score.ravel()[order])]
        case, way = np.divmod(order, len(ways))
        # Each start also from the centre: a large shift may have won by chance.
        both = np.concatenate([shift[case, way], np.zeros((len(case), 3))])
        repeated = 2 * len(self.units)
        starts = Starts.mirrored(
            np.tile(case, repeated),
            np.tile(ways[way], (repeated, 1)),
            np.tile(both, (len(self.units), 1)),
            np.repeat(self.units, len(both), axis=0),
        )
        found = merit(self._register(query[0], 0, self.coarse, starts, starts.case), self.limits)
        best = found.reshape(repeated, len(case)).argmax(0) * len(case) + np.arange(len(case))
        kept = best[np.argsort(-found[best], kind="stable")[:KEPT]]
        starts = starts.at(np.array(list(dict.fromkeys([*kept.tolist(), *best[:KEPT_BY_SEARCH].tolist()]))))

        as_it_lies = correlations_in_place(query[1], self.middle, ways)
        as_it_lies[~allowed] = -np.inf
        order = np.argsort(-as_it_lies, axis=None, kind="stable")[:KEPT_IN_PLACE]
        there, mirrored = np.divmod(order[np.isfinite(as_it_lies.ravel()[order])], len(ways))
        nowhere, mm = np.zeros((len(there), 3)), np.ones((len(there), 3))
        starts = starts.followed_by(Starts.mirrored(there, ways[mirrored], nowhere, mm))
        found = merit(self._register(query[1], 1, self.middle, starts, starts.case), self.limits)
        first: dict[int, int] = {}
        for s in np.argsort(-found, kind="stable").tolist():
            first.setdefault(int(starts.case[s]), s)
        starts = starts.at(np.array(list(first.values())[:candidates]))

        cases = self.fine(starts.case.tolist())
        result = self._register(query[2], 2, cases, starts, np.arange(len(cases)))
        figures = merit(result, self.limits)
        matrices, shifts = starts.in_mm()
        return [
            Placement(
                int(starts.case[s]),
                matrices[s],
                shifts[s],
                starts.flips[s],
                float(result[s, 0]),
                float(result[s, 1]),
                float(figures[s]),
                correlation_in_place(query[2], cases[s]),
            )
            for s in np.argsort(-figures, kind="stable")
        ]

    def _register(
        self, query: np.ndarray, number: int, training: np.ndarray, starts: Starts, which: np.ndarray
    ) -> np.ndarray:
        """Improves the starts at one level, in place; (S, 2) correlation and overlap. `which`: rows of `training`."""
        out = np.zeros((len(starts.case), 2))
        level = self.chain[number]
        for unit in self.units:
            rows = np.flatnonzero((starts.length == unit).all(1))
            if not len(rows):
                continue
            x, y, z = (np.array(level.spacing) / unit).tolist()
            matrices, shifts = starts.matrices[rows], starts.shifts[rows]
            out[rows] = register(
                template(query, Level(level.shape, (x, y, z))), training, matrices, shifts, which[rows],
                starts.flips[rows], iterations=ITERATIONS[number], limits=self.limits,
            )  # fmt: skip
            starts.matrices[rows], starts.shifts[rows] = matrices, shifts
        return out


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
