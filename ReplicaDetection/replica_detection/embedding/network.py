"""Embedders with an encoder from a file: TorchScript, or safetensors of one of MONAI's networks; and encoders trained
by this program."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection.embedding.architectures import ENCODERS, build_encoder
from replica_detection.embedding.base import register
from replica_detection.embedding.torch_embedder import (
    INTENSITIES,
    FileEmbedder,
    file_of,
    pooled,
    require_weights,
    sha256_of,
)
from replica_detection.errors import ConfigurationError, IndexFormatError, InputError
from replica_detection.networks.device import pick_device
from replica_detection.networks.weights import (
    SIDECAR,
    description_of,
    kind_of,
    last_line,
    read_bytes,
    torchscript,
    weights_file,
    with_weights,
)

if TYPE_CHECKING:
    import torch

POOLINGS = ("gap", "flatten")


@dataclass(frozen=True)
class Description:
    """Description of an encoder, stored with its weights.

    Args:
        size: voxels along each axis that images are resized to; 2 or 3 numbers.
        intensity: `zero-one`, `minus-one-one`, `z-score` (over the voxels above 0) or `imagenet` (three channels).
        pooling: `gap` (mean over space) or `flatten`, where the encoder gives feature maps.
        architecture: `{"class": ..., "arguments": {...}}` for safetensors; None for TorchScript.
        training: `contrastive` or `deepssim` where this program trained the encoder, else "".
    """

    size: tuple[int, ...]
    intensity: str = "zero-one"
    pooling: str = "gap"
    architecture: dict[str, Any] | None = None
    training: str = ""

    @classmethod
    def of(cls, file: Path, kind: str, described: dict[str, Any]) -> Description:
        """The description read from `described`. Raises InputError for an entry that is missing or out of range."""
        advice = f"Correct the file's header, or the description in {SIDECAR} beside it"
        size = described.get("size")
        if not isinstance(size, list) or len(size) not in (2, 3) or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(file, f"says that its encoder takes size {size!r}, expected 2 or 3 whole numbers", advice)
        intensity, pooling = described.get("intensity", "zero-one"), described.get("pooling", "gap")
        if intensity not in INTENSITIES or pooling not in POOLINGS:
            known = f"known: {', '.join(INTENSITIES)}; {', '.join(POOLINGS)}"
            raise InputError(file, f"asks for intensity {intensity!r}, pooling {pooling!r} ({known})", advice)
        architecture = described.get("architecture")
        if kind == "safetensors" and not isinstance(architecture, dict):
            raise InputError(
                file,
                "holds weights, but not of which encoder",
                f"Name class and arguments in {SIDECAR} beside it, class one of {', '.join(ENCODERS)}",
            )
        built = architecture if kind == "safetensors" else None
        return cls(tuple(size), intensity, pooling, built, str(described.get("training", "")))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "size": list(self.size)}


@register
@dataclass(frozen=True)
class NetworkEmbedder(FileEmbedder):
    """A trained encoder, 2D or 3D, from the user's file, for instance a foundation model.

    The file is TorchScript (**a program, which runs**: use files whose origin is known) or safetensors. The header of
    a safetensors file (`network`), or a JSON file beside either kind (same name with .json, or `network.json`), holds
    a `Description`. Pickled checkpoints are refused.

    The encoder takes (1, C, size) float32 and gives a vector (1, D), feature maps (1, C, grid) or tokens (1, N, D),
    which are pooled. Where it gives several of them, the last is the vector and all are layers for
    `memorization_index`.
    """

    description: Description
    kind = "network"
    version = 1

    @classmethod
    def make(cls, argument: str) -> NetworkEmbedder:
        if not argument:
            require_weights(argument, cls.kind)
        return cls._from(Path(argument))

    @classmethod
    def restore(cls, settings: dict[str, Any], state: bytes | None, folder: Path) -> NetworkEmbedder:
        return cls._from(file_of(settings, folder))

    @classmethod
    def _from(cls, path: Path) -> NetworkEmbedder:
        file = weights_file(path)
        data = read_bytes(file)
        kind = kind_of(file, data)
        description = Description.of(file, kind, description_of(path, file, data))
        embedder = cls(str(path.resolve()), sha256_of(data), description)
        embedder.network  # noqa: B018  a file that cannot be loaded is refused now, not at the first image
        return embedder

    @property
    def size(self) -> tuple[int, ...]:
        return self.description.size

    @property
    def intensity(self) -> str:
        return self.description.intensity

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.description.to_json()}

    @cached_property
    def network(self) -> torch.nn.Module:
        return self._built(weights_file(Path(self.path)), read_bytes(weights_file(Path(self.path))))

    def _built(self, file: Path, data: bytes) -> torch.nn.Module:
        if sha256_of(data) != self.sha256:
            raise InputError(file, "is not the file that the embedding was made with", "Put that one back")
        architecture = self.description.architecture
        model = with_weights(file, data, architecture, build_encoder) if architecture else torchscript(file, data)
        return model.to(pick_device("auto")).eval()

    def outputs(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        try:
            outputs = tensors(self.network(image))
        except Exception as error:  # a foreign program may raise anything
            text = f"the encoder does not take an image of shape {tuple(image.shape)} ({last_line(error)})"
            raise ConfigurationError(f"{self.path}: {text}; correct its description") from error
        if not outputs or any(t.ndim < 2 or t.shape[0] != 1 for t in outputs):
            shapes = [tuple(t.shape) for t in outputs]
            raise ConfigurationError(f"{self.path}: the encoder gives {shapes}, expected tensors (1, ...)")
        vector = pooled(outputs[-1], self.description.pooling)
        return vector, [pooled(t, "gap") for t in outputs] if len(outputs) > 1 else [vector]


@dataclass(frozen=True)
class TrainedEmbedder(NetworkEmbedder):
    """An encoder that `train_encoder` trained on the training cohort; the index keeps a copy of it."""

    path: str = ""
    weights_sha256: str = ""
    description: Description = field(default_factory=lambda: Description((8, 8, 8)))
    data: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def _from(cls, path: Path) -> TrainedEmbedder:
        file = weights_file(path)
        return cls._of(file, read_bytes(file))

    @classmethod
    def restore(cls, settings: dict[str, Any], state: bytes | None, folder: Path) -> TrainedEmbedder:
        if state is None:
            raise IndexFormatError(folder, f"lacks the encoder of embedding '{cls.kind}'", "Build the index again")
        return cls._of(folder, state)

    @classmethod
    def _of(cls, file: Path, data: bytes) -> TrainedEmbedder:
        kind = kind_of(file, data)
        description = Description.of(file, kind, description_of(file, file, data))
        if description.training != cls.kind:
            trained = f"an encoder trained as '{description.training}'" if description.training else "an encoder"
            reason = f"holds {trained}, not one of embedding '{cls.kind}'"
            raise InputError(file, reason, f"Give the output of an encoder training of kind '{cls.kind}'")
        embedder = cls("", sha256_of(data), description, data)
        embedder.network  # noqa: B018  a file that cannot be loaded is refused now, not at the first image
        return embedder

    @property
    def state(self) -> bytes | None:
        return self.data

    @property
    def saw_training(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in super().settings().items() if k != "path"}

    @cached_property
    def network(self) -> torch.nn.Module:
        return self._built(Path(self.kind), self.data)


@register
class Contrastive(TrainedEmbedder):
    """Encoder of Dar et al. (Nat. Biomed. Eng. 2025): views of one image are close, views of different images apart."""

    kind = "contrastive"


@register
class DeepSsim(TrainedEmbedder):
    """Encoder of Scardace et al. (DeepSSIM, arXiv 2509.16582): the cosine of two images estimates their SSIM."""

    kind = "deepssim"


def tensors(output: Any) -> list[torch.Tensor]:
    """All tensors in the output of a network, in order."""
    import torch

    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [t for part in output for t in tensors(part)] if isinstance(output, (list, tuple)) else []
