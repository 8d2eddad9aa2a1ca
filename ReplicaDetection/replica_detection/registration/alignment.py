"""The alignment of a pair in the coordinates of its files, and in words. Imports with the standard library alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

DIRECTIONS = ("left-right", "front-back", "head-foot")
# Smaller amounts are not mentioned.
IN_PLACE = "in place"
LEAST_DEGREES, LEAST_MM, LEAST_SCALE, LEAST_SHEAR = 0.5, 0.5, 0.01, 0.05


@dataclass(frozen=True)
class Alignment:
    """The transform from a training image to the image that it was compared with.

    `matrix` (row-major 4 x 4) maps a point of the training file to the point of the query file that shows the same
    tissue, both in RAS mm; a viewer applies it to the training image. The other fields are the same transform in parts:
    mirrored axes (R, A, S) first, then scale, then rotation about R, A and S in degrees (in that order, right-handed),
    both about the centre of the field of view, then translation in mm. `correlation` is that of the aligned pair over
    the overlap, `correlation_before` that of the pair without alignment; `overlap` is the share of the grid that both
    images cover; `elastic_mm` is the largest local displacement, 0 without an elastic step.
    """

    matrix: tuple[tuple[float, ...], ...]
    flips: tuple[bool, ...]
    scale: float
    rotation_degrees: tuple[float, ...]
    translation_mm: tuple[float, ...]
    correlation: float
    correlation_before: float
    overlap: float
    elastic_mm: float = 0.0

    @property
    def degrees(self) -> float:
        """Angle of the whole rotation about its own axis."""
        a, b, c = (math.radians(r) / 2 for r in (*self.rotation_degrees, 0.0, 0.0)[:3])
        half = math.cos(a) * math.cos(b) * math.cos(c) + math.sin(a) * math.sin(b) * math.sin(c)
        return math.degrees(2 * math.acos(min(1.0, abs(half))))

    @property
    def sheared(self) -> bool:
        """True if angles or proportions change, as when an image is rotated on oblong voxels as if they were cubes.

        The parts then describe the nearest rotation, and `matrix` the whole transform.
        """
        linear = [row[:3] for row in self.matrix[:3]]
        flat = all(linear[2][i] == linear[i][2] == 0 for i in range(2)) and abs(linear[2][2]) == 1
        axes = range(2 if flat else 3)
        gram = [[sum(linear[k][i] * linear[k][j] for k in axes) for j in axes] for i in axes]
        size = sum(gram[i][i] for i in axes) / len(axes)
        return any(abs(gram[i][j] - (size if i == j else 0)) > LEAST_SHEAR * size for i in axes for j in axes)

    @property
    def in_place(self) -> bool:
        """True if no part of the transform is large enough to be mentioned."""
        return self.words == IN_PLACE

    @property
    def words(self) -> str:
        """The transform in words: "mirrored left-right, rotated 11.4 degrees, moved 4.0 mm", or "in place"."""
        parts = []
        mirrored = [name for name, flipped in zip(DIRECTIONS, self.flips, strict=False) if flipped]
        if mirrored:
            parts.append(f"mirrored {' and '.join(mirrored)}")
        if self.degrees >= LEAST_DEGREES:
            parts.append(f"rotated {self.degrees:.1f} degrees")
        if abs(self.scale - 1) >= LEAST_SCALE:
            parts.append(f"scaled to {100 * self.scale:.0f} %")
        if self.sheared:
            parts.append("sheared")
        distance = math.hypot(*self.translation_mm)
        if distance >= LEAST_MM:
            parts.append(f"moved {distance:.1f} mm")
        if self.elastic_mm >= LEAST_MM:
            parts.append(f"warped by up to {self.elastic_mm:.1f} mm")
        return ", ".join(parts) or IN_PLACE
