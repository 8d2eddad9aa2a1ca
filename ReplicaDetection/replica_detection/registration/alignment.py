"""How a training image has to be moved to lie on another one. Imports with the standard library alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

DIRECTIONS = ("left-right", "front-back", "head-foot")
# What is smaller than this is not worth a word.
IN_PLACE = "in place"
LEAST_DEGREES, LEAST_MM, LEAST_SCALE, LEAST_SHEAR = 0.5, 0.5, 0.01, 0.05


@dataclass(frozen=True)
class Alignment:
    """The transform found between a training image and the image that it was compared with.

    `matrix` (row-major 4 x 4) takes a point of the training file to the point of the query file where the same tissue
    lies, both in RAS mm; it is what a viewer puts over the training image. The other fields are the same
    transform in parts: mirrored axes (R, A, S) first, then scale, then rotation about R, A and S in degrees (that
    order, right-handed), both about the centre of the field of view, then translation in mm. `correlation` is that of
    the aligned pair over their overlap, `correlation_before` that of the pair as it is; `overlap` is the share of
    the grid that both images cover; `elastic_mm` is the largest local displacement, 0 where none was looked for.
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
        """Angle of the whole rotation, whatever its axis."""
        a, b, c = (math.radians(r) / 2 for r in (*self.rotation_degrees, 0.0, 0.0)[:3])
        half = math.cos(a) * math.cos(b) * math.cos(c) + math.sin(a) * math.sin(b) * math.sin(c)
        return math.degrees(2 * math.acos(min(1.0, abs(half))))

    @property
    def sheared(self) -> bool:
        """Whether angles or proportions change: an image was turned on its voxels as if these were cubes. The parts
        then describe the nearest rotation, and `matrix` the whole."""
        linear = [row[:3] for row in self.matrix[:3]]
        flat = all(linear[2][i] == linear[i][2] == 0 for i in range(2)) and abs(linear[2][2]) == 1
        axes = range(2 if flat else 3)
        gram = [[sum(linear[k][i] * linear[k][j] for k in axes) for j in axes] for i in axes]
        size = sum(gram[i][i] for i in axes) / len(axes)
        return any(abs(gram[i][j] - (size if i == j else 0)) > LEAST_SHEAR * size for i in axes for j in axes)

    @property
    def in_place(self) -> bool:
        """Whether there is nothing worth a word."""
        return self.words == IN_PLACE

    @property
    def words(self) -> str:
        """In a clinician's words: "mirrored left-right, rotated 11.4 degrees, moved 4.0 mm"; "in place" for nothing."""
        said = []
        mirrored = [name for name, flipped in zip(DIRECTIONS, self.flips, strict=False) if flipped]
        if mirrored:
            said.append(f"mirrored {' and '.join(mirrored)}")
        if self.degrees >= LEAST_DEGREES:
            said.append(f"rotated {self.degrees:.1f} degrees")
        if abs(self.scale - 1) >= LEAST_SCALE:
            said.append(f"scaled to {100 * self.scale:.0f} %")
        if self.sheared:
            said.append("sheared")
        moved = math.hypot(*self.translation_mm)
        if moved >= LEAST_MM:
            said.append(f"moved {moved:.1f} mm")
        if self.elastic_mm >= LEAST_MM:
            said.append(f"warped by up to {self.elastic_mm:.1f} mm")
        return ", ".join(said) or IN_PLACE
