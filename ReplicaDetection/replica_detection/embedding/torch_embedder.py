"""Shared parts of embedders with a torch network: input, determinism, pooling, and checks of weights files."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.embedding.base import Embedder
from replica_detection.embedding.resampling import resampled
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.paths import require_file
from replica_detection.networks.weights import last_line, read_bytes

if TYPE_CHECKING:
    import torch

# Intensity ranges that networks take; prepared images lie in [0, 1].
INTENSITIES = ("zero-one", "minus-one-one", "z-score", "imagenet")
# Of the natural images that published 2D networks are trained on: red, green, blue.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TorchEmbedder(Embedder):
    """An embedder with a network: one image at a time, at a fixed size, without random numbers.

    On a GPU, convolutions run in float32 with deterministic algorithms. Vectors of one file from CPU and GPU agree to
    about 1e-5, so an exact copy is at distance 0 only where both vectors come from the same kind of device.
    """

    @property
    @abstractmethod
    def size(self) -> tuple[int, ...]:
        """Input size of the network in voxels, without batch and channel."""

    @property
    @abstractmethod
    def intensity(self) -> str:
        """Intensity range of the input, one of `INTENSITIES`."""

    @property
    @abstractmethod
    def network(self) -> torch.nn.Module:
        """The network in evaluation mode, on its device."""

    @abstractmethod
    def outputs(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Vector (D,) of one image (1, C, size), and its features at several depths, (D_l,) each."""

    def describe(self, images: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        return np.stack([self._one(image)[0] for image in images])

    def layers(self, images: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, ...]:
        per_image = [self._one(image)[1] for image in images]
        return tuple(np.stack(layer) for layer in zip(*per_image, strict=True))

    def _one(self, image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        import torch

        if image.ndim != len(self.size):
            raise ConfigurationError(f"embedding '{self.name}' takes {len(self.size)}D images, found {image.ndim}D")
        data = self.input(image)
        with torch.no_grad(), deterministic():
            vector, layers = self.outputs(data.to(next(self.network.parameters(), data).device))
        outputs = [vector, *layers]
        if not all(bool(torch.isfinite(output).all()) for output in outputs):
            raise ConfigurationError(f"embedding '{self.name}' gives NaN or infinite values; are its weights damaged?")
        first, *rest = [output.detach().float().cpu().numpy() for output in outputs]
        return first, rest

    def input(self, image: np.ndarray) -> torch.Tensor:
        """Input (1, C, size) float32 of one image; C is 3 for `imagenet`, else 1."""
        import torch

        data = torch.from_numpy(with_intensity(resampled(image, self.size), self.intensity))[None, None]
        if self.intensity != "imagenet":
            return data
        shape = (1, 3, *(1,) * image.ndim)
        mean, std = (torch.tensor(v).reshape(shape) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (data.expand(-1, 3, *self.size) - mean) / std


@dataclass(frozen=True)
class FileEmbedder(TorchEmbedder):
    """An embedder whose weights are a file outside the index, identified by its checksum."""

    path: str
    weights_sha256: str

    @classmethod
    def make(cls, argument: str) -> FileEmbedder:
        file = require_weights(argument, cls.kind)
        embedder = cls(str(file.resolve()), sha256_of(read_bytes(file)))
        embedder.network  # noqa: B018  a file that cannot be loaded is refused now, not at the first image
        return embedder

    @classmethod
    def restore(cls, settings: dict[str, Any], state: bytes | None, folder: Path) -> FileEmbedder:
        file = file_of(settings, folder)
        return cls(str(file), sha256_of(read_bytes(file)))

    @property
    def sha256(self) -> str:
        return self.weights_sha256

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "path": self.path}


def with_intensity(image: np.ndarray, intensity: str) -> np.ndarray:
    """The image, float32 in [0, 1], in another intensity range; the shape stays.

    `z-score` is over the voxels above 0; the others become 0. MedicalNet's own code puts random noise there, so that
    two runs differ. An image of zeros gives zeros.
    """
    if intensity == "minus-one-one":
        return 2 * image - 1
    if intensity != "z-score":
        return image
    inside = image > 0
    if not inside.any():
        return np.zeros_like(image)
    mean, std = float(image[inside].mean(dtype=np.float64)), float(image[inside].std(dtype=np.float64))
    return np.where(inside, (image - np.float32(mean)) / np.float32(max(std, 1e-6)), np.float32(0))


def pooled(features: torch.Tensor, pooling: str) -> torch.Tensor:
    """Vector (D,) of feature maps (1, C, grid), tokens (1, N, D) or (1, D): mean over space (`gap`), or all numbers
    (`flatten`)."""
    if pooling == "flatten" or features.ndim <= 2:
        return features.reshape(-1)
    return features.mean(1).reshape(-1) if features.ndim == 3 else features.flatten(2).mean(2).reshape(-1)


@contextmanager
def deterministic() -> Iterator[None]:
    """Convolutions on a GPU use the same algorithm each time, and full float32."""
    import torch

    flags = torch.backends.cudnn
    with flags.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def file_of(settings: dict[str, Any], folder: Path) -> Path:
    """File of the weights in stored settings: at its path, else in the index folder under the same name.

    Raises InputError where it is in neither place.
    """
    path = Path(settings["path"])
    for candidate in (path, folder / path.name):
        if candidate.exists():
            return candidate
    advice = f"Put them back there or into {folder}, or build the index again"
    raise InputError(path, "holds the weights of the index's embedding and is gone", advice)


def require_weights(path: str, kind: str) -> Path:
    """The file as a path. Raises ConfigurationError for an empty path, InputError where the file is missing."""
    if not path:
        raise ConfigurationError(f"embedding '{kind}' needs a file: {kind}:FILE")
    require_file(Path(path))
    return Path(path)


def load_checkpoint(file: Path, data: bytes) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, or of a published PyTorch checkpoint, read without unpickling objects.

    Prefixes of wrappers (`module.`, `backbone.`) are removed.

    Raises:
        InputError: another kind of file, damage, or weights that are NaN or infinite.
    """
    import io

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if data[8:9] == b"{":
            checkpoint: Any = load(data)
        else:
            checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(file, f"is cut off or damaged ({last_line(error)})", "Copy it again") from error
    except Exception as error:  # zip and unpickling errors of many kinds, and pickles that hold more than tensors
        reason = f"is no checkpoint of plain tensors ({last_line(error)})"
        raise InputError(file, reason, "Give the published weights, or save them as safetensors") from error
    for key in ("state_dict", "teacher", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict):
        raise InputError(file, "holds no named tensors", "Give the published weights, or save them as safetensors")
    weights = {}
    for name, value in checkpoint.items():
        for prefix in ("module.", "backbone."):
            name = name.removeprefix(prefix)
        if isinstance(value, torch.Tensor):
            weights[name] = value
    if not all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point()):
        raise InputError(file, "holds weights that are NaN or infinite", "Copy it again")
    return weights


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
