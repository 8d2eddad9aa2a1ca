"""Where a candidate training case lies on a query. Imports with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
