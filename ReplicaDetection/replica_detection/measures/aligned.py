"""Measures of pairs that were laid upon each other first: for copies that were mirrored, turned, moved or scaled.

Each looks for the few training cases that can be laid on the query best and compares these alone; all other pairs are
left out (+inf). Null cases go through the very same search, so that what laying images upon each other does to new
ones is part of what "close" means.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from replica_detection.measures.base import AligningMeasure, Block, TrainingRows, register
from replica_detection.measures.segmentation import NO_MASK, has_mask
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.registration import CANDIDATES, VERSION
from replica_detection.registration.elastic import LARGEST_SHARE
from replica_detection.registration.local import WINDOW, Neighbourhoods, resample_level
from replica_detection.registration.pyramid import LEVEL_VOXELS, Level, levels, pyramid

if TYPE_CHECKING:
    from replica_detection.registration.placement import Placement
    from replica_detection.registration.retrieval import TrainingPyramids

# Rounding leaves the correlation of an exact copy a hair below 1.
_EXACT = 1e-6


class AlignedMeasure(AligningMeasure):
    """Lays training cases on the query by what `source` shows; a subclass says how the pair is then compared."""

    @property
    def pyramid_names(self) -> tuple[str, str, str]:
        return f"{self.source}_coarse", f"{self.source}_middle", f"{self.source}_fine"

    @abstractmethod
    def _shown(self, case: PreparedImage) -> np.ndarray | None:
        """(grid) what is laid upon each other; None for nothing."""

    @abstractmethod
    def _compared(self, query: Block, placement: Placement, index: TrainingRows) -> tuple[float, Placement]:
        """Distance of one candidate, and how it was laid upon the query for that."""

    @cached_property
    def chain(self) -> tuple[Level, ...]:
        return levels(self.preparation.grid, self.preparation.spacing)

    def pyramid_of(self, case: PreparedImage) -> list[np.ndarray]:
        shown = self._shown(case)
        if shown is None:
            return [np.zeros(level.shape, np.float32) for level in self.chain]
        return pyramid(shown, self.chain)

    def place(self, query: Block, index: TrainingRows, allowed: np.ndarray) -> list[Placement]:
        return self._cohort(index).place([query[name][0] for name in self.pyramid_names], allowed, CANDIDATES)

    def compare(self, query: Block, placed: Sequence[Placement], index: TrainingRows) -> list[tuple[float, Placement]]:
        return nearest_first(self._compared(query, p, index) for p in placed)

    def _cohort(self, index: TrainingRows) -> TrainingPyramids:
        from replica_detection.registration.retrieval import TrainingPyramids

        if self._held is None or self._held[0] is not index:
            coarse, middle, fine = self.pyramid_names
            everything = range(len(index))
            loaded = {name: index.features(everything, [name])[name] for name in (coarse, middle)}
            cohort = TrainingPyramids(
                self.chain,
                loaded[coarse],
                loaded[middle],
                lambda positions: index.features(positions, [fine])[fine],
                voxel=voxel_shape(self.preparation.native.spacing),
            )
            self._held = (index, cohort)
        return self._held[1]

    _held: tuple[TrainingRows, TrainingPyramids] | None = None


@register
class AlignedCorrelation(AlignedMeasure):
    """Normalized correlation after alignment (flips, rotation, scale, translation); ranked as 1 minus it.

    The images are normalized locally first (mean and standard deviation around each voxel), which takes out gain, bias
    field and most of a gamma, and the correlation is taken over the overlap, lowered where that is small.
    """

    name = "ncc_aligned"
    level = "voxel"
    sense = "similarity"
    source = "image"
    needs = ("image_coarse", "image_middle", "image_fine")
    definition = (
        f"correlation of the locally normalized images over their overlap, the training image mirrored, turned, scaled "
        f"and moved onto the query, times the overlap to the power 0.25; of the {CANDIDATES} best candidates, "
        f"search version {VERSION}"
    )

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        return dict(zip(self.pyramid_names, self.pyramid_of(case), strict=True))

    def _shown(self, case: PreparedImage) -> np.ndarray:
        return case.image

    def _compared(self, query: Block, placement: Placement, index: TrainingRows) -> tuple[float, Placement]:
        return _exact(1 - placement.merit), placement


@register
class AlignedLocalCorrelation(AlignedCorrelation):
    """Upper quartile of the local correlation after alignment; ranked as 1 minus it.

    For copies of which a part was lost or painted over: what was copied agrees wherever it is left, while the
    correlation of the whole is that of both parts. A registration is drawn towards the border of what was lost, so each
    candidate is compared as it lies (or mirrored), too, and counts where it agrees better.
    """

    name = "lncc_aligned"
    definition = (
        f"upper quartile of the local correlation (Gaussian window, sigma {WINDOW} voxels of at most "
        f"{LEVEL_VOXELS[-1]:,}) of the locally normalized images over the query's structure, the training image "
        f"mirrored, turned, scaled and moved onto the query, or only mirrored; of the {CANDIDATES} best candidates, "
        f"search version {VERSION}"
    )

    @property
    def group(self) -> str:
        return "voxel aligned in part"

    def compare(self, query: Block, placed: Sequence[Placement], index: TrainingRows) -> list[tuple[float, Placement]]:
        around = Neighbourhoods(query[self.pyramid_names[-1]][0])
        return nearest_first(self._compared_in_part(around, p, index) for p in placed)

    def _compared_in_part(
        self, around: Neighbourhoods, placement: Placement, index: TrainingRows
    ) -> tuple[float, Placement]:
        fine = self.pyramid_names[-1]
        training = index.features([placement.training], [fine])[fine][0]
        unmoved = replace(placement, matrix=np.diag(placement.mirroring), shift=np.zeros(3))
        agreement = []
        for p in (placement, unmoved):
            local = around.correlation(resample_level(training, p.matrix, p.shift, self.chain[-1]))
            agreement.append(float(np.quantile(local, 0.75)) if len(local) else -1.0)
        if agreement[1] >= agreement[0]:
            placement = replace(unmoved, correlation=placement.correlation_before, overlap=1.0)
        return _exact(1 - max(agreement)), placement


@register
class ElasticCorrelation(AlignedCorrelation):
    """Normalized correlation after alignment and a small smooth warp; ranked as 1 minus it.

    Only where it is named: it takes about two seconds a case, and warps make new images alike as well.
    """

    name = "ncc_elastic"
    by_default = False
    definition = (
        f"as ncc_aligned, after a smooth warp (demons, at most {LARGEST_SHARE:.0%} of the field of view); of the "
        f"{CANDIDATES} best candidates, search version {VERSION}"
    )

    @property
    def group(self) -> str:
        return "voxel aligned by a warp"

    def _compared(self, query: Block, placement: Placement, index: TrainingRows) -> tuple[float, Placement]:
        from replica_detection.registration.elastic import warped_merit

        names = self.pyramid_names[1:]
        stored = index.features([placement.training], names)
        merit = warped_merit(
            (query[names[0]][0], query[names[1]][0]),
            (stored[names[0]][0], stored[names[1]][0]),
            placement.matrix,
            placement.shift,
            (self.chain[1], self.chain[2]),
        )
        return _exact(1 - merit), placement


@register
class AlignedDice(AlignedMeasure):
    """Dice coefficient of the masks' foreground after alignment of the masks; ranked as 1 - Dice."""

    name = "dice_aligned"
    level = "segmentation"
    sense = "similarity"
    source = "mask"
    needs = ("mask", "mask_coarse", "mask_middle", "mask_fine")
    definition = (
        f"Dice coefficient of the masks' foreground, the training mask mirrored, turned, scaled and moved onto the "
        f"query's; of the {CANDIDATES} best candidates, search version {VERSION}"
    )

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        mask = np.full(self.preparation.grid, NO_MASK, np.uint8) if case.mask is None else case.mask
        stored = np.ascontiguousarray(mask, np.uint8)
        if case.mask is not None and np.all(stored == NO_MASK):
            stored = np.ones_like(stored)
        return {"mask": stored, **dict(zip(self.pyramid_names, self.pyramid_of(case), strict=True))}

    def _shown(self, case: PreparedImage) -> np.ndarray | None:
        if case.mask is None or not case.mask.any():
            return None
        return (case.mask > 0).astype(np.float32)

    def _compared(self, query: Block, placement: Placement, index: TrainingRows) -> tuple[float, Placement]:
        from replica_detection.registration.transforms import resample

        there = index.features([placement.training], ["mask"])["mask"]
        if not has_mask(there)[0] or not has_mask(query["mask"])[0]:
            return np.inf, placement
        to_training = np.eye(4)
        to_training[:3, :3], to_training[:3, 3] = placement.matrix, placement.shift
        a = query["mask"][0] > 0
        b = resample((there[0] > 0).astype(np.float32), to_training, self.preparation) > 0.5
        return 1 - 2 * float((a & b).sum()) / max(int(a.sum() + b.sum()), 1), placement


def nearest_first(compared: Iterable[tuple[float, Placement]]) -> list[tuple[float, Placement]]:
    return sorted(compared, key=lambda pair: pair[0])


def voxel_shape(spacing: Sequence[float]) -> tuple[float, ...]:
    """(3,) sides of a voxel (2D: a pixel, then 1), of geometric mean 1."""
    sides = np.array(spacing, float)
    return (*(sides / np.exp(np.log(sides).mean())).tolist(), 1.0)[:3]


def _exact(distance: float) -> float:
    return distance if distance > _EXACT else 0.0
