"""What lies inside the skull: cerebrum with gyri, cerebellum, brainstem, ventricles and cisterns."""

from __future__ import annotations

from dataclasses import dataclass

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
    """`size` scales all radii (right, left); 1 is a young adult's, 2 is wide."""

    size: tuple[float, float]
    third: float


def random_ventricles(rng: np.random.Generator) -> Ventricles:
    both = float(np.clip(np.exp(rng.normal(0.3, 0.25)), 0.8, 2.0))
    right, left = both * np.exp(rng.normal(0, 0.08, 2))
    return Ventricles((float(right), float(left)), float(both * rng.uniform(0.8, 1.3)))


def ventricle_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray, ventricles: Ventricles) -> np.ndarray:
    """Signed distance (mm) to lateral, third and fourth ventricle; large where far away."""
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
    """Cerebrum, cerebellum, brainstem and CSF, on the voxels inside the skull; returns the brain's opacity."""
    folds, fine = smooth_field(rng, axes, rng.uniform(8.5, 10.0)), smooth_field(rng, axes, 5.0)
    vent = ventricle_distance(xyz[0], xyz[1], xyz[2], ventricles)
    inside = np.flatnonzero(cavity < 2.5)
    x, y, z = (c.ravel()[inside] for c in xyz)
    depth, folds, fine, vent = (a.ravel()[inside] for a in (-cavity, folds, fine, vent))
    ax = np.abs(x)
    atrophy = rng.uniform(0.6, 1.5)

    tentorium = -13 + 0.0035 * (y + 50) ** 2 * (y < -50) * -1 - 0.006 * ax**1.6
    ridge_y = -16 - 0.30 * (ax - 12)
    lower = (z < tentorium) & (y < ridge_y + 4)
    # Thin clefts need some width on a coarse grid, or they average away.
    coarse = min(1.5, 0.45 + 0.55 * float(axes[0][1] - axes[0][0]))
    cleft = (0.05 + 0.11 * atrophy) * coarse
    sulcus = np.exp(-((folds / cleft) ** 2)) * np.clip((23 - depth) / 10, 0, 1)
    sulcus = np.maximum(sulcus, 0.8 * np.exp(-((fine / (0.8 * cleft)) ** 2)) * np.clip((9 - depth) / 4, 0, 1)) * ~lower
    leaf = 0.45 * np.exp(-((np.sin((z + 0.25 * depth + 2 * fine) * 1.1) / 0.45) ** 2)) * lower * (depth < 14)
    ribbon = np.clip(1.6 - np.abs(folds) / 0.42, 0, 1) * np.clip((30 - depth) / 12, 0, 1)
    grey = np.maximum(ribbon, np.clip((6 - depth) / 2, 0, 1))
    grey = np.where(lower, 0.75 - 0.5 * np.clip((depth - 15) / 10, 0, 1), grey)
    for centre, radii in (
        ((13, 12, 6), (5, 9, 9)),
        ((26, 1, 1), (7, 17, 9)),
        ((10, -18, 7), (8, 13, 8)),
    ):
        grey = np.maximum(grey, soft(ellipsoid(ax, y, z, centre, radii, 8.0), 3.0))
    # Insular ribbon beside the Sylvian fissure.
    grey = np.maximum(grey, 0.9 * np.exp(-(((ax - 37) / 2.5) ** 2)) * ((y > -25) & (y < 25) & (z > -8) & (z < 18)))
    tissue = np.float32(palette.white) + grey.astype(np.float32) * np.float32(palette.grey - palette.white)

    csf = np.maximum(sulcus, leaf)
    csf = np.maximum(csf, soft(depth - (0.8 + 0.9 * atrophy), 1.8))
    callosum = ellipsoid(x * 0, y, z, (0, -12, 8), (1, 40, 25))
    falx_zone = (callosum > 0) & (z > -18) & ~lower
    csf = np.maximum(csf, soft(ax - (0.7 + 0.5 * atrophy), 1.8) * falx_zone * (0.55 + 0.3 * np.clip(fine, -1, 1)))
    csf = np.maximum(csf, _sylvian(y, z, ax, folds, fine, atrophy))
    csf = np.maximum(csf, _cisterns(x, y, z, ax, atrophy, fine))
    csf = np.maximum(csf, soft(vent, 2.0))
    csf = csf.astype(np.float32)

    value = tissue + (0.06 * (palette.grey - palette.csf) * fine).astype(np.float32)
    stem = _stem(x, y, z)
    over(value, soft(stem, 2.0), 0.5 * (palette.grey + palette.white))
    csf = np.where(stem < -1, np.minimum(csf, soft(vent, 2.0)), csf)
    over(value, csf, palette.csf)
    # The falx thickens towards the vertex; the superior sagittal sinus lies at its rim.
    falx = soft(np.abs(x + 0.6 * folds) - 0.5, 2.0) * falx_zone * (z > -5) * 0.7
    over(value, falx.astype(np.float32), palette.dura)
    over(
        value,
        (0.6 * soft(np.abs(z - tentorium) - 0.7, 3.0) * (y < ridge_y) * (ax > 14)).astype(np.float32),
        palette.dura,
    )
    over(value, soft(ellipsoid(x, y, z, (0, -106, 6), (5, 4, 9), 8.0), 2.0) * (depth < 8), palette.dura)
    if rng.random() < 0.6:
        over(
            value,
            soft(ellipsoid(x, y, z, (rng.normal(0, 0.7), -31, 3), (2.2, 2.5, 2.5), 8.0), 2.0),
            palette.calcification,
        )
    if rng.random() < 0.6:
        for sign in (-1, 1):
            plexus = ellipsoid(x, y, z, (sign * 24, -41 + rng.normal(0, 2), 10), (2, 3.5, 2.5), 8.0)
            over(value, soft(plexus, 2.0) * rng.uniform(0.3, 0.9), palette.calcification)

    flat = image.ravel()
    alpha = soft(-depth, edge.ravel()[inside])
    flat[inside] += alpha * (value - flat[inside])
    brain = np.zeros(image.shape, np.float32)
    brain.ravel()[inside] = alpha * (1 - csf)
    return brain


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
