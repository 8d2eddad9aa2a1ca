"""The inside of the skull: cerebrum with gyri, cerebellum, brainstem, ventricles and cisterns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from replica_detection.phantom.base import FAR, capsules, ellipsoid, over, smooth_field, soft

# Midlines of the ventricles of one side and their radii, mm.
_LATERAL = np.array(
    [[16, 33, 3], [10, 20, 7], [6, 4, 12], [9, -14, 20], [16, -30, 20], [25, -42, 11], [25, -56, 6], [22, -68, 5]],
    float,
)
_LATERAL_RADII = np.array([1.8, 3.4, 3.2, 4.0, 4.6, 5.8, 3.2, 0.8])
_TEMPORAL_HORN = np.array([[25, -42, 9], [33, -30, -6], [34, -18, -16], [31, -8, -21]], float)
_TEMPORAL_RADII = np.array([4.0, 1.8, 1.3, 0.9])


@dataclass(frozen=True)
class Palette:
    """Intensity of each tissue: HU, or MR signal."""

    air: float
    fat: float
    muscle: float
    cortical: float
    diploe: float
    csf: float
    grey: float
    white: float
    dura: float
    eye: float
    calcification: float


@dataclass(frozen=True)
class Ventricles:
    """Sizes of the ventricles: `size` scales all radii (right, left), `third` the width of the third ventricle; 1 is a
    young adult's, 2 is wide."""

    size: tuple[float, float]
    third: float


def random_ventricles(rng: np.random.Generator) -> Ventricles:
    """Random sizes: both sides nearly the same, log-normal from 0.8 to 2."""
    both = float(np.clip(np.exp(rng.normal(0.3, 0.25)), 0.8, 2.0))
    right, left = both * np.exp(rng.normal(0, 0.08, 2))
    return Ventricles((float(right), float(left)), float(both * rng.uniform(0.8, 1.3)))


def ventricle_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray, ventricles: Ventricles) -> np.ndarray:
    """Signed distance (mm) to lateral, third and fourth ventricle, negative inside; `FAR` where far away."""
    distance = np.full(x.shape, FAR, np.float32)
    near = np.flatnonzero((np.abs(x) < 50) & (y > -85) & (y < 50) & (z > -46) & (z < 40))
    px, py, pz = (c.ravel()[near] for c in (x, y, z))
    best = np.full(len(near), FAR, np.float32)
    for sign, size in zip((1, -1), ventricles.size, strict=True):
        side = np.array([sign, 1, 1])
        wide = _LATERAL + [[0.9 * (size - 1), 0, 0]] * len(_LATERAL)
        np.minimum(best, capsules(px, py, pz, wide * side, _LATERAL_RADII * size), out=best)
        np.minimum(best, capsules(px, py, pz, _TEMPORAL_HORN * side, _TEMPORAL_RADII * size), out=best)
    third = ellipsoid(px, py, pz, (0, -12, -1), (1.7 * ventricles.third, 15, 11), 8.0)
    fourth = ellipsoid(px, py, pz, (0, -44, -31), (5.0, 4.0, 9.0), 8.0)
    best = np.minimum(best, np.minimum(third, fourth))
    # The septum pellucidum keeps the two sides apart.
    best = np.where((np.abs(px) < 1.0) & (pz > 8), np.float32(1.5), best)
    distance.ravel()[near] = best
    return distance


@dataclass(frozen=True)
class _Inside:
    """The voxels inside the skull, (V,) each: template coordinates, depth below the skull and random fields.

    `ax` is |x|, `depth` the distance to the skull in mm, `folds` and `fine` smooth random fields, `vent` the signed
    distance to the ventricles in mm, `lower` True in the cerebellum.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    ax: np.ndarray
    depth: np.ndarray
    folds: np.ndarray
    fine: np.ndarray
    vent: np.ndarray

    @cached_property
    def tentorium(self) -> np.ndarray:
        """Height (mm) of the tentorium above each voxel's place in the axial plane."""
        return -13 + 0.0035 * (self.y + 50) ** 2 * (self.y < -50) * -1 - 0.006 * self.ax**1.6

    @cached_property
    def ridge_y(self) -> np.ndarray:
        """Anterior edge of the tentorium, mm."""
        return -16 - 0.30 * (self.ax - 12)

    @cached_property
    def lower(self) -> np.ndarray:
        return (self.z < self.tentorium) & (self.y < self.ridge_y + 4)

    @cached_property
    def falx_zone(self) -> np.ndarray:
        """True where the falx may run: above the corpus callosum."""
        callosum = ellipsoid(self.x * 0, self.y, self.z, (0, -12, 8), (1, 40, 25))
        return (callosum > 0) & (self.z > -18) & ~self.lower


def paint_brain(
    image: np.ndarray,
    xyz: tuple[np.ndarray, ...],
    axes: tuple[np.ndarray, ...],
    cavity: np.ndarray,
    palette: Palette,
    ventricles: Ventricles,
    rng: np.random.Generator,
    edge: np.ndarray,
) -> np.ndarray:
    """Paint cerebrum, cerebellum, brainstem and CSF onto `image`, in place; returns the brain's opacity.

    Args:
        image: (X, Y, Z) float32.
        xyz: template coordinates of each voxel, three arrays (X, Y, Z) in mm.
        axes: coordinates along each axis in mm.
        cavity: signed distance (mm) to the inside of the skull, negative inside.
        palette: intensities.
        ventricles: their sizes.
        rng: sulci, atrophy and calcifications.
        edge: width (mm) of the transition at the skull, (X, Y, Z).

    Returns:
        (X, Y, Z) float32, from 0 to 1.
    """
    folds, fine = smooth_field(rng, axes, rng.uniform(8.5, 10.0)), smooth_field(rng, axes, 5.0)
    vent = ventricle_distance(xyz[0], xyz[1], xyz[2], ventricles)
    inside = np.flatnonzero(cavity < 2.5)
    x, y, z = (c.ravel()[inside] for c in xyz)
    depth, folds, fine, vent = (a.ravel()[inside] for a in (-cavity, folds, fine, vent))
    voxels = _Inside(x, y, z, np.abs(x), depth, folds, fine, vent)
    atrophy = rng.uniform(0.6, 1.5)

    grey = _grey_share(voxels)
    tissue = np.float32(palette.white) + grey.astype(np.float32) * np.float32(palette.grey - palette.white)
    # Thin clefts need some width on a coarse grid, or they average away.
    coarse = min(1.5, 0.45 + 0.55 * float(axes[0][1] - axes[0][0]))
    csf = _csf_share(voxels, atrophy, (0.05 + 0.11 * atrophy) * coarse)
    value = tissue + (0.06 * (palette.grey - palette.csf) * fine).astype(np.float32)
    stem = _stem(x, y, z)
    over(value, soft(stem, 2.0), 0.5 * (palette.grey + palette.white))
    csf = np.where(stem < -1, np.minimum(csf, soft(vent, 2.0)), csf)
    over(value, csf, palette.csf)
    _paint_dura(value, voxels, palette)
    _paint_calcifications(value, voxels, palette, rng)

    flat = image.ravel()
    alpha = soft(-depth, edge.ravel()[inside])
    flat[inside] += alpha * (value - flat[inside])
    brain = np.zeros(image.shape, np.float32)
    brain.ravel()[inside] = alpha * (1 - csf)
    return brain


def _grey_share(voxels: _Inside) -> np.ndarray:
    """Share of grey matter, 0 to 1: cortex, cerebellum, deep nuclei and insula."""
    y, z, ax, depth = voxels.y, voxels.z, voxels.ax, voxels.depth
    ribbon = np.clip(1.6 - np.abs(voxels.folds) / 0.42, 0, 1) * np.clip((30 - depth) / 12, 0, 1)
    grey = np.maximum(ribbon, np.clip((6 - depth) / 2, 0, 1))
    grey = np.where(voxels.lower, 0.75 - 0.5 * np.clip((depth - 15) / 10, 0, 1), grey)
    for centre, radii in (
        ((13, 12, 6), (5, 9, 9)),
        ((26, 1, 1), (7, 17, 9)),
        ((10, -18, 7), (8, 13, 8)),
    ):
        grey = np.maximum(grey, soft(ellipsoid(ax, y, z, centre, radii, 8.0), 3.0))
    # Insular ribbon beside the Sylvian fissure.
    return np.maximum(grey, 0.9 * np.exp(-(((ax - 37) / 2.5) ** 2)) * ((y > -25) & (y < 25) & (z > -8) & (z < 18)))


def _csf_share(voxels: _Inside, atrophy: float, cleft: float) -> np.ndarray:
    """Opacity of CSF, float32 from 0 to 1: sulci of width `cleft`, fissures, cisterns, ventricles, the brain's rim."""
    x, y, z, ax, depth = voxels.x, voxels.y, voxels.z, voxels.ax, voxels.depth
    folds, fine, lower = voxels.folds, voxels.fine, voxels.lower
    sulcus = np.exp(-((folds / cleft) ** 2)) * np.clip((23 - depth) / 10, 0, 1)
    sulcus = np.maximum(sulcus, 0.8 * np.exp(-((fine / (0.8 * cleft)) ** 2)) * np.clip((9 - depth) / 4, 0, 1)) * ~lower
    leaf = 0.45 * np.exp(-((np.sin((z + 0.25 * depth + 2 * fine) * 1.1) / 0.45) ** 2)) * lower * (depth < 14)
    csf = np.maximum(sulcus, leaf)
    csf = np.maximum(csf, soft(depth - (0.8 + 0.9 * atrophy), 1.8))
    fissure = soft(ax - (0.7 + 0.5 * atrophy), 1.8) * voxels.falx_zone * (0.55 + 0.3 * np.clip(fine, -1, 1))
    csf = np.maximum(csf, fissure)
    csf = np.maximum(csf, _sylvian(y, z, ax, folds, fine, atrophy))
    csf = np.maximum(csf, _cisterns(x, y, z, ax, atrophy, fine))
    csf = np.maximum(csf, soft(voxels.vent, 2.0))
    return csf.astype(np.float32)


def _paint_dura(value: np.ndarray, voxels: _Inside, palette: Palette) -> None:
    """Falx, tentorium and the confluence of the sinuses."""
    x, y, z = voxels.x, voxels.y, voxels.z
    # The falx thickens towards the vertex; the superior sagittal sinus lies at its rim.
    falx = soft(np.abs(x + 0.6 * voxels.folds) - 0.5, 2.0) * voxels.falx_zone * (z > -5) * 0.7
    over(value, falx.astype(np.float32), palette.dura)
    tentorium = 0.6 * soft(np.abs(z - voxels.tentorium) - 0.7, 3.0) * (y < voxels.ridge_y) * (voxels.ax > 14)
    over(value, tentorium.astype(np.float32), palette.dura)
    over(value, soft(ellipsoid(x, y, z, (0, -106, 6), (5, 4, 9), 8.0), 2.0) * (voxels.depth < 8), palette.dura)


def _paint_calcifications(value: np.ndarray, voxels: _Inside, palette: Palette, rng: np.random.Generator) -> None:
    """Pineal gland and choroid plexus, each in 60 % of heads."""
    x, y, z = voxels.x, voxels.y, voxels.z
    if rng.random() < 0.6:
        pineal = ellipsoid(x, y, z, (rng.normal(0, 0.7), -31, 3), (2.2, 2.5, 2.5), 8.0)
        over(value, soft(pineal, 2.0), palette.calcification)
    if rng.random() < 0.6:
        for sign in (-1, 1):
            plexus = ellipsoid(x, y, z, (sign * 24, -41 + rng.normal(0, 2), 10), (2, 3.5, 2.5), 8.0)
            over(value, soft(plexus, 2.0) * rng.uniform(0.3, 0.9), palette.calcification)


def _sylvian(
    y: np.ndarray, z: np.ndarray, ax: np.ndarray, folds: np.ndarray, fine: np.ndarray, atrophy: float
) -> np.ndarray:
    """The lateral fissure: an oblique cleft from the surface to the insula, and the cleft over the insula."""
    # It rises backwards; a cleft seen almost end-on in thick axial slices must be thin and ragged.
    cleft = np.abs(z + 3 + 0.45 * (y - 5) + 3.0 * folds) - 0.5 * atrophy - 0.4 * fine
    cleft = np.maximum(cleft, np.maximum(42 - ax, np.abs(y + 2 + 2 * fine) - 20 - 3 * folds))
    insula = 42 - 0.010 * (y - 2) ** 2 - 0.012 * (z - 4) ** 2 + 1.5 * folds
    over_insula = np.abs(ax - insula) - 0.75 * atrophy - 0.5 * fine
    edge = np.sqrt(((y - 2) / 24) ** 2 + ((z - 3) / 15) ** 2)
    return np.maximum(0.6 * soft(cleft, 2.5), 0.9 * soft(over_insula, 1.8) * np.clip((1.15 - edge) * 4, 0, 1))


def _stem(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the brainstem."""
    pons = ellipsoid(x, y, z, (0, -27, -33), (17, 13, 15), 8.0)
    midbrain = ellipsoid(x, y, z, (0, -24, -14), (16, 12, 13), 8.0)
    medulla = capsules(x, y, z, np.array([[0, -32, -42], [0, -40, -75]], float), np.array([10.0, 7.0]))
    return np.minimum(np.minimum(pons, midbrain), medulla)


def _cisterns(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    ax: np.ndarray,
    atrophy: float,
    fine: np.ndarray,
) -> np.ndarray:
    """Suprasellar star, ambient and quadrigeminal cisterns, prepontine and cerebellopontine CSF, cisterna magna."""
    star = ellipsoid(x, y, z, (0, 2, -21), (12, 10, 9), 8.0) - 1.2 * fine - 1.3 * np.cos(5 * np.arctan2(x, y - 2))
    arms = capsules(ax, y, z, np.array([[8, 4, -18], [28, 6, -17], [38, 4, -12]], float), np.array([3.0, 2.0, 1.5]))
    ambient = np.abs(_stem(x, y, z) - 1.5) - 0.8 * atrophy - 0.8 * fine + 0.02 * (ax - 12) ** 2 * (y > -20)
    ambient = np.maximum(ambient, np.maximum(-z - 50, z + 3))
    quadrigeminal = ellipsoid(x, y, z, (0, -37, -5), (11, 4, 6), 8.0)
    magna = ellipsoid(x, y, z, (0, -75, -62), (16, 14, 8), 8.0)
    distance = np.minimum(np.minimum(star, arms), np.minimum(np.minimum(ambient, quadrigeminal), magna))
    return soft(distance, 2.0)
