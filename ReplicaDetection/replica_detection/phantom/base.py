"""Shared parts of all phantoms: the volume, the sampling grid, smooth random fields and soft shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from replica_detection.errors import ConfigurationError

# A cubic B-spline's squares sum to about this much per axis, so that unit coefficients give a field of unit variance.
_SPLINE_POWER = 0.479
# Distance (mm) given to points far away from a shape, where it is not computed.
FAR = 99.0


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan whose truth is known.

    Args:
        image: (X, Y, Z) float32, HU for head CT, arbitrary units for MR.
        mask: (X, Y, Z) uint8, 1 in the hematoma or the vessels.
        affine: (4, 4) from voxel index to mm RAS+.
        use_case: "head_ct" or "tof_mra"; empty for a volume from elsewhere.
        anatomy_seed: seed of the mask.
        visit: 0 for a patient's first scan, larger for follow-ups.
    """

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    use_case: str = ""
    anatomy_seed: int = 0
    visit: int = 0

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Grid:
    """Voxel centres of an unrotated volume: `shape`, `spacing_mm` and the RAS position of the first voxel in mm."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) from voxel index to mm RAS+."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates (mm) along X, Y and Z, float32."""
        x, y, z = (
            (o + s * np.arange(n)).astype(np.float32)
            for o, s, n in zip(self.origin_mm, self.spacing_mm, self.shape, strict=True)
        )
        return x, y, z


def generator(*words: int) -> np.random.Generator:
    """An independent stream for each tuple of non-negative numbers; raises ConfigurationError for a negative seed."""
    if min(words) < 0:
        raise ConfigurationError(f"a phantom's seed must be 0 or larger, found {min(words)}")
    return np.random.default_rng(list(words))


def rotation(degrees: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) about x, then y, then z, angles in degrees; positive angles are right-handed."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        about_axis = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        about_axis[i, i] = about_axis[j, j] = math.cos(angle)
        about_axis[j, i] = math.sin(angle)
        about_axis[i, j] = -about_axis[j, i]
        matrix = about_axis @ matrix
    return matrix


def smooth_field(rng: np.random.Generator, axes: tuple[np.ndarray, ...], length_mm: float) -> np.ndarray:
    """A smooth random field of zero mean and about unit variance: normal coefficients on a cubic B-spline lattice.

    Args:
        axes: coordinates in mm along X, Y and Z, each increasing.
        length_mm: distance between the knots of the lattice; blobs are about twice as wide.

    Returns:
        (X, Y, Z) float32.
    """
    x, y, z = (_spline_basis(axis, length_mm) for axis in axes)
    field = rng.standard_normal((x.shape[1], y.shape[1], z.shape[1]), dtype=np.float32)
    field = y @ (field @ z.T)
    return ((x / np.float32(_SPLINE_POWER**1.5)) @ field.reshape(len(field), -1)).reshape(len(x), len(y), len(z))


def soft(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Opacity from a signed distance (mm): 1 inside (negative), 0 outside, a linear ramp of `width` mm between."""
    return np.clip(0.5 - distance * np.asarray(1 / width, np.float32), 0, 1)


def over(image: np.ndarray, alpha: np.ndarray, value: np.ndarray | float) -> None:
    """Paint `value` with opacity `alpha` onto `image`, in place."""
    image += alpha * (np.asarray(value, np.float32) - image)


def ellipsoid(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    reach: float | None = None,
) -> np.ndarray:
    """Signed distance (mm) to an ellipsoid, first-order: exact at its surface, negative inside.

    Args:
        x: coordinates in mm, as are y and z, arrays of one shape.
        centre: in mm.
        radii: in mm.
        reach: where given, `FAR` is returned outside the bounding box that is this many mm larger.
    """
    if reach is not None:
        near = _box(x, y, z, np.subtract(centre, radii) - reach, np.add(centre, radii) + reach)
        distance = np.full(x.shape, FAR, np.float32)
        distance.ravel()[near] = ellipsoid(x.ravel()[near], y.ravel()[near], z.ravel()[near], centre, radii)
        return distance
    squares = np.full(x.shape, 1e-12, np.float32)
    gradient = squares / float(min(radii)) ** 2
    for v, m, r in zip((x, y, z), centre, radii, strict=True):
        a = (v - float(m)) * (1 / float(r))
        a *= a
        squares += a
        gradient += a * (1 / float(r) ** 2)
    rho = np.sqrt(squares)
    return rho * (rho - 1) / np.sqrt(gradient)


def capsules(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, nodes: np.ndarray, radii: np.ndarray, reach: float = 8.0
) -> np.ndarray:
    """Signed distance (mm) to a chain of tapering capsules.

    Args:
        x: coordinates in mm, as are y and z, arrays of one shape.
        nodes: (K, 3) mm, K of at least 2.
        radii: (K,) mm.
        reach: `FAR` is returned outside the bounding boxes that are this many mm larger.

    Returns:
        float32, the shape of x, negative inside.
    """
    best = np.full(x.shape, FAR, np.float32)
    for a, b, ra, rb in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
        margin = max(ra, rb) + reach
        near = _box(x, y, z, np.minimum(a, b) - margin, np.maximum(a, b) + margin)
        along = (b - a).astype(np.float32)
        offset = [v.ravel()[near] - np.float32(m) for v, m in zip((x, y, z), a, strict=True)]
        t = np.clip(sum(o * d for o, d in zip(offset, along, strict=True)) / (along @ along), 0, 1)
        gap = np.sqrt(sum((o - t * d) ** 2 for o, d in zip(offset, along, strict=True)))
        flat = best.ravel()
        flat[near] = np.minimum(flat[near], gap - (float(ra) + float(rb - ra) * t))
    return best


def rigid_resample(
    array: np.ndarray, grid: Grid, rotation: np.ndarray, shift_mm: np.ndarray, outside: float
) -> np.ndarray:
    """The volume resampled with its content rotated by `rotation` (3, 3) about the world origin, then shifted.

    `outside` is the value beyond the volume's border.
    """
    from scipy import ndimage

    spacing, origin = np.array(grid.spacing_mm), np.array(grid.origin_mm)
    back = rotation.T
    matrix = np.diag(1 / spacing) @ back @ np.diag(spacing)
    offset = (back @ (origin - shift_mm) - origin) / spacing
    return ndimage.affine_transform(array, matrix, offset, order=1, mode="constant", cval=outside)


def _box(x: np.ndarray, y: np.ndarray, z: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Flat indices of the points inside a box. One axis after the other, since each leaves fewer points to compare."""
    near = np.flatnonzero((y > low[1]) & (y < high[1]))
    for values, i in ((x, 0), (z, 2)):
        some = values.ravel()[near]
        near = near[(some > low[i]) & (some < high[i])]
    return near


def _spline_basis(axis: np.ndarray, length_mm: float) -> np.ndarray:
    """Cubic B-spline weights (points, knots) float32 of coordinates in mm."""
    position = (axis - axis[0]) / length_mm
    knots = np.arange(-1, math.ceil(position[-1]) + 2)
    t = np.abs(position[:, None] - knots)
    near, far = 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6
    return np.where(t < 1, near, far).astype(np.float32)
