"""calibrate: thresholds from readers' ratings of a result, with tables of what they are worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from replica_detection.detection.run_inputs import as_result, index_of
from replica_detection.errors import ConfigurationError, ReplicaDetectionError
from replica_detection.readers.agreement import (
    PairAgreement,
    RankCorrelation,
    overall_alpha,
    pair_agreements,
    rank_correlations,
)
from replica_detection.readers.calibration import Calibration
from replica_detection.readers.calibration import calibrate as thresholds_of
from replica_detection.readers.consensus import Consensus, consensus, resolved
from replica_detection.readers.rating_tables import read_ratings
from replica_detection.readers.ratings import Rating
from replica_detection.readers.tables import (
    NEIGHBOURHOODS,
    ThresholdAtK,
    ThresholdTransfer,
    sensitivity_to_k,
    transfer,
    write_agreement,
    write_consensus,
    write_correlations,
    write_sensitivity_to_k,
    write_thresholds,
    write_transfer,
)
from replica_detection.results.result import DetectionResult

CALIBRATION_FILE = "calibration.json"
Ratings = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Sequence[Rating]


@dataclass(frozen=True)
class ReaderStudy:
    """Agreement of readers on a result, and thresholds from their ratings.

    Attributes:
        result: the rated run.
        calibration: thresholds for `detect(calibration=...)`; None without ratings.
        rule: how several readers became one label.
        agreement: of each two readers.
        alpha: Krippendorff's ordinal alpha of all readers; NaN where it is undefined.
        labels: consensus on each rated image, by synthetic id.
        correlations: rank correlation of each measure with the readers' mean rating.
        by_k: thresholds for several neighbourhoods of the distance ratio.
        unknown: rated images that are not in the result and are left out.
        carried: thresholds of another cohort applied to this one.
    """

    result: DetectionResult
    calibration: Calibration | None
    rule: str
    agreement: tuple[PairAgreement, ...] = ()
    alpha: float = float("nan")
    labels: dict[str, Consensus] | None = None
    correlations: tuple[RankCorrelation, ...] = ()
    by_k: tuple[ThresholdAtK, ...] = ()
    unknown: tuple[str, ...] = ()
    carried: tuple[ThresholdTransfer, ...] = ()

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tables that there are into `folder` (made if missing).

        With ratings `agreement.csv`, `consensus.csv`, `thresholds.csv`, `correlation.csv` and `sensitivity_to_k.csv`;
        with the thresholds of another cohort `transfer.csv`. `calibration.write(path)` writes the thresholds for later
        runs.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.calibration is not None and self.labels is not None:
            write_agreement(folder / "agreement.csv", self.agreement)
            write_consensus(folder / "consensus.csv", self.labels, self.result)
            write_thresholds(folder / "thresholds.csv", self.calibration)
            write_correlations(folder / "correlation.csv", self.correlations)
            write_sensitivity_to_k(folder / "sensitivity_to_k.csv", self.by_k)
        if self.carried:
            write_transfer(folder / "transfer.csv", self.carried)


def calibrate(
    result: DetectionResult | str | os.PathLike[str],
    ratings: Ratings | None = None,
    *,
    rule: str = "majority",
    method: str = "balanced-accuracy",
    ks: Sequence[int] = NEIGHBOURHOODS,
    apply: Calibration | str | os.PathLike[str] | None = None,
) -> ReaderStudy:
    """Turns readers' ratings into thresholds, and says how far readers agree and how much a threshold is worth.

    A reader looks at a synthetic image beside its nearest training case and rates 1 (different), 2 (similar, but
    another anatomy), 3 (nearly the same anatomy) or 4 (the same scan). 50 images are few, 100 are better, and both
    kinds must be among them.

    Args:
        result: a finished run, or its folder.
        ratings: files of ratings (a CSV `synthetic_id,rating[,training_id,reader,...]`, or the store of a server), or
            ratings. None: only `apply` is looked at.
        rule: how several readers become one label: `majority`, `any`, `all` or `mean`.
        method: which thresholds verdicts are to use: `balanced-accuracy` (grid of 0.01, RELICT) or `youden` (all cuts,
            Truong et al.). The calibration holds both.
        ks: neighbourhoods, in cases, for the table of how much a threshold depends on k.
        apply: the calibration of another cohort, or its file: how good are its thresholds here? Without ratings the
            run's own verdicts are the reference.

    Raises:
        ConfigurationError: neither ratings nor `apply`, an unknown rule or method, no rating of an image of the result,
            all images of one kind, or no measure in common with `apply`.
        InputError: a file cannot be read.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        training, unseen = rng.random((12, 16, 16, 16)), rng.random((10, 16, 16, 16))
        images = np.concatenate([training[:6], rng.random((6, 16, 16, 16))])
        training, unseen, images = (rd.Cohort.from_arrays(a, spacing=1) for a in (training, unseen, images))
        result = rd.detect(images, training, validation=unseen, measures=["mae", "ssim"])
        ids = [case.synthetic_id for case in result.summary]
        ratings = [rd.Rating(f"r{n}", "anna", id, "", 4 if n < 6 else 1) for n, id in enumerate(ids)]
        study = rd.calibrate(result, ratings)
        study.calibration.write("calibration.json")
        assert study.calibration.measures["ssim"].reader_threshold.apparent.balanced_accuracy.value == 1
        ```
    """
    if not ratings and apply is None:
        raise ConfigurationError("give ratings, or the calibration of another cohort to apply")
    if not ks or min(ks) < 1:
        raise ConfigurationError(f"ks is {list(ks)}: give whole numbers from 1 on, such as 10, 25, 50, 100")
    read = as_result(result)
    study = ReaderStudy(read, None, rule)
    if ratings:
        study = _of_ratings(result, read, ratings, rule, method, ks)
    if apply is None:
        return study
    other = apply if isinstance(apply, Calibration) else Calibration.read(Path(apply))
    return replace(study, carried=tuple(transfer(other, read, study.labels)))


def _of_ratings(
    source: DetectionResult | str | os.PathLike[str],
    result: DetectionResult,
    ratings: Ratings,
    rule: str,
    method: str,
    ks: Sequence[int],
) -> ReaderStudy:
    given, files = ratings_and_files(ratings)
    known, unknown = resolved(given, result)
    labels = consensus(known, rule)
    where = "" if isinstance(source, DetectionResult) else os.fspath(source)
    return ReaderStudy(
        result,
        thresholds_of(result, given, rule=rule, method=method, source=where, files=files),
        rule,
        tuple(pair_agreements(known)),
        overall_alpha(known),
        labels,
        tuple(rank_correlations(labels, result)),
        tuple(sensitivity_to_k(result, labels, _patients(result), ks=ks, method=method)),
        tuple(unknown),
    )


def ratings_and_files(ratings: Ratings) -> tuple[list[Rating], list[str]]:
    """The ratings, and the files that they come from."""
    several = [ratings] if isinstance(ratings, (str, os.PathLike, Rating)) else list(ratings)
    for one in several:
        if not isinstance(one, (str, os.PathLike, Rating)):
            raise ConfigurationError(f"ratings holds a {type(one).__name__}: give objects of class Rating, or files")
    given = [r for r in several if isinstance(r, Rating)]
    files = [Path(r) for r in several if not isinstance(r, Rating)]
    return [*given, *(read_ratings(files) if files else ())], [str(f) for f in files]


def _patients(result: DetectionResult) -> np.ndarray | None:
    """(N,) patient of each training case, while the index of the run is where it was."""
    try:
        index = index_of(result)
    except ReplicaDetectionError:
        return None
    return index.patients if index.ids == result.neighbors.training_ids else None
