"""Pictures of a pair: synthetic, training and difference side by side, in up to three planes.

Patient left is on the picture's right in axial and coronal planes (radiological convention), anterior on the left in
sagittal planes. A 2D image is drawn as stored, since its file does not state the orientation. Needs Pillow and
matplotlib.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from replica_detection.results.pair import Pair

TITLES = ("Synthetic", "Nearest training case", "Difference")
DIFFERENCE_RANGE = 0.3  # the same for all cases, so that an exact copy is black and reports are comparable
_CELL_WIDTH, _CELL_HEIGHT, _GAP, _HEADER, _BAR = 318, 372, 8, 34, 62
_BACKGROUND, _TEXT, _MARK = (10, 12, 16), (226, 232, 240), (250, 224, 120)
SYNTHETIC_OUTLINE, TRAINING_OUTLINE = (40, 225, 205), (255, 105, 215)
_DASH = 5  # pixels, where both outlines coincide


@dataclass(frozen=True)
class Picture:
    """An encoded picture of `width` x `height` pixels; `window` is the grey window (darkest, brightest value)."""

    uri: str
    width: int
    height: int
    window: tuple[float, float]
    planes: tuple[str, ...]
    outlined: bool = False


@dataclass(frozen=True)
class Plane:
    """A plane of both images, (rows, columns), row 0 on top; `size_mm` is its (width, height).

    `masks` are those of the synthetic image and of the training case, bool, None where there is none.
    """

    name: str
    position: str
    synthetic: np.ndarray
    training: np.ndarray
    size_mm: tuple[float, float]
    left: str
    right: str
    top: str
    bottom: str
    masks: tuple[np.ndarray | None, np.ndarray | None] = (None, None)


def draw(pair: Pair, max_bytes: int) -> Picture:
    """A picture about 1,040 pixels wide, encoded as JPEG in at most `max_bytes` where possible."""
    canvas = compose(pair, TITLES)
    uri = "data:image/jpeg;base64," + base64.b64encode(encode(canvas, max_bytes)).decode("ascii")
    outlined = any(m is not None for m in pair.masks)
    return Picture(uri, *canvas.size, grey_window(pair), tuple(p.name for p in planes(pair)), outlined)


def jpeg(pair: Pair, titles: tuple[str, str, str] = TITLES, max_bytes: int = 400_000) -> bytes:
    """The picture as the bytes of a JPEG file; `titles` are those of its three columns."""
    return encode(compose(pair, titles), max_bytes)


def compose(pair: Pair, titles: tuple[str, str, str]) -> Image.Image:
    """The picture: synthetic, training and difference in columns, planes in rows, with one scale and one grey window.

    Both masks are outlined on both images; a title has the colour of its image's outline.
    """
    window = grey_window(pair)
    shown = planes(pair)
    scale = min(
        _CELL_WIDTH / max(p.size_mm[0] for p in shown),
        _CELL_HEIGHT / max(p.size_mm[1] for p in shown),
    )
    sizes = [(max(1, round(p.size_mm[0] * scale)), max(1, round(p.size_mm[1] * scale))) for p in shown]
    heights = [max(64, h) for _, h in sizes]
    width = 3 * _CELL_WIDTH + 2 * _GAP + _BAR
    canvas = Image.new("RGB", (width, _HEADER + sum(heights) + _GAP * len(shown)), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    outlines = (SYNTHETIC_OUTLINE, TRAINING_OUTLINE)
    inks = [_TEXT if mask is None else ink for mask, ink in zip(pair.masks, outlines, strict=True)]
    for column, (title, ink) in enumerate(zip(titles, (*inks, _TEXT), strict=True)):
        x = column * (_CELL_WIDTH + _GAP) + _CELL_WIDTH / 2
        pen.text((x, _HEADER / 2), _shortened(title), font=font(17), fill=ink, anchor="mm")
    top = _HEADER
    for plane, size, height in zip(shown, sizes, heights, strict=True):
        panels = (
            grey(plane.synthetic, window),
            grey(plane.training, window),
            _coloured(plane.synthetic.astype(np.float32) - plane.training.astype(np.float32)),
        )
        for column, panel in enumerate(panels):
            left = column * (_CELL_WIDTH + _GAP)
            at = left + (_CELL_WIDTH - size[0]) // 2, top + (height - size[1]) // 2
            shown_panel = panel.resize(size, Image.Resampling.BICUBIC)
            canvas.paste(outlined(shown_panel, plane.masks) if column < 2 else shown_panel, at)
            _label(pen, plane, left, top, height)
        top += height + _GAP
    _colour_bar(canvas, pen, _HEADER, min(heights[0], 300))
    return canvas


def grey_window(pair: Pair) -> tuple[float, float]:
    """One window for both images: from 0 to the larger of their 99.9th percentiles, in the units of the profile."""
    step = tuple(slice(None, None, max(1, n // 96)) for n in pair.synthetic.shape)
    tops = [
        np.nanpercentile(image[step], 99.9) if np.isfinite(image[step]).any() else 0
        for image in (pair.synthetic, pair.training)
    ]
    return 0.0, float(max(*tops, 0.05))


def planes(pair: Pair) -> list[Plane]:
    """The axial, coronal and sagittal plane of a volume through one position; for a 2D image, its only plane."""
    spacing = pair.spacing
    size = [n * s for n, s in zip(pair.synthetic.shape, spacing, strict=True)]
    if pair.synthetic.ndim == 2:
        shown = (pair.synthetic.T, pair.training.T, (size[0], size[1]))
        return [Plane("image", "", *shown, "", "", "", "", masks=_cut(pair, np.s_[:, :]))]
    x, y, z = position(pair)
    cuts = (
        ("axial", 2, z, np.s_[::-1, ::-1, z], (size[0], size[1]), "R", "L", "A", "P"),
        ("coronal", 1, y, np.s_[::-1, y, ::-1], (size[0], size[2]), "R", "L", "S", "I"),
        ("sagittal", 0, x, np.s_[x, ::-1, ::-1], (size[1], size[2]), "A", "P", "S", "I"),
    )
    return [
        Plane(
            name,
            f"{at + 1}/{pair.synthetic.shape[axis]}",
            pair.synthetic[cut].T,
            pair.training[cut].T,
            mm,
            *(left, right, top, bottom),
            masks=_cut(pair, cut),
        )
        for name, axis, at, cut, mm, left, right, top, bottom in cuts
    ]


def position(pair: Pair) -> tuple[int, ...]:
    """Indices of the planes to draw: along each axis the slice with the largest area of both masks together.

    Without masks it is the middle of the content, halfway between the 10th and the 90th percentile of all edges.
    """
    masks = [m for m in pair.masks if m is not None]
    if masks:
        counts = np.sum(masks, axis=0, dtype=np.int64)
        axes = range(counts.ndim)
        return tuple(int(counts.sum(axis=tuple(a for a in axes if a != axis)).argmax()) for axis in axes)
    mean = (np.nan_to_num(pair.synthetic) + np.nan_to_num(pair.training)).astype(np.float32) / 2
    edges = np.zeros_like(mean)
    for axis, n in enumerate(mean.shape):
        if n > 1:
            edges += np.abs(np.diff(mean, axis=axis, append=mean.take([-1], axis)))
    centre = []
    for axis, n in enumerate(mean.shape):
        profile = edges.sum(axis=tuple(a for a in range(mean.ndim) if a != axis), dtype=np.float64)
        total = profile.sum()
        if total <= 0:
            centre.append(n // 2)
            continue
        share = np.cumsum(profile) / total
        centre.append(int((np.searchsorted(share, 0.1) + np.searchsorted(share, 0.9)) // 2))
    return tuple(centre)


def _cut(pair: Pair, cut: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    synthetic, training = (None if m is None else m[cut].T for m in pair.masks)
    return synthetic, training


def outlined(panel: Image.Image, masks: tuple[np.ndarray | None, np.ndarray | None]) -> Image.Image:
    """The panel with both outlines, one pixel wide, just outside the masks; dashed where they coincide."""
    pixels = np.array(panel)
    edges = [np.zeros(pixels.shape[:2], bool) if mask is None else edge_of(mask, panel.size) for mask in masks]
    rows, columns = np.indices(pixels.shape[:2])
    dash = (rows + columns) // _DASH % 2 == 0
    pixels[edges[0]] = SYNTHETIC_OUTLINE
    pixels[edges[1] & ~(edges[0] & dash)] = TRAINING_OUTLINE
    return Image.fromarray(pixels)


def edge_of(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: the pixels just outside a mask (rows, columns) of 0 and 1, enlarged to `size`."""
    if not mask.any():
        return np.zeros(size[::-1], bool)
    grown = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    inside = np.pad(np.asarray(grown) > 127, 1)
    beside = inside[2:, 1:-1] | inside[:-2, 1:-1] | inside[1:-1, 2:] | inside[1:-1, :-2]
    edge: np.ndarray = beside & ~inside[1:-1, 1:-1]
    return edge


def grey(plane: np.ndarray, window: tuple[float, float]) -> Image.Image:
    """A plane as a grey picture; NaN counts as 0."""
    level = (np.nan_to_num(plane) - window[0]) / (window[1] - window[0])
    return Image.fromarray(np.round(255 * np.clip(level, 0, 1)).astype(np.uint8)).convert("RGB")


def _coloured(difference: np.ndarray) -> Image.Image:
    level = np.clip(np.nan_to_num(difference) / DIFFERENCE_RANGE, -1, 1)
    return Image.fromarray(_colours()[np.round(127 + 127 * level).astype(np.uint8)])


@cache
def _colours() -> np.ndarray:
    """Colour scale (255, 3) uint8: blue below, black at 0, orange above; distinct for any kind of colour vision."""
    stops = [-1, -0.5, 0, 0.5, 1]
    colours = np.array([(168, 222, 255), (28, 118, 220), (0, 0, 0), (222, 104, 16), (255, 222, 150)])
    at = np.linspace(-1, 1, 255)
    return np.stack([np.interp(at, stops, colours[:, c]) for c in range(3)], axis=1).round().astype(np.uint8)


def _label(pen: ImageDraw.ImageDraw, plane: Plane, left: int, top: int, height: int) -> None:
    middle_x, middle_y = left + _CELL_WIDTH / 2, top + height / 2
    for text, at, anchor in (
        (plane.left, (left + 5, middle_y), "lm"),
        (plane.right, (left + _CELL_WIDTH - 5, middle_y), "rm"),
        (plane.top, (middle_x, top + 4), "mt"),
        (plane.bottom, (middle_x, top + height - 4), "mb"),
    ):
        if text:
            pen.text(at, text, font=font(15), fill=_MARK, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    if plane.position:
        text = f"{plane.name} {plane.position}"
        pen.text(
            (left + 5, top + 4), text, font=font(12), fill=_TEXT, anchor="lt", stroke_width=2, stroke_fill=(0, 0, 0)
        )


def _colour_bar(canvas: Image.Image, pen: ImageDraw.ImageDraw, top: int, height: int) -> None:
    left = canvas.width - _BAR + 10
    top, height = top + 8, height - 16
    bar = Image.fromarray(np.repeat(_colours()[::-1, None], 14, axis=1)).resize((14, height))
    canvas.paste(bar, (left, top))
    pen.rectangle((left - 1, top - 1, left + 14, top + height), outline=(120, 130, 145))
    for share, text in ((0, f"+{DIFFERENCE_RANGE}"), (0.5, "0"), (1, f"−{DIFFERENCE_RANGE}")):
        y = top + share * (height - 1)
        pen.line((left + 14, y, left + 18, y), fill=_TEXT)
        pen.text((left + 20, y), text, font=font(11), fill=_TEXT, anchor="lm")


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships, at a size in pixels."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _shortened(title: str) -> str:
    """The title cut to the width of a column; a long file name loses its middle, since both ends distinguish files."""
    title_font = font(17)
    kept = title = " ".join(title.split())
    while title_font.getlength(kept) > _CELL_WIDTH - 8 and len(title) > 2:
        title = title[: len(title) // 2] + title[len(title) // 2 + 1 :]
        kept = f"{title[: len(title) // 2]}…{title[len(title) // 2 :]}"
    return kept


def encode(canvas: Image.Image, max_bytes: int) -> bytes:
    """The picture as JPEG with the best quality within `max_bytes`, or the lowest quality where none fits."""
    encoded = b""
    for quality in (85, 70, 50, 30):
        buffer = io.BytesIO()
        canvas.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
        encoded = buffer.getvalue()
        if len(encoded) <= max_bytes:
            break
    return encoded
