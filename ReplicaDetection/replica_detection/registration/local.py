"""How well two images agree at each place, once one was laid upon the other."""

from __future__ import annotations

import numpy as np

from replica_detection.registration.pyramid import Level, structure

# Sigma of the Gaussian neighbourhood, in voxels of the level.
WINDOW = 1.5
# Steadies flat neighbourhoods, whose correlation is that of noise; images have the standard deviation 1.
_CONSTANT = 1e-3


def resting(training: np.ndarray, matrix: np.ndarray, shift: np.ndarray, level: Level) -> np.ndarray:
    """(X, Y, Z) float32: a level of a training case laid on the query; NaN beyond its field of view.

    Args:
        training: (X, Y, Z), the level.
        matrix, shift: a position u of the query lies at `matrix @ u + shift` in the training case, both in mm from
            the centre.
    """
    from scipy import ndimage

    spacing, centre = np.array(level.spacing), (np.array(level.shape) - 1) / 2
    in_voxels = matrix * spacing[None, :] / spacing[:, None]
    offset = centre + shift / spacing - in_voxels @ centre
    return ndimage.affine_transform(training, in_voxels, offset, order=1, mode="constant", cval=np.nan)


def local_correlation(query: np.ndarray, training: np.ndarray) -> np.ndarray:
    """(n,) correlation in the neighbourhood of each voxel of the query's structure that `training` covers: the
    structure term of SSIM (Wang et al., IEEE TIP 2004, equation 10), 1 where the images are equal.

    Args:
        query, training: (X, Y, Z) of one level; NaN in `training` where it shows nothing.
    """
    from scipy import ndimage

    sigma = [WINDOW if n > 1 else 0.0 for n in query.shape]

    def around(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=2)

    covered = ~np.isnan(training)
    b = np.where(covered, training, 0)
    mean_a, mean_b = around(query), around(b)
    variance_a, variance_b = around(query * query) - mean_a**2, around(b * b) - mean_b**2
    covariance = around(query * b) - mean_a * mean_b
    spread = np.sqrt(np.maximum(variance_a, 0) * np.maximum(variance_b, 0))
    inside = structure(query) & covered
    return (covariance[inside] + _CONSTANT) / (spread[inside] + _CONSTANT)
