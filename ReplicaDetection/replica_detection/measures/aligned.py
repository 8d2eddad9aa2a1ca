"""Measures of aligned pairs, for copies that were mirrored, rotated, shifted or scaled.

Each measure searches for the few training cases that align best with the query and compares only these; all other pairs
are left out (+inf). Null cases go through the same search, so the null includes the gain in similarity that alignment
gives to unrelated images.

In a cohort of many thousands the search looks only at training cases that are proposed. A mask has no embedding of its
own: it is looked for among the cases whose images are similar, and among those whose masks correlate best in place.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from replica_detection.kernels import torch_device
from replica_detection.measures.base import AligningMeasure, Block, SimilarRows, TrainingRows, register
from replica_detection.measures.segmentation import NO_MASK, has_mask
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.registration import CANDIDATES, EXHAUSTIVE, IN_PLACE, SIMILAR, VERSION
from replica_detection.registration.elastic import LARGEST_SHARE
from replica_detection.registration.local import WINDOW, Neighbourhoods, resample_level
from replica_detection.registration.pyramid import LEVEL_VOXELS, Level, levels, pyramid

if TYPE_CHECKING:
    from replica_detection.registration.placement import Placement
    from replica_detection.registration.retrieval import Search, TrainingPyramids

# Number of queries that a GPU aligns at a time: one alone does not fill it.
TOGETHER = 16
# Largest fine level of a cohort, in bytes, of which a GPU's runs keep a second file with quicker access.
MOST_MAPPED = 4 * 2**30
# Rounding leaves the correlation of an exact copy slightly below 1.
_EXACT = 1e-6


class AlignedMeasure(AligningMeasure):
    """Aligns training cases to the query by the images or masks (`source`); a subclass compares the aligned pair."""

    @property
    def pyramid_names(self) -> tuple[str, str, str]:
        return f"{self.source}_coarse", f"{self.source}_middle", f"{self.source}_fine"

    @property
    @abstractmethod
    def compares(self) -> str:
        """The comparison of an aligned pair, for people."""

    @property
    def definition(self) -> str:
        scope = "all training cases" if self._similar is None else self._proposals
        return f"{self.compares}; of the {CANDIDATES} best candidates among {scope}, search version {VERSION}"

    @property
    def _proposals(self) -> str:
        assert self._similar is not None and self.embedders.images is not None
        images = "" if self.source == "image" else " of the image"
        return (
            f"the {SIMILAR:,} most similar by embedding{images} {self.embedders.images.definition} "
            f"({self._similar.definition}) and the {IN_PLACE:,} that correlate best in place or mirrored"
        )

    @property
    def caution(self) -> str | None:
        if self._similar is not None or self._training <= EXHAUSTIVE:
            return None
        return (
            f"{self.name}: each image is aligned to all {self._training:,} training cases, which takes long, because "
            "the index holds no embedding that could propose some; index with embedding_cosine among the measures"
        )

    def use_index(self, index: TrainingRows) -> None:
        self._training = len(index)
        self._cohort(index)
        if len(index) > EXHAUSTIVE and index.similar is not None:
            self._similar, self.embedders = index.similar, index.embedders
            self.needs = (*type(self).needs, "embedding")  # type: ignore[misc]

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        made = dict(zip(self.pyramid_names, self.pyramid_of(case), strict=True))
        if "embedding" in self.needs:
            assert self.embedders.images is not None
            made["embedding"] = self.embedders.images.describe(case.image[None], self.preparation.spacing)[0]
        return made

    @abstractmethod
    def _content(self, case: PreparedImage) -> np.ndarray | None:
        """(grid) the image or mask that is aligned; None if the case has none."""

    @abstractmethod
    def _compared(self, query: Block, placement: Placement, index: TrainingRows) -> tuple[float, Placement]:
        """Distance of one candidate, and the placement that it was computed for."""

    @cached_property
    def chain(self) -> tuple[Level, ...]:
        return levels(self.preparation.grid, self.preparation.spacing)

    def pyramid_of(self, case: PreparedImage) -> list[np.ndarray]:
        content = self._content(case)
        if content is None:
            return [np.zeros(level.shape, np.float32) for level in self.chain]
        return pyramid(content, self.chain)

    def candidates(self, query: Block, index: TrainingRows, allowed: np.ndarray) -> list[Placement]:
        return next(self.candidates_of_all(query, index, allowed[None]))

    def candidates_of_all(self, queries: Block, index: TrainingRows, allowed: np.ndarray) -> Iterator[list[Placement]]:
        together = 1 if self._torch_device is None else TOGETHER
        for start in range(0, len(allowed), together):
            searches = [self._search(queries, i, allowed[i]) for i in range(len(allowed))[start : start + together]]
            yield from self._cohort(index).candidates_of_all(searches, CANDIDATES)

    def _search(self, queries: Block, i: int, allowed: np.ndarray) -> Search:
        embedding = self._similar
        similar = None if embedding is None else embedding.nearest(queries["embedding"][i], allowed, SIMILAR)
        return [queries[name][i] for name in self.pyramid_names], allowed, similar

    def compare(
        self, query: Block, candidates: Sequence[Placement], index: TrainingRows
    ) -> list[tuple[float, Placement]]:
        return nearest_first(self._compared(query, p, index) for p in candidates)

    @cached_property
    def _torch_device(self) -> str | None:
        return torch_device(self.device)

    def _cohort(self, index: TrainingRows) -> TrainingPyramids:
        if self._held is None or self._held[0] is not index:
            coarse, middle, _ = self.pyramid_names
            cohort = self._pyramids(
                self.chain,
                index.packed(coarse),
                index.packed(middle),
                lambda positions: self._fine(index, positions),
                voxel=voxel_shape(self.preparation.native.spacing),
            )
            self._held = (index, cohort)
        return self._held[1]

    def _fine(self, index: TrainingRows, positions: Sequence[int]) -> np.ndarray:
        """The fine level of cases, (C, X, Y, Z). Stored rows are read more slowly than a GPU compares them."""
        name = self.pyramid_names[-1]
        if self._torch_device is not None and len(index) * math.prod(self.chain[-1].shape) * 4 <= MOST_MAPPED:
            return np.asarray(index.packed(name)[list(positions)])
        return index.features(positions, [name])[name]

    @property
    def _pyramids(self) -> Callable[..., TrainingPyramids]:
        """`TrainingPyramids` for the device."""
        if self._torch_device is None:
            from replica_detection.registration.retrieval import TrainingPyramids

            return TrainingPyramids
        from replica_detection.registration.retrieval_torch import TorchPyramids

        return partial(TorchPyramids, device=self._torch_device)

    _held: tuple[TrainingRows, TrainingPyramids] | None = None
    _similar: SimilarRows | None = None
    _training = 0


@register
class AlignedCorrelation(AlignedMeasure):
    """Normalized correlation after alignment (flips, rotation, scale, translation); ranked as 1 minus it.

    The images are normalized locally first (mean and standard deviation around each voxel), which removes gain, bias
    field and most of a gamma. The similarity is the merit of `registration.optimization`: the correlation over the
    overlap, multiplied by a power of the overlap.
    """

    name = "ncc_aligned"
    level = "voxel"
    sense = "similarity"
    source = "image"
    needs = ("image_coarse", "image_middle", "image_fine")
    compares = (
        "correlation of the locally normalized images over their overlap, the training image mirrored, rotated, scaled "
        "and shifted to match the query, times the overlap to the power 0.25"
    )

    def _content(self, case: PreparedImage) -> np.ndarray:
        return case.image

    def _compared(self, query: Block, placement: Placement, index: TrainingRows) -> tuple[float, Placement]:
        return _exact(1 - placement.merit), placement


@register
class AlignedLocalCorrelation(AlignedCorrelation):
    """Upper quartile of the local correlation after alignment; ranked as 1 minus it.

    For copies of which a part was lost or painted over: the remaining part still agrees, while the correlation of the
    whole mixes both parts. The border of the lost part can mislead the registration, so each candidate is also compared
    without it (in place, or only mirrored), and the better of the two counts.
    """

    name = "lncc_aligned"
    compares = (
        f"upper quartile, over the voxels of the query's structure, of the local correlation of the locally normalized "
        f"images (Gaussian window, sigma {WINDOW} voxels of at most {LEVEL_VOXELS[-1]:,}), the training image "
        f"mirrored, rotated, scaled and shifted to match the query, or only mirrored"
    )

    @property
    def group(self) -> str:
        return "voxel aligned in part"

    def compare(
        self, query: Block, candidates: Sequence[Placement], index: TrainingRows
    ) -> list[tuple[float, Placement]]:
        if not candidates:
            return []
        fine = self.pyramid_names[-1]
        training = self._fine(index, [p.training for p in candidates])
        in_place = [replace(p, matrix=np.diag(p.mirroring), shift=np.zeros(3)) for p in candidates]
        aligned, plain = self._agreements(query[fine][0], training, [*candidates, *in_place]).reshape(2, -1).tolist()
        chosen = [
            replace(q, correlation=p.correlation_before, overlap=1.0) if b >= a else p
            for p, q, a, b in zip(candidates, in_place, aligned, plain, strict=True)
        ]
        return nearest_first((_exact(1 - max(pair)), p) for *pair, p in zip(aligned, plain, chosen, strict=True))

    def _agreements(self, query: np.ndarray, training: np.ndarray, placements: Sequence[Placement]) -> np.ndarray:
        """Upper quartile of the local correlation under each placement, (S,); -1 where nothing is covered.

        Args:
            query: (X, Y, Z), the fine level.
            training: (C, X, Y, Z), the cases of the placements, which come in whole rounds of C.
        """
        which = np.arange(len(placements)) % len(training)
        level = self.chain[-1]
        if self._torch_device is not None:
            from replica_detection.registration.local_torch import upper_quartiles

            matrices, shifts = np.stack([p.matrix for p in placements]), np.stack([p.shift for p in placements])
            return upper_quartiles(query, training, which, matrices, shifts, level, self._torch_device)
        neighbourhoods = Neighbourhoods(query)
        agreements = np.full(len(placements), -1.0)
        for s, p in enumerate(placements):
            local = neighbourhoods.correlation(resample_level(training[which[s]], p.matrix, p.shift, level))
            if len(local):
                agreements[s] = np.quantile(local, 0.75)
        return agreements


@register
class ElasticCorrelation(AlignedCorrelation):
    """Normalized correlation after alignment and a small smooth warp; ranked as 1 minus it.

    Used only when named: it takes about two seconds a case, and a warp also makes unrelated images more alike.
    """

    name = "ncc_elastic"
    by_default = False
    compares = f"as ncc_aligned, after a smooth warp (demons, at most {LARGEST_SHARE:.0%} of the field of view)"

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
    compares = (
        "Dice coefficient of the masks' foreground, the training mask mirrored, rotated, scaled and shifted to match "
        "the query's"
    )

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        mask = np.full(self.preparation.grid, NO_MASK, np.uint8) if case.mask is None else case.mask
        stored = np.ascontiguousarray(mask, np.uint8)
        if case.mask is not None and np.all(stored == NO_MASK):
            stored = np.ones_like(stored)
        return {"mask": stored, **super().features(case)}

    def _content(self, case: PreparedImage) -> np.ndarray | None:
        if case.mask is None or not case.mask.any():
            return None
        return (case.mask > 0).astype(np.float32)

    def compare(
        self, query: Block, candidates: Sequence[Placement], index: TrainingRows
    ) -> list[tuple[float, Placement]]:
        if self._torch_device is None or not candidates:
            return super().compare(query, candidates, index)
        from replica_detection.registration.transforms_torch import dice

        masks = index.features([p.training for p in candidates], ["mask"])["mask"]
        there = has_mask(masks) & has_mask(query["mask"])[0]
        agreement = dice(query["mask"][0], masks, to_training_of(candidates), self.preparation, self._torch_device)
        return nearest_first(zip(np.where(there, 1 - agreement, np.inf).tolist(), candidates, strict=True))

    def _compared(self, query: Block, placement: Placement, index: TrainingRows) -> tuple[float, Placement]:
        from replica_detection.registration.transforms import resample

        mask = index.features([placement.training], ["mask"])["mask"]
        if not has_mask(mask)[0] or not has_mask(query["mask"])[0]:
            return np.inf, placement
        a = query["mask"][0] > 0
        b = resample((mask[0] > 0).astype(np.float32), to_training_of([placement])[0], self.preparation) > 0.5
        return 1 - 2 * float((a & b).sum()) / max(int(a.sum() + b.sum()), 1), placement


def to_training_of(placements: Sequence[Placement]) -> np.ndarray:
    """From a position of the query to one of the training case, mm from the grid's centre, (C, 4, 4)."""
    matrices = np.tile(np.eye(4), (len(placements), 1, 1))
    matrices[:, :3, :3] = [p.matrix for p in placements]
    matrices[:, :3, 3] = [p.shift for p in placements]
    return matrices


def nearest_first(compared: Iterable[tuple[float, Placement]]) -> list[tuple[float, Placement]]:
    """Sorted by distance; equal distances keep their order."""
    return sorted(compared, key=lambda pair: pair[0])


def voxel_shape(spacing: Sequence[float]) -> tuple[float, ...]:
    """(3,) sides of a voxel (2D: of a pixel, then 1), scaled to the geometric mean 1."""
    sides = np.array(spacing, float)
    return (*(sides / np.exp(np.log(sides).mean())).tolist(), 1.0)[:3]


def _exact(distance: float) -> float:
    return distance if distance > _EXACT else 0.0
