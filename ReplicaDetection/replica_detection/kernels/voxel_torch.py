"""MAE, RMSE and SSIM of all pairs with torch, for CUDA; pairs are batched by bytes, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from replica_detection.errors import ConfigurationError
from replica_detection.kernels.arrays import Block, Distances, window_weights

# What the temporaries of one batch of pairs may take on the device. Each kernel says how many volumes a pair costs.
BATCH_BYTES = 512 * 2**20


def checked(device: str) -> str:
    """`device` if torch can use it; ConfigurationError otherwise."""
    if device == "cpu":
        return device
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not number.isdecimal() or int(number) >= found:
        raise ConfigurationError(f"The device {device!r} cannot be used: torch finds {found} CUDA devices here.")
    return device


def mae(queries: Block, training: Block, device: str) -> Distances:
    """See `replica_detection.kernels.mae`; both blocks are checked and hold at least one case."""
    return _mean_differences(queries, training, device, squared=False)


def rmse(queries: Block, training: Block, device: str) -> Distances:
    """See `replica_detection.kernels.rmse`; both blocks are checked and hold at least one case."""
    return np.sqrt(_mean_differences(queries, training, device, squared=True))


def ssim(queries: Block, training: Block, data_range: float, window: str, device: str) -> Distances:
    """See `replica_detection.kernels.ssim`; both blocks are checked and hold at least one case."""
    weights = window_weights(window)
    axes = queries.ndim - 1
    norm = weights.size**axes / (weights.size**axes - 1) if window == "uniform" else 1.0
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = np.empty((len(queries), len(training)))
    with torch.inference_mode(), _full_float32():
        bands = [_band(length, weights).to(device) for length in queries.shape[1:]]
        for low, high in _batches(training, volumes_per_case=10):
            y, y_shift = _centred(torch.tensor(training[low:high], device=device))
            y_mean, y_variance = _moments(y, bands, norm)
            y_mean_true = y_mean + y_shift
            for q in range(len(queries)):
                x, x_shift = _centred(torch.tensor(queries[q : q + 1], device=device))
                x_mean, x_variance = _moments(x, bands, norm)
                x_mean_true = x_mean + x_shift
                covariance = (_filter(x * y, bands) - x_mean * y_mean) * norm
                local = (2 * x_mean_true * y_mean_true + c1) * (2 * covariance + c2)
                local /= (x_mean_true**2 + y_mean_true**2 + c1) * (x_variance + y_variance + c2)
                values[q, low:high] = local.flatten(1).mean(1, dtype=torch.float64).cpu().numpy()
    return values


def _mean_differences(queries: Block, training: Block, device: str, squared: bool) -> Distances:
    """Mean of |q - n| or (q - n)^2; differences rather than a matrix product, which would lose near-copies' digits."""
    means = np.empty((len(queries), len(training)))
    with torch.inference_mode():
        for low, high in _batches(training, volumes_per_case=3):
            cases = torch.tensor(training[low:high], device=device).flatten(1)
            for q in range(len(queries)):
                difference = cases - torch.tensor(queries[q], device=device).flatten()
                difference = difference.square_() if squared else difference.abs_()
                means[q, low:high] = difference.mean(1, dtype=torch.float64).cpu().numpy()
    return means


def _batches(training: Block, volumes_per_case: int) -> Iterator[tuple[int, int]]:
    step = max(1, BATCH_BYTES // (training[0].nbytes * volumes_per_case))
    for low in range(0, len(training), step):
        yield low, min(low + step, len(training))


def _centred(cases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cases less their mean, `(C, ...)`, and that mean, `(C, 1, ...)`: float32 products of small numbers lose less."""
    shift = cases.mean(dim=tuple(range(1, cases.ndim)), keepdim=True)
    return cases - shift, shift


def _moments(cases: torch.Tensor, bands: list[torch.Tensor], norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    mean = _filter(cases, bands)
    return mean, (_filter(cases * cases, bands) - mean * mean) * norm


def _band(length: int, weights: np.ndarray) -> torch.Tensor:
    """The filter of one axis as a `(length - taps + 1, length)` matrix: on a GPU far quicker than a convolution of one
    channel."""
    valid = length - weights.size + 1
    band = torch.zeros(valid, length)
    for tap, weight in enumerate(weights):
        band[range(valid), range(tap, tap + valid)] = float(weight)
    return band


def _filter(images: torch.Tensor, bands: list[torch.Tensor]) -> torch.Tensor:
    """`(B, X, Y[, Z])` filtered along every axis, valid positions only."""
    *outer, last = bands
    images = images @ last.T
    if len(outer) == 2:
        images = outer[1] @ images
    shape = images.shape
    return (outer[0] @ images.flatten(2)).reshape(shape[0], -1, *shape[2:])


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep matrix products out of TF32, whose ten bits of mantissa spoil the covariances."""
    matmul = torch.backends.cuda.matmul
    # The old switch and the new one must not be mixed: torch refuses.
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)
