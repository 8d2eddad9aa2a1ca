"""The null distribution of the evidence, p and q values, and verdicts. Imports with numpy alone.

`evidence` is the negative logarithm of the distance ratio: larger is more replica-like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Fewest null cases for means and spreads of the evidence, for a fitted tail, and for outliers by their spread.
SMALLEST_NULL = 5
SMALLEST_TAIL_NULL = 10
SMALLEST_SPREAD_NULL = 30
# Smallest p value that a tail fitted on tens of cases can support.
SMALLEST_P = 1e-9
# Robust z score of the evidence above which a null case counts as a near-duplicate of a training case.
NEAR_DUPLICATE_Z = 6.0
# Distance ratio below which a null case is nearly the same image as a training case, however small the null.
NEARLY_IDENTICAL = 0.1


@dataclass(frozen=True)
class Tail:
    """Generalized Pareto tail of the null above `start`, which `share` of the null exceeds:

        P(null >= v) = share * (1 + shape * (v - start) / scale)^(-1 / shape)     for v > start

    and share * exp(-(v - start) / scale) for shape 0.
    """

    start: float
    share: float
    shape: float
    scale: float

    def exceedance(self, values: np.ndarray) -> np.ndarray:
        """P(null >= value), element by element; `share` for values up to `start`."""
        over = np.maximum(np.asarray(values, np.float64) - self.start, 0) / self.scale
        if self.shape < 1e-6:
            return self.share * np.exp(-over)
        return self.share * (1 + self.shape * over) ** (-1 / self.shape)


@dataclass(frozen=True)
class Null:
    """Sorted evidence of real cases that the generator never saw, and the tail fitted to it."""

    values: np.ndarray
    tail: Tail | None

    @classmethod
    def fit(cls, values: np.ndarray, *, with_tail: bool = True) -> Null:
        """The null of the finite values, of any number; a tail only from SMALLEST_TAIL_NULL on."""
        values = np.sort(np.asarray(values, np.float64)[np.isfinite(values)])
        return cls(values, _fit_tail(values) if with_tail and len(values) >= SMALLEST_TAIL_NULL else None)

    def p_values(self, values: np.ndarray) -> np.ndarray:
        """P(a new real case has at least this evidence); NaN for NaN, 1 without a null case.

        p = (1 + b) / (1 + n) with n null cases, b of them at or above the value (Phipson and Smyth, Stat. Appl. Genet.
        Mol. Biol. 2010); valid for any statistic whose null cases are exchangeable with new ones. Above the largest
        null case this formula gives 1 / (1 + n); there the fitted tail, if any, gives p, between SMALLEST_P and
        1 / (1 + n).
        """
        values = np.asarray(values, np.float64)
        above = len(self.values) - np.searchsorted(self.values, values, side="left")
        p = (1 + above) / (1 + len(self.values))
        if self.tail is not None:
            beyond = np.clip(self.tail.exceedance(values), SMALLEST_P, p)
            p = np.where(values > self.values[-1], beyond, p)
        return np.where(np.isnan(values), np.nan, p)

    def undecided(self, values: np.ndarray, alpha: float) -> np.ndarray:
        """True where the evidence exceeds every null case, p is above alpha, and the null is too small to say more."""
        values = np.asarray(values, np.float64)
        if not fewer_than_needed(len(self.values), alpha):
            return np.zeros(values.shape, bool)
        beyond = values > self.values[-1] if len(self.values) else ~np.isnan(values)
        return beyond & (self.p_values(values) > alpha)

    def threshold(self, alpha: float) -> float:
        """The smallest evidence with p <= alpha: just above the null case of that rank; +inf without a null."""
        size = len(self.values)
        allowed = math.floor(alpha * (size + 1) + 1e-9) - 1  # null cases that may lie at or above
        if not size:
            return math.inf
        if allowed >= 0:
            return float(np.nextafter(self.values[max(size - 1 - allowed, 0)], np.inf))
        if self.tail is None:
            return math.inf
        t = self.tail
        over = -math.log(alpha / t.share) if t.shape < 1e-6 else ((alpha / t.share) ** -t.shape - 1) / t.shape
        return max(t.start + t.scale * over, float(np.nextafter(self.values[-1], np.inf)))

    def score(self, values: np.ndarray) -> np.ndarray:
        """1 - p made continuous, in [0, 1]: never below 1 - p, and it rises strictly with the evidence.

        At a null case it is 1 - p of the evidence just above it, linear between two of them; above the largest it
        follows the tail, or without one falls off with the distance in spreads. NaN for NaN. Without a null case it
        ranks and no more.
        """
        values = np.asarray(values, np.float64)
        size = len(self.values)
        if not size:
            return 1 - np.exp(-np.maximum(values, 0))
        knots = np.unique(self.values)
        heights = np.searchsorted(self.values, knots, side="right") / (size + 1)
        spread = float(np.median(np.abs(self.values - np.median(self.values))))
        spread = spread if spread > 1e-9 else 1.0
        if self.tail is not None:
            at_end = max(float(self.tail.exceedance(knots[-1:])[0]), 1e-300)
            exceedance = self.tail.exceedance(np.maximum(values, knots[-1]))
            beyond = exceedance * min(1, 1 / at_end / (size + 1))
            heights[-1] = 1 - min(at_end, 1 / (size + 1))
        else:
            beyond = 1 / (1 + np.maximum(values - knots[-1], 0) / spread) / (size + 1)
        score = np.interp(values, knots, heights)
        below = heights[0] * np.exp(-np.maximum(knots[0] - values, 0) / spread)
        score = np.select([values > knots[-1], values < knots[0]], [1 - beyond, below], score)
        return np.where(np.isnan(values), np.nan, np.clip(score, 0, 1))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p values, q_(i) = min over j >= i of p_(j) m / j (Benjamini and Hochberg, J. R. Stat. Soc. B 1995).

    NaN entries are not counted and stay NaN.
    """
    p = np.asarray(p, np.float64)
    q = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    if len(known):
        order = known[np.argsort(p[known], kind="stable")]
        raw = p[order] * len(order) / np.arange(1, len(order) + 1)
        q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1)
    return q


def verdicts(p: np.ndarray, q: np.ndarray, alpha: float, undecided: np.ndarray) -> np.ndarray:
    """`replica` (q <= alpha), `suspicious` (p <= alpha), `undecided`, `novel`, or `undefined` (no p value)."""
    p, q = np.asarray(p), np.asarray(q)
    cases = [np.isnan(p), q <= alpha, p <= alpha, undecided]
    return np.select(cases, ["undefined", "replica", "suspicious", "undecided"], "novel")


def null_needed(alpha: float) -> int:
    """The fewest null cases with which counting can give p <= alpha: 1 / (1 + n) <= alpha."""
    return math.ceil(1 / alpha - 1e-9) - 1


def fewer_than_needed(null_size: int, alpha: float) -> bool:
    """True if counting among so few null cases cannot give p <= alpha."""
    return null_size < null_needed(alpha)


def tail_needed(null_size: int, tests: int, alpha: float) -> bool:
    """True if one case among `tests` cannot reach q <= alpha with the smallest empirical p value, 1 / (n + 1)."""
    return tests / (null_size + 1) > alpha


def near_duplicates(null: np.ndarray, levels: tuple[str, ...], reference: np.ndarray | None = None) -> np.ndarray:
    """True for null cases that are copies or leaks of a training case instead of new scans, (n,) bool.

    These are the null cases that are nearly the same image as a training case (distance ratio below NEARLY_IDENTICAL
    under most voxel measures), and, from SMALLEST_SPREAD_NULL cases on, those whose evidence lies more than
    NEAR_DUPLICATE_Z robust standard deviations (1.4826 MAD) above the median under most measures of a level. A few of
    them in the null would hide all replicas. The limit is high because trimming the ordinary tail would call too many
    new images suspicious; among few cases the spread says nothing, and an unusual one is no leak.

    Args:
        null: (n, M) evidence of the null cases; NaN where a measure is undefined.
        levels: level of each of the M measures.
        reference: (r, M) evidence of the cases whose median and spread count; None: the null's own.
    """
    known = np.nan_to_num(null, nan=-np.inf)
    far = robust_z(known, null if reference is None else reference, SMALLEST_SPREAD_NULL) > NEAR_DUPLICATE_Z
    same = known > -math.log(NEARLY_IDENTICAL)
    return _most_of_any(far, levels, set(levels)) | _most_of_any(same, levels, {"voxel"})


def robust_z(values: np.ndarray, reference: np.ndarray, fewest: int) -> np.ndarray:
    """(n, M) robust standard deviations (1.4826 MAD) of the values above the median of the reference, (r, M).

    -inf under a measure that fewer than `fewest` cases of the reference have.
    """
    z = np.full(values.shape, -np.inf)
    for j, column in enumerate(reference.T):
        finite = column[np.isfinite(column)]
        if len(finite) >= fewest:
            middle = np.median(finite)
            spread = max(1.4826 * np.median(np.abs(finite - middle)), 1e-9)
            z[:, j] = (values[:, j] - middle) / spread
    return z


def _most_of_any(flags: np.ndarray, levels: tuple[str, ...], chosen: set[str]) -> np.ndarray:
    """(n,) bool: whether more than half of the measures of one of the chosen levels flag the case."""
    of_level = [flags[:, [i for i, name in enumerate(levels) if name == level]] for level in chosen & set(levels)]
    return np.any([part.mean(1) > 0.5 for part in of_level], axis=0) if of_level else np.zeros(len(flags), bool)


def _fit_tail(values: np.ndarray) -> Tail | None:
    """Generalized Pareto fit to the largest quarter of the sorted values (at least ten), or None if they are equal.

    By probability-weighted moments (Hosking and Wallis, Technometrics 1987, section 3), which suit samples of tens
    better than maximum likelihood. With x_(j) the j-th smallest of c exceedances of the start,

        a0 = mean of x_(j)                a1 = mean of x_(j) (c - j) / (c - 1)
        shape = 2 - a0 / (a0 - 2 a1)      scale = a0 (1 - shape)

    where `shape` is minus the k of the paper and is limited to [0, 0.5]: a bounded tail (negative shape) fitted on so
    few cases would give p = 0 beyond its end point.
    """
    size = len(values)
    count = min(max(SMALLEST_TAIL_NULL, size // 4), size - 1)
    start = float(values[size - count - 1])
    over = values[size - count :] - start
    mean = float(over.mean())
    if mean <= 0:
        return None
    weights = (count - np.arange(1, count + 1)) / (count - 1)
    moment = float((weights * over).mean())
    shape = 2 - mean / (mean - 2 * moment) if mean > 2 * moment else 0.0
    shape = min(max(shape, 0.0), 0.5)
    return Tail(start, count / (size + 1), shape, mean * (1 - shape))
