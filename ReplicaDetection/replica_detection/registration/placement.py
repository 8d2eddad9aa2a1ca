"""The transform that aligns a candidate training case to a query. Imports with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Placement:
    """A training case aligned to a query.

    A position u of the query corresponds to `matrix @ u + shift` in the training case, both in mm from the centre of
    the grid along its axes. `training` is the position of the case in the index.

    Args:
        matrix, shift: (3, 3) and (3,).
        mirroring: (3,) of +1 and -1, the mirrored axes; `matrix` is this times a rotation and a scale.
        correlation: of the locally normalized images over the overlap.
        overlap: the share of the query's structure that the training case covers.
        merit: see `optimization.merit`.
        correlation_before: of the pair without alignment.
    """

    training: int
    matrix: np.ndarray
    shift: np.ndarray
    mirroring: np.ndarray
    correlation: float
    overlap: float
    merit: float
    correlation_before: float
