"""Types of the kernels, and the windows of SSIM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOWS = ("gaussian", "uniform")


Block = NDArray[np.float32]


Distances = NDArray[np.float64]


def window_weights(window: str) -> NDArray[np.float64]:
    """Taps of the SSIM window along one axis, symmetric and of sum 1: `(11,)` for "gaussian", `(7,)` for "uniform"."""
    if window == "uniform":
        return np.full(7, 1 / 7)
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    return weights / weights.sum()
