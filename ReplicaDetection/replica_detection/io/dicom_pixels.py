"""DICOM pixels: the same values from any transfer syntax, bit layout and version of pydicom.

pydicom reads the header, cuts the frames apart and unpacks RLE. Plain frames are read by numpy. Any other frame is
decoded by GDCM (in SimpleITK, which 3D Slicer has as well) from a file that holds this frame and says of it what its
codestream says: so neither GDCM nor ITK corrects, rescales or inverts anything. All of that happens here, once.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import DAMAGED, quiet_itk

AIR_HU = -1024.0
_PLAIN = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.1.99": "<",  # deflated: pydicom inflates it
    "1.2.840.10008.1.2.2": ">",
}
_RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
_FLOATS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
_CONVERT = "Convert it to an uncompressed transfer syntax, such as with `gdcmconv --raw IN OUT`"
NO_SIZE, EXPORT_AGAIN = "states no image size (Rows, Columns)", "Export the series again with its images"


@dataclass(frozen=True)
class Scale:
    """Rescale slope and intercept of a frame; `stated` where the file names an intercept."""

    slope: float = 1.0
    intercept: float = 0.0
    stated: bool = False


@dataclass(frozen=True)
class _Layout:
    """Bits of one stored value: allocated, stored, the highest used one, and its sign."""

    allocated: int
    stored: int
    high: int
    signed: bool

    def values(self, cells: np.ndarray, precision: int, bits: int) -> np.ndarray:
        """Integers of `bits` bits from cells that hold `precision` bits; what other bits hold does not count."""
        values: Any = cells.astype(np.int32 if self.allocated <= 16 else np.int64)
        if precision > self.high:  # a codestream of fewer bits holds the values alone
            values >>= self.high + 1 - self.stored
        values &= (1 << bits) - 1
        if self.signed:
            values -= (values >> (bits - 1) & 1) << bits
        return values

    def ends(self) -> int:
        """Sum of the lowest and the highest value."""
        return -1 if self.signed else (1 << self.stored) - 1


def require_grey(path: Path, dataset: Any) -> None:
    """Raises InputError for a file without pixels, without their number, or with a colour image."""
    if not any(name in dataset for name in ("PixelData", *_FLOATS)):
        raise InputError(path, "holds no pixel data", EXPORT_AGAIN)
    if not (dataset.get("Rows") and dataset.get("Columns")):
        raise InputError(path, NO_SIZE, EXPORT_AGAIN)
    colour = colour_of(dataset)
    if colour:
        raise InputError(path, f"is a colour image ({colour})", "Export it as grey values (MONOCHROME2)")


def colour_of(dataset: Any) -> str:
    """The photometric interpretation of a colour image; "" for grey values, or where the header does not say."""
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    grey = photometric in ("MONOCHROME1", "MONOCHROME2") and int(dataset.get("SamplesPerPixel") or 1) == 1
    return "" if grey else photometric


def read_frames(path: Path, dataset: Any, scales: Sequence[Scale]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Frames (rows, columns) float32 after rescale or modality table, one for each of `scales`, and warnings.

    Bits outside of those stored do not count, the sign is extended. MONOCHROME1 is inverted within its stored range.
    In CT images with a rescale, padding (PixelPaddingValue, up to PixelPaddingRangeLimit) becomes air, -1024 HU.

    Raises:
        InputError: a transfer syntax or a layout of bits that cannot be read, fewer voxels than the header promises,
            or a codestream that is damaged or of another size.
    """
    shape = int(dataset.Rows), int(dataset.Columns)
    inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    name = next((name for name in _FLOATS if name in dataset), None)
    if name is not None:
        if inverted:
            raise InputError(path, "inverts floating-point values (MONOCHROME1)", "Export it as MONOCHROME2")
        cells = _plain_cells(path, dataset, name, np.dtype(_FLOATS[name]), (len(scales), *shape))
        return [_rescaled(values, scale) for values, scale in zip(cells, scales, strict=True)], ()
    layout, notes = _layout(path, dataset)
    table = _modality_table(path, dataset, layout, inverted)
    padding = _Padding.of(dataset, layout)
    padded = False
    frames = []
    for (cells, precision, bits), scale in zip(_cells(path, dataset, layout, len(scales)), scales, strict=True):
        values = layout.values(cells, precision, bits)
        if table is None:
            frame = _rescaled(layout.ends() - values if inverted else values, scale)
        else:
            frame = table.look_up(values)
        if padding is not None and scale.stated:
            found = padding.found(cells, values)
            padded |= bool((frame[found] != AIR_HU).any())
            frame[found] = AIR_HU
        frames.append(frame)
    if padded:
        notes += (f"its padding (PixelPaddingValue) was read as air, {AIR_HU:g} HU",)
    return frames, notes


def _layout(path: Path, dataset: Any) -> tuple[_Layout, tuple[str, ...]]:
    allocated = int(dataset.get("BitsAllocated") or 0)
    stored = int(dataset.get("BitsStored") or allocated)
    high = dataset.get("HighBit")
    high = stored - 1 if high is None else int(high)
    if allocated not in (8, 16, 32):
        raise InputError(path, f"allocates {allocated} bits to a voxel", "Export it with 8, 16 or 32")
    if not 1 <= stored <= allocated:
        raise InputError(path, f"states {stored} stored bits of {allocated} allocated ones (BitsStored)", DAMAGED)
    notes: tuple[str, ...] = ()
    if not stored <= high + 1 <= allocated:
        notes = (f"it states an impossible high bit ({high} with {stored} of {allocated} bits), which was not used",)
        high = stored - 1
    return _Layout(allocated, stored, high, bool(dataset.get("PixelRepresentation"))), notes


def _cells(path: Path, dataset: Any, layout: _Layout, frames: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Frames as they are stored, the bits that each holds, and the bits of its values."""
    syntax = _transfer_syntax(dataset)
    shape = int(dataset.Rows), int(dataset.Columns)
    packed = bool(getattr(dataset["PixelData"], "is_undefined_length", False))
    if syntax in _PLAIN:
        if packed:
            raise InputError(path, "holds compressed pixels and says that they are not (TransferSyntaxUID)", DAMAGED)
        dtype = np.dtype(f"{_PLAIN[syntax]}u{layout.allocated // 8}")
        for cells in _plain_cells(path, dataset, "PixelData", dtype, (frames, *shape)):
            yield cells, layout.allocated, layout.stored
        return
    if syntax not in (_RLE, *_JPEG, *_JPEG_LS, *_JPEG_2000):
        raise InputError(path, f"is encoded as {_name(syntax)}, which cannot be decoded", _CONVERT)
    with tempfile.TemporaryDirectory(prefix="replica-detection-") as folder:
        for data in _split(dataset.PixelData, frames):
            yield _decoded(path, syntax, data, shape, layout, Path(folder) / "frame.dcm")


def _transfer_syntax(dataset: Any) -> str:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None:
        return str(syntax)
    # Files from before part 10 of the standard state none. pydicom 2 knows no original_encoding.
    little = dataset.original_encoding[1] if hasattr(dataset, "original_encoding") else dataset.is_little_endian
    return "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


def _name(syntax: str) -> str:
    from pydicom.uid import UID

    name = UID(syntax).name
    return f"{name} ({syntax})" if name != syntax else syntax


def _plain_cells(path: Path, dataset: Any, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    data, needed = dataset[name].value, dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(data) < needed:
        raise InputError(path, f"is truncated, it holds {len(data)} of {needed} bytes of voxels", DAMAGED)
    order = _PLAIN.get(_transfer_syntax(dataset), "<")
    if dtype.itemsize == 1 and order == ">" and dataset[name].VR == "OW":
        words = np.frombuffer(data, ">u2", len(data) // 2).astype("<u2")
        return words.view(np.uint8)[:needed].reshape(shape)
    return np.frombuffer(data[:needed], f"{order}{dtype.str[1:]}").reshape(shape)


def _split(data: bytes, frames: int) -> Iterator[bytes]:
    from pydicom import encaps

    if hasattr(encaps, "generate_frames"):  # pydicom 3
        return iter(encaps.generate_frames(data, number_of_frames=frames))
    return iter(encaps.generate_pixel_data_frame(data, frames))


def _decoded(
    path: Path, syntax: str, data: bytes, shape: tuple[int, int], layout: _Layout, scratch: Path
) -> tuple[np.ndarray, int, int]:
    """Cells of a compressed frame, the bits that they hold, and the bits of its values."""
    if syntax == _RLE:
        stated = _Stream(shape, layout.allocated, False)
        # GDCM fails on some frames that RLE made longer.
        cells = _one_frame(syntax, data, stated).pixel_array
        return cells.reshape(shape), layout.allocated, layout.stored
    found = _Stream.of_jpeg_2000(data) if syntax in _JPEG_2000 else _Stream.of_jpeg(data)
    if found is None:
        raise InputError(path, f"holds no {_name(syntax)} in its pixel data", DAMAGED)
    if found.components != 1:
        raise InputError(path, f"holds {found.components} values in each voxel (colour)", "Export it as grey values")
    if found.shape != shape:
        sizes = [" × ".join(map(str, size[::-1])) for size in (found.shape, shape)]
        raise InputError(
            path, f"holds compressed pixels of another size ({sizes[0]}) than it states ({sizes[1]})", DAMAGED
        )
    # HTJ2K is decoded by OpenJPEG as well, but GDCM does not know its name.
    frame = _one_frame(_JPEG_2000[1] if syntax in _JPEG_2000 else syntax, data, found)
    if hasattr(frame, "original_encoding"):  # pydicom 3
        frame.save_as(scratch, enforce_file_format=True, overwrite=True)
    else:
        frame.is_little_endian, frame.is_implicit_VR = True, False
        frame.save_as(scratch, write_like_original=False)
    sitk = quiet_itk()
    try:
        cells = sitk.GetArrayFromImage(sitk.ReadImage(str(scratch), imageIO="GDCMImageIO"))
    except RuntimeError as error:
        advice = f"They are damaged, or their encoder was an unusual one. {_CONVERT}, or export it again"
        raise InputError(path, f"holds pixels that cannot be decoded as {_name(syntax)}", advice) from error
    # As pydicom has it: these codestreams know how many bits their values have, and it is those that hold the sign.
    bits = min(layout.stored, found.precision) if syntax in (*_JPEG_2000, *_JPEG_LS) else layout.stored
    return cells.reshape(shape), found.precision, bits


@dataclass(frozen=True)
class _Stream:
    """Rows and columns, bits of a value, its sign, and values in a voxel, as a codestream states them."""

    shape: tuple[int, int]
    precision: int
    signed: bool
    components: int = 1

    @classmethod
    def of_jpeg_2000(cls, data: bytes) -> _Stream | None:
        """From the marker SIZ (ISO 15444-1, A.5.1); None without one."""
        start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
        if start < 0 or len(data) < start + 43:
            return None
        right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
        components, depth = struct.unpack(">HB", data[start + 40 : start + 43])
        return cls((bottom - top, right - left), (depth & 0x7F) + 1, bool(depth & 0x80), components)

    @classmethod
    def of_jpeg(cls, data: bytes) -> _Stream | None:
        """From the frame header of JPEG or JPEG-LS (ISO 10918-1, B.2.2); None without one."""
        at = 2
        while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if marker == 0xFF:
                at += 1
            elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                precision, rows, columns, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
                return cls((rows, columns), precision, False, components)
            else:
                at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return None


def _one_frame(syntax: str, data: bytes, stated: _Stream) -> Any:
    """A data set of one grey frame without rescale, which no decoder changes after decoding."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    meta: Any = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    frame: Any = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    frame.SOPClassUID, frame.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    frame.SamplesPerPixel, frame.PhotometricInterpretation = 1, "MONOCHROME2"
    frame.Rows, frame.Columns = stated.shape
    frame.BitsAllocated = 8 if stated.precision <= 8 else 16 if stated.precision <= 16 else 32
    frame.BitsStored, frame.HighBit = stated.precision, stated.precision - 1
    frame.PixelRepresentation = int(stated.signed)
    frame.PixelData = encapsulate([data])
    frame["PixelData"].VR, frame["PixelData"].is_undefined_length = "OB", True
    return frame


def _rescaled(values: np.ndarray, scale: Scale) -> np.ndarray:
    return (values.astype(np.float64) * scale.slope + scale.intercept).astype(np.float32)


@dataclass(frozen=True)
class _Table:
    """A modality lookup table: the values of `first` and of what follows."""

    first: int
    entries: np.ndarray

    def look_up(self, values: np.ndarray) -> np.ndarray:
        return self.entries[np.clip(values - self.first, 0, len(self.entries) - 1)]


def _modality_table(path: Path, dataset: Any, layout: _Layout, inverted: bool) -> _Table | None:
    """The table that stands for the rescale (DICOM part 3, C.11.1), `inverted` in its own range; None without one."""
    sequence = dataset.get("ModalityLUTSequence")
    if not sequence:
        return None
    count, first, bits = (int(value) for value in sequence[0].LUTDescriptor)
    data, count = sequence[0].LUTData, count % 65536 or 65536
    if isinstance(data, bytes):
        order = _PLAIN.get(_transfer_syntax(dataset), "<")
        entries = np.frombuffer(data, np.uint8 if bits == 8 and len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if not 8 <= bits <= 16 or len(entries) < count:
        found = f"holds a modality lookup table of {len(entries)} entries for {count} of {bits} bits"
        raise InputError(path, found, DAMAGED)
    first = (first & 0xFFFF) - (0x10000 if layout.signed and first & 0x8000 else 0)
    entries = entries[:count].astype(np.float32)
    return _Table(first, np.float32((1 << bits) - 1) - entries if inverted else entries)


@dataclass(frozen=True)
class _Padding:
    """Voxels of a CT image that hold no measured value: `low` to `high`, or the very bits `pattern`."""

    low: int
    high: int
    pattern: int | None
    mask: int

    @classmethod
    def of(cls, dataset: Any, layout: _Layout) -> _Padding | None:
        """None for another modality, or without PixelPaddingValue."""
        value = dataset.get("PixelPaddingValue")
        if value is None or value == "" or dataset.get("Modality") != "CT":
            return None
        mask = (1 << layout.allocated) - 1
        limit = dataset.get("PixelPaddingRangeLimit")
        stated = [int(end) & mask for end in (value, value if limit is None or limit == "" else limit)]
        numbers = [int(layout.values(np.array(end), 0, layout.stored)) for end in stated]
        # A value outside of the stored bits stands in bits that other voxels leave unused.
        outside = (numbers[0] & mask) != stated[0]
        return cls(min(numbers), max(numbers), stated[0] if outside else None, mask)

    def found(self, cells: np.ndarray, values: np.ndarray) -> np.ndarray:
        """True where a voxel is padding."""
        if self.pattern is not None:
            return (cells.astype(np.int64) & self.mask) == self.pattern
        return (values >= self.low) & (values <= self.high)
