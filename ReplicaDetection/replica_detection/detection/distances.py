"""The distances of a comparison. Imports with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from replica_detection.io.cohort import Problem
    from replica_detection.registration.placement import Placement


@dataclass(frozen=True)
class Distances:
    """Distances of Q queries to the N cases of an index, under each measure.

    Args:
        ids: of the queries.
        by_measure: (Q, N) float64 by name; +inf for a pair that is left out.
        voxels: `PreparedImage.voxels` of each query, "" where it is not known; empty if it is known of none.
        left_out: for each query the number of training cases that it was not compared with; empty if there are none.
        problems: query files that could not be read.
        warnings: (case id, text).
        kind: for queries that serve as null cases, which ones: "validation" or "cross-fitted".
        placements: for each measure that aligns and each query, its candidates, nearest first.
        affines: (4, 4) from a voxel of the grid to RAS mm of each query's file.
        seconds_aligning: wall time of the measures that align.
        details: further numbers of each pair, (Q, N) by measure and name.
    """

    ids: tuple[str, ...]
    by_measure: dict[str, np.ndarray]
    voxels: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    placements: dict[str, list[list[Placement]]] = field(default_factory=dict)
    affines: tuple[np.ndarray, ...] = ()
    seconds_aligning: float = 0.0
    details: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
