"""MAE, RMSE and SSIM of all pairs with torch, for CUDA; pairs are batched by bytes, so that memory stays bounded.

Nothing is copied back before all pairs of a block are done. A read-only block stays on the device between calls
(`arrays_torch.Residents`), so that all measures and all queries of a run share one upload.
"""

from __future__ import annotations

import numpy as np
import torch

from replica_detection.kernels.arrays import Block, Distances, window_weights
from replica_detection.kernels.arrays_torch import BATCH_BYTES, filtered, full_float32, residents

# Voxels that are summed in float32 before the float64 total takes over: few enough for 1e-7. On a GPU 256 threads sum a
# chunk of a pair, eight voxels each, and the chunk of all cases of a block lies in the second-level cache while all its
# pairs are compared. A CPU sums a chunk in one thread.
CHUNK = {"cuda": 2048, "cpu": 128}


def mae(queries: Block, training: Block, device: str) -> Distances:
    """See `replica_detection.kernels.mae`; both blocks are checked and hold at least one case."""
    return _mean_differences(queries, training, device, 1)


def rmse(queries: Block, training: Block, device: str) -> Distances:
    """See `replica_detection.kernels.rmse`; both blocks are checked and hold at least one case."""
    return np.sqrt(_mean_differences(queries, training, device, 2))


def ssim(queries: Block, training: Block, data_range: float, window: str, device: str) -> Distances:
    """See `replica_detection.kernels.ssim`; both blocks are checked and hold at least one case."""
    weights = window_weights(window)
    axes = queries.ndim - 1
    norm = weights.size**axes / (weights.size**axes - 1) if window == "uniform" else 1.0
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    held = residents(device)
    with torch.inference_mode(), full_float32():
        values = torch.empty((len(queries), len(training)), dtype=torch.float64, device=device)
        bands = [_band(length, weights).to(device) for length in queries.shape[1:]]
        for q_place, x_all in held.pieces(queries, _rows(queries, 1)):
            for place, cases in held.pieces(training, _rows(training, 10)):
                y, y_shift = _centred(cases)
                y_mean, y_variance = _moments(y, bands, norm)
                y_mean_true = y_mean + y_shift
                for q, query in enumerate(x_all, q_place.start):
                    x, x_shift = _centred(query[None])
                    x_mean, x_variance = _moments(x, bands, norm)
                    x_mean_true = x_mean + x_shift
                    covariance = (filtered(x * y, bands) - x_mean * y_mean) * norm
                    local = (2 * x_mean_true * y_mean_true + c1) * (2 * covariance + c2)
                    local /= (x_mean_true**2 + y_mean_true**2 + c1) * (x_variance + y_variance + c2)
                    values[q, place] = local.flatten(1).mean(1, dtype=torch.float64)
        return values.cpu().numpy()


def _mean_differences(queries: Block, training: Block, device: str, power: int) -> Distances:
    """Mean of |q - n|^power; differences rather than a matrix product, which would lose near-copies' digits.

    `torch.cdist` reads both chunks of a pair and writes one number, without an array of differences between. From the
    memory of the card a call thus reads the training block three times (it is laid out chunk by chunk once, and then
    read), whatever the number of queries; each pair reads its two images from the cache.
    """
    held = residents(device)
    with torch.inference_mode():
        sums = torch.zeros((len(queries), len(training)), dtype=torch.float64, device=device)
        for q_place, x in held.pieces(queries, _rows(queries, 2)):
            for place, y in held.pieces(training, _rows(training, 2)):
                sums[q_place, place] = _sums(x.flatten(1), y.flatten(1), power)
        return (sums / queries[0].size).cpu().numpy()


def _sums(x: torch.Tensor, y: torch.Tensor, power: int) -> torch.Tensor:
    """Sums of |x - y|^power over the voxels of `(Q, V)` and `(N, V)`, `(Q, N)` float64."""
    total = torch.zeros((len(x), len(y)), dtype=torch.float64, device=x.device)
    voxels, chunk = x.shape[1], CHUNK[x.device.type]
    whole = voxels - voxels % chunk
    at_once = chunk * max(1, BATCH_BYTES // 4 // (4 * chunk * (len(x) + len(y))))
    for low in range(0, whole, at_once):
        high = min(low + at_once, whole)
        total += _chunk_sums(x[:, low:high], y[:, low:high], chunk, power)
    if whole < voxels:
        total += _chunk_sums(x[:, whole:], y[:, whole:], voxels - whole, power)
    return total


def _chunk_sums(x: torch.Tensor, y: torch.Tensor, chunk: int, power: int) -> torch.Tensor:
    a, b = (cases.reshape(len(cases), -1, chunk).transpose(0, 1).contiguous() for cases in (x, y))
    lengths = torch.cdist(a, b, float(power), "donot_use_mm_for_euclid_dist").double()
    return (lengths if power == 1 else lengths.square_()).sum(0)


def _rows(cases: Block, volumes: int) -> int:
    """Cases in a batch of which each takes the memory of so many volumes."""
    return max(1, BATCH_BYTES // (cases[0].nbytes * volumes))


def _centred(cases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cases less their mean, `(C, ...)`, and that mean, `(C, 1, ...)`: float32 products of small numbers lose less."""
    shift = cases.mean(dim=tuple(range(1, cases.ndim)), keepdim=True)
    return cases - shift, shift


def _moments(cases: torch.Tensor, bands: list[torch.Tensor], norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    mean = filtered(cases, bands)
    return mean, (filtered(cases * cases, bands) - mean * mean) * norm


def _band(length: int, weights: np.ndarray) -> torch.Tensor:
    """The filter of one axis, valid positions only, as a `(length - taps + 1, length)` matrix."""
    valid = length - weights.size + 1
    band = torch.zeros(valid, length)
    for tap, weight in enumerate(weights):
        band[range(valid), range(tap, tap + valid)] = float(weight)
    return band
