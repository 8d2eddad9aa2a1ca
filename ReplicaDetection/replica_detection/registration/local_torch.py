"""`registration.local` and `pyramid.structure` in torch, for CUDA: many aligned pairs at once, in float64.

Rounding decides which voxels lie inside and how flat neighbourhoods correlate: float64 leaves both as on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import grid_sample

from replica_detection.kernels.arrays_torch import BATCH_BYTES, filtered, gaussian_bands, residents
from replica_detection.registration.local import CONSTANT, TRUNCATE, WINDOW
from replica_detection.registration.pyramid import STRUCTURE, Level


def structure(image: torch.Tensor) -> torch.Tensor:
    """See `pyramid.structure`: the voxels of a level (X, Y, Z) that show structure, bool."""
    bands = gaussian_bands(image.shape, 1.0, 4.0, str(image.device))
    power = filtered((image.double() ** 2)[None], bands)[0]
    return power > STRUCTURE**2 * torch.quantile(power.flatten(), 0.995)


def sampled(
    volumes: torch.Tensor, matrices: torch.Tensor, offsets: torch.Tensor, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Volumes at `matrix @ voxel + offset`, by trilinear interpolation.

    Args:
        volumes: (S, X, Y, Z).
        matrices, offsets: (S, 3, 3) and (S, 3) float64, from a voxel of the result to one of the volume.
        shape: of the result.

    Returns:
        (S, *shape) values, float64, and (S, *shape) bool, True inside the volume; outside, the values mean nothing.
    """
    axes = [torch.arange(n, dtype=torch.float64, device=volumes.device) for n in shape]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    at = matrices @ voxels + offsets[:, :, None]
    last = torch.tensor(volumes.shape[1:], dtype=torch.float64, device=volumes.device)[:, None] - 1
    inside = ((at >= 0) & (at <= last)).all(1)
    grid = (at * (2 / last.clamp(min=1)) - 1).flip(1).transpose(1, 2)[:, None, None]
    found = grid_sample(volumes[:, None].double(), grid, padding_mode="border", align_corners=True)
    return found.reshape(-1, *shape), inside.reshape(-1, *shape)


def in_voxels(matrices: np.ndarray, shifts: np.ndarray, level: Level) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (S, 3, 3) and offsets (S, 3) between the voxels of a level, of transforms in mm from its centre."""
    spacing, centre = np.array(level.spacing), (np.array(level.shape) - 1) / 2
    in_voxels = matrices * spacing / spacing[:, None]
    return in_voxels, centre + shifts / spacing - in_voxels @ centre


def upper_quartiles(
    query: np.ndarray,
    training: np.ndarray,
    which: np.ndarray,
    matrices: np.ndarray,
    shifts: np.ndarray,
    level: Level,
    device: str,
) -> np.ndarray:
    """Upper quartile of the local correlation of a query with aligned training cases, (S,); see `local`.

    Args:
        query: (X, Y, Z), a level.
        training: (C, X, Y, Z), the same level.
        which: (S,) indices into `training`.
        matrices, shifts: (S, 3, 3) and (S, 3): a position u of the query corresponds to `matrix @ u + shift` in the
            training case, both in mm from the centre.

    Returns:
        -1 where the training case covers no voxel of the query's structure.
    """
    with torch.inference_mode():
        a = torch.tensor(query, device=device)
        inside, a = structure(a), a.double()
        bands = gaussian_bands(query.shape, WINDOW, TRUNCATE, str(a.device))
        a_mean, a_square = filtered(torch.stack([a, a * a]), bands)
        a_variance = (a_square - a_mean**2).clamp(min=0)
        found = []
        # Each pair takes about twenty volumes in float64.
        step = max(1, BATCH_BYTES // (20 * 8 * query.size))
        cases = residents(device).tensor(training)
        for start in range(0, len(which), step):
            rows = slice(start, start + step)
            placed, offsets = in_voxels(matrices[rows], shifts[rows], level)
            here = cases[which[rows].tolist()]
            b, covered = sampled(
                here, torch.from_numpy(placed).to(device), torch.from_numpy(offsets).to(device), query.shape
            )
            b = torch.where(covered, b, 0.0)
            mean, square, product = (filtered(part, bands) for part in (b, b * b, a * b))
            spread = (a_variance * (square - mean**2).clamp(min=0)).sqrt()
            local = (product - a_mean * mean + CONSTANT) / (spread + CONSTANT)
            local = torch.where(covered & inside, local, torch.nan).flatten(1)
            found.append(local.nanquantile(0.75, dim=1).nan_to_num(-1.0))
        return torch.cat(found).cpu().numpy()
