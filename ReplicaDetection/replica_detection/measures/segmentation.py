"""Segmentation level: Dice, surface distances and centreline Dice of the cases' masks.

Ranking compares the foreground: any label above 0. A pair with a case that has no mask, and a pair of two empty masks,
is left out (+inf): otherwise all cases without a lesion would be perfect matches of each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.measures.base import MEASURES, Block, Measure, register
from replica_detection.preparation.prepare import PreparedImage

# Stored at every voxel of a case without a mask; a mask that has this label everywhere is stored as 1 instead.
NO_MASK = 255


class SegmentationMeasure(Measure):
    """A measure of two masks; a subclass defines `of_masks`."""

    level = "segmentation"
    needs: ClassVar[tuple[str, ...]] = ("mask",)

    @staticmethod
    @abstractmethod
    def of_masks(queries: np.ndarray, training: np.ndarray, spacing: Sequence[float], label: int | None) -> np.ndarray:
        """(Q, N) similarities or mm for masks (Q, grid) and (N, grid), of one label or (None) of the foreground.

        NaN where both masks are empty; a similarity of 0, or +inf mm, where one is.
        """

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        """`mask`: (grid) uint8, all NO_MASK for a case without one."""
        if case.mask is None:
            return {"mask": np.full(self.preparation.grid, NO_MASK, np.uint8)}
        mask = np.ascontiguousarray(case.mask, np.uint8)
        return {"mask": np.ones_like(mask) if np.all(mask == NO_MASK) else mask}

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        q, n = has_mask(queries["mask"]), has_mask(training["mask"])
        distances = np.full((len(q), len(n)), np.inf)
        if q.any() and n.any():
            values = self._values(_chosen(queries, q), _chosen(training, n))
            ranked = 1 - values if self.sense == "similarity" else values
            distances[np.ix_(q, n)] = np.where(np.isnan(ranked), np.inf, ranked)
        return distances

    def _values(self, queries: Block, training: Block) -> np.ndarray:
        return self.of_masks(queries["mask"], training["mask"], self.preparation.spacing, None)


@register
class Dice(SegmentationMeasure):
    """Dice coefficient of the foreground (RELICT, segmentation level); ranked as 1 - Dice."""

    name = "dice"
    sense = "similarity"
    definition = "Dice coefficient of the masks' foreground (any label above 0)"

    @staticmethod
    def of_masks(queries: np.ndarray, training: np.ndarray, spacing: Sequence[float], label: int | None) -> np.ndarray:
        from replica_detection.kernels import overlap

        return overlap.dice(queries, training, label)


@register
class AverageSurfaceDistance(SegmentationMeasure):
    """Average symmetric surface distance over edge voxels, in mm (RELICT, segmentation level)."""

    name = "asd"
    sense = "distance"
    definition = "average symmetric surface distance in mm: mean over the edge voxels of both masks' foreground"

    @staticmethod
    def of_masks(queries: np.ndarray, training: np.ndarray, spacing: Sequence[float], label: int | None) -> np.ndarray:
        from replica_detection.kernels import surface

        return surface.asd(queries, training, spacing, label)


@register
class SurfelAverageSurfaceDistance(SegmentationMeasure):
    """Average surface distance weighted by area (2D: by length), in mm, as DeepMind's surface-distance defines it."""

    name = "asd_surfel"
    sense = "distance"
    definition = (
        "average surface distance of the masks' foreground in mm, weighted by surface area (2D: by length), "
        "mean of the two directions"
    )

    @staticmethod
    def of_masks(queries: np.ndarray, training: np.ndarray, spacing: Sequence[float], label: int | None) -> np.ndarray:
        from replica_detection.kernels import surface

        return surface.asd_surfel(queries, training, spacing, label)


@register
class HausdorffDistance95(SegmentationMeasure):
    """95th percentile of the surface distances, the larger one of the two directions, in mm."""

    name = "hd95"
    sense = "distance"
    definition = (
        "95th percentile of the surface distances between the edge voxels of the masks' foreground in mm, "
        "the larger one of the two directions"
    )

    @staticmethod
    def of_masks(queries: np.ndarray, training: np.ndarray, spacing: Sequence[float], label: int | None) -> np.ndarray:
        from replica_detection.kernels import surface

        return surface.hd95(queries, training, spacing, label)


@register
class CentrelineDice(SegmentationMeasure):
    """clDice (Shit et al., CVPR 2021), for vessels and other tubes; ranked as 1 - clDice.

    The index stores the mask and its skeleton, eight voxels a byte, since thinning takes far longer than comparing.
    """

    name = "cldice"
    sense = "similarity"
    needs = ("mask", "skeleton")
    definition = (
        "centreline Dice of the masks' foreground, skeletons by thinning (3D: Lee 1994, 2D: Zhang and Suen 1984)"
    )

    @staticmethod
    def of_masks(queries: np.ndarray, training: np.ndarray, spacing: Sequence[float], label: int | None) -> np.ndarray:
        from replica_detection.kernels import overlap

        thin = [
            [overlap.skeleton(m > 0 if label is None else m == label) for m in side] for side in (queries, training)
        ]
        q, n = overlap.pack(queries, label), overlap.pack(training, label)
        return overlap.cldice(q, overlap.pack(thin[0]), n, overlap.pack(thin[1]))

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        """`mask`, and `skeleton`: (bytes,) uint8 from `np.packbits`, all 0 for a case without a mask."""
        from replica_detection.kernels import overlap

        stored = super().features(case)
        thin = np.zeros_like(stored["mask"]) if case.mask is None else overlap.skeleton(stored["mask"])
        return {**stored, "skeleton": np.packbits(thin)}

    def _values(self, queries: Block, training: Block) -> np.ndarray:
        from replica_detection.kernels import overlap

        q, n = overlap.pack(queries["mask"]), overlap.pack(training["mask"])
        return overlap.cldice(q, overlap.words(queries["skeleton"]), n, overlap.words(training["skeleton"]))


def has_mask(masks: np.ndarray) -> np.ndarray:
    """(C,) bool: True for stored masks (C, grid) that are masks, False for those that mark a missing one."""
    flat = masks.reshape(len(masks), -1)
    known = flat[:, 0] != NO_MASK
    for case in np.flatnonzero(~known):
        known[case] = not np.all(flat[case] == NO_MASK)
    return known


def label_values(
    measure: str, query: np.ndarray, training: np.ndarray, labels: Iterable[int], spacing: Sequence[float]
) -> dict[int, float]:
    """The value of one pair for each label, as the literature reports it (Dice, not 1 - Dice).

    Args:
        measure: name of a measure of the segmentation level.
        query: (grid) labels, as stored in the index.
        training: (grid) labels.
        labels: to compare, above 0.
        spacing: mm, along each axis.

    Returns:
        Similarities or mm by label; NaN if neither mask shows the label or a case has no mask, and +inf for a surface
        distance if only one mask shows it.

    Raises:
        ConfigurationError: the measure is not of the segmentation level.
    """
    known = {name: m for name, m in MEASURES.items() if issubclass(m, SegmentationMeasure)}
    if measure not in known:
        raise ConfigurationError(f"measure '{measure}' does not compare masks; choose one of {', '.join(known)}")
    q, n = np.asarray(query)[None], np.asarray(training)[None]
    if not (has_mask(q)[0] and has_mask(n)[0]):
        return {int(label): np.nan for label in labels}
    return {int(label): float(known[measure].of_masks(q, n, spacing, int(label))[0, 0]) for label in labels}


def _chosen(block: Block, cases: np.ndarray) -> Block:
    return block if cases.all() else {name: features[cases] for name, features in block.items()}
