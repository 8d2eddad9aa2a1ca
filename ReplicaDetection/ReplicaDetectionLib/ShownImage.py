"""ShownImage: an image of the pair in its row, with its present name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ReplicaDetectionLib.CasePair import CaseImage


@dataclass
class ShownImage:
    """`role` is "synthetic" or "training"; `name` shows the role except while blinded; `volume` is its node."""

    role: str
    name: str
    image: CaseImage
    volume: Any

    @property
    def centre(self) -> tuple[float, float, float]:
        """The middle of the image in its own file's mm RAS+."""
        middle = [(n - 1) / 2 for n in self.image.array.shape]
        x, y, z = (self.image.affine @ np.array([*middle, 1.0]))[:3]
        return float(x), float(y), float(z)
