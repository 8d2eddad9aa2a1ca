"""DINO and DINOv2 vision transformers (Caron et al. 2021; Oquab et al. 2023) from their published weights.

The network is written here in plain PyTorch, so that neither timm nor torchvision is needed; names of the parameters
are those of the published files. What the files' shapes tell (width, depth, patch) is read from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection.embedding.base import register
from replica_detection.embedding.torch_embedder import FileEmbedder, load_checkpoint, sha256_of
from replica_detection.errors import InputError
from replica_detection.networks.device import pick_device
from replica_detection.networks.weights import read_bytes

if TYPE_CHECKING:
    import torch

# Images are resized to about this side, a whole number of patches.
SIDE = 224
HEAD_WIDTH = 64  # of all published DINO transformers
# Of the layers' tokens, after a third, two thirds and all of the blocks, as METHODS' blocks 3, 7 and 11 of 12.
DEPTHS = (1 / 3, 2 / 3, 1.0)


@register
@dataclass(frozen=True)
class Dino(FileEmbedder):
    """The class token of a DINO or DINOv2 transformer over a 2D image or a slice, resized to about 224 x 224.

    Weights: `dino_deitsmall16_pretrain.pth`, `dino_vitbase8_pretrain.pth`, `dinov2_vits14_pretrain.pth`,
    `..._reg4_pretrain.pth` and their like, or the same tensors as safetensors. Grey values become three equal channels
    with ImageNet's mean and standard deviation. Truong et al. (ISBI 2024) vote by such vectors of slices.

    Layers for `memorization_index`: the mean of the patch tokens after a third, two thirds and all of the blocks.
    """

    kind = "dino"
    version = 1

    @property
    def size(self) -> tuple[int, ...]:
        network: Any = self.network
        return (round(SIDE / network.patch) * network.patch,) * 2

    @property
    def intensity(self) -> str:
        return "imagenet"

    @cached_property
    def network(self) -> torch.nn.Module:
        file = Path(self.path)
        data = read_bytes(file)
        if sha256_of(data) != self.sha256:
            raise InputError(file, "is not the file that the embedding was made with", "Put that one back")
        return vision_transformer(file, load_checkpoint(file, data)).to(pick_device("auto")).eval()

    def outputs(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        token, layers = self.network(image)
        return token[0], [layer[0] for layer in layers]


def vision_transformer(file: Path, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The transformer that the shapes of the weights describe.

    Raises:
        InputError: names or shapes that are not those of a DINO or DINOv2 transformer.
    """
    import torch

    weights = {n: v.float() for n, v in weights.items() if not n.startswith(("head.", "mask_token"))}
    advice = "Give a DINO or DINOv2 backbone as published"
    try:
        width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
        positions = weights["pos_embed"].shape[1]
        registers = weights["register_tokens"].shape[1] if "register_tokens" in weights else 0
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(file, f"holds no DINO transformer (lacks {error})", advice) from error
    if channels != 3 or width % HEAD_WIDTH or math.isqrt(positions - 1) ** 2 != positions - 1:
        raise InputError(file, f"holds a transformer of width {width} for {channels} channels", advice)
    scaled = "blocks.0.ls1.gamma" in weights
    with torch.device("meta"):
        model = _transformer(width, patch, depth, hidden, positions, registers, scaled)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in dict.fromkeys([*wanted, *found]):
        if wanted.get(name) != found.get(name):
            text = f"holds {name} of shape {found.get(name)}, a DINO transformer of its width has {wanted.get(name)}"
            raise InputError(file, text, advice)
    model.load_state_dict(weights, assign=True)
    return model


def _transformer(
    width: int, patch: int, depth: int, hidden: int, positions: int, registers: int, scaled: bool
) -> torch.nn.Module:
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, tokens, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, width // HEAD_WIDTH, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
            weighed = ((q * HEAD_WIDTH**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.proj(weighed.transpose(1, 2).reshape(batch, tokens, width))

    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gamma

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.attn, self.mlp = Attention(), Perceptron()
            self.ls1: nn.Module = Scale() if scaled else nn.Identity()
            self.ls2: nn.Module = Scale() if scaled else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.ls1(self.attn(self.norm1(x)))
            return x + self.ls2(self.mlp(self.norm2(x)))

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, width, patch, patch)

    class VisionTransformer(nn.Module):
        """Gives the class token (B, width), and for each of DEPTHS the mean patch token (B, width)."""

        def __init__(self) -> None:
            super().__init__()
            self.patch = patch
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
            if registers:
                self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
            self.patch_embed = Patches()
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.norm = nn.LayerNorm(width, eps=1e-6)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            maps = self.patch_embed.proj(images)
            places = self.positions(maps.shape[2], maps.shape[3])
            first = (self.cls_token + places[:, :1]).expand(len(images), -1, -1)
            parts = [first, maps.flatten(2).transpose(1, 2) + places[:, 1:]]
            if registers:
                parts.insert(1, self.register_tokens.expand(len(images), -1, -1))
            x = torch.cat(parts, 1)
            wanted = [max(1, round(d * depth)) for d in DEPTHS]
            layers = []
            for number, block in enumerate(self.blocks, 1):
                x = block(x)
                layers += [self.norm(x)[:, 1 + registers :].mean(1)] * wanted.count(number)
            return self.norm(x)[:, 0], layers

        def positions(self, rows: int, columns: int) -> torch.Tensor:
            """The stored position tokens, interpolated to another grid of patches (bicubic, as the authors do)."""
            side = math.isqrt(positions - 1)
            if (rows, columns) == (side, side):
                return self.pos_embed
            grid = self.pos_embed[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
            grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
            return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    return VisionTransformer()
