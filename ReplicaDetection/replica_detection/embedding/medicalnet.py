"""Embedders with MedicalNet (Chen, Ma and Zheng, arXiv 1904.00625), the 3D ResNet-50 that RELICT uses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from replica_detection.embedding.base import register
from replica_detection.embedding.torch_embedder import (
    FileEmbedder,
    load_checkpoint,
    pooled,
    sha256_of,
)
from replica_detection.errors import InputError
from replica_detection.networks.device import pick_device
from replica_detection.networks.weights import read_bytes

if TYPE_CHECKING:
    import torch

SIDE = 128
STAGES = ("layer1", "layer2", "layer3", "layer4")
# Other tensors in the published files: heads for their own tasks.
OTHER_HEADS = ("fc.", "conv_seg.")


@dataclass(frozen=True)
class MedicalNet(FileEmbedder):
    """The last stage of MedicalNet's ResNet-50 over the whole image, resized to a cube of 128 voxels.

    Weights: `resnet_50.pth` or `resnet_50_23dataset.pth` as published, or the same tensors as safetensors. The network
    is MONAI's, with the stride of 2 in its first convolution that it was trained with, so that 128^3 voxels give
    RELICT's grid 2048 x 4 x 4 x 4. Intensities: z-score over the voxels above 0, the others 0.

    Layers for `memorization_index`: the mean over space after each of the four stages.
    """

    pooling: ClassVar[str]
    version = 1

    @property
    def size(self) -> tuple[int, ...]:
        return (SIDE, SIDE, SIDE)

    @property
    def intensity(self) -> str:
        return "z-score"

    @cached_property
    def network(self) -> torch.nn.Module:
        return _with_weights(Path(self.path), self.sha256).to(pick_device("auto")).eval()

    def outputs(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        network: Any = self.network
        x = network.maxpool(network.act(network.bn1(network.conv1(image))))
        layers = []
        for stage in STAGES:
            x = getattr(network, stage)(x)
            layers.append(pooled(x, "gap"))
        return pooled(x, self.pooling), layers


@register
class MedicalNetGrid(MedicalNet):
    """The whole grid 2048 x 4 x 4 x 4 (RELICT). It is sensitive to position, so a shifted copy is farther away."""

    kind = "medicalnet_grid"
    pooling = "flatten"


@register
class MedicalNetGap(MedicalNet):
    """The mean over the grid, 2048 numbers: tolerant of shifts, less specific."""

    kind = "medicalnet_gap"
    pooling = "gap"


def _with_weights(file: Path, sha256: str) -> torch.nn.Module:
    """The network with its weights. Raises InputError where the file does not hold them."""
    import torch

    data = read_bytes(file)
    if sha256_of(data) != sha256:
        raise InputError(file, "is not the file that the embedding was made with", "Put that one back")
    with torch.device("meta"):
        model = encoder()
    weights = {n: v for n, v in load_checkpoint(file, data).items() if not n.startswith(OTHER_HEADS)}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights and name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)  # older PyTorch did not store it; nothing reads it here
        stored = tuple(weights[name].shape) if name in weights else None
        if stored != shape:
            text = f"holds {name} of shape {stored}, MedicalNet's ResNet-50 has {shape}"
            raise InputError(file, text, "Give resnet_50_23dataset.pth or resnet_50.pth as published")
    if unknown := sorted(set(weights) - set(expected)):
        raise InputError(file, f"holds {unknown[0]}, which MedicalNet's ResNet-50 has not", "Give its published file")
    model.load_state_dict(weights, assign=True)
    return model.float()


def encoder() -> torch.nn.Module:
    """The ResNet-50 in MedicalNet's variant, with random weights."""
    from monai.networks.nets.resnet import resnet50

    variant: dict[str, Any] = {"shortcut_type": "B", "bias_downsample": False, "conv1_t_stride": 2}
    return resnet50(pretrained=False, spatial_dims=3, n_input_channels=1, feed_forward=False, **variant)
