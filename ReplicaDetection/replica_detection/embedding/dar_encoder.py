"""The encoder of Dar et al. (Nat. Biomed. Eng. 2025, doi 10.1038/s41551-025-01468-8) as a network.

Importing this module imports torch; `embedding/architectures.py` does so when an encoder is built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from replica_detection.errors import ConfigurationError

# Voxels along each axis of the last grid; channels of the first stage, and their largest number.
LAST_GRID, FIRST_CHANNELS, MOST_CHANNELS = 4, 32, 1024


def dar_size(grid: Sequence[int], largest: int) -> tuple[int, ...]:
    """Input size of `DarEncoder` for images on `grid`: 4 times the nearest power of 2, from 8 to `largest` voxels."""
    return tuple(min(largest, LAST_GRID * 2 ** max(1, round(math.log2(max(n, 1) / LAST_GRID)))) for n in grid)


class Residual(nn.Module):
    """Two 3-wide convolutions, each after GroupNorm and SiLU, added to their input; the shape stays."""

    def __init__(self, channels: int, dimensions: int):
        super().__init__()
        self.block = nn.Sequential(
            _norm(channels),
            nn.SiLU(),
            _same_size(channels, channels, dimensions),
            _norm(channels),
            nn.SiLU(),
            _same_size(channels, channels, dimensions),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class DarEncoder(nn.Module):
    """The encoder in the authors' VQ-GAN code, for images (B, 1, size) in 2D or 3D.

    A 3-wide convolution, then stages: a 4-wide convolution that halves each axis still above 4 voxels, and a residual
    block. Channels double from `first_channels` to at most 1024. All convolutions use GroupNorm and replicated borders.
    On the 4^n grid follow a 1-wide convolution to 8 channels, 128 numbers, ReLU, dropout, and `dimensions` numbers.

    Returns the features after each stage, and the vector (B, dimensions) last.

    Args:
        size: 2 or 3 axis lengths, each 4 times a power of 2.
        dimensions: numbers of the vector.
        dropout: 0.5 in the published encoder.
        normalized: give each number mean 0 and variance 1 over the training images; not in the published encoder.
        first_channels: channels of the first stage.

    Raises:
        ConfigurationError: a size of another form.
    """

    def __init__(
        self,
        size: Sequence[int],
        dimensions: int,
        dropout: float = 0.5,
        normalized: bool = False,
        first_channels: int = FIRST_CHANNELS,
    ):
        super().__init__()
        axes = len(size)
        if axes not in (2, 3) or any(n < LAST_GRID or math.log2(n / LAST_GRID) % 1 for n in size):
            raise ConfigurationError(f"the size must be 2 or 3 numbers of 4 times a power of 2, found {tuple(size)}")
        halvings = [round(math.log2(n / LAST_GRID)) for n in size]
        channels = first_channels // 2
        self.first = _same_size(1, channels, axes)
        self.stages = nn.ModuleList()
        for stage in range(max(halvings)):
            # The longest axes are halved first, so that all reach 4 together.
            strides = [2 if max(halvings) - stage <= h else 1 for h in halvings]
            wider = min(2 * channels, MOST_CHANNELS)
            self.stages.append(nn.Sequential(_halving(channels, wider, strides), Residual(wider, axes)))
            channels = wider
        self.last = nn.Sequential(_norm(channels), nn.SiLU(), _convolution(axes)(channels, 8, 1))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(8 * LAST_GRID**axes, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, dimensions),
            nn.BatchNorm1d(dimensions, affine=False) if normalized else nn.Identity(),
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.first(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return [*features, self.head(self.last(x))]


def _convolution(axes: int) -> Any:
    return nn.Conv3d if axes == 3 else nn.Conv2d


def _same_size(inputs: int, outputs: int, axes: int) -> nn.Module:
    """A 3-wide convolution that keeps the size."""
    return _convolution(axes)(inputs, outputs, 3, padding=1, padding_mode="replicate")


def _halving(inputs: int, outputs: int, strides: Sequence[int]) -> nn.Module:
    """A convolution that halves the axes with stride 2; the others keep their size."""
    kernel = [4 if s == 2 else 3 for s in strides]
    return _convolution(len(strides))(inputs, outputs, kernel, strides, padding=1, padding_mode="replicate")


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(32, channels), channels)
