"""`registration.transforms` in torch, for CUDA: masks laid on a query's."""

from __future__ import annotations

import numpy as np
import torch

from replica_detection.kernels.arrays_torch import residents
from replica_detection.preparation.profiles import Preparation
from replica_detection.registration.local_torch import sampled
from replica_detection.registration.transforms import voxels_of


def dice(
    query: np.ndarray, training: np.ndarray, to_training: np.ndarray, preparation: Preparation, device: str
) -> np.ndarray:
    """Dice coefficient of the foreground of a query's mask and of training masks resampled to it, (C,).

    Args:
        query: (X, Y[, Z]) labels, 0 is background.
        training: (C, X, Y[, Z]) labels.
        to_training: (C, 4, 4) as `transforms.resample` takes it.
        device: as torch names it.

    Returns:
        0 where both masks are empty.
    """
    shape = (*query.shape, 1)[:3]
    voxels = np.stack([voxels_of(matrix, preparation) for matrix in to_training])
    with torch.inference_mode():
        a = torch.tensor(query, device=device).reshape(shape) > 0
        masks = residents(device).tensor(training).reshape(-1, *shape) > 0
        placed = torch.from_numpy(voxels).to(device)
        found = []
        for mask, matrix in zip(masks, placed, strict=True):  # one at a time: a grid takes some hundred bytes a voxel
            values, inside = sampled(mask[None], matrix[None, :3, :3], matrix[None, :3, 3], shape)
            b = (values[0] > 0.5) & inside[0]
            found.append(2 * (a & b).sum() / (a.sum() + b.sum()).clamp(min=1))
        return torch.stack(found).double().cpu().numpy()
