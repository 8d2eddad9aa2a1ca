"""A renderer of triangle meshes: a z-buffer on the CPU, for servers without a display or graphics driver.

The view is orthographic, with smooth normals and a light over the viewer's left shoulder. To distinguish crossing
vessels, rims are dark where a nearer part hides a farther one, and farther parts fade slightly. Needs numba.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from replica_detection.surfaces.mesh import Mesh

_FINER = 2  # each pixel is the mean of this many by this many
_LIGHT = np.array([-0.45, 0.55, 0.70]) / np.linalg.norm([-0.45, 0.55, 0.70])
_HALFWAY = _LIGHT + np.array([0, 0, 1])  # between the light and the viewer, for the gloss
_FADE = 0.28
_RIM_MM = 2.5


@dataclass(frozen=True)
class View:
    """A direction of sight: `right`, `up` and `near` (towards the viewer) are axes of the picture in RAS."""

    name: str
    right: tuple[int, int, int]
    up: tuple[int, int, int]
    near: tuple[int, int, int]
    marks: tuple[str, str, str, str]

    @property
    def axes(self) -> np.ndarray:
        """Matrix (3, 3) with the rows right, up and near."""
        return np.array([self.right, self.up, self.near], np.float64)


@dataclass(frozen=True)
class Camera:
    """Extent of a picture: a box from `low` to `high` (3,) in mm along the view's axes, with `scale` pixels per mm."""

    view: View
    low: np.ndarray
    high: np.ndarray
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = np.ceil((self.high - self.low)[:2] * self.scale).astype(int)
        return max(1, int(width)), max(1, int(height))

    def pixel(self, points: np.ndarray) -> np.ndarray:
        """Pixel positions (P, 2), x to the right and y downwards, of points (P, 3) in mm RAS."""
        projected = points @ self.view.axes.T
        return np.stack([projected[:, 0] - self.low[0], self.high[1] - projected[:, 1]], axis=1) * self.scale


def draw(
    mesh: Mesh, colours: np.ndarray, levels: np.ndarray, camera: Camera, background: tuple[int, int, int]
) -> np.ndarray:
    """Picture (height, width, 3) uint8 of a mesh.

    Args:
        mesh: in mm RAS; parts outside the camera's box are cut off.
        colours: (C, 3) uint8, a colour scale.
        levels: (P,) position of each vertex on the scale, clipped to 0 to 1.
        camera: the view.
        background: RGB.
    """
    width, height = camera.size
    fine = height * _FINER, width * _FINER
    depth = np.full(fine, -np.inf, np.float32)
    level = np.zeros(fine, np.float32)
    facing = np.zeros((*fine, 3), np.float32)
    pixels = camera.pixel(mesh.points) * _FINER - 0.5
    axes = camera.view.axes
    _fill(
        pixels.astype(np.float32),
        (mesh.points @ axes[2]).astype(np.float32),
        (mesh.normals @ axes.T).astype(np.float32),
        np.clip(levels, 0, 1).astype(np.float32),
        mesh.triangles,
        depth,
        level,
        facing,
    )
    drawn = np.isfinite(depth)
    picture = np.empty((*fine, 3), np.float32)
    picture[:] = background
    base = colours[np.round(level[drawn] * (len(colours) - 1)).astype(np.int64)].astype(np.float32)
    picture[drawn] = _lit(base, facing[drawn])
    far = (camera.high[2] - depth[drawn]) / max(camera.high[2] - camera.low[2], 1e-6)
    fade = (_FADE * np.clip(far, 0, 1))[:, None]
    picture[drawn] += fade * (np.array(background, np.float32) - picture[drawn])
    picture[_rims(depth) & drawn] *= 0.45
    means = picture.reshape(height, _FINER, width, _FINER, 3).mean(axis=(1, 3))
    return np.round(np.clip(means, 0, 255)).astype(np.uint8)


def _lit(base: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Colours (N, 3) with diffuse light, frontal light and gloss."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    diffuse = np.clip(normals @ _LIGHT.astype(np.float32), 0, 1)
    frontal = np.clip(normals[:, 2], 0, 1)
    gloss = np.clip(normals @ (_HALFWAY / np.linalg.norm(_HALFWAY)).astype(np.float32), 0, 1) ** 30
    strength = 0.42 + 0.40 * diffuse + 0.24 * frontal
    return base * strength[:, None] + 38 * gloss[:, None]


def _rims(depth: np.ndarray) -> np.ndarray:
    """Pixels at the rim of a part, beside something farther by more than `_RIM_MM`, or beside the background."""
    rim = np.zeros(depth.shape, bool)
    shown = np.where(np.isfinite(depth), depth, -1e6)
    for axis in (0, 1):
        ahead, behind = [slice(None)] * 2, [slice(None)] * 2
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        step = shown[tuple(ahead)] - shown[tuple(behind)]
        # The rim belongs to the nearer part, so that it stays a thin line.
        rim[tuple(ahead)] |= step > _RIM_MM
        rim[tuple(behind)] |= step < -_RIM_MM
    return rim


@njit(cache=True, nogil=True)
def _fill(pixels, near, normals, levels, triangles, depth, level, facing):
    rows, columns = depth.shape
    for t in range(len(triangles)):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by, cx, cy = (pixels[a, 0], pixels[a, 1], pixels[b, 0], pixels[b, 1], pixels[c, 0], pixels[c, 1])
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        left, right = max(0, int(np.ceil(min(ax, bx, cx)))), min(columns - 1, int(np.floor(max(ax, bx, cx))))
        top, bottom = max(0, int(np.ceil(min(ay, by, cy)))), min(rows - 1, int(np.floor(max(ay, by, cy))))
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                w = 1 - u - v
                if u < -1e-4 or v < -1e-4 or w < -1e-4:
                    continue
                z = u * near[a] + v * near[b] + w * near[c]
                if z > depth[y, x]:
                    depth[y, x] = z
                    level[y, x] = u * levels[a] + v * levels[b] + w * levels[c]
                    for i in range(3):
                        facing[y, x, i] = u * normals[a, i] + v * normals[b, i] + w * normals[c, i]
