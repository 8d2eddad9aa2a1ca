"""Voxel level: mean absolute error, root mean squared error, structural similarity of the prepared images."""

from __future__ import annotations

import numpy as np

from replica_detection import kernels
from replica_detection.measures.base import Block, Measure, register
from replica_detection.preparation.prepare import PreparedImage

SSIM_WINDOW = 11


class _VoxelMeasure(Measure):
    level = "voxel"
    sense = "distance"
    needs = ("image",)

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        return {"image": case.image}


@register
class MeanAbsoluteError(_VoxelMeasure):
    """MAE over all voxels, in units of the mapped intensity (RELICT, image level)."""

    name = "mae"
    definition = "mean absolute difference of mapped intensities over all voxels of the grid"

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        return kernels.mae(queries["image"], training["image"], device=self.device)


@register
class RootMeanSquaredError(_VoxelMeasure):
    """RMSE over all voxels, in units of the mapped intensity (RELICT, image level)."""

    name = "rmse"
    definition = "root of the mean squared difference of mapped intensities over all voxels of the grid"

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        return kernels.rmse(queries["image"], training["image"], device=self.device)


@register
class StructuralSimilarity(_VoxelMeasure):
    """SSIM (Wang et al. 2004) in 2D or 3D, mean over the valid interior; ranked as 1 - SSIM (RELICT, image level).

    The data range is that of the preparation, never of the pair: SSIM changes by up to 0.1 with it.
    """

    name = "ssim"
    sense = "similarity"

    @property
    def definition(self) -> str:
        return (
            f"SSIM, Gaussian window of {SSIM_WINDOW} taps and sigma 1.5, k1 0.01, k2 0.03, data range "
            f"{self.preparation.data_range:g}, mean over the valid interior"
        )

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        similarity = kernels.ssim(
            queries["image"], training["image"], data_range=self.preparation.data_range, device=self.device
        )
        # Rounding may leave an SSIM slightly above 1; a distance is never negative.
        return np.maximum(1 - similarity, 0)

    def problem(self) -> str | None:
        if min(self.preparation.grid) < SSIM_WINDOW:
            grid = " x ".join(map(str, self.preparation.grid))
            return f"its window of {SSIM_WINDOW} voxels does not fit into the grid {grid}"
        return None
