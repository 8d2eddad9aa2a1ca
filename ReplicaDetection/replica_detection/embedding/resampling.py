"""Images resampled to another size, in 2D and 3D, with the same bits each time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def resampled(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Image (X, Y[, Z]) float32 resampled to `shape` over the same field of view.

    Interpolation is linear, after a Gaussian where voxels grow by a factor above 1.5.
    """
    from scipy import ndimage

    image = np.asarray(image, np.float32)
    if image.shape == tuple(shape):
        return image
    ratio = np.array(image.shape) / np.array(shape)
    if np.any(ratio > 1.5):
        sigma = np.where(ratio > 1.5, (ratio - 1) / 2, 0)
        image = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3)
    offset = (ratio - 1) / 2
    return ndimage.affine_transform(
        image, ratio, offset, output_shape=tuple(shape), order=1, mode="nearest", output=np.float32
    )
