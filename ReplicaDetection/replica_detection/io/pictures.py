"""Decoder of PNG and JPEG pictures: grey values, labels of masks, and colour pictures that show a grey film."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import LPS_TO_RAS, Decoded, looks_like, quiet_itk, squeezed_shape

# A pixel shows colour where its channels differ by more than this share of their range (32 of 255). Compression, the
# noise of a scanner and the tint of a film stay below; writing, boxes, overlays and Doppler are above.
COLOURED = 0.125
# Shares of coloured pixels: up to NOISE nothing is marked, up to MARKS the picture is a grey film with marks on it.
NOISE, MARKS = 0.0005, 0.01
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow and JPEG have it
_CONVERT = "Convert it to grey values, e.g. by `magick in.png -colorspace Gray out.png`, if it shows a grey film"
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Colour types of PNG: grey with alpha; RGB and RGBA.
_GREY_ALPHA, _COLOUR = 4, (2, 6)
_ORIENTATION = 0x0112
# Rows and columns as they are to be shown, by the value of the orientation tag (Exif 2.32, 4.6.4).
_TURNED = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def read_picture(path: Path, *, labels: bool = False) -> Decoded:
    """Read PNG or JPEG with 8 or 16 bits, as (X, Y): X along the row, Y downwards, like a DICOM image.

    An orientation tag is applied. A colour picture that shows a grey film is read by its luminance. These files state
    no geometry: the affine is 1 mm with the axes of an axial DICOM slice, and is not trusted.

    Args:
        labels: it is a mask: a PNG, of a palette the indices count, and colours are refused.

    Raises:
        InputError: it is neither PNG nor JPEG, has colours or transparent pixels, or is a mask stored with loss.
    """
    with path.open("rb") as file:
        start = file.read(540)
    if not start.startswith((_PNG, _JPEG)):
        advice = "Give it its true extension, or convert it"
        raise InputError(path, f"is neither PNG nor JPEG{looks_like(start)}", advice)
    if labels and start.startswith(_JPEG):
        found = "is a JPEG picture, which is stored with loss: its labels are not those that were drawn"
        raise InputError(path, found, "Save the mask as PNG, from the program that drew it")
    deep = start.startswith(_PNG) and start[24] == 16 and start[25] in (_GREY_ALPHA, *_COLOUR)
    if deep and start[25] == _GREY_ALPHA:
        raise InputError(path, "has 16 bit grey values with an alpha channel", "Save it without an alpha channel")
    notes: tuple[str, ...] = ()
    with _opened(path) as image:
        squeezed_shape(path, image.size)
        image.load()
        turned = int(image.getexif().get(_ORIENTATION, 1))
        frames = int(getattr(image, "n_frames", 1))
        indices = labels and image.mode == "P"
        is_grey = indices or image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
        if is_grey:
            pixels = np.asarray(image)
        else:
            # Pillow keeps 8 bits of each channel.
            channels = _deep_channels(path) if deep else np.asarray(image.convert(_with_alpha(image.mode)))
            pixels, notes = grey_values(path, channels, image.mode, labels=labels)
    if turned in _TURNED:
        pixels = _TURNED[turned](pixels)
        notes += ("it was turned as its orientation tag says",)
    if frames > 1:
        notes += (f"the first of its {frames} pictures was read",)
    return Decoded(pixels.T, LPS_TO_RAS.copy(), False, notes)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG")) as image:
        yield image


def _with_alpha(mode: str) -> str:
    return "RGB" if mode in ("CMYK", "YCbCr") else "RGBA"


def _deep_channels(path: Path) -> np.ndarray:
    """(rows, columns, 3 or 4) uint16 of an RGB or RGBA PNG with 16 bits per channel."""
    sitk = quiet_itk()
    values: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO"))
    return values


def grey_values(path: Path, channels: np.ndarray, mode: str, *, labels: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Grey values (rows, columns) of red, green, blue and perhaps alpha (rows, columns, 3 or 4), and how they came.

    Raises:
        InputError: it has colour, or an alpha channel that hides something.
    """
    full = np.iinfo(channels.dtype).max
    if channels.shape[2] == 4 and (channels[..., 3] != full).any():
        raise InputError(path, "has transparent pixels", "Save it without an alpha channel")
    colours = channels[..., :3]
    apart = colours.max(-1) - colours.min(-1)
    if not apart.any():
        return colours[..., 0], (f"a {mode} picture with identical channels was read as grey values",)
    if labels:
        raise InputError(path, "is a mask in colours", "Save it with one label per pixel, as grey values or palette")
    share = np.count_nonzero(apart > COLOURED * full) / apart.size
    if share > MARKS:
        raise InputError(path, f"is a colour picture ({mode}), {100 * share:.2g} % of its pixels show colour", _CONVERT)
    luminance = np.rint(colours @ _LUMINANCE).astype(channels.dtype)
    if share > NOISE:
        return luminance, (f"a {mode} picture of a grey film with small coloured marks was read by its luminance",)
    return luminance, (f"a {mode} picture whose channels hardly differ was read by its luminance",)
