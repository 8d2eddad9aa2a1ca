"""detect(): the whole pipeline, from two cohorts to a DetectionResult."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.detection.comparison import Distances, compare
from replica_detection.detection.null_distances import cross_fitted_distances, validation_distances
from replica_detection.detection.queries import CohortQueries
from replica_detection.detection.verdicts import assign_verdicts
from replica_detection.errors import ConfigurationError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import MeasureOutput
from replica_detection.preparation.loading import nothing_usable
from replica_detection.progress import Progress, silent
from replica_detection.readers.calibration import Calibration, applied
from replica_detection.registration.transforms import alignment_of
from replica_detection.results.result import AlignedPair, CohortInfo, DetectionResult, RunInfo
from replica_detection.util.versions import package_versions


@dataclass(frozen=True)
class DetectionOptions:
    """How a detection is run.

    `measures` None: all that the index serves, without `align` only those that compare images as they lie. `k`:
    neighbourhood of the distance ratio. `alpha`: error rate of the verdicts. `device`: auto, cpu or cuda.
    `null_size`: training cases used at most for a cross-fitted null.
    `calibration`: readers' thresholds, which then make the verdicts instead of the null.
    """

    measures: tuple[str, ...] | None = None
    k: int = 50
    alpha: float = 0.05
    device: str = "auto"
    null_size: int = 500
    strict: bool = False
    align: bool = True
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigurationError(f"--alpha is {self.alpha}: it must lie between 0 and 1")
        if self.k < 1:
            raise ConfigurationError(f"--k is {self.k}: it must be at least 1")


class Detector:
    """A training index with its null, which then compares one cohort after another, or one image at a time.

    Args:
        index: the training cohort.
        validation: real cases that the generator never saw; without them the null comes from the training cohort
            itself, each case compared with the cases of other patients.
        progress: called with (stage, done, total).

    Raises:
        ConfigurationError: options that do not fit the index.
    """

    def __init__(
        self,
        index: TrainingIndex,
        *,
        validation: Cohort | None = None,
        options: DetectionOptions | None = None,
        progress: Progress = silent,
    ):
        self.index, self.validation, self.options = index, validation, options or DetectionOptions()
        self.device = resolve_device(self.options.device)
        self.measures = index.measures(self.options.measures, self.device, aligning=self.options.align)
        self._clock = _Clock()
        with self._clock.stage("null"):
            self.null = (
                cross_fitted_distances(index, self.measures, size=self.options.null_size, progress=progress)
                if validation is None
                else validation_distances(
                    validation, index, self.measures, strict=self.options.strict, progress=progress
                )
            )

    def detect(self, synthetic: Cohort, *, masks: Path | None = None, progress: Progress = silent) -> DetectionResult:
        """Compares every case of a cohort with every training case and says which are replicas.

        Args:
            synthetic: the images to be verdicts.
            masks: where the cohort's masks were read from; only noted in the result, for its pictures.
            progress: called with (stage, done, total).

        Raises:
            InputError: no image can be read, or the first that cannot with `strict`.
        """
        index, options, null = self.index, self.options, self.null
        clock = _Clock(dict(self._clock.seconds))
        with clock.stage("compare"):
            queries = CohortQueries(synthetic, index, strict=options.strict)
            found = compare(queries, index, self.measures, progress=progress)
        if found.placements:
            clock.seconds["align"] = round(found.seconds_aligning, 3)  # a part of "compare"
        if not found.ids:
            raise nothing_usable(synthetic.source, (*synthetic.problems, *found.problems))
        with clock.stage("statistics"):
            verdicts = assign_verdicts(found, null, self.measures, index, k=options.k, alpha=options.alpha)
            if options.calibration is not None:
                verdicts = applied(verdicts, options.calibration, min(options.k, len(index)))
        run = RunInfo(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            alpha=options.alpha,
            k=min(options.k, len(index)),
            device=self.device,
            profile={**index.preparation.to_json(), "description": index.preparation.describe()},
            synthetic=_cohort_info(synthetic, found),
            training=CohortInfo(index.source, len(index), tuple((p.path, p.message) for p in index.problems)),
            validation=None if self.validation is None else _cohort_info(self.validation, null),
            index=str(index.folder),
            measures=verdicts.measures,
            null=verdicts.null,
            evidence=verdicts.evidence,
            evidence_threshold=verdicts.evidence_threshold,
            timings=clock.seconds,
            versions=package_versions(),
            warnings=(
                *verdicts.warnings,
                *self._saw_training(),
                *collected(index.warnings, "training image"),
                *collected(null.warnings if self.validation is not None else (), "validation image"),
                *collected(found.warnings, "synthetic image"),
            ),
            details=self._details(found, verdicts.null.removed),
            options={
                "null_size": options.null_size,
                "strict": options.strict,
                "align": any(m.stage == "aligned" for m in self.measures),
                "masks": None if masks is None else str(masks),
                "segmenter": index.segmenter_settings,
                "calibration": None if options.calibration is None else options.calibration.describe(),
            },
        )
        alignments = tuple(_alignments(found, index))
        return DetectionResult(verdicts.summary, verdicts.matches, verdicts.neighbors, run, alignments)

    def _saw_training(self) -> Iterator[str]:
        names = [m.name for m in self.measures if m.saw_training]
        if names and self.validation is None:
            yield (
                f"{', '.join(names)}: the embedding was trained on the training cohort, so that training images are no "
                "fair null for it; give unseen real images with --validation"
            )

    def _details(self, found: Distances, removed: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
        """What measures have to say beyond distances, by measure and column."""
        kept = [i for i, id in enumerate(self.null.ids) if id not in set(removed)]
        described = {}
        for m in self.measures:
            distances = MeasureOutput(found.by_measure[m.name], found.details.get(m.name, {}))
            described[m.name] = m.describe(distances, self.null.by_measure[m.name][kept], self.index.ids)
        return {name: columns for name, columns in described.items() if columns}


def detect(
    synthetic: Cohort,
    index: TrainingIndex,
    *,
    validation: Cohort | None = None,
    options: DetectionOptions | None = None,
    masks: Path | None = None,
    progress: Progress = silent,
) -> DetectionResult:
    """The whole pipeline in one call: see `Detector` and `Detector.detect` for arguments and errors."""
    detector = Detector(index, validation=validation, options=options, progress=progress)
    return detector.detect(synthetic, masks=masks, progress=progress)


def _alignments(found: Distances, index: TrainingIndex) -> Iterator[AlignedPair]:
    for measure, placed in found.placements.items():
        for id, affine, candidates in zip(found.ids, found.affines, placed, strict=True):
            for p in candidates:
                entry = index.entries[p.training]
                training_affine = np.array(entry.affine).reshape(4, 4)
                alignment = alignment_of(p, index.preparation, affine, training_affine)
                yield AlignedPair(id, entry.id, measure, alignment)


def resolve_device(device: str) -> str:
    """`auto` becomes cuda where torch sees a GPU, else cpu. Raises ConfigurationError for cuda without one."""
    if device == "cpu":
        return device
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if not device.startswith("cuda"):
        raise ConfigurationError(f"unknown device '{device}'; known: auto, cpu, cuda")
    if not available:
        raise ConfigurationError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    return device


def _cohort_info(cohort: Cohort, distances: Distances) -> CohortInfo:
    problems = (*cohort.problems, *distances.problems)
    return CohortInfo(str(cohort.source), len(distances.ids), tuple((p.path, p.message) for p in problems))


def collected(warnings: Sequence[tuple[str, str]], noun: str) -> Iterator[str]:
    """One line for each kind of warning, with how many images it concerns."""
    kinds: dict[str, list[str]] = {}
    for case, text in warnings:
        kinds.setdefault(text, []).append(case)
    for text, cases in kinds.items():
        yield f"{len(cases)} {noun}{'s' if len(cases) > 1 else ''} (first {cases[0]}): {text}"


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def result_folder_index(output: Path) -> Path:
    """Where `detect --training` keeps the index that it builds."""
    return output / "index.rdindex"
