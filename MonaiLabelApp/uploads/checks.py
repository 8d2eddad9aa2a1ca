"""Checks of an uploaded file: one image, all of it in this file, and no larger than the server takes.

The checks read only the bytes of the file, before any reader of images opens it. Readers trust a header: they open
other files that it names, and take as much memory as it states.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.formats import DAMAGED, input_errors, looks_like
from replica_detection.io.metaimage import read_metaimage_header
from replica_detection.io.nifti import read_header
from replica_detection.io.nrrd_files import read_nrrd_header
from replica_detection.io.paths import IMAGE_SUFFIXES, is_dicom_name, require_file
from replica_detection_server.errors import UploadTooLargeError
from replica_detection_server.uploads import dicom, pictures
from replica_detection_server.uploads.limits import BESIDE, UploadLimits, require_whole

_CHUNK = 1 << 20
_ONE_FILE = "Send one file that holds header and voxels, such as .nii.gz, .nrrd or .mha"
_AGAIN = "Write it again with a common program"

_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 8, "ULONG": 8}
_META_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
# Fields that MetaImage does not define: tags of DICOM and notes of ITK, which common writers add.
_META_FURTHER = re.compile(r"[0-9a-fA-F]{4}\|[0-9a-fA-F]{4}|ITK_\w{1,60}")
# RGB and RGBA of NIfTI.
_COLOUR_BYTES = {128: 3, 2304: 4}
_NRRD_ENCODINGS = ("raw", "gzip", "gz", "txt", "text", "ascii")


def check_upload(path: Path, limits: UploadLimits) -> None:
    """Returns without an error if `path` is one image in one file within the limits, in the format of its extension.

    Opens nothing else, and holds no more than a few MiB in memory, except for a deflated DICOM file.

    Raises:
        InputError: it is no such file, names another one, holds less than its header promises, or could be read in
            more than one way.
        UploadTooLargeError: it holds more voxels or bytes than the limits.
    """
    _examine(path, limits)


def check_series(folder: Path, limits: UploadLimits) -> None:
    """As `check_upload` for all images of a folder and below, where the limits are those of all together.

    Other files (DICOMDIR, notes, programs of a CD) are removed from the folder, so that nothing reads them.
    """
    voxels = size = 0
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file():
            raise InputError(path, "is a link or a device", "Send the image files themselves")
        if path.name.upper() == "DICOMDIR" or not (path.name.lower().endswith(IMAGE_SUFFIXES) or is_dicom_name(path)):
            path.unlink()
            continue
        voxels += _examine(path, limits)
        size += path.stat().st_size
        _require_within(path, voxels, size, limits)


def _examine(path: Path, limits: UploadLimits) -> int:
    """Voxels of a file that may be opened."""
    require_file(path)
    _require_within(path, 0, path.stat().st_size, limits)
    name = path.name.lower()
    if name.endswith((".nhdr", ".mhd")):
        raise _in_several_files(path)
    kind, examine = next(((k, e) for suffixes, k, e in _FORMATS if name.endswith(suffixes)), ("DICOM", _dicom))
    with input_errors(path, kind):
        return examine(path, limits)


def _nifti(path: Path, limits: UploadLimits) -> int:
    packed = path.name.lower().endswith(".gz")
    with path.open("rb") as file:
        start = file.read(540)
    if packed and not start.startswith(b"\x1f\x8b"):
        raise InputError(path, f"is not gzip-compressed{looks_like(start)}", _AGAIN)
    with gzip.open(path) if packed else path.open("rb") as file, _whole_streams(path):
        start = file.read(540)
        try:
            header = read_header(start)
        except (ValueError, OverflowError) as error:
            raise InputError(path, "states no place of its voxels", DAMAGED) from error
        if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
            raise _in_several_files(path)
        if header is None:
            raise InputError(path, f"has no NIfTI header{looks_like(start)}", _AGAIN)
        if header.dtype is None and header.datatype not in _COLOUR_BYTES:
            raise InputError(path, f"has voxels of an unknown type (datatype {header.datatype})", DAMAGED)
        if not header.shape or not 0 <= header.offset <= BESIDE:
            raise InputError(path, "states an impossible number of axes or place of its voxels", DAMAGED)
        voxels = _product(path, header.shape)
        size = voxels * (_COLOUR_BYTES[header.datatype] if header.dtype is None else header.dtype.itemsize)
        end = header.offset + size
        _require_within(path, voxels, end, limits)
        held = len(start) if packed else path.stat().st_size
        while packed and (piece := file.read(_CHUNK)):
            held += len(piece)
            _require_ends(path, held, end)
    require_whole(path, size, held - header.offset)
    return voxels


def _nrrd(path: Path, limits: UploadLimits) -> int:
    header = read_nrrd_header(path)
    if header is None:
        raise InputError(path, "has no NRRD header", _AGAIN)
    if header.data_file is not None:
        raise _in_several_files(path)
    if header.skips not in ((0, 0), (0, -1)):
        raise InputError(path, "leaves out a part of its file (line skip, byte skip)", _AGAIN)
    if header.encoding not in _NRRD_ENCODINGS or header.dtype.kind not in "iuf":
        raise InputError(path, "has an encoding or a type of voxels that is not read here", _AGAIN)
    voxels = _product(path, header.sizes)
    size = voxels * header.dtype.itemsize
    _require_within(path, voxels, size, limits)
    left = path.stat().st_size - header.end
    if header.encoding in ("gzip", "gz"):
        require_whole(path, size, _unpacked(path, header.end, size, left))
    elif header.encoding == "raw":
        require_whole(path, size, left)
    else:
        require_whole(path, voxels, _words(path, header.end), of="numbers")
    return voxels


def _metaimage(path: Path, limits: UploadLimits) -> int:
    header = read_metaimage_header(path)
    if header is None or "elementdatafile" not in header.fields:
        raise InputError(path, "has no MetaImage header", _AGAIN)
    fields = header.fields
    if fields["elementdatafile"] != "LOCAL" or fields.get("headersize", "0") != "0":
        raise _in_several_files(path)
    if strange := [name for name in header.further if not _META_FURTHER.fullmatch(name)]:
        raise InputError(path, f"has {len(strange)} fields that MetaImage does not define", _AGAIN)
    if fields.get("binarydata", "True") not in ("True", "true"):
        raise InputError(path, "holds its voxels as text", _AGAIN)
    kind = fields.get("elementtype", "").removeprefix("MET_")
    channels = fields.get("elementnumberofchannels", "1")
    if kind not in _META_BYTES or not re.fullmatch(r"[1-9]\d{0,2}", channels, re.ASCII):
        raise InputError(path, "has voxels of a type that is not read here", _AGAIN)
    voxels = _product(path, _whole_numbers(path, fields.get("dimsize", ""), fields.get("ndims", ""))) * int(channels)
    size = voxels * _META_BYTES[kind]
    _require_within(path, voxels, size, limits)
    packed = fields.get("compresseddata", "False")
    if packed not in ("True", "true", "False", "false"):
        raise InputError(path, "does not say whether it is compressed", _AGAIN)
    left = path.stat().st_size - header.end
    stated = fields.get("compresseddatasize", str(left))
    # ITK allocates the memory that is stated here.
    if not re.fullmatch(r"\d{1,15}", stated, re.ASCII) or int(stated) > left:
        raise InputError(path, "is truncated, or states more compressed bytes than it has", DAMAGED)
    if packed.lower() == "true" and "compresseddatasize" not in fields:  # ITK then gives zeros
        raise InputError(path, "does not say how many compressed bytes it has", _AGAIN)
    held = _unpacked(path, header.end, size, int(stated)) if packed.lower() == "true" else left
    require_whole(path, size, held)
    return voxels


def _picture(path: Path, limits: UploadLimits) -> int:
    width, height = pictures.size_of(path)
    _require_within(path, width * height, 0, limits)
    pictures.examine(path)
    return width * height


def _dicom(path: Path, limits: UploadLimits) -> int:
    held = dicom.examine(path, limits.max_bytes)
    _require_within(path, held.voxels, held.voxels * held.bytes_each, limits)
    require_whole(path, held.promised, held.held)
    return held.voxels


@contextmanager
def _whole_streams(path: Path) -> Iterator[None]:
    try:
        yield
    except (zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise InputError(path, "holds a compressed stream that is damaged or cut short", DAMAGED) from error


def _unpacked(path: Path, start: int, size: int, left: int) -> int:
    """Bytes in the zlib or gzip stream that fills `left` bytes from `start` on; InputError where it goes on after its
    last voxel."""
    unpacked, stream = 0, zlib.decompressobj(wbits=47)
    with path.open("rb") as file, _whole_streams(path):
        file.seek(start)
        while (block := file.read(min(_CHUNK, left))) and not stream.eof:
            left -= len(block)
            while block and not stream.eof:
                unpacked += len(stream.decompress(block, _CHUNK))
                _require_ends(path, unpacked, size)
                block = stream.unconsumed_tail
    return unpacked


def _words(path: Path, start: int) -> int:
    """Numbers from `start` on, in a file that holds its voxels as text; commas may stand between them."""
    words, inside = 0, False
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_CHUNK):
            block = block.replace(b",", b" ")
            words += len(block.split()) - (inside and not block[:1].isspace())
            inside = not block[-1:].isspace()
    return words


def _require_ends(path: Path, unpacked: int, size: int) -> None:
    # Some writers fill up the last block.
    if unpacked > size + _CHUNK:
        raise InputError(path, "goes on after its last voxel", _AGAIN)


def _require_within(path: Path, voxels: int, size: int, limits: UploadLimits) -> None:
    if voxels > limits.max_voxels:
        found = f"holds {voxels} voxels, this server takes up to {limits.max_voxels} in one image"
    elif size > limits.max_bytes:
        found = f"holds {size >> 20} MiB, this server takes up to {limits.max_bytes >> 20} MiB in one image"
    else:
        return
    advice = "Send an image about as large as the training images, or have the server started with --max-upload-voxels"
    raise UploadTooLargeError(path, found, advice)


def _product(path: Path, shape: Sequence[int]) -> int:
    if not shape or any(n < 1 for n in shape):
        raise InputError(path, "is empty, an axis has no voxel", DAMAGED)
    return math.prod(shape)


def _whole_numbers(path: Path, text: str, count: str) -> list[int]:
    words = text.split()
    if str(len(words)) != count or not all(re.fullmatch(r"\d{1,10}", word, re.ASCII) for word in words):
        raise InputError(path, "states no size that could be", DAMAGED)
    return [int(word) for word in words]


def _in_several_files(path: Path) -> InputError:
    """The message is the same for every named file, existing or not."""
    return InputError(path, "does not hold its voxels itself", _ONE_FILE)


# By extension, as the readers choose; they read any other extension as DICOM.
_FORMATS: tuple[tuple[tuple[str, ...], str, Callable[[Path, UploadLimits], int]], ...] = (
    ((".nii", ".nii.gz"), "NIfTI", _nifti),
    ((".nrrd",), "NRRD", _nrrd),
    ((".mha",), "MetaImage", _metaimage),
    ((".png", ".jpg", ".jpeg"), "a picture", _picture),
)


def examine_here(path: Path, limits: UploadLimits, *, series: bool) -> None:
    (check_series if series else check_upload)(path, limits)
