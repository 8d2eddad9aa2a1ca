"""Readers' thresholds as a file, and verdicts by these thresholds instead of the null."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.readers.consensus import (
    OVERALL,
    Consensus,
    consensus,
    labelled,
    replica_likeness,
    resolved,
)
from replica_detection.readers.ratings import Rating
from replica_detection.results.result import (
    FLAGGED,
    IDENTICAL,
    CaseSummary,
    DetectionResult,
    Match,
    levels_differ,
)
from replica_detection.results.schema import from_json, nan_for_none, number, to_json
from replica_detection.statistics.intervals import Estimate
from replica_detection.statistics.thresholds import (
    METHODS,
    Confusion,
    ReaderThreshold,
    reader_threshold,
)
from replica_detection.util.files import atomic_write
from replica_detection.version import __version__

if TYPE_CHECKING:
    from replica_detection.results.result import Verdicts

SCHEMA_VERSION = 1
_ROUNDING = 1e-12  # a ratio that equals the threshold but for rounding is flagged


@dataclass(frozen=True)
class Origin:
    """The origin of a calibration. `k` is the neighbourhood of the ratio, `cases` the number of rated images."""

    result: str
    training: str
    synthetic: str
    ratings: tuple[str, ...]
    readers: int
    rule: str
    cases: int
    replicas: int
    k: int
    profile: str
    created: str
    version: str


@dataclass(frozen=True)
class MeasureThreshold:
    """The threshold of a measure, or of `overall` (minus the combined evidence), with its accuracy."""

    measure: str
    level: str
    definition: str
    reader_threshold: ReaderThreshold

    @property
    def suspicious_up_to(self) -> float:
        """Upper end of the threshold's bootstrap interval; NaN ends count as the threshold itself."""
        high = self.reader_threshold.interval[1]
        return self.reader_threshold.threshold if math.isnan(high) else max(high, self.reader_threshold.threshold)

    def verdict(self, value: float) -> str:
        """`replica` up to the threshold, `suspicious` up to the end of its interval, else `novel`; NaN: `undefined`."""
        if math.isnan(value) or math.isnan(self.reader_threshold.threshold):
            return "undefined"
        if value <= self.reader_threshold.threshold + _ROUNDING:
            return "replica"
        return "suspicious" if value <= self.suspicious_up_to + _ROUNDING else "novel"


@dataclass(frozen=True)
class Calibration:
    """Readers' thresholds of every measure by every method; verdicts use those of `method`."""

    method: str
    origin: Origin
    thresholds: tuple[MeasureThreshold, ...]

    @property
    def measures(self) -> dict[str, MeasureThreshold]:
        """The defined thresholds of the chosen method, by measure."""
        chosen = (t for t in self.thresholds if t.reader_threshold.method == self.method)
        return {t.measure: t for t in chosen if not math.isnan(t.reader_threshold.threshold)}

    @property
    def order(self) -> tuple[str, ...]:
        """Measures by descending cross-validated balanced accuracy: the first decides. In a tie `overall` is first."""

        def rank(t: MeasureThreshold) -> tuple[float, bool]:
            confusion = t.reader_threshold.cross_validated or t.reader_threshold.apparent
            accuracy = confusion.balanced_accuracy.value
            return -round(accuracy, 3), t.measure != OVERALL

        return tuple(t.measure for t in sorted(self.measures.values(), key=rank))

    def describe(self) -> str:
        """One line for people."""
        o = self.origin
        readers = f"{o.readers} reader{'s' if o.readers != 1 else ''} (consensus: {o.rule})"
        return f"thresholds by {self.method} from {readers} on {o.cases} images, {o.replicas} of them replicas"

    def write(self, path: Path) -> None:
        """Writes the JSON file, whole or not at all."""
        data = {
            "kind": "reader-calibration",
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "made_from": to_json(self.origin),
            "thresholds": [_threshold_to_json(t) for t in self.thresholds],
        }
        with atomic_write(Path(path)) as f:
            json.dump(data, f, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Raises InputError for a file that is missing, no calibration, damaged, or of another schema version."""
        path = Path(path)
        advice = "Give a file written by `replica-detection calibrate`"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(path, f"cannot be read ({error.strerror or error})", advice) from error
        except ValueError as error:
            raise InputError(path, f"is not JSON ({error})", advice) from error
        if not isinstance(data, dict) or data.get("kind") != "reader-calibration":
            raise InputError(path, "is no reader calibration", advice)
        if data.get("schema_version") != SCHEMA_VERSION:
            fault = f"has schema version {data.get('schema_version')}, this program reads {SCHEMA_VERSION}"
            raise InputError(path, fault, "Run `replica-detection calibrate` again with this version")
        try:
            origin = from_json(Origin, data["made_from"], own_file=True)
            read = cls(str(data["method"]), origin, tuple(_threshold_from_json(t) for t in data["thresholds"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(path, f"is damaged ({type(error).__name__}: {error})", advice) from error
        if not read.measures:
            raise InputError(path, f"holds no threshold by '{read.method}'", "Calibrate with images of both kinds")
        return read


def calibrate(
    result: DetectionResult,
    ratings: Sequence[Rating],
    *,
    rule: str = "majority",
    method: str = "balanced-accuracy",
    source: str = "",
    files: Sequence[str] = (),
    seed: int = 0,
) -> Calibration:
    """Thresholds of every measure of a result, and of the combined evidence, from readers' ratings of its images.

    Args:
        ratings: of any pairs; ratings of images that are not in the result are ignored.
        rule: how several readers become one label (`consensus.RULES`).
        method: of the thresholds that verdicts use; those of the other method are stored too.
        source: location of the result, noted in the file.
        files: locations of the ratings, noted in the file.
        seed: of bootstrap and folds.

    Raises:
        ConfigurationError: an unknown rule or method, no rating of an image of the result, or all images of one kind.
    """
    if method not in METHODS:
        raise ConfigurationError(f"unknown threshold method '{method}'; known: {', '.join(METHODS)}")
    known, _ = resolved(ratings, result)
    labels = consensus(known, rule)
    if not labels:
        raise ConfigurationError(
            f"none of the {len(ratings)} ratings is of an image of this result; "
            "the synthetic ids must be those of summary.csv"
        )
    replicas = sum(c.replica for c in labels.values())
    if replicas in (0, len(labels)):
        raise ConfigurationError(
            f"by the readers {'all' if replicas else 'none'} of the {len(labels)} rated images "
            f"{'are replicas' if replicas else 'is a replica'}: a threshold needs images of both kinds"
        )
    run = result.run
    origin = Origin(
        source,
        run.training.source,
        run.synthetic.source,
        tuple(files),
        len({r.reader for r in known}),
        rule,
        len(labels),
        replicas,
        run.k,
        str(run.profile.get("description", "")),
        datetime.now(UTC).isoformat(timespec="seconds"),
        __version__,
    )
    return Calibration(method, origin, tuple(_thresholds(result, labels, seed)))


def _thresholds(result: DetectionResult, labels: dict[str, Consensus], seed: int) -> list[MeasureThreshold]:
    thresholds = []
    for name, values in replica_likeness(result).items():
        info = result.run.definitions.get(name)
        level, definition = (info.level, info.definition) if info else (OVERALL, "minus the combined evidence")
        for method in METHODS:
            threshold = reader_threshold(*labelled(values, labels), method, seed=seed)
            thresholds.append(MeasureThreshold(name, level, definition, threshold))
    return thresholds


def applied(by_null: Verdicts, calibration: Calibration, k: int) -> Verdicts:
    """The same comparison with verdicts by readers' thresholds; p, q and score stay those of the null.

    A measure flags by its own threshold. The overall verdict is that of the first entry of `Calibration.order` that is
    defined for the case; `overall` itself counts only if this run combines the same measures as the calibration. An
    image that is identical to a training case stays a `replica` of it; nothing is `undecided`.

    Args:
        by_null: the verdicts by the null.
        k: neighbourhood of the ratio in this run.

    Raises:
        ConfigurationError: the calibration has no threshold for a measure of this run.
    """
    known = calibration.measures
    here = {m.name for m in by_null.measures}
    combined = OVERALL in known and here == set(known) - {OVERALL}
    order = [name for name in calibration.order if name in here or (name == OVERALL and combined)]
    if not order:
        raise ConfigurationError(
            f"the calibration has no threshold for a measure of this run ({', '.join(sorted(here))}); "
            f"it has {', '.join(known)}"
        )
    verdicts = {name: known[name].verdict for name in known}
    matches = tuple(
        replace(m, verdict=verdicts[m.measure](m.ratio) if m.measure in known else "undefined") for m in by_null.matches
    )
    by_case: dict[str, list[Match]] = {}
    for match in matches:
        by_case.setdefault(match.synthetic_id, []).append(match)
    summary = tuple(
        _summary(case, by_case[case.synthetic_id], verdicts[OVERALL](-evidence) if combined else "", order)
        for case, evidence in zip(by_null.summary, by_null.evidence, strict=True)
    )
    limits = {name: known[name].suspicious_up_to for name in known}
    return replace(
        by_null,
        summary=summary,
        matches=matches,
        measures=tuple(replace(m, threshold=limits.get(m.name, math.nan)) for m in by_null.measures),
        null=replace(by_null.null, missing=0),
        evidence_threshold=-limits[OVERALL] if combined else math.nan,
        # What the null leaves undecided, the readers' thresholds decide.
        warnings=(*_notes(by_null, calibration, order, k), *(w for w in by_null.warnings if "undecided" not in w)),
    )


def _summary(case: CaseSummary, matches: list[Match], combined: str, order: list[str]) -> CaseSummary:
    own = {m.measure: m for m in matches}
    identical = case.reason == IDENTICAL
    verdict, nearest = "replica" if identical else "undefined", case.nearest_training_id
    for name in () if identical else order:
        verdict = combined if name == OVERALL else own[name].verdict
        if verdict != "undefined":
            nearest = case.nearest_training_id if name == OVERALL else own[name].nearest_training_id
            break
    flagged = tuple(dict.fromkeys(m.level for m in matches if m.verdict in FLAGGED))
    return replace(
        case,
        verdict=verdict,
        nearest_training_id=nearest,
        levels_flagged=flagged,
        measures_agreeing=sum(m.nearest_training_id == nearest for m in matches) if nearest else 0,
        levels_differ=levels_differ(flagged, matches),
        # An image that the readers' thresholds cannot judge keeps the reason why nothing could be compared.
        reason=case.reason if identical or (verdict, case.verdict) == ("undefined", "undefined") else "",
    )


def _notes(by_null: Verdicts, calibration: Calibration, order: list[str], k: int) -> list[str]:
    """Notes for the result: what decided the verdicts, and the differences between this run and that of the ratings."""
    by = "the combined evidence" if order[0] == OVERALL else order[0]
    notes = [
        f"verdicts come from readers, not from the null: {calibration.describe()}; the overall verdict is that of "
        f"{by}; p and q values and the score are still those of the null"
    ]
    if calibration.origin.k != k:
        notes.append(
            f"the readers' thresholds were set at k = {calibration.origin.k}, the ratios of this run are at k = {k}"
        )
    known = calibration.measures
    for measure in by_null.measures:
        if measure.name not in known:
            notes.append(f"{measure.name}: the calibration has no threshold for it, so it gives no verdict")
        elif known[measure.name].definition != measure.definition:
            other = known[measure.name].definition
            notes.append(f"{measure.name}: the readers' threshold was set for another definition ({other})")
    if OVERALL in known and OVERALL not in order:
        notes.append("the readers' threshold of the combined evidence was set for other measures and is not used")
    return notes


@dataclass(frozen=True)
class _Stored:
    """A threshold as the file holds it; None is an undefined number."""

    measure: str
    level: str
    definition: str
    method: str
    threshold: float | None
    interval: tuple[float | None, float | None]
    apparent: Confusion
    cross_validated: Confusion | None
    out_of_bag_balanced_accuracy: tuple[float | None, float | None, float | None]
    note: str


def _threshold_to_json(t: MeasureThreshold) -> dict[str, Any]:
    threshold = t.reader_threshold
    return {
        "measure": t.measure,
        "level": t.level,
        "definition": t.definition,
        "method": threshold.method,
        "threshold": number(threshold.threshold),
        "interval": to_json(threshold.interval),
        "apparent": _confusion_to_json(threshold.apparent),
        "cross_validated": threshold.cross_validated and _confusion_to_json(threshold.cross_validated),
        "out_of_bag_balanced_accuracy": to_json(dataclasses.astuple(threshold.out_of_bag)),
        "note": threshold.note,
    }


def _confusion_to_json(confusion: Confusion) -> dict[str, Any]:
    """The counts, and for people the shares that follow from them as [value, low, high]."""
    counts = {name: round(value, 6) for name, value in vars(confusion).items()}
    shares = {
        name: to_json(dataclasses.astuple(getattr(confusion, name)))
        for name in ("sensitivity", "specificity", "balanced_accuracy", "positive_predictive_value")
    }
    return {**counts, **shares}


def _threshold_from_json(data: Any) -> MeasureThreshold:
    stored = from_json(_Stored, data)
    low, high = map(nan_for_none, stored.interval)
    threshold = ReaderThreshold(
        stored.method,
        nan_for_none(stored.threshold),
        (low, high),
        stored.apparent,
        Estimate(*map(nan_for_none, stored.out_of_bag_balanced_accuracy)),
        stored.cross_validated,
        stored.note,
    )
    return MeasureThreshold(stored.measure, stored.level, stored.definition, threshold)
