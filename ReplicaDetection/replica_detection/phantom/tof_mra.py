"""Time-of-flight MR angiography of the circle of Willis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replica_detection.phantom.base import (
    Grid,
    Phantom,
    generator,
    over,
    rigid_resample,
    rotation,
    smooth_field,
    soft,
)
from replica_detection.phantom.brain import Palette, random_ventricles
from replica_detection.phantom.head import Build, paint, random_build, warp
from replica_detection.phantom.vessels import Vessel, draw, random_tree

SHAPE = (136, 168, 56)
# The slab's middle, template mm: just above the circle of Willis.
_SLAB_CENTRE = (0.0, -14.0, -18.5)

_SIGNAL = Palette(
    air=1,
    fat=128,
    muscle=82,
    cortical=14,
    diploe=52,
    csf=44,
    grey=92,
    white=101,
    dura=88,
    eye=38,
    calcification=30,
)


def make_tof_mra(anatomy_seed: int, appearance_seed: int | None = None, *, visit: int = 0) -> Phantom:
    """One patient's TOF-MRA; the same arguments always give the same image.

    Args:
        anatomy_seed: seed of grid, spacing, the head's size and pose, and the vessel tree.
        appearance_seed: seed of the rest: the exact shape and place of head and skull, scalp, sulci,
            ventricles, texture, contrast and saturation of the vessels, slab profile, coil sensitivity, noise. None
            takes the anatomy's seed. Two phantoms of the same anatomy and different appearance have the same mask.
        visit: above 0, a later scan of the same patient: other pose, coil sensitivity and noise.

    Returns:
        (136, 168, 56) image in arbitrary units, whole numbers of 0 or more, and mask of the
        vessels: voxels whose centre lies within a vessel's radius, or that a centreline runs through.

    Raises:
        ConfigurationError: a negative seed or visit.
    """
    anatomy = generator(anatomy_seed, 21)
    look_seed = anatomy_seed if appearance_seed is None else appearance_seed
    look, scan = generator(look_seed, 22), generator(look_seed, visit, 23)
    grid = _random_grid(anatomy)
    build = random_build(anatomy, _SLAB_CENTRE)
    tree = _placed(random_tree(anatomy), build, anatomy, grid)

    coordinates = build.varied(look).to_template(grid.axes)
    warp(coordinates, grid.axes, look, 2.0)
    palette = replace(_SIGNAL, white=look.normal(101, 4), grey=look.normal(91, 4), csf=look.normal(44, 5))
    palette = replace(palette, fat=look.normal(128, 14), muscle=look.normal(82, 6))
    image = paint(coordinates, grid.axes, palette, random_ventricles(look), look).image
    if visit:
        pose, shift = rotation(scan.normal(0, 3.0, 3)), scan.normal(0, 2.5, 3)
        image = rigid_resample(image, grid, pose, shift, palette.air)
        tree = tuple(replace(v, points=v.points @ pose.T + shift) for v in tree)
    tubes = draw(tree, grid)
    inflow = look.uniform(300, 380) * np.exp(-tubes.path_mm / look.uniform(170, 300))
    over(image, tubes.opacity, np.maximum(inflow, 150).astype(np.float32))
    return Phantom(_scan(image, grid, look, scan), tubes.mask, grid.affine, "tof_mra", anatomy_seed, visit)


def _random_grid(rng: np.random.Generator) -> Grid:
    """A grid of 1 mm slices, with pixels of 0.96 to 1.03 mm."""
    pixel = float(rng.choice([0.96, 1.0, 1.0, 1.0, 1.03]))
    spacing = (pixel, pixel, 1.0)
    return Grid(SHAPE, spacing, (-67.5 * pixel, -83.5 * pixel, -27.5))


def _placed(tree: tuple[Vessel, ...], build: Build, rng: np.random.Generator, grid: Grid) -> tuple[Vessel, ...]:
    """The tree in the patient's head, bent by a smooth warp of its own; radii stay in mm."""
    from scipy import ndimage

    axes = tuple(np.arange(lo, hi, 10.0) for lo, hi in ((-110, 111), (-120, 121), (-70, 71)))
    fields = [smooth_field(rng, axes, 28.0) * 1.6 for _ in range(3)]
    warped = []
    for vessel in tree:
        index = [(vessel.points[:, i] - axes[i][0]) / 10.0 for i in range(3)]
        shift = np.stack([ndimage.map_coordinates(f, index, order=1, mode="nearest") for f in fields], axis=1)
        warped.append(replace(vessel, points=build.to_world(vessel.points + np.clip(shift, -3.5, 3.5))))
    return tuple(warped)


def _scan(image: np.ndarray, grid: Grid, look: np.random.Generator, scan: np.random.Generator) -> np.ndarray:
    """Coil sensitivity, slab profile, blur by the point spread and Rician noise; whole numbers."""
    from scipy import ndimage

    x, y, z = grid.axes
    coil = 1 + 0.16 * np.clip(smooth_field(scan, grid.axes, 70.0), -2, 2)
    # Surface coils: the rim is brighter than the middle.
    radius = (x[:, None] / 75) ** 2 + (y / 95) ** 2
    coil *= (0.88 + 0.22 * radius)[:, :, None]
    slabs, depth = look.integers(2, 4), look.uniform(0.04, 0.10)
    phase = (z - z[0]) / (z[-1] - z[0]) * slabs + look.uniform(0, 1)
    # Venetian blind: each slab is brightest where blood enters and fades towards its far side.
    profile = 1 - depth * np.abs(((phase % 1) - 0.35) / 0.65) ** 2
    ends = 1 - 0.25 * soft(np.minimum(z - z[0], z[-1] - z) - 1.0, 4.0)
    image = ndimage.gaussian_filter(image, 0.35, truncate=3) * coil * (profile * ends).astype(np.float32)
    sigma = np.float32(scan.uniform(4.0, 7.0))
    real = image + sigma * scan.standard_normal(image.shape, dtype=np.float32)
    imaginary = sigma * scan.standard_normal(image.shape, dtype=np.float32)
    return np.rint(np.hypot(real, imaginary)).astype(np.float32)
