"""Encoders that may be named in a file: some of MONAI's, and the small one of Dar et al."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from replica_detection.errors import ConfigurationError
from replica_detection.networks.weights import last_line

if TYPE_CHECKING:
    import torch

# Only these are ever made from what a file says.
OF_MONAI = (
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "DenseNet121",
    "DenseNet169",
    "SEResNet50",
    "ViT",
    "UNet",
    "SegResNet",
    "SwinUNETR",
)
ENCODERS = ("DarEncoder", *OF_MONAI)
# The grid that DarEncoder ends on, and the channels of its first stage and at most.
LAST_GRID, FIRST_CHANNELS, MOST_CHANNELS = 4, 32, 1024


def build_encoder(architecture: dict[str, Any]) -> torch.nn.Module:
    """An encoder of one of `ENCODERS`, its weights at random.

    Raises:
        ConfigurationError: another class, or arguments that it does not take.
    """
    name, arguments = architecture.get("class"), architecture.get("arguments")
    if name not in ENCODERS or not isinstance(arguments, dict):
        raise ConfigurationError(f"the encoder's class is {name!r}, known: {', '.join(ENCODERS)}")
    if arguments.get("pretrained"):
        raise ConfigurationError("an encoder's weights come from its file: leave out 'pretrained'")
    try:
        if name == "DarEncoder":
            return dar_encoder(**arguments)
        from monai.networks import nets

        return getattr(nets, name)(**arguments)
    except Exception as error:  # whatever is raised for an argument that cannot be used
        raise ConfigurationError(f"the encoder {name} takes no such arguments ({last_line(error)})") from error


def dar_size(grid: Sequence[int], most: int) -> tuple[int, ...]:
    """For each axis the size that `DarEncoder` gets: 4 times the power of 2 nearest to it, from 8 to `most`."""
    return tuple(min(most, LAST_GRID * 2 ** max(1, round(math.log2(max(n, 1) / LAST_GRID)))) for n in grid)


def dar_encoder(
    size: Sequence[int],
    dimensions: int,
    dropout: float = 0.5,
    normalized: bool = False,
    first_channels: int = FIRST_CHANNELS,
) -> torch.nn.Module:
    """The encoder of Dar et al. (Nat. Biomed. Eng. 2025; code of its VQ-GAN encoder) for images of `size`, 2D or 3D.

    A 3-wide convolution, then stages of a 4-wide one that halves the axes still above 4 voxels and a residual block,
    channels doubling from `first_channels` to 1024 at most, all with GroupNorm and replicated borders; on the 4^n grid
    a 1-wide convolution to 8 channels, then 128 numbers, ReLU, dropout, and `dimensions` numbers. The published one has
    a dropout of 0.5 and ends there; with `normalized` each number has mean 0 and variance 1 over the images trained on.
    """
    from torch import nn

    spatial = len(size)
    if spatial not in (2, 3) or any(n < LAST_GRID or math.log2(n / LAST_GRID) % 1 for n in size):
        raise ConfigurationError(f"the size must be 2 or 3 numbers of 4 times a power of 2, found {tuple(size)}")
    conv: Any = nn.Conv3d if spatial == 3 else nn.Conv2d

    def same(inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
        return conv(inputs, outputs, kernel, padding=kernel // 2, padding_mode="replicate")

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(math.gcd(32, channels), channels)

    class Residual(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.block = nn.Sequential(
                norm(channels), nn.SiLU(), same(channels, channels), norm(channels), nn.SiLU(), same(channels, channels)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.block(x)

    class DarEncoder(nn.Module):
        """Gives the features after each stage, and the vector last."""

        def __init__(self) -> None:
            super().__init__()
            halvings = [round(math.log2(n / LAST_GRID)) for n in size]
            channels = first_channels // 2
            self.first = same(1, channels)
            self.stages = nn.ModuleList()
            for stage in range(max(halvings)):
                # The longest axes are halved first, so that all reach 4 together.
                strides = [2 if max(halvings) - stage <= h else 1 for h in halvings]
                wider = min(2 * channels, MOST_CHANNELS)
                kernel = [4 if s == 2 else 3 for s in strides]
                down = conv(channels, wider, kernel, strides, padding=1, padding_mode="replicate")
                self.stages.append(nn.Sequential(down, Residual(wider)))
                channels = wider
            self.last = nn.Sequential(norm(channels), nn.SiLU(), conv(channels, 8, 1))
            self.head = nn.Sequential(
                nn.Flatten(),
                nn.Linear(8 * LAST_GRID**spatial, 128),
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

    return DarEncoder()
