"""Small finished runs on disk, with planted copies, for tests of what comes after a detection. 3D with masks, or 2D."""

from pathlib import Path

import numpy as np
from PIL import Image

from Core.made_up import SHAPE, volume, write
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Cohort
from replica_detection.results.result import DetectionResult

VOXELS = ("mae", "rmse", "ssim")
MASKS = ("dice", "asd", "asd_surfel", "hd95", "cldice")
TRAINING, VALIDATION, NEW, COPIES = 24, 20, 10, 8


def mask_of(array: np.ndarray) -> np.ndarray:
    return (array > np.quantile(array, 0.8)).astype(np.uint8)


def planted_folders(folder: Path, *, first_seed: int = 0, masks: bool = False, flat: bool = False) -> Path:
    """training/, validation/ and synthetic/ (new_*, copy_*), of smooth volumes, or of 2D PNGs; masks in *_masks/."""
    rng = np.random.default_rng(first_seed)

    def save(part: str, name: str, array: np.ndarray) -> None:
        if flat:
            path = folder / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(array / 4, 0, 255).astype(np.uint8)).save(path)
            return
        write(folder / part / f"{name}.nii.gz", array)
        if masks:
            write(folder / f"{part}_masks" / f"{name}.nii.gz", mask_of(array))

    shape = (40, 36) if flat else SHAPE
    for n in range(TRAINING):
        save("training", f"train_{n:02d}", volume(first_seed + n, shape))
    for n in range(VALIDATION):
        save("validation", f"unseen_{n:02d}", volume(first_seed + 1000 + n, shape))
    for n in range(NEW):
        save("synthetic", f"new_{n:02d}", volume(first_seed + 2000 + n, shape))
    for n in range(COPIES):
        array = volume(first_seed + n, shape)
        save("synthetic", f"copy_{n:02d}", array + rng.normal(0, 20, array.shape).astype(np.float32))
    return folder


def planted_run(folder: Path, *, masks: bool = False, k: int = 50, patients: Path | None = None) -> DetectionResult:
    """Detects in the folders of `planted_folders`; the result and its index lie in `folder / result`.

    The measures are named, so that tests do not change when another one is added.
    """

    def read(part: str) -> Cohort:
        return Cohort.read(folder / part, masks=folder / f"{part}_masks" if masks else None, patients=patients)

    measures = (*VOXELS, *MASKS) if masks else VOXELS
    index = build_index(read("training"), folder / "result" / "index.rdindex", measures=measures)
    result = detect(
        read("synthetic"),
        index,
        validation=read("validation"),
        options=DetectionOptions(k=k),
        masks=folder / "synthetic_masks" if masks else None,
    )
    result.write(folder / "result")
    return result
