"""Where the common grid of a comparison lies in an image's own file. Needs numpy alone, so that a viewer can ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Spacings that differ by less count as equal: resampling would only blur.
SAME_SPACING = 0.02


def orientation_of(affine: np.ndarray) -> np.ndarray:
    """(3, 2): for each voxel axis the nearest of R, A and S (0 to 2), each used once, and +1 or -1 for its direction.

    As nibabel's `io_orientation`: the nearest rotation decides, so that an oblique or sheared grid has an answer too.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    found = np.zeros((3, 2))
    # From the axis that is surest to the one that takes what is left.
    for axis in np.argsort(-(rotation**2).max(0), kind="stable"):
        nearest = int(np.argmax(np.abs(rotation[:, axis])))
        found[axis] = nearest, -1 if rotation[nearest, axis] < 0 else 1
        rotation[nearest] = 0
    return found


def grid_affine(shape: Sequence[int], affine: np.ndarray, grid: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """What `preprocessing.prepare` gives as the affine of the grid, without preparing the image.

    Args:
        shape: voxels of the image along its two or three axes.
        affine: (4, 4), the image's voxels to mm RAS+, as the preparation takes it.
        grid: voxels of the common grid, along R, A and S (2D: along the image's own axes).
        spacing: mm of a voxel of the grid.

    Returns:
        (4, 4), a voxel of the grid to mm RAS+.
    """
    own, sizes = np.array(affine, np.float64), np.array((*shape, 1)[:3])
    if len(shape) == 3:
        own, sizes = _along_ras(own, sizes)
    wanted, target = np.array((*grid, 1)[:3]), np.array((*spacing, 1.0)[:3])
    own_spacing = np.linalg.norm(own[:3, :3], axis=0)
    if len(shape) == 2:
        own_spacing[2] = 1.0
    step = target / own_spacing
    other = np.abs(step - 1) > SAME_SPACING
    if other.any():
        centre = own @ [*((sizes - 1) / 2), 1]
        sizes = np.where(other, wanted, sizes)
        own = own.copy()
        own[:3, :3] *= step
        own[:3, 3] = centre[:3] - own[:3, :3] @ ((sizes - 1) / 2)
    # Cut about the middle, then padded about the middle, each rounding its own way.
    cut = np.where(sizes > wanted, sizes // 2 - wanted // 2, 0)
    padded = np.where(sizes < wanted, (wanted - sizes) // 2, 0)
    moved = np.eye(4)
    moved[:3, 3] = cut - padded
    return own @ moved


def _along_ras(affine: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine and shape of the array turned so that its axes run along R, A and S."""
    turn, turned = np.zeros((4, 4)), np.zeros(3, int)
    turn[3, 3] = 1
    for axis, (along, sign) in enumerate(orientation_of(affine)):
        turn[axis, int(along)] = sign
        turn[axis, 3] = 0 if sign > 0 else sizes[axis] - 1
        turned[int(along)] = sizes[axis]
    return affine @ turn, turned
