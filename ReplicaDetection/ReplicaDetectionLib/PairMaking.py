"""PairMaking: a pair from files: both images, their placement and surfaces. numpy and scipy; no MRML, no Qt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.case import Case
from replica_detection.io.volume import read_mask, read_volume
from replica_detection.preparation.grids import grid_affine
from replica_detection.preparation.prepare import believable_affine, intensity_limits
from replica_detection.preparation.profiles import PROFILES, Intensity, Native, Preparation
from replica_detection.registration.alignment import Alignment
from replica_detection.segmentation import Segmenter
from replica_detection.surfaces.distances import surface_distance
from replica_detection.surfaces.mesh import Mesh, mesh_of_mask
from ReplicaDetectionLib.CasePair import CaseImage, PairSurfaces

# For a profile that takes its mapping from the cohort, where nothing says which it took.
_USUAL = Intensity(percentiles=(1, 99))


@dataclass(frozen=True)
class CommonGrid:
    """The grid that all images were compared on: voxels, mm, and how intensities are mapped.

    `native` is what images without a geometry of their own are taken for; None: they are taken as they are.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    intensity: Intensity
    native: Native | None = None

    @classmethod
    def of(cls, preparation: Preparation) -> CommonGrid:
        return cls(preparation.grid, preparation.spacing, preparation.intensity, preparation.native)

    @classmethod
    def named(cls, profile: str, shape: tuple[int, ...], spacing: tuple[float, ...]) -> CommonGrid:
        """From a profile's name, for a server that does not send the rest of the preparation."""
        known = PROFILES.get(profile)
        return cls(shape, spacing, (known and known.intensity) or _USUAL)


@dataclass(frozen=True)
class ReadImage:
    """An image, and `affine`: a voxel of the common grid to mm RAS+ of the image's file.

    `mask` is (X, Y, Z) uint8 on the common grid, None without one.
    """

    image: CaseImage
    affine: np.ndarray
    mask: np.ndarray | None


def readImage(case: Case, grid: CommonGrid, segmenter: Segmenter | None = None) -> ReadImage:
    """Reads an image and its mask, which `segmenter` makes if the case has none.

    Raises:
        InputError: as reading does, and where 2D and 3D do not go together.
        ImportError: the segmenter is a network, and torch is missing.
    """
    volume = read_volume(case)
    if volume.array.ndim != len(grid.shape):
        found = f"is {volume.array.ndim}D, its collection {len(grid.shape)}D"
        raise InputError(case.image, found, "Choose an image of the same kind")
    believed = volume.affine if grid.native is None else believable_affine(volume, grid.native)[0]
    affine = (
        volume.affine @ np.linalg.inv(believed) @ grid_affine(volume.array.shape, believed, grid.shape, grid.spacing)
    )
    array = volume.array if volume.array.ndim == 3 else volume.array[..., None]
    limits = intensity_limits(volume.array, grid.intensity)
    mask = None
    if case.mask is not None:
        mask = _onGrid(read_mask(case.mask, volume), volume.affine, affine, grid)
    elif segmenter is not None:
        mask = _onGrid(segmenter.segment(volume), volume.affine, affine, grid)
    return ReadImage(CaseImage(case.id, array, volume.affine, limits), affine, mask)


def readFile(path: str | Path, grid: CommonGrid, caseId: str, mask: str | Path = "") -> ReadImage:
    """The same for one image file."""
    return readImage(Case(caseId, (Path(path),), Path(mask) if mask else None), grid)


def withMask(read: ReadImage, path: str | Path, grid: CommonGrid) -> ReadImage:
    """The image with a mask from a file that may lie on another grid than the image, as a server gives it."""
    try:
        volume = read_volume(path)
    except InputError as error:
        # One value everywhere is no image, but it is an empty mask.
        if "in all voxels" not in error.found:
            raise
        return replace(read, mask=np.zeros(grid.shape, np.uint8))
    return replace(read, mask=_onGrid(volume.array, volume.affine, read.affine, grid))


def placementOf(synthetic: ReadImage, training: ReadImage) -> np.ndarray:
    """(4, 4): a point of the training file to the point of the synthetic file that it was compared with, mm RAS+."""
    matrix = synthetic.affine @ np.linalg.inv(training.affine)
    # Files that share their geometry lie on each other but for the rounding of the two products.
    return np.eye(4) if np.allclose(matrix, np.eye(4), atol=1e-5) else matrix


def surfacesOf(
    synthetic: ReadImage, training: ReadImage, alignment: Alignment | None
) -> tuple[PairSurfaces | None, str]:
    """Both surfaces on the common grid, as the measures saw them, with their distances; or None and the reason."""
    for name, read in (("synthetic", synthetic), ("training", training)):
        if read.image.flat:
            return None, "Surfaces need 3D images."
        if read.mask is None:
            return None, f"The {name} image has no mask."
        if not read.mask.any():
            return None, f"The mask of the {name} image is empty."
    assert synthetic.mask is not None and training.mask is not None
    first, second = mesh_of_mask(synthetic.mask, synthetic.affine), mesh_of_mask(training.mask, training.affine)
    return withDistances(first, second, placementOf(synthetic, training), alignment), ""


def withDistances(
    synthetic: Mesh,
    training: Mesh,
    placement: np.ndarray,
    alignment: Alignment | None,
    compared: tuple[np.ndarray, np.ndarray] | None = None,
) -> PairSurfaces:
    """Distances of two meshes, each in its own file's coordinates, for the pair as compared and as aligned.

    Args:
        compared: the former where they are known.
    """
    compared = compared or _distances(synthetic, training, placement)
    aligned = None if alignment is None else _distances(synthetic, training, np.array(alignment.matrix))
    return PairSurfaces(synthetic, training, compared, aligned)


def _distances(synthetic: Mesh, training: Mesh, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moved = Mesh(training.points @ matrix[:3, :3].T + matrix[:3, 3], training.triangles)
    return surface_distance(synthetic, moved), surface_distance(moved, synthetic)


def _onGrid(labels: np.ndarray, own: np.ndarray, affine: np.ndarray, grid: CommonGrid) -> np.ndarray | None:
    """Nearest label at each voxel of the grid, 0 outside the file; None for a 2D image, which has no surface."""
    if labels.ndim != 3:
        return None
    matrix = np.linalg.inv(own) @ affine
    index = np.indices(grid.shape).reshape(3, -1)
    at = np.rint(matrix[:3, :3] @ index + matrix[:3, 3:]).astype(int)
    inside = ((at >= 0) & (at < np.array(labels.shape)[:, None])).all(axis=0)
    found = np.zeros(index.shape[1], np.uint8)
    found[inside] = labels[tuple(at[:, inside])] > 0
    return found.reshape(grid.shape)
