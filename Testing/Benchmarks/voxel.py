"""All-pairs MAE, RMSE and SSIM against NumPy and scikit-image, pair by pair on the same float32 arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from timing import Row, grid_name, in_milliseconds, interleaved

from replica_detection.kernels import mae, rmse, ssim

GRIDS = ((64, 64, 48), (96, 96, 64))
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


def measure() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for grid in GRIDS:
        queries, training = _cohort(rng, 24, grid), _cohort(rng, 32, grid)
        yield _row("ssim, Gaussian window", "scikit-image", queries, training, 40, ssim, _skimage_gaussian)
        yield _row(
            "ssim, uniform window", "scikit-image", queries, training, 40,
            lambda q, n: ssim(q, n, window="uniform"), _skimage_uniform,
        )  # fmt: skip
        yield _row("rmse", "numpy", queries, training, 8, rmse, _numpy_rmse)
        yield _row("mae", "numpy", queries, training, 2, mae, _numpy_mae)


def _row(
    what: str, against: str, queries: np.ndarray, training: np.ndarray, budget: float, ours: Callable, theirs: Callable
) -> Row:
    Q, N = len(queries), len(training)
    slow = against == "scikit-image"

    def one_pair(k: int) -> float:
        return theirs(queries[k % Q], training[(k * 7 + k // Q) % N])

    all_pairs, pair = interleaved(lambda: ours(queries, training), one_pair, 8 if slow else 40, 7 if slow else 25)
    values = ours(queries, training)
    difference = max(
        abs(theirs(queries[q].astype(np.float64), training[n].astype(np.float64)) - values[q, n])
        for q, n in ((0, 0), (3, 1), (Q // 2, N // 2), (Q - 1, N - 1))
    )
    return Row(
        what,
        f"{against}, pair by pair",
        f"{Q} x {N} of {grid_name(queries.shape[1:])}",
        in_milliseconds(all_pairs / (Q * N)) + " a pair",
        in_milliseconds(pair) + " a pair",
        pair * Q * N / all_pairs,
        budget,
        difference,
    )


def _cohort(rng: np.random.Generator, cases: int, grid: tuple[int, ...]) -> np.ndarray:
    """Smooth blobs in an empty background with some noise, in [0, 1]."""
    volumes = np.empty((cases, *grid), np.float32)
    for volume in volumes:
        smooth = gaussian_filter(rng.standard_normal(grid), 4)
        noise = rng.normal(0, 0.01, grid)
        volume[:] = np.clip(np.where(smooth > 0, smooth / smooth.max() + noise, 0), 0, 1)
    return volumes


def _skimage_gaussian(a: np.ndarray, b: np.ndarray) -> float:
    return structural_similarity(a, b, **GAUSSIAN)


def _skimage_uniform(a: np.ndarray, b: np.ndarray) -> float:
    return structural_similarity(a, b, data_range=1.0)


def _numpy_rmse(a: np.ndarray, b: np.ndarray) -> float:
    return np.sqrt(np.mean((a - b) ** 2))


def _numpy_mae(a: np.ndarray, b: np.ndarray) -> float:
    return np.mean(np.abs(a - b))
