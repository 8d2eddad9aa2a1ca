"""Agreement of readers with each other and with the measures.

Of several ratings of one pair of images by one reader, the latest counts. Needs numpy; rank correlations need SciPy.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from replica_detection.readers.consensus import (
    OVERALL,
    Consensus,
    consensus,
    labelled,
    replica_likeness,
    resolved,
)
from replica_detection.readers.kappa import cohen_kappa, krippendorff_alpha, percent_agreement
from replica_detection.readers.ratings import REPLICA_FROM, Rating, latest
from replica_detection.results import schema
from replica_detection.results.result import DetectionResult
from replica_detection.statistics.intervals import Estimate, percentile_interval, resamples
from replica_detection.statistics.thresholds import METHODS, ReaderThreshold, reader_threshold


@dataclass(frozen=True)
class PairAgreement:
    """Agreement of two readers over the pairs of images that both rated; kappas with bootstrap intervals.

    The `replica_` numbers are those of the decision: a rating of REPLICA_FROM or more against a lower one.
    """

    readers: tuple[str, str]
    cases: int
    percent: float
    kappa: Estimate
    linear_kappa: Estimate
    quadratic_kappa: Estimate
    replica_percent: float
    replica_kappa: Estimate


def pair_agreements(ratings: Sequence[Rating], *, seed: int = 0) -> list[PairAgreement]:
    """Agreement of every two readers with at least one image pair in common, in the order of their names."""
    by_reader = _by_reader(ratings)
    agreements = []
    for one, other in itertools.combinations(sorted(by_reader), 2):
        both = [key for key in by_reader[one] if key in by_reader[other]]
        if both:
            a = np.array([by_reader[one][key] for key in both])
            b = np.array([by_reader[other][key] for key in both])
            agreements.append(_agreement((one, other), a, b, seed))
    return agreements


def overall_alpha(ratings: Sequence[Rating]) -> float:
    """Krippendorff's ordinal alpha of all readers together; NaN where it is undefined."""
    by_reader = _by_reader(ratings)
    keys = list(dict.fromkeys(key for rated in by_reader.values() for key in rated))
    table = np.array([[rated.get(key, math.nan) for key in keys] for rated in by_reader.values()], float)
    return krippendorff_alpha(table) if table.size else math.nan


def _by_reader(ratings: Sequence[Rating]) -> dict[str, dict[tuple[str, str], int]]:
    by_reader: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for rating in latest(ratings):
        by_reader[rating.reader][rating.synthetic_id, rating.training_id] = rating.rating
    return by_reader


def _agreement(readers: tuple[str, str], a: np.ndarray, b: np.ndarray, seed: int) -> PairAgreement:
    draws = resamples(len(a), seed=seed)
    cut_a, cut_b = (a >= REPLICA_FROM).astype(int), (b >= REPLICA_FROM).astype(int)

    def estimate(kappa: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray) -> Estimate:
        return Estimate(kappa(x, y), *percentile_interval(np.array([kappa(x[d], y[d]) for d in draws])))

    return PairAgreement(
        readers,
        len(a),
        percent_agreement(a, b),
        estimate(cohen_kappa, a, b),
        estimate(lambda x, y: cohen_kappa(x, y, "linear"), a, b),
        estimate(lambda x, y: cohen_kappa(x, y, "quadratic"), a, b),
        percent_agreement(cut_a, cut_b),
        estimate(lambda x, y: cohen_kappa(x, y, categories=(0, 1)), cut_a, cut_b),
    )


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of a measure with the readers' mean rating over the rated images; 1 = the same order.

    `other_candidate` counts images whose rated training case is not the one that the measure names: readers and measure
    then compare different pairs.
    """

    measure: str
    cases: int
    spearman: Estimate
    kendall: float
    other_candidate: int


def rank_correlations(labels: dict[str, Consensus], result: DetectionResult, *, seed: int = 0) -> list[RankCorrelation]:
    """Spearman's rho (with a bootstrap interval) and Kendall's tau-b for `overall` and each measure.

    Both are NaN with fewer than three images, or where all have one mean rating or one ratio.
    """
    from scipy import stats

    nearest = {(OVERALL, c.synthetic_id): c.nearest_training_id for c in result.summary}
    nearest |= {(m.measure, m.synthetic_id): m.nearest_training_id for m in result.matches}
    correlations = []
    for name, values in replica_likeness(result).items():
        cases = [c for c in labels if not math.isnan(values.get(c, math.nan))]
        x = -np.array([values[c] for c in cases])
        y = np.array([labels[c].mean for c in cases])
        other = sum(nearest[name, c] not in labels[c].training_ids for c in cases)
        rho, tau = Estimate(), math.nan
        if len(cases) >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
            draws = resamples(len(cases), seed=seed)
            rho = Estimate(_spearman(x, y), *percentile_interval(np.array([_spearman(x[d], y[d]) for d in draws])))
            tau = float(stats.kendalltau(x, y).statistic)
        correlations.append(RankCorrelation(name, len(cases), rho, tau, other))
    return correlations


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of the mean ranks; NaN where either does not vary."""
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    length = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length > 0 else math.nan


def agreement_report(
    ratings: Sequence[Rating], result: DetectionResult | None = None, *, rule: str = "majority", seed: int = 0
) -> schema.AgreementReport:
    """Summary of the ratings as a message: agreement of each two readers, and thresholds by their consensus.

    `percent_agreement`, `kappa` and `weighted_kappa` (quadratic) are those of the four-point scale, the `replica_` ones
    those of the decision. Balanced accuracy, sensitivity and specificity are cross-validated. Without a result there
    are no thresholds; without a rating everything is empty.

    Raises:
        ConfigurationError: an unknown consensus rule.
    """
    notes = []
    known = list(ratings)
    if result is not None:
        known, unknown = resolved(ratings, result)
        if unknown:
            notes.append(f"{len(unknown)} rated images are not in the result (first {unknown[0]})")
    labels = consensus(known, rule)
    items = []
    if result is not None and labels:
        for name, values in replica_likeness(result).items():
            for method in METHODS:
                threshold = reader_threshold(*labelled(values, labels), method, seed=seed)
                items.append(_threshold_item(name, threshold))
                notes += [threshold.note] if threshold.note else []
    replicas = sum(c.replica for c in labels.values())
    notes.insert(0, f"consensus: {rule}; balanced accuracy, sensitivity and specificity are cross-validated")
    return schema.AgreementReport(
        readers=tuple(sorted({r.reader for r in known})),
        cases=len(labels),
        replicas=replicas,
        pairs=tuple(_reader_agreement(pair) for pair in pair_agreements(known, seed=seed)),
        thresholds=tuple(items),
        note="; ".join(dict.fromkeys(notes)),
    )


def _reader_agreement(pair: PairAgreement) -> schema.ReaderAgreement:
    return schema.ReaderAgreement(
        pair.readers,
        pair.cases,
        schema.number(pair.percent),
        schema.number(pair.kappa.value),
        schema.number(pair.quadratic_kappa.value),
        schema.number(pair.replica_percent),
        schema.number(pair.replica_kappa.value),
    )


def _threshold_item(measure: str, threshold: ReaderThreshold) -> schema.ThresholdItem:
    confusion = threshold.cross_validated
    accuracy = confusion.balanced_accuracy if confusion else Estimate()
    return schema.ThresholdItem(
        measure,
        threshold.method,
        schema.number(threshold.threshold),
        schema.number(accuracy.value),
        schema.number(confusion.sensitivity.value) if confusion else None,
        schema.number(confusion.specificity.value) if confusion else None,
        schema.number(accuracy.low),
        schema.number(accuracy.high),
    )
