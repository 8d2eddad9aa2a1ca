"""Segmentation of a whole cohort: mask files, a preview of each, and a table of their sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.io.volume import read_volume, write_volume
from replica_detection.preparation.loading import nothing_usable, or_problem
from replica_detection.progress import Progress, silent
from replica_detection.segmentation.base import Segmenter
from replica_detection.util.cores import kernel_threads
from replica_detection.util.csv_tables import write_rows
from replica_detection.util.files import atomic_write

WORKERS = 2
# Makes a JPEG from image (X, Y, Z), mask, affine (4, 4) and window of intensities (None: the image's own).
Preview = Callable[[np.ndarray, np.ndarray, np.ndarray, tuple[float, float] | None], bytes]


@dataclass(frozen=True)
class MaskFile:
    """A row of `masks.csv`: id of the case, file name of its mask, and size of the foreground in ml."""

    id: str
    file: str
    volume_ml: float


def segment_cohort(
    cohort: Cohort,
    segmenter: Segmenter,
    output: Path,
    *,
    draw_preview: Preview,
    strict: bool = False,
    progress: Progress = silent,
) -> tuple[list[MaskFile], list[Problem]]:
    """Write `<id>.nii.gz` and `previews/<id>.jpg` for each case, and `masks.csv`; existing masks are replaced.

    Args:
        cohort: 3D images.
        segmenter: makes the masks.
        output: a folder; it is created where it is missing.
        draw_preview: draws the pictures, e.g. `report.preview.preview`; the room `report` lies above this one.
        strict: raise the error of the first case that cannot be segmented.
        progress: `segmenting` per case.

    Returns:
        The masks, and the cases that could not be segmented.

    Raises:
        InputError: no case can be segmented, or with `strict` the first that cannot; or a mask would replace an image.
    """
    _require_apart(cohort, output)
    previews = output / "previews"
    previews.mkdir(parents=True, exist_ok=True)

    def work(case: Case) -> MaskFile | Problem:
        advice = "Leave it out, or give a mask of your own"
        return or_problem(case, lambda c: _segment(c, segmenter, output, draw_preview), advice, strict=strict)

    masks: list[MaskFile] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(min(WORKERS, kernel_threads())) as pool:
        try:
            for done, result in enumerate(pool.map(work, cohort.cases), 1):
                if isinstance(result, Problem):
                    problems.append(result)
                else:
                    masks.append(result)
                progress("segmenting", done, len(cohort.cases))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if not masks:
        raise nothing_usable(cohort.source, (*cohort.problems, *problems))
    _write_table(output / "masks.csv", masks)
    return masks, problems


def _require_apart(cohort: Cohort, output: Path) -> None:
    """Raises InputError where a mask would take the place of an image."""
    images = {
        file.resolve() for case in cohort.cases for file in case.files if file.parent.resolve() == output.resolve()
    }
    for case in cohort.cases:
        mask = output / f"{case.id}.nii.gz"
        if mask.resolve() in images:
            found = f"is the image itself, or that of another case, which the mask of case {case.id!r} would replace"
            raise InputError(mask, found, "Name another output folder")


def _segment(case: Case, segmenter: Segmenter, output: Path, draw_preview: Preview) -> MaskFile:
    volume = read_volume(case)
    mask = segmenter.segment(volume)
    name = f"{case.id}.nii.gz"
    write_volume(output / name, mask, volume.affine)
    with atomic_write(output / "previews" / f"{case.id}.jpg", "wb") as f:
        f.write(draw_preview(volume.array, mask, volume.affine, segmenter.window))
    return MaskFile(case.id, name, round(float(np.count_nonzero(mask) * np.prod(volume.spacing) / 1000), 4))


def _write_table(path: Path, rows: Iterable[MaskFile]) -> None:
    with atomic_write(path) as f:
        write_rows(f, [[field.name for field in fields(MaskFile)]])
        write_rows(f, map(astuple, rows))
