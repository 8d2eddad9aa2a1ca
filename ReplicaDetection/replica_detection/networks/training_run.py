"""Training runs that can be stopped at any moment and resumed after the last full epoch.

A run keeps its state, history, curve and best weights in files. The network and its data come from the caller; see
`segmentation/training.py` and `embedding/training.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Cohort
from replica_detection.networks.weights import HEADER, SIDECAR, WEIGHTS, last_line
from replica_detection.progress import Progress
from replica_detection.util.csv_tables import write_rows
from replica_detection.util.files import atomic_write

if TYPE_CHECKING:
    import torch

LAST, HISTORY, CURVE = "last.pt", "history.csv", "history.png"
LARGEST_GRADIENT = 10.0


@dataclass(frozen=True)
class Names:
    """Names of a training's numbers: `column` and axis (`score`) of the validation score, axis of the `loss`."""

    column: str
    score: str
    loss: str
    smaller_is_better: bool = False


@dataclass(frozen=True)
class Schedule:
    """Length, seed and learning rate of a training.

    Args:
        epochs: largest number of epochs.
        patience: number of validations without a better score after which it ends.
        validate_every: epochs between validations; the last epoch is always validated.
        seed: seed of all random numbers.
        learning_rate: function of the epoch, counted from 1.
    """

    epochs: int
    patience: int
    validate_every: int
    seed: int
    learning_rate: Callable[[int], float]


@dataclass
class State:
    """Everything that a run needs to be resumed; plain values and tensors, so that it loads without unpickling objects.

    `history` holds (epoch, loss, score) with a score of NaN where the epoch was not validated; `best` is epoch, score
    and the score's parts; `run` are options and files of the training, as text.
    """

    run: str
    description: dict[str, Any]
    training: list[str]
    validation: list[str]
    history: list[tuple[int, float, float]]
    best: tuple[int, float, dict[str, float]]
    model: dict[str, torch.Tensor] | None = None
    optimizer: dict[str, Any] | None = None

    def finished(self, schedule: Schedule) -> bool:
        """True where no epoch is left."""
        return len(self.history) >= schedule.epochs or self.stopped_early(schedule)

    def stopped_early(self, schedule: Schedule) -> bool:
        """True where `patience` validations in a row brought no better score."""
        since = [score for epoch, _, score in self.history if epoch > self.best[0] and not math.isnan(score)]
        return bool(self.history) and len(since) >= schedule.patience


def read_state(output: Path, run: str) -> State | None:
    """The state of an earlier call in this folder; None where there is none.

    Raises:
        InputError: it is damaged.
        ConfigurationError: it was begun with other options or files.
    """
    import torch

    file = output / LAST
    if not file.is_file():
        return None
    try:
        state = State(**torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # zip, unpickling and type errors, whatever the damage makes of the file
        advice = "Delete the folder, or start again without resume"
        raise InputError(file, f"is no training that can go on ({last_line(error)})", advice) from error
    if state.run != run:
        raise ConfigurationError(
            f"{file.parent} holds a training with other options or other files; give them again, use another folder, "
            "or start again without resume"
        )
    return state


def train(
    state: State,
    schedule: Schedule,
    output: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[np.random.Generator], Iterator[torch.Tensor]],
    validate: Callable[[], tuple[float, dict[str, float]]],
    names: Names,
    *,
    steps: int,
    progress: Progress,
) -> None:
    """Run the epochs that are left; `output` then holds the weights with the best score, and the state to resume from.

    Args:
        state: of a new or an earlier run; it is updated.
        schedule: length, seed and learning rate.
        output: an existing folder.
        model: on its device; it takes the weights of `state` where there are any.
        optimizer: of the model; it takes its state from `state` where there is one.
        losses: yields the loss of each step of an epoch, from random numbers of that epoch.
        validate: returns the score, and its parts by name.
        names: names of the numbers in files and on the curve.
        steps: number of steps in an epoch, for `progress` ("training").
        progress: called after each step.

    Raises:
        ConfigurationError: the loss became NaN or infinite.
    """
    import torch

    # Once its number of threads was set, torch's linear algebra splits products otherwise than before, even where the
    # number is the same: a training that goes on in another process would get other last digits.
    torch.set_num_threads(torch.get_num_threads())
    if state.model is not None and state.optimizer is not None:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
    while not state.finished(schedule):
        epoch = len(state.history) + 1
        # Every random number follows from seed and epoch, so that nothing random needs to be stored.
        rng = np.random.default_rng([schedule.seed, epoch])
        torch.manual_seed(int(rng.integers(2**31)))
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(epoch)
        model.train()
        values = []
        for loss in losses(rng):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            values.append(float(loss.detach()))
            progress("training", (epoch - 1) * steps + len(values), schedule.epochs * steps)
        if not np.isfinite(values).all():
            raise ConfigurationError(f"the training diverged in epoch {epoch}: use a smaller learning_rate")
        score = math.nan
        if epoch % schedule.validate_every == 0 or epoch == schedule.epochs:
            model.eval()
            score, parts = validate()
            worst = math.isnan(state.best[1])
            better = score < state.best[1] if names.smaller_is_better else score > state.best[1]
            if worst or better:
                state.best = (epoch, score, parts)
                # Weights first, so that `last.pt` never names weights that are not written.
                write_network(output, model, {**state.description, "epoch": epoch, names.column: parts or score})
        state.history.append((epoch, float(np.mean(values)), score))
        state.model, state.optimizer = model.state_dict(), optimizer.state_dict()
        _write(output, state, names)
    progress("training", schedule.epochs * steps, schedule.epochs * steps)
    _draw(output / CURVE, state, names)


def write_network(output: Path, model: torch.nn.Module, description: dict[str, Any]) -> None:
    """Write `best.safetensors` with the description in its header, and `network.json` with the same description."""
    from safetensors.torch import save

    # DynUNet has two names for a tensor; a file needs one.
    once = {id(value): (name, value) for name, value in model.state_dict(keep_vars=True).items()}
    weights = {name: value.detach().cpu().contiguous() for name, value in once.values()}
    with atomic_write(output / WEIGHTS, "wb") as f:
        f.write(save(weights, metadata={HEADER: json.dumps(description)}))
    with atomic_write(output / SIDECAR) as f:
        json.dump(description, f, indent=1)


def files_of(cohort: Cohort | None) -> list[Any]:
    """Ids, patients and file sizes of a cohort (checksums of images in memory), to recognize it."""
    sizes: list[Any] = []
    for case in () if cohort is None else cohort.cases:
        if case.volume is not None:
            sizes.append([case.id, case.patient, case.checksum()])
            continue
        files = [f for f in (*case.files, case.mask) if f is not None and f.is_file()]
        sizes.append([case.id, case.patient, sum(f.stat().st_size for f in files)])
    return sizes


def _write(output: Path, state: State, names: Names) -> None:
    """Write the state to resume from, and the history."""
    import torch

    with atomic_write(output / LAST, "wb") as f:
        torch.save(vars(state), f)
    with atomic_write(output / HISTORY) as f:
        write_rows(f, [("epoch", "loss", names.column)])
        write_rows(f, ((n, f"{a:.6f}", "" if math.isnan(b) else f"{b:.6f}") for n, a, b in state.history))


def _draw(file: Path, state: State, names: Names) -> None:
    """Plot loss and validation score over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot([n for n, _, _ in state.history], [loss for _, loss, _ in state.history], color="#777777", label="loss")
    left.set(xlabel="epoch", ylabel=f"training loss ({names.loss})")
    right = left.twinx()
    seen = [(n, score) for n, _, score in state.history if not math.isnan(score)]
    right.plot([n for n, _ in seen], [s for _, s in seen], "o-", color="#1f77b4", markersize=3)
    right.set(ylabel=names.score)
    right.yaxis.label.set_color("#1f77b4")
    with atomic_write(file, "wb") as f:
        figure.savefig(f, format="png", dpi=120)
