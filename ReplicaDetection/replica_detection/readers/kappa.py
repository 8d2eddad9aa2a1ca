"""Agreement beyond chance: Cohen's kappa, weighted kappa and Krippendorff's alpha. Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.readers.ratings import SCALE

CATEGORIES = tuple(SCALE)


def percent_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of cases, (n,) each, with equal ratings; NaN without a case."""
    return float(np.equal(first, second).mean()) if len(first) else math.nan


def cohen_kappa(
    first: np.ndarray, second: np.ndarray, weights: str = "none", categories: Sequence[int] = CATEGORIES
) -> float:
    """Cohen's kappa (1960); with `linear` or `quadratic` weights the weighted one (1968).

    1 - (observed disagreement) / (disagreement expected from the two readers' own frequencies), where a pair of
    ratings i and j categories apart counts 1 (`none`, if apart at all), |i - j| or (i - j)^2.

    Args:
        first: (n,) ratings of one reader, each in `categories`.
        second: (n,) those of the other, of the same cases.
        categories: all possible ratings, in ascending order.

    Returns:
        NaN without a case, and where no disagreement is expected: both readers gave all cases the same rating.
    """
    distance = np.abs(np.subtract.outer(np.arange(len(categories)), np.arange(len(categories)))).astype(float)
    powers = {"none": 0.0, "linear": 1.0, "quadratic": 2.0}
    if weights not in powers:
        raise ConfigurationError(f"unknown weights '{weights}'; known: {', '.join(powers)}")
    cost = np.where(distance > 0, distance ** powers[weights], 0)
    a, b = np.searchsorted(categories, first), np.searchsorted(categories, second)
    table = np.bincount(a * len(categories) + b, minlength=cost.size).reshape(cost.shape)
    if not table.sum():
        return math.nan
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    chance = float((cost * expected).sum())
    return 1 - float((cost * table).sum()) / chance if chance > 0 else math.nan


def krippendorff_alpha(ratings: np.ndarray, level: str = "ordinal", categories: Sequence[int] = CATEGORIES) -> float:
    """Krippendorff's alpha: agreement of any number of readers, each of whom may have missed cases.

    Hayes and Krippendorff 2007, from the coincidences of all ratings of a case.

    Args:
        ratings: (readers, cases), NaN where a reader did not rate a case; a case with one rating does not count.
        level: `nominal` (equal or not) or `ordinal` (how many ratings lie between the two).

    Returns:
        NaN where no case has two ratings or all ratings are equal.
    """
    if level not in ("nominal", "ordinal"):
        raise ConfigurationError(f"unknown level '{level}'; known: nominal, ordinal")
    counts = np.stack([(ratings == c).sum(0) for c in categories], 1).astype(float)
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return math.nan
    coincidences = sum((np.outer(u, u) - np.diag(u)) / (u.sum() - 1) for u in counts)
    totals = coincidences.sum(1)
    number = np.arange(len(categories))
    if level == "nominal":
        difference = np.subtract.outer(number, number) != 0
    else:
        between = np.cumsum(totals) - totals / 2
        difference = np.subtract.outer(between, between) ** 2
    expected = float((difference * np.outer(totals, totals)).sum()) / (totals.sum() - 1)
    return 1 - float((difference * coincidences).sum()) / expected if expected > 0 else math.nan
