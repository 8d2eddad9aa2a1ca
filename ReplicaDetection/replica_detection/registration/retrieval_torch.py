"""`registration.retrieval` with all voxels compared in torch, for CUDA; what is kept of them is chosen on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch

from replica_detection.kernels.arrays_torch import BATCH_BYTES, full_float32, residents
from replica_detection.registration.optimization_torch import Registration, TorchTemplate, register
from replica_detection.registration.retrieval import ITERATIONS, Asked, TrainingPyramids
from replica_detection.registration.search import mirrorings
from replica_detection.registration.search_torch import TorchShiftSearch

# Three for each query that is searched at a time.
KEPT_TEMPLATES = 48


@dataclass(frozen=True)
class TorchPyramids(TrainingPyramids):
    """As `TrainingPyramids`. Arrays of the cohort that are read-only stay on the device if they fit.

    Args:
        device: as torch names it.
    """

    device: str = "cuda"
    # By level and address of the query's image: the image and its template.
    _templates: dict[tuple[int, int], tuple[np.ndarray, TorchTemplate]] = field(default_factory=dict, repr=False)

    @cached_property
    def _torch_search(self) -> TorchShiftSearch:
        return TorchShiftSearch(self.coarse, self.chain[0], self.device)

    def _shifts(self, query: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._torch_search.shifts(query, positions)

    def _rows(self, number: int, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The whole level: `_register` takes from it what it needs, on the device."""
        return (self.coarse, self.middle)[number], cases

    def _in_place(self, query: np.ndarray, positions: np.ndarray, number: int = 1) -> np.ndarray:
        """See `retrieval.correlations_in_place`."""
        template, training = self._template(query, number), (self.coarse, self.middle)[number]
        ways = mirrorings(self.chain[0])
        correlation = np.zeros((len(positions), len(ways)))
        if template.count < 2:
            return correlation
        with torch.inference_mode(), full_float32():
            image = torch.tensor(query, device=self.device)
            centred = torch.where(template.inside, image - template.value.mean().float(), 0.0)
            both = torch.stack([centred, template.inside.float()])
            axes = [[a + 1 for a in range(3) if way[a] < 0] for way in ways]
            mirrored = torch.stack([both.flip(turned) for turned in axes], 1).flatten(2)
            value, counted = mirrored.transpose(1, 2)
            length = centred.norm()
            found = []
            step = max(1, BATCH_BYTES // (8 * query.size))
            for start in range(0, len(positions), step):
                rows = residents(self.device).gathered(training, positions[start : start + step]).flatten(1)
                variance = rows.square() @ counted - (rows @ counted) ** 2 / template.count
                found.append((rows @ value) / (length * variance.clamp(min=1e-6).sqrt() + 1e-12))
            return torch.cat(found).cpu().numpy().astype(np.float64)

    def _before(self, query: np.ndarray, training: np.ndarray) -> np.ndarray:
        template = self._template(query, 2)
        if template.count < 2 or not len(training):
            return np.zeros(len(training))
        with torch.inference_mode():
            x, y, z = template.at
            cases = torch.tensor(training, device=self.device)[:, x, y, z].double()
            cases -= cases.mean(1, keepdim=True)
            value = template.value - template.value.mean()
            length = value.norm() * cases.norm(dim=1)
            return np.asarray(torch.where(length > 0, cases @ value / length, 0.0).cpu())

    def _register_all(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        held = residents(self.device)
        wanted = [
            Registration(
                self._template(query, number),
                partial(held.gathered, training),
                starts.matrices,
                starts.shifts,
                which,
                starts.flips,
                starts.length,
            )
            for query, number, training, starts, which in asked
        ]
        return register(wanted, iterations=ITERATIONS[asked[0][1]], limits=self.limits) if asked else []

    def _template(self, query: np.ndarray, number: int) -> TorchTemplate:
        """The template of a level of a query; those of the latest queries are kept."""
        key = number, id(query)
        known = self._templates.get(key)
        if known is None or known[0] is not query:
            with torch.inference_mode(), full_float32():
                known = query, TorchTemplate(query, self.chain[number], self.device)
            while len(self._templates) >= KEPT_TEMPLATES:
                self._templates.pop(next(iter(self._templates)), None)
            self._templates[key] = known
        return known[1]
