"""Volumes and surfaces that are made for a reply: in the space of the image's own file, so that they lie over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from replica_detection.preparation.prepare import PreparedImage
    from replica_detection.surfaces.mesh import Mesh


def difference(synthetic: PreparedImage, training: PreparedImage) -> np.ndarray:
    """Synthetic minus training in mapped intensity, float32 in [-1, 1] on the common grid."""
    return np.asarray(synthetic.image - training.image, np.float32)


def write_on_grid(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    from replica_detection.io.volume import write_volume

    write_volume(path, array, affine)


def in_file_space(mesh: Mesh, spacing: tuple[float, ...], affine: np.ndarray) -> Mesh:
    """A surface from mm along the axes of the common grid to mm RAS+ of an image's own file."""
    from replica_detection.surfaces.mesh import Mesh

    points = positions_in_file(mesh.points, spacing, affine)
    # A file that mirrors an axis turns the surface inside out.
    triangles = mesh.triangles[:, ::-1] if np.linalg.det(affine[:3, :3]) < 0 else mesh.triangles
    return Mesh(points, np.ascontiguousarray(triangles))


def positions_in_file(points: np.ndarray, spacing: tuple[float, ...], affine: np.ndarray) -> np.ndarray:
    """(P, 3) mm along the axes of the grid to (P, 3) mm RAS+ of the file."""
    return points / np.asarray(spacing) @ affine[:3, :3].T + affine[:3, 3]


def write_surface(path: Path, mesh: Mesh, distances: np.ndarray) -> None:
    """A `.vtp` file with the distance in mm at every vertex."""
    from replica_detection.surfaces.mesh_files import write_mesh

    write_mesh(path, mesh, distances)
