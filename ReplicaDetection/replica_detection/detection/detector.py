"""The whole pipeline, from two cohorts to a DetectionResult."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.detection.comparison import compare
from replica_detection.detection.distances import Distances
from replica_detection.detection.finished_parts import FinishedParts, key_of, state_of
from replica_detection.detection.null_distances import cross_fitted_distances, holdout_distances
from replica_detection.detection.null_pool import NullPool
from replica_detection.detection.options import DetectionOptions, resolve_device
from replica_detection.detection.queries import CohortQueries
from replica_detection.detection.run_inputs import RunInputs, cohorts_of_run, index_from
from replica_detection.detection.verdicts import assign_verdicts
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.preparation.loading import nothing_usable
from replica_detection.progress import Progress, silent
from replica_detection.readers.calibration import Calibration, applied
from replica_detection.registration.transforms import alignment_of
from replica_detection.results.places import Places, states_of
from replica_detection.results.result import AlignedPair, CohortInfo, DetectionResult, RunInfo, Verdicts
from replica_detection.results.schema import to_json
from replica_detection.util.places import absolute
from replica_detection.util.versions import package_versions

_LOOK = "look at what was left out of the null with `replica-detection duplicates`"


class Detector:
    """A training index with its null, for the comparison of one cohort after another, or of single images.

    Args:
        index: the training cohort.
        validation: the holdout: real scans that the generator never saw. They are pooled with training cases, each
            compared with the cases of other patients, as long as the two agree; without them these alone are the null.
        progress: called with (stage, done, total).

    Raises:
        ConfigurationError: options that do not fit the index.
        InputError: with `strict`, a validation image cannot be used, or more than half of them are training images.
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
            parts = self._null_parts(progress)
            self.null = NullPool.of(parts, self.measures, index, alpha=self.options.alpha)
        self._holdout = parts[0] if validation is not None else None
        if self.null.refused and self.options.strict and validation is not None:
            advice = "Without --strict the training scans alone are the null"
            raise InputError(validation.source, self.null.warnings[0], advice)

    def _null_parts(self, progress: Progress) -> list[Distances]:
        """Distances of the holdout, if there is one, and of training cases among themselves, where these are fair."""
        index, options, parts = self.index, self.options, []
        with options.runner(index, options.null_size) as runner:
            how: dict[str, Any] = {"k": options.k, "runner": runner, "progress": progress}
            if self.validation is not None:
                parts.append(holdout_distances(self.validation, index, self.measures, strict=options.strict, **how))
                if any(m.saw_training for m in self.measures):
                    return parts
            size = options.null_size - sum(len(part.ids) for part in parts)
            if size > 0 or not parts:
                parts.append(cross_fitted_distances(index, self.measures, size=size, **how))
        return parts

    def detect(
        self,
        synthetic: Cohort,
        *,
        masks: Path | None = None,
        unfinished: Path | None = None,
        progress: Progress = silent,
    ) -> DetectionResult:
        """Compares every case of a cohort with every training case and assigns verdicts.

        Args:
            synthetic: the synthetic images.
            masks: the folder of the cohort's masks; only noted in the result, for its pictures.
            unfinished: folder for the parts of the comparison that are finished: the same call goes on there after a
                kill. It may go once the result is written.
            progress: called with (stage, done, total).

        Raises:
            InputError: no image can be read; with `strict`, any image cannot be read.
        """
        index, options, null = self.index, self.options, self.null
        clock = _Clock(dict(self._clock.seconds))
        finished = None
        if unfinished is not None:
            finished = FinishedParts(unfinished, key_of(index, self.measures, state_of(synthetic), options.k))
        with clock.stage("compare"), options.runner(index, len(synthetic)) as runner:
            queries = CohortQueries(synthetic, index, strict=options.strict)
            how: dict[str, Any] = {"k": options.k, "runner": runner, "finished": finished, "progress": progress}
            distances = compare(queries, index, self.measures, **how)
        if any(m.stage == "aligned" for m in self.measures):
            clock.seconds["align"] = round(distances.seconds_aligning, 3)  # of all workers together
        if not distances.ids:
            raise nothing_usable(synthetic.source, (*synthetic.problems, *distances.problems))
        with clock.stage("statistics"):
            verdicts = assign_verdicts(distances, null, self.measures, index, alpha=options.alpha)
            if options.calibration is not None:
                verdicts = applied(verdicts, options.calibration, min(options.k, len(index)))
        run = self._run_info(synthetic, distances, verdicts, masks, clock.seconds)
        alignments = tuple(_alignments(distances, index))
        places = self._places(synthetic, distances)
        return DetectionResult(verdicts.summary, verdicts.matches, verdicts.neighbors, run, alignments, places=places)

    def _places(self, synthetic: Cohort, distances: Distances) -> Places:
        compared = set(distances.ids)
        return Places(
            synthetic=states_of(c for c in synthetic.cases if c.id in compared),
            validation={} if self.validation is None else states_of(self.validation.cases),
            index_id=self.index.content_id,
        )

    def _run_info(
        self,
        synthetic: Cohort,
        distances: Distances,
        verdicts: Verdicts,
        masks: Path | None,
        timings: dict[str, float],
    ) -> RunInfo:
        index, options = self.index, self.options
        return RunInfo(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            alpha=options.alpha,
            k=min(options.k, len(index)),
            device=self.device,
            profile=to_json({**index.preparation.to_json(), "description": index.preparation.describe()}),
            synthetic=_cohort_info(synthetic, distances),
            training=CohortInfo(index.source, len(index), tuple((p.path, p.message) for p in index.problems)),
            validation=None
            if self.validation is None or self._holdout is None
            else _cohort_info(self.validation, self._holdout),
            index=absolute(index.folder),
            measures=verdicts.measures,
            null=verdicts.null,
            evidence=verdicts.evidence,
            evidence_threshold=verdicts.evidence_threshold,
            timings=timings,
            versions=package_versions(),
            warnings=(
                *verdicts.warnings,
                *((_LOOK,) if self.null.removed else ()),
                *self._saw_training(),
                *collected(index.warnings, "training image"),
                *collected(self._holdout.warnings if self._holdout is not None else (), "validation image"),
                *collected(distances.warnings, "synthetic image"),
            ),
            details=self._details(distances),
            options={
                "null_size": options.null_size,
                "strict": options.strict,
                "align": any(m.stage == "aligned" for m in self.measures),
                "masks": None if masks is None else absolute(masks),
                "segmenter": index.segmenter_settings,
                "calibration": None if options.calibration is None else options.calibration.describe(),
            },
        )

    def _saw_training(self) -> Iterator[str]:
        names = [m.name for m in self.measures if m.saw_training]
        if names and self.validation is None:
            yield (
                f"{', '.join(names)}: the embedding was trained on the training cohort, so that training images are no "
                "fair null for it; give unseen real images as validation"
            )

    def _details(self, distances: Distances) -> dict[str, dict[str, list[Any]]]:
        """Further columns of the measures (`Measure.describe`), by measure and name."""
        described = {
            m.name: m.against_null(distances.by_measure[m.name].columns, self.null.nearest[m.name])
            for m in self.measures
        }
        return {name: columns for name, columns in described.items() if columns}


def detect(
    images: Any,
    training: Any,
    *,
    validation: Any = None,
    masks: Any = None,
    training_masks: Any = None,
    validation_masks: Any = None,
    patients: Any = None,
    patient_pattern: str | None = None,
    options: DetectionOptions | None = None,
    measures: Sequence[str] | None = None,
    k: int = 50,
    alpha: float = 0.05,
    device: str = "auto",
    align: bool = True,
    calibration: Calibration | None = None,
    strict: bool = False,
    workers: int | str | None = None,
    index_options: IndexOptions | None = None,
    index_folder: str | os.PathLike[str] | None = None,
    unfinished: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> DetectionResult:
    """Compares every synthetic image with every training image and says which are replicas.

    Args:
        images: the synthetic images, as `Cohort.of` takes them: a folder, a CSV, a `dataset.json`, a Cohort, or images
            in memory that state their geometry. Arrays state none: make a Cohort with `Cohort.from_arrays`.
        training: an index of the generator's training images (`build_index`), the path of one, or the images.
        validation: real images that the generator never saw: they tell how alike different patients are. None: the
            training images are compared among themselves.
        masks: masks of `images`, as `Cohort.of` takes them; the same for `training_masks` and `validation_masks`. A
            Cohort has its own masks; beside one, `masks` is the folder of them that the result names.
        patients, patient_pattern: of training and validation images, as `Cohort.of` takes them. A table or pattern must
            cover the training images that are read with it; it need not know the validation images.
        options: all of the following in one object. Give either.
        measures, k, alpha, device, align, calibration, strict, workers: as `DetectionOptions` has them.
        index_options: how the index of training images is built; None: the defaults, for `measures`.
        index_folder: where the index of training images is kept and found again; None: a temporary folder, which goes
            with the result.
        unfinished: folder for the parts of the comparison that are finished: the same call goes on there after a kill.
            It may go once the result is written.
        progress: called with (stage, done, total).

    Raises:
        ConfigurationError: options that are not known or do not fit the index.
        InputError: no image can be read, or with `strict` the first that cannot.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        training, unseen = rng.random((12, 16, 16, 16)), rng.random((10, 16, 16, 16))
        images = np.concatenate([training[:1] + 0.01, rng.random((3, 16, 16, 16))])
        training, unseen, images = (rd.Cohort.from_arrays(a, spacing=1) for a in (training, unseen, images))
        result = rd.detect(images, training, validation=unseen, measures=["mae", "ssim"])
        assert result.summary[0].verdict == "replica"
        ```
    """
    single = DetectionOptions(
        measures, k, alpha, device, strict=strict, align=align, calibration=calibration, workers=workers
    )
    if options is not None and single != DetectionOptions():
        raise ConfigurationError(
            "give either options, or measures, k, alpha, device, align, calibration, strict and workers"
        )
    options = options or single
    noted = Path(masks) if isinstance(masks, (str, os.PathLike)) else None
    beside = isinstance(images, Cohort) and noted is not None  # the masks are the Cohort's own
    synthetic = Cohort.of(images, masks=None if beside else masks, strict=options.strict)
    if validation is None and validation_masks is not None:
        raise ConfigurationError("validation_masks are of validation images, and no validation was given")
    source, unseen = cohorts_of_run(
        training,
        validation,
        masks=training_masks,
        other_masks=validation_masks,
        patients=patients,
        patient_pattern=patient_pattern,
        strict=options.strict,
    )
    index = index_from(
        source,
        options=index_options
        or IndexOptions(measures=options.measures, strict=options.strict, workers=options.workers),
        folder=index_folder,
        progress=progress,
    )
    detector = Detector(index, validation=unseen, options=options, progress=progress)
    kept = None if unfinished is None else Path(unfinished)
    result = detector.detect(synthetic, masks=noted, unfinished=kept, progress=progress)
    return replace(result, inputs=RunInputs(index, synthetic, unseen))


def _alignments(distances: Distances, index: TrainingIndex) -> Iterator[AlignedPair]:
    for measure, found in distances.by_measure.items():
        for id, affine, candidates in zip(distances.ids, distances.affines, found.placements, strict=False):
            for p in candidates:
                entry = index.entries[p.training]
                training_affine = np.array(entry.affine).reshape(4, 4)
                alignment = alignment_of(p, index.preparation, affine, training_affine)
                yield AlignedPair(id, entry.id, measure, alignment)


def _cohort_info(cohort: Cohort, distances: Distances) -> CohortInfo:
    problems = (*cohort.problems, *distances.problems)
    return CohortInfo(cohort.place, len(distances.ids), tuple((p.path, p.message) for p in problems))


def collected(warnings: Sequence[tuple[str, str]], noun: str) -> Iterator[str]:
    """One line for each kind of warning, with the number of images that it concerns."""
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
    """Folder of the index that a run with a training cohort builds in its output folder."""
    return output / "index.rdindex"


def result_folder_unfinished(output: Path) -> Path:
    """Folder of the finished parts of a run that is not finished, in its output folder."""
    return output / "unfinished"
