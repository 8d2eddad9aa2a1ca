"""Pairwise comparisons of the voxel level: numba on the CPU, torch on a GPU, the same results.

Every function compares all queries with all training cases of one block and returns a `(Q, N)` array; nothing here
assumes that the whole cohort is present. numba and torch load with the first call that needs them.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike

from replica_detection.errors import ConfigurationError
from replica_detection.kernels.arrays import WINDOWS, Block, Distances, window_weights


def mae(queries: ArrayLike, training: ArrayLike, device: str = "cpu") -> Distances:
    """Mean absolute difference of every query to every training case, in the unit of the intensities.

    The image-level MAE of RELICT, section 2 (arXiv 2502.17360).

    Args:
        queries: `(Q, X, Y)` or `(Q, X, Y, Z)`, float32; anything else is converted.
        training: `(N, X, Y)` or `(N, X, Y, Z)`, on the grid of the queries.
        device: "cpu" (numba), "cuda" or "cuda:1" (torch), or "torch-cpu" (the torch code on the CPU).

    Returns:
        `(Q, N)` float64; `(0, N)` or `(Q, 0)` for an empty block. Exact copies are at 0 exactly. A NaN voxel makes
        every distance of its case NaN.

    Raises:
        ValueError: the grids differ, or hold no voxel, or are neither 2D nor 3D.
        ConfigurationError: the device is not known, or torch cannot use it.
    """
    queries, training = _blocks(queries, training)
    module, name = _implementation(device)
    if not len(queries) or not len(training):
        return np.zeros((len(queries), len(training)))
    return module.mae(queries, training, name)


def rmse(queries: ArrayLike, training: ArrayLike, device: str = "cpu") -> Distances:
    """Root of the mean squared difference of every query to every training case, in the unit of the intensities.

    The image-level RMSE of RELICT, section 2 (arXiv 2502.17360). Differences are summed as they are, never as
    `x^2 + y^2 - 2xy`, so that near-copies lose no digits. Arguments, result and errors are those of `mae`.
    """
    queries, training = _blocks(queries, training)
    module, name = _implementation(device)
    if not len(queries) or not len(training):
        return np.zeros((len(queries), len(training)))
    return module.rmse(queries, training, name)


def ssim(
    queries: ArrayLike,
    training: ArrayLike,
    *,
    data_range: float = 1.0,
    window: str = "gaussian",
    device: str = "cpu",
) -> Distances:
    """Structural similarity of every query with every training case, in [-1, 1]; 1 means the same image.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004,
    equation 13, with k1 = 0.01 and k2 = 0.03, averaged over the positions where the window lies inside the image:

        (2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2)),    c_i = (k_i data_range)^2

    Args:
        queries: `(Q, X, Y)` or `(Q, X, Y, Z)`, float32; anything else is converted.
        training: `(N, X, Y)` or `(N, X, Y, Z)`, on the grid of the queries.
        data_range: span of the intensities, in their unit. Fixed for a cohort, never taken from a pair.
        window: "gaussian" is 11 taps wide per axis with sigma 1.5 voxels and population covariances (the setting of
            the 2004 paper, section III-B); "uniform" is 7 taps wide with sample covariances (scikit-image's default).
        device: as in `mae`.

    Returns:
        `(Q, N)` float64; `(0, N)` or `(Q, 0)` for an empty block. Exact copies are at 1 exactly. Beside the two
        blocks, their local means and variances are held: twice the size of the blocks.

    Raises:
        ValueError: the grids differ, or are neither 2D nor 3D.
        ConfigurationError: an axis is shorter than the window; `data_range` is not above 0; the window or the device
            is not known.
    """
    queries, training = _blocks(queries, training)
    if window not in WINDOWS:
        raise ConfigurationError(f"SSIM has no window named {window!r}: choose one of {', '.join(WINDOWS)}.")
    if not (np.isfinite(data_range) and data_range > 0):
        raise ConfigurationError(f"SSIM needs a data range above 0, not {data_range}.")
    taps = window_weights(window).size
    if min(queries.shape[1:]) < taps:
        grid = " x ".join(str(length) for length in queries.shape[1:])
        raise ConfigurationError(
            f"The {window} SSIM window spans {taps} voxels along every axis, but the grid is {grid}. "
            "Prepare the volumes on a finer grid or choose another measure."
        )
    module, name = _implementation(device)
    if not len(queries) or not len(training):
        return np.zeros((len(queries), len(training)))
    values = module.ssim(queries, training, float(data_range), window, name)
    return _settle_copies(np.clip(values, -1.0, 1.0), queries, training)


def _blocks(queries: ArrayLike, training: ArrayLike) -> tuple[Block, Block]:
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    training = np.ascontiguousarray(training, dtype=np.float32)
    if queries.ndim not in (3, 4) or queries.shape[1:] != training.shape[1:] or 0 in queries.shape[1:]:
        raise ValueError(
            "queries and training must be (cases, X, Y) or (cases, X, Y, Z) on the same grid, "
            f"not {queries.shape} and {training.shape}"
        )
    return queries, training


def torch_device(device: str) -> str | None:
    """The name by which torch knows a device of `mae`; None for "cpu", which numba serves.

    Raises:
        ConfigurationError: the device is not known, or torch cannot use it.
    """
    if device == "cpu":
        return None
    if device == "torch-cpu" or device == "cuda" or device.startswith("cuda:"):
        from replica_detection.kernels.arrays_torch import checked

        return checked(device.removeprefix("torch-"))
    raise ConfigurationError(f"The device {device!r} is not known: choose cpu, cuda or cuda:<number>.")


def _implementation(device: str) -> tuple[ModuleType, str]:
    """The module that serves `device`, and the name by which that module knows it."""
    name = torch_device(device)
    if name is None:
        from replica_detection.kernels import voxel_cpu

        return voxel_cpu, device
    from replica_detection.kernels import voxel_torch

    return voxel_torch, name


def _settle_copies(values: Distances, queries: Block, training: Block) -> Distances:
    """SSIM of bit-identical cases is 1 by definition; rounding must not put a copy at a distance.

    Only pairs that came out near 1 are looked at, so this costs nothing on a cohort without copies.
    """
    for q, n in np.argwhere(values > 1 - 1e-4):
        if np.array_equal(queries[q], training[n]):
            values[q, n] = 1.0
    return values
