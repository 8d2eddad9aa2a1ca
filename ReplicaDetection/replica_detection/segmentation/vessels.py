"""Segmenter of the arteries at the base of the brain on TOF-MRA or CTA, by their brightness above the surroundings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.io.volume import Volume
from replica_detection.segmentation.base import (
    Segmenter,
    WorkingGrid,
    fill_small_holes,
    reach,
    register,
    require_3d,
    require_positive,
    spread,
)
from replica_detection.segmentation.brain import find_brain
from replica_detection.segmentation.brain_mr import find_brain_mr
from replica_detection.segmentation.tubes import surroundings, tube_response

MODALITIES = ("auto", "mra", "cta")


@dataclass(frozen=True)
class _Scene:
    """Image, surroundings and search regions; all (X, Y, Z) float32 or bool, intensities as in the image.

    `image` is slightly smoothed, `around` the image without vessels, `level` the brightness of brain nearby (0: not
    known); faint vessels are searched `inside`, bright ones `outside`, and noise is measured where `quiet`.
    """

    image: np.ndarray
    around: np.ndarray
    level: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    quiet: np.ndarray


@register("vessels")
@dataclass(frozen=True)
class Vessels(Segmenter):
    """Arteries on TOF-MRA or CTA.

    The surroundings are an opening by discs in nine orientations, which keeps brain, fat and bone of any flat or
    thick shape and removes tubes. The remainder is averaged along short lines in 13 directions, and the best direction
    counts. Vessels are voxels of at least half the height of the nearest bright line (the wall of a tube lies at its
    half maximum) that are connected to a bright one. All limits are relative to the image's own noise and to its own
    brightest vessels. Within the brain faint vessels count; outside it only those much brighter than fat and connected
    to one within. On CTA, vessels within the skull are segmented, but not the carotid arteries within bone.

    Args:
        modality: `mra`, `cta`, or `auto`, which means CTA where the values can only be HU.
        voxel_mm: smaller voxels are merged to about this size first.
        widest_mm: tubes up to this diameter are vessels; flat or thicker things are surroundings.
        line_mm: length of the lines.
        grow_noise: a line is followed down to this many standard deviations of noise ...
        grow_share: ... and to this share of the brightest vessels' height (the mean of the brightest 1 ml).
        seed_noise: a connected part must reach this many standard deviations of noise ...
        seed_share: ... and this share of the brightest vessels' height.
        wall_share: the wall lies at this share of the nearest line's height.
        wall_mm: largest distance of that line.
        rim_mm: the outermost part of the brain, where scalp fat may show through thin bone, counts as outside.
        outside_ratio: outside the brain (MRA), a vessel is this many times as bright as brain; fat is 1.2 to 1.6.
        least_hu: CTA: least HU of a vessel.
        bone_hu: CTA: brighter voxels are bone or metal.
        least_mm3: smaller parts are left out.
        least_mm: parts whose bounding box has a shorter diagonal are left out.
        dim_mm2: parts with a larger cross-section (volume by that diagonal) are fat or muscle ...
        dim_share: ... where their median is below this share of the brightest vessels' height.
    """

    modality: str = "auto"
    voxel_mm: float = 0.6
    widest_mm: float = 9.0
    line_mm: float = 5.0
    grow_noise: float = 3.5
    grow_share: float = 0.10
    seed_noise: float = 7.5
    seed_share: float = 0.25
    wall_share: float = 0.5
    wall_mm: float = 2.0
    rim_mm: float = 4.0
    outside_ratio: float = 1.8
    least_hu: float = 110.0
    bone_hu: float = 600.0
    least_mm3: float = 20.0
    least_mm: float = 7.0
    dim_mm2: float = 6.0
    dim_share: float = 0.35

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ConfigurationError(f"unknown modality '{self.modality}'; known: {', '.join(MODALITIES)}")
        require_positive(self, *(name for name in vars(self) if name != "modality"))

    @property
    def name(self) -> str:
        return "vessels"

    @property
    def version(self) -> int:
        return 1

    @property
    def labels(self) -> dict[int, str]:
        return {1: "vessels"}

    def segment(self, volume: Volume) -> np.ndarray:
        """Mask (X, Y, Z) uint8 of the vessels; all 0 where there are none.

        Raises:
            ConfigurationError: a single slice, or `cta` and values other than HU.
        """
        require_3d(self, volume)
        grid = WorkingGrid.of(volume, self.voxel_mm)
        hu = float(volume.array.min()) <= -200 and float(volume.array.max()) >= 300
        if self.modality == "cta" and not hu:
            raise ConfigurationError(
                "segmenter 'vessels' with modality 'cta' needs values in HU, with air (-1000) and bone: convert the "
                "images to HU (often: subtract 1024), or give masks"
            )
        cta = self.modality == "cta" or (self.modality == "auto" and hu)
        image = grid.to_grid(volume.array)
        scene = self._cta(image, grid.spacing_mm) if cta else self._mra(image, grid.spacing_mm)
        if scene is None:
            return np.zeros(volume.array.shape, np.uint8)
        vessels = self._trace(scene, grid.spacing_mm)
        return grid.to_volume(vessels.astype(np.float32) - 0.5)

    def _mra(self, image: np.ndarray, spacing_mm: tuple[float, ...]) -> _Scene:
        around = surroundings(image, spacing_mm, self.widest_mm / 2)
        brain = find_brain_mr(image, around, spacing_mm)
        calm = _calm(image, spacing_mm, 0.3)
        if brain is None:
            # The background was suppressed, or there is too little brain: one limit everywhere.
            everywhere = np.ones(image.shape, bool)
            quiet = image > 0 if (image > 0).mean() > 0.2 else everywhere
            return _Scene(calm, around, np.zeros_like(calm), everywhere, ~everywhere, quiet)
        inside = ~reach(~brain.mask, spacing_mm, self.rim_mm)
        bright = _calm(image, spacing_mm, 0.7) > self.outside_ratio * brain.level
        outside = reach(~inside & bright & (brain.level > 0), spacing_mm, 1.5)
        # Cortex between two sulci is too small for the discs: within the brain, brain's level is the least.
        around = np.where(inside, np.maximum(around, brain.level), around)
        return _Scene(calm, around, brain.level, inside, outside, inside & (around > 0.9 * brain.level))

    def _cta(self, image: np.ndarray, spacing_mm: tuple[float, ...]) -> _Scene | None:
        image = np.clip(image, -200, self.bone_hu)
        brain = find_brain(image, spacing_mm, bone_hu=400.0)
        if brain is None:
            return None
        around = surroundings(image, spacing_mm, self.widest_mm / 2)
        away = ~reach(image >= self.bone_hu, spacing_mm, 2.0)
        level = np.full(image.shape, brain.median_hu, np.float32)
        calm = _calm(image, spacing_mm, 0.3)
        inside = brain.mask & away
        around = np.maximum(around, level)
        return _Scene(calm, around, level, inside & (calm > self.least_hu), np.zeros_like(inside), inside)

    def _trace(self, scene: _Scene, spacing_mm: tuple[float, ...]) -> np.ndarray:
        """Vessels (X, Y, Z) bool: hysteresis on the line response, walls at half of the nearest line's height."""
        from scipy import ndimage

        height = scene.image - scene.around
        height -= np.median(height[scene.quiet])
        noise = spread(height[scene.quiet])
        line = tube_response(height, spacing_mm, self.line_mm)
        usual = float(np.median(line[scene.quiet]))
        line_noise = spread(line[scene.quiet])
        top = _mean_of_brightest(line[scene.inside], 1000 / float(np.prod(spacing_mm)))
        size = [2 * max(1, round(self.wall_mm / s)) + 1 for s in spacing_mm]
        wall = self.wall_share * ndimage.maximum_filter(line, size)
        grow = max(usual + self.grow_noise * line_noise, self.grow_share * top)
        seed = max(usual + self.seed_noise * line_noise, self.seed_share * top)
        candidates = np.where(scene.inside, line > grow, scene.outside) & (height > np.maximum(wall, 1.5 * noise))
        candidates &= height > 0
        seeds = candidates & scene.inside & (line > seed)
        kept = self._long_parts(candidates, seeds, height / max(top, 1e-6), spacing_mm)
        return fill_small_holes(kept, spacing_mm, 8.0)

    def _long_parts(
        self, candidates: np.ndarray, seeds: np.ndarray, share: np.ndarray, spacing_mm: tuple[float, ...]
    ) -> np.ndarray:
        """The connected parts that hold a seed, are large and long enough, and bright for their thickness."""
        from scipy import ndimage

        labels, count = ndimage.label(candidates, np.ones((3, 3, 3)))
        volume = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(spacing_mm))
        keep = np.zeros(count + 1, bool)
        keep[np.unique(labels[seeds])] = True
        keep &= volume >= self.least_mm3
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            if keep[label]:
                size = [(s.stop - s.start) * mm for s, mm in zip(box, spacing_mm, strict=True)]
                length = float(np.linalg.norm(size))
                dim = float(np.median(share[box][labels[box] == label])) < self.dim_share
                keep[label] = length >= self.least_mm and not (dim and volume[label] / length > self.dim_mm2)
        keep[0] = False
        return keep[labels]


def _calm(image: np.ndarray, spacing_mm: tuple[float, ...], sigma_mm: float) -> np.ndarray:
    """The image smoothed by a Gaussian of `sigma_mm`."""
    from scipy import ndimage

    return ndimage.gaussian_filter(image, [sigma_mm / s for s in spacing_mm], truncate=3)


def _mean_of_brightest(values: np.ndarray, count: float) -> float:
    """Mean of the `count` largest values, at least of one; 0 for no values."""
    number = min(values.size, max(1, round(count)))
    return float(np.partition(values, values.size - number)[values.size - number :].mean()) if values.size else 0.0
