"""`registration.search` in torch, for CUDA: training cases and mirrorings in batches, by one Fourier transform each."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch

from replica_detection.kernels.arrays_torch import BATCH_BYTES, residents
from replica_detection.registration.pyramid import Level
from replica_detection.registration.search import ShiftSearch, mirrorings


class TorchShiftSearch:
    """As `ShiftSearch`; what every query needs of the cases stays on the device if it fits beside the other arrays.

    Args:
        cases: (N, X, Y, Z) float32, the coarse level.
        level: of the cases.
        device: as torch names it.
    """

    def __init__(self, cases: np.ndarray, level: Level, device: str):
        self.cases, self.level, self.device = cases, level, device
        plain = ShiftSearch(cases[:0], level)
        self.reach, self.size = plain.reach, plain.size
        self.places = tuple(2 * r + 1 for r in self.reach)
        windows = [np.arange(-r, r + 1) % n for r, n in zip(self.reach, self.size, strict=True)]
        self._window = torch.from_numpy(np.ravel_multi_index(np.ix_(*windows), self.size).ravel()).to(device)
        self._counts = torch.from_numpy(plain.counts.astype(np.float64)).to(device)

    @cached_property
    def _kept(self) -> tuple[torch.Tensor, ...] | None:
        """`_of_cases` of all cases; None where they would take more than an eighth of the room."""
        one = math.prod(self.size) * 4 + math.prod(self.places) * 8
        if len(self.cases) * one > residents(self.device).room // 8:
            return None
        parts = [self._of_cases(part) for _, part in residents(self.device).pieces(self.cases, self._rows)]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    @property
    def _rows(self) -> int:
        """Cases of a batch: their correlations with all mirrorings take a few times this much."""
        return max(1, BATCH_BYTES // (4 * len(mirrorings(self.level)) * 4 * math.prod(self.size)))

    def shifts(self, query: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `ShiftSearch.shifts`."""
        with torch.inference_mode():
            of_query = self._of_query(query)
            found = []
            for start in range(0, len(positions), self._rows):
                rows = positions[start : start + self._rows]
                if self._kept is None:
                    of_cases = self._of_cases(residents(self.device).gathered(self.cases, rows))
                else:
                    there = torch.from_numpy(rows).to(self.device)
                    of_cases = tuple(values.index_select(0, there) for values in self._kept)
                found.append(self._best(of_query, of_cases))
            best, peak = (torch.cat(values).cpu().numpy() for values in zip(*found, strict=True))
        voxels = np.stack(np.unravel_index(peak, self.places), 2) - np.array(self.reach)
        return best.astype(np.float64), voxels * np.array(self.level.spacing)

    def _best(
        self, of_query: tuple[torch.Tensor, ...], of_cases: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Largest score and its place among the shifts, (C, F) each."""
        spectrum, query_sum, weight = of_query
        spectra, mean, inverse = of_cases
        product = torch.fft.irfftn(spectra[:, None] * spectrum, self.size, dim=(2, 3, 4))
        product = product.flatten(2).index_select(2, self._window)
        score = torch.addcmul(product, query_sum, mean[:, None], value=-1).mul_(inverse[:, None]).mul_(weight)
        return score.max(2)

    def _of_query(self, query: np.ndarray) -> tuple[torch.Tensor, ...]:
        """For each mirroring: conjugate spectrum, sum over the overlap, and the weight of the score."""
        image = torch.tensor(query, device=self.device)
        mirrored = torch.stack([image.flip([a for a in range(3) if way[a] < 0]) for way in mirrorings(self.level)])
        spectrum = torch.fft.rfftn(mirrored, self.size, dim=(1, 2, 3)).conj()
        # Seen from the query, the overlap is that of the opposite shift.
        total = self._box_sums(mirrored).flip(1, 2, 3)
        variance = self._variance(total, self._box_sums(mirrored**2).flip(1, 2, 3))
        weight = (self._counts / query.size).sqrt() / variance.sqrt()
        return spectrum, total.flatten(1).float(), weight.flatten(1).float()

    def _of_cases(self, cases: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Spectrum, and mean and inverse deviation over the overlap of each shift, (C, shifts)."""
        total = self._box_sums(cases)
        variance = self._variance(total, self._box_sums(cases**2))
        mean = (total / self._counts).flatten(1).float()
        return torch.fft.rfftn(cases, self.size, dim=(1, 2, 3)), mean, variance.rsqrt().flatten(1).float()

    def _variance(self, total: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
        return (squares - total**2 / self._counts).clamp(min=1e-6)

    def _box_sums(self, cases: torch.Tensor) -> torch.Tensor:
        """Sum over the part of each case that an image shifted by -reach ... reach covers, (C, shifts...) float64."""
        total = torch.nn.functional.pad(cases.double().cumsum(1).cumsum(2).cumsum(3), (1, 0, 1, 0, 1, 0))
        for axis, (n, r) in enumerate(zip(cases.shape[1:], self.reach, strict=True), 1):
            shift = torch.arange(-r, r + 1, device=cases.device)
            high, low = (shift + n).clamp(max=n), shift.clamp(min=0)
            total = total.index_select(axis, high) - total.index_select(axis, low)
        return total
