"""A finished result as messages of the schema, for server and viewer. Imports with numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from replica_detection.results import wording
from replica_detection.results.result import CaseSummary, DetectionResult, Match
from replica_detection.results.schema import (
    Comparison,
    Histogram,
    MeasureResult,
    NeighborItem,
    WorklistItem,
    number,
)


def worklist_item(row: CaseSummary) -> WorklistItem:
    """A row of the summary; nobody's rating in it."""
    return WorklistItem(
        row.synthetic_id,
        row.verdict,
        number(row.score),
        row.nearest_training_id,
        row.levels_flagged,
        row.measures_agreeing,
        row.levels_differ,
        reason=row.reason,
    )


def comparison_of(result: DetectionResult, synthetic_id: str, k: int, index_version: str) -> Comparison:
    """A case with its k nearest training cases under each measure (fewer where the result keeps fewer).

    Raises:
        KeyError: the result has no such case.
    """
    row = next((r for r in result.summary if r.synthetic_id == synthetic_id), None)
    if row is None:
        raise KeyError(synthetic_id)
    at = result.neighbors.synthetic_ids.index(synthetic_id)
    alignment = result.alignment(synthetic_id, row.nearest_training_id)
    details = result.details_of(synthetic_id)
    return Comparison(
        synthetic_id,
        row.verdict,
        number(row.score),
        row.nearest_training_id,
        row.levels_flagged,
        row.levels_differ,
        tuple(_measure_result(result, m, at, k, details.get(m.measure, {})) for m in result.matches_of(synthetic_id)),
        index_version,
        result.run.warnings,
        alignment,
        "" if alignment is None else alignment.words,
        row.reason,
    )


def histograms_of(result: DetectionResult) -> list[Histogram]:
    """The overall evidence first, named "", then the distance ratios under each measure."""
    run, ids = result.run, tuple(row.synthetic_id for row in result.summary)
    ratios: dict[str, dict[str, float]] = {}
    for match in result.matches:
        ratios.setdefault(match.measure, {})[match.synthetic_id] = match.ratio
    overall = Histogram("", ids, _numbers(run.evidence), _numbers(run.null.evidence), number(run.evidence_threshold))
    measures = (
        Histogram(
            m.name,
            ids,
            _numbers(ratios.get(m.name, {}).get(id) for id in ids),
            _numbers(run.null.ratios.get(m.name, ())),
            number(m.threshold),
        )
        for m in run.measures
    )
    return [overall, *measures]


def _measure_result(
    result: DetectionResult, match: Match, at: int, k: int, details: Mapping[str, Any]
) -> MeasureResult:
    near, info = result.neighbors, result.run.definitions[match.measure]
    nearest = zip(near.training[match.measure][at, :k], near.distance[match.measure][at, :k], strict=True)
    neighbors = tuple(
        NeighborItem(
            rank,
            near.training_ids[n],
            number(1 - float(d) if info.sense == "similarity" else float(d)),
            number(float(d)),
        )
        for rank, (n, d) in enumerate(nearest, 1)
        if n >= 0
    )
    return MeasureResult(
        match.measure,
        match.level,
        match.nearest_training_id,
        number(match.value),
        number(match.distance),
        number(match.ratio),
        number(match.p_value),
        number(match.q_value),
        match.verdict,
        neighbors,
        wording.details(details),
    )


def _numbers(values: Iterable[float | None]) -> tuple[float | None, ...]:
    return tuple(number(v) for v in values)
