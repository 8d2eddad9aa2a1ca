"""Memorization metrics of a whole synthetic set, from distances to its training set (Dar, Alaa, Deo et al.).

Every function takes distances that were computed elsewhere; +inf marks pairs that are left out. Needs numpy alone.
`distribution_metrics.py` compares sets of vectors or images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replica_detection.statistics.intervals import REPEATS, Estimate, percentile_interval, resamples

SHARE = 0.05  # of unseen cases that lie within the threshold (Dar et al.: 95th percentile of the correlation)
DRAWS = 200
SIZE_MATCHED, AS_PUBLISHED = "size-matched", "as-published"


@dataclass(frozen=True)
class SetMetric:
    """One metric of a set, computed on `cases` cases; `note` names its limits.

    `expected` is the value that new draws from the training population have, NaN where it is unknown.
    """

    name: str
    estimate: Estimate
    variant: str = ""
    expected: float = math.nan
    cases: int = 0
    note: str = ""


# ---------------------------------------------------------------------------------------------- Dar et al. (2402.01054)


def copies(synthetic: np.ndarray, holdout: np.ndarray, *, seed: int = 0) -> SetMetric:
    """N_copies, size-matched: share of synthetic cases that lie nearer to training than unseen cases do.

    The threshold is one of the hold-out's sorted distances to the nearest training case. A new draw falls below it with
    a probability of at most SHARE; `expected` is that probability. Both sets search the same training cases, so no
    correction for pool size is needed. The interval is a bootstrap over both sets.

    Args:
        synthetic: (Q,) distance of each synthetic case to its nearest training case.
        holdout: (H,) the same for real cases that the generator never saw; at least 19, else the figure is undefined.
    """
    synthetic, holdout = _finite(synthetic), _finite(holdout)
    rank = math.floor(SHARE * (len(holdout) + 1) + 1e-9)
    if not rank or not len(synthetic):
        note = f"{len(holdout)} hold-out cases are too few: 19 are needed for a threshold at {SHARE:.0%}"
        return SetMetric("N_copies", Estimate(), SIZE_MATCHED, cases=len(synthetic), note=note)
    threshold = np.sort(holdout)[rank - 1]
    drawn_holdout = np.sort(holdout[resamples(len(holdout), seed=seed)], 1)[:, rank - 1]
    drawn = synthetic[resamples(len(synthetic), seed=seed + 1)]
    interval = percentile_interval((drawn < drawn_holdout[:, None]).mean(1))
    return SetMetric(
        "N_copies",
        Estimate(float((synthetic < threshold).mean()), *interval),
        SIZE_MATCHED,
        rank / (len(holdout) + 1),
        len(synthetic),
    )


def memorized(synthetic: np.ndarray, holdout: np.ndarray, *, seed: int = 0) -> SetMetric:
    """N_mem, size-matched: share of training cases that have a synthetic case nearer than unseen cases are.

    Equal numbers of synthetic and hold-out cases are drawn DRAWS times; the value is the mean share. One synthetic case
    in the middle of the population is near many training cases. The share therefore varies much more from set to set
    than a share of independent cases does; `_intervals` accounts for that.

    Args:
        synthetic: (Q, N) distances of synthetic to training cases.
        holdout: (H, N) distances of unseen real cases to the same training cases.
    """
    synthetic, holdout = _with_both(synthetic, holdout)
    training = synthetic.shape[1]
    size = min(len(synthetic), len(holdout))
    if not size or not training:
        return SetMetric("N_mem", Estimate(), SIZE_MATCHED, note="no hold-out case can be compared")
    rng = np.random.default_rng(seed)
    equal = len(synthetic) == len(holdout)
    value = float(
        np.mean(
            [
                _share_below(_some(synthetic, size, rng).min(0), _some(holdout, size, rng).min(0))
                for _ in range(1 if equal else DRAWS)
            ]
        )
    )

    def of_halves(made: np.ndarray, real: np.ndarray) -> tuple[float, ...]:
        half = min(len(made), len(real))
        return (_share_below(made[:half].min(0), real[:half].min(0)),)

    (interval,) = _intervals((value,), of_halves, synthetic, holdout, seed)
    return SetMetric("N_mem", Estimate(value, *interval), SIZE_MATCHED, SHARE, training)


def as_published(synthetic: np.ndarray, holdout: np.ndarray, *, seed: int = 0) -> tuple[SetMetric, SetMetric]:
    """N_mem and N_copies as the authors' code computes them, with one threshold for both.

    The threshold is the 5th percentile, over training cases, of the distance to the nearest unseen case. It comes from
    the nearest of H cases and is applied to the nearest of Q (N_mem) or N (N_copies). Larger pools alone therefore give
    shares above SHARE: `expected` is 1 - (1 - SHARE)^(pool / H).

    Args:
        synthetic: (Q, N) distances of synthetic to training cases.
        holdout: (H, N) distances of unseen real cases to the same training cases.
    """
    synthetic, holdout = _with_both(synthetic, holdout)
    if not len(holdout) or not synthetic.size:
        nothing = "no hold-out case can be compared"
        return (
            SetMetric("N_mem", Estimate(), AS_PUBLISHED, note=nothing),
            SetMetric("N_copies", Estimate(), AS_PUBLISHED, note=nothing),
        )

    def shares(made: np.ndarray, real: np.ndarray) -> tuple[float, ...]:
        null = real.min(0)
        return _share_below(made.min(0), null), _share_below(made.min(1), null)

    values = shares(synthetic, holdout)
    intervals = _intervals(values, shares, synthetic, holdout, seed)
    pools, counts = (len(synthetic), synthetic.shape[1]), (synthetic.shape[1], len(synthetic))
    n_mem, n_copies = (
        SetMetric(name, Estimate(value, *interval), AS_PUBLISHED, 1 - (1 - SHARE) ** (pool / len(holdout)), count)
        for name, value, interval, pool, count in zip(
            ("N_mem", "N_copies"), values, intervals, pools, counts, strict=True
        )
    )
    return n_mem, n_copies


Shares = Callable[[np.ndarray, np.ndarray], tuple[float, ...]]


def _intervals(
    values: tuple[float, ...], shares: Shares, synthetic: np.ndarray, holdout: np.ndarray, seed: int
) -> list[tuple[float, float]]:
    """Each value plus and minus 1.96 standard deviations, kept in [0, 1].

    The standard deviation is that of random halves of both sets, with training cases drawn with replacement.
    Half-samples vary as much as whole sets do (Hartigan 1969). A bootstrap of both sets would hold cases twice, and so
    fewer different neighbours.
    """
    rng = np.random.default_rng([seed, 1])
    drawn = []
    for _ in range(DRAWS):
        again = rng.integers(0, synthetic.shape[1], synthetic.shape[1])
        made = _some(synthetic, max(len(synthetic) // 2, 1), rng)[:, again]
        drawn.append(shares(made, _some(holdout, max(len(holdout) // 2, 1), rng)[:, again]))
    spread = 1.96 * np.std(drawn, axis=0, ddof=1)
    return [(max(v - s, 0.0), min(v + s, 1.0)) for v, s in zip(values, spread.tolist(), strict=True)]


def _some(rows: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return rows[rng.choice(len(rows), size, replace=False)]


def _share_below(values: np.ndarray, null: np.ndarray) -> float:
    return float((values < np.quantile(null, SHARE)).mean())


def _with_both(synthetic: np.ndarray, holdout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without cases that have no finite distance, and without training cases that either set cannot reach."""
    synthetic = synthetic[np.isfinite(synthetic).any(1)] if synthetic.size else synthetic
    holdout = holdout[np.isfinite(holdout).any(1)] if holdout.size else holdout
    if not len(synthetic) or not len(holdout):
        return synthetic[:0], holdout[:0]
    reached = np.isfinite(synthetic).any(0) & np.isfinite(holdout).any(0)
    return synthetic[:, reached], holdout[:, reached]


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[np.isfinite(values)]


# ------------------------------------------------------------------------------------------ AuthPct (Alaa et al. 2022)


def authentic(
    nearest: np.ndarray, distance: np.ndarray, to_other: np.ndarray, name: str = "AuthPct", *, seed: int = 0
) -> SetMetric:
    """AuthPct: percentage of cases farther from their nearest training case than that one is from its own nearest.

    It needs no hold-out. No value means anything by itself: compare it with that of unseen cases. A training case with
    a duplicate makes every case beside it look authentic.

    Args:
        nearest: (Q,) position of each case's nearest training case, -1 where there is none.
        distance: (Q,) distance to it.
        to_other: (N,) distance of each training case to its nearest other one (of another patient); only positions in
            `nearest` are read.
    """
    known = (nearest >= 0) & np.isfinite(distance)
    nearest, distance = nearest[known], distance[known]
    if not len(nearest):
        return SetMetric(name, Estimate(), note="no case can be compared")
    flags = to_other[nearest] < distance
    drawn = flags[resamples(len(flags), seed=seed)].mean(1)
    low, high = percentile_interval(drawn)
    duplicates = int((to_other[np.unique(nearest)] == 0).sum())
    note = f"{duplicates} training cases have an exact duplicate, which makes cases beside them look authentic"
    return SetMetric(
        name,
        Estimate(100 * float(flags.mean()), 100 * low, 100 * high),
        "",
        math.nan,
        len(flags),
        note * bool(duplicates),
    )


# ------------------------------------------------------------------------------------------------- MI, ONI (Deo et al.)


def memorization_index(synthetic: np.ndarray, null: np.ndarray, *, seed: int = 0) -> tuple[SetMetric, SetMetric]:
    """Mean MI and ONI of a set (Deo et al., arXiv 2602.13066).

    The MI of a case is the z score of its nearest similarity under the null; its ONI is -tanh(MI).

    Args:
        synthetic: (Q,) similarity of each synthetic case to its nearest training case.
        null: (H,) the same for real cases that the generator never saw.
    """
    synthetic, null = _finite(synthetic), _finite(null)
    if len(null) < 2 or not len(synthetic):
        nothing = "fewer than two null cases"
        return SetMetric("MI", Estimate(), note=nothing), SetMetric("ONI", Estimate(), note=nothing)

    def means(made: np.ndarray, real: np.ndarray) -> np.ndarray:
        spread = np.maximum(real.std(-1, keepdims=True), 1e-12)
        mi = (made - real.mean(-1, keepdims=True)) / spread
        return np.stack([mi.mean(-1), -np.tanh(mi).mean(-1)])

    value = means(synthetic, null)
    drawn = means(
        synthetic[resamples(len(synthetic), REPEATS, seed=seed)], null[resamples(len(null), REPEATS, seed=seed + 1)]
    )
    mi, oni = (
        SetMetric(name, Estimate(float(value[i]), *percentile_interval(drawn[i])), "", 0.0, len(synthetic))
        for i, name in enumerate(("MI", "ONI"))
    )
    return mi, oni
