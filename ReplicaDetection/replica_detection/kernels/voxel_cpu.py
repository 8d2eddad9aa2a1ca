"""MAE, RMSE and SSIM of all pairs with numba: float32 lanes, float64 totals, scratch that stays in the cache."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from . import Block, Distances, window_weights

# Voxels that are summed in float32 before the float64 total takes over: short enough for 1e-7, long enough for SIMD.
CHUNK = 1024
# One task of the difference kernels sees this many queries, so that a chunk of all training cases serves them all.
QUERY_GROUP = 16
# A tile of the SSIM kernels: at most ROWS x COLUMNS valid positions of a (Y, Z) plane, walked along X. The filters read
# scratch rows at the fixed pitch PITCH, which leaves room for the wider window: known distances between taps let
# the compiler vectorise without checking every tap for overlap with the output.
ROWS, COLUMNS = 16, 64
PITCH, PLANE = COLUMNS + 16, ROWS * COLUMNS
# Fused multiply-add is welcome, but no reordering: `_filter_rows` is exact on flat regions only as it is written.
FUSED = {"contract", "nsz", "arcp"}
REORDERED = {"contract", "nsz", "reassoc"}


def mae(queries: Block, training: Block, device: str = "cpu") -> Distances:
    """See `replica_detection.kernels.mae`; both blocks are checked and hold at least one case."""
    q, n = queries.reshape(len(queries), -1), training.reshape(len(training), -1)
    return _sum_differences(q, n, False) / q.shape[1]


def rmse(queries: Block, training: Block, device: str = "cpu") -> Distances:
    """See `replica_detection.kernels.rmse`; both blocks are checked and hold at least one case."""
    q, n = queries.reshape(len(queries), -1), training.reshape(len(training), -1)
    return np.sqrt(_sum_differences(q, n, True) / q.shape[1])


def ssim(queries: Block, training: Block, data_range: float, window: str, device: str = "cpu") -> Distances:
    """See `replica_detection.kernels.ssim`; both blocks are checked and hold at least one case."""
    axes = queries.ndim - 1
    weights = window_weights(window)
    taps = weights.size
    side = tuple(np.float32(w) for w in weights[: taps // 2][::-1])
    # scikit-image's use_sample_covariance, which its default settings (the uniform window) imply.
    norm = taps**axes / (taps**axes - 1) if window == "uniform" else 1.0
    x, y = _as_volumes(queries), _as_volumes(training)
    tiles = _tiles(x.shape[1:], taps // 2)
    valid = int(tiles[-1, 4] + tiles[-1, 5])
    x_shift, y_shift = _shifts(x), _shifts(y)
    x_moments = _moments(x, x_shift, tiles, valid, side, np.float32(norm))
    same = queries is training
    y_moments = x_moments if same else _moments(y, y_shift, tiles, valid, side, np.float32(norm))
    c1, c2 = np.float32((0.01 * data_range) ** 2), np.float32((0.03 * data_range) ** 2)
    sums = _sum_ssim(x, y, x_shift, y_shift, *x_moments, *y_moments, tiles, side, c1, c2, np.float32(norm))
    return sums.sum(axis=0) / valid


def _as_volumes(cases: Block) -> Block:
    """`(C, X, Y, Z)`; a 2D image is one plane, which the kernels take as repeated along X."""
    return cases if cases.ndim == 4 else cases[:, None]


def _shifts(cases: Block) -> NDArray[np.float32]:
    """A constant near the middle of each case's intensities: covariances are blind to it, float32 products are not."""
    return cases.reshape(len(cases), -1).mean(axis=1)


def _tiles(grid: tuple[int, ...], radius: int) -> NDArray[np.int64]:
    """Tiles of the valid positions, `(T, 6)`: first row, rows, first column, columns, offset and length.

    Offset and length say where a tile's positions, all planes along X included, lie in the flat moments of a case.
    """
    depth = grid[0] - 2 * radius if grid[0] > 1 else 1
    tiles, offset = [], 0
    for row, rows in _pieces(grid[1] - 2 * radius, ROWS, 1):
        for column, columns in _pieces(grid[2] - 2 * radius, COLUMNS, 16):
            length = depth * rows * columns
            tiles.append((row, rows, column, columns, offset, length))
            offset += length
    return np.array(tiles, dtype=np.int64)


def _pieces(total: int, most: int, multiple: int) -> list[tuple[int, int]]:
    """(start, length) of near-equal pieces of at most `most`, all but the last a multiple of `multiple`."""
    length = -(-total // -(-total // most))
    length = -(-length // multiple) * multiple
    return [(start, min(length, total - start)) for start in range(0, total, length)]


@njit(parallel=True, cache=True)
def _sum_differences(queries, training, squared):
    """Sum of |q - n| or (q - n)^2 over the voxels, `(Q, N)` float64, from `(Q, V)` and `(N, V)` float32."""
    Q, V = queries.shape
    N = training.shape[0]
    groups = (Q + QUERY_GROUP - 1) // QUERY_GROUP
    chunks = (V + CHUNK - 1) // CHUNK
    # Few queries: the voxels are split as well, so that all cores have work. The split never depends on the cores.
    parts = max(1, min(chunks, 32 // groups))
    sums = np.zeros((parts, Q, N))
    for task in prange(parts * groups):
        part, group = task // groups, task % groups
        for chunk in range(part * chunks // parts, (part + 1) * chunks // parts):
            low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, V)
            for q in range(group * QUERY_GROUP, min((group + 1) * QUERY_GROUP, Q)):
                for n in range(0, N, 4):
                    _add_four(queries[q, low:high], training, n, low, high, squared, sums[part, q])
    return sums.sum(axis=0)


@njit(cache=True)
def _add_four(query, training, n, low, high, squared, sums):
    """Add one chunk's sums of up to four training cases to `sums`; the last case stands in for missing ones."""
    last = training.shape[0] - 1
    a, b = training[n, low:high], training[min(n + 1, last), low:high]
    c, d = training[min(n + 2, last), low:high], training[min(n + 3, last), low:high]
    four = _squared(query, a, b, c, d) if squared else _absolute(query, a, b, c, d)
    for k in range(min(4, last + 1 - n)):
        sums[n + k] += four[k]


@njit(fastmath=REORDERED, cache=True)
def _absolute(x, a, b, c, d):
    sa = sb = sc = sd = np.float32(0)
    for i in range(x.size):
        sa += abs(x[i] - a[i])
        sb += abs(x[i] - b[i])
        sc += abs(x[i] - c[i])
        sd += abs(x[i] - d[i])
    return sa, sb, sc, sd


@njit(fastmath=REORDERED, cache=True)
def _squared(x, a, b, c, d):
    sa = sb = sc = sd = np.float32(0)
    for i in range(x.size):
        sa += (x[i] - a[i]) ** 2
        sb += (x[i] - b[i]) ** 2
        sc += (x[i] - c[i]) ** 2
        sd += (x[i] - d[i]) ** 2
    return sa, sb, sc, sd


@njit(parallel=True, cache=True)
def _moments(cases, shifts, tiles, valid, side, norm):
    """Local means (less the case's shift) and variances of `(C, X, Y, Z)`, each `(C, valid)` float32 in tile order."""
    C = cases.shape[0]
    means, variances = np.empty((C, valid), np.float32), np.empty((C, valid), np.float32)
    for task in prange(len(tiles) * C):
        tile, case = tiles[task // C], task % C
        offset, length = tile[4], tile[5]
        mean, variance = means[case, offset : offset + length], variances[case, offset : offset + length]
        ones = np.ones(1, np.float32)
        _filter_tile(cases[case], ones[0] * 0 + shifts[case], cases[case], shifts[case], True, tile, side, mean)
        _filter_tile(cases[case], shifts[case], cases[case], shifts[case], False, tile, side, variance)
        for i in range(length):
            variance[i] = _covariance(variance[i], mean[i], mean[i]) * norm
    return means, variances
