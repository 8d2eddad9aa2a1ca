"""Aligned pairs that differ by no more than resampling makes of an image."""

from __future__ import annotations

import numpy as np

from replica_detection.registration.local import resample_level
from replica_detection.registration.placement import Placement
from replica_detection.registration.pyramid import Level, structure

# Residual of the pair, in residuals of the training case that was moved there and back, up to which it is a copy.
# Turned and zoomed copies of hippocampi reach 1.2 to 2.6, scans of other people 28 and more.
LARGEST_RATIO = 3.0
# Residual above which a pair is not looked at.
LARGEST_RESIDUAL = 0.1


def differs_by_resampling(query: np.ndarray, training: np.ndarray, placement: Placement, level: Level) -> bool:
    """True if the aligned pair agrees as closely as the training case agrees with itself after two resamplings.

    The residual is 1 minus the correlation over the structure that both cover. That of the pair is compared with that
    of the training case which was moved onto the query and back: its own loss by interpolation. In a placement on the
    voxels nothing is lost, and only an equal image is a copy. Another person's scan is far from it, however smooth.

    Args:
        query, training: (X, Y, Z), the level.
        placement: moves the training case onto the query.
    """
    moved = resample_level(training, placement.matrix, placement.shift, level)
    covered = ~np.isnan(moved)
    residual = _residual(query, moved, structure(query) & covered)
    if not residual <= LARGEST_RESIDUAL:
        return False
    inverse = np.linalg.inv(placement.matrix)
    back = -inverse @ placement.shift
    returned = resample_level(np.where(covered, moved, 0), inverse, back, level)
    lost = resample_level((~covered).astype(np.float32), inverse, back, level)
    whole = structure(training) & ~np.isnan(returned) & (np.nan_to_num(lost, nan=1.0) < 1e-3)
    return bool(residual <= LARGEST_RATIO * _residual(training, returned, whole))


def _residual(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> float:
    """1 minus the correlation of two images over some voxels; NaN where one of them is constant there."""
    a, b = first[inside].astype(np.float64), second[inside].astype(np.float64)
    if not len(a):
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float(1 - (a * b).sum() / spread) if spread > 0 else float("nan")
