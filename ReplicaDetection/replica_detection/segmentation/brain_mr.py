"""Brain and cisterns on MR angiography with background, and the local brightness of brain."""

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


@dataclass(frozen=True)
class BrainMR:
    """Brain on MR: `mask` (X, Y, Z) bool of brain and what it encloses; `level` (X, Y, Z) float32, brightness of brain
    nearby, 0 far away."""

    mask: np.ndarray
    level: np.ndarray


def find_brain_mr(
    image: np.ndarray, around: np.ndarray, spacing_mm: tuple[float, ...], least_ml: float = 80.0
) -> BrainMR | None:
    """Brain as the largest part of even brightness, after correction for the coils' sensitivity.

    Args:
        image: (X, Y, Z) float32, axes along R, A, S.
        around: the image without its vessels.
        spacing_mm: voxel size.
        least_ml: smaller parts do not count as brain.

    Returns:
        None where there is no brain, e.g. because the background was suppressed.
    """
    from scipy import ndimage

    factors = tuple(max(1, int(2.0 / s + 0.5)) for s in spacing_mm)
    coarse = tuple(s * f for s, f in zip(spacing_mm, factors, strict=True))
    small = ndimage.gaussian_filter(merge(image, factors), [1.2 / s for s in coarse])
    bright = small > 0.25 * np.percentile(small, 99)
    if not bright.any() or np.median(small) <= 0:
        return None
    bias = np.full(small.shape, np.median(small[bright]), np.float32)
    for _ in range(6):
        bias = _smooth_where(small, (small > 0.72 * bias) & (small < 1.3 * bias), coarse, 20.0)
    even = (small > 0.78 * bias) & (small < 1.22 * bias) & (bias > 0)
    core = largest_component(ndimage.distance_transform_edt(even, sampling=coarse) > 5.0)
    if np.count_nonzero(core) * float(np.prod(coarse)) / 1000 < least_ml / 2:
        return None
    brain = _closed(largest_component(even & reach(core, coarse, 6.5)), coarse, 8.0)
    calm = merge(around, factors)
    level = _smooth_where(calm, brain & (calm > 0.85 * bias) & (calm < 1.25 * bias), coarse, 10.0)
    mask = unmerge(brain.astype(np.float32) - 0.5, factors, image.shape) > 0
    return BrainMR(mask, unmerge(level, factors, image.shape))


def _smooth_where(values: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, ...], sigma_mm: float) -> np.ndarray:
    """Gaussian mean over the mask's voxels; 0 where less than 1 % of its weight falls on them."""
    from scipy import ndimage

    sigma = [sigma_mm / s for s in spacing_mm]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma)
    return np.where(weight > 0.01, total / np.maximum(weight, 0.01), 0)


def _closed(mask: np.ndarray, spacing_mm: tuple[float, ...], radius_mm: float) -> np.ndarray:
    """The mask closed by a ball, so that it covers cisterns and vessels at the base; holes in slices are filled."""
    pad = [int(radius_mm / s) + 2 for s in spacing_mm]
    grown = reach(np.pad(mask, [(p, p) for p in pad], mode="edge"), spacing_mm, radius_mm)
    closed = ~reach(~grown, spacing_mm, radius_mm)
    closed = closed[tuple(slice(p, -p) for p in pad)]
    return fill_small_holes(closed, spacing_mm, np.inf)
