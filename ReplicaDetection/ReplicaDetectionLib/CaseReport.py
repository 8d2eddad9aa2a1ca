"""CaseReport: one case as files: the scene (.mrb) and a page (.html) with pictures, measures and the rating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.ratings import Rating


class CaseReport:
    """Writes what is on screen."""

    def __init__(self, scene: Any):
        raise NotImplementedError

    def write(self, folder: Path, pictures: dict[str, np.ndarray], rating: Rating | None = None) -> tuple[Path, Path]:
        """Writes `<case>.mrb` and `<case>.html` into a folder (made if missing); returns both paths.

        Args:
            pictures: title -> (H, W, 3) uint8, as `grabWindow` gives them.

        Raises:
            InputError: a file cannot be written.
        """


def grabWindow(renderWindow: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a vtkRenderWindow, first row on top."""
