"""Images as a client may send them, whole and as an attacker would change them, for the tests of uploads."""

from __future__ import annotations

import gzip
import io
import locale
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from PIL import Image

from Core.made_dicom import dicom_dataset, save_dicom

Size = tuple[int, ...]
SHAPE = (20, 16, 12)


def voxels(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def metaimage(fields: str = "", file: str = "LOCAL", *, size: Size = SHAPE, data: bytes | None = None) -> bytes:
    """A MetaImage file of 16 bit voxels; `fields` are further lines of its header."""
    text = f"ObjectType = Image\nNDims = {len(size)}\nDimSize = {' '.join(map(str, size))}\nElementSpacing = 1 1 1\n"
    text += f"ElementType = MET_SHORT\n{fields}ElementDataFile = {file}\n"
    return text.encode("latin-1") + (voxels().tobytes() if data is None else data)


def packed_metaimage(packed: bytes, size: Size = SHAPE) -> bytes:
    return metaimage(f"CompressedData = True\nCompressedDataSize = {len(packed)}\n", size=size, data=packed)


def nrrd(fields: str = "", *, size: Size = SHAPE, encoding: str = "raw", data: bytes | None = None) -> bytes:
    text = f"NRRD0004\ntype: short\ndimension: {len(size)}\nsizes: {' '.join(map(str, size))}\nspacings: 1 1 1\n"
    text += f"endian: little\nencoding: {encoding}\n{fields}\n"
    return text.encode("latin-1") + (voxels().tobytes() if data is None else data)


def nifti(*, pack: bool = False, magic: bytes = b"n+1\0", size: Size = SHAPE, data: bytes | None = None) -> bytes:
    header = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes()[:352])
    header[344:348] = magic
    header[40:56] = struct.pack("<8h", len(size), *size, *[1] * (7 - len(size)))
    whole = bytes(header) + (voxels().tobytes() if data is None else data)
    return gzip.compress(whole, mtime=0) if pack else whole


def dicom(size: tuple[int, int] = (24, 20), number: int = 0, **elements: Any) -> bytes:
    pixels = voxels((size[1], size[0]), number)
    file = io.BytesIO()
    save_dicom(dicom_dataset(pixels, **{"ImagePositionPatient": [0, 0, number], **elements}), file)
    return file.getvalue()


def compressed_dicom(compressor: str = "JPEG2000") -> bytes:
    """One slice, compressed by GDCM: JPEG (lossless) or JPEG2000."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.dcm").write_bytes(dicom())
        image = SimpleITK.ReadImage(str(Path(folder) / "a.dcm"))
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(Path(folder) / "b.dcm"))
        writer.SetUseCompression(True)
        writer.SetCompressor(compressor)
        writer.KeepOriginalImageUIDOn()
        before = locale.setlocale(locale.LC_CTYPE)
        writer.Execute(SimpleITK.Cast(image, SimpleITK.sitkInt16))
        locale.setlocale(locale.LC_CTYPE, before)  # GDCM leaves another one when it writes
        return (Path(folder) / "b.dcm").read_bytes()


def deflated_dicom(size: tuple[int, int] = (24, 20), more: int = 0) -> bytes:
    """In the deflated transfer syntax; `more` bytes of private data unfold with it."""
    whole = with_syntax(dicom(size), b"1.2.840.10008.1.2.1.99")
    start = 132 + 12 + _number(whole, 140, 4)
    body = whole[start:]
    if more:
        at = body.index(b"\xe0\x7f\x10\x00")
        body = body[:at] + struct.pack("<HH2sHI", 0x5001, 0x1001, b"OB", 0, more) + bytes(more) + body[at:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return whole[:start] + packer.compress(body) + packer.flush()


def with_syntax(content: bytes, syntax: bytes) -> bytes:
    """An explicit DICOM file that calls its transfer syntax otherwise."""
    old, new = b"1.2.840.10008.1.2.1\0", syntax + b"\0" * (len(syntax) % 2)
    at = content.index(old)
    changed = content[: at - 2] + struct.pack("<H", len(new)) + new + content[at + len(old) :]
    return changed[:140] + struct.pack("<I", _number(content, 140, 4) + len(new) - len(old)) + changed[144:]


def with_element(content: bytes, tag: int, kind: bytes, value: bytes) -> bytes:
    """An explicit DICOM file with a further element where its tag belongs."""
    at = 132 + 12 + _number(content, 140, 4)
    while (_number(content, at, 2) << 16 | _number(content, at + 2, 2)) < tag:
        long = content[at + 4 : at + 6] in _LONG
        at += 12 + _number(content, at + 8, 4) if long else 8 + _number(content, at + 6, 2)
    length = struct.pack("<HI", 0, len(value)) if kind in _LONG else struct.pack("<H", len(value))
    return content[:at] + struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, kind) + length + value + content[at:]


def _number(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "little")


_LONG = (b"OB", b"OW", b"UN", b"SQ", b"UR", b"UT")


def png(size: tuple[int, int] = (40, 30), *, chunks: list[tuple[bytes, bytes]] | None = None, mode: str = "L") -> bytes:
    """A grey picture, with further chunks behind its header."""
    file = io.BytesIO()
    pixels = voxels((size[1], size[0])).astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    whole = file.getvalue()
    return whole[:33] + b"".join(chunk(*c) for c in chunks or ()) + whole[33:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bare_png(size: tuple[int, int], packed: bytes) -> bytes:
    """A grey picture of a size, whatever its pixels unfold to."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def jpeg(size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(voxels((size[1], size[0])).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


@cache
def packed_zeros(mebibytes: int, wbits: int = 15) -> bytes:
    """A stream that unfolds to so many MiB of zeros: zlib, or gzip with 31, bare with -15."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(mebibytes)) + packer.flush()


def whole_files() -> dict[str, bytes]:
    """One good file of each kind, by the name under which a client would send it."""
    packed = voxels().tobytes()
    return {
        "a.mha": metaimage(),
        "packed.mha": packed_metaimage(zlib.compress(packed)),
        "a.nrrd": nrrd(),
        "packed.nrrd": nrrd(encoding="gzip", data=gzip.compress(packed)),
        "a.nii": nifti(),
        "a.nii.gz": nifti(pack=True),
        "a.dcm": dicom(),
        "jpeg2000.dcm": compressed_dicom(),
        "jpeg.dcm": compressed_dicom("JPEG"),
        "deflated.dcm": deflated_dicom(),
        "a.png": png(),
        "sixteen.png": png(mode="I;16"),
        "a.jpg": jpeg(),
    }
