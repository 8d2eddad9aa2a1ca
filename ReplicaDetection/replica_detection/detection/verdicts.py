"""From the distances of queries and null cases to p values, q values, verdicts and tables. Imports with numpy alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replica_detection.results.result import (
    CaseSummary,
    Match,
    MeasureInfo,
    Neighbors,
    NullInfo,
    Verdicts,
    levels_differ,
)
from replica_detection.statistics.combination import Combination, combined
from replica_detection.statistics.distance_ratio import Nearest, evidence, nearest
from replica_detection.statistics.null import (
    SMALLEST_NULL,
    Null,
    benjamini_hochberg,
    near_duplicates,
    tail_needed,
    verdicts,
)

if TYPE_CHECKING:
    from replica_detection.detection.distances import Distances
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.measures import Measure


def assign_verdicts(
    queries: Distances, null: Distances, measures: Sequence[Measure], index: TrainingIndex, *, k: int, alpha: float
) -> Verdicts:
    """p values, q values and verdicts of each query, per measure and overall.

    Null cases that are nearly equal to a training case (leaked or duplicated scans) are removed from the null. The
    overall statistic (`Combination`) is compared with the same statistic of the null cases, so that its error rate
    holds under any dependence between the measures.

    Args:
        queries: distances of the cases in question; the same object as `null` compares a cohort with itself.
        null: distances of real cases that the generator never saw.
        index: the training cohort; only its ids and patients are read.
        k: neighbourhood of the distance ratio.
        alpha: error rate of the verdicts.
    """
    near, values = _nearest_of_all(queries, measures, index, k)
    _, null_values = _nearest_of_all(null, measures, index, k)
    groups = tuple(m.group for m in measures)
    # By level: an aligned measure alone must not take a case out of the null.
    leaked = near_duplicates(null_values, tuple(m.level for m in measures))
    null_values = null_values[~leaked]
    with_tail = tail_needed(len(null_values), len(values), alpha)
    single = _by_measure(values, null_values, with_tail, alpha)
    overall = _overall(values, null_values, groups, with_tail, alpha)
    matches = [
        [_match(id, m, near[m.name], i, index.ids, single, j) for j, m in enumerate(measures)]
        for i, id in enumerate(queries.ids)
    ]
    null_ids = np.array(null.ids, dtype=object)
    return Verdicts(
        summary=tuple(_summary(i, row, groups, near, overall, index.ids, alpha) for i, row in enumerate(matches)),
        matches=tuple(match for row in matches for match in row),
        neighbors=_neighbors(queries.ids, index.ids, near),
        measures=tuple(
            MeasureInfo(m.name, m.level, m.sense, m.definition, _ratio_threshold(n, alpha))
            for m, n in zip(measures, single.nulls, strict=True)
        ),
        null=NullInfo(
            kind=null.kind,
            size=len(null_values),
            case_ids=tuple(null_ids[~leaked].tolist()),
            ratios={m.name: tuple(np.exp(-column).tolist()) for m, column in zip(measures, null_values.T, strict=True)},
            evidence=tuple(overall.null_evidence.tolist()),
            removed=tuple(null_ids[leaked].tolist()),
            tail_fitted=overall.null.tail is not None,
        ),
        evidence=tuple(overall.evidence.tolist()),
        evidence_threshold=overall.null.threshold(alpha),
        warnings=(
            *_null_warnings(null, leaked, overall.null, alpha),
            *_measure_warnings(queries, null, leaked, near),
        ),
    )


def _nearest_of_all(
    distances: Distances, measures: Sequence[Measure], index: TrainingIndex, k: int
) -> tuple[dict[str, Nearest], np.ndarray]:
    """Neighbours under each measure, and the evidence (cases, measures)."""
    near = {m.name: nearest(distances.by_measure[m.name], k, index.patients) for m in measures}
    return near, np.stack([evidence(near[m.name].ratio) for m in measures], 1)


@dataclass(frozen=True)
class _ByMeasure:
    """Each measure by itself: its null, and (cases, measures) p, q and verdict."""

    nulls: list[Null]
    p: np.ndarray
    q: np.ndarray
    verdict: np.ndarray


def _by_measure(values: np.ndarray, null_values: np.ndarray, with_tail: bool, alpha: float) -> _ByMeasure:
    nulls = [Null.fit(column, with_tail=with_tail) for column in null_values.T]
    p = np.stack([n.p_values(v) for n, v in zip(nulls, values.T, strict=True)], 1)
    q = np.stack([benjamini_hochberg(column) for column in p.T], 1)
    return _ByMeasure(nulls, p, q, verdicts(p, q, alpha))


@dataclass(frozen=True)
class _Combined:
    """All measures together: the null, and for each case evidence, verdict, score and p value of each group.

    `standard` (cases, measures) is the standardized evidence that was combined.
    """

    null: Null
    null_evidence: np.ndarray
    evidence: np.ndarray
    verdict: np.ndarray
    score: np.ndarray
    group_p: dict[str, np.ndarray]
    standard: np.ndarray


def _overall(
    values: np.ndarray, null_values: np.ndarray, groups: tuple[str, ...], with_tail: bool, alpha: float
) -> _Combined:
    combination = Combination.fit(null_values, groups)
    by_group, null_by_group = combination.by_group(values), combination.null_by_group(null_values)
    evidence, null_evidence = combined(by_group), combined(null_by_group)
    null = Null.fit(null_evidence, with_tail=with_tail)
    p = null.p_values(evidence)
    return _Combined(
        null,
        null_evidence,
        evidence,
        verdicts(p, benjamini_hochberg(p), alpha),
        null.score(evidence),
        {name: Null.fit(null_by_group[name], with_tail=with_tail).p_values(v) for name, v in by_group.items()},
        combination.standard(values),
    )


def _match(
    case: str,
    measure: Measure,
    near: Nearest,
    i: int,
    training_ids: tuple[str, ...],
    single: _ByMeasure,
    j: int,
) -> Match:
    distance = float(near.distance[i])
    return Match(
        case,
        measure.name,
        measure.level,
        training_ids[near.index[i]] if near.index[i] >= 0 else "",
        measure.value(distance) if math.isfinite(distance) else math.nan,
        distance,
        float(near.ratio[i]),
        float(single.p[i, j]),
        float(single.q[i, j]),
        str(single.verdict[i, j]),
    )


def _summary(
    i: int,
    matches: Sequence[Match],
    groups: tuple[str, ...],
    near: dict[str, Nearest],
    overall: _Combined,
    training_ids: tuple[str, ...],
    alpha: float,
) -> CaseSummary:
    level_of = {group: m.level for group, m in zip(groups, matches, strict=True)}
    flagged = tuple(dict.fromkeys(level_of[group] for group, p in overall.group_p.items() if p[i] <= alpha))
    choices = [int(near[m.measure].index[i]) for m in matches]
    winner = _overall_nearest(choices, overall.standard[i], groups)
    return CaseSummary(
        matches[0].synthetic_id,
        str(overall.verdict[i]),
        float(overall.score[i]),
        training_ids[winner] if winner >= 0 else "",
        flagged,
        sum(c == winner for c in choices) if winner >= 0 else 0,
        levels_differ(flagged, matches),
    )


def _overall_nearest(choices: Sequence[int], standard: np.ndarray, levels: Sequence[str]) -> int:
    """The training case with the largest mean evidence inside the strongest level; -1 where there is none."""
    best: dict[str, dict[int, float]] = {}
    for choice, strength, level in zip(choices, standard, levels, strict=True):
        if choice >= 0 and math.isfinite(strength):
            votes = best.setdefault(level, {})
            # Positive weights, so that two measures agreeing always outweigh either alone.
            votes[choice] = votes.get(choice, 0.0) + (max(float(strength), 0.0) + 1e-3) / levels.count(level)
    if not best:
        return next((c for c in choices if c >= 0), -1)
    strongest = max(best.values(), key=lambda votes: max(votes.values()))
    return max(strongest, key=lambda choice: strongest[choice])


def _neighbors(ids: tuple[str, ...], training_ids: tuple[str, ...], near: dict[str, Nearest]) -> Neighbors:
    return Neighbors(
        ids,
        training_ids,
        {name: n.neighbors.astype(np.int32) for name, n in near.items()},
        {name: n.neighbor_distances for name, n in near.items()},
    )


def _ratio_threshold(null: Null, alpha: float) -> float:
    threshold = null.threshold(alpha)
    return math.exp(-threshold) if math.isfinite(threshold) else math.nan


def _null_warnings(null: Distances, leaked: np.ndarray, overall: Null, alpha: float) -> Iterator[str]:
    size = len(overall.values)
    if size == 0:
        yield f"only {len(null.ids)} null cases: no p value can be given; give more real cases as validation"
    elif size + 1 < 1 / alpha:
        yield (
            f"the null has {size} cases: without a fitted tail no p value below {1 / (size + 1):.3f} is possible; "
            "verdicts rest on the fit; give more real cases as validation"
        )
    if leaked.any():
        origin = "validation" if null.kind == "validation" else "training"
        names = [i for i, near_duplicate in zip(null.ids, leaked, strict=True) if near_duplicate]
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        yield (
            f"{len(names)} {origin} cases nearly equal a training case and were left out of the null ({shown}); "
            "look at them with `replica-detection duplicates`"
        )


def _measure_warnings(
    queries: Distances, null: Distances, leaked: np.ndarray, near: dict[str, Nearest]
) -> Iterator[str]:
    for name in near:
        not_compared = sum(n < 0 for n in near[name].index)
        if not_compared:
            yield (
                f"{name}: {not_compared} of {len(queries.ids)} images could not be compared (no mask, or an empty one)"
            )
        rows = null.by_measure[name][~leaked]
        if len(rows) and np.isfinite(rows).any(1).sum() < SMALLEST_NULL <= len(rows):
            yield f"{name}: too few null cases could be compared, so it gives no p value (are their masks missing?)"
    undefined = sorted(
        {queries.ids[i] for n in near.values() for i in np.flatnonzero((n.index >= 0) & np.isnan(n.ratio))}
    )
    if undefined:
        yield (
            f"the distance ratio of {len(undefined)} cases is undefined (first {undefined[0]}): all their nearest "
            "training cases are identical; remove duplicates from the training cohort"
        )
