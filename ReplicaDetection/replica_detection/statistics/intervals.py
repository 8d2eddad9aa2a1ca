"""Confidence intervals: exact ones of shares, and bootstrap intervals. Needs numpy; exact ones need SciPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
REPEATS = 1000


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where undefined."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __format__(self, spec: str) -> str:
        """`f"{estimate:.2f}"` is "0.79 (0.62 to 0.91)"."""
        if math.isnan(self.value):
            return "undefined"
        if math.isnan(self.low):
            return format(self.value, spec)
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def clopper_pearson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson, Biometrika 1934); its coverage is at least `level`.

    `successes` may be a mean over repeats and need not be a whole number: the formula by quantiles of the beta
    distribution still applies. Without a trial the interval is (0, 1).
    """
    from scipy.stats import beta

    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def share(successes: float, trials: float, level: float = LEVEL) -> Estimate:
    """successes / trials with its Clopper-Pearson interval; NaN without a trial."""
    if trials == 0:
        return Estimate()
    return Estimate(successes / trials, *clopper_pearson(successes, trials, level))


def mean_of(first: Estimate, second: Estimate) -> Estimate:
    """The mean of two independent estimates; its interval from theirs (MOVER, Zou and Donner, Stat. Med. 2008).

    Unlike a bootstrap, it stays meaningful for shares of 1: 5 of 5 resampled is always 5 of 5.
    """
    value = (first.value + second.value) / 2
    low = value - math.hypot(first.value - first.low, second.value - second.low) / 2
    high = value + math.hypot(first.high - first.value, second.high - second.value) / 2
    return Estimate(value, low, high)


def resamples(size: int, repeats: int = REPEATS, *, seed: int = 0, strata: np.ndarray | None = None) -> np.ndarray:
    """Positions drawn with replacement, (repeats, size); within each stratum if `strata` (size,) is given."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((repeats, size), np.int64)
    groups = [np.arange(size)] if strata is None else [np.flatnonzero(strata == s) for s in np.unique(strata)]
    for members in groups:
        if len(members):
            drawn[:, members] = members[rng.integers(0, len(members), (repeats, len(members)))]
    return drawn


def percentile_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The quantiles that enclose the middle `level` of bootstrap values; NaN if fewer than half of them are finite."""
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    if len(known) < max(2, len(values) / 2):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
