"""Non-contrast head CT with an intracerebral hemorrhage, in HU."""

from __future__ import annotations

from dataclasses import dataclass

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
from replica_detection.phantom.brain import Palette, Ventricles, random_ventricles, ventricle_distance
from replica_detection.phantom.head import Build, cavity_distance, paint, random_build, warp

SHAPE = (128, 128, 36)
# Volumes in ml: range of the blood in the parenchyma, and largest amount in the ventricles.
_VOLUME_ML = (2.5, 62.0)
_LARGEST_INTRAVENTRICULAR_ML = 15.0
# Least depth of the hematoma under the inner skull, in its own head and in any other head.
_MARGIN_MM = 7.0
_SKULL_GAP_MM = 3.0

_HU = Palette(
    air=-1000,
    fat=-90,
    muscle=50,
    cortical=1250,
    diploe=620,
    csf=7,
    grey=37,
    white=28,
    dura=52,
    eye=12,
    calcification=170,
)

# Site: probability, centre and its standard deviation (template mm, side added later), largest volume in ml.
_SITES = {
    "basal ganglia": (0.40, (27, 1, 4), (3, 6, 4), 62.0),
    "thalamus": (0.15, (14, -17, 8), (2, 3, 2), 22.0),
    "frontal lobe": (0.11, (32, 36, 24), (5, 8, 6), 62.0),
    "parietal lobe": (0.11, (33, -50, 34), (5, 8, 6), 62.0),
    "temporal lobe": (0.08, (50, -18, -12), (2, 10, 5), 40.0),
    "occipital lobe": (0.05, (26, -78, 12), (4, 4, 4), 35.0),
    "cerebellum": (0.10, (24, -62, -34), (5, 5, 4), 22.0),
}


@dataclass(frozen=True)
class _Finding:
    """The hematoma: its field (positive inside), blood in the ventricles, centre (template mm) and radius (mm)."""

    field: np.ndarray
    blood: np.ndarray
    centre: np.ndarray
    radius_mm: float


def make_head_ct(anatomy_seed: int, appearance_seed: int | None = None, *, visit: int = 0) -> Phantom:
    """One patient's head CT; the same arguments always give the same image.

    Args:
        anatomy_seed: seed of grid, spacing, the head's size and pose, and the hematoma: its site, side, shape and
            extension into the ventricles.
        appearance_seed: seed of the rest: exact shape and place of the skull (within some mm), scalp,
            skull base, sulci, ventricles, texture, calcifications, HU of each tissue, noise. None takes the anatomy's
            seed. Two phantoms of the same anatomy and different appearance have the same mask: one hematoma in two
            patients' heads.
        visit: above 0, a later scan of the same patient: other pose and noise, the hematoma changed by up to 15 %.

    Returns:
        (128, 128, 36) image in HU, whole numbers, and mask of the blood in parenchyma and ventricles (2 to 80 ml).

    Raises:
        ConfigurationError: a negative seed or visit.
    """
    anatomy = generator(anatomy_seed, 11)
    look_seed = anatomy_seed if appearance_seed is None else appearance_seed
    look, scan = generator(look_seed, 12), generator(look_seed, visit, 13)
    grid = _random_grid(anatomy)
    build = random_build(anatomy, (0.0, -16.0, 19.0))
    finding = _random_finding(anatomy, grid, build, 1.0 if visit == 0 else float(scan.uniform(0.85, 1.15)))

    coordinates = _fitting_head(build, finding, grid, look)
    painted_ventricles = random_ventricles(look)
    cavity, _ = cavity_distance(*coordinates)
    pushed = _displaced(coordinates, finding, cavity, look.uniform(0.5, 0.8))
    head = paint(coordinates, grid.axes, _random_palette(look), painted_ventricles, look, pushed)
    image, mask = _add_blood(head.image, head.brain, finding, grid, look)
    if visit:
        pose, shift = rotation(scan.normal(0, 3.0, 3)), scan.normal(0, 3.0, 3)
        image = rigid_resample(image, grid, pose, shift, -1000.0)
        mask = (rigid_resample(mask.astype(np.float32), grid, pose, shift, 0.0) > 0.5).astype(np.uint8)
    image = _scan(image, scan)
    return Phantom(image, mask, grid.affine, "head_ct", anatomy_seed, visit)


def _random_grid(rng: np.random.Generator) -> Grid:
    """A grid of about 1.8 x 1.8 x 4.5 mm, centred on the world origin."""
    pixel = round(float(rng.uniform(1.74, 1.86)), 3)
    slices = round(float(rng.uniform(4.4, 4.6)), 2)
    spacing = (pixel, pixel, slices)
    return Grid(SHAPE, spacing, (-pixel * 63.5, -pixel * 63.5, -slices * 17.5))


def _random_palette(rng: np.random.Generator) -> Palette:
    """HU of each tissue for one patient."""
    white = rng.normal(29.0, 1.0)
    return Palette(
        **{
            **vars(_HU),
            "white": white,
            "grey": white + rng.uniform(8.0, 10.0),
            "csf": rng.normal(8, 1.5),
            "cortical": rng.normal(1250, 90),
            "diploe": rng.normal(620, 90),
        }
    )


def _random_finding(rng: np.random.Generator, grid: Grid, build: Build, growth: float) -> _Finding:
    """A random hematoma: the highest values of an ellipsoid with a smooth random field added, up to its volume."""
    names = list(_SITES)
    site = names[int(rng.choice(len(names), p=[_SITES[n][0] for n in names]))]
    _, centre, spread, largest = _SITES[site]
    side = rng.choice([-1.0, 1.0])
    middle = rng.normal(centre, spread) * [side, 1, 1]
    volume_ml = float(np.exp(rng.uniform(np.log(_VOLUME_ML[0]), np.log(largest)))) * growth
    volume_ml = float(np.clip(volume_ml, *_VOLUME_ML))
    radius = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    stretch = np.exp(rng.normal(0, 0.18, 3)) * ([0.85, 1.25, 0.95] if site == "basal ganglia" else [1, 1, 1])
    rough = smooth_field(rng, grid.axes, float(np.clip(0.55 * radius, 5, 10)))
    rough_weight = rng.uniform(0.16, 0.34)
    ventricles, open_ventricle, fill = random_ventricles(rng), rng.random(), rng.uniform(0.25, 1.0)

    x, y, z = build.to_template(grid.axes)
    a, b, c = ((v - m) / (radius * s) for v, m, s in zip((x, y, z), middle, stretch, strict=True))
    field = 1 - np.sqrt(a * a + b * b + c * c) + np.float32(rough_weight) * np.clip(rough, -1.6, 1.6)
    cavity, _ = cavity_distance(x, y, z)
    tent = -13 - 0.006 * np.abs(x) ** 1.6
    home = (z < tent - 3) if site == "cerebellum" else ((z > tent + 3) | (y > -14))
    allowed = (cavity < -_MARGIN_MM) & (x * side > 3) & home
    field = _single(np.where(allowed, field, -9.0).astype(np.float32), volume_ml, grid)

    blood = np.zeros(grid.shape, np.float32)
    deep = site in ("basal ganglia", "thalamus")
    if deep and open_ventricle < (0.7 if volume_ml > 15 else 0.4):
        blood = _ventricular_blood((x, y, z), ventricles, side, fill, grid)
    return _Finding(field, blood, middle, radius)


def _fitting_head(build: Build, finding: _Finding, grid: Grid, rng: np.random.Generator) -> list[np.ndarray]:
    """Template coordinates of a head that differs from the build as far as the blood stays inside its skull."""
    state = rng.bit_generator.state
    for strength in (1.0, 0.5, 0.0):
        rng.bit_generator.state = state
        coordinates = build.varied(rng, strength).to_template(grid.axes)
        warp(coordinates, grid.axes, rng, 1.8 * max(strength, 0.3))
        blood = (finding.field > 0) | (finding.blood > 0.5)
        cavity, _ = cavity_distance(*(c[blood] for c in coordinates))
        if cavity.max() < -_SKULL_GAP_MM:
            break
    return coordinates


def _single(field: np.ndarray, volume_ml: float, grid: Grid) -> np.ndarray:
    """The field shifted so that its largest connected positive part has the volume; other parts become negative."""
    from scipy import ndimage

    count = max(8, round(volume_ml * 1000 / float(np.prod(grid.spacing_mm))))
    level = np.partition(field.ravel(), -count - 1)[-count - 1]
    labels, number = ndimage.label(field > level)
    if number > 1:
        largest = np.argmax(np.bincount(labels.ravel())[1:]) + 1
        field = np.where((labels > 0) & (labels != largest), level - 0.5, field)
    return field - level


def _ventricular_blood(
    xyz: tuple[np.ndarray, ...], ventricles: Ventricles, side: float, fill: float, grid: Grid
) -> np.ndarray:
    """Opacity of blood in the ventricles: in this side's, from its lowest part up, and in the third."""
    x, y, z = xyz
    distance = ventricle_distance(x, y, z, ventricles)
    # The patient lies on the back: blood settles in atrium and occipital horn and reaches the frontal horn last.
    filled = (y < -60 + 95 * fill) & ((x * side > 1) | (np.abs(x) < 5) & (z < 8) & (z > -14)) & (z > -18)
    blood = soft(distance, 2.0) * filled
    voxels = int(_LARGEST_INTRAVENTRICULAR_ML * 1000 / np.prod(grid.spacing_mm))
    return blood.astype(np.float32) if np.count_nonzero(blood > 0.5) <= voxels else np.zeros_like(blood)


def _displaced(
    coordinates: list[np.ndarray], finding: _Finding, cavity: np.ndarray, strength: float
) -> list[np.ndarray]:
    """Coordinates that the tissue at each voxel had before the hematoma pushed it away, less so near the skull."""
    offset = [c - np.float32(m) for c, m in zip(coordinates, finding.centre, strict=True)]
    distance = np.sqrt(sum(o * o for o in offset)) + np.float32(1e-3)
    # A volume V that appears at the centre moves a shell of radius r to (r^3 + V)^(1/3), up to a constant factor.
    before = np.cbrt(np.maximum(distance**3 - np.float32(strength * finding.radius_mm**3), 0))
    share = np.clip(-cavity / 14, 0, 1) * np.clip(1.6 - distance / 75, 0, 1)
    shrink = 1 + share * (np.maximum(before / distance, 0.45) - 1)
    return [np.float32(m) + o * shrink for o, m in zip(offset, finding.centre, strict=True)]


def _add_blood(
    image: np.ndarray, brain: np.ndarray, finding: _Finding, grid: Grid, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint edema and blood onto `image`; returns it with the mask (uint8) of the blood."""
    from scipy import ndimage

    inside = finding.field > 0
    mask = inside | (finding.blood > 0.5)
    around = ndimage.distance_transform_edt(~inside, sampling=grid.spacing_mm)
    width = rng.uniform(3.5, 7.0) + 0.06 * finding.radius_mm * rng.uniform(0.5, 2.5)
    ripple = smooth_field(rng, grid.axes, 9.0)
    edema = soft(around - width * (1 + 0.4 * np.clip(ripple, -1.5, 1.5)), 3.0) * brain * 0.85
    over(image, edema.astype(np.float32), rng.uniform(17, 21))
    core = rng.uniform(58, 72)
    clot = np.float32(core) + np.float32(3.0) * smooth_field(rng, grid.axes, 6.0)
    # Half a unit of the field is about half the radius: the rim blurs over one to two voxels.
    rim = np.clip(0.62 + finding.field * (finding.radius_mm / 2.2), 0, 1)
    over(image, rim.astype(np.float32), clot)
    over(image, finding.blood * ~inside, clot - 6)
    return image, mask.astype(np.uint8)


def _scan(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with the scanner's in-plane blur and noise, correlated by a soft kernel; whole HU."""
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(image, (0.45, 0.45, 0), truncate=3)
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), (0.65, 0.65, 0), truncate=3)
    noise *= np.float32(rng.uniform(3.0, 4.6)) / noise.std()
    # Air holds less noise than the middle of the head, where fewer photons arrive.
    weight = 0.35 + 0.65 * soft(-image - 300, 600)
    return np.rint(np.clip(blurred + noise * weight, -1024, 3000)).astype(np.float32)
