"""The result of a run, and its tables on disk. Imports with numpy alone."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.progress import Progress, silent
from replica_detection.registration.alignment import Alignment
from replica_detection.results.places import PLACES_FILE, Places, read_places, write_places
from replica_detection.results.row_tables import read_table, write_table
from replica_detection.results.schema import from_json, to_json
from replica_detection.util.files import atomic_write

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
VERDICTS = ("replica", "suspicious", "undecided", "novel", "undefined")
FLAGGED = ("replica", "suspicious")
TO_REVIEW = (*FLAGGED, "undecided")  # a person should look
# The reasons that a verdict rests on something else than a p value. `results.wording.REASONS` puts them into words.
IDENTICAL = "identical"
SMALL_NULL = "null too small"
NO_MASK = "no mask"
SAME_PATIENT = "same patient"
REPEATED_TRAINING = "identical training cases"
NO_MEASURE = "no null under any measure"


@dataclass(frozen=True)
class CaseSummary:
    """One row of `summary.csv`: the overall verdict on a synthetic case.

    `score` lies in [0, 1], larger = more replica-like; NaN where no measure gave a p value. `nearest_training_id` is
    empty where no measure has a finite distance. `levels_differ` holds "level case" for each flagged level where these
    levels name different training cases, and is empty where they agree. `reason` is "" where the verdict rests on the
    p value; else IDENTICAL (a `replica` whatever the null), SMALL_NULL (`undecided`), or the reason that nothing could
    be compared (`undefined`): NO_MASK, SAME_PATIENT, REPEATED_TRAINING or NO_MEASURE.
    """

    synthetic_id: str
    verdict: str
    score: float
    nearest_training_id: str
    levels_flagged: tuple[str, ...]
    measures_agreeing: int
    levels_differ: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Match:
    """One row of `matches.csv`: a synthetic case under one measure.

    `value` is the measure as the literature reports it (SSIM, mm, Dice ...), `distance` the ranked number (1 - s for a
    similarity s), `ratio` the distance over the mean of the k nearest. NaN: undefined.
    """

    synthetic_id: str
    measure: str
    level: str
    nearest_training_id: str
    value: float
    distance: float
    ratio: float
    p_value: float
    q_value: float
    verdict: str


@dataclass(frozen=True)
class Neighbors:
    """The k nearest training cases of each synthetic case, nearest first.

    `training[measure]` is (Q, k) int32, an index into `training_ids`; -1 where there is none.
    `distance[measure]` is (Q, k) float64; +inf where there is none.
    """

    synthetic_ids: tuple[str, ...]
    training_ids: tuple[str, ...]
    training: dict[str, np.ndarray]
    distance: dict[str, np.ndarray]


@dataclass(frozen=True)
class MeasureInfo:
    """A measure of this run: `definition` holds the details that the name leaves open (window, data range, units).

    `threshold` is the largest ratio that this run calls at least suspicious (p <= alpha); NaN where no ratio is.
    """

    name: str
    level: str
    sense: str
    definition: str
    threshold: float


@dataclass(frozen=True)
class NullInfo:
    """The real cases that the p values rest on.

    `kind` is `validation`, `cross-fitted` or `pooled` (both); `ratios[measure]` and `evidence` are their statistics,
    one for each of `case_ids`, those of validation first; `removed` are cases left out as copies or near-duplicates of
    a training case; `tail_fitted` is True if p values below 1 / (size + 1) come from a fitted generalized Pareto tail.
    `validation` and `cross_fitted` count the cases of each origin. `agreement` is the p value of the test that the two
    agree, NaN where there was nothing to test. `missing`: how many more validation scans would make every `undecided`
    case `suspicious` or `novel`; 0 where none are needed.
    """

    kind: str
    size: int
    case_ids: tuple[str, ...]
    ratios: dict[str, tuple[float, ...]]
    evidence: tuple[float, ...]
    removed: tuple[str, ...]
    tail_fitted: bool
    validation: int = 0
    cross_fitted: int = 0
    agreement: float = math.nan
    missing: int = 0


@dataclass(frozen=True)
class CohortInfo:
    """A cohort of the run: its source, the number of cases used, and the skipped files with the reasons."""

    source: str
    cases: int
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RunInfo:
    """The content of `detection.json`: all that is needed to describe the run and to repeat it.

    `evidence` is the combined statistic of each synthetic case (order of the summary; larger = more replica-like; the
    scale is that of a z score among the null cases) and `evidence_threshold` its smallest value with p <= alpha.
    `details[measure][column]` holds further numbers or texts of a measure for each synthetic case, in the same order;
    None: undefined.
    """

    created: str
    alpha: float
    k: int
    device: str
    profile: dict[str, Any]
    synthetic: CohortInfo
    training: CohortInfo
    validation: CohortInfo | None
    index: str
    measures: tuple[MeasureInfo, ...]
    null: NullInfo
    evidence: tuple[float, ...]
    evidence_threshold: float
    timings: dict[str, float]
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
    options: dict[str, Any] = field(default_factory=dict)
    details: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    @property
    def definitions(self) -> dict[str, MeasureInfo]:
        return {m.name: m for m in self.measures}


@dataclass(frozen=True)
class AlignedPair:
    """The alignment of a candidate to a synthetic case; one entry of `alignments.json`."""

    synthetic_id: str
    training_id: str
    measure: str
    alignment: Alignment


class ReportWriter(Protocol):
    """`report.write_report`, as `DetectionResult.write_report` calls it."""

    def __call__(self, result: DetectionResult, folder: Path, /, *, max_pairs: int, progress: Progress) -> Path: ...


_report_writers: list[ReportWriter] = []


def register_report_writer(writer: ReportWriter) -> None:
    """Makes `DetectionResult.write_report` call `writer`. The report room stands above this one and calls it."""
    _report_writers[:] = [writer]


@dataclass(frozen=True)
class DetectionResult:
    """A finished run. `write` and `read` are inverse to each other.

    Attributes:
        summary: one row for each synthetic case, in the order of the images.
        matches: one row for each synthetic case and measure.
        neighbors: the k nearest training cases of each synthetic case.
        run: what was compared with what, and how.
        alignments: how candidates were moved onto synthetic cases.
        inputs: the index and the cohorts, as long as the result has not left memory; None for one that was read, and
            for one that comes from another process by pickle.
        places: where the inputs lie, beside the paths in `run`.
    """

    summary: tuple[CaseSummary, ...]
    matches: tuple[Match, ...]
    neighbors: Neighbors
    run: RunInfo
    alignments: tuple[AlignedPair, ...] = ()
    inputs: object = field(default=None, compare=False, repr=False)
    places: Places | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "inputs": None}  # a temporary index goes with the process that holds the inputs

    def __copy__(self) -> DetectionResult:
        return dataclasses.replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> DetectionResult:
        names = [f.name for f in dataclasses.fields(self) if f.name != "inputs"]
        return DetectionResult(**{n: deepcopy(getattr(self, n), memo) for n in names}, inputs=self.inputs)

    def worklist(self) -> list[CaseSummary]:
        """Cases by descending score, undefined ones last; ties go by id."""
        return sorted(self.summary, key=lambda c: (-c.score if math.isfinite(c.score) else math.inf, c.synthetic_id))

    def matches_of(self, synthetic_id: str) -> list[Match]:
        return [m for m in self.matches if m.synthetic_id == synthetic_id]

    def alignment(self, synthetic_id: str, training_id: str) -> Alignment | None:
        """The alignment of a training case to a synthetic one; None if this pair was not aligned.

        If the images and the masks were aligned, the one with the larger correlation times overlap is returned.
        """
        alignments = [a.alignment for a in self._by_pair.get((synthetic_id, training_id), ())]
        return max(alignments, key=lambda a: a.correlation * a.overlap, default=None)

    @cached_property
    def _by_pair(self) -> dict[tuple[str, str], list[AlignedPair]]:
        pairs: dict[tuple[str, str], list[AlignedPair]] = {}
        for pair in self.alignments:
            pairs.setdefault((pair.synthetic_id, pair.training_id), []).append(pair)
        return pairs

    def details_of(self, synthetic_id: str) -> dict[str, dict[str, Any]]:
        """Further numbers and texts of the measures for one case, by measure and column."""
        row = [c.synthetic_id for c in self.summary].index(synthetic_id)
        return {m: {key: values[row] for key, values in of.items()} for m, of in self.run.details.items()}

    def count(self, verdict: str) -> int:
        return sum(c.verdict == verdict for c in self.summary)

    def to_dataframe(self, table: str = "summary") -> pandas.DataFrame:
        """One of the tables as a pandas DataFrame, with the columns of its CSV file.

        Args:
            table: `summary`, a row for each synthetic case, or `matches`, a row for each synthetic case and measure.

        Raises:
            ConfigurationError: another table, or pandas is not installed.
        """
        tables: dict[str, tuple[type, Iterable[Any]]] = {
            "summary": (CaseSummary, self.summary),
            "matches": (Match, self.matches),
        }
        if table not in tables:
            raise ConfigurationError(f"unknown table '{table}'; known: {', '.join(tables)}")
        try:
            import pandas
        except ImportError as error:
            raise ConfigurationError("a data frame needs pandas, which is not installed: pip install pandas") from error
        kind, rows = tables[table]
        names = [f.name for f in dataclasses.fields(kind)]
        return pandas.DataFrame([{name: getattr(row, name) for name in names} for row in rows], columns=names)

    def write_report(self, folder: str | os.PathLike[str], *, max_pairs: int = 50, progress: Progress = silent) -> Path:
        """Writes `folder/index.html`, as `replica_detection.write_report` does, and returns its path.

        The report room draws it. It is loaded with every name of `import replica_detection`; a program that imports
        single rooms imports `replica_detection.report` too.

        Raises:
            ConfigurationError: the report room is not loaded.
        """
        if not _report_writers:
            raise ConfigurationError("reports need the module replica_detection.report: import it first")
        return _report_writers[0](self, Path(folder), max_pairs=max_pairs, progress=progress)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tables into `folder` (made if missing); `detection.json` comes last and marks a whole result."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "detection.json").unlink(missing_ok=True)
        write_table(folder / "summary.csv", CaseSummary, self.summary)
        write_table(folder / "matches.csv", Match, self.matches)
        arrays: dict[str, np.ndarray] = {
            "synthetic_id": np.array(self.neighbors.synthetic_ids, dtype=np.str_),
            "training_id": np.array(self.neighbors.training_ids, dtype=np.str_),
        }
        for name in self.neighbors.training:
            arrays[f"{name}/training"] = self.neighbors.training[name].astype(np.int32)
            arrays[f"{name}/distance"] = self.neighbors.distance[name].astype(np.float64)
        with atomic_write(folder / "neighbors.npz", "wb") as f:
            np.savez_compressed(f, allow_pickle=False, **arrays)
        with atomic_write(folder / "alignments.json", "w") as f:
            json.dump(to_json(self.alignments), f, ensure_ascii=False, allow_nan=False)
        write_places(self.places or Places(), self.run, folder)
        with atomic_write(folder / "detection.json", "w") as f:
            json.dump(to_json(self.run), f, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> DetectionResult:
        """Reads a result folder. Raises InputError where a table is missing, damaged or of another schema version."""
        folder = Path(folder)
        path = folder / "detection.json"
        if not path.is_file():
            fault = "holds no detection.json" if folder.is_dir() else "is not a folder"
            raise InputError(folder, fault, "Give the output folder of a finished `replica-detection detect`")
        try:
            run = _run_from(json.loads(path.read_text(encoding="utf-8", errors="surrogateescape")), path)
            summary = tuple(read_table(folder / "summary.csv", CaseSummary))
            matches = tuple(read_table(folder / "matches.csv", Match))
            path = folder / "neighbors.npz"
            with np.load(path, allow_pickle=False) as stored:
                names = [key.removesuffix("/training") for key in stored.files if key.endswith("/training")]
                neighbors = Neighbors(
                    tuple(stored["synthetic_id"].tolist()),
                    tuple(stored["training_id"].tolist()),
                    {n: stored[f"{n}/training"] for n in names},
                    {n: stored[f"{n}/distance"] for n in names},
                )
            path = folder / "alignments.json"
            alignments = tuple(from_json(AlignedPair, a) for a in json.loads(path.read_text(encoding="utf-8")))
            path = folder / PLACES_FILE
            places = read_places(folder)
        except InputError:
            raise
        except Exception as error:  # many kinds of damage, one message
            raise InputError(path, f"cannot be read ({error})", "Run `replica-detection detect` again") from error
        return cls(summary, matches, neighbors, run, alignments, places=places)


def nearest_by_level(matches: Iterable[Match]) -> dict[str, str]:
    """The training case that each level names: that of the measure with the smallest p; in a tie, of most measures."""
    by_level: dict[str, list[Match]] = {}
    for match in matches:
        if match.nearest_training_id and not math.isnan(match.p_value):
            by_level.setdefault(match.level, []).append(match)
    named = {}
    for level, group in by_level.items():
        votes = Counter(m.nearest_training_id for m in group)
        named[level] = min(group, key=lambda m: (m.p_value, -votes[m.nearest_training_id])).nearest_training_id
    return named


def levels_differ(levels_flagged: Iterable[str], matches: Iterable[Match]) -> tuple[str, ...]:
    """("voxel mra_012", "segmentation mra_007") where the flagged levels name different training cases, else ()."""
    wanted = set(levels_flagged)
    flagged = {level: id for level, id in nearest_by_level(matches).items() if level in wanted}
    return tuple(f"{level} {id}" for level, id in flagged.items()) if len(set(flagged.values())) > 1 else ()


def _run_from(data: dict[str, Any], path: Path) -> RunInfo:
    if data.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            path,
            f"has schema version {data.get('schema_version')}, this program reads {SCHEMA_VERSION}",
            "Run `replica-detection detect` again with this version",
        )
    return from_json(RunInfo, data, own_file=True)


@dataclass(frozen=True)
class Verdicts:
    """Tables and statistics of one comparison, before they become a result."""

    summary: tuple[CaseSummary, ...]
    matches: tuple[Match, ...]
    neighbors: Neighbors
    measures: tuple[MeasureInfo, ...]
    null: NullInfo
    evidence: tuple[float, ...]
    evidence_threshold: float
    warnings: tuple[str, ...]
