"""Tables of the readers' ratings: agreement, consensus, thresholds, and the validity of a threshold elsewhere.

The last ones answer two questions that RELICT left open: the dependence of a threshold on k, and its accuracy in
another cohort.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.readers.agreement import PairAgreement, RankCorrelation
from replica_detection.readers.calibration import Calibration
from replica_detection.readers.consensus import OVERALL, Consensus, labelled, replica_likeness
from replica_detection.results.result import FLAGGED, DetectionResult
from replica_detection.statistics.distance_ratio import nearest
from replica_detection.statistics.intervals import Estimate
from replica_detection.statistics.thresholds import Confusion, ReaderThreshold, reader_threshold
from replica_detection.util.csv_tables import estimate_columns, write_csv

NEIGHBOURHOODS = (10, 25, 50, 100)
_NOT_FROM_NEIGHBOURS = (
    "its ratios do not follow from the stored neighbours (several scans of one patient count once: the training index "
    "is needed where it was)"
)
_SHARES = ("sensitivity", "specificity", "balanced_accuracy", "positive_predictive_value")


# ----------------------------------------------------------------------------------------------- sensitivity to k


@dataclass(frozen=True)
class ThresholdAtK:
    """A measure's threshold with the distance ratio over k neighbours; None if it cannot be computed, see `note`."""

    measure: str
    k: int
    reader_threshold: ReaderThreshold | None
    note: str = ""


def sensitivity_to_k(
    result: DetectionResult,
    labels: dict[str, Consensus],
    groups: np.ndarray | None,
    *,
    ks: Sequence[int] = NEIGHBOURHOODS,
    method: str = "balanced-accuracy",
    seed: int = 0,
) -> list[ThresholdAtK]:
    """Thresholds for several neighbourhoods, from the neighbours that the result stores.

    A result of a run with a smaller k does not hold enough neighbours, and the ratios of some measures do not follow
    from the stored neighbours: `note` says so in these rows. A k above the size of the training cohort means all of it.

    Args:
        groups: (N,) patient of each training case (`TrainingIndex.patients`), None where each is its own.
    """
    rows = []
    for name in result.neighbors.training:
        stored = {m.synthetic_id: m.ratio for m in result.matches if m.measure == name}
        own, unknown = _ratios_at(result, name, result.run.k, groups)
        known = [(own[c], stored[c]) for c in own if c not in unknown and not math.isnan(own[c])]
        if any(not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in known):
            rows += [ThresholdAtK(name, k, None, _NOT_FROM_NEIGHBOURS) for k in ks]
            continue
        for k in ks:
            ratios, short = _ratios_at(result, name, k, groups)
            if short & labels.keys():
                held = result.neighbors.training[name].shape[1]
                rows.append(ThresholdAtK(name, k, None, f"the result holds {held} neighbours: run detect with k = {k}"))
            else:
                rows.append(ThresholdAtK(name, k, reader_threshold(*labelled(ratios, labels), method, seed=seed)))
    return rows


def _ratios_at(
    result: DetectionResult, measure: str, k: int, groups: np.ndarray | None
) -> tuple[dict[str, float], set[str]]:
    """Ratio over k neighbours of each case, and the cases with too few stored neighbours for it."""
    size = len(result.neighbors.training_ids)
    patient = np.arange(size) if groups is None else groups
    training, distance = result.neighbors.training[measure], result.neighbors.distance[measure]
    ratios: dict[str, float] = {}
    short: set[str] = set()
    for i, case in enumerate(result.neighbors.synthetic_ids):
        named = training[i] >= 0
        row = np.full((1, size), np.inf)
        row[0, training[i][named]] = distance[i][named]
        # A gap in the list means that no further training case has a finite distance.
        whole = len(named) >= size or not named.all() or len(np.unique(patient[training[i][named]])) >= k
        ratios[case] = float(nearest(row, k, groups).ratio[0])
        if not whole:
            short.add(case)
    return ratios, short


# -------------------------------------------------------------------------------------------- one cohort to another


@dataclass(frozen=True)
class ThresholdTransfer:
    """A threshold of another cohort applied to this one.

    `here` counts its flags against `reference`: `readers` of this cohort, or `null`, this run's verdicts. `there` is
    the cross-validated balanced accuracy in the cohort of the threshold, `own` that of a threshold from this cohort.
    """

    measure: str
    method: str
    threshold: float
    cases: int
    reference: str
    here: Confusion
    there: Estimate
    own: Estimate
    own_threshold: float


def transfer(
    calibration: Calibration, result: DetectionResult, labels: dict[str, Consensus] | None, *, seed: int = 0
) -> list[ThresholdTransfer]:
    """Accuracy of every threshold of a calibration on the cases of a result that was not used for it.

    Args:
        labels: consensus of readers on this result; None: the verdicts of this run are the reference, for all cases
            but undecided ones.

    Raises:
        ConfigurationError: no measure in common.
    """
    values = replica_likeness(result)
    if set(values) != {t.measure for t in calibration.thresholds}:
        values.pop(OVERALL)  # combined from other measures, so not comparable
    verdicts = {(m.measure, m.synthetic_id): m.verdict for m in result.matches}
    verdicts |= {(OVERALL, c.synthetic_id): c.verdict for c in result.summary}
    flags = {of: verdict in FLAGGED for of, verdict in verdicts.items() if verdict != "undecided"}
    rows = []
    for t in calibration.thresholds:
        of_case = values.get(t.measure)
        if of_case is None or math.isnan(t.reader_threshold.threshold):
            continue
        reference = (
            labels
            if labels is not None
            else {c: Consensus(c, flags[t.measure, c], math.nan, (), 0) for c in of_case if (t.measure, c) in flags}
        )
        number, replica = labelled(of_case, reference)
        own = reader_threshold(number, replica, t.reader_threshold.method, seed=seed) if labels is not None else None
        rows.append(
            ThresholdTransfer(
                t.measure,
                t.reader_threshold.method,
                t.reader_threshold.threshold,
                len(number),
                "readers" if labels is not None else "null",
                Confusion.of(replica, number <= t.reader_threshold.threshold + 1e-12),
                _held_out(t.reader_threshold),
                _held_out(own),
                own.threshold if own else math.nan,
            )
        )
    if not rows:
        raise ConfigurationError("the calibration and the result have no measure in common")
    return rows


def _held_out(threshold: ReaderThreshold | None) -> Estimate:
    return threshold.cross_validated.balanced_accuracy if threshold and threshold.cross_validated else Estimate()


# -------------------------------------------------------------------------------------------------------- as files


def write_agreement(path: Path, pairs: Iterable[PairAgreement]) -> None:
    kappas = estimate_columns("kappa", "linear_kappa", "quadratic_kappa")
    columns = ("first", "second", "cases", "percent", *kappas, "replica_percent", *estimate_columns("replica_kappa"))
    rows = ({**_fields(p), "first": p.readers[0], "second": p.readers[1]} for p in pairs)
    write_csv(path, columns, rows)


def write_consensus(path: Path, labels: dict[str, Consensus], result: DetectionResult) -> None:
    """The readers' consensus on each rated image beside the run's verdict."""
    of_the_run = ("verdict", "score", "nearest_training_id", "reason")
    columns = ("synthetic_id", "replica", "mean", "readers", "training_ids", *of_the_run)
    by_case = {c.synthetic_id: c for c in result.summary}
    rows = (
        {
            **_fields(label),
            **{name: getattr(by_case[case], name) for name in of_the_run},
        }
        for case, label in labels.items()
    )
    write_csv(path, columns, rows)


def write_correlations(path: Path, correlations: Iterable[RankCorrelation]) -> None:
    columns = ("measure", "cases", *estimate_columns("spearman"), "kendall", "other_candidate")
    write_csv(path, columns, map(_fields, correlations))


def write_thresholds(path: Path, calibration: Calibration) -> None:
    """Apparent accuracy (on the images that the threshold was chosen on), cross-validated and out-of-bag accuracy."""
    write_csv(
        path,
        ("measure", "level", *_THRESHOLD_COLUMNS),
        (
            {"measure": t.measure, "level": t.level, **_threshold_row(t.reader_threshold)}
            for t in calibration.thresholds
        ),
    )


def write_sensitivity_to_k(path: Path, rows: Iterable[ThresholdAtK]) -> None:
    write_csv(
        path,
        ("measure", "k", *_THRESHOLD_COLUMNS),
        (
            {
                "measure": r.measure,
                "k": r.k,
                **(_threshold_row(r.reader_threshold) if r.reader_threshold else {"note": r.note}),
            }
            for r in rows
        ),
    )


def write_transfer(path: Path, rows: Iterable[ThresholdTransfer]) -> None:
    names = ("measure", "method", "threshold", "own_threshold", "cases", "reference")
    write_csv(
        path,
        (*names, *estimate_columns(*_SHARES, "there", "own")),
        ({**_fields(r), **_shares(r.here)} for r in rows),
    )


_THRESHOLD_COLUMNS = (
    "method",
    "threshold",
    "threshold_low",
    "threshold_high",
    *estimate_columns(*(f"apparent_{s}" for s in _SHARES), *(f"cross_validated_{s}" for s in _SHARES)),
    *estimate_columns("out_of_bag_balanced_accuracy"),
    "note",
)


def _threshold_row(threshold: ReaderThreshold) -> dict[str, object]:
    row: dict[str, object] = {
        "method": threshold.method,
        "threshold": Estimate(threshold.threshold, *threshold.interval),
        "out_of_bag_balanced_accuracy": threshold.out_of_bag,
        "note": threshold.note,
    }
    row |= {f"apparent_{name}": value for name, value in _shares(threshold.apparent).items()}
    if threshold.cross_validated:
        row |= {f"cross_validated_{name}": value for name, value in _shares(threshold.cross_validated).items()}
    return row


def _shares(confusion: Confusion) -> dict[str, Estimate]:
    return {name: getattr(confusion, name) for name in _SHARES}


def _fields(row: object) -> dict[str, object]:
    """The fields of a dataclass by name; nested dataclasses stay objects."""
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}  # type: ignore[arg-type]
