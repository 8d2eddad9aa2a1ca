"""Pictures of a pair's mask surfaces, side by side, coloured by the distance to the other one.

Two views with the same camera for both: from the front, and from below as in axial slices, so that patient left is on
the picture's right as in every other picture of the page. Needs Pillow, matplotlib and numba.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from replica_detection.report.pictures import encode, font
from replica_detection.report.raster import Camera, View, draw
from replica_detection.results.pair import Pair
from replica_detection.surfaces.distances import Statistics, SurfaceComparison, compare_surfaces
from replica_detection.surfaces.mesh import Mesh

TITLES = ("Synthetic", "Nearest training case")
VIEWS = (
    View("from the front", (-1, 0, 0), (0, 0, 1), (0, 1, 0), ("R", "L", "S", "I")),
    View("from below", (-1, 0, 0), (0, 1, 0), (0, 0, -1), ("R", "L", "A", "P")),
)
_PANEL, _HEIGHTS, _GAP, _HEADER, _BAR, _MARGIN = 470, 640, 10, 34, 92, 26
_LARGEST_SCALE = 9.0  # pixels per mm
# Possible ends of the colour scale; a quarter of each is a short number.
_RANGES_MM = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 30, 40, 60, 80, 100)
_PAGE, _PANEL_COLOUR, _INK, _SOFT = (255, 255, 255), (243, 246, 249), (23, 32, 44), (85, 96, 111)


@dataclass(frozen=True)
class SurfaceRow:
    """A line of the table under the picture; `where` names the slices through the largest distance."""

    name: str
    mean: float
    median: float
    percentile_95: float
    maximum: float
    where: str


@dataclass(frozen=True)
class SurfacePicture:
    """An encoded picture of `width` x `height` pixels; its colour scale runs from 0 to `range_mm`."""

    uri: str
    width: int
    height: int
    range_mm: float
    views: tuple[str, ...]
    rows: tuple[SurfaceRow, ...]


def surface_picture(pair: Pair, max_bytes: int) -> SurfacePicture | None:
    """The picture and its table; None for a 2D pair, and where either mask is missing or empty."""
    synthetic, training = pair.masks
    if synthetic is None or training is None or synthetic.ndim != 3:
        return None
    comparison = compare_surfaces(synthetic, training, np.diag([*pair.spacing, 1.0]))
    canvas = compose(comparison)
    uri = "data:image/jpeg;base64," + base64.b64encode(encode(canvas, max_bytes)).decode("ascii")
    rows = tuple(
        _row(name, statistics, pair)
        for name, statistics in (
            ("synthetic to training", comparison.forth),
            ("training to synthetic", comparison.back),
            ("both", comparison.symmetric),
        )
    )
    return SurfacePicture(uri, *canvas.size, colour_range(comparison), tuple(v.name for v in VIEWS), rows)


def colour_range(comparison: SurfaceComparison) -> float:
    """End of the colour scale in mm: just above the 95th percentile, but at least 1 mm.

    With the maximum, a few far points would give all others one colour; below 1 mm, a copy would look different.
    """
    return float(next((mm for mm in _RANGES_MM if mm >= comparison.symmetric.percentile_95), _RANGES_MM[-1]))


def compose(comparison: SurfaceComparison) -> Image.Image:
    """The picture: synthetic and training in columns, views in rows, a colour bar on the right."""
    cameras = _cameras((comparison.first, comparison.second))
    heights = [c.size[1] + 2 * _MARGIN for c in cameras]
    width = 2 * _PANEL + _GAP + _BAR
    canvas = Image.new("RGB", (width, _HEADER + sum(heights) + _GAP * (len(heights) - 1)), _PAGE)
    pen = ImageDraw.Draw(canvas)
    end = colour_range(comparison)
    columns = (
        (comparison.first, comparison.first_to_second, comparison.forth),
        (comparison.second, comparison.second_to_first, comparison.back),
    )
    for column, (mesh, distances, statistics) in enumerate(columns):
        left = column * (_PANEL + _GAP)
        pen.text((left + _PANEL / 2, _HEADER / 2), TITLES[column], font=font(17), fill=_INK, anchor="mm")
        top = _HEADER
        for camera, height in zip(cameras, heights, strict=True):
            pen.rectangle((left, top, left + _PANEL - 1, top + height - 1), fill=_PANEL_COLOUR)
            picture = Image.fromarray(draw(mesh, heat(), distances / end, camera, _PANEL_COLOUR))
            at = left + (_PANEL - picture.width) // 2, top + _MARGIN
            canvas.paste(picture, at)
            if statistics.maximum == comparison.symmetric.maximum > 0:
                _ring(pen, camera.pixel(statistics.position[None])[0] + at)
            _label(pen, camera, left, top, height)
            top += height + _GAP
    _colour_bar(canvas, pen, end, _HEADER, min(260, canvas.height - _HEADER))
    return canvas


@cache
def heat() -> np.ndarray:
    """Colour scale (256, 3) uint8: pale blue-grey at 0, yellow, orange, dark red; lightness falls monotonically."""
    stops = np.linspace(0, 1, 5)
    colours = np.array([(190, 208, 224), (250, 226, 120), (250, 160, 50), (222, 66, 36), (128, 8, 52)])
    at = np.linspace(0, 1, 256)
    return np.stack([np.interp(at, stops, colours[:, c]) for c in range(3)], axis=1).round().astype(np.uint8)


def _cameras(meshes: tuple[Mesh, ...]) -> list[Camera]:
    points = np.concatenate([m.points for m in meshes])
    boxes = []
    for view in VIEWS:
        projected = points @ view.axes.T
        boxes.append((projected.min(axis=0), projected.max(axis=0)))
    sizes = np.array([high - low for low, high in boxes])
    scale = min((_PANEL - 2 * _MARGIN) / sizes[:, 0].max(), _HEIGHTS / sizes[:, 1].sum(), _LARGEST_SCALE)
    margin = 2 / scale
    return [
        Camera(view, low - margin, high + margin, float(scale)) for view, (low, high) in zip(VIEWS, boxes, strict=True)
    ]


def _row(name: str, statistics: Statistics, pair: Pair) -> SurfaceRow:
    where = "–"
    if statistics.maximum > 0:
        index = np.round(statistics.position / pair.spacing).astype(int)
        x, y, z = np.clip(index, 0, np.array(pair.synthetic.shape) - 1) + 1
        where = f"axial {z}, coronal {y}, sagittal {x}"
    return SurfaceRow(name, statistics.mean, statistics.median, statistics.percentile_95, statistics.maximum, where)


def _ring(pen: ImageDraw.ImageDraw, at: np.ndarray) -> None:
    x, y = (float(v) for v in at)
    for radius, width, colour in ((10, 4, _PANEL_COLOUR), (9, 2, _INK)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)


def _label(pen: ImageDraw.ImageDraw, camera: Camera, left: int, top: int, height: int) -> None:
    left_mark, right_mark, top_mark, bottom_mark = camera.view.marks
    middle_x, middle_y = left + _PANEL / 2, top + height / 2
    for text, at, anchor in (
        (left_mark, (left + 8, middle_y), "lm"),
        (right_mark, (left + _PANEL - 8, middle_y), "rm"),
        (top_mark, (middle_x, top + 6), "mt"),
        (bottom_mark, (middle_x, top + height - 6), "mb"),
    ):
        pen.text(at, text, font=font(15), fill=_SOFT, anchor=anchor)
    pen.text((left + 8, top + 7), camera.view.name, font=font(12), fill=_SOFT, anchor="lt")
    length = next((mm for mm in (50, 20, 10, 5) if mm * camera.scale < _PANEL / 4), 2)
    x, y = left + 10, top + height - 10
    pen.line((x, y, x + length * camera.scale, y), fill=_INK, width=2)
    pen.text((x, y - 5), f"{length} mm", font=font(11), fill=_SOFT, anchor="lb")


def _colour_bar(canvas: Image.Image, pen: ImageDraw.ImageDraw, end: float, top: int, height: int) -> None:
    left = canvas.width - _BAR + 16
    for line, text in enumerate(("distance to", "the other", "surface, mm")):
        pen.text((left - 4, top + 14 * line), text, font=font(11), fill=_SOFT, anchor="lt")
    top, height = top + 54, height - 60
    bar = Image.fromarray(np.repeat(heat()[::-1, None], 16, axis=1)).resize((16, height))
    canvas.paste(bar, (left, top))
    pen.rectangle((left - 1, top - 1, left + 16, top + height), outline=(170, 178, 190))
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + (1 - share) * (height - 1)
        pen.line((left + 17, y, left + 20, y), fill=_SOFT)
        text = f"{end * share:.3g}" if share < 1 else f"≥ {end:.3g}"
        pen.text((left + 24, y), text, font=font(12), fill=_INK, anchor="lm")
