"""Headers of NRRD and MetaImage files, read so strictly that ITK's own parsers read the same from them.

ITK accepts field names in other spellings, other separators, values that continue on the next line, and lines that end
in a carriage return alone. With any of these, ITK could open another file than the one checked here, so such a header
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replica_detection.errors import InputError

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
NRRD_FIELDS = {
    name.replace(" ", ""): name
    for name in (
        "content", "number", "type", "block size", "dimension", "space", "space dimension", "sizes", "spacings",
        "thicknesses", "axis mins", "axis maxs", "space directions", "centers", "centerings", "kinds", "labels",
        "units", "min", "max", "old min", "old max", "endian", "encoding", "line skip", "byte skip", "sample units",
        "space units", "space origin", "measurement frame", "data file",
    )
}  # fmt: skip
_LIMIT = 1 << 18
# ITK reads 500 letters of a MetaImage line, and takes the rest for the next one.
_META_LINE = 480
# Notes of programs on segments are some kilobytes long.
_NRRD_LINE = 1 << 16
# No text may be matched in two ways: the numbers of a matrix would then be tried in all combinations.
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_ADVICE = "Write the image again with a common program, as one file"


@dataclass(frozen=True)
class TextHeader:
    """Fields by name in lower case (NRRD: with spaces as in its definition); `end` is the header's length in bytes.

    `further` are the names of fields that the format does not define; a reader ignores them.
    """

    fields: dict[str, str]
    end: int
    further: tuple[str, ...] = ()


def read_nrrd_header(path: Path) -> TextHeader | None:
    """The header of an NRRD file; None where it does not begin like one.

    Raises:
        InputError: a line is none of the format, a field comes twice, or the header does not end.
    """
    start, complete = _start_of(path)
    if not re.match(rb"NRRD000\d\r?\n", start):
        return None
    fields: dict[str, str] = {}
    further = []
    end = len(start)
    for number, (line, after) in enumerate(_lines(path, start, complete)):
        if not line and number:
            end = after
            break
        if not number or line.startswith("#"):
            continue
        _require_short(path, line, _NRRD_LINE)
        field = re.fullmatch(r"([A-Za-z][A-Za-z _-]*): (.*)", line)
        name = _squeezed(field[1]) if field else ""
        if field and name in NRRD_FIELDS:
            # ITK keeps the blanks at the end of a file's name.
            if name == "datafile" and field[2] != field[2].strip():
                raise _unusual(path, "a file name with blanks around it")
            _set(path, fields, NRRD_FIELDS[name], field[2].strip())
            if name == "datafile" and field[2].startswith("LIST"):  # names of files follow, no fields
                end = after
                break
            continue
        key, colon, rest = line.partition(":")
        if not key or not colon or not rest.startswith("=") or _squeezed(key) in NRRD_FIELDS:
            raise _unusual(path, "a line that is no field")
        further.append(key)
    else:
        _require_complete(path, complete)
    return TextHeader(fields, end, tuple(further))


def read_metaimage_header(path: Path) -> TextHeader | None:
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
            return TextHeader(fields, after, tuple(further))
    _require_complete(path, complete)
    return TextHeader(fields, len(start), tuple(further))


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
