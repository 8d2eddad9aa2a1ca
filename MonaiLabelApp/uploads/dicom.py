"""Content of an uploaded DICOM file, read without a DICOM library: those read as much as a file states.

The elements are scanned in the file without loading their values. Anything that two libraries could read differently is
refused.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.formats import DAMAGED
from replica_detection_server.uploads.codestreams import (
    UnfitStreamError,
    jpeg2000_size,
    jpeg_ends,
    jpeg_size,
)

# An enhanced file of 4,000 frames has about 250,000 elements, and a reader keeps some 500 bytes for each.
MAX_ELEMENTS = 300_000
MAX_DEPTH = 16
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
_SHORT = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_CHUNK = 1 << 20
_PIXELS = 0x7FE00010
# Or as float or double numbers.
_ALL_PIXELS = (0x7FE00008, 0x7FE00009, _PIXELS)
_URL = 0x00287FE0
# Sequences that are opened; they are read as sequences even where a file declares them unknown (UN).
_OPENED = (0x52009229, 0x52009230, 0x00283000)
_KEPT = (0x00020002, 0x00020010, 0x00080016, 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100)
_DIRECTORY = "1.2.840.10008.1.3.10"
_IMPLICIT, _DEFLATED, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_PLAIN = (_IMPLICIT, _EXPLICIT, _DEFLATED, _BIG)
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_RLE = "1.2.840.10008.1.2.5"
_EXPORT = "Export the image again, as one DICOM file that holds its pixels"


@dataclass(frozen=True)
class Held:
    """Values that a file holds in all its frames and samples, and the bytes of each; none without an image.

    `promised` are the bytes that its header states, `held` those that exist; both 0 for compressed ones.
    """

    voxels: int
    bytes_each: int
    promised: int = 0
    held: int = 0


def examine(path: Path, most: int) -> Held:
    """Content of a DICOM file that is checked to need no other file and to match its header.

    Args:
        most: bytes that a deflated file may unfold to.

    Raises:
        InputError: it names other files (a DICOMDIR, pixels at a URL), is damaged, is compressed in a way that is not
            read here or to another size than it states, or holds more elements than any image.
    """
    with _mapped(path) as data:
        meta, at = _file_meta(path, data)
        syntax = meta.text(0x00020010)
        if syntax in ("", _IMPLICIT, _EXPLICIT):  # readers trust the first element more than the header
            syntax = _EXPLICIT if _is_kind(data[at + 4 : at + 6]) else _IMPLICIT
        if syntax not in (*_PLAIN, *_JPEG, *_JPEG_2000, _RLE):
            raise InputError(
                path, "is compressed in a way that is not read here, or keeps its pixels elsewhere", _EXPORT
            )
        body: bytes | mmap.mmap = data
        if syntax == _DEFLATED:
            body, at = _inflated(path, data, at, most), 0
        walk = _Walk(path, body, big=syntax == _BIG, explicit=syntax != _IMPLICIT)
        if _is_kind(body[at + 4 : at + 6]) != walk.explicit:
            raise InputError(path, "is not written in the way that it states", DAMAGED)
        walk.count = meta.count
        walk.top(at)
        if _DIRECTORY in (meta.text(0x00020002), walk.text(0x00080016)):
            raise InputError(path, "is a directory of other files (DICOMDIR)", _EXPORT)
        held, rows, columns, frames = _held(path, walk)
        if syntax not in _PLAIN:
            _check_frames(path, walk, syntax, (columns, rows), frames)
            return held
        promised = (held.voxels * walk.number(0x00280100, 16) + 7) // 8
        return replace(held, promised=promised, held=walk.pixel_bytes)


def _held(path: Path, walk: _Walk) -> tuple[Held, int, int, int]:
    rows, columns = walk.number(0x00280010, 0), walk.number(0x00280011, 0)
    samples, bits = walk.number(0x00280002, 1), walk.number(0x00280100, 16)
    text = walk.text(0x00280008) or "1"
    if not re.fullmatch(r"[ +]*\d{1,9} *", text, re.ASCII):
        raise InputError(path, "states no number of frames", DAMAGED)
    frames = max(1, int(text))
    return Held(rows * columns * frames * max(1, samples), max(1, bits // 8)), rows, columns, frames


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _file_meta(path: Path, data: mmap.mmap) -> tuple[_Walk, int]:
    """The group 0002 that tells how the rest is written, and where that rest begins."""
    walk = _Walk(path, data)
    if data[128:132] == b"DICM":
        return walk, walk.top(132, only_group=2)
    if data[:2] != b"\x08\x00":
        raise InputError(path, "is no DICOM file", _EXPORT)
    return walk, 0


def _inflated(path: Path, data: mmap.mmap, at: int, most: int) -> bytes:
    """The inflated content of a deflated file; counted before any of it is kept."""
    stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        for start in range(at, len(data), _CHUNK):
            block = data[start : start + _CHUNK]
            while block and not stream.eof and size <= most:
                size += len(stream.decompress(block, _CHUNK))
                block = stream.unconsumed_tail
        if size > most or not stream.eof:
            raise InputError(path, "unfolds to more than its image can take, or is cut short", DAMAGED)
        return zlib.decompress(data[at:], -zlib.MAX_WBITS, size)
    except zlib.error as error:
        raise InputError(path, "holds a damaged compressed stream", DAMAGED) from error


@dataclass
class _Walk:
    """Scans the elements of a data set; refuses by an InputError."""

    path: Path
    data: bytes | mmap.mmap
    big: bool = False
    explicit: bool = True
    count: int = 0
    pixel_bytes: int = 0
    kept: dict[int, bytes] = field(default_factory=dict)
    fragments: list[tuple[int, int]] = field(default_factory=list)

    def text(self, tag: int) -> str:
        return self.kept.get(tag, b"").decode("latin-1").rstrip("\0 ")

    def number(self, tag: int, otherwise: int) -> int:
        value = self.kept.get(tag)
        if value is None or not value:
            return otherwise
        if len(value) != 2:
            raise self._fault("states its size in an unusual way")
        return int.from_bytes(value, "big" if self.big else "little")

    def top(self, at: int, only_group: int = 0) -> int:
        """The elements of the file itself, each once and in their order; returns where they end."""
        before = 0
        end = len(self.data)
        while at < end:
            # Some writers fill up the file.
            if not self.data[at : at + 8].strip(b"\0") and not self.data[at:end].strip(b"\0"):
                break
            tag = self._tag(at)
            if only_group and tag >> 16 != only_group:
                break
            if tag <= before or (tag >> 16 in (0, 2) and not only_group):
                raise self._fault("holds elements twice or out of their order")
            before = tag
            at = self._element(at, end, 0, self.explicit)
        return at

    def _tag(self, at: int) -> int:
        if at + 8 > len(self.data):
            raise self._fault("is truncated")
        group, element = struct.unpack(">HH" if self.big else "<HH", self.data[at : at + 4])
        return int(group) << 16 | int(element)

    def _length(self, at: int, size: int = 4) -> int:
        return int.from_bytes(self.data[at : at + size], "big" if self.big else "little")

    def _element(self, at: int, end: int, depth: int, explicit: bool) -> int:
        """The offset at which the element at `at` ends."""
        tag = self._counted(at)
        if tag >> 16 == 4 or tag == _URL:
            raise InputError(self.path, "names another file for what it holds", _EXPORT)
        kind, start, length = self._opened(tag, at, explicit)
        if length == _UNDEFINED:
            if tag == _PIXELS and kind in (b"OB", b"OW"):
                return self._fragments(start, depth)
            if tag == _PIXELS or kind not in (b"SQ", b"UN"):
                raise self._fault("holds elements without a length")
            return self._items(start, len(self.data), depth, explicit, defined=False)
        if start + length > end:
            raise self._fault("is truncated")
        if kind == b"SQ" or (kind == b"UN" and tag in _OPENED):
            self._items(start, start + length, depth, explicit, defined=True)
        if depth == 0 and tag in _ALL_PIXELS:
            self.pixel_bytes = length
        if depth == 0 and tag in _KEPT:
            if length > 256:
                raise self._fault("states its size in an unusual way")
            self.kept[tag] = bytes(self.data[start : start + length])
        return start + length

    def _counted(self, at: int) -> int:
        self.count += 1
        if self.count > MAX_ELEMENTS:
            raise InputError(self.path, "holds more elements than an image has", _EXPORT)
        return self._tag(at)

    def _opened(self, tag: int, at: int, explicit: bool) -> tuple[bytes, int, int]:
        """Kind (VR) of an element, where its value begins, and its length."""
        if not explicit:
            return _implicit_kind(tag), at + 8, self._length(at + 4)
        kind = bytes(self.data[at + 4 : at + 6])
        if kind in _SHORT:
            return kind, at + 8, self._length(at + 6, 2)
        if kind not in _LONG or at + 12 > len(self.data):
            raise self._fault("holds elements of no known kind")
        return kind, at + 12, self._length(at + 8)

    def _items(self, at: int, end: int, depth: int, explicit: bool, *, defined: bool) -> int:
        if depth >= MAX_DEPTH:
            raise self._fault("holds sequences nested too deep")
        while at < end or not defined:
            tag, length = self._counted(at), self._length(at + 4)
            at += 8
            if tag == _SEQUENCE_END and not defined:
                return at
            if tag != _ITEM or (length != _UNDEFINED and at + length > end):
                raise self._fault("holds a damaged sequence")
            at = self._item(at, end if length == _UNDEFINED else at + length, depth, explicit, length != _UNDEFINED)
        return at

    def _item(self, at: int, end: int, depth: int, explicit: bool, defined: bool) -> int:
        # Items may be written as implicit inside of what is explicit; readers look at the first element.
        explicit = explicit and _is_kind(self.data[at + 4 : at + 6])
        while at < end or not defined:
            if self._tag(at) == _ITEM_END and not defined:
                return at + 8
            at = self._element(at, end, depth + 1, explicit)
        return at

    def _fragments(self, at: int, depth: int) -> int:
        while True:
            tag, length = self._counted(at), self._length(at + 4)
            at += 8
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM or at + length > len(self.data):
                raise self._fault("holds damaged compressed pixels")
            if depth == 0:
                self.fragments.append((at, length))
            at += length

    def _fault(self, found: str) -> InputError:
        return InputError(self.path, found, DAMAGED)


def _is_kind(letters: bytes) -> bool:
    return len(letters) == 2 and all(0x40 < letter < 0x5B for letter in letters)


def _implicit_kind(tag: int) -> bytes:
    from pydicom.datadict import dictionary_VR

    try:
        return str(dictionary_VR(tag)).encode()
    except KeyError:
        return b"UN"


def _check_frames(path: Path, walk: _Walk, syntax: str, size: tuple[int, int], frames: int) -> None:
    """Checks the size that each compressed frame states itself, because decoders trust it."""
    pieces = [bytes(walk.data[at : at + length]) for at, length in walk.fragments[1:]]  # the first is a table
    if not pieces or (frames > 1 and len(pieces) != frames):
        raise InputError(path, f"holds {len(pieces)} pieces of compressed pixels for {frames} frames", _EXPORT)
    if syntax == _RLE:
        return
    measure = jpeg_size if syntax in _JPEG else jpeg2000_size
    try:
        # A frame in several pieces is decoded as a whole, or each piece that could be a frame by itself.
        begun = [found for piece in pieces if (found := measure(piece)) is not None]
        whole = measure(b"".join(pieces)) if frames == 1 else size
    except UnfitStreamError as error:
        raise InputError(path, f"holds compressed pixels that cannot be used ({error})", _EXPORT) from error
    if whole != size or begun != [size] * frames:
        raise InputError(path, "holds compressed pixels of another size than it states", DAMAGED)
    if syntax in _JPEG and not all(map(jpeg_ends, pieces if frames > 1 else [b"".join(pieces)])):
        raise InputError(path, "is truncated: its compressed pixels have no end", DAMAGED)
