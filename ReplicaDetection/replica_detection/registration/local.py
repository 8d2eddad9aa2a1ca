"""Local correlation of two aligned images."""

from __future__ import annotations

import numpy as np

from replica_detection.registration.pyramid import Level, structure

# Sigma of the Gaussian neighbourhood, in voxels of the level.
WINDOW = 1.5
# The neighbourhood ends at so many sigma.
TRUNCATE = 2.0
# Stabilizes flat neighbourhoods, which show only noise; the images have standard deviation 1.
CONSTANT = 1e-3


def resample_level(training: np.ndarray, matrix: np.ndarray, shift: np.ndarray, level: Level) -> np.ndarray:
    """A level of a training case, resampled to the query: (X, Y, Z) float32, NaN outside its field of view.

    Args:
        training: (X, Y, Z), the level.
        matrix, shift: a position u of the query corresponds to `matrix @ u + shift` in the training case, both in mm
            from the centre.
    """
    from scipy import ndimage

    if not shift.any() and np.array_equal(np.abs(matrix), np.eye(3)):  # mirrored and nothing else
        return training[tuple(slice(None, None, int(way)) for way in np.diag(matrix))]
    spacing, centre = np.array(level.spacing), (np.array(level.shape) - 1) / 2
    in_voxels = matrix * spacing[None, :] / spacing[:, None]
    offset = centre + shift / spacing - in_voxels @ centre
    return ndimage.affine_transform(training, in_voxels, offset, order=1, mode="constant", cval=np.nan)


class Neighbourhoods:
    """Local moments of a query (X, Y, Z), computed once for its comparison with several training cases."""

    def __init__(self, query: np.ndarray):
        self.query, self.inside = query, structure(query)
        self.mean = _local_mean(query)
        self.variance = _local_mean(query * query) - self.mean**2

    def correlation(self, training: np.ndarray) -> np.ndarray:
        """Local correlation with a training case at the n voxels of the query's structure that it covers, (n,).

        (cov + c) / (sd_q sd_t + c) in a Gaussian window: the structure term of SSIM (Wang et al., IEEE TIP 2004,
        equation 10); 1 where the images are equal.

        Args:
            training: (X, Y, Z), NaN outside its field of view.
        """
        covered = ~np.isnan(training)
        b = np.where(covered, training, 0)
        mean = _local_mean(b)
        variance = _local_mean(b * b) - mean**2
        covariance = _local_mean(self.query * b) - self.mean * mean
        spread = np.sqrt(np.maximum(self.variance, 0) * np.maximum(variance, 0))
        inside = self.inside & covered
        return (covariance[inside] + CONSTANT) / (spread[inside] + CONSTANT)


def _local_mean(image: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(
        image, [WINDOW if n > 1 else 0.0 for n in image.shape], mode="nearest", truncate=TRUNCATE
    )
