"""The distances of a comparison, reduced to what the statistics read. Imports with numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.statistics.distance_ratio import Nearest, nearest

if TYPE_CHECKING:
    from replica_detection.io.cohort import Problem
    from replica_detection.registration.placement import Placement


@dataclass(frozen=True)
class MeasureDistances:
    """Distances of Q queries under one measure: of each row the nearest cases, and no full table.

    Args:
        near: nearest training cases and distance ratio.
        exact: for each query the training cases at distance exactly 0, rising; kept of the voxel level.
        chosen: (Q, C) distance to the cases in `Distances.choices`.
        columns: further numbers and texts about each query, by name, Q each (`Measure.describe`).
        placements: of a measure that aligns, the candidates of each query, nearest first; else empty.
        rows: (Q, N) float64, all distances, +inf for a pair that is left out; None unless they were asked for.
    """

    near: Nearest
    exact: tuple[tuple[int, ...], ...]
    chosen: np.ndarray
    columns: dict[str, list[Any]] = field(default_factory=dict)
    placements: tuple[tuple[Placement, ...], ...] = ()
    rows: np.ndarray | None = None

    def taken(self, queries: Sequence[int]) -> MeasureDistances:
        """The same of some of the queries, in this order."""
        rows = np.array(queries, np.int64)
        return MeasureDistances(
            Nearest(*(getattr(self.near, f.name)[rows] for f in fields(Nearest))),
            tuple(self.exact[i] for i in queries),
            self.chosen[rows],
            {name: [values[i] for i in queries] for name, values in self.columns.items()},
            tuple(self.placements[i] for i in queries) if self.placements else (),
            None if self.rows is None else self.rows[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence[MeasureDistances]) -> MeasureDistances:
        """The same for the queries of all parts, one after the other; at least one part."""
        near = [part.near for part in parts]
        rows = [part.rows for part in parts if part.rows is not None]
        return cls(
            Nearest(*(np.concatenate([getattr(n, f.name) for n in near]) for f in fields(Nearest))),
            tuple(exact for part in parts for exact in part.exact),
            np.concatenate([part.chosen for part in parts]),
            {name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns},
            tuple(candidates for part in parts for candidates in part.placements),
            np.concatenate(rows) if rows else None,
        )


@dataclass(frozen=True)
class Distances:
    """Distances of Q queries to the N cases of an index, under each measure.

    Args:
        ids: of the queries.
        by_measure: by name.
        voxels: `PreparedImage.voxels` of each query, "" where it is not known; empty if it is known of none.
        left_out: for each query the number of training cases that it was not compared with; empty if there are none.
        choices: (Q, C) positions of the nearest case under each measure, -1 where there is none.
        problems: query files that could not be read.
        warnings: (case id, text).
        kind: for queries that serve as null cases, which ones: "validation" or "cross-fitted".
        affines: (4, 4) from a voxel of the grid to RAS mm of each query's file.
        seconds_aligning: time of the measures that align, summed over all workers.
    """

    ids: tuple[str, ...]
    by_measure: dict[str, MeasureDistances]
    voxels: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    choices: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    problems: tuple[Problem, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    affines: tuple[np.ndarray, ...] = ()
    seconds_aligning: float = 0.0

    @classmethod
    def reduced(
        cls,
        ids: Sequence[str],
        rows: Mapping[str, np.ndarray],
        *,
        k: int,
        patients: np.ndarray,
        exact_of: Iterable[str],
        whole: bool = False,
        **others: Any,
    ) -> Distances:
        """Keeps of full rows what the statistics read.

        Args:
            rows: (Q, N) float64 by measure; +inf for a pair that is left out.
            k: neighbourhood of the distance ratio.
            patients: (N,) integers, equal for the cases of one patient.
            exact_of: measures of which the pairs at distance 0 are kept.
            whole: keep the rows too.
            others: the other fields.
        """
        near = {name: nearest(table, k, patients) for name, table in rows.items()}
        shape = (len(ids), 0)
        choices = np.stack([n.index for n in near.values()], 1) if near else np.empty(shape, np.int64)
        exact_of = set(exact_of)
        by_measure = {}
        for name, table in rows.items():
            chosen = np.full(choices.shape, np.inf)
            if table.shape[1]:
                chosen = np.where(choices >= 0, np.take_along_axis(table, np.maximum(choices, 0), 1), np.inf)
            exact: tuple[tuple[int, ...], ...] = ((),) * len(ids)
            if name in exact_of:
                exact = tuple(tuple(np.flatnonzero(row == 0).tolist()) for row in table)
            by_measure[name] = MeasureDistances(near[name], exact, chosen, rows=table if whole else None)
        return cls(tuple(ids), by_measure, choices=choices, **others)

    @classmethod
    def joined(cls, parts: Sequence[Distances], *, kind: str = "") -> Distances:
        """The queries of all parts, one after the other, under the measures of the first; at least one part."""
        kept = [part for part in parts if part.ids] or [parts[0]]
        return cls(
            tuple(id for part in kept for id in part.ids),
            {name: MeasureDistances.joined([part.by_measure[name] for part in kept]) for name in parts[0].by_measure},
            tuple(voxels for part in kept for voxels in part.voxels),
            tuple(count for part in kept for count in part.left_out),
            np.concatenate([part.choices for part in kept]),
            tuple(problem for part in parts for problem in part.problems),
            tuple(warning for part in parts for warning in part.warnings),
            kind,
            tuple(affine for part in kept for affine in part.affines),
            sum(part.seconds_aligning for part in parts),
        )

    def taken(self, queries: Sequence[int]) -> Distances:
        """Some of the queries, in this order; problems and warnings stay whole."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in queries),
            by_measure={name: of_measure.taken(queries) for name, of_measure in self.by_measure.items()},
            voxels=tuple(self.voxels[i] for i in queries) if self.voxels else (),
            left_out=tuple(self.left_out[i] for i in queries) if self.left_out else (),
            choices=self.choices[np.array(queries, np.int64)],
            affines=tuple(self.affines[i] for i in queries) if self.affines else (),
        )

    def under(self, names: Iterable[str]) -> Distances:
        """The same queries under these measures alone."""
        return replace(self, by_measure={name: self.by_measure[name] for name in names})
