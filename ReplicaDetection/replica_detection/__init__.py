"""Replica Detection: finds synthetic medical images that are replicas of a real patient's scan.

`import replica_detection as rd` is the interface from Python: one function for each command, the types that they take
and return, and the errors. Every name loads its module when it is first used, so that the import itself is quick and
needs no other package.

Example:
    ```python
    import numpy as np
    import replica_detection as rd

    rng = np.random.default_rng(0)
    training, unseen = rng.random((12, 16, 16, 16)), rng.random((10, 16, 16, 16))
    images = np.concatenate([training[:1], rng.random((3, 16, 16, 16))])
    training, unseen, images = (rd.Cohort.from_arrays(a, spacing=1) for a in (training, unseen, images))
    index = rd.build_index(training, "training.rdindex", measures=["mae", "ssim"])
    result = rd.detect(images, index, validation=unseen)
    assert [case.verdict for case in result.summary][0] == "replica"
    result.write("result")
    result.write_report("result/report")
    ```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replica_detection.version import __version__

if TYPE_CHECKING:
    from replica_detection.audit.cohort_duplicates import DuplicatePair, Duplicates, find_duplicates
    from replica_detection.audit.demo import Outcome, OutcomeRow, run_demo
    from replica_detection.audit.filtering import Decision, FilteredSet, filter_replicas
    from replica_detection.audit.mask_quality import DegradedMasks, MaskQuality, mask_quality
    from replica_detection.audit.masks import SegmentedCohort, segment
    from replica_detection.audit.memorization import SetFigure
    from replica_detection.audit.memorization_metrics import SetMetric
    from replica_detection.audit.memorization_tables import AssessedSet
    from replica_detection.audit.planted_verdicts import SelfTest, SelfTestRow
    from replica_detection.audit.reader_study import ReaderStudy, calibrate
    from replica_detection.audit.selftest import selftest
    from replica_detection.audit.set_assessment import SetAssessment, assess_set
    from replica_detection.detection.detector import detect
    from replica_detection.detection.options import DetectionOptions
    from replica_detection.embedding.training import EncoderReport, train_encoder
    from replica_detection.embedding.training_options import EncoderOptions
    from replica_detection.errors import (
        AccessDeniedError,
        CancelledError,
        ConfigurationError,
        ConnectionLostError,
        FullDiskError,
        IndexFormatError,
        InputError,
        NotFoundError,
        RatingConflictError,
        ReplicaDetectionError,
        ServerBusyError,
        ServerError,
        StorageError,
        UnexpectedAnswerError,
        UnreachableError,
    )
    from replica_detection.index.build import append_cases, build_index
    from replica_detection.index.options import IndexOptions
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.io.cohort import Case, Cohort, Problem
    from replica_detection.progress import Progress
    from replica_detection.readers.calibration import Calibration
    from replica_detection.readers.ratings import Rating
    from replica_detection.report import write_report
    from replica_detection.results.result import CaseSummary, DetectionResult, Match, Neighbors, RunInfo
    from replica_detection.segmentation.cohort import MaskFile
    from replica_detection.segmentation.training import SegmentationReport, train_segmentation
    from replica_detection.segmentation.training_options import SegmentationOptions
    from replica_detection.statistics.intervals import Estimate

__all__ = [
    "AccessDeniedError",
    "AssessedSet",
    "Calibration",
    "CancelledError",
    "Case",
    "CaseSummary",
    "Cohort",
    "ConfigurationError",
    "ConnectionLostError",
    "Decision",
    "DegradedMasks",
    "DetectionOptions",
    "DetectionResult",
    "DuplicatePair",
    "Duplicates",
    "EncoderOptions",
    "EncoderReport",
    "Estimate",
    "FilteredSet",
    "FullDiskError",
    "IndexFormatError",
    "IndexOptions",
    "InputError",
    "MaskFile",
    "MaskQuality",
    "Match",
    "Neighbors",
    "NotFoundError",
    "Outcome",
    "OutcomeRow",
    "Problem",
    "Progress",
    "Rating",
    "RatingConflictError",
    "ReaderStudy",
    "ReplicaDetectionError",
    "RunInfo",
    "SegmentationOptions",
    "SegmentationReport",
    "SegmentedCohort",
    "SelfTest",
    "SelfTestRow",
    "ServerBusyError",
    "ServerError",
    "SetAssessment",
    "SetFigure",
    "SetMetric",
    "StorageError",
    "TrainingIndex",
    "UnexpectedAnswerError",
    "UnreachableError",
    "__version__",
    "append_cases",
    "assess_set",
    "build_index",
    "calibrate",
    "detect",
    "filter_replicas",
    "find_duplicates",
    "mask_quality",
    "run_demo",
    "segment",
    "selftest",
    "train_encoder",
    "train_segmentation",
    "write_report",
]

# The module that holds each name; the imports above say the same to type checkers.
_NAMES_OF = {
    "audit.cohort_duplicates": (
        "DuplicatePair",
        "Duplicates",
        "find_duplicates",
    ),
    "audit.demo": (
        "Outcome",
        "OutcomeRow",
        "run_demo",
    ),
    "audit.filtering": (
        "Decision",
        "FilteredSet",
        "filter_replicas",
    ),
    "audit.mask_quality": (
        "DegradedMasks",
        "MaskQuality",
        "mask_quality",
    ),
    "audit.masks": (
        "SegmentedCohort",
        "segment",
    ),
    "audit.memorization": ("SetFigure",),
    "audit.memorization_metrics": ("SetMetric",),
    "audit.memorization_tables": ("AssessedSet",),
    "audit.planted_verdicts": (
        "SelfTest",
        "SelfTestRow",
    ),
    "audit.reader_study": (
        "ReaderStudy",
        "calibrate",
    ),
    "audit.selftest": ("selftest",),
    "audit.set_assessment": (
        "SetAssessment",
        "assess_set",
    ),
    "detection.detector": ("detect",),
    "detection.options": ("DetectionOptions",),
    "embedding.training": (
        "EncoderReport",
        "train_encoder",
    ),
    "embedding.training_options": ("EncoderOptions",),
    "errors": (
        "AccessDeniedError",
        "CancelledError",
        "ConfigurationError",
        "ConnectionLostError",
        "FullDiskError",
        "IndexFormatError",
        "InputError",
        "NotFoundError",
        "RatingConflictError",
        "ReplicaDetectionError",
        "ServerBusyError",
        "ServerError",
        "StorageError",
        "UnexpectedAnswerError",
        "UnreachableError",
    ),
    "index.build": (
        "append_cases",
        "build_index",
    ),
    "index.options": ("IndexOptions",),
    "index.training_index": ("TrainingIndex",),
    "io.cohort": (
        "Case",
        "Cohort",
        "Problem",
    ),
    "progress": ("Progress",),
    "readers.calibration": ("Calibration",),
    "readers.ratings": ("Rating",),
    "report": ("write_report",),
    "results.result": (
        "CaseSummary",
        "DetectionResult",
        "Match",
        "Neighbors",
        "RunInfo",
    ),
    "segmentation.cohort": ("MaskFile",),
    "segmentation.training": (
        "SegmentationReport",
        "train_segmentation",
    ),
    "segmentation.training_options": ("SegmentationOptions",),
    "statistics.intervals": ("Estimate",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads the module of a public name (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'replica_detection' has no attribute '{name}'")
    from importlib import import_module

    # Loading the report room gives results their method `write_report`.
    import_module("replica_detection.report")
    value = getattr(import_module(f"replica_detection.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
