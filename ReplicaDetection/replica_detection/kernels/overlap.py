"""Overlap of all pairs of masks: bits packed into 64-bit words, counted by the CPU's population count (numba)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import ArrayLike, NDArray

from replica_detection.kernels.arrays import Distances
from replica_detection.kernels.tasks import run

# Words of one case that are compared at a time: those of a group of cases stay in the first-level cache.
CHUNK = 512
GROUP = 32

Words = NDArray[np.uint64]


def dice(queries: ArrayLike, training: ArrayLike, label: int | None = None) -> Distances:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of every query with every training case (RELICT, arXiv 2502.17360).

    Args:
        queries: `(Q, X, Y)` or `(Q, X, Y, Z)` labels, integers or bool.
        training: `(N, X, Y)` or `(N, X, Y, Z)`, on the grid of the queries.
        label: which label to compare; None: any label above 0.

    Returns:
        `(Q, N)` float64 in [0, 1]. Exact copies are at 1 exactly. 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: the grids differ.
    """
    queries, training = _masks(queries), _masks(training)
    if queries.shape[1:] != training.shape[1:]:
        raise ValueError(f"queries and training must be on the same grid, not {queries.shape} and {training.shape}")
    q = pack(queries, label)
    n = q if training is queries else pack(training, label)
    total = _sizes(q)[:, None] + _sizes(n)
    return np.where(total == 0, np.nan, 2 * _shared(q, n) / np.maximum(total, 1))


def cldice(queries: Words, query_skeletons: Words, training: Words, training_skeletons: Words) -> Distances:
    """Centreline Dice: harmonic mean of |S_A and B| / |S_A| and |S_B and A| / |S_B|, S being skeletons.

    Shit et al., "clDice: a novel topology-preserving loss function for tubular structure segmentation", CVPR 2021,
    equations 1 and 2.

    Args:
        queries: `(Q, W)`, masks from `pack`.
        query_skeletons: `(Q, W)`, their skeletons from `pack`.
        training: `(N, W)`.
        training_skeletons: `(N, W)`.

    Returns:
        `(Q, N)` float64 in [0, 1]. Exact copies are at 1 exactly. 0 where one mask is empty, NaN where both are.
    """
    q, n = _sizes(query_skeletons)[:, None], _sizes(training_skeletons)
    precision = _shared(query_skeletons, training) / np.maximum(q, 1)
    sensitivity = _shared(queries, training_skeletons) / np.maximum(n, 1)
    total = precision + sensitivity
    values = 2 * precision * sensitivity / np.where(total > 0, total, 1)
    return np.where((_sizes(queries)[:, None] == 0) & (_sizes(training) == 0), np.nan, values)


def pack(masks: ArrayLike, label: int | None = None) -> Words:
    """`(C, W)` uint64: the bits of each mask in C order, padded with zeros.

    Args:
        masks: `(C, ...)` labels, integers or bool.
        label: which label becomes 1; None: any label above 0.
    """
    masks = _masks(masks)
    # packbits takes every byte that is not 0 as a 1, so plain unsigned labels need no comparison.
    plain = label is None and masks.dtype in (np.uint8, np.bool_)
    chosen = masks if plain else masks > 0 if label is None else masks == label
    return words(np.packbits(chosen.reshape(len(chosen), math.prod(chosen.shape[1:])), axis=1))


def words(packed: NDArray[np.uint8]) -> Words:
    """`(C, W)` uint64 of `(C, bytes)` from `np.packbits`, padded with zeros."""
    padded = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def skeleton(mask: ArrayLike) -> NDArray[np.bool_]:
    """Centrelines of a 2D or 3D mask: inside it, and with a part in each of its connected components.

    scikit-image's `skeletonize` (3D: Lee, Kashyap and Chu 1994; 2D: Zhang and Suen 1984). Some components of even
    width, a 2 x 2 x 8 rod or a 6 x 6 x 6 cube, it thins away to nothing; of these, the innermost voxels remain.
    """
    from skimage.morphology import skeletonize

    inside = np.asarray(mask) > 0
    thin = np.zeros_like(inside)
    if not inside.any():
        return thin
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in inside.nonzero())
    # With a margin: without one, scikit-image thins a box of one slice otherwise than the same mask in a larger image.
    part = np.pad(inside[box], 1)
    found = _with_lost_components(skeletonize(part) > 0, part)
    thin[box] = found[(slice(1, -1),) * inside.ndim]
    return thin


def _with_lost_components(thin: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    components, count = ndimage.label(inside, np.ones((3,) * inside.ndim))
    lost = np.setdiff1d(np.arange(1, count + 1), components[thin])
    if len(lost):
        depth = ndimage.distance_transform_cdt(inside, "chessboard")
        deepest = np.zeros(count + 1, np.int64)
        deepest[lost] = ndimage.maximum(depth, components, lost)
        thin = thin | (inside & (depth == deepest[components]))
    return thin


def _masks(masks: ArrayLike) -> np.ndarray:
    masks = np.asarray(masks)
    return masks if masks.flags.c_contiguous else np.ascontiguousarray(masks)


def _sizes(cases: Words) -> NDArray[np.int64]:
    """Number of set bits of each case, `(C,)`."""
    counts = np.zeros(len(cases), np.int64)
    run(_count, len(cases), cases, counts)
    return counts


def _shared(queries: Words, training: Words) -> NDArray[np.int64]:
    """Number of bits that are set in both, `(Q, N)`."""
    counts = np.zeros((len(queries), len(training)), np.int64)
    groups = -(-len(queries) // GROUP) * -(-len(training) // GROUP)
    run(_count_shared, groups, queries, training, counts)
    return counts


@intrinsic
def _ones(typingctx, word=None):
    """Number of set bits of a uint64: one instruction, vectorized in loops."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(nogil=True, cache=True)
def _count(first, end, cases, counts):
    for case in range(first, end):
        total = np.uint64(0)
        for word in cases[case]:
            total += _ones(word)
        counts[case] = total


@njit(nogil=True, cache=True)
def _count_shared(first, end, queries, training, counts):
    """Add the bits that are set in both to `(Q, N)`; a task is a group of queries with a group of training cases."""
    across = (len(training) + GROUP - 1) // GROUP
    for task in range(first, end):
        first_query, first_case = task // across * GROUP, task % across * GROUP
        for low in range(0, queries.shape[1], CHUNK):
            high = min(low + CHUNK, queries.shape[1])
            for n in range(first_case, min(first_case + GROUP, len(training)), 4):
                last = min(n + 3, len(training) - 1)
                a, b = training[n, low:high], training[min(n + 1, last), low:high]
                c, d = training[min(n + 2, last), low:high], training[last, low:high]
                for q in range(first_query, min(first_query + GROUP, len(queries))):
                    found = _four(queries[q, low:high], a, b, c, d)
                    for i in range(last - n + 1):
                        # The last case stands in for missing ones, which are not counted.
                        counts[q, n + i] += found[i]


@njit(cache=True)
def _four(query, a, b, c, d):
    w, x, y, z = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(query.size):
        w += _ones(query[i] & a[i])
        x += _ones(query[i] & b[i])
        y += _ones(query[i] & c[i])
        z += _ones(query[i] & d[i])
    return np.int64(w), np.int64(x), np.int64(y), np.int64(z)
