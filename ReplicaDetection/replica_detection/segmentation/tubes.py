"""Filters for bright tubes: the image without them, and their brightness along the best of 13 directions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from replica_detection.segmentation.base import merge, unmerge

# Planes of the openings, each by two voxel steps: three along the axes, six diagonal.
_PLANES = (
    ((1, 0, 0), (0, 1, 0)),
    ((1, 0, 0), (0, 0, 1)),
    ((0, 1, 0), (0, 0, 1)),
    ((1, 1, 0), (0, 0, 1)),
    ((1, -1, 0), (0, 0, 1)),
    ((1, 0, 1), (0, 1, 0)),
    ((1, 0, -1), (0, 1, 0)),
    ((0, 1, 1), (1, 0, 0)),
    ((0, 1, -1), (1, 0, 0)),
)
_STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]


def surroundings(image: np.ndarray, spacing_mm: tuple[float, ...], radius_mm: float) -> np.ndarray:
    """The image without its bright tubes: the largest of nine grey openings by flat squares.

    A square of half width `radius_mm` fits into any flat or thick structure in at least one of the planes, but not into
    a tube of a smaller radius. The filter runs on voxels of about 1 mm, and its result is smoothed.

    Args:
        image: (X, Y, Z) float32.
        spacing_mm: voxel size.
        radius_mm: half width of the squares.

    Returns:
        (X, Y, Z) float32.
    """
    from scipy import ndimage

    factors = tuple(max(1, int(1.0 / s + 0.5)) for s in spacing_mm)
    coarse = np.array([s * f for s, f in zip(spacing_mm, factors, strict=True)])
    small = ndimage.gaussian_filter(merge(image, factors), 0.7 / coarse, truncate=3)
    best = np.full(small.shape, -np.inf, np.float32)
    for plane in _PLANES:
        lines = [_line(step, coarse, radius_mm) for step in plane]
        opened = small
        for extreme in (ndimage.minimum_filter, ndimage.maximum_filter):
            opened = _along(extreme, opened, lines)
        np.maximum(best, opened, out=best)
    best = ndimage.gaussian_filter(best, 1.5 / coarse, truncate=3)
    return unmerge(best, factors, image.shape)


def tube_response(height: np.ndarray, spacing_mm: tuple[float, ...], length_mm: float) -> np.ndarray:
    """Mean of `height` along a line of `length_mm` through each voxel, in the best of 13 directions.

    Args:
        height: (X, Y, Z) float32; beyond the edge it counts as its edge value.
        spacing_mm: voxel size.
        length_mm: length of the line.

    Returns:
        (X, Y, Z) float32.
    """
    best = np.full(height.shape, -np.inf, np.float32)
    for step in _STEPS:
        half = max(1, round(length_mm / 2 / float(np.linalg.norm(np.multiply(step, spacing_mm)))))
        pad = [abs(s) * half for s in step]
        padded = np.pad(height.astype(np.float32), [(p, p) for p in pad], mode="edge")
        total = np.zeros(height.shape, np.float32)
        for i in range(-half, half + 1):
            total += padded[
                tuple(slice(p + i * s, p + i * s + n) for p, s, n in zip(pad, step, height.shape, strict=True))
            ]
        total /= 2 * half + 1
        np.maximum(best, total, out=best)
    return best


def _line(step: tuple[int, int, int], spacing_mm: np.ndarray, radius_mm: float) -> np.ndarray:
    """Footprint of a line of half length `radius_mm` along a voxel step."""
    half = max(1, round(radius_mm / float(np.linalg.norm(np.multiply(step, spacing_mm)))))
    footprint = np.zeros([2 * half * abs(s) + 1 for s in step], bool)
    for i in range(-half, half + 1):
        footprint[tuple(half * abs(s) + i * s for s in step)] = True
    return footprint


def _along(extreme: Callable[..., np.ndarray], image: np.ndarray, lines: list[np.ndarray]) -> np.ndarray:
    """The image filtered along one line after the other."""
    for footprint in lines:
        image = extreme(image, footprint=footprint, mode="nearest")
    return image
