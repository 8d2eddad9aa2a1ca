"""Decoder of NIfTI files, and what the decoders of all formats share."""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.nifti import COLOUR, NiftiHeader, read_header
from replica_detection.io.paths import is_regular

# A corrupt header can state any size; no scan has 2^31 voxels, and nothing is allocated before this check.
VOXEL_LIMIT = 2**31
# RAS+ of NIfTI and LPS+ of DICOM and ITK differ by the sign of the first two axes.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DAMAGED = "The file is damaged: export, convert or copy it again"
_UNSUPPORTED = "This kind of it is not read: convert it, e.g. to .nii.gz, or export it again uncompressed"
_UNKNOWN = "The file is damaged, or of a kind that this program does not read: export, convert or copy it again"
# No deflate stream expands more than this (zlib's own figure), so a header that states more is corrupt.
_DEFLATE_RATIO = 1032
RENAME = "Give it its true extension, or convert it"


@dataclass(frozen=True)
class Decoded:
    """An array (X, Y[, Z]) of any real dtype, and its affine (4, 4) to mm RAS+; `trusted` where the file states one."""

    array: np.ndarray
    affine: np.ndarray
    trusted: bool
    warnings: tuple[str, ...] = ()


def read_nifti(path: Path) -> Decoded:
    """Read NIfTI-1 or -2 from one file. The s-form takes precedence over the q-form.

    A file with neither (both codes 0) keeps its voxel sizes, its array axes count as RAS, and it is not trusted.
    """
    data, header = _nifti_bytes(path)
    assert header.dtype is not None
    shape = squeezed_shape(path, header.shape)
    sizes = np.where(np.arange(3) < len(header.shape), header.spacing, 1.0)
    trusted = header.sform_code > 0 or header.qform_code > 0
    if header.sform_code > 0:
        affine = header.sform
    else:
        require_spacing(path, sizes)
        affine = header.qform if trusted else np.diag([*sizes, 1.0])
    unit = header.unit
    notes = () if unit == 1 else (f"its lengths were converted to mm by a factor of {unit:g}",)
    stored = np.frombuffer(data, header.dtype, math.prod(shape), header.offset)
    slope, intercept = header.scaling
    values = stored if (slope, intercept) == (1, 0) else stored.astype(np.float64) * slope + intercept
    return Decoded(values.reshape(shape, order="F"), np.diag([unit, unit, unit, 1.0]) @ affine, trusted, notes)


def quiet_itk() -> Any:
    """SimpleITK, with its warnings switched off."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def squeezed_shape(path: Path, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape without trailing axes of size 1, so that a single slice is 2D; checked before anything is allocated.

    Raises:
        InputError: an axis is empty, there are more voxels than any scan has, or it is not one 2D or 3D image.
    """
    sizes = [int(size) for size in shape]
    text = " × ".join(map(str, sizes))
    if any(size < 1 for size in sizes):
        raise InputError(path, f"is empty ({text} voxels)", DAMAGED)
    if math.prod(sizes) > VOXEL_LIMIT:
        raise InputError(path, f"states an absurd size ({text} voxels)", DAMAGED)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) == 4:
        raise InputError(path, f"is 4D, {sizes[3]} time points or channels", "Give one 3D volume per file")
    if len(sizes) > 4:
        raise InputError(path, f"is {len(sizes)}D ({text})", "Give one 3D volume with one grey value per voxel")
    if len(sizes) < 2 or (len(sizes) == 2 and min(sizes) == 1):
        raise InputError(path, f"is no image but a line of values ({text})", "Give a 2D or 3D image")
    return tuple(sizes)


def require_spacing(path: str | os.PathLike[str], spacing: np.ndarray) -> None:
    """Raises InputError unless each voxel size (mm) is between 0.001 and 100."""
    if not (np.isfinite(spacing).all() and (spacing >= 1e-3).all() and (spacing <= 100).all()):
        text = " × ".join(f"{size:g}" for size in spacing)
        advice = "Correct the voxel size in the header; sizes between 0.001 and 100 mm are accepted"
        raise InputError(path, f"states an impossible voxel size of {text} mm", advice)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress warnings and log lines of the readers; faults are raised or stand in `Decoded.warnings`."""
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "pydicom", "PIL")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def input_errors(path: Path, kind: str) -> Iterator[None]:
    """Convert any error of a library on a faulty file into InputError.

    Readers raise exceptions of any class for corrupt bytes (zlib.error, KeyError, RuntimeError ...), so all are
    converted; MemoryError is about the machine and passes.
    """
    try:
        with quiet_libraries():
            yield
    except (InputError, MemoryError):
        raise
    except PermissionError as error:
        raise InputError(path, "cannot be opened (no permission)", "Give yourself the right to read it") from error
    except Exception as error:
        # ITK and its NRRD library put source lines and addresses before the reason.
        chain = r"^.*(ITK ERROR: (\w+\(\w+\): )?|sitk::ERROR: |\[nrrd\] \w+: )"
        reason = re.sub(chain, "", " ".join(str(error).split()))
        reason = reason[-200:].rstrip(".") or type(error).__name__
        raise InputError(path, f"cannot be read as {kind} ({reason})", _advice_on(error)) from error


def _advice_on(error: Exception) -> str:
    """Advice on the error of a library: only what is known to be damage is called so."""
    if isinstance(error, (zlib.error, EOFError, gzip.BadGzipFile)):
        return DAMAGED
    if isinstance(error, ImportError):  # 3D Slicer bundles no nibabel and no Pillow
        return "Install that package, or convert the image to .nii.gz, .nrrd or .mha"
    if isinstance(error, OSError) and error.errno is not None:
        return "Check that its drive is connected and works, then try again"
    unsupported = isinstance(error, NotImplementedError) or re.search(r"support|not implemented", str(error), re.I)
    return _UNSUPPORTED if unsupported else _UNKNOWN


def looks_like(head: bytes) -> str:
    """ ", it looks like ...", for a file whose name promises another format; empty when the bytes are not known."""
    known = {
        b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a ZIP archive", b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a numpy file",
        b"NRRD": "an NRRD image", b"%PDF": "a PDF", b"GIF8": "a GIF image",
        b"\x80\x04\x95": "a pickle", b"7z\xbc\xaf": "a 7z archive", b"ObjectType": "a MetaImage",
    }  # fmt: skip
    kind = next((name for magic, name in known.items() if head.startswith(magic)), "")
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        kind = "a NIfTI image"
    elif head[128:132] == b"DICM":
        kind = "a DICOM file"
    elif not kind and head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:200]):
        kind = "text"
    return f", it looks like {kind}" if kind else ""


def _nifti_bytes(path: Path) -> tuple[bytes, NiftiHeader]:
    """The uncompressed file up to its last voxel, and its header as stored.

    A gzip stream is read to its end, which verifies its checksum.
    """
    packed = path.name.lower().endswith(".gz")
    with path.open("rb") as file:
        start = file.read(540)
    if packed and start[:2] != b"\x1f\x8b":
        raise InputError(
            path, f"is not gzip-compressed{looks_like(start)}", "Give it its true extension, or compress it"
        )
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(540)
        header = read_header(start)
        if header is None:
            raise InputError(path, f"has no NIfTI header{looks_like(start)}", RENAME)
        dtype = _nifti_dtype(path, header)
        if not header.shape or header.offset < 0:
            raise InputError(path, "states an impossible number of axes or place of its voxels", DAMAGED)
        if np.isinf(header.slope) or not np.isfinite(header.scaling).all():
            raise InputError(path, "states an infinite intensity scale (scl_slope, scl_inter)", DAMAGED)
        shape = squeezed_shape(path, header.shape)
        length = header.offset + math.prod(shape) * dtype.itemsize
        room = path.stat().st_size * (_DEFLATE_RATIO if packed else 1)
        data = start + (file.read(length - len(start)) if length <= room else b"")
        if len(data) < length:
            held = f"{len(data)} of {length} bytes" if length <= room else f"less than the {length} bytes it states"
            raise InputError(path, f"is truncated, it holds {held}", DAMAGED)
        while packed and file.read(1 << 20):
            pass
    return data, header


def _nifti_dtype(path: Path, header: NiftiHeader) -> np.dtype:
    """Type of the stored values. Raises InputError for colour, complex or unknown ones."""
    if header.datatype in COLOUR:
        raise InputError(path, "has colour voxels (RGB)", "Give one grey value per voxel")
    if header.dtype is None:
        advice = "Write it again with whole numbers of up to 32 bits, float32 or float64"
        raise InputError(path, f"has voxels of a type that is not read (datatype {header.datatype})", advice)
    if header.dtype.kind == "c":
        raise InputError(path, "has complex voxels", "Give the magnitude image")
    return header.dtype


def itk_affine(direction: Sequence[float], spacing: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """Affine (4, 4) to mm RAS+ from direction, spacing and origin (LPS) of an ITK image with 2 or 3 axes."""
    axes = len(spacing)
    affine, used = np.eye(4), min(axes, 3)
    matrix = np.array(direction).reshape(axes, axes) * np.array(spacing)
    affine[:used, :used] = matrix[:used, :used]
    affine[:used, 3] = origin[:used]
    return LPS_TO_RAS @ affine


def payload_file(path: Path, name: str | None, end: int) -> tuple[Path, int]:
    """The file with the voxels, and the offset of the first in bytes: the header's file, or one in the same folder.

    Args:
        path: the header's file.
        name: of the file with the voxels, as the header states it; None for the header's own.
        end: length of the header in bytes.

    Raises:
        InputError: they lie in a list of files, outside that folder once links are followed, or not in a file. The
            message never tells what exists there, nor the name, since the header may come from a stranger.
    """
    if name is None or name.upper() == "LOCAL":
        return path, end
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(path, "keeps its voxels in a list of files", "Write it as .nrrd or .mha, one file")
    file, folders = path.parent / name, (path.parent.resolve(), path.resolve().parent)
    if not (any(file.resolve().is_relative_to(folder) for folder in folders) and is_regular(file)):
        reason = "keeps its voxels in another file, which is missing in its own folder"
        raise InputError(path, reason, "Put both files into one folder")
    return file, 0
