"""Surface distances of all pairs of masks (numba): every surface and every distance map is made once per call.

A directed comparison looks the points of one surface up in the distance map of the other. Each map is made, read for
all cases of the other side and overwritten, so that memory holds one map a core however many cases there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from replica_detection.kernels.arrays import Distances
from replica_detection.kernels.distance_map import WIDTH, distance_map, squared_steps
from replica_detection.kernels.tasks import run

# What takes the place of a quantile where the mean is wanted.
MEAN = -1.0
# A quantile is first bounded from below by that of a sample, less a margin for the sample's error.
SAMPLE, MARGIN = 64, 0.08


def asd(queries: ArrayLike, training: ArrayLike, spacing: Sequence[float], label: int | None = None) -> Distances:
    """Average symmetric surface distance in mm: the mean over the edge voxels of both masks together.

    An edge voxel belongs to the mask and has a neighbour (by a face; 2D: by a side) that does not; outside the grid
    nothing belongs to it. Equal to `monai.metrics.compute_average_surface_distance(symmetric=True)` and to MedPy's
    `assd`.

    Args:
        queries: `(Q, X, Y)` or `(Q, X, Y, Z)` labels, integers or bool.
        training: `(N, X, Y)` or `(N, X, Y, Z)`, on the grid of the queries.
        spacing: mm, one for each axis.
        label: which label to compare; None: any label above 0.

    Returns:
        `(Q, N)` float64, mm. Exact copies are at 0 exactly. +inf where one mask is empty, NaN where both are.

    Raises:
        ValueError: the grids differ or hold no voxel, are neither 2D nor 3D, or a spacing is not above 0.
    """
    q, n = _both(queries, training, spacing, label, surfels=False)
    forth, back = _directed(q, n, MEAN)
    total = forth * q.weights[:, None] + back * n.weights
    return _settled(q, n, total, q.weights[:, None] + n.weights)


def asd_surfel(
    queries: ArrayLike, training: ArrayLike, spacing: Sequence[float], label: int | None = None
) -> Distances:
    """Average surface distance in mm over surface elements weighted by their area, mean of the two directions.

    The surface lies between the voxels, in elements of the marching cubes cases (2D: marching squares, weighted by
    length). Equal to the mean of the two numbers of `compute_average_surface_distance` in DeepMind's surface-distance
    (Nikolov et al., "Clinically applicable segmentation of head and neck anatomy", JMIR 2021). Arguments, result and
    errors are those of `asd`.
    """
    q, n = _both(queries, training, spacing, label, surfels=True)
    forth, back = _directed(q, n, MEAN)
    return _settled(q, n, forth + back, np.full(forth.shape, 2.0))


def hd95(
    queries: ArrayLike,
    training: ArrayLike,
    spacing: Sequence[float],
    label: int | None = None,
    percentile: float = 95.0,
) -> Distances:
    """Hausdorff distance in mm, its maximum replaced by a percentile: the larger one of the two directions.

    Edge voxels are those of `asd`; the percentile interpolates linearly between two distances. Equal to
    `monai.metrics.compute_hausdorff_distance(percentile=95)`. Arguments, result and errors are those of `asd`.
    """
    q, n = _both(queries, training, spacing, label, surfels=False)
    forth, back = _directed(q, n, percentile / 100)
    return _settled(q, n, np.maximum(forth, back), np.ones(forth.shape))


@lru_cache
def element_sizes(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Area in mm^2 of the surface in each of the 256 cubes of 2 x 2 x 2 voxels (2D: mm of line in 16 squares).

    The number of a cube is the sum of 128, 64, ..., 1 over its voxels inside the mask, in C order.
    """
    from monai.metrics.utils import get_code_to_measure_table

    sizes = np.zeros(256)
    table, _ = get_code_to_measure_table(spacing)
    sizes[: len(table)] = table
    return sizes


@dataclass(frozen=True)
class _Surfaces:
    """Surface points of several masks.

    `points` (P, 3) uint16 are positions on `lattice`; `codes` (P,) uint8 name their surface element, whose weight is
    `sizes[code]`; the points of case c are those from `starts[c]` to `starts[c + 1]`, of total weight `weights[c]`.
    """

    points: NDArray[np.uint16]
    codes: NDArray[np.uint8]
    starts: NDArray[np.int64]
    sizes: NDArray[np.float64]
    lattice: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def empty(self) -> NDArray[np.bool_]:
        return self.starts[1:] == self.starts[:-1]

    @property
    def weights(self) -> NDArray[np.float64]:
        totals = np.concatenate(([0.0], np.cumsum(self.sizes[self.codes])))
        return totals[self.starts[1:]] - totals[self.starts[:-1]]


def _both(
    queries: ArrayLike, training: ArrayLike, spacing: Sequence[float], label: int | None, *, surfels: bool
) -> tuple[_Surfaces, _Surfaces]:
    queries, training = np.asarray(queries), np.asarray(training)
    if queries.ndim not in (3, 4) or queries.shape[1:] != training.shape[1:] or 0 in queries.shape[1:]:
        raise ValueError(
            "queries and training must be (cases, X, Y) or (cases, X, Y, Z) on the same grid, "
            f"not {queries.shape} and {training.shape}"
        )
    mm = tuple(float(s) for s in spacing)
    if len(mm) != queries.ndim - 1 or not all(np.isfinite(s) and s > 0 for s in mm):
        raise ValueError(f"spacing must be {queries.ndim - 1} lengths in mm above 0, not {mm}")
    found = _surfaces(queries, mm, label, surfels=surfels)
    return found, found if training is queries else _surfaces(training, mm, label, surfels=surfels)


def _surfaces(masks: np.ndarray, spacing: tuple[float, ...], label: int | None, *, surfels: bool) -> _Surfaces:
    planar = masks.ndim == 3
    volumes = masks[:, None] if planar else masks
    if volumes.dtype not in (np.uint8, np.bool_):
        # The kernel reads unsigned bytes.
        volumes, label = (volumes > 0 if label is None else volumes == label).astype(np.uint8), None
    cases, X, Y, Z = volumes.shape
    lattice = (X if planar else X + 1, Y + 1, Z + 1) if surfels else (X, Y, Z)
    # Every edge voxel counts the same.
    sizes = element_sizes(spacing) if surfels else np.ones(256)
    wanted = -1 if label is None else label
    arguments = volumes.view(np.uint8), wanted, planar, surfels, lattice
    starts = np.zeros(cases + 1, np.int64)
    nothing = np.empty((0, 3), np.uint16), np.empty(0, np.uint8)
    run(_extract, cases, *arguments, starts, *nothing, True)
    np.cumsum(starts, out=starts)
    points, codes = np.empty((starts[-1], 3), np.uint16), np.empty(starts[-1], np.uint8)
    run(_extract, cases, *arguments, starts, points, codes, False)
    mm = (1.0, *spacing) if planar else spacing
    return _Surfaces(points, codes, starts, sizes, lattice, (mm[0], mm[1], mm[2]))


def _directed(queries: _Surfaces, training: _Surfaces, quantile: float) -> tuple[Distances, Distances]:
    """From each query surface to each training surface, and back: two `(Q, N)`, mm; a mean or the given quantile.

    0 where a mask is empty.
    """
    forth = np.zeros((len(queries.empty), len(training.empty)))
    back = forth if queries is training else np.zeros(forth.T.shape)
    if len(queries.points) and len(training.points):
        # Maps end at the box around all points: what lies outside is never looked up.
        low = np.minimum(queries.points.min(axis=0), training.points.min(axis=0)).astype(np.int64)
        high = np.maximum(queries.points.max(axis=0), training.points.max(axis=0)).astype(np.int64)
        shape = tuple(int(length) for length in high - low + 1)
        squares = squared_steps(shape, queries.spacing)
        q, n = _flat(queries, low, shape), _flat(training, low, shape)
        box = shape, squares, quantile
        q_weights, n_weights = (queries.codes, queries.sizes), (training.codes, training.sizes)
        run(_look_up, len(training.empty), q, queries.starts, *q_weights, n, training.starts, *box, forth)
        if queries is not training:
            run(_look_up, len(queries.empty), n, training.starts, *n_weights, q, queries.starts, *box, back)
    return forth, back.T


def _flat(surfaces: _Surfaces, low: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int32]:
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    return (surfaces.points @ strides - low @ strides).astype(np.int32)


def _settled(queries: _Surfaces, training: _Surfaces, total: Distances, weight: Distances) -> Distances:
    one, both = queries.empty[:, None] | training.empty, queries.empty[:, None] & training.empty
    return np.where(both, np.nan, np.where(one, np.inf, total / np.where(one, 1, weight)))


@njit(nogil=True, cache=True)
def _extract(first, end, masks, label, planar, surfels, lattice, starts, points, codes, counting):
    """Count the surface points of each case into `starts[case + 1]`, or write them from `starts[case]` on."""
    X, Y, Z = masks.shape[1:]
    inside = np.zeros((X + 2, Y + 2, Z + 2), np.uint8)
    row = np.empty(lattice[2], np.uint8)
    full = 256 if not surfels else 15 if planar else 255
    for case in range(first, end):
        for x in range(X):
            for y in range(Y):
                _copy_row(masks[case, x, y], label, inside[x + 1, y + 1])
        found = 0 if counting else starts[case]
        for x in range(lattice[0]):
            for y in range(lattice[1]):
                if surfels:
                    _element_row(inside, x, y, planar, row)
                else:
                    _edge_row(inside, x, y, planar, row)
                for z in range(lattice[2]):
                    if row[z] != 0 and row[z] != full:
                        if not counting:
                            points[found, 0], points[found, 1], points[found, 2] = x, y, z
                            codes[found] = row[z]
                        found += 1
        if counting:
            starts[case + 1] = found


@njit(cache=True)
def _copy_row(labels, label, out):
    for z in range(labels.size):
        out[z + 1] = labels[z] > 0 if label < 0 else labels[z] == label


@njit(cache=True)
def _edge_row(inside, x, y, planar, row):
    """1 for voxels of the mask with a face on its outside; `inside` has a margin of one voxel."""
    here = inside[x + 1, y + 1]
    left, right = inside[x + 1, y], inside[x + 1, y + 2]
    below, above = (here, here) if planar else (inside[x, y + 1], inside[x + 2, y + 1])
    for z in range(row.size):
        core = here[z] & here[z + 2] & left[z + 1] & right[z + 1] & below[z + 1] & above[z + 1]
        row[z] = here[z + 1] & ~core


@njit(cache=True)
def _element_row(inside, x, y, planar, row):
    """Numbers of the 2 x 2 x 2 cubes (2D: squares) whose last voxel is (x, y, z); `inside` has a margin of one."""
    c, d = (inside[1, y], inside[1, y + 1]) if planar else (inside[x + 1, y], inside[x + 1, y + 1])
    a, b = inside[x, y], inside[x, y + 1]
    for z in range(row.size):
        row[z] = (c[z] << 3) | (c[z + 1] << 2) | (d[z] << 1) | d[z + 1]
    if not planar:
        for z in range(row.size):
            row[z] |= (a[z] << 7) | (a[z + 1] << 6) | (b[z] << 5) | (b[z + 1] << 4)


@njit(nogil=True, cache=True)
def _look_up(first, end, points, starts, codes, sizes, targets, target_starts, shape, squares, quantile, out):
    """From the surfaces of all cases to those of the cases `first` to `end`: columns of `out`, mm."""
    X, Y, Z = shape
    distances = np.empty(X * Y * Z, np.float32)
    slab = np.empty((2, max(X * WIDTH, Y * Z)), np.float32)
    longest = 0
    for case in range(len(starts) - 1):
        longest = max(longest, starts[case + 1] - starts[case])
    chosen = np.empty(longest if quantile >= 0 else 0, np.float32)
    for target in range(first, end):
        low, high = target_starts[target], target_starts[target + 1]
        if low == high:
            continue
        distance_map(targets[low:high], shape, squares, distances, slab)
        for case in range(len(starts) - 1):
            low, high = starts[case], starts[case + 1]
            if low == high:
                continue
            if quantile < 0:
                out[case, target] = _mean(distances, points[low:high], codes[low:high], sizes)
            else:
                out[case, target] = _quantile(distances, points[low:high], quantile, chosen)


@njit(cache=True, fastmath={"nnan", "nsz", "reassoc", "contract"})
def _mean(distances, points, codes, sizes):
    total, weight = 0.0, 0.0
    for i in range(points.size):
        size = sizes[codes[i]]
        total += size * distances[points[i]]
        weight += size
    return total / weight


@njit(cache=True)
def _quantile(distances, points, quantile, scratch):
    """Linear between the two values beside the rank."""
    position = quantile * (points.size - 1)
    rank = int(np.floor(position))
    kept = _collect(distances, points, _bound(distances, points, quantile), scratch)
    if points.size - kept > rank:
        # The sample misled: the rank lies below its bound.
        kept = _collect(distances, points, np.float32(0), scratch)
    values, within = scratch[:kept], rank - (points.size - kept)
    low = _select(values, within)
    if position == rank:
        return np.float64(low)
    high = values[within + 1]
    for value in values[within + 2 :]:
        high = min(high, value)
    return low + (position - rank) * (np.float64(high) - low)


@njit(cache=True)
def _bound(distances, points, quantile):
    """A value somewhat below the quantile, by a sample: most of the others need not be looked at twice."""
    sample = np.empty(SAMPLE, np.float32)
    for i in range(SAMPLE):
        sample[i] = distances[points[i * points.size // SAMPLE]]
    return _select(sample, max(0, int((quantile - MARGIN) * SAMPLE)))


@njit(cache=True)
def _collect(distances, points, bound, out):
    """Write the distances of at least `bound` to `out`; returns how many."""
    kept = 0
    for point in points:
        out[kept] = distances[point]
        kept += out[kept] >= bound
    return kept


@njit(cache=True)
def _select(values, rank):
    """The value of the given rank, with no greater ones before it and no smaller ones behind it (Hoare's FIND)."""
    left, right = 0, values.size - 1
    while left < right:
        pivot = values[(left + right) // 2]
        i, j = left, right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            right = j
        elif rank >= i:
            left = i
        else:
            break
    return values[rank]
