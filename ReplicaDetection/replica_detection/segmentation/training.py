"""Training of a small segmentation network on a cohort with masks, for use as `network:FOLDER`."""

from __future__ import annotations

import json
import math
import os
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
from replica_detection.segmentation.training_options import NETWORKS, SegmentationOptions
from replica_detection.util.lock import Lock

if TYPE_CHECKING:
    import torch

NAMES = Names("validation_dice", "validation Dice", "Dice + cross-entropy")


@dataclass(frozen=True)
class Epoch:
    """One line of `history.csv`; `dice` is NaN where the epoch was not validated."""

    epoch: int
    loss: float
    dice: float


@dataclass(frozen=True)
class SegmentationReport:
    """Outcome of a training.

    `dice` is that of each label at `best_epoch`, over the validation cases that have the label or for which the network
    predicts it; `best_dice` is their mean. `resumed_from` is the number of epochs that were done when this call began.
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
        """True where nothing was left to do."""
        return self.resumed_from == len(self.history)


def train_segmentation(
    cohort: Any,
    output: str | os.PathLike[str],
    *,
    validation: Any = None,
    options: SegmentationOptions | None = None,
    progress: Progress = silent,
) -> SegmentationReport:
    """Train a network that draws the masks of a cohort, for the segmenter `network:OUTPUT`.

    Loss: Dice plus cross-entropy (MONAI's DiceCELoss, background left out of Dice). Crops are centred on each label as
    often as on background. The weights of the epoch with the best mean validation Dice are kept.

    `output` then holds `best.safetensors` (weights, and in its header all that using them needs), `network.json` (the
    same description as text), `history.csv` (epoch, loss, validation Dice), `history.png`, and `last.pt`, from which
    the same call continues after the last full epoch. On the CPU, with the same number of threads, a resumed run gives
    the same numbers as one that was never stopped, and the same seed gives the same weights.

    Args:
        cohort: cases with masks, as `Cohort.of` takes them; those without are left out and listed. So is `validation`.
        output: a folder; it is created where it is missing.
        validation: cases of other patients; None: a fifth of the cohort's patients, at least one, with labels.
        options: None: the defaults of `SegmentationOptions`.
        progress: `preparing` per case, `training` per step.

    Raises:
        InputError: no case has a mask, all masks are empty, fewer than 2 patients with labels where the validation is
            split off, or `output` holds a damaged training or another process writes to it.
        ConfigurationError: no GPU where `cuda` is asked for, a patient in both cohorts, 2D images, or `output` holds a
            training with other options or files.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        scans = rng.random((4, 24, 24, 24))
        masks = np.zeros(scans.shape, np.uint8)
        masks[:, 6:18, 6:18, 6:18] = 1
        cohort = rd.Cohort.from_arrays(scans + 2 * masks, spacing=1, masks=masks)
        options = rd.SegmentationOptions(epochs=1, patch=(16, 16, 16), device="cpu")
        trained = rd.train_segmentation(cohort, "network", options=options)
        assert len(trained.history) == 1
        ```
    """
    import torch

    options = options or SegmentationOptions()
    cohort = Cohort.of(cohort)
    validation = None if validation is None else Cohort.of(validation)
    output, target = Path(output), pick_device(options.device)
    run = json.dumps([options.fixed_options(), files_of(cohort), files_of(validation)])
    state = read_state(output, run) if options.resume else None
    before = len(state.history) if state else 0
    if state is not None and state.finished(options.schedule):
        return _report(state, output, options, (), before)
    data = prepare_data(cohort, validation, options, progress)
    if state is None:
        state = _begin(run, data, options)
    if [c.id for c in data.training] != state.training or [c.id for c in data.validation] != state.validation:
        raise ConfigurationError(f"{output} holds a training on other cases; start again without resume")
    output.mkdir(parents=True, exist_ok=True)
    with Lock(output), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        _train(state, data, options, output, target, progress)
    return _report(state, output, options, data.problems, before)


def _report(
    state: State, output: Path, options: SegmentationOptions, problems: Sequence[Problem], before: int
) -> SegmentationReport:
    return SegmentationReport(
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


def _begin(run: str, data: TrainingData, options: SegmentationOptions) -> State:
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
    state: State,
    data: TrainingData,
    options: SegmentationOptions,
    output: Path,
    device: torch.device,
    progress: Progress,
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
    """Mean Dice of each label on the network's grid, over the cases that have it or for which it is predicted."""
    device = next(model.parameters()).device
    dice: dict[str, list[float]] = {name: [] for name in data.labels.values()}
    model.eval()
    for case in data.validation:
        sample = data.sample(case)
        output = slide(
            model, sample["image"][0].astype(np.float32), description["patch"], description["overlap"], device
        )
        predicted, truth = output.argmax(0), sample["label"][0]
        for channel, name in enumerate(data.labels.values(), 1):
            a, b = predicted == channel, truth == channel
            total = np.count_nonzero(a) + np.count_nonzero(b)
            if total:
                dice[name].append(2 * np.count_nonzero(a & b) / total)
    return {name: float(np.mean(values)) for name, values in dice.items() if values}
