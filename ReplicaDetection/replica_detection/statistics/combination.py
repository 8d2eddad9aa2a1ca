"""Combination of the evidence of several measures into one statistic. Imports with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replica_detection.statistics.null import SMALLEST_NULL

# Standardized evidence above this value is compressed.
COMPRESSED_FROM = 3.0


@dataclass(frozen=True)
class Combination:
    """One statistic from M measures, in three steps.

    With e_m the evidence of a case under measure m, mu_m and sigma_m the mean and the standard deviation of the null
    cases, and the measures in groups G (those that see much the same thing):

        z_m = c((e_m - mu_m) / sigma_m)           c(z) = z up to 3, else 3 + log(z - 2)
        s_G = mean of z_m over the measures m in G
        T   = sqrt(sum over G of max(s_G, 0)^2)   (`combined`)

    The mean inside a group steadies measures that agree by construction. The compression keeps one measure that
    degenerates (the skeletons of two blobs coincide in a point) from outvoting the others. Nothing is assumed about the
    dependence between measures: T is compared with T of the null cases, each standardized by the other null cases
    (`null_by_group`), as a new case is. A measure that fewer than SMALLEST_NULL null cases have is left out; where that
    is so of every measure, mu is 0 and sigma 1: the evidence, a logarithm of a ratio, is of one scale under all.
    """

    groups: tuple[str, ...]
    location: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, null: np.ndarray, groups: tuple[str, ...]) -> Combination:
        """From the evidence (n, M) of the null cases, and the group of each of the M measures."""
        if _too_few(null):
            return cls(groups, np.zeros(len(groups)), np.ones(len(groups)))
        return cls(groups, *_location_scale(null, SMALLEST_NULL))

    def by_group(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """s_G of (Q, M) evidence, (Q,) for each group; NaN where no measure of the group is defined."""
        return _mean_by_group(self.standard(values), self.groups)

    def standard(self, values: np.ndarray) -> np.ndarray:
        """z_m of (Q, M) evidence."""
        return _compress((values - self.location) / self.scale)

    def null_by_group(self, null: np.ndarray) -> dict[str, np.ndarray]:
        """s_G of the (n, M) null cases, each standardized by the other null cases."""
        if _too_few(null):
            return self.by_group(null)
        out = np.empty_like(null)
        for i in range(len(null)):
            location, scale = _location_scale(np.delete(null, i, 0), SMALLEST_NULL - 1)
            out[i] = _compress((null[i] - location) / scale)
        return _mean_by_group(out, self.groups)


def combined(by_group: dict[str, np.ndarray]) -> np.ndarray:
    """T, (Q,): the Euclidean length of the groups' evidence, negative parts taken as 0.

    T grows when several groups agree and loses little when only one is conspicuous. If no group lies above the mean of
    the null, the largest s_G is used instead, so that cases stay in order there; NaN if no group has evidence.
    """
    stacked = np.stack(list(by_group.values()))
    best = np.max(np.where(np.isnan(stacked), -np.inf, stacked), axis=0)
    length = np.sqrt((np.nan_to_num(np.maximum(stacked, 0)) ** 2).sum(0))
    return np.where(np.isneginf(best), np.nan, np.where(best > 0, length, best))


def _compress(standard: np.ndarray) -> np.ndarray:
    """c(z), element by element; it is monotone, so that the order of cases stays."""
    over = np.maximum(standard - COMPRESSED_FROM, 0)
    return np.where(over > 0, COMPRESSED_FROM + np.log1p(over), standard)


def _too_few(null: np.ndarray) -> bool:
    """True if no measure has enough null cases for a mean and a standard deviation."""
    return bool((np.isfinite(null).sum(0) < SMALLEST_NULL).all())


def _location_scale(values: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of (n, M); the mean is NaN where fewer than `fewest` have a value."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, values, 0).sum(0) / count
    spread = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(0) / np.maximum(count - 1, 1))
    return np.where(known.sum(0) >= fewest, mean, np.nan), np.maximum(spread, 1e-6)


def _mean_by_group(values: np.ndarray, groups: tuple[str, ...]) -> dict[str, np.ndarray]:
    means = {}
    for group in dict.fromkeys(groups):
        part = values[:, [i for i, name in enumerate(groups) if name == group]]
        known = ~np.isnan(part)
        count = known.sum(1)
        means[group] = np.where(count > 0, np.where(known, part, 0).sum(1) / np.maximum(count, 1), np.nan)
    return means
