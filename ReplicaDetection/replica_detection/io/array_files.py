"""Decoders of further image files: FreeSurfer's MGH, headers with their voxels in .img, numpy arrays, TIFF pictures."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import DAMAGED, LPS_TO_RAS, Decoded, looks_like, require_spacing, squeezed_shape
from replica_detection.io.paths import PAIRED, paired
from replica_detection.io.pictures import grey_values

_ONE_PAGE = "Give one file for each page, or write the pages as one volume (.nii.gz)"
_SIDECAR = 'Write {"spacing": [x, y, z]} in mm, or {"affine": [4 rows of 4 numbers]} to mm RAS+'
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MM = {2: 25.4, 3: 10.0}  # of an inch, of a centimetre: TIFF 6.0, tag 296


def reader_of(name: str, *, labels: bool = False) -> tuple[str, Callable[[Path], Decoded]] | None:
    """The name of the format and its decoder, by a file name in lower case; None for a format of another module.

    `labels`: for a mask.
    """
    for suffixes, kind, reader in _READERS:
        if name.endswith(suffixes):
            return kind, partial(read_tiff, labels=True) if labels and reader is read_tiff else reader
    return None


def read_mgh(path: Path) -> Decoded:
    """Reads FreeSurfer's .mgh and .mgz. It is not trusted where the file says that its geometry is not valid.

    Raises:
        InputError: it is no such file, or has several frames. Errors of nibabel are those of a damaged file.
    """
    import nibabel as nib

    _require_mark(path, "an MGH image", b"\x1f\x8b" if path.suffix.lower() == ".mgz" else b"\0\0\0\1")
    image = nib.MGHImage.from_filename(path)
    shape = squeezed_shape(path, image.shape)
    # nibabel puts a geometry in the place of one that is not valid.
    with gzip.open(path) if path.suffix.lower() == ".mgz" else path.open("rb") as file:
        trusted = file.read(30)[28:] == b"\0\1"
    return Decoded(_values(image, shape), np.asarray(image.affine, np.float64), trusted)


def read_pair(path: Path) -> Decoded:
    """Reads NIfTI or Analyze 7.5 in two files, .hdr and .img; either may be named.

    An Analyze file states voxel sizes and no directions: the first axis is taken to run to the left, as SPM does, and
    it is not trusted. A `.mat` file of SPM beside it states them.

    Raises:
        InputError: the other file is missing, colour or complex voxels, several volumes, or no such header.
    """
    import nibabel as nib

    other = paired(path)
    if other is None:
        wanted = {".hdr": PAIRED, PAIRED: ".hdr"}[path.suffix.lower()]
        raise InputError(path, f"has no {path.stem}{wanted} beside it", "Put both files into one folder")
    header_file, voxel_file = (path, other) if path.suffix.lower() == ".hdr" else (other, path)
    kind = _pair_class(header_file)
    places = {"header": header_file, "image": voxel_file, "mat": header_file.with_suffix(".mat")}
    image: Any = kind.from_file_map(kind.make_file_map({key: str(place) for key, place in places.items()}))
    header = image.header
    shape = squeezed_shape(path, image.shape)
    if header.get_data_dtype().kind not in "buif":
        raise InputError(path, f"has voxels of the type {header.get_data_dtype()}", "Give one grey value per voxel")
    sizes = np.where(np.arange(3) < len(image.shape), (*header.get_zooms()[:3], 1.0, 1.0)[:3], 1.0)
    notes: tuple[str, ...]
    if not isinstance(header, nib.Nifti1Header):
        if places["mat"].is_file():
            return Decoded(_values(image, shape), np.asarray(image.affine, np.float64), True)
        require_spacing(path, sizes)
        notes = ("it is an Analyze file, which does not say which side is left: its first axis was taken to run there",)
        return Decoded(_values(image, shape), np.diag([-sizes[0], *sizes[1:], 1.0]), False, notes)
    unit = {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
    affine = header.get_sform(coded=True)[0]
    affine = header.get_qform(coded=True)[0] if affine is None else affine
    trusted = affine is not None
    if not trusted:
        require_spacing(path, sizes)
        affine = np.diag([*sizes, 1.0])
    notes = () if unit == 1 else (f"its lengths were converted to mm by a factor of {unit:g}",)
    return Decoded(_values(image, shape), np.diag([unit, unit, unit, 1.0]) @ affine, trusted, notes)


def read_numpy(path: Path) -> Decoded:
    """Reads .npy, or the array `image` (else the only one) of .npz, as (X, Y[, Z]), axes to the right, front and top.

    `NAME.json` beside it gives `spacing` (mm along each axis) or `affine` (4, 4); without it the voxels are 1 mm and
    nothing is trusted. A single channel in front is taken off.

    Raises:
        InputError: an array of Python objects, several arrays, more or fewer axes, or a sidecar that cannot be used.
    """
    if path.suffix.lower() == ".npy":
        _require_mark(path, "a numpy array", b"\x93NUMPY")
        with path.open("rb") as file:
            array = _read_array(path, file, path.stat().st_size)
    else:
        _require_mark(path, "an archive of numpy arrays", b"PK")
        array = _from_archive(path)
    if array.dtype.kind not in "buif":
        raise InputError(path, f"holds values of the type {array.dtype}", "Save real numbers")
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    array = array.reshape(squeezed_shape(path, array.shape))
    affine = _sidecar(path, array.ndim)
    if affine is None:
        note = f"it states no voxel size and has no {path.stem}.json that does: 1 mm was taken"
        return Decoded(array, np.eye(4), False, (note,))
    return Decoded(array, affine, True)


def read_tiff(path: Path, *, labels: bool = False) -> Decoded:
    """Reads a TIFF picture of one page as (X, Y): X along the row, Y downwards, like a DICOM image.

    Resolution tags in pixels per inch or centimetre give the pixel size; directions are not stated, so that it is not
    trusted. Pictures with white as 0 are inverted within the range of their type. A colour picture that shows a grey
    film is read by its luminance.

    Args:
        labels: it is a mask: of a palette the indices count, and colours are refused.

    Raises:
        InputError: several pages, colour, or impossible pixel sizes.
    """
    from PIL import Image, UnidentifiedImageError

    with path.open("rb") as file:
        start = file.read(540)
    if start[:4] not in _TIFF:
        raise InputError(path, f"is no TIFF{looks_like(start)}", "Give it its true extension, or convert it")
    try:
        opened = Image.open(path, formats=("TIFF",))
    except UnidentifiedImageError as error:
        raise InputError(path, "is TIFF of a kind that is not read", "Save it with 8 or 16 bit grey values") from error
    with opened as image:
        squeezed_shape(path, image.size)
        pages = int(getattr(image, "n_frames", 1))
        if pages > 1:
            raise InputError(path, f"holds {pages} pages", _ONE_PAGE)
        mode: str = image.mode
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        white_is_zero, bits = tags.get(262) == 0, max(tags.get(258, (1,)))
        unsigned = max(tags.get(339, (1,))) == 1
        unit, resolution = tags.get(296, 2), (tags.get(282), tags.get(283))
        image.load()
        if mode in ("1", "L", "I", "F", *(("P",) if labels else ())) or mode.startswith("I;16"):
            pixels: np.ndarray = np.asarray(image)
            notes: tuple[str, ...] = ()
        else:
            pixels, notes = _grey(path, image, bits, labels=labels)
    if mode == "I" and bits == 32 and unsigned:
        pixels = pixels.view(np.uint32)
    if white_is_zero and mode.startswith("I;16"):  # Pillow inverts fewer bits, not these
        pixels = np.uint16(2**bits - 1) - pixels
    affine = LPS_TO_RAS.copy()
    if unit in _MM and all(resolution):
        sizes = np.array([_MM[unit] / float(value) for value in resolution])
        require_spacing(path, sizes)
        affine[[0, 1], [0, 1]] *= sizes
        notes = (*notes, f"its pixel size, {sizes[0]:.3g} mm, is that of its resolution tags")
    return Decoded(pixels.T, affine, False, notes)


def _grey(path: Path, image: Any, bits: int, *, labels: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    if bits > 8:  # of which Pillow keeps 8
        raise InputError(path, f"is a colour picture with {bits} bits per channel", "Save it as 16 bit grey values")
    channels = np.asarray(image.convert("RGBA" if image.mode in ("RGBA", "LA", "PA") else "RGB"))
    return grey_values(path, channels, image.mode, labels=labels)


def _values(image: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(image.dataobj, order="F").reshape(shape, order="F")


def _require_mark(path: Path, kind: str, mark: bytes) -> None:
    """Raises InputError unless the file begins with the mark of its format."""
    with path.open("rb") as file:
        start = file.read(540)
    if not start.startswith(mark):
        raise InputError(path, f"is not {kind}{looks_like(start)}", "Give it its true extension, or convert it")


def _pair_class(header_file: Path) -> Any:
    """The class of nibabel for a header in a file of its own."""
    import nibabel as nib

    with header_file.open("rb") as file:
        start = file.read(540)
    if start[344:348] in (b"ni1\0", b"n+1\0"):
        return nib.Nifti1Pair
    if start[4:8] in (b"ni2\0", b"n+2\0"):
        return nib.Nifti2Pair
    if 348 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")):
        # SPM's variant of Analyze: where a plain file has no scale of values, it is the same.
        return nib.Spm2AnalyzeImage
    raise InputError(header_file, "is no header of NIfTI or Analyze 7.5", "Convert the image to .nii.gz or .nrrd")


def _from_archive(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if "image" not in names and len(names) != 1:
            shown = ", ".join(sorted(names)[:5])
            raise InputError(path, f"holds {len(names)} arrays ({shown})", "Name the image's array `image`")
        info = names.get("image") or next(iter(names.values()))
        with archive.open(info) as file:
            return _read_array(path, file, info.file_size)


def _read_array(path: Path, file: IO[bytes], size: int) -> np.ndarray:
    """The array of an open .npy file of `size` bytes; its header is checked before anything is allocated."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise InputError(path, "holds Python objects, which are not read", "Save an array of numbers")
    count = 1
    for length in shape:
        count *= int(length)
    # A single channel in front is no axis of the image.
    squeezed_shape(path, shape[1:] if len(shape) == 4 and shape[0] == 1 else shape)
    if count * dtype.itemsize > size:
        raise InputError(path, f"is truncated, it holds less than its {count} values", DAMAGED)
    data = file.read(count * dtype.itemsize)
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")


def _sidecar(path: Path, axes: int) -> np.ndarray | None:
    """The affine that NAME.json beside an array states; None where there is no such file, or it says neither."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return None
    try:
        stated = json.loads(file.read_text(encoding="utf-8-sig"))
        spacing, affine = (stated.get(key) for key in ("spacing", "affine"))
        if affine is not None:
            matrix = np.array(affine, np.float64)
            if matrix.shape != (4, 4):
                raise ValueError(f"the affine has the shape {matrix.shape}")
            return matrix
        if spacing is None:
            return None
        sizes = np.array(spacing, np.float64).ravel()
        if len(sizes) not in {3, axes}:
            raise ValueError(f"{axes} axes and {len(sizes)} voxel sizes")
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise InputError(file, f"gives no spacing or affine for {path.name} ({error})", _SIDECAR) from error
    require_spacing(file, sizes)
    return np.diag([*sizes[:2], sizes[2] if len(sizes) == 3 else 1.0, 1.0])


_READERS: tuple[tuple[tuple[str, ...], str, Callable[..., Decoded]], ...] = (
    ((".mgh", ".mgz"), "MGH", read_mgh),
    ((".hdr", ".img"), "NIfTI or Analyze in two files", read_pair),
    ((".npy", ".npz"), "a numpy array", read_numpy),
    ((".tif", ".tiff"), "TIFF", read_tiff),
)
