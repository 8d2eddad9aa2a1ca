"""The head outside the brain: scalp, face, neck, skull, orbits, sinuses and mastoid cells."""

from __future__ import annotations

import numpy as np

from replica_detection.phantom.base import capsules, ellipsoid, over, smooth_field, soft
from replica_detection.phantom.brain import Palette


def paint_outside(
    image: np.ndarray,
    xyz: tuple[np.ndarray, ...],
    axes: tuple[np.ndarray, ...],
    cavity: np.ndarray,
    vault: np.ndarray,
    palette: Palette,
    rng: np.random.Generator,
    edge: np.ndarray,
) -> None:
    """Paint scalp, face, neck, skull, orbits, sinuses and mastoid cells onto `image`, in place.

    `cavity` and `vault` are signed distances (mm) to the inside of the skull with and without its floor; the other
    arguments are those of `paint_brain`.
    """
    x, y, z = xyz
    thickness = (rng.uniform(4.5, 6.5) + 1.0 * smooth_field(rng, axes, 40.0)).clip(3, 10)
    # Temporal squama thin, occiput thick.
    thickness *= 1 - 0.35 * np.exp(-(((z + 8) / 22) ** 2) - ((np.abs(x) - 68) / 14) ** 2) + 0.2 * (y < -95)
    scalp = rng.uniform(4.0, 6.5) + 0.6 * smooth_field(rng, axes, 30.0)
    skin = vault - thickness - scalp
    face = np.minimum(ellipsoid(x, y, z, (0, 26, -62), (61, 66, 62)), ellipsoid(x, y, z, (0, 92, -64), (13, 17, 26)))
    neck = ellipsoid(x, y, z, (0, -40, -85), (62, 62, 62))
    skin = np.minimum(skin, np.minimum(face, neck))
    texture, strands = smooth_field(rng, axes, 7.0), smooth_field(rng, axes, 3.5)
    flesh = np.where(skin > -3.0, palette.muscle, palette.fat).astype(np.float32)
    deep = vault < thickness + 1
    bundles = 0.75 * texture + 0.75 * strands + 0.7
    muscle = soft(-bundles, 1.6) * ((z < -18) & (deep | (skin < -7)) | (np.abs(x) > 60) & (z < 5) & (y > -40))
    over(flesh, muscle.astype(np.float32), palette.muscle)
    over(image, soft(skin, edge), flesh)

    # Vault and base: two tables of compact bone with diploe between them; the base is a rough plate below the floor.
    base = (cavity > vault + 0.5) & (vault < thickness)
    base_thickness = 6.0 + 2.0 * np.clip(texture, -1.2, 2.5)
    outer = np.where(base, np.maximum(cavity - base_thickness, vault - thickness), cavity - thickness)
    shell = np.maximum(-cavity, outer)
    marrow = np.clip(np.minimum(cavity - 1.5, -outer - 1.5) / 1.2, 0, 1) * (0.75 + 0.2 * np.clip(texture, -1, 1))
    bone = np.float32(palette.cortical) + marrow.astype(np.float32) * np.float32(palette.diploe - palette.cortical)
    over(image, soft(shell, edge), bone)
    _paint_face(image, xyz, cavity, skin, texture, palette, rng)


def _paint_face(
    image: np.ndarray,
    xyz: tuple[np.ndarray, ...],
    cavity: np.ndarray,
    skin: np.ndarray,
    texture: np.ndarray,
    palette: Palette,
    rng: np.random.Generator,
) -> None:
    """Orbits, ears, sinuses and nose, painted on the voxels below the floor of the skull alone."""
    low = np.flatnonzero((xyz[2] < 22) & (cavity > 0.5) & (skin < 1))
    x, y, z = (c.ravel()[low] for c in xyz)
    value, depth, rough, below = image.ravel()[low], -skin.ravel()[low], texture.ravel()[low], cavity.ravel()[low]
    for sign in (-1, 1):
        _paint_orbit(value, (x, y, z), sign, depth, palette)
        _paint_ear(value, (x, y, z), sign, rough, below, palette)
    nose = ellipsoid(x, y, z, (0, 52, -52), (13, 34, 24), 8.0)
    labyrinth = soft(nose, 1.5)
    over(value, labyrinth, palette.air)
    septa = np.maximum(np.exp(-((((np.abs(x) % 6.5) - 3.2) / 0.8) ** 2)), np.exp(-((x / 1.0) ** 2)))
    walls = labyrinth * np.clip(septa * 0.5 + 0.25 * (rough > 0.4), 0, 0.8)
    over(value, walls.astype(np.float32), palette.muscle + 60)
    sphenoid = ellipsoid(x, y, z, (1, 12, -42), (12, 11, 8), 8.0)
    over(value, soft(sphenoid - 2, 1.5), palette.cortical)
    over(value, soft(sphenoid, 1.5), palette.air)
    frontal = ellipsoid(x, y, z, (rng.normal(0, 3), 80, -16), (rng.uniform(8, 20), 3.5, rng.uniform(8, 16)), 8.0)
    over(value, soft(np.maximum(frontal, -below + 1.0), 1.5), palette.air)
    image.ravel()[low] = value


def _paint_orbit(
    value: np.ndarray, xyz: tuple[np.ndarray, ...], sign: int, depth: np.ndarray, palette: Palette
) -> None:
    """One orbit: bony wall, fat, optic nerve, two eye muscles and the eye."""
    x, y, z = xyz
    cone = capsules(x, y, z, np.array([[sign * 33, 66, -37], [sign * 16, 24, -31]]), np.array([17.0, 4.0]))
    wall = np.maximum(cone - 2.5, 3.0 - depth)
    over(value, soft(wall, 1.5) * (y < 72), palette.cortical)
    over(value, soft(np.maximum(cone, 2.0 - depth), 1.5), palette.fat)
    nerve = capsules(x, y, z, np.array([[sign * 32, 56, -37], [sign * 15, 24, -31]]), np.array([2.2, 2.0]))
    over(value, soft(nerve, 1.5), palette.muscle)
    for offset in (9, -9):
        nodes = np.array([[sign * (33 + offset), 62, -37], [sign * 16, 26, -31]])
        over(value, soft(capsules(x, y, z, nodes, np.array([1.8, 1.8])), 1.5), palette.muscle)
    globe = ellipsoid(x, y, z, (sign * 33, 69, -37), (12.5, 12.5, 12.5), 8.0)
    over(value, soft(globe, 1.5), palette.muscle)
    over(value, soft(globe + 2.0, 1.5), palette.eye)
    over(value, soft(ellipsoid(x, y, z, (sign * 33, 78, -37), (4.5, 2.5, 4.5), 8.0), 1.5), palette.muscle + 30)


def _paint_ear(
    value: np.ndarray,
    xyz: tuple[np.ndarray, ...],
    sign: int,
    rough: np.ndarray,
    below: np.ndarray,
    palette: Palette,
) -> None:
    """One side's mastoid and petrous bone with air cells, ear canal, maxillary antrum and zygomatic arch."""
    x, y, z = xyz
    petrous = capsules(x, y, z, np.array([[sign * 62, -30, -48], [sign * 20, -14, -42]]), np.array([15.0, 8.0]))
    over(value, soft(petrous, 1.5), palette.cortical)
    cells = soft(petrous + 4, 2.0) * (np.abs(x) > 40) * soft(-(rough - 0.1) * 5, 3.0) * np.clip(below - 2, 0, 1)
    over(value, cells.astype(np.float32), palette.air)
    over(value, soft(ellipsoid(x, y, z, (sign * 71, -22, -44), (9, 2.4, 2.4), 8.0), 1.5), palette.air)
    antrum = ellipsoid(x, y, z, (sign * 30, 48, -68), (14, 16, 15), 8.0) + 2.5 * rough - 0.25 * (y - 48) + 2
    over(value, soft(antrum - 2, 1.5), palette.cortical)
    over(value, soft(antrum, 1.5), palette.air)
    nodes = np.array([[sign * 69, -12, -50], [sign * 66, 30, -50], [sign * 50, 58, -48]])
    over(value, soft(capsules(x, y, z, nodes, np.array([2.6, 2.6, 4.5])), 1.5), palette.cortical)
