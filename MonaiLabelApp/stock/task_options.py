"""Options of MONAI Label's own tasks, as its clients and scripts send them: their names here, or why they are refused.

Its module for Slicer shows the reason to its user.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException


@dataclass(frozen=True)
class TaskOption:
    """`same`: values that change nothing; `reason`: why other values are refused."""

    same: tuple[Any, ...]
    reason: str


_WEIGHTS = "the weights of a model are chosen where the server is started"
_RUNS = "trainings are kept under names of this server; /train/ tells what became of the last one"
_MEMORY = "how images are kept and read during a training is fixed"
_TRACKING = "trainings are recorded on this server alone; see the trainer's entry in /info/"
_NOT_A_MASK = "this model draws no mask"

TASK_OPTIONS: dict[str, TaskOption] = {
    # Values of a mask are those that /info/ names, so there is nothing to restore.
    "restore_label_idx": TaskOption((True, False), "it is true or false"),
    "largest_cc": TaskOption((False,), _NOT_A_MASK),
    "result_write_to_file": TaskOption((True,), "a mask comes as a file"),
    "model_filename": TaskOption(("",), _WEIGHTS),
    "roi_size": TaskOption((), "the size of the patches belongs to the model"),
    "sw_batch_size": TaskOption((1,), "how many patches are drawn at once is fixed"),
    "sw_overlap": TaskOption((0.25,), "how far patches overlap is fixed"),
    "points": TaskOption(([],), "this model draws without points"),
    "foreground": TaskOption(([],), "this model draws without points"),
    "background": TaskOption(([],), "this model draws without points"),
    "roi": TaskOption((), "this model draws the whole image"),
    "slice": TaskOption((), "this model draws the whole image"),
    "name": TaskOption(("train_01", "model_01", ""), _RUNS),
    "run_id": TaskOption(("",), _RUNS),
    "max_epochs": TaskOption((1, 50), "this trainer goes through the images once"),
    "pretrained": TaskOption((True,), "it is true or, where a trainer can begin anew, false"),
    "early_stop_patience": TaskOption((-1, 0), "this trainer goes through the images once"),
    "val_split": TaskOption((0.2,), "a fifth of the patients is kept for the validation"),
    "train_batch_size": TaskOption((1,), "the size of a batch is fixed"),
    "val_batch_size": TaskOption((1,), "the size of a batch is fixed"),
    "dataset": TaskOption(("SmartCacheDataset", "CacheDataset", "PersistentDataset", "Dataset"), _MEMORY),
    "dataloader": TaskOption(("ThreadDataLoader", "DataLoader"), _MEMORY),
    "tracking": TaskOption(("None", ""), _TRACKING),
    "tracking_uri": TaskOption(("",), _TRACKING),
    "tracking_experiment_name": TaskOption(("",), _TRACKING),
}


def translated(given: Mapping[str, Any], offered: Collection[str]) -> dict[str, Any]:
    """The options in the words of the task that offers them, without those that change nothing.

    Raises:
        HTTPException: 422 with the reason for an option that MONAI Label's own tasks have and this one does not.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in offered or key not in TASK_OPTIONS:
            found[key] = value
        elif key == "max_epochs" and "epochs" in offered:
            found.setdefault("epochs", given.get("epochs", value))
        elif key == "pretrained" and "restart" in offered and isinstance(value, bool):
            found.setdefault("restart", given.get("restart", not value))
        elif value is not None and not _changes_nothing(value, TASK_OPTIONS[key].same):
            raise HTTPException(422, f"Option {key!r} cannot be {str(value)[:60]!r}: {TASK_OPTIONS[key].reason}.")
    return found


def _changes_nothing(value: Any, same: tuple[Any, ...]) -> bool:
    # A client that shows no choice sends the whole list back.
    if isinstance(value, list) and value:
        return all(v in same for v in value)
    return any(value == s and isinstance(value, bool) == isinstance(s, bool) for s in same)
