"""Position of the common grid in an image's own file. Needs numpy alone, so that 3D Slicer can use it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Spacings that differ by less count as equal: resampling would only blur.
SAME_SPACING = 0.02


def orientation_of(affine: np.ndarray) -> np.ndarray:
    """Orientation (3, 2): for each voxel axis the nearest of R, A and S (0 to 2), each once, and +1 or -1 for its sign.

    The nearest rotation decides, as in nibabel's `io_orientation`, so that oblique and sheared grids are covered.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    orientation = np.zeros((3, 2))
    # From the clearest axis to the one that takes the remaining direction.
    for axis in np.argsort(-(rotation**2).max(0), kind="stable"):
        nearest = int(np.argmax(np.abs(rotation[:, axis])))
        orientation[axis] = nearest, -1 if rotation[nearest, axis] < 0 else 1
        rotation[nearest] = 0
    return orientation


def grid_affine(shape: Sequence[int], affine: np.ndarray, grid: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """The affine of the grid as `prepare` gives it, without preparing the image.

    Args:
        shape: voxels of the image along its two or three axes.
        affine: (4, 4), the image's voxels to mm RAS+, as the preparation takes it.
        grid: voxels of the common grid, along R, A and S (2D: along the image's own axes).
        spacing: mm of a voxel of the grid.

    Returns:
        (4, 4) from a voxel of the grid to mm RAS+.
    """
    own, sizes = np.array(affine, np.float64), np.array((*shape, 1)[:3])
    if len(shape) == 3:
        own, sizes = _along_ras(own, sizes)
    goal, target = np.array((*grid, 1)[:3]), np.array((*spacing, 1.0)[:3])
    own_spacing = np.linalg.norm(own[:3, :3], axis=0)
    if len(shape) == 2:
        own_spacing[2] = 1.0
    step = target / own_spacing
    other = np.abs(step - 1) > SAME_SPACING
    if other.any():
        centre = own @ [*((sizes - 1) / 2), 1]
        sizes = np.where(other, goal, sizes)
        own = own.copy()
        own[:3, :3] *= step
        own[:3, 3] = centre[:3] - own[:3, :3] @ ((sizes - 1) / 2)
    # MONAI crops about the middle, then pads about the middle, and rounds differently in the two.
    cropped = np.where(sizes > goal, sizes // 2 - goal // 2, 0)
    padded = np.where(sizes < goal, (goal - sizes) // 2, 0)
    shift = np.eye(4)
    shift[:3, 3] = cropped - padded
    return own @ shift


def _along_ras(affine: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Affine (4, 4) and shape (3,) of the array, reoriented so that its axes run along R, A and S."""
    reorient, shape = np.zeros((4, 4)), np.zeros(3, int)
    reorient[3, 3] = 1
    for axis, (along, sign) in enumerate(orientation_of(affine)):
        reorient[axis, int(along)] = sign
        reorient[axis, 3] = 0 if sign > 0 else sizes[axis] - 1
        shape[int(along)] = sizes[axis]
    return affine @ reorient, shape
