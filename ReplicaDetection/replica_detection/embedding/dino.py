"""Embedder with DINO and DINOv2 vision transformers (Caron et al. 2021; Oquab et al. 2023) and their published weights.

Width, depth and patch size are read from the shapes of the weights; `embedding/vision_transformer.py` is the network.
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

    from replica_detection.embedding.vision_transformer import Shape

# Images are resized to about this side in pixels, a whole number of patches.
SIDE = 224
_ADVICE = "Give a DINO or DINOv2 backbone as published"


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

    from replica_detection.embedding.vision_transformer import VisionTransformer

    weights = {n: v.float() for n, v in weights.items() if not n.startswith(("head.", "mask_token"))}
    shape = _shape(file, weights)
    with torch.device("meta"):
        model = VisionTransformer(shape)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored = {name: tuple(value.shape) for name, value in weights.items()}
    for name in dict.fromkeys([*expected, *stored]):
        if expected.get(name) != stored.get(name):
            shapes = f"shape {stored.get(name)}, a DINO transformer of its width has {expected.get(name)}"
            raise InputError(file, f"holds {name} of {shapes}", _ADVICE)
    model.load_state_dict(weights, assign=True)
    return model


def _shape(file: Path, weights: dict[str, torch.Tensor]) -> Shape:
    """Sizes of the transformer, from the shapes of its weights. Raises InputError where they are of another network."""
    from replica_detection.embedding.vision_transformer import HEAD_WIDTH, Shape

    try:
        width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
        positions = weights["pos_embed"].shape[1]
        registers = weights["register_tokens"].shape[1] if "register_tokens" in weights else 0
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(file, f"holds no DINO transformer (lacks {error})", _ADVICE) from error
    if channels != 3 or width % HEAD_WIDTH or math.isqrt(positions - 1) ** 2 != positions - 1:
        raise InputError(file, f"holds a transformer of width {width} for {channels} channels", _ADVICE)
    return Shape(width, patch, depth, hidden, positions, registers, scaled="blocks.0.ls1.gamma" in weights)
