"""segment: masks of a whole cohort as files, with a picture of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica_detection.io.cohort import Cohort, Problem
from replica_detection.progress import Progress, silent
from replica_detection.segmentation import Segmenter, make_segmenter
from replica_detection.segmentation.cohort import MaskFile, segment_cohort


@dataclass(frozen=True)
class SegmentedCohort:
    """Masks of a cohort in `folder`, and the files that were left out."""

    folder: Path
    masks: tuple[MaskFile, ...]
    problems: tuple[Problem, ...]

    @property
    def empty(self) -> tuple[str, ...]:
        """Ids of the cases in which nothing was found."""
        return tuple(m.id for m in self.masks if not m.volume_ml)


def segment(
    images: Any,
    output: str | os.PathLike[str],
    segmenter: Segmenter | str,
    *,
    strict: bool = False,
    progress: Progress = silent,
) -> SegmentedCohort:
    """Writes a mask for each image, and a picture of each to check it by eye.

    Args:
        images: as `Cohort.of` takes them.
        output: folder for `<id>.nii.gz`, `previews/<id>.jpg` and `masks.csv` (sizes in ml). The masks can be corrected
            in any viewer and given back as `masks`.
        segmenter: `hemorrhage`, `vessels` or `network:FILE`, or a Segmenter.
        strict: raise the InputError of the first image that cannot be segmented, instead of listing it.
        progress: called with (stage, done, total).

    Raises:
        ConfigurationError: an unknown segmenter.
        InputError: no image can be segmented.

    Example:
        ```python
        import replica_detection as rd
        from replica_detection.phantom import make_head_ct

        scan = make_head_ct(0)
        found = rd.segment(rd.Cohort.from_arrays([scan.image], affines=scan.affine), "masks", "hemorrhage")
        assert found.masks[0].volume_ml > 0
        ```
    """
    from replica_detection.report.preview import preview

    cohort = Cohort.of(images, strict=strict)
    maker = make_segmenter(segmenter) if isinstance(segmenter, str) else segmenter
    masks, problems = segment_cohort(
        cohort, maker, Path(output), draw_preview=preview, strict=strict, progress=progress
    )
    return SegmentedCohort(Path(output), tuple(masks), (*cohort.problems, *problems))
