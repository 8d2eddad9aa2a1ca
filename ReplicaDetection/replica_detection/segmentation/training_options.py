"""Options for the training of a segmentation network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replica_detection.errors import ConfigurationError
from replica_detection.networks.device import DEVICES
from replica_detection.networks.training_options import fixed_options, require_choice, require_whole_numbers
from replica_detection.networks.training_run import Schedule
from replica_detection.preparation.profiles import profile_named

# Class and arguments of each network by name, and the number that its patch must be a multiple of.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "unet": ("UNet", {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 2}, 8),
    "segresnet": ("SegResNet", {"init_filters": 8}, 8),
    "dynunet": (
        "DynUNet",
        {
            "kernel_size": [3, 3, 3, 3],
            "strides": [1, 2, 2, 2],
            "upsample_kernel_size": [2, 2, 2],
            "filters": [16, 32, 64, 128],
        },
        8,
    ),
    "basicunet": ("BasicUNet", {"features": [16, 16, 32, 64, 128, 16]}, 16),
}


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of `train_segmentation`; wrong ones are refused when the object is made.

    Args:
        profile: name of the profile that fixes spacing and intensity mapping. None: `generic`, which measures the
            cohort.
        labels: names of the mask values to learn, 1 to 255; other values count as background. None: all values found.
        network: a name in `NETWORKS`.
        epochs: largest number of passes; in each, every case gives `crops` crops.
        spacing_mm: (3,) along R, A, S, in place of the profile's.
        patch: (3,) voxels of a crop, at most about the size of the largest volume.
        batch: crops per step.
        crops: crops per case and epoch.
        learning_rate: of AdamW at the start; it falls to 0 at `epochs` as (1 - t)^0.9.
        validate_every: epochs between validations; the last epoch is always validated.
        patience: number of validations without a better Dice after which the training ends.
        seed: seed of weights, split, crops and augmentation.
        flips: axes (0 R-L, 1 A-P, 2 S-I) along which crops are mirrored at random; none where labels have a side.
        device: `auto`, `cpu` or `cuda`.
        resume: continue an unfinished training in the output folder; False starts again.
        cache_mb: prepared cases stay in memory up to this size; the others are read again for each use.

    Raises:
        ConfigurationError: an unknown name, or a number out of range.
    """

    profile: str | None = None
    labels: Mapping[int, str] | None = None
    network: str = "unet"
    epochs: int = 100
    spacing_mm: tuple[float, ...] | None = None
    patch: tuple[int, ...] = (64, 64, 64)
    batch: int = 2
    crops: int = 2
    learning_rate: float = 1e-3
    validate_every: int = 5
    patience: int = 10
    seed: int = 0
    flips: tuple[int, ...] = (0,)
    device: str = "auto"
    resume: bool = True
    cache_mb: int = 4096

    def __post_init__(self) -> None:
        for name in ("patch", "flips", "spacing_mm"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        require_choice("network", self.network, tuple(NETWORKS))
        require_choice("device", self.device, DEVICES)
        require_whole_numbers(self, "epochs", "batch", "crops", "validate_every", "patience")
        divisor = NETWORKS[self.network][2]
        if len(self.patch) != 3 or any(n < 2 * divisor or n % divisor for n in self.patch):
            raise ConfigurationError(
                f"patch must be 3 multiples of {divisor}, at least {2 * divisor}, for this network, found {self.patch}"
            )
        if not 0 < self.learning_rate < 1 or self.seed < 0 or not set(self.flips) <= {0, 1, 2}:
            raise ConfigurationError("learning_rate must be between 0 and 1, seed 0 or more, flips axes from 0 to 2")
        if self.labels is not None and (not self.labels or min(self.labels) < 1 or max(self.labels) > 255):
            raise ConfigurationError(f"labels must name values from 1 to 255, found {self.labels}")
        spacing = (1.0, 1.0, 1.0) if self.spacing_mm is None else self.spacing_mm
        if len(spacing) != 3 or not all(0 < s < float("inf") for s in spacing):
            raise ConfigurationError(f"spacing_mm must be 3 numbers above 0, found {self.spacing_mm}")
        profile_named(self.profile or "generic")

    @property
    def schedule(self) -> Schedule:
        """Length of the training, and its learning rate: (1 - t)^0.9 of the first, t from 0 to 1."""

        def learning_rate(epoch: int) -> float:
            return self.learning_rate * (1 - (epoch - 1) / self.epochs) ** 0.9

        return Schedule(self.epochs, self.patience, self.validate_every, self.seed, learning_rate)

    def fixed_options(self) -> dict[str, Any]:
        """Options that a training must keep when it is resumed, ready for JSON; its length may change."""
        return fixed_options(self)
