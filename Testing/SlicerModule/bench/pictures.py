"""What tests ask of pictures, and where pictures are kept for people to look at."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

OUTPUT = Path(os.environ.get("REPLICA_DETECTION_PICTURES") or Path(__file__).resolve().parent.parent / "output")


def keep(picture: np.ndarray, name: str) -> Path:
    """Writes a picture as PNG into the folder of test output."""
    from PIL import Image

    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / f"{name}.png"
    Image.fromarray(picture).save(path)
    return path


def near(picture: np.ndarray, colour, tolerance: int = 12) -> np.ndarray:
    """(H, W) bool: where a picture has a colour (0-255), up to `tolerance` in each channel."""
    return (np.abs(picture.astype(int) - np.asarray(colour)) <= tolerance).all(axis=-1)


def around(picture: np.ndarray, pixel: tuple[int, int], radius: int = 2) -> np.ndarray:
    """The square of a picture around a pixel (row, column), as (N, 3)."""
    row, column = pixel
    part = picture[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
    return part.reshape(-1, 3)
