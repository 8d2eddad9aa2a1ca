"""NRRD files: the header by pynrrd, the voxels from the header's own folder alone."""

from __future__ import annotations

import bz2
import io
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import (
    DAMAGED,
    LPS_TO_RAS,
    RENAME,
    Decoded,
    itk_affine,
    looks_like,
    payload_file,
    quiet_itk,
    require_spacing,
    squeezed_shape,
)

_ADVICE = "Write the image again with a common program, as one file"
_LIMIT = 1 << 18
# Notes of programs on segments are some kilobytes long.
_LONGEST_LINE = 1 << 16
_FIELDS = (
    "content", "number", "type", "block size", "dimension", "space", "space dimension", "sizes", "spacings",
    "thicknesses", "axis mins", "axis maxs", "space directions", "centers", "centerings", "kinds", "labels", "units",
    "min", "max", "old min", "old max", "endian", "encoding", "line skip", "byte skip", "sample units", "space units",
    "space origin", "measurement frame", "data file",
)  # fmt: skip
_CANONICAL = {name.replace(" ", ""): name for name in _FIELDS}
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Kinds of axes along which voxels lie; along axes of other kinds lie the values of one voxel.
_OF_SPACE = ("domain", "space", "time", "none", "???", "stub", "scalar")
# To LPS, as ITK converts; coordinates of other spaces are taken as they are.
_TO_LPS = {
    **dict.fromkeys(("right-anterior-superior", "ras", "right-anterior-superior-time", "rast"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las", "left-anterior-superior-time", "last"), (1, -1, 1)),
}
_TEXT = ("ascii", "text", "txt")
# ITK's NRRD library keeps its messages in one place for all threads: two faulty files at once crash the process.
_TEEM = threading.Lock()


@dataclass(frozen=True)
class NrrdHeader:
    """Fields as pynrrd parses them, by their names in the format's definition; `end`: length of the header in bytes."""

    path: Path
    fields: dict[str, Any]
    end: int

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Length of each axis. Raises InputError where they are missing or are not as many as there are dimensions."""
        sizes = tuple(int(n) for n in self.fields.get("sizes", ()))
        if not sizes or len(sizes) != self.fields.get("dimension"):
            raise InputError(self.path, "has a header without the size of each of its dimensions", DAMAGED)
        return sizes

    @cached_property
    def dtype(self) -> np.dtype:
        """Type of a stored value. Raises InputError for one that is no number."""
        import nrrd

        one = {"type": self.fields.get("type"), "dimension": 1, "sizes": np.array([1]), "encoding": "raw"}
        if "endian" in self.fields or self.encoding in _TEXT:
            one["endian"] = self.fields.get("endian", "little")
        try:
            found: np.dtype = nrrd.read_data(one, io.BytesIO(bytes(16))).dtype
        except (KeyError, TypeError, ValueError, nrrd.NRRDError) as error:
            raise InputError(
                self.path, "has a header without the type and byte order of its voxels", DAMAGED
            ) from error
        return found

    @property
    def encoding(self) -> str:
        return str(self.fields.get("encoding", "")).lower()

    @property
    def data_file(self) -> str | None:
        """The file that holds the voxels, as the header names it; None where it is the header's own."""
        return self.fields.get("data file")

    @property
    def skips(self) -> tuple[int, int]:
        """Lines and bytes to leave out in front of the voxels; -1 bytes: the voxels stand at the file's end."""
        return int(self.fields.get("line skip", 0)), int(self.fields.get("byte skip", 0))


def read_nrrd_header(path: Path) -> NrrdHeader | None:
    """The header of an NRRD file; None where it does not begin like one. Needs pynrrd.

    Raises:
        InputError: a line is none of the format, a field comes twice or in another spelling, so that programs could
            read different things from it, or the header does not end.
    """
    import nrrd

    with path.open("rb") as file:
        start = file.read(_LIMIT + 1)
    complete, start = len(start) <= _LIMIT, start[:_LIMIT]
    if not re.match(rb"NRRD000\d\r?\n", start):
        return None
    taken: list[bytes] = []
    try:
        parsed = nrrd.read_header(_lines(path, start, taken))
    except (ValueError, IndexError, TypeError, nrrd.NRRDError) as error:
        twice = "Duplicate" in str(error)
        raise _unusual(path, "a field twice" if twice else "a line that is no field") from error
    if not complete and taken and taken[-1].strip():
        raise _unusual(path, f"no end within {_LIMIT // 1024} KiB")
    text = b"".join(taken).decode("utf-8", "surrogateescape")
    fields = {}
    for key, value in parsed.items():
        name = _CANONICAL.get(re.sub(r"[\s_-]", "", key).lower())
        if name is None:
            if f"\n{key}:=" not in text:
                raise _unusual(path, "a line that is no field")
        elif key not in (name, name.replace(" ", "")) or f"\n{key}: " not in text:
            raise _unusual(path, f"the field {name} in another spelling")
        else:
            fields[name] = value
    return NrrdHeader(path, fields, sum(map(len, taken)))


def read_nrrd(path: Path, *, layers: bool = False) -> Decoded:
    """Read NRRD, with the voxels in the same file or in another one in its folder: raw, gzip, bzip2 or text.

    Args:
        layers: also read files of overlapping segments, as 3D Slicer writes them; the largest value counts.

    Raises:
        InputError: a faulty header, voxels elsewhere, cut short or damaged, or several values in each voxel.
    """
    try:
        import nrrd  # noqa: F401
    except ImportError:  # 3D Slicer bundles ITK alone
        return _read_by_itk(path, layers=layers)
    header = required_header(path)
    payload, start = payload_file(path, header.data_file, header.end)
    inside = _axes_of_space(header, layers=layers)
    shape = squeezed_shape(path, [header.sizes[axis] for axis in inside])
    affine, trusted = _geometry(header, inside)
    require_spacing(path, np.linalg.norm(affine[:3, :3], axis=0)[: len(inside)])
    array = _voxels(header, payload, start).reshape(header.sizes, order="F")
    if len(inside) < len(header.sizes):
        array = array.max(tuple(axis for axis in range(array.ndim) if axis not in inside))
    return Decoded(array.reshape(shape, order="F"), affine, trusted)


def required_header(path: Path) -> NrrdHeader:
    """As `read_nrrd_header`; InputError where the file does not begin like an NRRD file."""
    header = read_nrrd_header(path)
    if header is None:
        with path.open("rb") as file:
            raise InputError(path, f"has no NRRD header{looks_like(file.read(540))}", RENAME)
    return header


def _lines(path: Path, start: bytes, taken: list[bytes]) -> Iterator[str]:
    """Each line up to a list of files; `taken` gets those that were asked for."""
    for line in io.BytesIO(start):
        bare = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > _LONGEST_LINE or (bare and not bare.strip()):
            raise _unusual(path, "a line that is no field")
        if _CONTROL.search(bare):
            raise _unusual(path, "a control character")
        taken.append(line)
        yield line.decode("utf-8", "surrogateescape")
        if re.match(rb"data ?file: LIST", line):
            return


def _axes_of_space(header: NrrdHeader, *, layers: bool) -> list[int]:
    """The axes along which voxels lie. Raises InputError where there are several values in each voxel."""
    path, sizes = header.path, header.sizes
    kinds = [str(kind).lower() for kind in header.fields.get("kinds", ["domain"] * len(sizes))]
    directions = _directions(header)
    if len(kinds) != len(sizes) or (directions is not None and len(directions) != len(sizes)):
        raise _unusual(path, "other than one kind or direction for each axis")
    if "complex" in kinds:
        raise InputError(path, "has complex voxels", "Give the magnitude image")
    aimless = [directions is not None and not np.isfinite(directions[axis]).any() for axis in range(len(sizes))]
    inside = [axis for axis, kind in enumerate(kinds) if kind in _OF_SPACE and not aimless[axis]]
    others = [axis for axis in range(len(sizes)) if axis not in inside]
    count = int(np.prod([sizes[axis] for axis in others])) if others else 1
    if count > 1 and not (layers and [kinds[axis] for axis in others] == ["list"]):
        reason = f"has {count} values in each voxel (colour, vectors or complex numbers)"
        raise InputError(path, reason, "Give one grey value per voxel")
    return inside


def _directions(header: NrrdHeader) -> np.ndarray | None:
    """(axes, space) vectors from one voxel to the next; NaN for an axis without; None where the header has none."""
    stated = header.fields.get("space directions")
    if stated is None:
        return None
    rows = [None if row is None else np.asarray(row, float) for row in stated]
    width = max((len(row) for row in rows if row is not None), default=3)
    return np.array([np.full(width, np.nan) if row is None else row for row in rows])


def _geometry(header: NrrdHeader, inside: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Affine (4, 4) to mm RAS+, as ITK reads it, and True where the header states voxel sizes."""
    affine, directions = np.eye(4), _directions(header)
    used = list(inside)[:3]
    if directions is not None:
        matrix = directions[used].T[:3]
        affine[: matrix.shape[0], : matrix.shape[1]] = matrix
        if matrix.shape == (3, 2):  # a slice in space
            normal = np.cross(matrix[:, 0], matrix[:, 1])
            affine[:3, 2] = normal / max(np.linalg.norm(normal), 1e-12)
    elif "spacings" in header.fields:
        spacings = np.asarray(header.fields["spacings"], float)
        if len(spacings) != len(header.sizes):
            raise _unusual(header.path, "other than one spacing for each axis")
        affine[range(len(used)), range(len(used))] = spacings[used]
    origin = np.asarray(header.fields.get("space origin", ()), float)[:3]
    affine[: len(origin), 3] = np.nan_to_num(origin)
    flips = _TO_LPS.get(str(header.fields.get("space", "")).lower(), (1, 1, 1))
    return LPS_TO_RAS @ np.diag([*flips, 1]) @ affine, bool({"space directions", "spacings"} & header.fields.keys())


def _voxels(header: NrrdHeader, payload: Path, start: int) -> np.ndarray:
    """All values in the order of the file, 1D. Raises InputError where they are cut short or damaged."""
    path, dtype, count = header.path, header.dtype, int(np.prod(header.sizes))
    (lines, skip), size = header.skips, count * header.dtype.itemsize
    if dtype.kind not in "iuf" or lines < 0 or skip < -1 or (skip < 0 and header.encoding != "raw"):
        raise _unusual(path, "a type of voxels or a place of them that is not read")
    with payload.open("rb") as file:
        file.seek(start)
        for _ in range(lines):
            if not file.readline():
                break
        left = payload.stat().st_size - file.tell()
        if header.encoding == "raw":
            file.seek(max(left - size, 0) if skip < 0 else skip, 1)
            data = file.read(size) if left - max(skip, 0) >= size else file.read(max(left - max(skip, 0), 0))
        elif header.encoding in _TEXT:
            file.seek(skip, 1)
            return _numbers(path, payload, file.read(), count)
        elif header.encoding in ("gzip", "gz", "bzip2", "bz2"):
            unpack = _inflated if header.encoding.startswith("g") else _of_bzip2
            data = unpack(path, file, skip + size)[skip:]
        else:
            raise InputError(path, "has an encoding of its voxels that is not read", "Write it with gzip or raw")
    if len(data) < size:
        raise _truncated(path, payload, len(data), size)
    return np.frombuffer(data, dtype, count)


def _numbers(path: Path, payload: Path, text: bytes, count: int) -> np.ndarray:
    words = text.replace(b",", b" ").split()
    if len(words) < count:
        raise _truncated(path, payload, len(words), count, "numbers")
    try:
        return np.array(words[:count]).astype(np.float64)
    except ValueError as error:
        raise InputError(path, "holds text between its voxels that is no number", DAMAGED) from error


def _inflated(path: Path, file: IO[bytes], most: int) -> bytes:
    """Up to `most` bytes of a gzip or zlib stream, which is read to its end, where its checksum stands."""
    held, stream = bytearray(), zlib.decompressobj(wbits=47)  # 32 + 15: zlib or gzip, whichever its header says
    try:
        while not stream.eof and (block := stream.unconsumed_tail or file.read(1 << 20)):
            # In small parts: a block may grow a thousandfold.
            part = stream.decompress(block, 1 << 20)
            held += part[: most - len(held)]
    except zlib.error as error:
        raise InputError(path, f"holds a damaged compressed stream ({error})", DAMAGED) from error
    if len(held) == most and not stream.eof:
        raise _without_checksum(path)
    return bytes(held)


def _of_bzip2(path: Path, file: IO[bytes], most: int) -> bytes:
    held = bytearray()
    try:
        with bz2.BZ2File(file) as stream:
            while block := stream.read1(1 << 20):
                held += block[: most - len(held)]
    except EOFError as error:
        if len(held) == most:
            raise _without_checksum(path) from error
    except OSError as error:
        raise InputError(path, f"holds a damaged compressed stream ({error})", DAMAGED) from error
    return bytes(held)


def _read_by_itk(path: Path, *, layers: bool) -> Decoded:
    """One file with its voxels, by ITK's own reader; it must not even hint at another file."""
    with path.open("rb") as file:
        start = file.read(_LIMIT)
    if not start.startswith(b"NRRD000"):
        raise InputError(path, f"has no NRRD header{looks_like(start[:540])}", RENAME)
    if b"datafile:" in re.sub(rb"[\s_-]", b"", start).lower():
        raise InputError(path, "keeps its voxels in another file, which is not read here", _ADVICE)
    head = re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0]
    sitk = quiet_itk()
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    with _TEEM:
        reader.ReadImageInformation()
        if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
            raise InputError(path, "has complex voxels", "Give the magnitude image")
        components = reader.GetNumberOfComponents()
        if components > 1 and not (layers and re.search(rb"\nkinds: list ", head)):
            reason = f"has {components} values in each voxel (colour, vectors or complex numbers)"
            raise InputError(path, reason, "Give one grey value per voxel")
        shape = squeezed_shape(path, reader.GetSize())
        require_spacing(path, np.array(reader.GetSpacing()[:3]))
        image = reader.Execute()
    affine = itk_affine(image.GetDirection(), image.GetSpacing(), image.GetOrigin())
    array = sitk.GetArrayFromImage(image)
    array = array.max(-1) if components > 1 else array
    trusted = re.search(rb"\n(space directions|spacings): ", head) is not None
    return Decoded(array.T.reshape(shape), affine, trusted)


def _truncated(path: Path, payload: Path, held: int, size: int, of: str = "bytes") -> InputError:
    return InputError(path, f"is truncated, {payload.name} holds {held} of {size} {of} of voxels", DAMAGED)


def _without_checksum(path: Path) -> InputError:
    return InputError(path, "holds a compressed stream that is cut short before its checksum", DAMAGED)


def _unusual(path: Path, oddity: str) -> InputError:
    return InputError(path, f"has a header with {oddity}", _ADVICE)
