"""Thresholds from readers' labels, and their uncertainty. Needs numpy; exact intervals need SciPy.

A value is a distance ratio or another number for which smaller means more replica-like. A case is flagged if its value
is at or below the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.statistics.intervals import (
    Estimate,
    mean_of,
    percentile_interval,
    resamples,
    share,
)

METHODS = ("balanced-accuracy", "youden")
GRID_STEP = 0.01  # RELICT (arXiv 2502.17360)
FOLDS, CV_REPEATS = 5, 20
_SAME = 1e-12


@dataclass(frozen=True)
class Confusion:
    """Counts of flags against the readers' labels, which are the reference.

    Sensitivity is the share flagged among the readers' replicas. The share of replicas among the flagged cases is the
    positive predictive value; the two differ if the numbers of replicas and of flags differ.
    """

    true_positive: float
    false_positive: float
    false_negative: float
    true_negative: float

    @classmethod
    def of(cls, replica: np.ndarray, flagged: np.ndarray) -> Confusion:
        """Counts from (n,) readers' labels and (n,) flags; a flag may be a share of repeats."""
        replica, flagged = np.asarray(replica, bool), np.asarray(flagged, np.float64)
        hits, alarms = float(flagged[replica].sum()), float(flagged[~replica].sum())
        return cls(hits, alarms, float(replica.sum()) - hits, float((~replica).sum()) - alarms)

    @property
    def sensitivity(self) -> Estimate:
        return share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Estimate:
        return share(self.true_negative, self.true_negative + self.false_positive)

    @property
    def positive_predictive_value(self) -> Estimate:
        return share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def negative_predictive_value(self) -> Estimate:
        return share(self.true_negative, self.true_negative + self.false_negative)

    @property
    def balanced_accuracy(self) -> Estimate:
        """Mean of sensitivity and specificity, with an interval from their exact ones."""
        return mean_of(self.sensitivity, self.specificity)


@dataclass(frozen=True)
class ReaderThreshold:
    """A threshold with three estimates of its accuracy.

    `apparent`: on the same cases that the threshold was chosen on, as the papers report. `interval`: bootstrap, with
    the threshold chosen anew in each sample. `out_of_bag`: balanced accuracy of the bootstrap thresholds on the cases
    outside their samples. `cross_validated`: each case flagged by a threshold chosen on other cases (mean over repeated
    stratified folds). NaN, and None for `cross_validated`, if the labels do not allow an estimate; `note` says why.
    """

    method: str
    threshold: float
    interval: tuple[float, float]
    apparent: Confusion
    out_of_bag: Estimate
    cross_validated: Confusion | None
    note: str = ""


Chooser = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def balanced_accuracy_threshold(values: np.ndarray, replica: np.ndarray, step: float = GRID_STEP) -> float:
    """The threshold with the highest balanced accuracy among the multiples of `step` that span the values (RELICT).

    Of several equally good ones, the middle of their longest run. NaN if either label is missing.
    """
    return float(_best_on_grid(*_prepared(values, replica), step=step)[0])


def youden_threshold(values: np.ndarray, replica: np.ndarray) -> float:
    """The threshold with the highest sensitivity + specificity - 1 among all cuts between the values (Truong et al.).

    A cut lies halfway between two neighbouring values; of several equally good cuts in a row, halfway between the
    outermost values. Youden's index is 2 BA - 1 (BA: balanced accuracy), so only the candidates differ from RELICT's.
    NaN if either label is missing.
    """
    return float(_best_cut(*_prepared(values, replica))[0])


def reader_threshold(
    values: np.ndarray, replica: np.ndarray, method: str, *, step: float = GRID_STEP, seed: int = 0
) -> ReaderThreshold:
    """A threshold by `balanced-accuracy` or `youden` with its intervals.

    Args:
        values: (n,) distance ratios; cases with NaN are left out.
        replica: (n,) bool, the readers' consensus.
        step: of the grid for `balanced-accuracy`.
        seed: of bootstrap and folds; the same seed gives the same numbers.

    Raises:
        ConfigurationError: an unknown method.
    """
    if method not in METHODS:
        raise ConfigurationError(f"unknown threshold method '{method}'; known: {', '.join(METHODS)}")

    def choose(v: np.ndarray, r: np.ndarray, w: np.ndarray) -> np.ndarray:
        return _best_cut(v, r, w) if method == "youden" else _best_on_grid(v, r, w, step=step)

    values, replica = np.asarray(values, np.float64), np.asarray(replica, bool)
    known = ~np.isnan(values)
    values, replica = values[known], replica[known]
    smaller = int(min(replica.sum(), (~replica).sum()))
    threshold = float(choose(*_prepared(values, replica))[0])
    apparent = Confusion.of(replica, values <= threshold)
    if smaller < 2:
        missing = "replica" if replica.sum() < 2 else "image that is none"
        note = f"the readers' labels hold fewer than two cases of one kind ({missing}): no interval can be given"
        return ReaderThreshold(method, threshold, (math.nan, math.nan), apparent, Estimate(), None, note)
    interval, out_of_bag = _bootstrap(values, replica, choose, seed)
    cross_validated = _cross_validate(values, replica, choose, seed)
    return ReaderThreshold(method, threshold, interval, apparent, out_of_bag, cross_validated)


def _bootstrap(
    values: np.ndarray, replica: np.ndarray, choose: Chooser, seed: int
) -> tuple[tuple[float, float], Estimate]:
    """Interval of the threshold, and the balanced accuracy of the resampled thresholds on the cases left out.

    The interval of the latter is that of its repeats. It shows the influence of the sample, and is too narrow if the
    values separate the labels perfectly.
    """
    draws = resamples(len(values), seed=seed, strata=replica)
    weights = np.stack([np.bincount(d, minlength=len(values)) for d in draws]).astype(np.float64)
    chosen = choose(values, replica, weights)
    outside = weights == 0
    flagged = values <= chosen[:, None]
    hits, misses = (outside & replica & flagged).sum(1), (outside & replica & ~flagged).sum(1)
    alarms, rest = (outside & ~replica & flagged).sum(1), (outside & ~replica & ~flagged).sum(1)
    tested = (hits + misses > 0) & (alarms + rest > 0)
    accuracy = (hits[tested] / (hits + misses)[tested] + rest[tested] / (alarms + rest)[tested]) / 2
    mean = float(accuracy.mean()) if len(accuracy) else math.nan
    return percentile_interval(chosen), Estimate(mean, *percentile_interval(accuracy))


def _cross_validate(values: np.ndarray, replica: np.ndarray, choose: Chooser, seed: int) -> Confusion:
    """Each case flagged by thresholds that were chosen without it, over repeated stratified folds."""
    rng = np.random.default_rng(seed)
    folds = int(min(FOLDS, replica.sum(), (~replica).sum()))
    flagged = np.zeros(len(values))
    for _ in range(CV_REPEATS):
        fold = np.empty(len(values), int)
        for label in (True, False):
            members = rng.permutation(np.flatnonzero(replica == label))
            fold[members] = np.arange(len(members)) % folds
        inside = (fold != np.arange(folds)[:, None]).astype(np.float64)
        flagged += values <= choose(values, replica, inside)[fold]
    return Confusion.of(replica, flagged / CV_REPEATS)


def _prepared(values: np.ndarray, replica: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values without NaN, their labels, and one row of equal weights."""
    values, replica = np.asarray(values, np.float64), np.asarray(replica, bool)
    known = ~np.isnan(values)
    return values[known], replica[known], np.ones((1, int(known.sum())))


def _best_on_grid(values: np.ndarray, replica: np.ndarray, weights: np.ndarray, *, step: float) -> np.ndarray:
    if not len(values):
        return np.full(len(weights), np.nan)
    # Whole multiples, one below all values ("flag nothing") and one above ("flag all").
    first, last = math.floor(values.min() / step) - 1, math.ceil(values.max() / step)
    grid = np.round(np.arange(first, last + 1) * step, 12)
    runs = _best_runs(values, replica, weights, grid, grid, grid)
    return np.array([math.nan if run is None else grid[sum(run) // 2] for run in runs])


def _best_cut(values: np.ndarray, replica: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.full(len(weights), np.nan)
    low = np.unique(values)
    high = np.append(low[1:], low[-1])
    # From the values on both sides of a run, not from the cuts inside it, which lie between cases of weight 0.
    runs = _best_runs(values, replica, weights, low, low, high)
    return np.array([math.nan if run is None else (low[run[0]] + high[run[1]]) / 2 for run in runs])


def _best_runs(
    values: np.ndarray,
    replica: np.ndarray,
    weights: np.ndarray,
    candidates: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> list[tuple[int, int] | None]:
    """The first and last of the longest run of candidates with the highest weighted balanced accuracy.

    One for each row of `weights` (B, n), None where a label has no weight. A run is as long as `high` of its last minus
    `low` of its first candidate.
    """
    order = np.argsort(values, kind="stable")
    # Rounding of a grid point must not separate it from an equal value.
    below = np.searchsorted(values[order], candidates + _SAME, side="right")

    def share_below(label: bool) -> np.ndarray:
        counted = np.where(replica[order] == label, weights[:, order], 0)
        total = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(counted, 1)], 1)
        with np.errstate(invalid="ignore"):
            return total[:, below] / total[:, -1:]

    accuracy = (share_below(True) + 1 - share_below(False)) / 2
    return [None if np.isnan(row).any() else _longest_run(row >= row.max() - _SAME, low, high) for row in accuracy]


def _longest_run(best: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[int, int]:
    edges = np.diff(np.concatenate([[False], best, [False]]).astype(int))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    longest = int(np.argmax(high[ends] - low[starts]))
    return int(starts[longest]), int(ends[longest])


def auroc(values: np.ndarray, replica: np.ndarray) -> float:
    """Probability that a replica's value lies below that of another image, ties counting one half; NaN without both."""
    from scipy.stats import rankdata

    values, replica, _ = _prepared(values, replica)
    positive, negative = int(replica.sum()), int((~replica).sum())
    if not positive or not negative:
        return math.nan
    ranks = rankdata(values)
    return 1 - (float(ranks[replica].sum()) - positive * (positive + 1) / 2) / (positive * negative)
