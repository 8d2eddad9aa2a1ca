"""Near-duplicates inside one real cohort or across two, as a table of pairs and a picture of each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.detection.comparison import compare
from replica_detection.detection.detector import collected
from replica_detection.detection.distances import Distances
from replica_detection.detection.identity import identical_cases
from replica_detection.detection.null_distances import cross_fitted_distances
from replica_detection.detection.null_pool import NullPool
from replica_detection.detection.options import DetectionOptions, resolve_device
from replica_detection.detection.queries import CohortQueries, IndexQueries
from replica_detection.detection.run_inputs import cohorts_of_run, index_from
from replica_detection.detection.verdicts import assign_verdicts
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.measures import Measure
from replica_detection.progress import Progress, silent
from replica_detection.results.result import Verdicts
from replica_detection.util.csv_tables import write_rows
from replica_detection.util.files import atomic_write

VERDICTS = {"replica": "near-duplicate", "suspicious": "suspicious", "undecided": "undecided"}


@dataclass(frozen=True)
class DuplicatePair:
    """Two cases of a cohort that are nearer to each other than different patients are.

    `verdict`: `identical` (the same image, of one patient or of two; a case is paired with the first that it equals),
    `near-duplicate` (q <= alpha, or so near that the case was left out of the null), `suspicious` (p <= alpha) or
    `undecided` (nearer than every pair of the null, which is too small to say more). `values` holds each measure's
    value for the pair.
    """

    first_id: str
    second_id: str
    verdict: str
    score: float
    values: dict[str, float]


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates of a cohort.

    Attributes:
        pairs: identical ones first, then by falling score.
        cases: number of cases that were looked at: of the cohort, or of the other one.
        index: the cohort, prepared.
        other: the second cohort; None without one.
        problems: files that were left out.
        warnings: what limits the verdicts.
    """

    pairs: tuple[DuplicatePair, ...]
    cases: int
    index: TrainingIndex = field(repr=False)
    other: Cohort | None = field(repr=False)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes `duplicates.csv` (a row for each pair) and `pairs/NNN.jpg`, numbered as the rows are."""
        from replica_detection.report.pair_loader import PairLoader
        from replica_detection.report.pictures import jpeg

        loader = PairLoader(self.index, self.other)

        def picture(first: str, second: str) -> bytes | None:
            images = loader(second, first)
            return None if images is None else jpeg(images, (second, first, "Difference"))

        write_duplicates(self.pairs, Path(folder), picture)


def find_duplicates(
    cohort: Any,
    other: Any = None,
    *,
    patients: Any = None,
    patient_pattern: str | None = None,
    options: DetectionOptions | None = None,
    measures: Sequence[str] | None = None,
    index_options: IndexOptions | None = None,
    index_folder: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Duplicates:
    """Compares every case with the cases of other patients and names the pairs that are too alike.

    Without `other` inside the cohort, where `first_id` and `second_id` are in order of their names; with it the cases
    of `other` (`second_id`) are looked for in the cohort (`first_id`). The null is the cohort against itself, without
    its outliers: it needs no other data, and most cases are taken to have no duplicate.

    Args:
        cohort: real images, as `Cohort.of` takes them, or an index of them.
        other: a second cohort, such as the test split; None: duplicates inside `cohort`.
        patients, patient_pattern: of images that are read from files, as `Cohort.of` takes them.
        options: how cases are compared; None: the defaults, for `measures`.
        measures: names; give either these or `options`.
        index_options: how the index of `cohort` is built; None: the defaults.
        index_folder: where that index is kept and found again; None: a temporary folder, which goes with the answer.
        progress: called with (stage, done, total).

    Raises:
        ConfigurationError: options that are not known or do not fit the cohort.
        InputError: no image can be used.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        scans = np.random.default_rng(0).random((20, 16, 16, 16))
        scans[7] = scans[3]
        found = rd.find_duplicates(rd.Cohort.from_arrays(scans, spacing=1), measures=["mae", "ssim"])
        assert found.pairs[0].verdict == "identical"
        found.write("duplicates")
        ```
    """
    options = DetectionOptions.of(options, measures)
    source, second = cohorts_of_run(
        cohort, other, patients=patients, patient_pattern=patient_pattern, strict=options.strict
    )
    index = index_from(
        source,
        options=index_options
        or IndexOptions(measures=options.measures, strict=options.strict, workers=options.workers),
        folder=index_folder,
        progress=progress,
    )
    chosen = index.measures(options.measures, resolve_device(options.device), aligning=options.align)
    cases = len(index) if second is None else len(second) + options.null_size
    with options.runner(index, cases) as runner:
        how: dict[str, Any] = {"k": options.k, "runner": runner, "progress": progress}
        if second is None:
            own = IndexQueries(index, range(len(index)))
            found = null = compare(own, index, chosen, across_patients=True, kind="cross-fitted", **how)
        else:
            null = cross_fitted_distances(index, chosen, size=options.null_size, **how)
            queries = CohortQueries(second, index, strict=options.strict)
            found = compare(queries, index, chosen, across_patients=True, **how)
    pool = NullPool.of([null], chosen, index, alpha=options.alpha)
    verdicts = assign_verdicts(found, pool, chosen, index, alpha=options.alpha)
    return Duplicates(
        tuple(_pairs(found, verdicts, chosen, index, inside=second is None)),
        len(found.ids),
        index,
        second,
        (*index.problems, *(second.problems if second is not None else ()), *found.problems),
        (*map(_of_one_cohort, verdicts.warnings), *collected((*index.warnings, *found.warnings), "image")),
    )


def _of_one_cohort(warning: str) -> str:
    """A warning of the null in the words of a cohort that is its own null, and has no validation scans."""
    warning = warning.replace("give unseen real scans as validation", "add scans of other patients")
    return warning.replace("more validation scans would settle", "more scans of other patients would settle")


def _pairs(
    found: Distances, verdicts: Verdicts, measures: Sequence[Measure], index: TrainingIndex, *, inside: bool
) -> list[DuplicatePair]:
    """The pairs that are too alike, each once, identical ones first, then by falling score."""
    position = {id: i for i, id in enumerate(index.ids)}
    same = identical_cases(found, index, measures)
    pairs: dict[tuple[str, str], DuplicatePair] = {}
    for i, case in enumerate(verdicts.summary):
        twin = next(iter(same[i]), None)
        near = case.nearest_training_id if twin is None else index.ids[twin]
        # What was too near for the null of this very cohort is no mere suspicion.
        too_near = inside and case.synthetic_id in verdicts.null.removed
        verdict = "near-duplicate" if too_near else VERDICTS.get(case.verdict, "")
        if twin is not None:
            verdict = "identical"
        if not verdict or not near:
            continue
        ids = (near, case.synthetic_id)
        first, second = (min(ids), max(ids)) if inside else ids
        values = {m.name: _value(m, found, i, position[near], identical=twin is not None) for m in measures}
        pair = DuplicatePair(first, second, verdict, case.score, values)
        if (first, second) not in pairs or pairs[first, second].score < pair.score:
            pairs[first, second] = pair
    return sorted(pairs.values(), key=lambda p: (p.verdict != "identical", -p.score))


def _value(measure: Measure, found: Distances, row: int, column: int, *, identical: bool) -> float:
    """The measure's value of a pair; NaN where it was not computed."""
    at = np.flatnonzero(found.choices[row] == column)
    distance = float(found.by_measure[measure.name].chosen[row, at[0]]) if len(at) else math.inf
    if not math.isfinite(distance) and identical and measure.level != "segmentation":
        distance = 0.0  # a pair of one patient
    return measure.value(distance) if math.isfinite(distance) else math.nan


def write_duplicates(pairs: Sequence[DuplicatePair], folder: Path, picture: Callable[[str, str], bytes | None]) -> None:
    """Writes `duplicates.csv` (a row for each pair) and `pairs/NNN.jpg`, numbered as the rows are.

    Args:
        picture: gives the JPEG of (first id, second id); None where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measures = list(pairs[0].values) if pairs else []
    pictures = folder / "pairs"
    for old in pictures.glob("*.jpg") if pictures.is_dir() else ():
        old.unlink()
    with atomic_write(folder / "duplicates.csv") as f:
        write_rows(f, [["number", "first_id", "second_id", "verdict", "score", *measures]])
        for number, pair in enumerate(pairs, 1):
            row = [number, pair.first_id, pair.second_id, pair.verdict, pair.score]
            write_rows(f, [[*row, *(pair.values[m] for m in measures)]])
            drawn = picture(pair.first_id, pair.second_id)
            if drawn is not None:
                pictures.mkdir(exist_ok=True)
                with atomic_write(pictures / f"{number:03d}.jpg", "wb") as g:
                    g.write(drawn)
