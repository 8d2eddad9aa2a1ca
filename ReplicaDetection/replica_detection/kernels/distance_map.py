"""Exact Euclidean distance maps on small grids (numba): the nearest of some points, for every grid position, in mm.

Separable squared distances after Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", Theory of
Computing 2012, section 3. The lower envelope along an axis is found by looking outwards from each position until
nothing farther can win: whole rows at a time, that is faster than the parabola walk on grids of this size, and no
intersection of parabolas can round to the wrong side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Columns that the walk along the first axis takes at once: 64 to 256 rows of them stay in the second-level cache.
WIDTH = 128


def squared_steps(shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float32]:
    """`(3, longest)` mm^2: what 0, 1, 2, ... steps along each axis add to a squared distance."""
    steps = np.arange(max(shape), dtype=np.float64)
    return np.square(np.asarray(spacing, np.float64)[:, None] * steps).astype(np.float32)


@njit(nogil=True, cache=True)
def distance_map(points, shape, squares, out, slab):
    """Fill `out` with the distance (mm) of every position to the nearest point; +inf everywhere without points.

    Args:
        points: flat positions in the C order of `shape`, int32.
        shape: three lengths.
        squares: `squared_steps` of shape and spacing.
        out: `(X * Y * Z,)` float32.
        slab: scratch, float32, two arrays of at least `max(X * WIDTH, Y * Z)`.
    """
    X, Y, Z = shape
    out[:] = np.inf
    for point in points:
        out[point] = 0
    plane = Y * Z
    for x in range(X):
        values = out[x * plane : (x + 1) * plane]
        found = False
        for y in range(Y):
            found |= _scan(values[y * Z : (y + 1) * Z], squares[2])
        if found:
            _copy(values, slab[0])
            _walk(slab[0], Y, Z, squares[1], values, Z)
    if X > 1:
        for column in range(0, plane, WIDTH):
            width = min(WIDTH, plane - column)
            # Copied side by side: rows a whole plane apart would fall into the same few cache sets.
            for x in range(X):
                _copy(out[x * plane + column : x * plane + column + width], slab[0, x * width :])
            _walk(slab[0], X, width, squares[0], slab[1], width)
            for x in range(X):
                _copy(slab[1, x * width : (x + 1) * width], out[x * plane + column :])
    for i in range(X * plane):
        out[i] = np.sqrt(out[i])


@njit(cache=True)
def _copy(values, out):
    """Fills the beginning of `out`; an assignment of slices would compile seconds of code for messages about shapes."""
    for i in range(values.size):
        out[i] = values[i]


@njit(cache=True)
def _scan(row, squares):
    """Squared distances along one row in place, from 0 at its points; False, and untouched, where it has none."""
    first = -1
    for z in range(row.size):
        if row[z] == 0:
            first = z
            break
    if first < 0:
        return False
    last = first
    for z in range(first + 1, row.size):
        if row[z] == 0:
            last = z
        else:
            row[z] = squares[z - last]
    last = row.size
    for z in range(row.size - 1, -1, -1):
        if row[z] == 0:
            last = z
        elif last < row.size:
            row[z] = min(row[z], squares[last - z])
    return True


@njit(cache=True)
def _walk(values, length, width, squares, out, pitch):
    """Lower envelope of the parabolas along the first axis of `(length, width)`, for each column by itself."""
    for j in range(length):
        best = out[j * pitch : j * pitch + width]
        _copy(values[j * width : (j + 1) * width], best)
        for step in range(1, max(j, length - 1 - j) + 1):
            square = squares[step]
            if step % 4 == 1 and _largest(best) <= square:
                break
            before, after = j - step, j + step
            if before < 0:
                before = after
            if after >= length:
                after = before
            low = values[before * width : (before + 1) * width]
            high = values[after * width : (after + 1) * width]
            for i in range(width):
                nearer = low[i] if low[i] < high[i] else high[i]
                nearer += square
                best[i] = nearer if nearer < best[i] else best[i]


@njit(cache=True, fastmath={"nnan", "nsz", "reassoc"})
def _largest(row):
    largest = np.float32(0)
    for value in row:
        largest = value if value > largest else largest
    return largest
