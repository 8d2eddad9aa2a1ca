"""The scored collection: the result folder that a scoring left, and comparisons in the words of the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from replica_detection.atomic import atomic_write
from replica_detection.cohort import Case
from replica_detection.errors import InputError
from replica_detection.index_writing import input_files
from replica_detection.results import CaseSummary, DetectionResult, Match
from replica_detection.schema import Comparison, Histogram, MeasureResult, NeighborItem, number
from replica_detection_server.cohorts import Files, state_of

_FILES = "files.json"


def write_scored(folder: Path, index_version: str, states: Mapping[str, Files]) -> None:
    """Notes beside a result what its images were and which index they were compared with."""
    with atomic_write(folder / _FILES) as f:
        json.dump({"index_version": index_version, "files": states}, f)


@dataclass(frozen=True)
class Scored:
    """A result folder as the server uses it; `states` are those of each case's files when they were read."""

    result: DetectionResult
    index_version: str
    states: dict[str, Files]

    @classmethod
    def read(cls, folder: Path) -> Scored:
        """Raises InputError where there is no whole result of a scoring."""
        result = DetectionResult.read(folder)
        try:
            notes = json.loads((folder / _FILES).read_text(encoding="utf-8"))
            states = {id: tuple((size, time) for size, time in files) for id, files in notes["files"].items()}
            return cls(result, notes["index_version"], states)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(folder / _FILES, f"cannot be read ({error})", "Score the collection again") from error

    @cached_property
    def rows(self) -> dict[str, CaseSummary]:
        return {row.synthetic_id: row for row in self.result.summary}

    @cached_property
    def matches(self) -> dict[str, list[Match]]:
        found: dict[str, list[Match]] = {}
        for match in self.result.matches:
            found.setdefault(match.synthetic_id, []).append(match)
        return found

    @cached_property
    def positions(self) -> dict[str, int]:
        """Row of each case in the table of neighbours."""
        return {id: i for i, id in enumerate(self.result.neighbors.synthetic_ids)}

    def is_current(self, case: Case, index_version: str) -> bool:
        """Whether the case was scored as it is now, against this index."""
        known = self.states.get(case.id)
        return case.id in self.rows and index_version == self.index_version and known == state_of(input_files(case))

    def comparison(self, synthetic_id: str, k: int) -> Comparison:
        """A case of the result with its k nearest training cases under each measure (fewer where fewer are kept)."""
        row, run, near = self.rows[synthetic_id], self.result.run, self.result.neighbors
        at = self.positions[synthetic_id]
        alignment = self.result.alignment(synthetic_id, row.nearest_training_id)

        def neighbors(match: Match) -> tuple[NeighborItem, ...]:
            similarity = run.definitions[match.measure].sense == "similarity"
            found = zip(near.training[match.measure][at, :k], near.distance[match.measure][at, :k], strict=True)
            return tuple(
                NeighborItem(
                    rank, near.training_ids[n], number(1 - float(d) if similarity else float(d)), number(float(d))
                )
                for rank, (n, d) in enumerate(found, 1)
                if n >= 0
            )

        return Comparison(
            synthetic_id,
            row.verdict,
            number(row.score),
            row.nearest_training_id,
            row.levels_flagged,
            row.levels_differ,
            tuple(_measure_result(m, neighbors(m)) for m in self.matches[synthetic_id]),
            self.index_version,
            run.warnings,
            alignment,
            "" if alignment is None else alignment.words,
        )

    def histograms(self) -> list[Histogram]:
        """One for each measure, by distance ratio, and one named "" for the overall evidence."""
        run, ids = self.result.run, tuple(row.synthetic_id for row in self.result.summary)
        ratios: dict[str, dict[str, float]] = {}
        for match in self.result.matches:
            ratios.setdefault(match.measure, {})[match.synthetic_id] = match.ratio
        overall = Histogram(
            "", ids, _numbers(run.evidence), _numbers(run.null.evidence), number(run.evidence_threshold)
        )
        return [
            overall,
            *(
                Histogram(
                    m.name,
                    ids,
                    _numbers(ratios.get(m.name, {}).get(id) for id in ids),
                    _numbers(run.null.ratios.get(m.name, ())),
                    number(m.threshold),
                )
                for m in run.measures
            ),
        ]


def _measure_result(match: Match, neighbors: tuple[NeighborItem, ...]) -> MeasureResult:
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
    )


def _numbers(values) -> tuple[float | None, ...]:
    return tuple(number(v) for v in values)
