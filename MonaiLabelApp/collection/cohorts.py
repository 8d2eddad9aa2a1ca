"""The cohorts that the server was started with, and the state of their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from replica_detection.io.cohort import Cohort
from replica_detection_server.settings.configuration import Configuration


def studies(configuration: Configuration) -> Cohort:
    """The synthetic images, by the rule of `studies.py`. May be empty."""
    from replica_detection_server.collection.studies import Studies

    return Studies.of(configuration).now().cohort


def training(configuration: Configuration) -> Cohort | None:
    """The training images, with their patients; None where an index stands for them."""
    if configuration.training is None:
        return None
    cohort = Cohort.read(configuration.training, masks=configuration.training_masks)
    others = () if configuration.validation is None or configuration.patients is None else _ids(configuration)
    return cohort.with_patients(configuration.patients, configuration.patient_pattern, beside=others)


def validation(configuration: Configuration) -> Cohort | None:
    """The unseen real images, with their patients where the table or the pattern knows them; None without any."""
    if configuration.validation is None:
        return None
    cohort = Cohort.read(configuration.validation, masks=configuration.validation_masks)
    return cohort.with_patients(configuration.patients, configuration.patient_pattern, required=False, rows=False)


def _ids(configuration: Configuration) -> tuple[str, ...]:
    """Ids of the unseen images, which the table of patients may list beside the training images."""
    assert configuration.validation is not None
    return Cohort.read(configuration.validation).ids


Files = tuple[tuple[int, int], ...]


def state_of(files: Sequence[Path]) -> Files:
    """Size and time of each file, by which a changed one is known; (-1, -1) for one that is gone."""
    found = []
    for path in files:
        try:
            status = path.stat()
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((-1, -1))
    return tuple(found)
