"""Start values: for every training case and every mirroring of the query, the shift with the largest correlation.

The correlation is normalized over the overlap of each shift (Padfield, "Masked object registration in the Fourier
domain", IEEE TIP 2012, section III). The images fill their boxes, so the sums over the overlap come from cumulative
sums, and each pair needs only one inverse Fourier transform.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from replica_detection.registration.pyramid import Level

# Largest shift, as a share of the field of view.
LARGEST_SHIFT = 0.3
# Training cases that are searched at a time, which bounds the memory.
BLOCK = 64


def mirrorings(level: Level) -> np.ndarray:
    """All ways to mirror the axes, (F, 3) of +1 and -1: eight in 3D, four in 2D; the first mirrors none."""
    return np.array(list(itertools.product(*[(1, -1) if n > 1 else (1,) for n in level.shape])), np.float64)


@dataclass(frozen=True)
class ShiftSearch:
    """The search among the coarse levels of training cases, (N, X, Y, Z) float32; nothing of them is kept in memory."""

    cases: np.ndarray
    level: Level

    @cached_property
    def reach(self) -> tuple[int, ...]:
        return tuple(int(np.ceil(LARGEST_SHIFT * n)) if n > 1 else 0 for n in self.level.shape)

    @cached_property
    def size(self) -> list[int]:
        from scipy import fft

        return [fft.next_fast_len(n + r, True) for n, r in zip(self.level.shape, self.reach, strict=True)]

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of voxels in the overlap of each shift, (shifts...)."""
        return _box_sums(np.ones((1, *self.level.shape)), self.reach)[0].astype(np.float32)

    def shifts(self, query: np.ndarray, positions: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best shift of the mirrored query for some cases and every mirroring.

        Args:
            query: (X, Y, Z), the coarse level.
            positions: (P,), the cases; None for all.

        Returns:
            (P, F) correlation times the square root of the overlap, and (P, F, 3) shift in mm: a position u of the
            query, from the centre, corresponds to `mirroring * u + shift` in the training case.
        """
        from scipy import fft

        positions = np.arange(len(self.cases)) if positions is None else positions
        share = np.sqrt(self.counts / query.size)
        mirrored = [query[tuple(slice(None, None, int(s)) for s in way)] for way in mirrorings(self.level)]
        spectra = [np.conj(fft.rfftn(image, self.size)) for image in mirrored]
        moments = [self._moments(image) for image in mirrored]
        best = np.empty((len(positions), len(mirrored)))
        voxels = np.empty((len(positions), len(mirrored), 3), np.int64)
        for start in range(0, len(positions), BLOCK):
            rows = slice(start, start + BLOCK)
            cases = np.asarray(self.cases[positions[rows]])
            spectrum = fft.rfftn(cases, self.size, axes=(1, 2, 3))
            sums = _box_sums(cases, self.reach).astype(np.float32)
            variance = _box_sums(cases**2, self.reach).astype(np.float32)
            variance = np.maximum(variance - sums**2 / self.counts, 1e-6)
            for f, (q_sum, q_variance) in enumerate(moments):
                product = fft.irfftn(spectrum * spectra[f], self.size, axes=(1, 2, 3))
                _best_shifts(
                    product, sums, variance, q_sum, q_variance, self.counts, share, best[rows, f], voxels[rows, f]
                )
        return best, voxels * np.array(self.level.spacing)

    def _moments(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum of a query over the overlap of each shift, and its sum of squares about its mean there."""
        # Seen from the query, the overlap is that of the opposite shift.
        sums = np.ascontiguousarray(_box_sums(query[None], self.reach)[0, ::-1, ::-1, ::-1])
        squares = _box_sums(query[None] ** 2, self.reach)[0, ::-1, ::-1, ::-1]
        return sums, np.maximum(squares - sums**2 / self.counts, 1e-6)


@njit(nogil=True, cache=True)
def _best_shifts(product, sums, variance, q_sum, q_variance, counts, share, best, voxels):
    """The largest correlation of each case over the shifts, and its shift in voxels.

    product: (C, size...), for each cyclic shift the sum of the products; the others (C, shifts...) or (shifts...).
    """
    X, Y, Z = counts.shape
    for c in range(len(product)):
        best[c] = -np.inf
        for x in range(X):
            for y in range(Y):
                for z in range(Z):
                    i, j, k = x - X // 2, y - Y // 2, z - Z // 2
                    covariance = product[c, i, j, k] - q_sum[x, y, z] * sums[c, x, y, z] / counts[x, y, z]
                    score = covariance / math.sqrt(variance[c, x, y, z] * q_variance[x, y, z]) * share[x, y, z]
                    if score > best[c]:
                        best[c] = score
                        voxels[c, 0], voxels[c, 1], voxels[c, 2] = i, j, k


def _box_sums(cases: np.ndarray, reach: tuple[int, ...]) -> np.ndarray:
    """Sum over the part of each case that an image shifted by -reach ... reach covers, (C, shifts...)."""
    total = np.zeros((len(cases), *(n + 1 for n in cases.shape[1:])))
    total[:, 1:, 1:, 1:] = cases.astype(np.float64).cumsum(1).cumsum(2).cumsum(3)
    for axis, (n, r) in enumerate(zip(cases.shape[1:], reach, strict=True), 1):
        shift = np.arange(-r, r + 1)
        high, low = np.minimum(n, n + shift), np.maximum(shift, 0)
        total = total.take(high, axis) - total.take(low, axis)
    return total
