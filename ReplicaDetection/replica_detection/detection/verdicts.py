"""From the distances of queries and null cases to p values, q values, verdicts and tables. Imports with numpy alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from replica_detection.detection.identity import identical_cases
from replica_detection.results.result import (
    IDENTICAL,
    NO_MASK,
    NO_MEASURE,
    REPEATED_TRAINING,
    SAME_PATIENT,
    SMALL_NULL,
    CaseSummary,
    Match,
    MeasureInfo,
    Neighbors,
    NullInfo,
    Verdicts,
    levels_differ,
)
from replica_detection.statistics.combination import Combination, combined
from replica_detection.statistics.distance_ratio import Nearest, evidence
from replica_detection.statistics.null import (
    SMALLEST_NULL,
    Null,
    benjamini_hochberg,
    null_needed,
    tail_needed,
    verdicts,
)

if TYPE_CHECKING:
    from replica_detection.detection.distances import Distances
    from replica_detection.detection.null_pool import NullPool
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.measures import Measure


def assign_verdicts(
    queries: Distances, null: NullPool, measures: Sequence[Measure], index: TrainingIndex, *, alpha: float
) -> Verdicts:
    """p values, q values and verdicts of each query, per measure and overall.

    The overall statistic (`Combination`) is compared with the same statistic of the null cases, so that its error rate
    holds under any dependence between the measures. An image that is identical with a training case is a `replica`
    whatever the null. One that lies closer than every null case is `undecided` where the null is too small for
    p <= alpha.

    Args:
        queries: distances of the cases in question, with the distance ratios of the run's neighbourhood.
        null: real cases that the generator never saw.
        index: the training cohort; its ids, patients and hashes of voxels are read.
        alpha: error rate of the verdicts.
    """
    near = {m.name: queries.by_measure[m.name].near for m in measures}
    values = np.stack([evidence(near[m.name].ratio) for m in measures], 1)
    same = identical_cases(queries, index, measures)
    with_tail = tail_needed(len(null.ids), len(values), alpha)
    single = _by_measure(values, null.values, with_tail, alpha)
    overall = _overall(values, null.values, tuple(m.group for m in measures), with_tail, alpha)
    matches = [
        [_match(id, m, near[m.name], i, index.ids, single, j) for j, m in enumerate(measures)]
        for i, id in enumerate(queries.ids)
    ]
    summary = []
    for i, row in enumerate(matches):
        case = _summary(i, row, measures, near, overall, index.ids, alpha)
        if same[i]:
            matches[i], case = _identical(row, case, same[i], index.ids)
        elif case.verdict == "undefined":
            case = replace(case, reason=_nothing_compared(i, queries, near, len(index.ids)))
        summary.append(case)
    info = _null_info(null, measures, overall, summary, alpha)
    return Verdicts(
        summary=tuple(summary),
        matches=tuple(match for row in matches for match in row),
        neighbors=_neighbors(queries.ids, index.ids, near),
        measures=tuple(
            MeasureInfo(m.name, m.level, m.sense, m.definition, _ratio_threshold(n, alpha))
            for m, n in zip(measures, single.nulls, strict=True)
        ),
        null=info,
        evidence=tuple(overall.evidence.tolist()),
        evidence_threshold=overall.null.threshold(alpha),
        warnings=(
            *null.warnings,
            *_null_warnings(info, alpha),
            *_measure_warnings(queries, null, measures, near, len(index.ids)),
        ),
    )


def _null_info(
    null: NullPool, measures: Sequence[Measure], overall: _Combined, summary: Sequence[CaseSummary], alpha: float
) -> NullInfo:
    size = len(null.ids)
    undecided = any(case.verdict == "undecided" for case in summary)
    return NullInfo(
        kind=null.kind,
        size=size,
        case_ids=null.ids,
        ratios={m.name: tuple(np.exp(-column).tolist()) for m, column in zip(measures, null.values.T, strict=True)},
        evidence=tuple(overall.null_evidence.tolist()),
        removed=null.removed,
        tail_fitted=overall.null.tail is not None,
        validation=null.validation,
        cross_fitted=size - null.validation,
        agreement=null.agreement,
        missing=max(null_needed(alpha) - len(overall.null.values), 0) if undecided else 0,
    )


def _identical(
    row: list[Match], case: CaseSummary, same: Sequence[int], training_ids: Sequence[str]
) -> tuple[list[Match], CaseSummary]:
    """The matches and the summary of an image that is the same as the training cases at the positions `same`."""
    ids = [training_ids[j] for j in same]
    twin = case.nearest_training_id if case.nearest_training_id in ids else ids[0]
    matches = [replace(m, verdict="replica") if m.distance == 0 and m.nearest_training_id in ids else m for m in row]
    levels = tuple(
        dict.fromkeys(("voxel", *case.levels_flagged, *(m.level for m in matches if m.verdict == "replica")))
    )
    return matches, replace(
        case,
        verdict="replica",
        score=1.0,
        nearest_training_id=twin,
        levels_flagged=levels,
        measures_agreeing=sum(m.nearest_training_id == twin for m in matches),
        reason=IDENTICAL,
    )


def _nothing_compared(i: int, queries: Distances, near: dict[str, Nearest], training_cases: int) -> str:
    """The reason that query i has no p value under any measure."""
    if queries.left_out and queries.left_out[i] == training_cases:
        return SAME_PATIENT
    found = [n for n in near.values() if n.index[i] >= 0]
    if not found:
        return NO_MASK
    return REPEATED_TRAINING if all(math.isnan(n.ratio[i]) for n in found) else NO_MEASURE


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
    undecided = np.stack([n.undecided(v, alpha) for n, v in zip(nulls, values.T, strict=True)], 1)
    return _ByMeasure(nulls, p, q, verdicts(p, q, alpha, undecided))


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
        verdicts(p, benjamini_hochberg(p), alpha, null.undecided(evidence, alpha)),
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
    measures: Sequence[Measure],
    near: dict[str, Nearest],
    overall: _Combined,
    training_ids: tuple[str, ...],
    alpha: float,
) -> CaseSummary:
    groups = [m.group for m in measures]
    level_of = {m.group: m.level for m in measures}
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
        SMALL_NULL if overall.verdict[i] == "undecided" else "",
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


def _null_warnings(null: NullInfo, alpha: float) -> Iterator[str]:
    if null.size == 0:
        yield "there is no null case, and no p value can be given: give unseen real scans as validation"
    elif null.size < null_needed(alpha):
        rest = (
            "smaller ones rest on a fitted tail"
            if null.tail_fitted
            else "an image closer than all of them is undecided"
        )
        yield f"the null has {null.size} cases: by counting no p value is below {1 / (null.size + 1):.3f}; {rest}"
    if null.missing:
        yield f"{null.missing} more validation scans would settle what is undecided"


def _measure_warnings(
    queries: Distances, null: NullPool, measures: Sequence[Measure], near: dict[str, Nearest], training_cases: int
) -> Iterator[str]:
    apart = np.array(queries.left_out) == training_cases if queries.left_out else np.zeros(len(queries.ids), bool)
    if apart.any():
        yield (
            f"{int(apart.sum())} of {len(queries.ids)} images could be compared with no training case: all of these "
            "are of the image's own patient"
        )
    for j, m in enumerate(measures):
        if m.caution:
            yield m.caution
        missing = int(((near[m.name].index < 0) & ~apart).sum())
        if missing:
            yield f"{m.name}: {missing} of {len(queries.ids)} images could not be compared (no mask, or an empty one)"
        known = int(np.isfinite(null.values[:, j]).sum())
        if known < SMALLEST_NULL <= len(null.ids):
            yield f"{m.name}: only {known} null cases could be compared, too few to count (are their masks missing?)"
        elif null.validation and known and not np.isfinite(null.values[: null.validation, j]).any():
            yield (
                f"{m.name}: no validation scan could be compared (are their masks missing?), so that its null are the "
                "training scans alone"
            )
    undefined = sorted(
        {queries.ids[i] for n in near.values() for i in np.flatnonzero((n.index >= 0) & np.isnan(n.ratio))}
    )
    if undefined:
        yield (
            f"the distance ratio of {len(undefined)} cases is undefined (first {undefined[0]}): all their nearest "
            "training cases are identical; remove duplicates from the training cohort"
        )
