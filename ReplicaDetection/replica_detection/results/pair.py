"""A synthetic image and its nearest training case on one grid, to be shown side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pair:
    """Two prepared images of one shape with values in [0, 1].

    (X, Y, Z) runs along R, A and S; a 2D image is (X, Y) with X along the row and Y downwards, as image files store it.
    `spacing` is the edge length of a voxel along each axis, in mm. The masks lie on the grid of the images, any label
    above 0 counts; None or all zero: there is none. Raises ValueError where the shapes differ, are empty or are neither
    2D nor 3D, or where the spacing does not fit them.
    """

    synthetic: np.ndarray
    training: np.ndarray
    spacing: tuple[float, ...]
    synthetic_mask: np.ndarray | None = None
    training_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.synthetic.shape
        if shape != self.training.shape or len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(f"a pair needs two images of one 2D or 3D shape, got {shape} and {self.training.shape}")
        if len(self.spacing) != len(shape) or not all(0 < s < float("inf") for s in self.spacing):
            raise ValueError(
                f"spacing {self.spacing} does not fit the shape {shape}: one positive number of mm per axis"
            )
        for mask in self._stored:
            if mask is not None and mask.shape != shape:
                raise ValueError(f"a mask needs the shape of its image, got {mask.shape} and {shape}")

    @property
    def masks(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The synthetic and the training mask as bool; None for one that is missing or empty."""
        synthetic, training = (None if m is None or not (m > 0).any() else m > 0 for m in self._stored)
        return synthetic, training

    @property
    def _stored(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        return self.synthetic_mask, self.training_mask
