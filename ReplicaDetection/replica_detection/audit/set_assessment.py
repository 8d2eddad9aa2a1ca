"""assess_set: how much whole synthetic sets repeat their training set, one set or a curve over several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica_detection.audit.memorization import set_figures
from replica_detection.audit.memorization_metrics import SIZE_MATCHED
from replica_detection.audit.memorization_tables import AssessedSet, write_set_metrics
from replica_detection.detection.options import resolve_device
from replica_detection.detection.run_inputs import as_result, index_of, synthetic_of, validation_of
from replica_detection.errors import ConfigurationError
from replica_detection.io.arrays import SOURCE
from replica_detection.io.cohort import Cohort
from replica_detection.progress import Progress, silent
from replica_detection.results.result import DetectionResult

NO_HOLDOUT = "no unseen images (validation): the training images among themselves are the null"
NO_PATIENTS = "the training index knows patients: give patients, or unseen scans of them count"


@dataclass(frozen=True)
class SetAssessment:
    """Metrics of one synthetic set or several, in the order in which they were given, and what limits them."""

    sets: tuple[AssessedSet, ...]
    warnings: tuple[str, ...] = ()

    def write(self, folder: str | os.PathLike[str], *, variant: str = SIZE_MATCHED) -> None:
        """Writes `memorization.csv` (both variants) and `memorization.png` (curves of one) into `folder`.

        Args:
            variant: `size-matched` or `as-published`, for the curves.
        """
        write_set_metrics(self.sets, Path(folder), variant=variant)


def assess_set(
    results: DetectionResult | str | os.PathLike[str] | Sequence[DetectionResult | str | os.PathLike[str]],
    *,
    at: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    validation: Any = None,
    validation_masks: Any = None,
    patients: Any = None,
    patient_pattern: str | None = None,
    measures: Sequence[str] | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> SetAssessment:
    """Says how much whole synthetic sets repeat the training set; several results make a curve over training.

    The metrics are N_copies and N_mem (Dar et al., arXiv 2402.01054), AuthPct (Alaa et al., ICML 2022), the CT score
    (Meehan et al., AISTATS 2020), means of the memorization index and of the overfit/novelty index (Deo et al.),
    the Frechet distance and MS-SSIM. Each has a 95 % interval and, where it is known, the value that new images give.
    All pairs are compared again: the index and the images of a result must be where they were.

    Args:
        results: a result or its folder, or several of them, one for each synthetic set (such as one per checkpoint).
        at: where the results stand on the axis (iterations, training cases); one number for each.
        names: of the sets; None: the names of their folders, or of the folders of their images; `set 1`, `set 2` ...
            for images in memory.
        validation: real images that the generator never saw, as `Cohort.of` takes them. None: those of the first
            result.
        validation_masks: their masks, for measures of masks.
        patients, patient_pattern: of the unseen images, as `Cohort.of` takes them.
        measures: names; None: all of the feature level, or of the voxel level without one.
        device: `auto`, `cpu` or `cuda`.
        seed: of bootstraps and random draws.
        progress: called with (stage, done, total).

    Raises:
        ConfigurationError: other numbers of `at` or `names` than of results, or a measure that an index does not serve.
        InputError: a result is not whole, or its index or images are no longer where they were.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        training, unseen = rng.random((20, 16, 16, 16)), rng.random((20, 16, 16, 16))
        images = np.concatenate([training[:10], rng.random((10, 16, 16, 16))])
        training, unseen, images = (rd.Cohort.from_arrays(a, spacing=1) for a in (training, unseen, images))
        result = rd.detect(images, training, validation=unseen, measures=["mae", "ssim"])
        assessed = rd.assess_set(result)
        share = {(f.basis, f.figure.name): f.figure.estimate.value for f in assessed.sets[0].figures}
        assert share["mae", "N_copies"] >= 0.5
        assessed.write("memorization")
        ```
    """
    several = [results] if isinstance(results, (DetectionResult, str, os.PathLike)) else list(results)
    read = [as_result(one) for one in several]
    if not read:
        raise ConfigurationError("no result was given")
    for what, kind, given in (("at", "numbers", at), ("names", "entries", names)):
        if given is not None and len(given) != len(read):
            raise ConfigurationError(f"{what} has {len(given)} {kind} for {len(read)} results")
    holdout = _holdout(read[0], validation, masks=validation_masks, patients=patients, patient_pattern=patient_pattern)
    sets: list[AssessedSet] = []
    warnings: list[str] = []
    for number, (source, result) in enumerate(zip(several, read, strict=True)):
        name = names[number] if names is not None else _name(source, result, number)
        index = index_of(result)

        def staged(stage: str, done: int, total: int, name: str = name) -> None:
            progress(f"{name}: {stage}", done, total)

        figures, limits = set_figures(
            index,
            synthetic_of(result),
            holdout,
            measures=measures,
            device=resolve_device(device),
            seed=seed,
            progress=staged,
        )
        sets.append(AssessedSet(name, None if at is None else float(at[number]), tuple(figures)))
        warnings += limits
        if holdout is not None and not any(c.patient for c in holdout.cases) and any(e.patient for e in index.entries):
            warnings.append(NO_PATIENTS)
    if holdout is None:
        warnings.append(NO_HOLDOUT)
    return SetAssessment(tuple(sets), tuple(dict.fromkeys(warnings)))


def _holdout(first: DetectionResult, validation: Any, **reading: Any) -> Cohort | None:
    return validation_of(first, **reading) if validation is None else Cohort.of(validation, **reading)


def _name(source: DetectionResult | str | os.PathLike[str], result: DetectionResult, number: int) -> str:
    if isinstance(source, DetectionResult) and result.run.synthetic.source == SOURCE:
        return f"set {number + 1}"
    return Path(result.run.synthetic.source if isinstance(source, DetectionResult) else source).name
