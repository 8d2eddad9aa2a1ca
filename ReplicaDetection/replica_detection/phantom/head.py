"""The head around the finding: skull, scalp, face, brain with gyri, ventricles and cisterns, for any modality.

Coordinates are in mm along R, A, S with the anterior commissure as origin, in the proportions of the MNI template.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from replica_detection.phantom.base import ellipsoid, rotation, smooth_field
from replica_detection.phantom.brain import Palette, Ventricles, paint_brain
from replica_detection.phantom.skull import paint_outside

# The MNI template is larger than most people.
_TEMPLATE_SCALE = 0.93
CAVITY_CENTRE = (0.0, -17.0, 0.0)


@dataclass(frozen=True)
class Build:
    """A head's pose and size: template mm = scale * (rotation^T @ (world mm - shift)); rotation is (3, 3)."""

    rotation: np.ndarray
    shift_mm: np.ndarray
    scale: np.ndarray

    def to_template(self, axes: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Template coordinates of all voxel centres: three float32 arrays (X, Y, Z)."""
        matrix = (np.diag(self.scale) @ self.rotation.T).astype(np.float32)
        x, y, z = (a - np.float32(s) for a, s in zip(axes, self.shift_mm, strict=True))
        return [m[0] * x[:, None, None] + m[1] * y[None, :, None] + m[2] * z for m in matrix]

    def varied(self, rng: np.random.Generator, strength: float = 1.0) -> Build:
        """Another head in nearly the same pose: rotated by some degrees, shifted by some mm, 2 % off in size."""
        change, shift = rotation(strength * rng.normal(0, 2.5, 3)), strength * rng.normal(0, 2.0, 3)
        scale = self.scale * np.exp(strength * rng.normal(0, 0.02, 3))
        return Build(change @ self.rotation, change @ self.shift_mm + shift, scale)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """World coordinates (P, 3) in mm of template points (P, 3) in mm."""
        return (points / self.scale) @ self.rotation.T + self.shift_mm


@dataclass(frozen=True)
class Painted:
    """A painted head, all (X, Y, Z) float32.

    `image` is in the palette's units, `brain` an opacity from 0 to 1, `cavity` the signed distance (mm) to the inner
    skull.
    """

    image: np.ndarray
    brain: np.ndarray
    cavity: np.ndarray


def random_build(rng: np.random.Generator, centre_mm: tuple[float, float, float]) -> Build:
    """A head of random size, rotated by a few degrees, whose template point `centre_mm` lies near the world origin."""
    scale = 1 / (_TEMPLATE_SCALE * rng.normal(1.0, 0.025) * np.exp(rng.normal(0, 0.03, 3)))
    pose = rotation(rng.normal(0, (4.0, 2.0, 3.5)))
    shift = rng.normal(0, 2.0, 3) - pose @ (np.array(centre_mm) / scale)
    return Build(pose, shift, scale)


def warp(coordinates: list[np.ndarray], axes: tuple[np.ndarray, ...], rng: np.random.Generator, mm: float) -> None:
    """Add a smooth random displacement of standard deviation `mm` to the template coordinates, in place."""
    for c in coordinates:
        c += np.clip(smooth_field(rng, axes, 60.0), -2, 2) * np.float32(mm)


def cavity_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances (mm) to the inner skull, negative inside: with the skull base (cavity), without it (vault)."""
    # Widest behind the middle: the parietal eminences.
    width = 1 + 0.07 * np.tanh((y + 35) / 45)
    up = np.where(z > 0, z, z * np.float32(80 / 105))
    vault = ellipsoid(x * width, y, up, CAVITY_CENTRE, (73.0, 89.0, 80.0))
    height, shorten = _skull_base()
    ix = np.clip(np.rint(x).astype(np.int32) + 110, 0, 220)
    iy = np.clip(np.rint(y).astype(np.int32) + 140, 0, 280)
    return np.maximum(vault, (height[ix, iy] - z) * shorten[ix, iy]), vault


def paint(
    coordinates: list[np.ndarray],
    axes: tuple[np.ndarray, ...],
    palette: Palette,
    ventricles: Ventricles,
    rng: np.random.Generator,
    pushed: list[np.ndarray] | None = None,
) -> Painted:
    """Paint a whole head.

    Args:
        coordinates: template coordinates (mm) of each voxel, three (X, Y, Z) arrays.
        axes: world coordinates (mm) along each axis, on which random textures are drawn.
        palette: the modality's intensities.
        ventricles: their sizes.
        rng: skull thickness, sulci and textures.
        pushed: coordinates of the brain's tissue, where a mass displaces it; None: `coordinates`.
    """
    x, y, z = coordinates
    cavity, vault = cavity_distance(x, y, z)
    image = np.full(x.shape, palette.air, np.float32)
    edge = _edge_width(vault, axes)
    paint_outside(image, (x, y, z), axes, cavity, vault, palette, rng, edge)
    brain = paint_brain(image, tuple(pushed or coordinates), axes, cavity, palette, ventricles, rng, edge)
    return Painted(image, brain, cavity)


def _edge_width(vault: np.ndarray, axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Width (mm) over which the skull's edges blur: a pixel, or a slice's thickness where it lies flat in the slice.

    Thick slices average over their thickness; sampled at their centres alone, they would miss thin bone at the vertex.
    """
    pixel, thickness = (float(a[1] - a[0]) for a in (axes[0], axes[2]))
    upright = np.clip(np.gradient(vault, thickness, axis=2), -1, 1) ** 2
    narrow = max(1.2, 0.9 * pixel)
    return (narrow + max(0.0, thickness - narrow) * upright).astype(np.float32)


@cache
def _skull_base() -> tuple[np.ndarray, np.ndarray]:
    """Height (mm) of the skull base above template x of -110 to 110 and y of -140 to 140, with its fossae.

    The second map is the factor from a vertical distance to a perpendicular one, shorter where walls are steep.
    """
    from scipy import ndimage

    gx, gy = np.meshgrid(np.arange(-110, 111, dtype=np.float32), np.arange(-140, 141, dtype=np.float32), indexing="ij")
    ax = np.abs(gx)
    anterior = -24 + 3 * np.exp(-(((ax - 30) / 14) ** 2)) - 6 * np.exp(-((ax / 8) ** 2)) - 0.0015 * (gy - 35) ** 2
    medial = _step(17 - ax, 2.5)
    middle = -47 + 18 * medial + 0.010 * (ax - 38) ** 2 * (ax > 38)
    bowl = np.sqrt(np.maximum(0, 1 - (gx / 63) ** 2 - ((gy + 52) / 50) ** 2))
    posterior = np.where(bowl > 0, -20 - 47 * bowl, -15)
    # The petrous ridge runs from beside the clivus backwards and out to the mastoid.
    ridge_y = -13 - 0.36 * (ax - 12)
    sphenoid_y = 22 + 0.1 * ax
    front = _step(gy - sphenoid_y, 1.6)
    back = _step(ridge_y - gy, 2.0)
    height = anterior * front + (1 - front) * (middle * (1 - back) + posterior * back)
    ridge = -29 - 0.16 * np.abs(gy - ridge_y) ** 1.7
    height = np.where((ax > 10) & (ax < 66), np.maximum(height, ridge), height)
    clivus = np.where(gy < -5, -28 + (gy + 5) * 1.3, -30.0)
    clivus = np.where((gy > -40) & (gy < 18), clivus, -99)
    height = height * (1 - medial) + medial * np.maximum(height, clivus)
    height = ndimage.gaussian_filter(height, 1.5)
    slope = np.hypot(*np.gradient(height))
    shorten = ndimage.gaussian_filter(1 / np.sqrt(1 + np.minimum(slope, 5) ** 2), 1.5)
    return height.astype(np.float32), shorten.astype(np.float32)


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    """A smooth step from 0 to 1 at distance 0."""
    return 0.5 + 0.5 * np.tanh(distance / (2 * width))
