"""DICOM slices as a volume on an even, orthogonal grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import LPS_TO_RAS, Decoded, require_spacing, squeezed_shape

# Largest size of an even, straight grid, as a multiple of the voxels in its slices.
GROWTH = 8
EXPORT = "Export the series again as one volume with one image per slice position, or convert it to NIfTI"


@dataclass(frozen=True)
class Slice:
    """Pixels (rows, columns) after rescaling; lengths in mm, directions in LPS, None where not stated."""

    pixels: np.ndarray
    position: np.ndarray | None
    directions: np.ndarray | None  # (2, 3): along the rows, along the columns
    spacing: np.ndarray | None  # (2,): between rows, between columns
    thickness: float | None
    number: int | None


def volume_of(path: Path, slices: Sequence[Slice]) -> Decoded:
    """One image (X, Y) of a single slice, or a volume (X, Y, Z).

    Slices are sorted along their normal; without any position they keep the order of InstanceNumber. Warnings say
    where gaps were uneven or slices did not follow the normal, and were interpolated. `path` is for messages.

    Raises:
        InputError: slices that differ in size, direction or voxel size, or several slices at one position.
    """
    _require_alike(path, slices)
    squeezed_shape(path, (*slices[0].pixels.shape[::-1], len(slices)))
    if len(slices) == 1:
        return _single(slices[0])
    if any(piece.position is None for piece in slices):
        return _without_positions(path, slices)
    return _stacked(path, slices)


def _require_alike(path: Path, slices: Sequence[Slice]) -> None:
    first = slices[0]
    for quality, values, tolerance in (
        ("size", [piece.pixels.shape for piece in slices], 0.0),
        ("direction", [piece.directions for piece in slices], 1e-3),
        ("voxel size", [piece.spacing for piece in slices], 1e-4),
    ):
        unlike = sum(not _close(value, values[0], tolerance) for value in values)
        if unlike:
            count = f"{unlike} of {len(slices)} are unlike the first, {_text(values[0])}"
            reason = f"holds slices that differ in {quality} ({count})"
            raise InputError(path, reason, EXPORT)
    if first.directions is not None and not np.allclose(first.directions @ first.directions.T, np.eye(2), atol=1e-3):
        raise InputError(path, "states slice axes that are not at right angles (ImageOrientationPatient)", EXPORT)
    if first.spacing is not None:
        require_spacing(path, first.spacing)


def _close(value: Any, other: Any, tolerance: float) -> bool:
    if value is None or other is None:
        return value is other
    return np.allclose(value, other, rtol=0, atol=tolerance)


def _text(value: Any) -> str:
    return "not stated" if value is None else " × ".join(f"{number:g}" for number in np.ravel(value))


def _axes(piece: Slice) -> tuple[np.ndarray, np.ndarray]:
    """Directions (3, 3) along the rows, the columns and their normal, and the spacing (2,) of X and Y."""
    rows, columns = piece.directions if piece.directions is not None else np.eye(3)[:2]
    spacing = piece.spacing if piece.spacing is not None else np.ones(2)
    # PixelSpacing names the distance between rows first, which is the step along Y.
    return np.stack([rows, columns, np.cross(rows, columns)]), spacing[::-1]


def _affine(axes: np.ndarray, spacing: Sequence[float], origin: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes.T * np.asarray(spacing)
    affine[:3, 3] = origin
    return LPS_TO_RAS @ affine


def _single(piece: Slice) -> Decoded:
    axes, spacing = _axes(piece)
    origin = piece.position if piece.position is not None else np.zeros(3)
    affine = _affine(axes, [*spacing, piece.thickness or 1.0], origin)
    return Decoded(piece.pixels.T, affine, piece.spacing is not None)


def _without_positions(path: Path, slices: Sequence[Slice]) -> Decoded:
    """A volume of slices without ImagePositionPatient, in the order of InstanceNumber."""
    missing = sum(piece.position is None for piece in slices)
    numbers = [piece.number for piece in slices]
    if missing < len(slices) or None in numbers or len(set(numbers)) < len(numbers):
        reason = f"has {missing} of {len(slices)} slices without a position (ImagePositionPatient)"
        raise InputError(path, reason, f"{EXPORT}; single images belong in a CSV, one row each")
    ordered = sorted(slices, key=lambda piece: piece.number or 0)
    axes, spacing = _axes(ordered[0])
    note = "its slices state no position: they keep the order of InstanceNumber, and their gap is the slice thickness"
    affine = _affine(axes, [*spacing, ordered[0].thickness or 1.0], np.zeros(3))
    return Decoded(np.stack([piece.pixels.T for piece in ordered], axis=2), affine, False, (note,))


def _stacked(path: Path, slices: Sequence[Slice]) -> Decoded:
    """A volume of slices sorted along their normal, resampled to even gaps and straightened where necessary."""
    axes, spacing = _axes(slices[0])
    positions = np.array([piece.position for piece in slices]) @ axes.T  # (slices, 3) mm along X, Y and the normal
    order = np.argsort(positions[:, 2], kind="stable")
    positions = positions[order]
    stack = np.stack([slices[i].pixels.T for i in order], axis=2)
    gaps = np.diff(positions[:, 2])
    if (gaps < 0.01).any():
        count = 1 + int((gaps >= 0.01).sum())
        reason = f"holds {len(slices)} slices at {count} positions: several time points, echoes or copies"
        raise InputError(path, reason, EXPORT)
    uneven, heights = _even_heights(positions[:, 2])
    notes = uneven
    shifts = positions[:, :2] - positions[0, :2]
    tilt = math.degrees(math.atan2(np.hypot(*shifts[-1]), positions[-1, 2] - positions[0, 2]))
    # Rounded positions deviate by less than a tenth of a pixel.
    tilted = bool((np.abs(shifts) > 0.1 * spacing).any())
    origin = positions[0].copy()
    if tilted or uneven:
        _require_room(path, stack.shape, np.ptp(positions[:, :2], axis=0) / spacing if tilted else np.zeros(2), heights)
    if tilted:
        notes += (f"its slices are sheared by {tilt:.1f} degrees (gantry tilt): it was straightened",)
        origin[:2] = positions[:, :2].min(axis=0)
        stack = _straightened(path, stack, (positions[:, :2] - origin[:2]) / spacing)
    if uneven:
        squeezed_shape(path, (*stack.shape[:2], len(heights)))
        stack = _interpolated(stack, positions[:, 2], heights)
    affine = _affine(axes, [*spacing, heights[1] - heights[0]], origin @ axes)
    stated = slices[0].directions is not None and slices[0].spacing is not None
    if not stated:
        notes += ("its slices state no direction or no pixel spacing",)
    return Decoded(stack, affine, stated, notes)


def _require_room(path: Path, shape: Sequence[int], shifts: np.ndarray, heights: np.ndarray) -> None:
    """Raises InputError where the even, straight grid would need many times the voxels of the slices."""
    wide = (np.array(shape[:2]) + shifts).prod() * len(heights)
    if not wide <= GROWTH * math.prod(shape):
        reason = f"holds slices so far apart that an even grid has more than {GROWTH} times their voxels"
        raise InputError(path, reason, EXPORT)


def _tolerance(gaps: np.ndarray) -> float:
    """Tolerance of positions (mm): they are stored with few digits, so up to 2 % of a gap is rounding."""
    return max(0.01, 0.02 * float(gaps.mean()))


def _even_heights(heights: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """A warning where the gaps are uneven, and even heights (mm along the normal) with nearly the median gap."""
    gaps = np.diff(heights)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.allclose(even, heights, rtol=0, atol=_tolerance(gaps)):
        return (), even
    # A file may state any positions: the count is bounded before the array is allocated.
    count = max(1, round(min((heights[-1] - heights[0]) / float(np.median(gaps)), GROWTH * len(heights)))) + 1
    even = np.linspace(heights[0], heights[-1], count)
    note = (
        f"its slice gaps are uneven, {gaps.min():.2f} to {gaps.max():.2f} mm: "
        f"{len(heights)} slices were interpolated to {count} at {even[1] - even[0]:.2f} mm"
    )
    return (note,), even


def _straightened(path: Path, stack: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Slices shifted by `offsets` (slices, 2) >= 0 pixels onto a grid that holds them all; outside is the minimum."""
    room = [n + math.ceil(extra - 1e-6) for n, extra in zip(stack.shape[:2], offsets.max(axis=0), strict=True)]
    squeezed_shape(path, (*room, stack.shape[2]))
    wide = np.empty((*room, stack.shape[2]), np.float32)
    fill = stack.min()
    for i, offset in enumerate(offsets):
        plane = stack[:, :, i]
        for axis in (0, 1):
            plane = _shifted(plane, axis, offset[axis], room[axis], fill)
        wide[:, :, i] = plane
    return wide


def _shifted(plane: np.ndarray, axis: int, offset: float, size: int, fill: float) -> np.ndarray:
    """The plane shifted along `axis` by `offset` pixels, linearly interpolated, on an axis of `size` pixels."""
    lines = np.moveaxis(plane, axis, 0)
    whole, part = divmod(round(offset, 6), 1)
    padded = np.full((size + 2, lines.shape[1]), fill, np.float32)
    start = int(whole) + 1
    padded[start : start + len(lines)] = lines
    shifted = np.float32(1 - part) * padded[1:-1] + np.float32(part) * padded[:-2]
    return np.moveaxis(shifted, 0, axis)


def _interpolated(stack: np.ndarray, heights: np.ndarray, even: np.ndarray) -> np.ndarray:
    above = np.clip(np.searchsorted(heights, even), 1, len(heights) - 1)
    weight = ((even - heights[above - 1]) / (heights[above] - heights[above - 1])).astype(np.float32)
    result = np.empty((*stack.shape[:2], len(even)), np.float32)
    for i, (k, w) in enumerate(zip(above, weight, strict=True)):
        result[:, :, i] = (1 - w) * stack[:, :, k - 1] + w * stack[:, :, k]
    return result
