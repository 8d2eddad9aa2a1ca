"""One statistic from several measures. Imports with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replica_detection.statistics.null import SMALLEST_NULL

# Standardized evidence up to which measures of a level are averaged as they are.
COMPRESSED_FROM = 3.0


@dataclass(frozen=True)
class Combination:
    """One statistic from several measures: standardized evidence, mean inside a level, then `combined` over levels.

    The measures of a level see much the same thing, so their mean steadies it, and evidence far above the null is
    compressed first: one measure that degenerates (the skeletons of two blobs coincide in a point) must not outvote the
    others. Nothing is assumed on the dependence between measures: the combined statistic is compared with the same
    statistic of the null cases.
    """

    levels: tuple[str, ...]
    location: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, null: np.ndarray, levels: tuple[str, ...]) -> Combination:
        """`null`: (n, M) evidence of the null cases; `levels`: level of each of the M measures."""
        location, scale = _location_scale(null)
        return cls(levels, location, scale)

    def levels_of(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Combined evidence of each level, (Q,) each; NaN where no measure of the level is defined."""
        return _mean_by_level(self.standard(values), self.levels)

    def standard(self, values: np.ndarray) -> np.ndarray:
        """(Q, M) evidence in standard deviations of the null, compressed above COMPRESSED_FROM."""
        return _compress((values - self.location) / self.scale)

    def null_levels(self, null: np.ndarray) -> dict[str, np.ndarray]:
        """The same for the null cases, each standardized by the others only, as a new case is."""
        out = np.empty_like(null)
        for i in range(len(null)):
            location, scale = _location_scale(np.delete(null, i, 0))
            out[i] = _compress((null[i] - location) / scale)
        return _mean_by_level(out, self.levels)


def combined(by_level: dict[str, np.ndarray]) -> np.ndarray:
    """One number from the levels, (Q,): the Euclidean length of their evidence above the null's mean.

    It grows when several levels agree and loses little when only one speaks. Where no level is above the mean, the
    largest counts, so that the order goes on below it; NaN where no level has evidence.
    """
    stacked = np.stack(list(by_level.values()))
    best = np.max(np.where(np.isnan(stacked), -np.inf, stacked), axis=0)
    length = np.sqrt((np.nan_to_num(np.maximum(stacked, 0)) ** 2).sum(0))
    return np.where(np.isneginf(best), np.nan, np.where(best > 0, length, best))


def _compress(standard: np.ndarray) -> np.ndarray:
    """Unchanged up to COMPRESSED_FROM, growing as the logarithm beyond; monotone, so no order is lost."""
    over = np.maximum(standard - COMPRESSED_FROM, 0)
    return np.where(over > 0, COMPRESSED_FROM + np.log1p(over), standard)


def _location_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; NaN where too few null cases have a value to say anything."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, values, 0).sum(0) / count
    spread = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(0) / np.maximum(count - 1, 1))
    # One fewer than the smallest null: a null case is standardized by the others.
    enough = known.sum(0) >= SMALLEST_NULL - 1
    return np.where(enough, mean, np.nan), np.maximum(spread, 1e-6)


def _mean_by_level(values: np.ndarray, levels: tuple[str, ...]) -> dict[str, np.ndarray]:
    out = {}
    for level in dict.fromkeys(levels):
        part = values[:, [i for i, name in enumerate(levels) if name == level]]
        known = ~np.isnan(part)
        count = known.sum(1)
        out[level] = np.where(count > 0, np.where(known, part, 0).sum(1) / np.maximum(count, 1), np.nan)
    return out
