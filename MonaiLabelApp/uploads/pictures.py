"""Size of an uploaded PNG or JPEG image, found without decoding it."""

from __future__ import annotations

import zlib
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.formats import DAMAGED, looks_like
from replica_detection_server.uploads.codestreams import UnfitStreamError, jpeg_ends, jpeg_size
from replica_detection_server.uploads.limits import require_whole

_PNG = b"\x89PNG\r\n\x1a\n"
# Values in a pixel, by colour type.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Chunks of a single picture. Others hold frames of a film, or what no reader of ours knows.
_CHUNKS = b"IHDR PLTE IDAT IEND cHRM gAMA iCCP sBIT sRGB bKGD hIST tRNS pHYs sPLT tIME iTXt tEXt zTXt eXIf cICP".split()
# First column and row of each pass of an interlaced picture, and how far they are apart.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PACKED = (b"iCCP", b"zTXt", b"iTXt")
# Limit for all of them together; a picture has a profile and a few notes.
_MAX_PACKED_BYTES, _MAX_PACKED = 1 << 20, 100
_MAX_CHUNKS = 100_000
_AGAIN = "Save it again as a plain PNG or JPEG picture"


def size_of(path: Path) -> tuple[int, int]:
    """Width and height. Raises InputError: it is neither PNG nor JPEG, or does not begin with its size."""
    with path.open("rb") as file:
        start = file.read(540)
    if start.startswith(_PNG):
        if start[12:16] != b"IHDR" or start[8:12] != b"\0\0\0\r":
            raise InputError(path, "does not begin with its size", DAMAGED)
        width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    elif start.startswith(b"\xff\xd8\xff"):
        try:
            found = jpeg_size(path.read_bytes())
        except UnfitStreamError as error:
            raise InputError(path, f"is a JPEG that cannot be used ({error})", _AGAIN) from error
        assert found is not None
        width, height = found
    else:
        raise InputError(path, f"is neither PNG nor JPEG{looks_like(start)}", _AGAIN)
    if not (width and height):
        raise InputError(path, f"is empty ({width} × {height} pixels)", DAMAGED)
    return width, height


def examine(path: Path) -> None:
    """Checks that a PNG unpacks to exactly its stated size; a JPEG states all of it at its beginning.

    Raises InputError: it does not, is damaged, cut short, or holds several pictures.
    """
    data = path.read_bytes()
    if not data.startswith(_PNG):
        if not jpeg_ends(data):
            raise InputError(path, "is truncated: its compressed pixels have no end", DAMAGED)
        return
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits, colour = data[24], data[25]
    if bits not in (1, 2, 4, 8, 16) or colour not in _CHANNELS:
        raise InputError(path, "states an unknown kind of pixels", DAMAGED)
    # Each line, of each of the seven passes of an interlaced picture, begins with a byte of its own.
    most = height * ((width * bits * _CHANNELS[colour] + 7) // 8 + 16) + 1024
    pixels, unpacked, at = zlib.decompressobj(), 0, 8
    notes = notes_bytes = 0
    for _ in range(_MAX_CHUNKS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if kind not in _CHUNKS or len(body) != length:
            raise InputError(path, "holds a part that is no part of a single picture, or is truncated", _AGAIN)
        if kind == b"IHDR" and at != 8:
            raise InputError(path, "states its size twice", DAMAGED)
        if kind in _PACKED:
            notes += 1
            notes_bytes += _packed_bytes(path, kind, body, _MAX_PACKED_BYTES - notes_bytes)
            if notes > _MAX_PACKED:
                raise InputError(path, "holds more notes than a picture has", _AGAIN)
        if kind == b"IDAT":
            unpacked += _counted(path, pixels, body, most - unpacked)
        if kind == b"IEND":
            require_whole(path, _png_bytes(width, height, bits * _CHANNELS[colour], data[28]), unpacked)
            return
        at += 12 + length
    raise InputError(path, "holds more parts than a picture has", _AGAIN)


def _png_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """Bytes of all lines, each with one in front that says how it is filtered; `bits` are those of a pixel."""
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


def _packed_bytes(path: Path, kind: bytes, body: bytes, most: int) -> int:
    """Bytes that a text or a colour profile unfolds to; 0 where it is not packed. Raises InputError beyond `most`."""
    rest = body.partition(b"\0")[2]
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return 0
        rest = rest[2:].split(b"\0", 2)[-1]
    else:
        rest = rest[1:]
    return _counted(path, zlib.decompressobj(), rest, most)


def _counted(path: Path, stream: zlib._Decompress, block: bytes, most: int) -> int:
    """Bytes that `block` unfolds to. Raises InputError for more than `most`, or a damaged stream."""
    found = 0
    try:
        while block and not stream.eof:
            found += len(stream.decompress(block, 1 << 20))
            if found > most:
                raise InputError(path, "unfolds to more than its size says", _AGAIN)
            block = stream.unconsumed_tail
    except zlib.error as error:
        raise InputError(path, "holds a damaged compressed stream", DAMAGED) from error
    return found
