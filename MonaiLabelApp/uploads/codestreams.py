"""Size of the image in a JPEG or JPEG 2000 stream, read from its own first bytes."""

from __future__ import annotations

import re
import struct

# A progressive JPEG of a few kilobytes can make a decoder pass over the whole image ten thousand times.
MAX_SCANS = 100
# A JPEG 2000 decoder keeps some kilobytes for each tile, and some hundred bytes for each precinct.
MAX_TILES = 4096
MIN_PRECINCT = 5  # log2 of its side
# A stream has some dozens, and each tile of a JPEG 2000 image a few more.
MAX_MARKERS = 100_000
_FILLED = re.compile(rb"\xff+")
_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


class UnfitStreamError(ValueError):
    """The stream asks for more than its image needs, or cannot be followed."""


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG or JPEG-LS stream; None where `data` does not begin one.

    Raises UnfitStreamError: it begins one but states no size, states it twice, or has too many scans.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    found, at = None, 2
    for _ in range(MAX_MARKERS):
        filled = _FILLED.match(data, at)  # any number of fill bytes
        if filled is None or filled.end() + 3 > len(data):
            break
        at = filled.end() - 1
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            break
        if marker in _SIZES:
            if found is not None or len(data) < at + 10:
                raise UnfitStreamError("states its size twice or not whole")
            found = struct.unpack(">HH", data[at + 5 : at + 9])
        at += 2 + length
    else:
        raise UnfitStreamError("is in too many parts")
    if found is None:
        raise UnfitStreamError("states no size")
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise UnfitStreamError("goes over its image too often")
    height, width = found
    return width, height


def jpeg_ends(data: bytes) -> bool:
    """True if the last scan of a JPEG or JPEG-LS stream is followed by the mark of its end, which no pixels contain."""
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG 2000 code stream; None where `data` does not begin one.

    Raises UnfitStreamError: it is divided into far more parts than its image needs, has several components, or its
    parts are coded in ways of their own.
    """
    if not data.startswith(b"\xff\x4f"):
        return None
    if data[2:4] != b"\xff\x51" or len(data) < 42:
        raise UnfitStreamError("states no size")
    right, low, left, top, wide, high, tile_left, tile_top, components = struct.unpack(">8IH", data[8:42])
    if components != 1 or not wide or not high or left > right or top > low or tile_left > left or tile_top > top:
        raise UnfitStreamError("is no single grey image")
    if -(-(right - tile_left) // wide) * -(-(low - tile_top) // high) > MAX_TILES:
        raise UnfitStreamError("has too many tiles")
    if data[42 + 1 : 42 + 3] != b"\x01\x01":
        raise UnfitStreamError("is no single grey image")
    _check_coding(data)
    return right - left, low - top


def _check_coding(data: bytes) -> None:
    """The main header may divide the image into precincts once, not into tiny ones; parts may not do it again."""
    at, part_end, in_part, seen = 2, 0, False, False
    for _ in range(MAX_MARKERS):
        if at + 4 > len(data):
            return
        marker, length = struct.unpack(">HH", data[at : at + 4])
        if marker == 0xFF93:  # data follow; the next part begins where this one said it ends
            if not in_part or 0 < part_end < at + 2:  # a part has its own header, and ends after it
                raise UnfitStreamError("cannot be followed")
            if not part_end:
                return
            at, part_end, in_part = part_end, 0, False
            continue
        if marker == 0xFFD9:
            return
        if marker == 0xFF90:
            size = int.from_bytes(data[at + 6 : at + 10], "big")
            if in_part or (size and size < 14):
                raise UnfitStreamError("cannot be followed")
            part_end, in_part = at + size if size else 0, True
        if marker in (0xFF52, 0xFF53):
            if in_part or seen or marker == 0xFF53:
                raise UnfitStreamError("is coded in parts of its own")
            seen = True
            if at + 10 > len(data):
                raise UnfitStreamError("cannot be followed")
            levels, style = data[at + 9], data[at + 4]
            precincts = data[at + 14 : at + 15 + levels] if style & 1 else b""
            if levels > 32 or any(min(p & 15, p >> 4) < MIN_PRECINCT for p in precincts[1:]):
                raise UnfitStreamError("is divided too finely")
        if marker < 0xFF00 or length < 2:
            raise UnfitStreamError("cannot be followed")
        at += 2 + length
    raise UnfitStreamError("is in too many parts")
