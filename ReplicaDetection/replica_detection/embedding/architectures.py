"""Encoder networks that a file may name: some of MONAI's, and the small one of Dar et al."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replica_detection.errors import ConfigurationError
from replica_detection.networks.weights import last_line

if TYPE_CHECKING:
    import torch

# No other class is built from a description in a file.
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


def build_encoder(architecture: dict[str, Any]) -> torch.nn.Module:
    """An encoder of one of `ENCODERS` with random weights.

    Args:
        architecture: `class`, a name in `ENCODERS`, and `arguments`, its keyword arguments.

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
            from replica_detection.embedding.dar_encoder import DarEncoder

            return DarEncoder(**arguments)
        from monai.networks import nets

        return getattr(nets, name)(**arguments)
    except Exception as error:  # whatever is raised for an argument that cannot be used
        raise ConfigurationError(f"the encoder {name} takes no such arguments ({last_line(error)})") from error
