"""Previews of masks: one image with the outline of its mask, to check a segmentation by eye. Needs Pillow, nibabel."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from replica_detection.report.pictures import encode, font, grey, outlined

COLUMNS, ROWS, CELL, GAP, CAPTION = 4, 2, 260, 6, 26
BACKGROUND, TEXT = (10, 12, 16), (226, 232, 240)


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
        mask: labels on the same grid; any above 0 is outlined.
        affine: (4, 4) from voxels to mm RAS+.
        window: intensities shown black and white; None: the image's percentiles 1 and 99.8.
        max_bytes: largest size of the JPEG, where a quality reaches it.
    """
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(array, np.float32), affine))
    inside = np.asarray(nib.as_closest_canonical(nib.Nifti1Image((mask > 0).astype(np.uint8), affine)).dataobj) > 0
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
    ml = np.count_nonzero(inside) * float(np.prod(spacing)) / 1000
    pen.text((GAP, CAPTION / 2), f"mask {ml:.2f} ml" if ml else "empty mask", font=font(15), fill=TEXT, anchor="lm")
    for n, z in enumerate(slices):
        left = GAP + n % COLUMNS * (CELL + GAP)
        top = CAPTION + n // COLUMNS * (CELL + GAP)
        plane = grey(values[::-1, ::-1, z].T, (float(dark), float(bright))).resize(size, Image.Resampling.BICUBIC)
        shown = outlined(plane, (inside[::-1, ::-1, z].T, None))
        canvas.paste(shown, (left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2))
        pen.text((left + 4, top + 4), f"{z + 1}/{values.shape[2]}", font=font(13), fill=TEXT, anchor="lt")
    return encode(canvas, max_bytes)
