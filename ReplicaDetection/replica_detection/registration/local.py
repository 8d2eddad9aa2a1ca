"""How well two images agree at each place, once one was laid upon the other."""

from __future__ import annotations

import numpy as np

from replica_detection.registration.pyramid import Level, structure

# Sigma of the Gaussian neighbourhood, in voxels of the level.
WINDOW = 1.5
# Steadies flat neighbourhoods, whose correlation is that of noise; images have the standard deviation 1.
_CONSTANT = 1e-3


def resample_level(training: np.ndarray, matrix: np.ndarray, shift: np.ndarray, level: Level) -> np.ndarray:
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


class Neighbourhoods:
    """The neighbourhood of each voxel of a query (X, Y, Z), ready to be compared with many training cases."""

    def __init__(self, query: np.ndarray):
        self.query, self.inside = query, structure(query)
        self.mean = _around(query)
        self.variance = _around(query * query) - self.mean**2

    def correlation(self, training: np.ndarray) -> np.ndarray:
        """(n,) correlation in the neighbourhood of each voxel of the query's structure that `training` (X, Y, Z; NaN
        where it shows nothing) covers: the structure term of SSIM (Wang et al., IEEE TIP 2004, equation 10), 1 where
        the images are equal."""
        covered = ~np.isnan(training)
        b = np.where(covered, training, 0)
        mean = _around(b)
        variance = _around(b * b) - mean**2
        covariance = _around(self.query * b) - self.mean * mean
        spread = np.sqrt(np.maximum(self.variance, 0) * np.maximum(variance, 0))
        inside = self.inside & covered
        return (covariance[inside] + _CONSTANT) / (spread[inside] + _CONSTANT)


def _around(image: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(image, [WINDOW if n > 1 else 0.0 for n in image.shape], mode="nearest", truncate=2)
