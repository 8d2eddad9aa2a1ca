"""DetectionOptions: what is compared, how it is judged, and where the work runs."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

from replica_detection.errors import ConfigurationError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.readers.calibration import Calibration
from replica_detection.workers.runner import Runner, check_workers, runner_for

# Fewer voxels (of all pairs of cases) are compared before worker processes have started.
FEW_VOXELS = 500_000_000


@dataclass(frozen=True)
class DetectionOptions:
    """Options of a detection.

    Args:
        measures: names; None: all that the index serves, without `align` only those that compare images in place.
        k: neighbourhood of the distance ratio, in cases.
        alpha: error rate of the verdicts, between 0 and 1.
        device: `auto`, `cpu` or `cuda`.
        null_size: largest number of null cases: training cases fill up what the validation scans leave of it.
        strict: raise the InputError of the first image that cannot be used, instead of listing it.
        align: also find copies that were mirrored, rotated, shifted or scaled.
        calibration: readers' thresholds, which then decide the verdicts instead of the null.
        workers: number of processes that compare cases side by side, or the address of a dask scheduler
            (`tcp://...`); None: all cores that this process may use, or this process alone where little is to be done.

    Raises:
        ConfigurationError: a value out of its range.
    """

    measures: Sequence[str] | None = None
    k: int = 50
    alpha: float = 0.05
    device: str = "auto"
    null_size: int = 500
    strict: bool = False
    align: bool = True
    calibration: Calibration | None = None
    workers: int | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.measures, str):
            raise ConfigurationError(f"measures is '{self.measures}': it must be a list of names")
        if self.measures is not None:
            object.__setattr__(self, "measures", tuple(self.measures))
        if not isinstance(self.alpha, numbers.Real) or not 0 < self.alpha < 1:
            raise ConfigurationError(f"alpha is {self.alpha}: it must lie between 0 and 1")
        if not isinstance(self.k, numbers.Integral):
            raise ConfigurationError(f"k is {self.k!r}: it must be a whole number")
        if self.k < 1:
            raise ConfigurationError(f"k is {self.k}: it must be at least 1")
        if self.null_size < 1:
            raise ConfigurationError(f"null_size is {self.null_size}: it must be at least 1")
        if not isinstance(self.calibration, (Calibration, type(None))):
            raise ConfigurationError(f"calibration is {self.calibration!r}: read the file first, with Calibration.read")
        check_workers(self.workers)

    def runner(self, index: TrainingIndex, cases: int) -> Runner:
        """Places for the comparison of so many cases with the index.

        Raises ConfigurationError where a dask scheduler cannot be reached.
        """
        voxels = cases * len(index) * math.prod(index.preparation.grid)
        return runner_for(1 if self.workers is None and voxels < FEW_VOXELS else self.workers, cases)

    @classmethod
    def of(cls, options: DetectionOptions | None, measures: Sequence[str] | None) -> DetectionOptions:
        """The options, or the defaults for `measures`. Raises ConfigurationError where both are given."""
        if options is None:
            return cls(measures)
        if measures is not None:
            raise ConfigurationError("give either options or measures; DetectionOptions holds the measures too")
        return options


def resolve_device(device: str) -> str:
    """The device for `auto`: cuda if torch sees a GPU, else cpu. Raises ConfigurationError for cuda without one.

    `torch-cpu` is for tests: the code of a GPU, run on the CPU.
    """
    if device in ("cpu", "torch-cpu"):
        return device
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if not device.startswith("cuda"):
        raise ConfigurationError(f"unknown device '{device}'; known: auto, cpu, cuda")
    if not available:
        raise ConfigurationError(f"device {device}: torch sees no CUDA device here; use cpu")
    return device
