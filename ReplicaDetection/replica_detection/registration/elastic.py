"""A small smooth warp after the similarity transform, by SimpleITK's demons."""

from __future__ import annotations

import numpy as np

from replica_detection.registration.local import resample_level
from replica_detection.registration.pyramid import Level, structure

ITERATIONS = 40
# Sigma of the Gaussian that smooths the field, in voxels of the middle level.
SMOOTHNESS = 1.5
# Largest displacement as a share of the mean side of the field of view.
LARGEST_SHARE = 0.1


def displacement(query: np.ndarray, training: np.ndarray, level: Level) -> np.ndarray:
    """Displacement from each point of the query to the same structure of the aligned training case, (3, X, Y, Z) mm.

    Symmetric forces demons (Vercauteren et al., NeuroImage 2009). The field is smooth, and zero where the images are
    equal.

    Args:
        query, training: (X, Y, Z) of one level, locally normalized; NaN in `training` outside its field of view.
    """
    import SimpleITK

    used = [axis for axis, n in enumerate(level.shape) if n > 1]
    spacing = [level.spacing[axis] for axis in used]

    def image(array: np.ndarray) -> SimpleITK.Image:
        converted = SimpleITK.GetImageFromArray(np.nan_to_num(np.squeeze(array)).T.astype(np.float32))
        converted.SetSpacing(spacing)
        return converted

    demons = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(ITERATIONS)
    demons.SetStandardDeviations(SMOOTHNESS)
    # One core gives the same bits everywhere.
    demons.SetNumberOfThreads(1)
    computed = SimpleITK.GetArrayFromImage(demons.Execute(image(query), image(training)))
    field = np.zeros((3, *level.shape))
    for component, axis in enumerate(used):
        field[axis] = computed[..., component].T.reshape(level.shape)
    length = np.sqrt((field**2).sum(0))
    largest = LARGEST_SHARE * float(np.mean([level.shape[a] * level.spacing[a] for a in used]))
    return field * np.minimum(1, largest / np.maximum(length, 1e-9))


def warped_merit(
    query: tuple[np.ndarray, np.ndarray],
    training: tuple[np.ndarray, np.ndarray],
    matrix: np.ndarray,
    shift: np.ndarray,
    chain: tuple[Level, Level],
) -> float:
    """Merit (`optimization.merit`) of a pair after the warp, over the query's structure; in [-1, 1].

    Args:
        query, training: the middle and the fine level; the field is computed on the first and applied to the second.
        matrix, shift: the transform of the training case, as in `Placement`.
        chain: the two levels.
    """
    from scipy import ndimage

    from replica_detection.registration.optimization import Limits

    middle, fine = chain
    field = displacement(query[0], resample_level(training[0], matrix, shift, middle), middle)
    zoom = [n / m for n, m in zip(fine.shape, middle.shape, strict=True)]
    finer = [ndimage.zoom(part, zoom, order=1, grid_mode=True, mode="nearest") for part in field]
    spacing, centre = np.array(fine.spacing), (np.array(fine.shape) - 1) / 2
    inside = structure(query[1])
    voxels = np.argwhere(inside)
    position = (voxels - centre) * spacing + np.stack([part[inside] for part in finer], 1)
    target = (position @ matrix.T + shift) / spacing + centre
    # Rounding errors must not put border voxels outside.
    target = np.where(np.abs(target - np.clip(target, 0, 2 * centre)) < 1e-3, np.clip(target, 0, 2 * centre), target)
    b = ndimage.map_coordinates(training[1], target.T, order=1, mode="constant", cval=np.nan)
    covered = ~np.isnan(b)
    a, b = query[1][inside][covered].astype(np.float64), b[covered].astype(np.float64)
    if len(a) < 2 or not a.std() or not b.std():
        return -1.0
    correlation = float(np.corrcoef(a, b)[0, 1])
    limits = Limits()
    share = float(covered.mean())
    if share < limits.overlap:
        return -1.0
    return correlation * share**limits.overlap_power if correlation > 0 else correlation
