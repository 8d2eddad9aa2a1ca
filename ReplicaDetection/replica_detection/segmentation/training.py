"""Trains a small network on a cohort with masks; what comes out is used as `network:FOLDER`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.networks.device import pick_device
from replica_detection.networks.training_run import (
    Names,
    Schedule,
    State,
    files_of,
    read_state,
    train,
)
from replica_detection.networks.weights import build
from replica_detection.progress import Progress, silent
from replica_detection.segmentation.network import slide
from replica_detection.segmentation.training_data import (
    TrainingData,
    augmentation,
    batches,
    prepare_data,
)
from replica_detection.util.lock import Lock

if TYPE_CHECKING:
    import torch

NAMES = Names("validation_dice", "validation Dice", "Dice + cross-entropy")
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
class Epoch:
    """One line of `history.csv`; `dice` is NaN where the epoch was not validated."""

    epoch: int
    loss: float
    dice: float


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to.

    `dice` is that of each label at `best_epoch`, over the validation cases in which it is or was found; `best_dice`
    their mean. `resumed_from` is the number of epochs that were done when this call began; `finished_before` says that
    nothing was left to do.
    """

    output: Path
    history: tuple[Epoch, ...]
    best_epoch: int
    best_dice: float
    dice: dict[str, float]
    training: tuple[str, ...]
    validation: tuple[str, ...]
    problems: tuple[Problem, ...]
    resumed_from: int
    stopped_early: bool

    @property
    def finished_before(self) -> bool:
        return self.resumed_from == len(self.history)


@dataclass(frozen=True)
class _Options:
    network: str
    epochs: int
    patch: tuple[int, ...]
    batch: int
    crops: int
    learning_rate: float
    validate_every: int
    patience: int
    seed: int
    flips: tuple[int, ...]

    def check(self) -> None:
        if self.network not in NETWORKS:
            raise ConfigurationError(f"unknown network '{self.network}'; known: {', '.join(NETWORKS)}")
        for name in ("epochs", "batch", "crops", "validate_every", "patience"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be a whole number from 1, found {getattr(self, name)!r}")
        divisor = NETWORKS[self.network][2]
        if len(self.patch) != 3 or any(n < 2 * divisor or n % divisor for n in self.patch):
            raise ConfigurationError(
                f"patch must be 3 multiples of {divisor}, at least {2 * divisor}, for this network, found {self.patch}"
            )
        if not 0 < self.learning_rate < 1 or self.seed < 0 or not set(self.flips) <= {0, 1, 2}:
            raise ConfigurationError("learning_rate must be between 0 and 1, seed 0 or more, flips axes from 0 to 2")

    @property
    def schedule(self) -> Schedule:
        def learning_rate(epoch: int) -> float:
            return self.learning_rate * (1 - (epoch - 1) / self.epochs) ** 0.9

        return Schedule(self.epochs, self.patience, self.validate_every, self.seed, learning_rate)

    def same_run(self) -> dict[str, Any]:
        """What may not change when a run goes on: everything but how long it is."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if k not in ("epochs", "patience")
        }


def train_segmentation(
    cohort: Cohort,
    output: Path,
    *,
    profile: str | None = None,
    labels: dict[int, str] | None = None,
    epochs: int = 100,
    validation: Cohort | None = None,
    network: str = "unet",
    spacing_mm: tuple[float, ...] | None = None,
    patch: tuple[int, ...] = (64, 64, 64),
    batch: int = 2,
    crops: int = 2,
    learning_rate: float = 1e-3,
    validate_every: int = 5,
    patience: int = 10,
    seed: int = 0,
    flips: tuple[int, ...] = (0,),
    device: str = "auto",
    resume: bool = True,
    cache_mb: int = 4096,
    progress: Progress = silent,
) -> TrainingReport:
    """Trains a network to draw the masks of a cohort.

    Loss: Dice plus cross-entropy (MONAI's DiceCELoss, background left out of Dice). Crops are centred on each label as
    often as on background. The weights of the epoch with the best mean validation Dice are kept.

    `output` then holds `best.safetensors` (weights, and in its header all that using them needs), `network.json` (the
    same description, to be read), `history.csv` (epoch, loss, validation Dice), `history.png`, and `last.pt`, from
    which the same call goes on where it was stopped, after the last full epoch. On the CPU, with the same number of
    threads, a resumed run gives the same numbers as one that was never stopped, and the same seed gives the same
    weights.

    Args:
        cohort: cases with masks; those without are left out and listed.
        output: a folder, made where it is missing.
        profile: fixes spacing and intensity mapping; None: `generic`, which looks at the cohort.
        labels: names of the mask values to learn, 1 to 255, other values being background; None: all that are found.
        epochs: in each, every case gives `crops` crops.
        validation: cases of other patients; None: a fifth of the cohort's patients, at least one, with labels.
        network: one of `NETWORKS`.
        spacing_mm: (3,) along R, A, S, instead of the profile's.
        patch: (3,) voxels of a crop, at most about the size of the largest volume.
        batch: crops per step.
        crops: crops per case and epoch.
        learning_rate: of AdamW at the start; falls to 0 at `epochs` as (1 - t)^0.9.
        validate_every: epochs between validations; the last epoch is always validated.
        patience: validations without a better Dice after which the training ends.
        seed: of weights, split, crops and augmentation.
        flips: axes (0 R-L, 1 A-P, 2 S-I) along which crops are mirrored at random; none where labels have a side.
        device: `auto`, `cpu` or `cuda`.
        resume: go on with an unfinished training in `output`; False starts again.
        cache_mb: prepared cases are kept in memory up to this; the others are read again whenever they are needed.
        progress: `preparing` per case, `training` per step.

    Raises:
        InputError: no case has a mask, all masks are empty, fewer than 2 patients with labels where the validation is
            split off, or `output` holds a damaged training or is being written by another process.
        ConfigurationError: options that cannot be, a patient in both cohorts, or `output` holds a training of other
            options or files.
    """
    import torch

    options = _Options(
        network, epochs, tuple(patch), batch, crops, learning_rate, validate_every, patience, seed, tuple(flips)
    )
    options.check()
    output, target = Path(output), pick_device(device)
    recipe = [profile, sorted(labels.items()) if labels else None, spacing_mm]
    run = json.dumps([options.same_run(), *recipe, files_of(cohort), files_of(validation)])
    state = read_state(output, run) if resume else None
    before = len(state.history) if state else 0
    if state is not None and state.finished(options.schedule):
        return _report(state, output, options, (), before)
    data = prepare_data(cohort, validation, profile, labels, spacing_mm, seed, cache_mb, progress)
    if state is None:
        state = _begin(run, data, options)
    if [c.id for c in data.training] != state.training or [c.id for c in data.validation] != state.validation:
        raise ConfigurationError(f"{output} holds a training on other cases; start again without resume")
    output.mkdir(parents=True, exist_ok=True)
    with Lock(output), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        _train(state, data, options, output, target, progress)
    return _report(state, output, options, data.problems, before)


def _report(state: State, output: Path, options: _Options, problems: Sequence[Problem], before: int) -> TrainingReport:
    return TrainingReport(
        output,
        tuple(Epoch(*row) for row in state.history),
        state.best[0],
        state.best[1],
        dict(state.best[2]),
        tuple(state.training),
        tuple(state.validation),
        tuple(problems),
        before,
        state.stopped_early(options.schedule) and len(state.history) < options.epochs,
    )


def _begin(run: str, data: TrainingData, options: _Options) -> State:
    kind, arguments, divisor = NETWORKS[options.network]
    largest = [max(2, math.ceil(n / divisor)) * divisor for n in data.largest]
    shape = {"spatial_dims": 3, "in_channels": 1, "out_channels": len(data.labels) + 1}
    description = {
        "architecture": {"class": kind, "arguments": {**shape, **arguments}},
        "labels": {str(value): name for value, name in data.labels.items()},
        "spacing_mm": list(data.spacing_mm),
        "window": data.intensity.window and list(data.intensity.window),
        "percentiles": data.intensity.percentiles and list(data.intensity.percentiles),
        "patch": [min(p, n) for p, n in zip(options.patch, largest, strict=True)],
        "overlap": 0.25,
        "threshold": 0.0,
    }
    training, validation = [c.id for c in data.training], [c.id for c in data.validation]
    return State(run, description, training, validation, [], (0, -1.0, {}))


def _train(
    state: State, data: TrainingData, options: _Options, output: Path, device: torch.device, progress: Progress
) -> None:
    import torch
    from monai.losses.dice import DiceCELoss

    torch.manual_seed(options.seed)
    model = build(state.description["architecture"], len(data.labels) + 1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=1e-4)
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    crop = augmentation(state.description["patch"], len(data.labels) + 1, options.flips)

    def losses(rng: np.random.Generator) -> Iterator[torch.Tensor]:
        for images, truth in batches(data, crop, options.crops, options.batch, rng):
            yield loss_of(model(images.to(device)), truth.to(device))

    def validate() -> tuple[float, dict[str, float]]:
        by_label = _validate(model, data, state.description)
        return float(np.mean(list(by_label.values()))), by_label

    steps = math.ceil(len(data.training) * options.crops / options.batch)
    train(state, options.schedule, output, model, optimizer, losses, validate, NAMES, steps=steps, progress=progress)


def _validate(model: torch.nn.Module, data: TrainingData, description: dict[str, Any]) -> dict[str, float]:
    """Mean Dice of each label over the cases in which it is or was found, on the network's grid."""
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {name: [] for name in data.labels.values()}
    model.eval()
    for case in data.validation:
        sample = data.sample(case)
        output = slide(
            model, sample["image"][0].astype(np.float32), description["patch"], description["overlap"], device
        )
        guess, truth = output.argmax(0), sample["label"][0]
        for channel, name in enumerate(data.labels.values(), 1):
            a, b = guess == channel, truth == channel
            total = np.count_nonzero(a) + np.count_nonzero(b)
            if total:
                found[name].append(2 * np.count_nonzero(a & b) / total)
    return {name: float(np.mean(values)) for name, values in found.items() if values}
