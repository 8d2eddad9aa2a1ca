"""Pairs of images that are the same, which no statistics are needed for. Imports with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replica_detection.detection.distances import Distances
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.measures import Measure


def identical_cases(distances: Distances, index: TrainingIndex, measures: Sequence[Measure]) -> list[list[int]]:
    """For each query the positions of the training cases that are the same image, rising.

    Two are the same if their files hold the same voxels, mirrored or turned by right angles too
    (`PreparedImage.voxels`), if their distance is 0 under every voxel measure that compares in place, or under every
    one that aligns (a copy of other gain). Equal masks or vectors alone are not enough. A pair of one patient is known
    by its voxels alone where it was not compared. A case of the index is not identical with itself.
    """
    by_voxels: dict[str, list[int]] = {}
    for j, voxels in enumerate(index.voxels):
        by_voxels.setdefault(voxels, []).append(j)
    stages = [
        [distances.by_measure[m.name].exact for m in measures if m.level == "voxel" and m.stage == stage]
        for stage in ("in place", "aligned")
    ]
    own = {id: j for j, id in enumerate(index.ids)} if distances.kind == "cross-fitted" else {}
    found = []
    for i, id in enumerate(distances.ids):
        voxels = distances.voxels[i] if distances.voxels else ""
        same = set(by_voxels.get(voxels, ())) if voxels else set()
        for exact in stages:
            if exact:
                same |= set.intersection(*(set(of_measure[i]) for of_measure in exact))
        found.append(sorted(same - {own.get(id, -1)}))
    return found
