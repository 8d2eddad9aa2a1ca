"""Meshes: smoothed surfaces of masks, in mm. Needs numpy and scipy alone, so that it runs inside 3D Slicer.

A mask's surface is the smoothed boundary of its voxels: a surface net (Gibson, "Constrained
elastic surface nets", MICCAI 1998) under the low-pass filter of Taubin ("A signal processing approach to fair surface
design", SIGGRAPH 1995). The shrinkage of the filter is then undone, so that thin vessels stay as thick as their masks.
Marching cubes cuts the corners off every voxel, by which a vessel of one voxel loses half its volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# Shrinking and growing steps of Taubin's filter; their sum sets the pass band.
_SHRINK, _GROW = 0.5, -0.53
# Number of neighbour rings over which the volume is kept.
_RINGS = 5


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh: `points` (P, 3) float64 in mm RAS+, `triangles` (T, 3) int64 into them.

    Corners run counter-clockwise seen from outside the structure. An empty mesh has neither points nor triangles.
    """

    points: np.ndarray
    triangles: np.ndarray

    @property
    def empty(self) -> bool:
        return not len(self.triangles)

    @cached_property
    def corners(self) -> np.ndarray:
        """Corners of each triangle, (T, 3, 3) mm."""
        return self.points[self.triangles]

    @cached_property
    def area_vectors(self) -> np.ndarray:
        """Outward normals (T, 3) with the triangle's area as length, mm^2."""
        a, b, c = self.corners.transpose(1, 0, 2)
        return np.cross(b - a, c - a) / 2

    @cached_property
    def weights(self) -> np.ndarray:
        """Area that belongs to each vertex, (P,) mm^2: a third of the area of its triangles."""
        areas = np.linalg.norm(self.area_vectors, axis=1) / 3
        return _sum_at(self.triangles, np.repeat(areas[:, None], 3, axis=1), len(self.points))

    @cached_property
    def normals(self) -> np.ndarray:
        """Outward unit normals at the vertices, (P, 3); 0 where a vertex has none."""
        total = np.stack(
            [
                _sum_at(self.triangles, np.repeat(self.area_vectors[:, i, None], 3, axis=1), len(self.points))
                for i in range(3)
            ],
            axis=1,
        )
        return _unit(total)

    @property
    def area(self) -> float:
        """Area of the surface, mm^2."""
        return float(np.linalg.norm(self.area_vectors, axis=1).sum())

    @property
    def volume(self) -> float:
        """Enclosed volume, mm^3, by the divergence theorem."""
        return float(np.einsum("ij,ij->", self.corners.mean(axis=1), self.area_vectors) / 3)


def mesh_of_mask(mask: np.ndarray, affine: np.ndarray, *, label: int | None = None, smoothing: int = 20) -> Mesh:
    """The smoothed surface of a mask, closed at the border of the volume.

    Args:
        mask: (X, Y, Z) labels or bool.
        affine: (4, 4) from voxel indices to mm RAS+; it may be oblique or mirroring.
        label: the label to take; None: every label above 0.
        smoothing: steps of the filter; 0 keeps the boundary of the voxels. No vertex moves by more than half a voxel
            along any axis, so that single voxels stay.

    Returns:
        The mesh, its volume within a few percent of the mask's. An empty mask gives an empty mesh.

    Raises:
        ValueError: the mask is not three-dimensional, or the affine cannot be inverted.
    """
    mask, affine = np.asarray(mask), np.asarray(affine, np.float64)
    if mask.ndim != 3:
        raise ValueError(f"a surface needs a mask of three axes, got the shape {mask.shape}")
    usable = affine.shape == (4, 4) and np.isfinite(affine).all()
    determinant = np.linalg.det(affine[:3, :3]) if usable else 0.0
    if determinant == 0:
        raise ValueError(f"the affine {affine.tolist()} does not map voxels to mm")
    inside = mask > 0 if label is None else mask == label
    if not inside.any():
        return Mesh(np.empty((0, 3)), np.empty((0, 3), np.int64))
    index, quads = _voxel_boundary(inside)
    if determinant < 0:
        quads = quads[:, ::-1]
    points = index @ affine[:3, :3].T
    if smoothing > 0:
        smooth = _smoothed(points, quads, smoothing)
        shift = (smooth - points) @ np.linalg.inv(affine[:3, :3]).T
        points = (index + np.clip(shift, -0.5, 0.5)) @ affine[:3, :3].T
    return Mesh(points + affine[:3, 3], _halved(points, quads))


def _voxel_boundary(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces between inside and outside: corners (P, 3) in voxel indices, and quads (Q, 4), counter-clockwise seen from
    outside."""
    spans = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    low = np.array([s[0] for s in spans])
    padded = np.pad(inside[tuple(slice(s[0], s[-1] + 1) for s in spans)], 1)
    quads = []
    for axis in range(3):
        a, b = padded.take(range(padded.shape[axis] - 1), axis), padded.take(range(1, padded.shape[axis]), axis)
        u, v = (axis + 1) % 3, (axis + 2) % 3
        around = np.zeros((4, 3), np.int64)
        around[[0, 3], u] = around[[0, 1], v] = -1
        for faces, order in ((a & ~b, around), (b & ~a, around[::-1])):
            quads.append(np.argwhere(faces)[:, None] + order)
    corners = np.concatenate(quads)
    numbers = np.ravel_multi_index(tuple(np.moveaxis(corners, 2, 0)), padded.shape)
    used, index = np.unique(numbers, return_inverse=True)
    lattice = np.stack(np.unravel_index(used, padded.shape), axis=1)
    # Corner (i, j, k) lies half a voxel above voxel (i, j, k) of the padded volume.
    return lattice + (low - 0.5), index.reshape(-1, 4)


def _smoothed(points: np.ndarray, quads: np.ndarray, steps: int) -> np.ndarray:
    """Points (P, 3) after Taubin's filter, with the shrinkage undone along the normals."""
    mean = _averaging(quads, len(points))
    smooth = points
    for _ in range(steps):
        for weight in (_SHRINK, _GROW):
            smooth = smooth + weight * (mean @ smooth - smooth)
    normals = _quad_normals(smooth, quads)
    # Displacements of the staircase alternate and cancel over some rings; shrinkage points inwards everywhere.
    lost = np.einsum("ij,ij->i", points - smooth, normals)
    for _ in range(_RINGS):
        lost = mean @ lost
    return smooth + lost[:, None] * normals


def _averaging(quads: np.ndarray, size: int) -> Any:
    """Sparse matrix (P, P) that replaces each vertex by the mean of its neighbours."""
    from scipy import sparse

    here, there = quads.ravel(), np.roll(quads, 1, axis=1).ravel()
    ones = np.ones(2 * len(here))
    links = sparse.csr_matrix((ones, (np.r_[here, there], np.r_[there, here])), shape=(size, size))
    links.data[:] = 1
    return sparse.diags(1 / np.maximum(links.getnnz(axis=1), 1)) @ links


def _quad_normals(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Outward unit normals at the vertices of quads, (P, 3)."""
    p = points[quads]
    facing = np.cross(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1])
    columns = [_sum_at(quads, np.repeat(facing[:, i, None], 4, axis=1), len(points)) for i in range(3)]
    return _unit(np.stack(columns, axis=1))


def _halved(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Two triangles of each quad, cut along its shorter diagonal."""
    p = points[quads]
    long = np.linalg.norm(p[:, 0] - p[:, 2], axis=1) > np.linalg.norm(p[:, 1] - p[:, 3], axis=1)
    rolled = np.where(long[:, None], np.roll(quads, -1, axis=1), quads)
    return np.concatenate([rolled[:, [0, 1, 2]], rolled[:, [0, 2, 3]]])


def _sum_at(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sum of the values at each index, (size,)."""
    return np.bincount(index.ravel(), values.ravel(), size)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; a vector of length 0 stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
