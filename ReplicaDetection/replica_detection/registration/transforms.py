"""A placement on the common grid as an alignment of files, and images resampled by it."""

from __future__ import annotations

import numpy as np

from replica_detection.preparation.profiles import Preparation
from replica_detection.registration.alignment import Alignment
from replica_detection.registration.placement import Placement


def alignment_of(
    placement: Placement,
    preparation: Preparation,
    query_affine: np.ndarray,
    training_affine: np.ndarray,
) -> Alignment:
    """The transform from the training image to the query, in RAS mm of both files.

    Args:
        placement: on the grid of `preparation`.
        query_affine: (4, 4) from a voxel of the common grid to RAS mm of the query's file.
        training_affine: the same for the training case.
    """
    from scipy.spatial.transform import Rotation

    to_training = np.eye(4)
    to_training[:3, :3], to_training[:3, 3] = placement.matrix, placement.shift
    back = np.linalg.inv(to_training)
    centre = _centre_mm(preparation)
    file_matrix = query_affine @ np.linalg.inv(centre) @ back @ centre @ np.linalg.inv(training_affine)
    rotation = back[:3, :3] @ np.diag(placement.mirroring)
    scale = float(np.cbrt(np.linalg.det(rotation)))
    if preparation.dimensions == 2:  # the third axis is never scaled
        scale = float(np.sqrt(np.linalg.det(rotation[:2, :2])))
        rotation = np.pad(rotation[:2, :2] / scale, (0, 1))
        rotation[2, 2] = 1.0
    else:
        rotation = rotation / scale
    angles = Rotation.from_matrix(rotation).as_euler("xyz", degrees=True)
    return Alignment(
        tuple(tuple(row) for row in file_matrix.tolist()),
        tuple((placement.mirroring < 0).tolist()),
        scale,
        tuple(angles.tolist()),
        tuple(back[:3, 3].tolist()),
        placement.correlation,
        placement.correlation_before,
        placement.overlap,
    )


def resample(
    image: np.ndarray, to_training: np.ndarray, preparation: Preparation, *, labels: bool = False
) -> np.ndarray:
    """A training case resampled on the grid, so that it is aligned to the query.

    Args:
        image: (X, Y[, Z]) on the common grid.
        to_training: (4, 4) from a position of the query to one of the training case, mm from the grid's centre.
        labels: nearest neighbour instead of linear interpolation.

    Returns:
        Of the same shape and type; 0 outside the training case.
    """
    from scipy import ndimage

    voxels = voxels_of(to_training, preparation)[: image.ndim, [*range(image.ndim), 3]]
    return ndimage.affine_transform(
        image, voxels[:, :-1], voxels[:, -1], order=0 if labels else 1, mode="constant", cval=0
    )


def to_training(
    alignment: Alignment, preparation: Preparation, query_affine: np.ndarray, training_affine: np.ndarray
) -> np.ndarray:
    """The inverse of the alignment on the grid, (4, 4), as `resample` takes it."""
    centre = _centre_mm(preparation)
    on_grid = np.linalg.inv(query_affine) @ np.array(alignment.matrix) @ training_affine
    return np.linalg.inv(centre @ on_grid @ np.linalg.inv(centre))


def voxels_of(to_training: np.ndarray, preparation: Preparation) -> np.ndarray:
    """From a voxel of the grid to one of the training case, (4, 4), of a transform in mm from the grid's centre."""
    centre = _centre_mm(preparation)
    return np.linalg.inv(centre) @ to_training @ centre


def _centre_mm(preparation: Preparation) -> np.ndarray:
    """Matrix from a voxel of the grid to mm from the grid's centre along its axes, (4, 4)."""
    spacing, grid = (*preparation.spacing, 1.0)[:3], (*preparation.grid, 1)[:3]
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(grid, spacing, strict=True)]
    return matrix
