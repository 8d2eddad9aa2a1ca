"""Previews of masks: one image with the outline of its mask, to check a segmentation by eye. Needs Pillow, nibabel."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from replica_detection.report.pictures import SYNTHETIC_OUTLINE, edge_of, encode, font, grey

COLUMNS, ROWS, CELL, GAP, CAPTION = 4, 2, 260, 6, 26
BACKGROUND, TEXT = (10, 12, 16), (226, 232, 240)
# Hues follow each other by the golden ratio, so that close labels differ; rings of ten labels differ in lightness too.
_GOLDEN, _RING = 0.618034, 10
_LIGHTNESS = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.65))


def preview(
    array: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    window: tuple[float, float] | None = None,
    *,
    max_bytes: int = 300_000,
) -> bytes:
    """JPEG with eight axial slices, patient left on the right, spread over the mask (over the volume if it is empty).

    Args:
        array: (X, Y, Z) image.
        mask: labels on the same grid; each above 0 is outlined in a colour of its own (`label_colour`), which the
            caption explains where there are several.
        affine: (4, 4) from voxels to mm RAS+.
        window: intensities shown black and white; None: the image's percentiles 1 and 99.8.
        max_bytes: largest size of the JPEG, where a quality reaches it.
    """
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(array, np.float32), affine))
    # float64 holds every label.
    labels = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(mask.astype(np.float64), affine)).dataobj).astype(int)
    inside = labels > 0
    values = np.asarray(image.dataobj)
    dark, bright = window or np.percentile(values, (1, 99.8))
    spacing = np.array(image.header.get_zooms()[:3], float)
    width, height = values.shape[0] * spacing[0], values.shape[1] * spacing[1]
    scale = CELL / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    hit = np.flatnonzero(inside.any((0, 1))) if inside.any() else np.arange(values.shape[2])
    short = max(0, COLUMNS * ROWS - 1 - int(hit[-1] - hit[0]))
    first, last = max(0, hit[0] - short // 2), min(values.shape[2] - 1, hit[-1] + (short + 1) // 2)
    slices = np.unique(np.linspace(first, last, COLUMNS * ROWS).round().astype(int))
    total = COLUMNS * (CELL + GAP) + GAP, CAPTION + ROWS * (CELL + GAP)
    canvas = Image.new("RGB", total, BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    _caption(pen, labels, float(np.prod(spacing)) / 1000, total[0])
    for n, z in enumerate(slices):
        left = GAP + n % COLUMNS * (CELL + GAP)
        top = CAPTION + n // COLUMNS * (CELL + GAP)
        plane = grey(values[::-1, ::-1, z].T, (float(dark), float(bright))).resize(size, Image.Resampling.BICUBIC)
        shown = _outlined(plane, labels[::-1, ::-1, z].T)
        canvas.paste(shown, (left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2))
        pen.text((left + 4, top + 4), f"{z + 1}/{values.shape[2]}", font=font(13), fill=TEXT, anchor="lt")
    return encode(canvas, max_bytes)


def label_colour(label: int) -> tuple[int, int, int]:
    """The colour of a label above 0, the same in every picture; label 1 has that of a single mask."""
    if label == 1:
        return SYNTHETIC_OUTLINE
    first = colorsys.rgb_to_hsv(*(c / 255 for c in SYNTHETIC_OUTLINE))[0]
    saturation, value = _LIGHTNESS[(label - 1) // _RING % len(_LIGHTNESS)]
    red, green, blue = colorsys.hsv_to_rgb((first + (label - 1) * _GOLDEN) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _outlined(plane: Image.Image, labels: np.ndarray) -> Image.Image:
    """The plane with the outline of each label, one pixel wide, just outside it."""
    pixels = np.array(plane)
    for label in np.unique(labels[labels > 0]).tolist():
        pixels[edge_of(labels == label, plane.size)] = label_colour(label)
    return Image.fromarray(pixels)


def _caption(pen: ImageDraw.ImageDraw, labels: np.ndarray, ml_each: float, width: int) -> None:
    """Volume of the mask in ml; of several labels those of each, as many as there is room for."""
    found, counts = np.unique(labels[labels > 0], return_counts=True)
    at, middle = float(GAP), CAPTION / 2
    ml = counts.sum() * ml_each
    words = [(f"mask {ml:.2f} ml" if ml else "empty mask", TEXT)]
    if len(found) > 1:
        words += [(f"{n}: {c * ml_each:.2f} ml", label_colour(n)) for n, c in zip(found.tolist(), counts, strict=True)]
    for number, (text, fill) in enumerate(words):
        length = pen.textlength(text, font=font(15))
        rest = f"and {len(words) - number} more"
        if number and at + length + pen.textlength(rest, font=font(15)) + 20 > width:
            pen.text((at, middle), rest, font=font(15), fill=TEXT, anchor="lm")
            return
        pen.text((at, middle), text, font=font(15), fill=fill, anchor="lm")
        at += length + 20
