"""Search for the few training cases that align best with a query, each with its transform.

The search goes from coarse to fine. Every case and every mirroring is searched at about a thousand voxels
(`ShiftSearch`). The better starts are registered there and at some thousand voxels, the best cases at the finest level.
Copies in place, or only mirrored, are also searched directly at some thousand voxels, because the rest of a copy that
lost a part may be too small at a thousand. The numbers below bound the cost of a query in cohorts of any size, apart
from the search itself. In cohorts of many thousands it looks only at cases that are proposed: the most similar by an
embedding that is the same for a moved copy, and the best in place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from replica_detection.registration import CANDIDATES, IN_PLACE
from replica_detection.registration.optimization import Limits, merit, register, template
from replica_detection.registration.placement import Placement
from replica_detection.registration.pyramid import Level, structure
from replica_detection.registration.search import ShiftSearch, mirrorings

# A rotated copy ranks far down before it is registered: starts are left out only in cohorts of thousands.
STARTS, KEPT, KEPT_BY_SEARCH, KEPT_IN_PLACE = 32_768, 64, 16, 8
ITERATIONS = (8, 12, 12)
# Of the cases that are to be proposed in place, so many times more are looked at with some thousand voxels.
LOOKED_AT = 4
# Number of cases compared in place at a time, which bounds the memory.
ROWS = 256
# Voxels count as cubes if no side is longer than another by more than this factor.
OBLONG = 1.15


@dataclass(frozen=True)
class Starts:
    """S transforms, each between the query and one training case, which registration improves in place.

    Args:
        case: (S,), the training case.
        flips: (S, 3) of +1 and -1, the mirrored axes.
        matrices, shifts: (S, 3, 3) and (S, 3), in units of `length`.
        length: (S, 3), the unit of length along each axis, in mm.
    """

    case: np.ndarray
    flips: np.ndarray
    matrices: np.ndarray
    shifts: np.ndarray
    length: np.ndarray

    @classmethod
    def mirrored(cls, case: np.ndarray, flips: np.ndarray, shifts: np.ndarray, length: np.ndarray) -> Starts:
        """Starts without rotation and scale, shifted by (S, 3) mm."""
        return cls(case, flips, flips[:, :, None] * np.eye(3), shifts / length, length)

    def at(self, rows: np.ndarray) -> Starts:
        return Starts(*(values[rows] for values in self._parts()))

    def followed_by(self, others: Starts) -> Starts:
        return Starts(*(np.concatenate(pair) for pair in zip(self._parts(), others._parts(), strict=True)))

    def in_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrices (S, 3, 3) and shifts (S, 3) in mm."""
        return self.matrices * self.length[:, :, None] / self.length[:, None, :], self.shifts * self.length

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.case, self.flips, self.matrices, self.shifts, self.length


# The levels of a query, (N,) bool allowed cases, and positions of similar ones or None; see `candidates`.
Search = tuple[Sequence[np.ndarray], np.ndarray, np.ndarray | None]
# What is to be registered: the query's level, its number, training cases, starts, and the row of each start's case.
Asked = tuple[np.ndarray, int, np.ndarray, Starts, np.ndarray]
T = TypeVar("T")
Steps = Generator[Asked, Any, T]


@dataclass(frozen=True)
class TrainingPyramids:
    """The training cohort for retrieval: the coarse and the middle level of all cases, the fine level on demand.

    Args:
        chain: the three levels of the grid.
        coarse, middle: (N, X, Y, Z) float32; they may be mapped from a file.
        fine: returns the fine level of the cases at the given positions.
        limits: of plausible transforms.
        voxel: (3,) sides of a voxel of the files, of geometric mean 1. If they differ, a copy may have been rotated on
            its voxels as if they were cubes, as training pipelines do, which is not a rotation in mm. Both kinds are
            searched.
    """

    chain: tuple[Level, ...]
    coarse: np.ndarray
    middle: np.ndarray
    fine: Callable[[Sequence[int]], np.ndarray]
    limits: Limits = field(default_factory=Limits)
    voxel: tuple[float, ...] = (1.0, 1.0, 1.0)

    @cached_property
    def units(self) -> np.ndarray:
        """Units of length along each axis in which transforms are rotations, scale and shift, (1 or 2, 3)."""
        oblong = max(self.voxel) > OBLONG * min(self.voxel)
        return np.array([(1.0, 1.0, 1.0), self.voxel] if oblong else [(1.0, 1.0, 1.0)])

    @cached_property
    def has_structure(self) -> np.ndarray:
        """(N,) bool: False for cases with nothing but zeros."""
        blocks = range(0, len(self.coarse), ROWS)
        return np.concatenate([self.coarse[start : start + ROWS].any(axis=(1, 2, 3)) for start in blocks])

    @cached_property
    def shift_search(self) -> ShiftSearch:
        return ShiftSearch(self.coarse, self.chain[0])

    def candidates(
        self,
        query: Sequence[np.ndarray],
        allowed: np.ndarray,
        count: int = CANDIDATES,
        similar: np.ndarray | None = None,
    ) -> list[Placement]:
        """The training cases with the highest merit after alignment, best first.

        Args:
            query: the three levels of the query's pyramid.
            allowed: (N,) bool, the cases that may be named.
            count: largest number of cases.
            similar: positions of cases that are proposed because they are similar however they lie. The search then
                looks at these and at the best in place, instead of at all.

        Returns:
            An empty list if the query shows no structure or no case is allowed.
        """
        return self.candidates_of_all([(query, allowed, similar)], count)[0]

    def candidates_of_all(self, searches: Sequence[Search], count: int = CANDIDATES) -> list[list[Placement]]:
        """`candidates` for many queries, given as (query, allowed, similar); each step is done for all of them."""
        steps = [self._steps(*search, count) for search in searches]
        found: list[list[Placement]] = [[] for _ in steps]
        answers: dict[int, np.ndarray | None] = dict.fromkeys(range(len(steps)))
        while answers:
            asked = {}
            for n, answer in answers.items():
                try:
                    asked[n] = steps[n].send(answer)
                except StopIteration as end:
                    found[n] = end.value
            answers = dict(zip(asked, self._register_all(list(asked.values())), strict=True))
        return found

    def _steps(
        self, query: Sequence[np.ndarray], allowed: np.ndarray, similar: np.ndarray | None, count: int
    ) -> Steps[list[Placement]]:
        """The search of one query, which hands out what is to be registered and takes the merits."""
        positions = np.flatnonzero(allowed & self.has_structure)
        if not structure(query[0]).any() or not len(positions):
            return []
        if similar is not None:
            in_place = self._proposed_in_place(query, positions)
            positions = np.union1d(in_place, np.intersect1d(similar, positions))
        coarse = yield from self._coarse_starts(query[0], positions)
        starts = coarse.followed_by(self._starts_in_place(query[1], positions))
        middle, which = self._rows(1, starts.case)
        merits = merit((yield query[1], 1, middle, starts, which), self.limits)
        best_of_case: dict[int, int] = {}
        for s in np.argsort(-merits, kind="stable").tolist():
            best_of_case.setdefault(int(starts.case[s]), s)
        return (yield from self._placements(query[2], starts.at(np.array(list(best_of_case.values())[:count]))))

    def _proposed_in_place(self, query: Sequence[np.ndarray], positions: np.ndarray) -> np.ndarray:
        """The cases that correlate best with the query in place or mirrored: at a thousand voxels, then at more."""
        for number, count in ((0, LOOKED_AT * IN_PLACE), (1, IN_PLACE)):
            if len(positions) > count:
                best = self._in_place(query[number], positions, number).max(1)
                positions = np.sort(positions[np.argpartition(-best, count - 1)[:count]])
        return positions

    def _coarse_starts(self, query: np.ndarray, positions: np.ndarray) -> Steps[Starts]:
        """The best starts of the shift search, registered at the coarse level."""
        ways = mirrorings(self.chain[0])
        score, shift = self._shifts(query, positions)
        order = np.argsort(-score, axis=None, kind="stable")[:STARTS]
        row, way = np.divmod(order, len(ways))
        # Each start also from the centre: a large shift may have won by chance.
        both = np.concatenate([shift[row, way], np.zeros((len(row), 3))])
        repeated = 2 * len(self.units)
        starts = Starts.mirrored(
            np.tile(positions[row], repeated),
            np.tile(ways[way], (repeated, 1)),
            np.tile(both, (len(self.units), 1)),
            np.repeat(self.units, len(both), axis=0),
        )
        coarse, which = self._rows(0, starts.case)
        merits = merit((yield query, 0, coarse, starts, which), self.limits)
        best = merits.reshape(repeated, len(row)).argmax(0) * len(row) + np.arange(len(row))
        kept = best[np.argsort(-merits[best], kind="stable")[:KEPT]]
        return starts.at(np.array(list(dict.fromkeys([*kept.tolist(), *best[:KEPT_BY_SEARCH].tolist()]))))

    def _starts_in_place(self, query: np.ndarray, positions: np.ndarray) -> Starts:
        """The cases that correlate best with the query at the middle level in place, or only mirrored."""
        ways = mirrorings(self.chain[0])
        correlation = self._in_place(query, positions)
        order = np.argsort(-correlation, axis=None, kind="stable")[:KEPT_IN_PLACE]
        row, way = np.divmod(order, len(ways))
        return Starts.mirrored(positions[row], ways[way], np.zeros((len(row), 3)), np.ones((len(row), 3)))

    def _placements(self, query: np.ndarray, starts: Starts) -> Steps[list[Placement]]:
        """The starts after registration at the fine level, highest merit first."""
        cases = self.fine(starts.case.tolist())
        registered = yield query, 2, cases, starts, np.arange(len(cases))
        merits = merit(registered, self.limits)
        matrices, shifts = starts.in_mm()
        before = self._before(query, cases)
        return [
            Placement(
                training=int(starts.case[s]),
                matrix=matrices[s],
                shift=shifts[s],
                mirroring=starts.flips[s],
                correlation=float(registered[s, 0]),
                overlap=float(registered[s, 1]),
                merit=float(merits[s]),
                correlation_before=float(before[s]),
            )
            for s in np.argsort(-merits, kind="stable")
        ]

    # What compares voxels, and only that, follows: `retrieval_torch` does the same on a GPU.

    def _shifts(self, query: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `ShiftSearch.shifts`."""
        return self.shift_search.shifts(query, positions)

    def _in_place(self, query: np.ndarray, positions: np.ndarray, number: int = 1) -> np.ndarray:
        """See `correlations_in_place`, of the coarse or the middle level."""
        training = (self.coarse, self.middle)[number]
        return correlations_in_place(query, training, mirrorings(self.chain[0]), positions)

    def _rows(self, number: int, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coarse or middle level of these cases in memory, each once, and (S,) the row of each case in it."""
        different, which = np.unique(cases, return_inverse=True)
        return np.asarray((self.coarse, self.middle)[number][different]), which

    def _before(self, query: np.ndarray, training: np.ndarray) -> np.ndarray:
        """Correlation of a query with each case over its structure, without alignment, (C,); 0 if either shows none."""
        inside = structure(query)
        return np.array([correlation_of(query[inside], case[inside]) for case in training])

    def _register_all(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Improves the starts of several queries in place; (S, 2) correlation and overlap of each."""
        return [self._register(*one) for one in asked]

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


def correlations_in_place(
    query: np.ndarray, training: np.ndarray, ways: np.ndarray, positions: np.ndarray | None = None
) -> np.ndarray:
    """Correlation of a query with cases over the query's structure, without alignment but mirrored, (P, F).

    Args:
        query: (X, Y, Z).
        training: (N, X, Y, Z).
        ways: (F, 3), the mirrorings.
        positions: (P,), the cases; None for all.

    Returns:
        0 where the query or the case shows no structure.
    """
    inside = structure(query)
    count = int(inside.sum())
    positions = np.arange(len(training)) if positions is None else positions
    correlation = np.zeros((len(positions), len(ways)))
    if count < 2:
        return correlation
    centred = np.where(inside, query - query[inside].mean(), 0).astype(np.float32)
    mirrored = [tuple(slice(None, None, int(s)) for s in way) for way in ways]
    value = np.stack([centred[m].ravel() for m in mirrored], 1)
    counted = np.stack([inside[m].ravel() for m in mirrored], 1).astype(np.float32)
    length = float(np.linalg.norm(centred))
    for start in range(0, len(positions), ROWS):
        part = slice(start, start + ROWS)
        rows = training[positions[part]].reshape(-1, query.size)
        variance = (rows**2) @ counted - (rows @ counted) ** 2 / count
        correlation[part] = (rows @ value) / (length * np.sqrt(np.maximum(variance, 1e-6)) + 1e-12)
    return correlation


def correlation_of(query: np.ndarray, training: np.ndarray) -> float:
    """Correlation of two images at the same n voxels, (n,) each; 0 if either is constant."""
    a, b = query.astype(np.float64), training.astype(np.float64)
    if len(a) < 2 or not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
