"""Volume: an image with its geometry; reads and writes NIfTI, NRRD and MetaImage, reads DICOM, PNG and JPEG."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.cohort import Case
from replica_detection.io.formats import (
    LPS_TO_RAS,
    Decoded,
    input_errors,
    is_nrrd,
    looks_like,
    quiet_itk,
    read_itk,
    read_nifti,
    read_picture,
    require_spacing,
)
from replica_detection.io.paths import is_dicom_name, require_file

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
# Two grids are the same when no corner of the volume is moved by more than this (mm).
GRID_TOLERANCE = 1e-2


@dataclass(frozen=True)
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


def read_volume(source: Case | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Volume:
    """Reads one image.

    Args:
        source: a case, an image file, or the files of a DICOM series in any order.

    Raises:
        InputError: the file is missing, unreadable, damaged, of no known format, has NaN or infinite voxels, one value
            everywhere, colour, complex voxels, more than three axes, or a geometry that cannot be.
    """
    files = source.files if isinstance(source, Case) else _paths(source)
    for file in files:
        require_file(file)
    path = files[0] if len(files) == 1 else files[0].parent
    decoded = _decode(files, path)
    with input_errors(path, "an image"):
        return _checked(path, decoded)


def read_mask(path: str | os.PathLike[str], like: Volume, *, layers: bool = False) -> np.ndarray:
    """Reads the labels that belong to a volume.

    Args:
        path: an image file with whole numbers; 0 is background. No label at all is allowed.
        like: the volume whose grid it must have. Geometries are compared where both files state one.
        layers: an NRRD file may hold several layers of segments that overlap; the largest label counts.

    Returns:
        Labels with the shape of `like.array`, uint8, or int16 when a label lies outside 0 ... 255.

    Raises:
        InputError: as `read_volume` (one value everywhere is allowed), or values that are not whole, or another grid.
    """
    path = Path(path)
    require_file(path)
    decoded = _decode((path,), path, layers=layers)
    array = decoded.array
    if array.shape != like.array.shape:
        found = f"has {_times(array.shape)} voxels, its image {_times(like.array.shape)}"
        raise InputError(path, found, "Resample the mask onto the grid of the image")
    if decoded.trusted and like.trusted:
        _require_same_grid(path, decoded.affine, like)
    _require_finite(path, array)
    if not (array == np.rint(array)).all():
        value = float(array[array != np.rint(array)].flat[0])
        raise InputError(
            path, f"has values that are no labels, e.g. {value:g}", "Round or threshold the mask to whole numbers"
        )
    low, high = float(array.min()), float(array.max())
    if low < -(2**15) or high >= 2**15:
        raise InputError(path, f"has labels from {low:g} to {high:g}", "Number the labels between 0 and 255")
    return np.ascontiguousarray(array, np.uint8 if low >= 0 and high <= 255 else np.int16)


def write_volume(path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray) -> None:
    """Writes an image; the file is whole or not there.

    Args:
        path: ends in .nii.gz, .nii, .nrrd or .mha; its folder exists.
        array: (X, Y, Z) or (X, Y), real numbers or bool; a 2D image is stored with one slice.
        affine: (4, 4), voxel indices to RAS+ mm.

    Raises:
        InputError: another extension or shape, an affine that is singular (or sheared, which NRRD and MetaImage cannot
            hold here), or the file cannot be written.
    """
    path, array = Path(path), _storable(Path(path), np.asarray(array))
    affine = np.asarray(affine, np.float64)
    suffix = next((s for s in WRITABLE if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise InputError(path, "has an extension that cannot be written", f"Use one of {', '.join(WRITABLE)}")
    _require_affine(path, affine)
    if suffix in (".nrrd", ".mha") and _shear_degrees(affine) > 1e-3:
        raise InputError(path, "cannot hold axes that are not at right angles", "Write .nii.gz")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{suffix}")
    try:
        (_write_nifti if suffix.startswith(".nii") else _write_itk)(temporary, array, affine)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise InputError(
            path, f"cannot be written ({error})", "Check that its folder exists and the disk has room"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _paths(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    if isinstance(source, (str, os.PathLike)):
        return (Path(source),)
    if not source:
        raise ValueError("no file given")
    return tuple(Path(file) for file in source)


def _decode(files: tuple[Path, ...], path: Path, *, layers: bool = False) -> Decoded:
    name = files[0].name.lower()
    if len(files) == 1 and name.endswith((".nii", ".nii.gz")):
        with input_errors(path, "NIfTI"):
            return read_nifti(path)
    if len(files) == 1 and name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        with input_errors(path, "NRRD" if is_nrrd(path) else "MetaImage"):
            return read_itk(path, layers=layers)
    if len(files) == 1 and name.endswith((".png", ".jpg", ".jpeg")):
        with input_errors(path, "a picture"):
            return read_picture(path)
    with input_errors(path, "DICOM"):
        from replica_detection.io.dicom import read_dicom

        if len(files) == 1 and not is_dicom_name(path):
            with path.open("rb") as file:
                found = f"is in no format that can be read{looks_like(file.read(540))}"
            raise InputError(path, found, "Give NIfTI, NRRD, MetaImage, DICOM, PNG or JPEG, with its usual extension")
        return read_dicom(files)


def _checked(path: Path, decoded: Decoded) -> Volume:
    """The volume, when its voxels and geometry can be used."""
    affine = np.asarray(decoded.affine, np.float64)
    _require_affine(path, affine)
    array = np.ascontiguousarray(decoded.array, np.float32)
    _require_finite(path, array)
    if array.min() == array.max():
        raise InputError(path, f"has the value {array.flat[0]:g} in all voxels", "Give an image; this one holds none")
    shear = _shear_degrees(affine)
    notes = (f"its axes are {shear:.1f} degrees away from right angles",) if shear > 0.1 else ()
    return Volume(array, affine, decoded.trusted, decoded.warnings + notes)


def _require_finite(path: Path, array: np.ndarray) -> None:
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        advice = "Replace them, e.g. by the background value"
        raise InputError(path, f"has {bad} of {array.size} voxels that are NaN, infinite or beyond float32", advice)


def _require_affine(path: Path, affine: np.ndarray) -> None:
    advice = "Correct the orientation in the header, or write the file again with a valid affine"
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(path, "has an affine with NaN or of a wrong shape", advice)
    require_spacing(path, np.linalg.norm(affine[:3, :3], axis=0))
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if abs(np.linalg.det(directions)) < 1e-3 or not np.allclose(affine[3], [0, 0, 0, 1]):
        raise InputError(path, "has an affine that cannot be inverted", advice)


def _require_same_grid(path: Path, affine: np.ndarray, like: Volume) -> None:
    sizes = (*like.array.shape, 1)[:3]
    corners = np.array(
        [[(n - 1) * bit for n, bit in zip(sizes, bits, strict=True)] + [1] for bits in np.ndindex(2, 2, 2)]
    )
    apart = float(np.linalg.norm(corners @ (affine - like.affine).T, axis=1).max())
    if apart > GRID_TOLERANCE:
        found = f"lies on another grid than its image: corners are up to {apart:.3g} mm apart"
        raise InputError(path, found, "Resample the mask onto the grid of the image")


def _shear_degrees(affine: np.ndarray) -> float:
    """Largest deviation of two axes from a right angle, in degrees."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _storable(path: Path, array: np.ndarray) -> np.ndarray:
    """(X, Y, Z) in a dtype that all formats hold; int64 and float16 in the smallest dtype that keeps them."""
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "buif":
        raise InputError(path, f"cannot hold an array {array.shape} of {array.dtype}", "Give 2D or 3D real numbers")
    array = array.reshape(*array.shape, 1)[..., :1] if array.ndim == 2 else array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.itemsize == 8 and array.dtype.kind in "ui":
        low, high = int(array.min()), int(array.max())
        return array.astype(np.int32 if low >= -(2**31) and high < 2**31 else np.float64)
    if array.dtype.kind == "f":
        return array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
    return array


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _write_itk(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    sitk = quiet_itk()
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)
