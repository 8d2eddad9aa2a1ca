"""MAE, RMSE and SSIM of all pairs with numba: float32 lanes, float64 totals, scratch that stays in the cache."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from replica_detection.kernels.arrays import Block, Distances, window_weights
from replica_detection.kernels.tasks import run

# Voxels that are summed in float32 before the float64 total takes over: short enough for 1e-7 and for six cases to
# stay in the first-level cache, long enough for SIMD.
CHUNK = 2048
# One task of the difference kernels compares this many queries with as many training cases: their chunks stay in the
# second-level cache.
GROUP = 32
# A tile of the SSIM kernels: at most ROWS x COLUMNS valid positions of a (Y, Z) plane, walked along X. The filters read
# scratch rows at the fixed pitch PITCH, which leaves room for the wider window: known distances between taps let
# the compiler vectorise without checking every tap for overlap with the output.
ROWS, COLUMNS = 16, 64
PITCH, PLANE = COLUMNS + 16, ROWS * COLUMNS
# So many queries and so many training cases walk along X together: each plane is fetched once for all their pairs.
QUERIES, CASES = 3, 3
# Fused multiply-add is welcome, but no reordering: `_filter_rows` is exact on flat regions only as it is written.
FUSED = {"contract", "nsz", "arcp"}
REORDERED = {"contract", "nsz", "reassoc"}


def mae(queries: Block, training: Block, device: str = "cpu") -> Distances:
    """See `replica_detection.kernels.mae`; both blocks are checked and hold at least one case."""
    return _mean_differences(queries, training, False)


def rmse(queries: Block, training: Block, device: str = "cpu") -> Distances:
    """See `replica_detection.kernels.rmse`; both blocks are checked and hold at least one case."""
    return np.sqrt(_mean_differences(queries, training, True))


def ssim(queries: Block, training: Block, data_range: float, window: str, device: str = "cpu") -> Distances:
    """See `replica_detection.kernels.ssim`; both blocks are checked and hold at least one case."""
    axes = queries.ndim - 1
    weights = window_weights(window)
    taps = weights.size
    side = tuple(np.float32(w) for w in weights[: taps // 2][::-1])
    # scikit-image's use_sample_covariance, which its default settings (the uniform window) imply.
    norm = np.float32(taps**axes / (taps**axes - 1) if window == "uniform" else 1)
    x, y = _as_planes(queries), _as_planes(training)
    row = queries.shape[-1]
    tiles = _tiles(queries.shape[1:], taps // 2)
    x_shift, y_shift = _shifts(x), _shifts(y)
    c1, c2 = np.float32((0.01 * data_range) ** 2), np.float32((0.03 * data_range) ** 2)
    x_moments = _moments(x, row, x_shift, tiles, side, norm)
    y_moments = x_moments if training is queries else _moments(y, row, y_shift, tiles, side, norm)
    sums = np.zeros((len(tiles), len(x), len(y)))
    pairs = (x, y, row, x_shift, y_shift, *x_moments, *y_moments, tiles, side, c1, c2, norm, sums)
    run(_sum_ssim, len(tiles) * -(-len(x) // QUERIES), *pairs)
    return sums.sum(axis=0) / x_moments[0].shape[1]


def _mean_differences(queries: Block, training: Block, squared: bool) -> Distances:
    x, y = _flat(queries), _flat(training)
    groups = -(-len(x) // GROUP) * -(-len(y) // GROUP)
    chunks = -(-x.shape[1] // CHUNK)
    # Few groups: the voxels are split as well, so that all cores have work. The split never depends on the cores.
    parts = max(1, min(chunks, 64 // groups))
    sums = np.zeros((parts, len(x), len(y)))
    run(_sum_differences, parts * groups, x, y, squared, sums)
    return sums.sum(axis=0) / x.shape[1]


def _moments(
    cases: Block, row: int, shifts: NDArray[np.float32], tiles: NDArray[np.int64], side: tuple, norm: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Local means (less the case's shift) and variances of `(C, X, Y * Z)`, each `(C, valid)` float32 in tile order."""
    valid = int(tiles[-1, 4] + tiles[-1, 5])
    means, variances = np.empty((len(cases), valid), np.float32), np.empty((len(cases), valid), np.float32)
    run(_case_moments, len(tiles) * len(cases), cases, row, shifts, tiles, side, norm, means, variances)
    return means, variances


def _flat(cases: Block) -> Block:
    """`(C, V)`, read-only: numba compiles once more for every mixture of blocks that may and may not be written."""
    cases = cases.reshape(len(cases), -1)
    cases.flags.writeable = False
    return cases


def _as_planes(cases: Block) -> Block:
    """`(C, X, Y * Z)`; a 2D image is one plane, which the kernels take as repeated along X."""
    depth = cases.shape[1] if cases.ndim == 4 else 1
    return _flat(cases).reshape(len(cases), depth, -1)


def _shifts(cases: Block) -> NDArray[np.float32]:
    """A constant near the middle of each case's intensities: covariances are blind to it, float32 products are not."""
    return _flat(cases).mean(axis=1)


def _tiles(grid: tuple[int, ...], radius: int) -> NDArray[np.int64]:
    """Tiles of the valid positions, `(T, 6)`: first row, rows, first column, columns, offset and length.

    Offset and length say where a tile's positions, all planes along X included, lie in the flat moments of a case.
    """
    depth = grid[0] - 2 * radius if len(grid) == 3 else 1
    tiles, offset = [], 0
    for row, rows in _pieces(grid[-2] - 2 * radius, ROWS, 1):
        for column, columns in _pieces(grid[-1] - 2 * radius, COLUMNS, 16):
            length = depth * rows * columns
            tiles.append((row, rows, column, columns, offset, length))
            offset += length
    return np.array(tiles, dtype=np.int64)


def _pieces(total: int, most: int, multiple: int) -> list[tuple[int, int]]:
    """(start, length) of near-equal pieces of at most `most`, all but the last a multiple of `multiple`."""
    length = -(-total // -(-total // most))
    length = -(-length // multiple) * multiple
    return [(start, min(length, total - start)) for start in range(0, total, length)]


@njit(nogil=True, cache=True)
def _sum_differences(first, end, queries, training, squared, sums):
    """Sums of |q - n| or (q - n)^2 over the voxels of `(Q, V)` and `(N, V)`, added to `(parts, Q, N)` float64."""
    Q, V = queries.shape
    N = training.shape[0]
    across = (N + GROUP - 1) // GROUP
    groups = (Q + GROUP - 1) // GROUP * across
    parts, chunks = len(sums), (V + CHUNK - 1) // CHUNK
    for task in range(first, end):
        part, group = task // groups, task % groups
        first_query, first_case = group // across * GROUP, group % across * GROUP
        for chunk in range(part * chunks // parts, (part + 1) * chunks // parts):
            low, high = chunk * CHUNK, min((chunk + 1) * CHUNK, V)
            for n in range(first_case, min(first_case + GROUP, N), 4):
                for q in range(first_query, min(first_query + GROUP, Q), 2):
                    _add_eight(queries, q, training, n, low, high, squared, sums[part])


@njit(cache=True)
def _add_eight(queries, q, training, n, low, high, squared, sums):
    """Add one chunk's sums of two queries and four training cases to `(Q, N)`; the last one stands in for missing."""
    pair, four = min(2, len(queries) - q), min(4, len(training) - n)
    x, y = queries[q, low:high], queries[q + pair - 1, low:high]
    a, b = training[n, low:high], training[min(n + 1, n + four - 1), low:high]
    c, d = training[min(n + 2, n + four - 1), low:high], training[n + four - 1, low:high]
    found = _squared(x, y, a, b, c, d) if squared else _absolute(x, y, a, b, c, d)
    for j in range(pair):
        for k in range(four):
            sums[q + j, n + k] += found[j][k]


@njit(fastmath=REORDERED, cache=True)
def _absolute(x, y, a, b, c, d):
    xa = xb = xc = xd = ya = yb = yc = yd = np.float32(0)
    for i in range(x.size):
        xa += abs(x[i] - a[i])
        xb += abs(x[i] - b[i])
        xc += abs(x[i] - c[i])
        xd += abs(x[i] - d[i])
        ya += abs(y[i] - a[i])
        yb += abs(y[i] - b[i])
        yc += abs(y[i] - c[i])
        yd += abs(y[i] - d[i])
    return (xa, xb, xc, xd), (ya, yb, yc, yd)


@njit(fastmath=REORDERED, cache=True)
def _squared(x, y, a, b, c, d):
    xa = xb = xc = xd = ya = yb = yc = yd = np.float32(0)
    for i in range(x.size):
        xa += (x[i] - a[i]) ** 2
        xb += (x[i] - b[i]) ** 2
        xc += (x[i] - c[i]) ** 2
        xd += (x[i] - d[i]) ** 2
        ya += (y[i] - a[i]) ** 2
        yb += (y[i] - b[i]) ** 2
        yc += (y[i] - c[i]) ** 2
        yd += (y[i] - d[i]) ** 2
    return (xa, xb, xc, xd), (ya, yb, yc, yd)


@njit(nogil=True, cache=True)
def _case_moments(first, end, cases, row, shifts, tiles, side, norm, means, variances):
    C = len(cases)
    for task in range(first, end):
        tile, case = tiles[task // C], task % C
        out = means[case, tile[4] :], variances[case, tile[4] :]
        _tile_moments(cases[case], row, shifts[case], tile, side, norm, *out)


@njit(nogil=True, cache=True)
def _sum_ssim(
    first, end, x, y, row, x_shift, y_shift, x_mean, x_variance, y_mean, y_variance, tiles, side, c1, c2, norm, sums
):  # fmt: skip
    """Sums of the local SSIM over the valid positions, `(T, Q, N)` float64, a figure for every tile and pair."""
    groups = (len(x) + QUERIES - 1) // QUERIES
    plane, filtered, ring = _scratch(side)
    rings = np.zeros((QUERIES * CASES, ring.size), np.float32)
    radius, depth = len(side), x.shape[1]
    for task in range(first, end):
        t, q0 = task // groups, task % groups * QUERIES
        tile = tiles[t]
        rows, columns, size = tile[1], tile[3], tile[1] * tile[3]
        start = tile[0] * row + tile[2]
        for n0 in range(0, len(y), CASES):
            for i in range(depth):
                done = (i - 2 * radius if depth > 1 else 0) * size
                out = tile[4] + done
                for q in range(q0, min(q0 + QUERIES, len(x))):
                    for n in range(n0, min(n0 + CASES, len(y))):
                        a, b = x[q, i, start:], y[n, i, start:]
                        _product(a, b, row, x_shift[q], y_shift[n], rows + 2 * radius, columns + 2 * radius, plane)
                        scratch = plane, filtered, rings[(q - q0) * CASES + n - n0]
                        window = _advance(i, depth, rows, columns, side, scratch)
                        if done >= 0:
                            sums[t, q, n] += _ssim_plane(
                                window, x_mean[q, out:], y_mean[n, out:], x_variance[q, out:], y_variance[n, out:],
                                x_shift[q], y_shift[n], side, c1, c2, norm, size,
                            )  # fmt: skip


@njit(cache=True)
def _tile_moments(case, row, shift, tile, side, norm, means, variances):
    rows, columns = tile[1], tile[3]
    radius, size = len(side), rows * columns
    start = tile[0] * row + tile[2]
    mean_scratch, square_scratch = _scratch(side), _scratch(side)
    for x in range(len(case)):
        plane = case[x, start:]
        _shifted(plane, row, shift, rows + 2 * radius, columns + 2 * radius, mean_scratch[0])
        _product(plane, plane, row, shift, shift, rows + 2 * radius, columns + 2 * radius, square_scratch[0])
        mean_window = _advance(x, len(case), rows, columns, side, mean_scratch)
        square_window = _advance(x, len(case), rows, columns, side, square_scratch)
        done = (x - 2 * radius if len(case) > 1 else 0) * size
        if done >= 0:
            _filter_depth(mean_window, means[done:], size, side)
            _filter_depth(square_window, variances[done:], size, side)
            _subtract_means(variances[done:], means[done:], size, norm)


@njit(cache=True)
def _scratch(side):
    """Room for a product plane, the same filtered along Y, and the ring of planes that wait for the filter along X."""
    taps = 2 * len(side) + 1
    plane = np.zeros((ROWS + taps) * PITCH, np.float32)
    return plane, np.zeros((ROWS + 1) * PITCH, np.float32), np.zeros((2 * taps + 1) * PLANE, np.float32)


@njit(cache=True)
def _advance(x, depth, rows, columns, side, scratch):
    """Filter the plane in `scratch` along Y and Z into the ring; return the planes of the window that ends at x.

    The ring is stored twice over, so that the window lies in one piece wherever it starts.
    """
    taps = 2 * len(side) + 1
    plane, filtered, ring = scratch
    _filter_rows(plane, filtered, rows, columns + 2 * len(side), side)
    slot = x % taps
    _filter_columns(filtered, ring[slot * PLANE :], ring[(slot + taps) * PLANE :], rows, columns, side)
    if depth == 1:
        # Voxel by voxel: an assignment of slices compiles seconds of code for messages about shapes that do not fit.
        for i in range(PLANE, taps * PLANE):
            ring[i] = ring[i - PLANE]
        return ring
    return ring[(slot + 1) * PLANE :]


# The filters below write c + sum w_k ((p[-k] + p[+k]) - 2 c), which returns a flat region unchanged to the last bit:
# with float32 weights that sum to 1 only nearly, flat regions of real images would all gain the same small covariance.
# Their bounds are capped to what the tiles allow anyway: only then the compiler knows that indices are not negative,
# and vectorises.


@njit(fastmath=FUSED, cache=True)
def _shifted(a, row, a_shift, rows, columns, out):
    rows, columns, row = min(rows, ROWS + 10), min(columns, PITCH), max(0, min(row, 1 << 30))
    for j in range(rows):
        for i in range(columns):
            out[j * PITCH + i] = a[j * row + i] - a_shift


@njit(fastmath=FUSED, cache=True)
def _product(a, b, row, a_shift, b_shift, rows, columns, out):
    rows, columns, row = min(rows, ROWS + 10), min(columns, PITCH), max(0, min(row, 1 << 30))
    for j in range(rows):
        for i in range(columns):
            out[j * PITCH + i] = (a[j * row + i] - a_shift) * (b[j * row + i] - b_shift)


@njit(fastmath=FUSED, cache=True)
def _filter_rows(p, out, rows, columns, side):
    """Along Y: row j of the output is the window around row j + radius."""
    R = len(side)
    rows, columns = min(rows, ROWS), min((columns + 15) & ~15, PITCH)
    for j in range(rows):
        for i in range(columns):
            c = p[(j + R) * PITCH + i]
            s, twice = c, c + c
            for k in range(R):
                s += side[k] * ((p[(j + R - 1 - k) * PITCH + i] + p[(j + R + 1 + k) * PITCH + i]) - twice)
            out[j * PITCH + i] = s


@njit(fastmath=FUSED, cache=True)
def _filter_columns(p, out, twin, rows, columns, side):
    """Along Z, into two places without gaps between rows: what a row writes too far, the next row overwrites."""
    R = len(side)
    rows, columns = min(rows, ROWS), max(0, min(columns, COLUMNS))
    padded = (columns + 15) & ~15
    for j in range(rows):
        for i in range(padded):
            c = p[j * PITCH + i + R]
            s, twice = c, c + c
            for k in range(R):
                s += side[k] * ((p[j * PITCH + i + (R - 1 - k)] + p[j * PITCH + i + (R + 1 + k)]) - twice)
            out[j * columns + i] = s
            twin[j * columns + i] = s


@njit(fastmath=FUSED, cache=True)
def _filter_depth(p, out, size, side):
    R = len(side)
    size = min(size, PLANE)
    for i in range(size):
        c = p[R * PLANE + i]
        s, twice = c, c + c
        for k in range(R):
            s += side[k] * ((p[(R - 1 - k) * PLANE + i] + p[(R + 1 + k) * PLANE + i]) - twice)
        out[i] = s


@njit(fastmath=FUSED, error_model="numpy", cache=True, forceinline=True)
def _ssim_plane(p, a_mean, b_mean, a_variance, b_variance, a_shift, b_shift, side, c1, c2, norm, size):
    """Filter along X, then the formula: the sum of the local SSIM over `size` positions.

    Inlined by force: a copy of its own, compiled apart, would add up in another order, and the process that compiles
    would get other last digits than those that read its cache.
    """
    R = len(side)
    size = min(size, PLANE)
    total = np.float32(0)
    for i in range(size):
        c = p[R * PLANE + i]
        s, twice = c, c + c
        for k in range(R):
            s += side[k] * ((p[(R - 1 - k) * PLANE + i] + p[(R + 1 + k) * PLANE + i]) - twice)
        s = _covariance(s, a_mean[i], b_mean[i]) * norm
        a, b = a_mean[i] + a_shift, b_mean[i] + b_shift
        ab = a * b
        numerator = (ab + ab + c1) * (s + s + c2)
        denominator = (a * a + (b * b + c1)) * (a_variance[i] + b_variance[i] + c2)
        total = _add(total, numerator / denominator)
    return total


@njit(cache=True)
def _subtract_means(squares, means, size, norm):
    size = min(size, PLANE)
    for i in range(size):
        squares[i] = _covariance(squares[i], means[i], means[i]) * norm


@njit(cache=True)
def _covariance(product, a, b):
    """Not fused: a * b must round as the product of two flat regions did, so that they cancel."""
    return product - a * b


@njit(fastmath=REORDERED, cache=True)
def _add(a, b):
    """The one sum that may be reordered into SIMD lanes."""
    return a + b
