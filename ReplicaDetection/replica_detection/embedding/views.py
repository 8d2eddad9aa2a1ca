"""Random views of an image: transformed, mirrored, warped and with other intensities, as a replica may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A lost part is rarer than the other changes.
LOST_SHARE = 0.2


@dataclass(frozen=True)
class Views:
    """Limits of the random changes that make a view; each is applied independently with probability `share`.

    Args:
        rotation_degrees: largest rotation about each axis, in both directions (2D: in the plane).
        shift: largest shift along each axis, as a share of its length, in both directions.
        zoom: larger or smaller by up to this share.
        flips: axes that are mirrored in every second view.
        elastic: largest local displacement, as a share of the mean length.
        blur: largest sigma of a Gaussian, in voxels.
        noise: largest standard deviation of added noise; the images go from 0 to 1.
        gamma: contrast; the exponent of the intensities lies between 1 / (1 + gamma) and 1 + gamma.
        bias: logarithm of the largest slow change of brightness over the image.
        lost: share of the volume taken by a corner block of one grey value, in every fifth view.
        share: probability of each change.
    """

    rotation_degrees: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    flips: tuple[int, ...] = ()
    elastic: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    gamma: float = 0.0
    bias: float = 0.0
    lost: float = 0.0
    share: float = 0.5

    def of(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A view of (X, Y[, Z]) float32 in [0, 1], same shape and range; beyond the border the edge continues."""
        from scipy import ndimage

        view = self._transformed(np.asarray(image, np.float32), rng)
        if self.blur and rng.random() < self.share:
            view = ndimage.gaussian_filter(view, rng.uniform(0, self.blur), mode="nearest", truncate=3)
        if self.gamma and rng.random() < self.share:
            view = np.clip(view, 0, 1) ** np.float32((1 + self.gamma) ** rng.uniform(-1, 1))
        if self.bias and rng.random() < self.share:
            view = view * np.exp(np.float32(rng.uniform(0, self.bias)) * _smooth_field(view.shape, 3, rng))
        if self.noise and rng.random() < self.share:
            view = view + rng.standard_normal(view.shape, np.float32) * np.float32(rng.uniform(0, self.noise))
        if self.lost and rng.random() < LOST_SHARE:
            view = _without_corner(view, self.lost, rng)
        axes = tuple(axis for axis in self.flips if axis < view.ndim and rng.random() < 0.5)
        return np.ascontiguousarray(np.clip(np.flip(view, axes), 0, 1), np.float32)

    def _transformed(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image rotated, shifted, zoomed and warped, in one interpolation."""
        from scipy import ndimage

        shape = image.shape
        matrix, offset = np.eye(image.ndim), np.zeros(image.ndim)
        is_affine = (self.rotation_degrees or self.shift or self.zoom) and rng.random() < self.share
        if is_affine:
            matrix = _rotation(np.radians(rng.uniform(-1, 1, 3) * self.rotation_degrees), image.ndim)
            matrix *= (1 + self.zoom) ** rng.uniform(-1, 1)
            offset = rng.uniform(-1, 1, image.ndim) * self.shift * np.array(shape)
        centre = (np.array(shape) - 1) / 2
        if not (self.elastic and rng.random() < self.share):
            if not is_affine:
                return image
            return ndimage.affine_transform(image, matrix, centre + offset - matrix @ centre, order=1, mode="nearest")
        amplitude = np.float32(rng.uniform(0, self.elastic) * np.mean(shape))
        coordinates = _voxel_grid(shape, matrix, offset)
        coordinates += amplitude * np.stack([_smooth_field(shape, 6, rng) for _ in shape])
        return ndimage.map_coordinates(image, coordinates, order=1, mode="nearest")


def _rotation(angles: np.ndarray, dimensions: int) -> np.ndarray:
    """Rotation matrix (n, n) of one angle in radians for each plane of axes: 3 in 3D, the first alone in 2D."""
    planes = ((0, 1), (0, 2), (1, 2)) if dimensions == 3 else ((0, 1),)
    matrix = np.eye(dimensions)
    for (i, j), angle in zip(planes, angles, strict=False):
        rotation = np.eye(dimensions)
        rotation[i, i] = rotation[j, j] = math.cos(angle)
        rotation[i, j], rotation[j, i] = -math.sin(angle), math.sin(angle)
        matrix = rotation @ matrix
    return matrix


def _voxel_grid(shape: Sequence[int], matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Coordinates (axes, grid) float32 in the image of each voxel of the view, by `matrix` about the centre."""
    axes = [np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in shape]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    rows = []
    for i, n in enumerate(shape):
        transformed = sum(np.float32(matrix[i, j]) * grid[j] for j in range(len(shape)))
        rows.append(transformed + np.float32((n - 1) / 2 + offset[i]))
    return np.stack(rows)


def _smooth_field(shape: Sequence[int], knots: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random values (grid) float32, the largest of absolute value 1: noise at `knots` points along each axis,
    interpolated linearly."""
    field = rng.standard_normal((knots,) * len(shape), np.float32)
    for n in shape:
        position = np.linspace(0, knots - 1, n)
        left = np.minimum(position.astype(int), knots - 2)
        weight = (position - left).astype(np.float32)
        # The first axis is interpolated and becomes the last, so that each axis is the first once.
        first, second = field[left], field[left + 1]
        field = np.moveaxis(first + (second - first) * weight.reshape(-1, *(1,) * (field.ndim - 1)), 0, -1)
    return field / max(float(np.abs(field).max()), 1e-6)


def _without_corner(view: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The view with a random corner block, `share` of its volume, set to one random value."""
    sizes = [round(n * share ** (1 / view.ndim)) for n in view.shape]
    block = tuple(
        slice(0, s) if rng.random() < 0.5 else slice(n - s, n) for s, n in zip(sizes, view.shape, strict=True)
    )
    view = view.copy()
    view[block] = rng.uniform()
    return view
