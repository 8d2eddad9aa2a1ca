"""Start values: for every training case and every mirroring of the query, the shift with the largest correlation.

The correlation is normalized over the overlap of each shift (Padfield, "Masked object registration in the Fourier
domain", IEEE TIP 2012, section III). The images fill their boxes, so the sums over the overlap come from cumulative
sums, and each pair needs only one inverse Fourier transform.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from replica_detection.registration.pyramid import Level

# Largest shift, as a share of the field of view.
LARGEST_SHIFT = 0.3
BLOCK = 64


def mirrorings(level: Level) -> np.ndarray:
    """All ways to mirror the axes, (F, 3) of +1 and -1: eight in 3D, four in 2D; the first mirrors none."""
    return np.array(list(itertools.product(*[(1, -1) if n > 1 else (1,) for n in level.shape])), np.float64)


@dataclass(frozen=True)
class ShiftSearch:
    """The coarse level of all training cases, (N, X, Y, Z) float32, with what every query's search needs of them."""

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
    def spectrum(self) -> np.ndarray:
        from scipy import fft

        return fft.rfftn(self.cases, self.size, axes=(1, 2, 3))

    @cached_property
    def sums(self) -> np.ndarray:
        """Sum of each case over the overlap of each shift, (N, shifts...)."""
        return _box_sums(self.cases, self.reach).astype(np.float32)

    @cached_property
    def squares(self) -> np.ndarray:
        return _box_sums(self.cases**2, self.reach).astype(np.float32)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of voxels in the overlap of each shift, (shifts...)."""
        return _box_sums(np.ones((1, *self.level.shape)), self.reach)[0].astype(np.float32)

    def shifts(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best shift of the mirrored query for every case and mirroring.

        Args:
            query: (X, Y, Z), the coarse level.

        Returns:
            (N, F) correlation times the square root of the overlap, and (N, F, 3) shift in mm: a position u of the
            query, from the centre, corresponds to `mirroring * u + shift` in the training case.
        """
        from scipy import fft

        reach = self.reach
        in_reach = np.ix_(*[np.arange(-r, r + 1) % n for r, n in zip(reach, self.size, strict=True)])
        share = np.sqrt(self.counts / query.size)
        ways = mirrorings(self.level)
        best = np.empty((len(self.cases), len(ways)))
        voxels = np.empty((len(self.cases), len(ways), 3))
        for f, way in enumerate(ways):
            mirrored = query[tuple(slice(None, None, int(s)) for s in way)]
            spectrum = np.conj(fft.rfftn(mirrored, self.size))
            # Seen from the query, the overlap is that of the opposite shift.
            q_sum = _box_sums(mirrored[None], reach)[0, ::-1, ::-1, ::-1]
            q_square = _box_sums(mirrored[None] ** 2, reach)[0, ::-1, ::-1, ::-1]
            q_variance = np.maximum(q_square - q_sum**2 / self.counts, 1e-6)
            for rows in _blocks(len(self.cases)):
                product = fft.irfftn(self.spectrum[rows] * spectrum, self.size, axes=(1, 2, 3))[
                    (slice(None), *in_reach)
                ]
                covariance = product - q_sum * self.sums[rows] / self.counts
                variance = np.maximum(self.squares[rows] - self.sums[rows] ** 2 / self.counts, 1e-6) * q_variance
                score = (covariance / np.sqrt(variance) * share).reshape(product.shape[0], -1)
                peak = score.argmax(1)
                best[rows, f] = score[np.arange(len(peak)), peak]
                voxels[rows, f] = np.stack(np.unravel_index(peak, product.shape[1:]), 1) - np.array(reach)
        return best, voxels * np.array(self.level.spacing)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def _box_sums(cases: np.ndarray, reach: tuple[int, ...]) -> np.ndarray:
    """Sum over the part of each case that an image shifted by -reach ... reach covers, (C, shifts...)."""
    total = np.zeros((len(cases), *(n + 1 for n in cases.shape[1:])))
    total[:, 1:, 1:, 1:] = cases.astype(np.float64).cumsum(1).cumsum(2).cumsum(3)
    for axis, (n, r) in enumerate(zip(cases.shape[1:], reach, strict=True), 1):
        shift = np.arange(-r, r + 1)
        high, low = np.minimum(n, n + shift), np.maximum(shift, 0)
        total = total.take(high, axis) - total.take(low, axis)
    return total
