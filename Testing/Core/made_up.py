"""Small made-up cohorts on disk for tests: smooth random volumes, one for each patient."""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

SHAPE = (24, 28, 20)


def volume(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Smooth random field with values from 0 to about 1000, float32."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 2.5)
    return ((field - field.min()) / np.ptp(field) * 1000).astype(np.float32)


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.2, 1.0]) if affine is None else affine), path)
    return path


def cohort(folder: Path, size: int, first_seed: int = 0, prefix: str = "case") -> Path:
    for n in range(size):
        write(folder / f"{prefix}_{n:03d}.nii.gz", volume(first_seed + n))
    return folder
