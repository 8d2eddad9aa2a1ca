"""The input of registration: an image in three resolutions, locally normalized, and the voxels that show structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Largest number of voxels of the three resolutions: the first is searched for all training cases, the last for few.
LEVEL_VOXELS = (1_000, 8_000, 64_000)
# Width of the local normalization, as a share of the field of view (geometric mean of its sides).
WINDOW_SHARE = 0.1
# Standard deviation, in mapped intensities, below which a neighbourhood counts as flat.
FLAT = 0.05
# A voxel is structure if the root mean square around it exceeds this share of the largest (99.5th percentile).
STRUCTURE = 0.3


@dataclass(frozen=True)
class Level:
    """One resolution of a grid: `shape` voxels of `spacing` mm each, three axes always (a 2D image has one slice)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


def levels(grid: Sequence[int], spacing: Sequence[float]) -> tuple[Level, ...]:
    """The resolutions of a grid, coarsest first, all of the same field of view.

    Args:
        grid: voxels along each axis, two or three.
        spacing: mm along each axis.
    """
    full = np.array((*grid, 1)[:3])
    extent = full * np.array((*spacing, 1.0)[:3])
    used = np.arange(3) < len(grid)

    def shape(edge: float) -> np.ndarray:
        """Voxels of about `edge` mm, never finer than the grid itself."""
        return np.where(used, np.clip(np.round(extent / edge), 1, full), 1).astype(int)

    found = []
    for most in LEVEL_VOXELS:
        low, high = float(min(extent / full)), float(max(extent))
        if shape(low).prod() <= most:
            high = low
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if shape(middle).prod() > most else (low, middle)
        x, y, z = shape(high).tolist()
        found.append(Level((x, y, z), tuple((extent / (x, y, z)).tolist())))
    return tuple(found)


def pyramid(image: np.ndarray, chain: Sequence[Level]) -> list[np.ndarray]:
    """The image at each level, float32 (X, Y, Z), locally normalized: mean 0 and standard deviation 1 around a voxel.

    Local normalization removes gain, bias field and most of a gamma. Flat regions stay near 0, so that the noise of an
    empty background does not count as structure.

    Args:
        image: (X, Y[, Z]) in [0, 1], or a mask (its foreground counts as 1).
        chain: from `levels` of the image's grid.
    """
    from scipy import ndimage

    image = np.asarray(image, np.float32).reshape(*image.shape, 1)[..., :1] if image.ndim == 2 else np.asarray(image)
    fine = resampled(np.ascontiguousarray(image, np.float32), chain[-1].shape)
    sides = [n * s for n, s in zip(chain[-1].shape, chain[-1].spacing, strict=True) if n > 1] or [1.0]
    sigma_mm = WINDOW_SHARE * math.prod(sides) ** (1 / len(sides))
    sigma = [sigma_mm / s if n > 1 else 0.0 for n, s in zip(chain[-1].shape, chain[-1].spacing, strict=True)]
    centred = fine - ndimage.gaussian_filter(fine, sigma, mode="nearest")
    spread = np.sqrt(ndimage.gaussian_filter(centred**2, sigma, mode="nearest") + FLAT**2)
    normalized = centred / spread
    return [resampled(normalized, level.shape) for level in chain]


def resampled(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The image with another number of voxels over the same field of view, after a Gaussian of half the new voxel.

    Mirrored images give exactly mirrored results, unlike interpolation from a corner.
    """
    from scipy import ndimage

    factors = [n / m for n, m in zip(image.shape, shape, strict=True)]
    out = ndimage.gaussian_filter(image, [0.5 * f if n > 1 else 0.0 for f, n in zip(factors, image.shape, strict=True)])
    if tuple(image.shape) != tuple(shape):
        out = ndimage.zoom(out, [1 / f for f in factors], order=1, grid_mode=True, mode="nearest")
    return out.astype(np.float32)


def structure(image: np.ndarray) -> np.ndarray:
    """The voxels of a level that show structure, (X, Y, Z) bool. Only there a query is compared.

    A copy that lost a part is thus measured by the rest, and an empty background has no influence.
    """
    from scipy import ndimage

    power = ndimage.gaussian_filter(image**2, [1.0 if n > 1 else 0.0 for n in image.shape], mode="nearest")
    return power > STRUCTURE**2 * np.percentile(power, 99.5)
