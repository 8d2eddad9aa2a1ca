"""Volume: an image with its geometry; and the checks that each image and each mask must pass, whatever it came from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import LPS_TO_RAS, require_spacing

# Two grids are the same when no corner of the volume is moved by more than this (mm).
GRID_TOLERANCE = 1e-2
# What an error names: a file, or an image in memory by its number and id.
Name = str | os.PathLike[str]
# Labels may differ from whole numbers by this, which arithmetic in float32 leaves; real fractions differ by more.
ROUNDING = 1e-4
# Whole numbers up to this one are exact in float32.
_EXACT = 2**24


@dataclass(frozen=True, eq=False)
class Volume:
    """One image.

    Args:
        array: (X, Y, Z), or (X, Y) for a single slice, float32, C-contiguous, finite and not constant. CT in HU.
        affine: (4, 4) float64 from voxel indices to RAS+ mm, for 2D images too.
        trusted: False when the file states no geometry at all: PNG, JPEG, NIfTI with sform_code = qform_code = 0, NRRD
            and MetaImage without any spacing, DICOM without a pixel spacing. Its affine then holds 1 mm or the bare
            voxel sizes, and its orientation means nothing.
        warnings: what the user should know about how it was read.
    """

    array: np.ndarray
    affine: np.ndarray
    trusted: bool
    warnings: tuple[str, ...] = ()

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm of each axis of the array, (3,) or (2,) float64."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)[: self.array.ndim]

    @property
    def geometry(self) -> str:
        """`none` (not trusted), `default` (stated, but the 1 mm identity that generators write), or `stated`.

        A `default` geometry is trusted all the same: real data sets are published with it.
        """
        if not self.trusted:
            return "none"
        plain = np.eye(4)
        return "default" if any(np.allclose(self.affine, m, atol=1e-6) for m in (plain, LPS_TO_RAS)) else "stated"


def checked_volume(
    name: Name, array: np.ndarray, affine: np.ndarray, trusted: bool, warnings: tuple[str, ...] = ()
) -> Volume:
    """The volume of decoded voxels, (X, Y[, Z]) of any real dtype, and their affine.

    Raises:
        InputError: an affine that cannot be, NaN or infinite voxels, or one value everywhere.
    """
    affine = np.asarray(affine, np.float64)
    require_affine(name, affine)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and max(abs(int(array.min())), int(array.max())) > _EXACT:
        warnings += (f"its whole numbers above {_EXACT} were rounded to 32-bit floating point",)
    array = np.ascontiguousarray(array, np.float32)
    _require_finite(name, array)
    if array.min() == array.max():
        raise InputError(name, f"has the value {array.flat[0]:g} in all voxels", "Give an image; this one holds none")
    shear = shear_degrees(affine)
    notes = (f"its axes are {shear:.1f} degrees away from right angles",) if shear > 0.1 else ()
    return Volume(array, affine, trusted, warnings + notes)


def checked_labels(name: Name, array: np.ndarray, affine: np.ndarray | None, like: Volume) -> np.ndarray:
    """The labels of a decoded mask.

    Args:
        array: (X, Y[, Z]) whole numbers of any real dtype, but for noise of rounding; 0 is background.
        affine: of the mask, (4, 4) to RAS+ mm; None where nothing states it.
        like: the volume whose grid it must have. Geometries are compared where both are stated.

    Returns:
        Labels with the shape of `like.array`, of the first of uint8, int16 and int32 that holds them all.

    Raises:
        InputError: another grid, or values that are no labels.
    """
    if array.shape != like.array.shape:
        found = f"has {_times(array.shape)} voxels, its image {_times(like.array.shape)}"
        raise InputError(name, found, "Resample the mask onto the grid of the image")
    if affine is not None and like.trusted:
        _require_same_grid(name, affine, like)
    _require_finite(name, array)
    labels = np.rint(array)
    fractions = np.abs(array - labels) > ROUNDING
    if fractions.any():
        found = f"has values that are no labels, e.g. {float(array[fractions][0]):.6g}"
        raise InputError(name, found, "Round or threshold the mask to whole numbers")
    low, high = float(labels.min()), float(labels.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if low >= np.iinfo(dtype).min and high <= np.iinfo(dtype).max:
            return np.ascontiguousarray(labels, dtype)
    raise InputError(name, f"has labels from {low:g} to {high:g}", "Number the labels from 0 on")


def require_affine(name: Name, affine: np.ndarray) -> None:
    """Raises InputError unless `affine` is (4, 4), finite, invertible, and has voxel sizes that can be."""
    advice = "Correct the orientation in the header, or write the file again with a valid affine"
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(name, "has an affine with NaN or of a wrong shape", advice)
    require_spacing(name, np.linalg.norm(affine[:3, :3], axis=0))
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if abs(np.linalg.det(directions)) < 1e-3 or not np.allclose(affine[3], [0, 0, 0, 1]):
        raise InputError(name, "has an affine that cannot be inverted", advice)


def shear_degrees(affine: np.ndarray) -> float:
    """Largest deviation of two axes from a right angle, in degrees."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def _require_finite(name: Name, array: np.ndarray) -> None:
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        advice = "Replace them, e.g. by the background value"
        raise InputError(name, f"has {bad} of {array.size} voxels that are NaN, infinite or beyond float32", advice)


def _require_same_grid(name: Name, affine: np.ndarray, like: Volume) -> None:
    sizes = (*like.array.shape, 1)[:3]
    corners = np.array(
        [[(n - 1) * bit for n, bit in zip(sizes, bits, strict=True)] + [1] for bits in np.ndindex(2, 2, 2)]
    )
    apart = float(np.linalg.norm(corners @ (affine - like.affine).T, axis=1).max())
    if apart > GRID_TOLERANCE:
        found = f"lies on another grid than its image: corners are up to {apart:.3g} mm apart"
        raise InputError(name, found, "Resample the mask onto the grid of the image")


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
