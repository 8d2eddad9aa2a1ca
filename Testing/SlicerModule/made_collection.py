"""A small collection on disk, judged by the real pipeline, for tests of what the module reads and shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from replica_detection.segmentation import Segmenter

SHAPE = (40, 36, 30)
TRAINING = np.diag([1.5, 1.5, 2.0, 1.0])
TRAINING[:3, 3] = (-30, -27, -30)
# Generators often write other coordinates than the scanner did, and other axes.
SYNTHETIC = np.diag([-1.5, -1.5, 2.0, 1.0])
SYNTHETIC[:3, 3] = (10, 20, 5)


@dataclass(frozen=True)
class Collection:
    """Folders of a judged collection; `synthetic_0` is a copy of `train_2`, its voxels stored in another order."""

    root: Path

    @property
    def result(self) -> Path:
        return self.root / "result"

    def folder(self, name: str) -> Path:
        return self.root / name


def make_files(root: Path, *, training: int = 7, validation: int = 20, synthetic: int = 5) -> Collection:
    """Writes images and masks of three cohorts."""
    for name, count, first, affine in (
        ("training", training, 0, TRAINING),
        ("validation", validation, 100, TRAINING),
        ("synthetic", synthetic, 200, SYNTHETIC),
    ):
        for n in range(count):
            image, mask = anatomy(first + n)
            if name == "synthetic":
                # The same head in a file whose axes run to the left and to the back.
                image, mask = (a[::-1, ::-1] for a in (anatomy(2) if n == 0 else (image, mask)))
            stem = f"{ {'training': 'train', 'validation': 'val'}.get(name, name) }_{n}"
            _write(root / name / f"{stem}.nii.gz", np.round(image).astype(np.int16), affine)
            _write(root / f"{name}_masks" / f"{stem}.nii.gz", mask, affine)
    return Collection(root)


def judge(
    collection: Collection, segmenter: Segmenter | None = None, measures: tuple[str, ...] | None = None
) -> Collection:
    """`replica-detection detect` on it, without the report; with `segmenter` in place of the masks on disk."""
    from replica_detection.detection.detector import detect
    from replica_detection.detection.options import DetectionOptions
    from replica_detection.index.build import build_index
    from replica_detection.io.cohort import Cohort

    def masks_of(name: str) -> Path | None:
        return collection.folder(f"{name}_masks") if segmenter is None else None

    names = ("training", "validation", "synthetic")
    cohorts = {name: Cohort.read(collection.folder(name), masks=masks_of(name)) for name in names}
    index = build_index(
        cohorts["training"], collection.root / "training.rdindex", segmenter=segmenter, measures=measures
    )
    masks = masks_of("synthetic")
    options = DetectionOptions(measures=measures)
    found = detect(cohorts["synthetic"], index, validation=cohorts["validation"], options=options, masks=masks)
    found.write(collection.result)
    return collection


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A head-like ellipsoid with smooth inner texture (0 to about 1000), and a blob in it as the mask."""
    rng = np.random.default_rng(seed)
    at = np.indices(SHAPE, np.float32)
    centre = (np.array(SHAPE) - 1) / 2
    inside = sum(((at[i] - centre[i]) / (0.45 * SHAPE[i])) ** 2 for i in range(3)) < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 3.0)
    grey = np.where(inside, 400 + 200 * texture / texture.std(), 20)
    spot = centre + rng.uniform(-5, 5, 3)
    radii = rng.uniform(4, 7, 3)
    mask = sum(((at[i] - spot[i]) / radii[i]) ** 2 for i in range(3)) < 1
    grey = np.where(mask, 900, grey) + rng.normal(0, 5, SHAPE)
    return grey.clip(0, 1200), mask.astype(np.uint8)


def _write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), path)
