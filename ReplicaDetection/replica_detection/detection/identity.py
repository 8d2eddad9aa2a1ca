"""Pairs of images that are the same, which no statistics are needed for. Imports with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from replica_detection.detection.distances import Distances
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.measures import Measure


def identical_pairs(distances: Distances, index: TrainingIndex, measures: Sequence[Measure]) -> np.ndarray:
    """(Q, N) bool: whether query and training case are the same image.

    They are if their files hold the same voxels, mirrored or turned by right angles too (`PreparedImage.voxels`), if
    their distance is 0 under every voxel measure that compares in place, or under every one that aligns (a copy of
    other gain). Equal masks or vectors alone are not enough. A pair of one patient is known by its voxels alone where
    it was not compared. A case of the index is not identical with itself.
    """
    same = np.zeros((len(distances.ids), len(index.ids)), bool)
    positions: dict[str, list[int]] = {}
    for j, voxels in enumerate(index.voxels):
        positions.setdefault(voxels, []).append(j)
    for i, voxels in enumerate(distances.voxels):
        if voxels:
            same[i, positions.get(voxels, [])] = True
    for stage in ("in place", "aligned"):
        compared = [distances.by_measure[m.name] for m in measures if m.level == "voxel" and m.stage == stage]
        if compared:
            same |= np.all([d == 0 for d in compared], axis=0)
    if distances.kind == "cross-fitted":
        own = {id: j for j, id in enumerate(index.ids)}
        same[np.arange(len(same)), [own[id] for id in distances.ids]] = False
    return same
