"""Copies of real images with the changes that generators and file formats make, for a test on the user's own data.

The changes are those of the field's papers: noise, intensity, small rotations and flips (Deo et al.), JPEG, crops and
blends (Truong et al., Deo et al.). Sizes are relative to each image, so that they mean the same for CT, MR and X-ray.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replica_detection.io.volume import Volume, write_volume

_JPEG_QUALITY = 50
_CROP = 0.1


@dataclass(frozen=True)
class PlantedCopy:
    """A changed image on its own grid, and its mask with the same change; None without a mask."""

    array: np.ndarray
    mask: np.ndarray | None


# (image, mask, randomness, another training image) -> the copy
Corruption = Callable[[Volume, np.ndarray | None, np.random.Generator, Volume], PlantedCopy]


def changes(dimensions: int) -> dict[str, Corruption]:
    """All changes by name, in the order of the tables. Flips run along the axes of the image as it is stored."""
    found: dict[str, Corruption] = {
        "exact": lambda v, m, rng, other: PlantedCopy(v.array, m),
        "noise_0.01": _noise(0.01),
        "noise_0.02": _noise(0.02),
        "intensity": _intensity,
        "jpeg": _jpeg,
        "crop": _crop,
        "rotated_3": _rotation(3.0),
        "rotated_5": _rotation(5.0),
    }
    for axis in range(dimensions):
        found[f"flipped_axis_{axis + 1}"] = _flip(axis)
    found["blend"] = _blend
    return found


def write_copy(copy: PlantedCopy, source: Volume, folder: Path, masks: Path, name: str) -> tuple[Path, Path | None]:
    """Writes image and mask under one name, as NIfTI, or as PNG where the source was a picture. Returns both paths.

    A picture has no geometry: a crop of it is read as the same field of view. A crop written as NIfTI would not be.
    """
    if source.array.ndim == 2 and not source.trusted:
        path, mask = folder / f"{name}.png", masks / f"{name}.png"
        _write_picture(path, copy.array)
        if copy.mask is not None:
            _write_picture(mask, copy.mask)
    else:
        path, mask = folder / f"{name}.nii.gz", masks / f"{name}.nii.gz"
        write_volume(path, copy.array.astype(np.float32), source.affine)
        if copy.mask is not None:
            write_volume(mask, copy.mask, source.affine)
    return path, None if copy.mask is None else mask


def intensity_range(array: np.ndarray) -> tuple[float, float]:
    """Percentiles 1 and 99, or minimum and maximum where these coincide."""
    low, high = (float(v) for v in np.percentile(array, (1, 99)))
    return (low, high) if high > low else (float(array.min()), float(array.max()))


def _span(array: np.ndarray) -> float:
    low, high = intensity_range(array)
    return high - low


def _noise(sigma: float) -> Corruption:
    """White noise of `sigma` times the range between percentiles 1 and 99."""

    def change(v: Volume, mask: np.ndarray | None, rng: np.random.Generator, other: Volume) -> PlantedCopy:
        return PlantedCopy(v.array + sigma * _span(v.array) * rng.standard_normal(v.array.shape), mask)

    return change


def _intensity(v: Volume, mask: np.ndarray | None, rng: np.random.Generator, other: Volume) -> PlantedCopy:
    """All values times a factor of 0.9 to 0.98, or of 1.02 to 1.1."""
    return PlantedCopy(v.array * (1 + rng.choice([-1, 1]) * rng.uniform(0.02, 0.1)), mask)


def _jpeg(v: Volume, mask: np.ndarray | None, rng: np.random.Generator, other: Volume) -> PlantedCopy:
    """8 bits over the whole range of the image, then JPEG slice by slice along the last axis."""
    from PIL import Image

    low, high = float(v.array.min()), float(v.array.max())
    eight_bit = np.round(255 * (v.array - low) / (high - low)).astype(np.uint8)
    slices = eight_bit if eight_bit.ndim == 3 else eight_bit[..., None]
    out = np.empty(slices.shape, np.uint8)
    for k in range(slices.shape[2]):
        buffer = io.BytesIO()
        Image.fromarray(slices[:, :, k].T).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        out[:, :, k] = np.asarray(Image.open(buffer, formats=("JPEG",))).T
    return PlantedCopy(low + (high - low) * out.reshape(v.array.shape).astype(np.float32) / 255, mask)


def _crop(v: Volume, mask: np.ndarray | None, rng: np.random.Generator, other: Volume) -> PlantedCopy:
    """Removes a tenth of each axis, split at random between its two ends."""
    part = []
    for size in v.array.shape:
        lost = round(_CROP * size)
        start = int(rng.integers(0, lost + 1))
        part.append(slice(start, size - (lost - start)))
    where = tuple(part)
    return PlantedCopy(
        np.ascontiguousarray(v.array[where]), None if mask is None else np.ascontiguousarray(mask[where])
    )


def _rotation(degrees: float) -> Corruption:
    """A rotation in mm about a random axis through the centre; in 2D, in the plane."""

    def change(v: Volume, mask: np.ndarray | None, rng: np.random.Generator, other: Volume) -> PlantedCopy:
        from scipy import ndimage

        turn = _turn(v.array.ndim, math.radians(degrees) * rng.choice([-1, 1]), rng)
        matrix = turn * v.spacing[None, :] / v.spacing[:, None]
        centre = (np.array(v.array.shape) - 1) / 2
        offset = centre - matrix @ centre
        image = ndimage.affine_transform(v.array, matrix, offset, order=1, mode="nearest")
        turned = None if mask is None else ndimage.affine_transform(mask, matrix, offset, order=0, mode="constant")
        return PlantedCopy(image, turned)

    return change


def _turn(dimensions: int, angle: float, rng: np.random.Generator) -> np.ndarray:
    """Rotation matrix; in 3D about a random direction (Rodrigues)."""
    if dimensions == 2:
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    x, y, z = (axis := rng.standard_normal(3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _flip(axis: int) -> Corruption:
    def change(v: Volume, mask: np.ndarray | None, rng: np.random.Generator, other: Volume) -> PlantedCopy:
        flipped = None if mask is None else np.ascontiguousarray(np.flip(mask, axis))
        return PlantedCopy(np.ascontiguousarray(np.flip(v.array, axis)), flipped)

    return change


def _blend(v: Volume, mask: np.ndarray | None, rng: np.random.Generator, other: Volume) -> PlantedCopy:
    """0.6 to 0.8 of the image, the rest another training image, stretched to its grid and intensity range."""
    from scipy import ndimage

    share = rng.uniform(0.6, 0.8)
    factors = np.array(v.array.shape) / np.array(other.array.shape)
    stretched = ndimage.zoom(other.array, factors, order=1, mode="nearest", grid_mode=True)
    low, high = intensity_range(v.array)
    other_low, other_high = intensity_range(stretched)
    matched = low + (high - low) * (stretched - other_low) / max(other_high - other_low, 1e-12)
    return PlantedCopy(share * v.array + (1 - share) * matched, mask)


def _write_picture(path: Path, array: np.ndarray) -> None:
    """(X, Y) grey values as an 8-bit PNG where they fit, else 16 bits; rounded, negative ones become 0."""
    from PIL import Image

    kind = np.uint8 if array.max() <= 255 else np.uint16
    values = np.clip(np.round(array), 0, np.iinfo(kind).max).astype(kind)
    Image.fromarray(np.ascontiguousarray(values.T)).save(path, "PNG")
