"""The vision transformer of DINO and DINOv2 (Caron et al. 2021; Oquab et al. 2023), in plain PyTorch.

Neither timm nor torchvision is needed. Parameters have the names of the published files. Importing this module imports
torch; `embedding/dino.py` does so when the network is first used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

HEAD_WIDTH = 64  # of all published DINO transformers
# Depths of the layers, as a share of all blocks; blocks 3, 7 and 11 of 12 in Deo et al. (arXiv 2602.13066).
DEPTHS = (1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer.

    Args:
        width: numbers per token, a multiple of `HEAD_WIDTH`.
        patch: side of a patch in pixels.
        depth: number of blocks.
        hidden: width of the hidden layer of each block's perceptron.
        positions: stored position tokens, 1 (class) plus a square number.
        registers: register tokens.
        scaled: each block scales its two branches (DINOv2's LayerScale).
    """

    width: int
    patch: int
    depth: int
    hidden: int
    positions: int
    registers: int
    scaled: bool


class Attention(nn.Module):
    """Self-attention with heads of width 64, (B, N, width) to the same shape."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        heads = self.width // HEAD_WIDTH
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        attended = ((q * HEAD_WIDTH**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, self.width))


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """One learnt factor for each of the `width` numbers."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and perceptron, each after a LayerNorm and added to its input."""

    def __init__(self, shape: Shape):
        super().__init__()
        width = shape.width
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), Perceptron(width, shape.hidden)
        self.ls1: nn.Module = LayerScale(width) if shape.scaled else nn.Identity()
        self.ls2: nn.Module = LayerScale(width) if shape.scaled else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Holds the convolution that turns patches into tokens, under the published name."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class VisionTransformer(nn.Module):
    """Transformer over (B, 3, H, W) images, H and W multiples of the patch.

    Returns the class token (B, width), and for each of `DEPTHS` the mean patch token (B, width).
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.patch = shape, shape.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.positions, shape.width))
        if shape.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, shape.registers, shape.width))
        self.patch_embed = PatchEmbedding(shape.width, shape.patch)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        registers = self.shape.registers
        maps = self.patch_embed.proj(images)
        positions = self.position_tokens(maps.shape[2], maps.shape[3])
        first = (self.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        parts = [first, maps.flatten(2).transpose(1, 2) + positions[:, 1:]]
        if registers:
            parts.insert(1, self.register_tokens.expand(len(images), -1, -1))
        x = torch.cat(parts, 1)
        depths = [max(1, round(d * self.shape.depth)) for d in DEPTHS]
        layers = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            layers += [self.norm(x)[:, 1 + registers :].mean(1)] * depths.count(number)
        return self.norm(x)[:, 0], layers

    def position_tokens(self, rows: int, columns: int) -> torch.Tensor:
        """(1, 1 + rows * columns, width): the stored position tokens, interpolated to a grid of patches (bicubic, as
        the authors do)."""
        side = math.isqrt(self.shape.positions - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, side, side, self.shape.width).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)
