"""Nearest training cases, and the distance ratio. Imports with numpy alone.

The statistics work on `evidence`, the negative logarithm of the ratio: larger is more replica-like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replica_detection.errors import ConfigurationError

# Keeps the evidence of a ratio of 0 (an exact copy) finite; no pair of different scans comes near this ratio.
SMALLEST_RATIO = 1e-12


@dataclass(frozen=True)
class Nearest:
    """Nearest training case and distance ratio of Q cases: arrays of length Q, neighbours (Q, k).

    `index` is the position of the nearest training case, -1 if no distance is finite. `ratio` is NaN where it is
    undefined: no finite distance, or k identical training volumes (mean distance 0). `neighbors` holds -1 and
    `neighbor_distances` +inf where fewer than k training cases have a finite distance.
    """

    index: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    neighbors: np.ndarray
    neighbor_distances: np.ndarray


def nearest(distances: np.ndarray, k: int = 50, groups: np.ndarray | None = None) -> Nearest:
    """Nearest training case, k nearest, and the distance ratio of RELICT (arXiv 2502.17360, section 2):

        ratio = d_1 / mean(d_1, ..., d_k)      d_1 <= d_2 <= ... the distances, k = N if N is smaller

    With `groups`, d_j is the distance to the nearest case of the j-th nearest patient, so that follow-up scans do not
    hide a copy. One group for all (anonymised files often share an id) says nothing, and each case counts for itself.

    Args:
        distances: (Q, N), >= 0; +inf marks pairs that are left out (same patient, empty mask) and not averaged.
        k: neighbourhood, at least 1.
        groups: (N,) integers, equal for the cases of one patient; None: each case is a patient of its own.

    Raises:
        ConfigurationError: k is below 1.
    """
    if k < 1:
        raise ConfigurationError(f"k is {k}: it must be at least 1")
    distances = np.asarray(distances, np.float64)
    queries, size = distances.shape
    if size == 0:
        undefined = np.full(queries, np.nan)
        return Nearest(np.full(queries, -1), undefined, undefined, np.empty((queries, 0), int), np.empty((queries, 0)))
    # Stable sort: among equal distances the first case of the index is named, on every machine.
    order = np.argsort(distances, axis=1, kind="stable")[:, : min(k, size)]
    near = np.take_along_axis(distances, order, 1)
    told_apart = groups is not None and len(np.unique(groups)) > 1
    per_patient = _nearest_of_each_group(distances, np.asarray(groups)) if told_apart else distances
    rows = np.sort(per_patient, axis=1)[:, : min(k, per_patient.shape[1])]
    finite = np.isfinite(rows)
    count = finite.sum(1)
    mean = np.where(finite, rows, 0).sum(1) / np.maximum(count, 1)
    first = near[:, 0]
    known = np.isfinite(first) & (count > 0) & (mean > 0)
    ratio = np.where(known, np.where(known, first, 0) / np.where(known, mean, 1), np.nan)
    index = np.where(np.isfinite(first), order[:, 0], -1)
    return Nearest(index, first, ratio, np.where(np.isfinite(near), order, -1), near)


def evidence(ratio: np.ndarray) -> np.ndarray:
    """-log(ratio), at most -log(SMALLEST_RATIO); NaN stays NaN."""
    return -np.log(np.maximum(np.asarray(ratio, np.float64), SMALLEST_RATIO))


def _nearest_of_each_group(distances: np.ndarray, groups: np.ndarray) -> np.ndarray:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(groups[order]) != 0])
    return np.minimum.reduceat(distances[:, order], starts, axis=1)
