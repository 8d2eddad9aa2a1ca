"""The inputs of a result that was read: found where they were, else where they moved together with it.

Imports with numpy alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from replica_detection.errors import InputError
from replica_detection.io.arrays import SOURCE
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.results.places import Places, cohort_at
from replica_detection.results.result import DetectionResult

_CHANGED, _AGAIN = "changed since the run compared it", "Put the old file back, or run `replica-detection detect` again"


def index_places(result: DetectionResult) -> list[Path]:
    """The folders where the index of a result may lie now, the most likely one first. Raises InputError for none."""
    return _places(result).of_input("index", result.run.index)


def masks_of_result(result: DetectionResult) -> Path | None:
    """The folder of masks that the run noted, where it lies now; None where it noted none.

    Raises:
        InputError: it is no longer there.
    """
    noted = result.run.options.get("masks")
    return None if noted is None else _places(result).of_input("masks", noted)[0]


def synthetic_of_result(result: DetectionResult) -> Cohort:
    """The images that a run compared, with the masks that it noted; what changed since is left out as a problem.

    Raises:
        InputError: the images are no longer there, or all of them are others now.
    """
    return synthetic_and_changed(result)[0]


def synthetic_and_changed(result: DetectionResult) -> tuple[Cohort, dict[str, InputError]]:
    """As `synthetic_of_result`, and for the id of each image that changed since the run the error that says so."""
    places, stated = _places(result), result.run.synthetic.source
    if stated == SOURCE:
        return Cohort.read(stated), {}  # which says that they were in memory
    ids = result.neighbors.synthetic_ids
    found = places.of_input("synthetic", stated)
    return _without(*cohort_at(found, places.synthetic, ids, masks=masks_of_result(result)))


def validation_of_result(result: DetectionResult, **reading: Any) -> Cohort | None:
    """The unseen real images of a run, found as the synthetic ones are; None where it had none.

    Args:
        reading: `masks`, `patients` and `patient_pattern`, as `Cohort.read` takes them.

    Raises:
        InputError: the images are no longer there, or all of them are others now.
    """
    known, places = result.run.validation, _places(result)
    if known is None:
        return None
    if known.source == SOURCE:
        return Cohort.read(known.source)
    states = places.validation
    ids = states or (*result.run.null.case_ids, *result.run.null.removed)
    return _without(*cohort_at(places.of_input("validation", known.source), states, ids, **reading))[0]


def _without(cohort: Cohort, changed: set[str]) -> tuple[Cohort, dict[str, InputError]]:
    """The cohort without the changed cases, which are among its problems, and the error for each."""
    errors = {c.id: InputError(c.image, _CHANGED, _AGAIN) for c in cohort.cases if c.id in changed}
    if not errors:
        return cohort, {}
    kept = tuple(c for c in cohort.cases if c.id not in changed)
    problems = (*cohort.problems, *map(Problem.of, errors.values()))
    return replace(cohort, cases=kept, problems=problems), errors


def _places(result: DetectionResult) -> Places:
    return result.places or Places()
