"""The scored collection: the result folder of a scoring, and its comparisons as the schema describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.cohort import Case
from replica_detection.results.result import CaseSummary, DetectionResult
from replica_detection.results.schema import Comparison, Histogram
from replica_detection.results.views import comparison_of, histograms_of
from replica_detection.util.files import atomic_write
from replica_detection_server.collection.cohorts import Files, state_of

_FILES = "files.json"


def write_scored(folder: Path, index_version: str, states: Mapping[str, Files]) -> None:
    """Notes beside a result what its images were and which index they were compared with."""
    with atomic_write(folder / _FILES) as f:
        json.dump({"index_version": index_version, "files": states}, f)


@dataclass(frozen=True)
class ScoredResult:
    """A result folder as the server uses it; `states` are those of each case's files when they were read."""

    result: DetectionResult
    index_version: str
    states: dict[str, Files]

    @classmethod
    def read(cls, folder: Path) -> ScoredResult:
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

    def is_current(self, case: Case, index_version: str) -> bool:
        """True if the case was scored as it is now, against this index."""
        known = self.states.get(case.id)
        return case.id in self.rows and index_version == self.index_version and known == state_of(case.input_files)

    def comparison(self, synthetic_id: str, k: int) -> Comparison:
        """A case of the result with its k nearest training cases under each measure (fewer where fewer are kept)."""
        return comparison_of(self.result, synthetic_id, k, self.index_version)

    def histograms(self) -> list[Histogram]:
        """One for each measure, by distance ratio, and one named "" for the overall evidence."""
        return histograms_of(self.result)
