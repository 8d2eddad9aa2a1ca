"""MetaImage files: voxels by ITK, behind headers read so strictly that ITK's own parser reads the same from them.

ITK accepts field names in other spellings, other separators, values that continue on the next line, and lines that end
in a carriage return alone. With any of these, ITK could open another file than the one checked here, so such a header
is refused.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import (
    DAMAGED,
    RENAME,
    Decoded,
    itk_affine,
    looks_like,
    payload_file,
    quiet_itk,
    require_spacing,
    squeezed_shape,
)

# Names of MetaImage fields, as ITK compares them: letter by letter.
META_TEXT = (
    "Comment", "ObjectType", "ObjectSubType", "TransformType", "Name", "AcquisitionDate", "DistanceUnits", "Modality",
    "AnatomicalOrientation", "CompressedData", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB",
    "ElementType", "ElementDataFile",
)  # fmt: skip
META_NUMBER = (
    "NDims", "ID", "ParentID", "CompressedDataSize", "HeaderSize", "ElementMin", "ElementMax", "ElementNBits",
    "ElementNumberOfChannels", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset",
)  # fmt: skip
# With as many numbers as there are axes; MATRIX with their square.
META_VECTOR = (
    "DimSize", "Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize", "ImagePosition",
    "SequenceID",
)  # fmt: skip
META_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
META_FIELDS = {name.lower(): name for name in (*META_TEXT, *META_NUMBER, *META_VECTOR, *META_MATRIX, "Color")}
_LIMIT = 1 << 18
# ITK reads 500 letters of a MetaImage line, and takes the rest for the next one.
_META_LINE = 480
# No text may be matched in two ways: the numbers of a matrix would then be tried in all combinations.
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_ADVICE = "Write the image again with a common program, as one file"


@dataclass(frozen=True)
class MetaHeader:
    """Fields by name in lower case; `end` is the header's length in bytes.

    `further` are the names of fields that the format does not define; a reader ignores them.
    """

    fields: dict[str, str]
    end: int
    further: tuple[str, ...] = ()


def read_metaimage(path: Path) -> Decoded:
    """Read MetaImage, with the voxels in the same file or in another one in its folder.

    Raises:
        InputError: a faulty header, voxels elsewhere, cut short or damaged, or several values in each voxel.
    """
    sitk = quiet_itk()
    header = required_header(path)
    payload, start = payload_file(path, header.fields["elementdatafile"], header.end)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError(path, "has complex voxels", "Give the magnitude image")
    components = reader.GetNumberOfComponents()
    if components > 1:
        reason = f"has {components} values in each voxel (colour, vectors or complex numbers)"
        raise InputError(path, reason, "Give one grey value per voxel")
    shape = squeezed_shape(path, reader.GetSize())
    require_spacing(path, np.array(reader.GetSpacing()[:3]))
    bytes_each = _BYTES.get(re.sub(r"\D", "", sitk.GetPixelIDValueAsString(reader.GetPixelID())), 1)
    _check_payload(path, payload, start, header, math.prod(shape) * bytes_each)
    image = reader.Execute()
    affine = itk_affine(image.GetDirection(), image.GetSpacing(), image.GetOrigin())
    stated = {"elementspacing", "transformmatrix", "orientation", "rotation"}
    array = sitk.GetArrayFromImage(image)
    return Decoded(array.T.reshape(shape), affine, bool(stated & header.fields.keys()))


def required_header(path: Path) -> MetaHeader:
    """As `read_metaimage_header`; InputError where a field is missing, for which ITK prints to the terminal."""
    header = read_metaimage_header(path)
    needed = ("NDims", "DimSize", "ElementType", "ElementDataFile")
    missing = [name for name in needed if header is not None and name.lower() not in header.fields]
    if header is None or missing:
        with path.open("rb") as file:
            looks = looks_like(file.read(540))
        raise InputError(
            path, f"has no MetaImage header{f' with {chr(44).join(missing)}' if missing else ''}{looks}", RENAME
        )
    squeezed_shape(path, [int(size) for size in header.fields["dimsize"].split()])
    return header


def read_metaimage_header(path: Path) -> MetaHeader | None:
    """The header of a MetaImage file, up to its field ElementDataFile; None where it does not begin like one.

    Raises:
        InputError: a line is none of the format, a field comes twice or holds no number where it should, or the
            header does not end.
    """
    start, complete = _start_of(path)
    if not re.match(rb"\s*[A-Za-z]\w{0,80}[ \t]*=", start):
        return None
    fields: dict[str, str] = {}
    further = []
    for line, after in _lines(path, start, complete):
        if not line:
            continue
        _require_short(path, line, _META_LINE)
        before, _, after_sign = line.partition("=")
        name, value = before.rstrip(" \t"), after_sign.strip(" \t")
        if not re.fullmatch(r"[\w|][\w| .-]{0,99}", name, re.ASCII) or not value or value[0] in "=:":
            raise _unusual(path, "a line that is no field")
        known = META_FIELDS.get(_squeezed(name))
        if known is None:
            further.append(name)
            continue
        if known != name:
            raise _unusual(path, f"the field {known} in another spelling")
        _require_numbers(path, known, value, fields.get("ndims", ""))
        _set(path, fields, known.lower(), value)
        if known == "ElementDataFile":
            return MetaHeader(fields, after, tuple(further))
    _require_complete(path, complete)
    return MetaHeader(fields, len(start), tuple(further))


def _start_of(path: Path) -> tuple[bytes, bool]:
    """The file's first bytes, as many as a header may have, and True where that is the whole file."""
    with path.open("rb") as file:
        start = file.read(_LIMIT + 1)
    return start[:_LIMIT], len(start) <= _LIMIT


def _lines(path: Path, start: bytes, complete: bool) -> Iterator[tuple[str, int]]:
    """Each line without its end, and the position of the next. Only a complete file may lack the last line's end."""
    at = 0
    while at < len(start):
        stop = start.find(b"\n", at)
        if stop < 0:
            _require_complete(path, complete)
            stop = len(start)
        line = start[at:stop].removesuffix(b"\r")
        if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", line):
            raise _unusual(path, "a control character")
        at = stop + 1
        yield line.decode("latin-1"), min(at, len(start))


def _set(path: Path, fields: dict[str, str], name: str, value: str) -> None:
    if name in fields:
        raise _unusual(path, f"the field {name} twice")
    fields[name] = value


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _require_numbers(path: Path, name: str, value: str, axes: str) -> None:
    """Raises InputError for too few or too many numbers: ITK would read missing ones from the following lines."""
    if name == "NDims":
        if not re.fullmatch(r"\d{1,2}", value, re.ASCII) or not 1 <= int(value) <= 9:
            raise InputError(path, f"states {value[:20]} dimensions", _ADVICE)
    elif name in META_NUMBER:
        if not _NUMBER.fullmatch(value):
            raise _unusual(path, f"no number in {name}")
    elif name in META_VECTOR or name in META_MATRIX or name == "Color":
        if not axes and name != "Color":
            raise _unusual(path, f"{name} before NDims")
        count = 4 if name == "Color" else int(axes) if name in META_VECTOR else int(axes) ** 2
        numbers = re.split(r"[ \t]+", value)
        if len(numbers) != count or not all(map(_NUMBER.fullmatch, numbers)):
            raise _unusual(path, f"other than {count} numbers in {name}")


def _require_short(path: Path, line: str, limit: int) -> None:
    """Raises InputError for a long line; called before any pattern is matched, so that no match takes long."""
    if len(line) > limit:
        raise _unusual(path, "a line that is no field")


def _require_complete(path: Path, complete: bool) -> None:
    if not complete:
        raise _unusual(path, f"no end within {_LIMIT // 1024} KiB")


def _unusual(path: Path, oddity: str) -> InputError:
    return InputError(path, f"has a header with {oddity}", _ADVICE)


_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


def _check_payload(path: Path, payload: Path, start: int, header: MetaHeader, expected: int) -> None:
    """Raises InputError when the voxels are cut short or damaged. ITK ignores damage inside a compressed stream."""
    held, stream = 0, zlib.decompressobj(wbits=47)  # 32 + 15: zlib or gzip, whichever its header says
    with payload.open("rb") as file:
        file.seek(start)
        if header.fields.get("compresseddata", "").lower() != "true":
            held = payload.stat().st_size - start
        else:
            while held < expected and (block := file.read(1 << 20)):
                held += _inflated(path, stream, block)
    if held < expected:
        raise InputError(path, f"is truncated, {payload.name} holds {held} of {expected} bytes of voxels", DAMAGED)


def _inflated(path: Path, stream: Any, block: bytes) -> int:
    """Number of bytes that a compressed block holds. Raises InputError for a damaged stream."""
    held = 0
    try:
        while block and not stream.eof:
            # In small parts: a block may grow a thousandfold.
            held += len(stream.decompress(block, 1 << 20))
            block = stream.unconsumed_tail
        return held
    except zlib.error as error:
        raise InputError(path, f"holds a damaged compressed stream ({error})", DAMAGED) from error
