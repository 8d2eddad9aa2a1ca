"""Reading and writing a Volume: NIfTI, NRRD and MetaImage; reading alone: DICOM, PNG, JPEG, and images in memory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io import metaimage, nrrd_files
from replica_detection.io.array_files import reader_of
from replica_detection.io.case import Case
from replica_detection.io.formats import (
    LPS_TO_RAS,
    Decoded,
    input_errors,
    looks_like,
    payload_file,
    quiet_itk,
    read_nifti,
)
from replica_detection.io.image import Volume, checked_labels, checked_volume, require_affine, shear_degrees
from replica_detection.io.paths import companion, is_dicom_name, require_file
from replica_detection.io.pictures import read_picture
from replica_detection.util.files import write_advice

__all__ = ["WRITABLE", "Volume", "read_mask", "read_volume", "voxel_files", "write_volume"]

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
# Transfer syntaxes that always change values: JPEG baseline and extended, JPEG-LS near-lossless.
_LOSSY = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81))
_GIVE_AGAIN = "Give the images again in this run, or keep them in files"


def read_volume(source: Case | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Volume:
    """Reads one image.

    Args:
        source: a case, in files or in memory; an image file; or the files of a DICOM series in any order.

    Raises:
        InputError: the file is missing, unreadable, damaged, of no known format, has NaN or infinite voxels, one value
            everywhere, colour, complex voxels, more than three axes, or a geometry that cannot be.
    """
    if isinstance(source, Case):
        if source.volume is not None:
            # A copy: nothing that is done to it may change the caller's array.
            return replace(source.volume, array=source.volume.array.copy())
        if not source.files:
            raise InputError(source.image, "was an image in memory, which is gone", _GIVE_AGAIN)
    files = source.files if isinstance(source, Case) else _paths(source)
    for file in files:
        require_file(file)
    path = files[0] if len(files) == 1 else files[0].parent
    decoded = _decode(files, path, case_id=source.id if isinstance(source, Case) else "")
    with input_errors(path, "an image"):
        return checked_volume(path, decoded.array, decoded.affine, decoded.trusted, decoded.warnings)


def read_mask(source: Case | str | os.PathLike[str], like: Volume, *, layers: bool = False) -> np.ndarray:
    """Reads the labels that belong to a volume.

    Args:
        source: a case that has a mask, or an image file with whole numbers; 0 is background. No label at all is
            allowed.
        like: the volume whose grid it must have. Geometries are compared where both files state one.
        layers: an NRRD file may hold several layers of segments that overlap; the largest label counts.

    Returns:
        Labels with the shape of `like.array`, of the first of uint8, int16 and int32 that holds them all.

    Raises:
        InputError: as `read_volume` (one value everywhere is allowed), or values that are not whole, or another grid.
    """
    if isinstance(source, Case):
        if source.labels is not None:
            return source.labels.copy()
        if source.mask is None:
            raise ValueError(f"case {source.id!r} has no mask")
        source = source.mask
    path = Path(source)
    require_file(path)
    decoded = _decode((path,), path, labels=True, layers=layers)
    return checked_labels(path, decoded.array, decoded.affine if decoded.trusted else None, like)


def voxel_files(path: Path) -> tuple[Path, ...]:
    """All files needed to read an image file: itself, the voxels of a header, and the sidecar of a numpy array.

    Raises InputError where the voxels lie in a list of files, outside the header's folder, or their file is missing.
    """
    suffix = path.suffix.lower()
    name: str | None
    if (beside := companion(path)) is not None:
        return path, beside
    if suffix == ".nhdr":
        header = nrrd_files.required_header(path)
        name, end = header.data_file, header.end
    elif suffix == ".mhd":
        stated = metaimage.required_header(path)
        name, end = stated.fields["elementdatafile"], stated.end
    else:
        return (path,)
    return tuple(dict.fromkeys((path, payload_file(path, name, end)[0])))


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
    require_affine(path, affine)
    if suffix in (".nrrd", ".mha") and shear_degrees(affine) > 1e-3:
        raise InputError(path, "cannot hold axes that are not at right angles", "Write .nii.gz")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{suffix}")
    try:
        (_write_nifti if suffix.startswith(".nii") else _write_itk)(temporary, array, affine)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(path, f"cannot be written ({reason})", write_advice(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _paths(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    if isinstance(source, (str, os.PathLike)):
        return (Path(source),)
    if not source:
        raise ValueError("no file given")
    return tuple(Path(file) for file in source)


def _decode(
    files: tuple[Path, ...], path: Path, *, labels: bool = False, layers: bool = False, case_id: str = ""
) -> Decoded:
    name = files[0].name.lower()
    if len(files) == 1 and name.endswith((".nii", ".nii.gz")):
        with input_errors(path, "NIfTI"):
            return read_nifti(path)
    if len(files) == 1 and name.endswith((".nrrd", ".nhdr")):
        with input_errors(path, "NRRD"):
            return nrrd_files.read_nrrd(path, layers=layers)
    if len(files) == 1 and name.endswith((".mha", ".mhd")):
        with input_errors(path, "MetaImage"):
            return metaimage.read_metaimage(path)
    if len(files) == 1 and name.endswith((".png", ".jpg", ".jpeg")):
        with input_errors(path, "a picture"):
            return read_picture(path, labels=labels)
    if len(files) == 1 and (other := reader_of(name, labels=labels)) is not None:
        with input_errors(path, other[0]):
            return other[1](path)
    with input_errors(path, "DICOM"):
        from replica_detection.io.dicom import read_dicom

        if len(files) == 1 and not is_dicom_name(path):
            with path.open("rb") as file:
                found = f"is in no format that can be read{looks_like(file.read(540))}"
            raise InputError(
                path, found, "Give NIfTI, NRRD, MetaImage, DICOM, PNG, JPEG or TIFF, with its usual extension"
            )
        if labels:
            _require_lossless(files)
        return read_dicom(files, case_id)


def _require_lossless(files: Sequence[Path]) -> None:
    """Raises InputError for a DICOM mask in an encoding that changes values (JPEG, JPEG-LS with loss)."""
    import pydicom

    for file in files:
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=["Rows"])
        if getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") in _LOSSY:
            found = "is a mask that is stored with loss: its labels are not those that were drawn"
            raise InputError(file, found, "Export the mask without compression, or with a lossless one")


def _storable(path: Path, array: np.ndarray) -> np.ndarray:
    """(X, Y, Z) in a dtype that all formats hold; int64 and float16 in the smallest dtype that keeps them."""
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "buif":
        raise InputError(path, f"cannot hold an array {array.shape} of {array.dtype}", "Give 2D or 3D real numbers")
    array = array.reshape(*array.shape, 1)[..., :1] if array.ndim == 2 else array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.itemsize == 8 and array.dtype.kind in "ui":
        low, high = int(array.min()), int(array.max())
        if max(abs(low), abs(high)) > 2**53:
            raise InputError(path, f"cannot hold whole numbers up to {max(abs(low), abs(high))}", "Scale them down")
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
