"""The inside of the skull on a head CT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replica_detection.segmentation.base import (
    fill_small_holes,
    largest_component,
    merge,
    reach,
    unmerge,
)

# Range of brain and CSF with partial volume and noise, HU.
_TISSUE_HU = (-15.0, 115.0)
# In-plane directions in which bone is searched, as voxel steps; with their opposites they are 16.
_DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2))


@dataclass(frozen=True)
class Brain:
    """Brain on a CT: `mask` (X, Y, Z) bool of brain, CSF and blood; median and robust standard deviation of its HU."""

    mask: np.ndarray
    median_hu: float
    spread_hu: float


def find_brain(
    hu: np.ndarray, spacing_mm: tuple[float, ...], bone_hu: float = 200.0, least_ml: float = 80.0
) -> Brain | None:
    """The inside of the skull: the largest soft part that bone surrounds within its axial slices.

    The soft tissue is eroded before its largest part is taken, so that it does not leak through openings of the base. A
    skull that is open upwards or downwards, where the scan ends, is covered as well.

    Args:
        hu: (X, Y, Z) with axes along R, A, S.
        spacing_mm: voxel size.
        bone_hu: above it is bone.
        least_ml: smaller parts do not count as brain.

    Returns:
        None where there is no brain.
    """
    from scipy import ndimage

    factors = tuple(max(1, int(2.0 / s + 0.5)) for s in spacing_mm)
    coarse = tuple(s * f for s, f in zip(spacing_mm, factors, strict=True))
    small = merge(hu, factors)
    small = ndimage.gaussian_filter(small, (1.0 / coarse[0], 1.0 / coarse[1], 0), truncate=2.5)
    bone = small > bone_hu
    soft = (small > _TISSUE_HU[0]) & (small < _TISSUE_HU[1]) & _enclosed(bone)
    # Calcifications of the plexus are not part of the skull: small holes within a slice are filled.
    soft = fill_small_holes(soft, coarse, 150.0)
    deep = ndimage.distance_transform_edt(soft, sampling=coarse) > 6.0
    core = largest_component(deep)
    if np.count_nonzero(core) * float(np.prod(coarse)) / 1000 < least_ml / 2:
        return None
    brain = largest_component(soft & reach(core, coarse, 8.0))
    if np.count_nonzero(brain) * float(np.prod(coarse)) / 1000 < least_ml:
        return None
    tissue = small[core & (small > 5) & (small < 90)]
    median = float(np.median(tissue))
    spread = 1.4826 * float(np.median(np.abs(tissue - median)))
    mask = unmerge(brain.astype(np.float32) - 0.5, factors, hu.shape) > 0
    return Brain(mask, median, spread)


def _enclosed(bone: np.ndarray, share: float = 0.75) -> np.ndarray:
    """Voxels from which rays meet bone in at least this share of 16 directions within the slice."""
    from scipy import ndimage

    wall = ndimage.binary_dilation(bone, np.ones((3, 3, 1), bool))
    count = np.zeros(bone.shape, np.uint8)
    for dx, dy in _DIRECTIONS:
        for sign in (1, -1):
            met, step = wall.copy(), 1
            # Doubling: after k rounds each voxel covers the next 2^k along its ray.
            while step * max(abs(dx), abs(dy)) < max(bone.shape[:2]):
                met |= _shifted(met, sign * dx * step, sign * dy * step)
                step *= 2
            count += met
    return count >= share * 2 * len(_DIRECTIONS)


def _shifted(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """The mask's value at (x + dx, y + dy), False beyond the edge."""
    shifted = np.zeros_like(mask)
    to, source = [], []
    for d, n in ((dx, mask.shape[0]), (dy, mask.shape[1])):
        to.append(slice(max(0, -d), max(0, min(n, n - d))))
        source.append(slice(max(0, d), max(0, min(n, n + d))))
    shifted[tuple(to)] = mask[tuple(source)]
    return shifted
