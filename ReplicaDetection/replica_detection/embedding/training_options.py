"""Options for the training of an encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from replica_detection.embedding.views import Views
from replica_detection.errors import ConfigurationError
from replica_detection.networks.device import DEVICES
from replica_detection.networks.training_options import fixed_options, require_choice, require_whole_numbers
from replica_detection.networks.training_run import Schedule
from replica_detection.preparation.profiles import profile_named

KINDS = ("contrastive", "deepssim")
NETWORKS = ("dar", "resnet18", "resnet50")
LEARNING_RATE = 1e-3
# With the published learning rate, tens of images stay in the state in which all vectors are the same.
PUBLISHED_LEARNING_RATE = {"contrastive": 1e-4, "deepssim": 1e-3}
ROTATION_DEGREES = {"contrastive": 5.0, "deepssim": 10.0}
SMALLEST_SIZE = 8


@dataclass(frozen=True)
class EncoderOptions:
    """Options of `train_encoder`; wrong ones are refused when the object is made.

    Args:
        kind: loss and use of the encoder, `contrastive` (Dar et al., Nat. Biomed. Eng. 2025) or `deepssim`
            (Scardace et al., arXiv 2509.16582); see `train_encoder`.
        profile: name of the profile, the same as for the index that the encoder is for.
        network: `dar` (the 3D encoder of Dar et al., with a 2D variant), `resnet18` or `resnet50` (of MONAI).
        epochs: largest number of passes over the images.
        batch: images per step, at least 2.
        learning_rate: at the start; it falls to one half along a cosine. None: 1e-3, or with `as_published` 1e-4 for
            `contrastive`.
        validate_every: epochs between validations; the last epoch is always validated.
        patience: number of validations without a smaller loss after which the training ends.
        seed: seed of weights, split, order and views.
        rotation_degrees: largest rotation about each axis. None: 5 for `contrastive`, 10 for `deepssim`.
        flips: axes (0 R-L, 1 A-P, 2 S-I) along which views are mirrored at random; in 2D, 0 and 1 of these.
        contrast: the exponent of the grey values lies between 1 / (1 + contrast) and 1 + contrast.
        max_size: largest number of voxels along an axis; each axis is resized to 4 times a power of 2.
        as_published: the `dar` encoder with a dropout of 0.5 and nothing after its last layer, for thousands of
            images. With tens of images it needs hundreds of epochs before the loss falls. By default dropout is 0.1,
            and the contrastive vector is normalized over the batch.
        device: `auto`, `cpu` or `cuda`.
        resume: continue an unfinished training in the output folder; False starts again.

    Raises:
        ConfigurationError: an unknown name, or a number out of range.
    """

    kind: str = "contrastive"
    profile: str = "generic"
    network: str = "dar"
    epochs: int = 200
    batch: int = 10
    learning_rate: float | None = None
    validate_every: int = 1
    patience: int = 30
    seed: int = 0
    rotation_degrees: float | None = None
    flips: tuple[int, ...] = (0, 1, 2)
    contrast: float = 0.5
    max_size: int = 64
    as_published: bool = False
    device: str = "auto"
    resume: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "flips", tuple(self.flips))
        require_choice("kind", self.kind, KINDS)
        require_choice("network", self.network, NETWORKS)
        require_choice("device", self.device, DEVICES)
        require_whole_numbers(self, "epochs", "validate_every", "patience")
        profile_named(self.profile)
        if self.batch < 2:
            raise ConfigurationError(f"batch must be at least 2, found {self.batch}: images are compared in it")
        if not 0 < self.initial_rate < 1 or self.seed < 0 or self.largest_rotation < 0 or self.contrast < 0:
            raise ConfigurationError("learning_rate must be between 0 and 1; seed, rotation and contrast 0 or more")
        if self.max_size < SMALLEST_SIZE:
            raise ConfigurationError(f"max_size must be at least {SMALLEST_SIZE} voxels, found {self.max_size}")
        if not set(self.flips) <= {0, 1, 2}:
            raise ConfigurationError(f"flips must be axes from 0 to 2, found {self.flips}")

    @property
    def initial_rate(self) -> float:
        """Learning rate of the first epoch, the default filled in."""
        if self.learning_rate is not None:
            return self.learning_rate
        return PUBLISHED_LEARNING_RATE[self.kind] if self.as_published else LEARNING_RATE

    @property
    def largest_rotation(self) -> float:
        """Largest rotation of a view in degrees, the default filled in."""
        return ROTATION_DEGREES[self.kind] if self.rotation_degrees is None else self.rotation_degrees

    @property
    def views(self) -> Views:
        """Random changes that make a view of an image."""
        return Views(rotation_degrees=self.largest_rotation, flips=self.flips, gamma=self.contrast)

    @property
    def schedule(self) -> Schedule:
        """Length of the training, and its learning rate: from the whole to one half along a cosine (Dar et al.)."""

        def learning_rate(epoch: int) -> float:
            return self.initial_rate * (0.75 + 0.25 * math.cos(math.pi * (epoch - 1) / self.epochs))

        return Schedule(self.epochs, self.patience, self.validate_every, self.seed, learning_rate)

    def fixed_options(self) -> dict[str, Any]:
        """Options that a training must keep when it is resumed, ready for JSON; its length may change."""
        resolved = {"learning_rate": self.initial_rate, "rotation_degrees": self.largest_rotation}
        return {**fixed_options(self), **resolved}
