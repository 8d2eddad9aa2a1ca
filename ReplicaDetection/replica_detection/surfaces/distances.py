"""Distances between the surfaces of two masks, in mm. Needs numpy and scipy alone, so that it runs inside 3D Slicer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from replica_detection.surfaces.mesh import Mesh, mesh_of_mask
from replica_detection.surfaces.mesh_files import write_mesh

__all__ = [
    "Mesh",
    "Statistics",
    "SurfaceComparison",
    "compare_surfaces",
    "mesh_of_mask",
    "surface_distance",
    "write_mesh",
]

# Number of candidate triangles per vertex; the next number where the nearest triangle may not be among them.
_CANDIDATES = (16, 64, 256)
_POINTS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Statistics:
    """Statistics of distances in mm; `position` (3,) mm RAS+ is that of the maximum. All NaN for an empty surface."""

    mean: float
    median: float
    percentile_95: float
    maximum: float
    position: np.ndarray


@dataclass(frozen=True)
class SurfaceComparison:
    """Two surfaces and, for each vertex (P1,) and (P2,), the distance in mm to the other surface.

    Mean, median and percentile weight every vertex by the area around it, since vertices are not evenly spaced. With an
    empty mask all distances and statistics are NaN.
    """

    first: Mesh
    second: Mesh
    first_to_second: np.ndarray
    second_to_first: np.ndarray

    @cached_property
    def forth(self) -> Statistics:
        """Statistics of the distances from the first surface to the second."""
        return _statistics(self.first, self.first_to_second)

    @cached_property
    def back(self) -> Statistics:
        """Statistics of the distances from the second surface to the first."""
        return _statistics(self.second, self.second_to_first)

    @cached_property
    def symmetric(self) -> Statistics:
        """Statistics of both directions: mean and median over both surfaces together (as in ASD); 95th percentile and
        maximum are the larger of the two directions (as in the Hausdorff distance)."""
        distances = np.concatenate([self.first_to_second, self.second_to_first])
        weights = np.concatenate([self.first.weights, self.second.weights])
        worse = self.back if self.back.maximum > self.forth.maximum else self.forth
        return Statistics(
            _mean(distances, weights),
            _quantile(distances, weights, 0.5),
            float(np.maximum(self.forth.percentile_95, self.back.percentile_95)),
            worse.maximum,
            worse.position,
        )


def surface_distance(mesh: Mesh, other: Mesh) -> np.ndarray:
    """Distance in mm from each vertex to the triangles of the other surface, not only to their vertices.

    Exact (to rounding) where the 256 triangles with the nearest centres include the nearest one, as for surfaces that
    are close together. Elsewhere it is too large by at most e^2 / (2 d) for a distance d, with e about the shortest
    voxel edge: 0.03 mm at d = 16 mm and e = 1 mm.

    Returns:
        (P,) float64; NaN where the other mesh is empty.
    """
    if other.empty or mesh.empty:
        return np.full(len(mesh.points), np.nan)
    target = _Target.of(other)
    parts = range(0, len(mesh.points), _POINTS_AT_ONCE)
    return np.concatenate([target.distance(mesh.points[i : i + _POINTS_AT_ONCE]) for i in parts])


def compare_surfaces(
    mask_a: np.ndarray, mask_b: np.ndarray, affine: np.ndarray, other_affine: np.ndarray | None = None
) -> SurfaceComparison:
    """Surfaces of two masks and the distances between them.

    Args:
        mask_a: (X, Y, Z); every label above 0 counts.
        mask_b: as `mask_a`, on its own grid if `other_affine` is given.
        affine: (4, 4) from voxels to mm RAS+.
        other_affine: the affine of `mask_b`; None: `affine`.

    Raises:
        ValueError: as `mesh_of_mask`.
    """
    first = mesh_of_mask(mask_a, affine)
    second = mesh_of_mask(mask_b, affine if other_affine is None else other_affine)
    return SurfaceComparison(first, second, surface_distance(first, second), surface_distance(second, first))


@dataclass(frozen=True)
class _Target:
    """A surface as target of distances: triangles cut into pieces of similar size, and search trees."""

    corners: np.ndarray
    radii: np.ndarray
    vertices: Any
    centres: Any

    @classmethod
    def of(cls, mesh: Mesh) -> _Target:
        from scipy.spatial import cKDTree

        corners = _cut_small(mesh.corners)
        centres = corners.mean(axis=1)
        radii = np.linalg.norm(corners - centres[:, None], axis=2).max(axis=1)
        return cls(corners, radii, cKDTree(corners.reshape(-1, 3)), cKDTree(centres))

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Distance (P,) in mm from each point to the nearest triangle."""
        nearest = self.vertices.query(points)[0]
        largest = self.radii.max()
        pending = np.arange(len(points))
        for count in _CANDIDATES:
            count = min(count, len(self.corners))
            far, near = self.centres.query(points[pending], k=range(1, count + 1))
            # A triangle whose nearest possible point is farther than the current distance is skipped.
            relevant = far - self.radii[near] < nearest[pending, None]
            row, column = np.nonzero(relevant)
            exact = _point_to_triangle(points[pending[row]], self.corners[near[row, column]])
            np.minimum.at(nearest, pending[row], exact)
            pending = pending[(far[:, -1] - largest < nearest[pending]) & (count < len(self.corners))]
            if not len(pending):
                break
        return nearest


def _cut_small(corners: np.ndarray) -> np.ndarray:
    """Triangles (T, 3, 3) halved across their longest edge until all are about as small as the smallest fifth.

    Thick slices give long triangles; a search by centres needs far fewer candidates among compact ones.
    """
    edges = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
    limit = 2.0 * max(float(np.quantile(edges, 0.2)), float(edges.max()) / 64)
    done = []
    while len(corners):
        edges = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
        small = ~(edges.max(axis=1) > limit)
        done.append(corners[small])
        corners = corners[~small]
        # Corners in the order that puts the longest edge first.
        order = (edges[~small].argmax(axis=1)[:, None] + np.arange(3)) % 3
        a, b, c = np.take_along_axis(corners, order[:, :, None], axis=1).transpose(1, 0, 2)
        middle = (a + b) / 2
        corners = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
    return np.concatenate(done)


def _point_to_triangle(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distances (N,) of points (N, 3) to triangles (N, 3, 3): to the plane where the foot of the perpendicular lies
    inside the triangle, else to the nearest edge."""
    starts, edges = corners, np.roll(corners, -1, axis=1) - corners
    offset = points[:, None] - starts
    length = np.einsum("nij,nij->ni", edges, edges)
    along = np.einsum("nij,nij->ni", offset, edges) / np.where(length > 0, length, 1)
    gap = offset - np.clip(along, 0, 1)[:, :, None] * edges
    squared = np.einsum("nij,nij->ni", gap, gap).min(axis=1)
    normal = np.cross(edges[:, 0], edges[:, 1])
    inside = (np.einsum("nij,nij->ni", np.cross(edges, offset), normal[:, None]) >= 0).all(axis=1)
    area = np.einsum("ij,ij->i", normal, normal)
    height = np.einsum("ij,ij->i", offset[:, 0], normal)
    above = np.divide(height**2, area, out=np.full(len(points), np.inf), where=inside & (area > 0))
    return np.sqrt(np.minimum(squared, above))


def _statistics(mesh: Mesh, distances: np.ndarray) -> Statistics:
    """Statistics of the distances at a mesh's vertices; NaN for none."""
    if not len(distances) or np.isnan(distances).any():
        return Statistics(np.nan, np.nan, np.nan, np.nan, np.full(3, np.nan))
    furthest = int(distances.argmax())
    middle, high = (_quantile(distances, mesh.weights, q) for q in (0.5, 0.95))
    return Statistics(
        _mean(distances, mesh.weights), middle, high, float(distances[furthest]), mesh.points[furthest].copy()
    )


def _mean(distances: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean; NaN where the weights are 0."""
    return float(distances @ weights / weights.sum()) if weights.sum() > 0 else np.nan


def _quantile(distances: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Weighted quantile: the smallest distance that at least this share of the area does not exceed; NaN for none."""
    if not len(distances) or np.isnan(distances).any():
        return np.nan
    order = np.argsort(distances)
    area = np.cumsum(weights[order])
    return float(distances[order[min(np.searchsorted(area, share * area[-1]), len(order) - 1)]])
