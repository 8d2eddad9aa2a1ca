"""Rows of the page's tables, with every value formatted for the template."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from replica_detection.results import wording
from replica_detection.results.result import FLAGGED, CaseSummary, DetectionResult, Match


@dataclass(frozen=True)
class Cell:
    """A measure in the worklist: `sort` is the ratio as a plain number, empty where it is undefined."""

    ratio: str
    p: str
    sort: str
    verdict: str


@dataclass(frozen=True)
class Row:
    """A line of the worklist; `anchor` is the id of the case's section, empty where it has none.

    `levels_differ` lists the training case of each level where they differ, else it is empty.
    """

    rank: int
    case: CaseSummary
    score: str
    sort: str
    levels: str
    levels_differ: str
    cells: tuple[Cell, ...]
    anchor: str


@dataclass(frozen=True)
class MatchRow:
    """A line of a case's table; `elsewhere` is True where the measure's nearest is not the training case shown."""

    match: Match
    value: str
    distance: str
    ratio: str
    p: str
    q: str
    elsewhere: bool


@dataclass(frozen=True)
class Copied:
    """A training case, with the flagged synthetic images that are nearest to it."""

    training_id: str
    replicas: int
    suspicious: int
    synthetic_ids: tuple[str, ...]

    @property
    def total(self) -> int:
        return self.replicas + self.suspicious


def worklist(result: DetectionResult, anchors: dict[str, str]) -> list[Row]:
    """All cases by falling score; `anchors` maps a synthetic id to the id of its section."""
    by_case = matches_by_case(result)
    names = [m.name for m in result.run.measures]
    all_levels = {m.level for m in result.run.measures}
    return [
        Row(
            rank,
            case,
            wording.score(case.score),
            sort_key(case.score),
            f"all {len(all_levels)}" if 2 < len(all_levels) == len(case.levels_flagged) else levels(case),
            levels_differ(case),
            tuple(_cell(by_case.get(case.synthetic_id, {}).get(name)) for name in names),
            anchors.get(case.synthetic_id, ""),
        )
        for rank, case in enumerate(result.worklist(), 1)
    ]


def match_rows(matches: Iterable[Match], shown: str) -> list[MatchRow]:
    """One row per match; `shown` is the id of the training case in the picture."""
    return [
        MatchRow(
            m,
            wording.number(m.value),
            wording.number(m.distance),
            wording.number(m.ratio, 3),
            wording.probability(m.p_value),
            wording.probability(m.q_value),
            bool(m.nearest_training_id) and m.nearest_training_id != shown,
        )
        for m in matches
    ]


def matches_by_case(result: DetectionResult) -> dict[str, dict[str, Match]]:
    """The matches of each synthetic case by measure, in the order of the table."""
    by_case: dict[str, dict[str, Match]] = {}
    for match in result.matches:
        by_case.setdefault(match.synthetic_id, {})[match.measure] = match
    return by_case


def detail_rows(result: DetectionResult, synthetic_id: str) -> list[tuple[str, str]]:
    """Pairs (measure, "MI 4.2, ONI −1, ...") for each measure with further values of a case."""
    return [
        (measure, ", ".join(f"{d.name} {d.text}" for d in wording.details(columns)))
        for measure, columns in result.details_of(synthetic_id).items()
    ]


def most_copied(result: DetectionResult) -> list[Copied]:
    """Training cases by the number of flagged synthetic images nearest to them; in a tie more replicas come first."""
    nearest: dict[str, list[CaseSummary]] = {}
    for case in result.worklist():
        if case.verdict in FLAGGED and case.nearest_training_id:
            nearest.setdefault(case.nearest_training_id, []).append(case)
    copied = []
    for training_id, cases in nearest.items():
        verdicts = Counter(c.verdict for c in cases)
        ids = tuple(c.synthetic_id for c in cases)
        copied.append(Copied(training_id, verdicts["replica"], verdicts["suspicious"], ids))
    return sorted(copied, key=lambda c: (-c.total, -c.replicas))


def agreement(matches: Iterable[Match], shown: str) -> str:
    """A sentence on the measures that name the training case shown, and those that name another one."""
    named = [m for m in matches if m.nearest_training_id]
    if not named or not shown:
        return "No measure names a training case."
    other = [m.measure for m in named if m.nearest_training_id != shown]
    text = f"Named as nearest by {len(named) - len(other)} of {wording.count(len(named), 'measure')}."
    if other:
        text += f" Another training case is nearest by {', '.join(other)}."
    return text


def levels(case: CaseSummary) -> str:
    """The levels flagged, voxel first."""
    known = list(wording.LEVELS)
    return ", ".join(
        sorted(case.levels_flagged, key=lambda level: known.index(level) if level in known else len(known))
    )


def flagged_by(case: CaseSummary, matches: Iterable[Match]) -> str:
    """A sentence on the levels that flagged the case, and their measures."""
    if not case.levels_flagged:
        return "No level flagged it by itself; the measures did together." if case.verdict in FLAGGED else ""
    matches = list(matches)
    parts = []
    for level in levels(case).split(", "):
        names = [m.measure for m in matches if m.level == level and m.verdict in FLAGGED]
        parts.append(f"{level} ({', '.join(names)})" if names else level)
    return f"Flagged at {wording.count(len(parts), 'level')}: {'; '.join(parts)}."


def levels_differ(case: CaseSummary) -> str:
    """`voxel mra_012, segmentation mra_007` where the flagged levels name different training cases, else empty."""
    return ", ".join(case.levels_differ)


def sort_key(value: float) -> str:
    """The number as text for sorting in the browser; empty where it is not finite."""
    return repr(float(value)) if math.isfinite(value) else ""


def _cell(match: Match | None) -> Cell:
    if match is None:
        return Cell(wording.MISSING, wording.MISSING, "", "undefined")
    return Cell(
        wording.number(match.ratio, 3), wording.probability(match.p_value), sort_key(match.ratio), match.verdict
    )
