"""Segmenter of blood in brain and ventricles on a non-contrast head CT, by its HU relative to the patient's brain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.io.volume import Volume
from replica_detection.segmentation.base import (
    Segmenter,
    WorkingGrid,
    bounding_box,
    reach,
    register,
    require_3d,
    require_positive,
)
from replica_detection.segmentation.brain import Brain, find_brain


@register("hemorrhage")
@dataclass(frozen=True)
class Hemorrhage(Segmenter):
    """Intraparenchymal and intraventricular blood on a non-contrast head CT.

    Acute blood is 15 to 45 HU brighter than brain. Parts that stay bright when smoothed are seeds; each grows to half
    its own height above the brain's median. Other bright structures are left out: bone and its partial volume,
    calcification, falx and tentorium (thin), venous sinuses (small and along bone), beam hardening (no edges). Blood
    as dense as brain (weeks old), and blood outside the brain, is not segmented.

    Args:
        voxel_mm: smaller voxels are merged to about this size first.
        bone_hu: brighter voxels are bone.
        calcium_hu: voxels brighter than this after smoothing are calcification and left out, with a margin.
        calcium_margin_mm: that margin.
        seed_offset_hu: least height of a seed above the brain's median, after smoothing by `seed_sigma_mm`.
        seed_sigma_mm: sigma of that Gaussian, within and across slices.
        grow_offset_hu: a part grows down to this height above the brain's median ...
        grow_share: ... but not below this share of its own median height.
        sheet_mm: bright parts thinner than this within the slice are falx, tentorium or a vein.
        rim_mm: distance from bone within which nothing is blood.
        least_slice_cm2: slices with less brain are the canal below it or the vertex, full of partial volume: left out.
        contrast_hu: a part's median is at least this much above that of its surroundings, 2.5 to 7 mm away.
        least_ml: smaller parts are left out.
        sinus_ml: parts smaller than this of which most lies within `sinus_mm` of bone are a sinus or partial volume.
        sinus_mm: that distance.
    """

    window: ClassVar[tuple[float, float]] = (0, 100)

    voxel_mm: float = 1.0
    bone_hu: float = 200.0
    calcium_hu: float = 100.0
    calcium_margin_mm: float = 3.0
    seed_offset_hu: float = 16.0
    seed_sigma_mm: float = 2.0
    grow_offset_hu: float = 11.0
    grow_share: float = 0.5
    sheet_mm: float = 4.0
    rim_mm: float = 3.0
    least_slice_cm2: float = 20.0
    contrast_hu: float = 14.0
    least_ml: float = 0.3
    sinus_ml: float = 3.0
    sinus_mm: float = 7.0

    def __post_init__(self) -> None:
        require_positive(self, *(vars(self)))

    @property
    def name(self) -> str:
        return "hemorrhage"

    @property
    def version(self) -> int:
        return 1

    @property
    def labels(self) -> dict[int, str]:
        return {1: "hemorrhage"}

    def segment(self, volume: Volume) -> np.ndarray:
        """Mask (X, Y, Z) uint8 of the blood; all 0 where there is none, or where there is no brain within a skull.

        Raises:
            ConfigurationError: a single slice, or values other than HU (no air, no bone).
        """
        require_3d(self, volume)
        _require_hu(volume.array, self.bone_hu)
        grid = WorkingGrid.of(volume, self.voxel_mm)
        hu = grid.to_grid(np.clip(volume.array, -1024, 3071))
        brain = find_brain(hu, grid.spacing_mm, self.bone_hu)
        if brain is None:
            return np.zeros(volume.array.shape, np.uint8)
        box = bounding_box(brain.mask, grid.spacing_mm, 2 * self.sinus_mm)
        level = np.full(hu.shape, -0.5, np.float32)
        level[box] = self._level(hu[box], grid.spacing_mm, replace(brain, mask=brain.mask[box]))
        return grid.to_volume(level)

    def _level(self, hu: np.ndarray, spacing_mm: tuple[float, ...], brain: Brain) -> np.ndarray:
        """Level (X, Y, Z) float32, above 0 in blood."""
        from scipy import ndimage

        calm = ndimage.median_filter(hu, (3, 3, 1))
        # From here on only the height above brain counts, not the HU of the scan.
        height = calm - _brain_level(calm, brain)
        bone_mm = ndimage.distance_transform_edt(hu <= self.bone_hu, sampling=spacing_mm)
        allowed = brain.mask & ~self._other_bright(calm, bone_mm, brain.mask, spacing_mm)
        seeds = allowed & (_mean_within(height, brain.mask, spacing_mm, self.seed_sigma_mm) > self.seed_offset_hu)
        wide = _opened(allowed & (height > self.grow_offset_hu), spacing_mm, self.sheet_mm / 2)
        blood = np.zeros(hu.shape, bool)
        for part in _pieces(wide, seeds):
            top = float(np.median(height[part & seeds]))
            for piece in _pieces(part & (height > max(self.grow_offset_hu, self.grow_share * top)), seeds):
                if self._is_blood(piece, height, brain.mask, bone_mm, spacing_mm):
                    blood |= piece
        for k in np.flatnonzero(blood.any(axis=(0, 1))):
            blood[:, :, k] = ndimage.binary_fill_holes(blood[:, :, k])
        return _smooth(blood, spacing_mm)

    def _is_blood(
        self,
        piece: np.ndarray,
        height: np.ndarray,
        brain: np.ndarray,
        bone_mm: np.ndarray,
        spacing_mm: tuple[float, ...],
    ) -> bool:
        """True for a piece that is large enough, not along bone, and well above its surroundings.

        Beam hardening has no such edges.
        """
        volume_ml = np.count_nonzero(piece) * float(np.prod(spacing_mm)) / 1000
        beside_bone = np.count_nonzero(bone_mm[piece] <= self.sinus_mm) > 0.6 * np.count_nonzero(piece)
        if volume_ml < self.least_ml or (beside_bone and volume_ml < self.sinus_ml):
            return False
        ring = brain & reach(piece, spacing_mm, 7.0) & ~reach(piece, spacing_mm, 2.5) & (height < self.calcium_hu)
        around = float(np.median(height[ring])) if ring.any() else 0.0
        return float(np.median(height[piece])) - around >= self.contrast_hu

    def _other_bright(
        self, calm: np.ndarray, bone_mm: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, ...]
    ) -> np.ndarray:
        """Voxels beside bone, also in the slice above or below, calcification with its margin, canal and vertex."""
        excluded, bone = bone_mm <= self.rim_mm, bone_mm == 0
        excluded[:, :, 1:] |= bone[:, :, :-1]
        excluded[:, :, :-1] |= bone[:, :, 1:]
        excluded |= reach(brain & ~excluded & (calm > self.calcium_hu), spacing_mm, self.calcium_margin_mm)
        area_cm2 = brain.sum(axis=(0, 1)) * spacing_mm[0] * spacing_mm[1] / 100
        excluded[:, :, area_cm2 < self.least_slice_cm2] = True
        return excluded


def _require_hu(array: np.ndarray, bone_hu: float) -> None:
    """Raises ConfigurationError where air or bone is missing."""
    low, high = float(array.min()), float(array.max())
    if low > -200 or high < bone_hu + 100:
        raise ConfigurationError(
            f"segmenter 'hemorrhage' needs a head CT in HU, with air (-1000) and bone, found values from {low:g} to "
            f"{high:g}: convert the images to HU (often: subtract 1024), or give masks"
        )


def _brain_level(calm: np.ndarray, brain: Brain) -> np.ndarray:
    """HU of brain in each slice, (Z,): beam hardening raises it at the vertex and between the petrous bones."""
    level = np.full(calm.shape[2], brain.median_hu, np.float32)
    for k in range(calm.shape[2]):
        tissue = calm[:, :, k][brain.mask[:, :, k]]
        if tissue.size > 50:
            level[k] = max(brain.median_hu, float(np.median(tissue)))
    return level


def _mean_within(values: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, ...], sigma_mm: float) -> np.ndarray:
    """Gaussian mean over the mask's voxels alone, so that bone beside it has no effect."""
    from scipy import ndimage

    sigma = [sigma_mm / s for s in spacing_mm]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=2.5)
    total = ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma, truncate=2.5)
    return total / np.maximum(weight, 0.05)


def _opened(mask: np.ndarray, spacing_mm: tuple[float, ...], radius_mm: float) -> np.ndarray:
    """The mask without parts thinner than 2 `radius_mm` within their slice; the opening keeps a voxel of margin."""
    from scipy import ndimage

    core = np.zeros_like(mask)
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        # The border of a region runs half a voxel outside its outermost centres.
        core[:, :, k] = ndimage.distance_transform_edt(mask[:, :, k], sampling=spacing_mm[:2]) > radius_mm
    kept = np.zeros_like(mask)
    for k in np.flatnonzero(core.any(axis=(0, 1))):
        kept[:, :, k] = (
            ndimage.distance_transform_edt(~core[:, :, k], sampling=spacing_mm[:2]) <= radius_mm + spacing_mm[0]
        )
    return mask & kept


def _pieces(part: np.ndarray, seeds: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of `part` that hold a seed."""
    from scipy import ndimage

    labels, _ = ndimage.label(part, ndimage.generate_binary_structure(3, 2))
    return [labels == label for label in np.unique(labels[seeds & part])]


def _smooth(blood: np.ndarray, spacing_mm: tuple[float, ...], sigma_mm: float = 0.7) -> np.ndarray:
    """Level (X, Y, Z) float32 of the smoothed mask, 0 at its border."""
    from scipy import ndimage

    sigma = (sigma_mm / spacing_mm[0], sigma_mm / spacing_mm[1], 0)
    return ndimage.gaussian_filter(blood.astype(np.float32), sigma, truncate=3) - 0.5
