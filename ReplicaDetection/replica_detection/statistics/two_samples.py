"""A test that two samples come from one distribution. Imports with numpy alone."""

from __future__ import annotations

import math

import numpy as np

# Level of the test that the two origins of a null agree.
DISAGREEMENT = 0.05


def mann_whitney(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p value of the Mann-Whitney test (Ann. Math. Stat. 1947) that neither sample tends to larger values.

    By the normal approximation, with the correction for ties and for continuity, as SciPy's
    `mannwhitneyu(method="asymptotic")`. NaN values are left out; the p value is NaN where a sample is empty, and 1
    where all values are equal.

    Args:
        first: (n,).
        second: (m,).
    """
    first, second = (np.asarray(v, np.float64)[~np.isnan(v)] for v in (first, second))
    n, m = len(first), len(second)
    if not n or not m:
        return math.nan
    _, inverse, counts = np.unique(np.concatenate([first, second]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    size = n + m
    variance = n * m / 12 * (size + 1 - float((counts**3 - counts).sum()) / (size * (size - 1)))
    if variance <= 0:
        return 1.0
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    distance = max(abs(u - n * m / 2) - 0.5, 0.0)
    return math.erfc(distance / math.sqrt(2 * variance))
