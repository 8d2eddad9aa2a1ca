"""PlacedSurfaces: the surfaces of a pair by row, and their distances for each placement of the second one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replica_detection.surfaces.distances import Statistics, SurfaceComparison
from replica_detection.surfaces.mesh import Mesh
from ReplicaDetectionLib.CasePair import CasePair, PairSurfaces
from ReplicaDetectionLib.ComparisonLayout import FIRST, SECOND

# Rounding leaves distances of this size between surfaces that coincide.
_NOTHING_MM = 1e-3
# A peak within this distance (mm, plus that of the larger one) of a larger peak is the same difference seen from the
# other surface.
_APART = 3.0
_MOST_PEAKS = 50


@dataclass(frozen=True)
class SurfaceRow:
    """A line of the table of distances in mm; `name`: "Synthetic a to Training b", and back, or "both"."""

    name: str
    mean: float
    median: float
    p95: float
    maximum: float


@dataclass(frozen=True)
class Peak:
    """The point of a patch of large distances where it is largest: `ras` mm RAS+ of the scene, on the surface of a row;
    `normal` points out of it."""

    ras: tuple[float, float, float]
    distance: float
    row: str
    normal: tuple[float, float, float] = (0.0, 1.0, 0.0)


class PlacedSurfaces:
    """Surfaces of the first and the second row.

    Args:
        pair: it must have surfaces.
        swapped: the training image is the first.
        placements: matrix (4, 4) of the second image for each mode of MatchTransform.
    """

    def __init__(self, pair: CasePair, swapped: bool, placements: dict[str, np.ndarray]):
        assert pair.surfaces is not None
        self._surfaces: PairSurfaces = pair.surfaces
        self._roles = {FIRST: "training", SECOND: "synthetic"} if swapped else {FIRST: "synthetic", SECOND: "training"}
        self._placements = placements
        self._found: dict[str, SurfaceComparison] = {}

    def own(self, row: str) -> Mesh:
        """In the coordinates of the image's own file."""
        return getattr(self._surfaces, self._roles[row])

    def distances(self, mode: str) -> dict[str, np.ndarray]:
        """(P,) mm for each row."""
        stored = self._surfaces.aligned if mode == "aligned" else self._surfaces.compared
        assert stored is not None, mode
        synthetic, training = stored
        return {row: synthetic if role == "synthetic" else training for row, role in self._roles.items()}

    def world(self, mode: str) -> dict[str, Mesh]:
        """Both meshes in the scene's coordinates."""
        found = self.comparison(mode)
        return {FIRST: found.first, SECOND: found.second}

    def comparison(self, mode: str) -> SurfaceComparison:
        if mode not in self._found:
            matrix, second = self._placements[mode], self.own(SECOND)
            # A mirrored surface would be seen from inside.
            triangles = second.triangles[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else second.triangles
            moved = Mesh(second.points @ matrix[:3, :3].T + matrix[:3, 3], triangles)
            distances = self.distances(mode)
            self._found[mode] = SurfaceComparison(self.own(FIRST), moved, distances[FIRST], distances[SECOND])
        return self._found[mode]

    def statistics(self, mode: str, first: str, second: str) -> list[SurfaceRow]:
        found = self.comparison(mode)
        return [
            _row(f"{first} to {second}", found.forth),
            _row(f"{second} to {first}", found.back),
            _row("both", found.symmetric),
        ]

    def peaks(self, mode: str, threshold: float) -> list[Peak]:
        """Patches of distances above the threshold (0: the largest 5 % of each surface), the largest first."""
        found = self.comparison(mode)
        parts = (
            (FIRST, found.first, found.first_to_second, found.forth),
            (SECOND, found.second, found.second_to_first, found.back),
        )
        every: list[Peak] = []
        for row, mesh, distances, statistics in parts:
            floor = threshold if threshold > 0 else max(statistics.percentile_95, _NOTHING_MM)
            every += [_peak(mesh, distances, i, row) for i in _tops(mesh, distances, floor)]
        every.sort(key=lambda p: -p.distance)
        kept: list[Peak] = []
        for peak in every:
            near = (np.linalg.norm(np.subtract(peak.ras, k.ras)) < _APART + k.distance for k in kept)
            if len(kept) < _MOST_PEAKS and not any(near):
                kept.append(peak)
        return kept


def _row(name: str, s: Statistics) -> SurfaceRow:
    return SurfaceRow(name, s.mean, s.median, s.percentile_95, s.maximum)


def _peak(mesh: Mesh, distances: np.ndarray, vertex: int, row: str) -> Peak:
    x, y, z = mesh.points[vertex].tolist()
    nx, ny, nz = mesh.normals[vertex].tolist()
    return Peak((x, y, z), float(distances[vertex]), row, (nx, ny, nz))


def _tops(mesh: Mesh, distances: np.ndarray, floor: float) -> list[int]:
    """The vertex with the largest distance of each connected patch of vertices at or above `floor`."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    above = (distances >= floor) & (distances > 0)
    if not above.any():
        return []
    a, b = mesh.triangles.ravel(), np.roll(mesh.triangles, 1, axis=1).ravel()
    linked = above[a] & above[b]
    size = len(mesh.points)
    graph = sparse.coo_matrix((np.ones(linked.sum()), (a[linked], b[linked])), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    order = np.flatnonzero(above)[np.argsort(-distances[above], kind="stable")]
    _, firsts = np.unique(labels[order], return_index=True)
    return order[np.sort(firsts)].tolist()
