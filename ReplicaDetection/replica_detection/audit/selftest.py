"""selftest: measures on the user's own images which copies the pipeline finds and how many unseen images it flags."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replica_detection.audit.planted_verdicts import SelfTest, judge_planted
from replica_detection.audit.selftest_tables import write_selftest
from replica_detection.detection.options import DetectionOptions
from replica_detection.detection.run_inputs import cohorts_of_run, index_from
from replica_detection.errors import InputError
from replica_detection.index.options import IndexOptions
from replica_detection.progress import Progress, silent

INDEX_NAME = "index.rdindex"


def selftest(
    training: Any,
    validation: Any,
    output: str | os.PathLike[str],
    *,
    training_masks: Any = None,
    validation_masks: Any = None,
    patients: Any = None,
    patient_pattern: str | None = None,
    options: DetectionOptions | None = None,
    measures: Sequence[str] | None = None,
    index_options: IndexOptions | None = None,
    copies: int = 10,
    seed: int = 0,
    keep_images: bool = False,
    progress: Progress = silent,
) -> SelfTest:
    """Measures on the user's own images which copies would be found, and writes tables and pictures.

    Copies of training images are planted: exact, noisy, brighter or darker, compressed, cropped, rotated, flipped,
    blended with another image. They are judged together with half of the validation images, while the other half is
    in the null. A change that is not found here will not be found in synthetic images either.

    Args:
        training: the training images, as `Cohort.of` takes them, or an index of them whose image files are where they
            were.
        validation: real images that are not among the training images, as `Cohort.of` takes them; 20 or more, better
            100.
        output: new folder for `selftest.csv`, `selftest_by_measure.csv`, `selftest.png`, `examples.png`, the result in
            `result/`, and the index of training images in `index.rdindex`. The index that an interrupted self-test left
            there is built to its end.
        training_masks, validation_masks, patients, patient_pattern: as `Cohort.of` takes them.
        options: of the detection; None: the defaults, for `measures`.
        measures: names; give either these or `options`.
        index_options: how the index of training images is built; None: the defaults.
        copies: training images copied for each kind of change, drawn at random.
        seed: draws other copies and halves the validation images otherwise.
        keep_images: keep the planted copies in `planted/`. They are images of the user's patients.
        progress: called with (stage, done, total).

    Raises:
        ConfigurationError: too few validation patients to halve, or options that do not fit.
        InputError: `output` holds something else, an image cannot be read, or most validation images are training
            images.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        training, unseen = rng.random((12, 16, 16, 16)), rng.random((20, 16, 16, 16))
        training, unseen = (rd.Cohort.from_arrays(a, spacing=1) for a in (training, unseen))
        tested = rd.selftest(training, unseen, "selftest", measures=["mae", "ssim"], copies=2)
        found = {row.kind: row.flagged.value for row in tested.rows}
        assert found["exact"] == 1
        ```
    """
    output = Path(output)
    # An index that an interrupted self-test left is built to its end; anything else is somebody's work.
    if output.exists() and not (output.is_dir() and all(p.name.startswith(INDEX_NAME) for p in output.iterdir())):
        raise InputError(output, "exists already", "Name a new folder")
    options = DetectionOptions.of(options, measures)
    source, unseen = cohorts_of_run(
        training,
        validation,
        masks=training_masks,
        other_masks=validation_masks,
        patients=patients,
        patient_pattern=patient_pattern,
    )
    assert unseen is not None
    output.mkdir(parents=True, exist_ok=True)
    index = index_from(
        source,
        options=index_options or IndexOptions(measures=options.measures, workers=options.workers),
        folder=output / INDEX_NAME,
        progress=progress,
    )
    with tempfile.TemporaryDirectory(prefix="replica-detection-") as temporary:
        planted = output / "planted" if keep_images else Path(temporary)
        planted.mkdir(exist_ok=True)
        tested = judge_planted(index, unseen, planted, options=options, copies=copies, seed=seed, progress=progress)
        tested.result.write(output / "result")
        write_selftest(tested, index, planted, output)
    return tested
