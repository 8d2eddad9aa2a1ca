"""Options of MONAI Label's own tasks, as its clients and scripts send them: what they are here, or why not.

Its module for Slicer shows the reason to its user.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException


@dataclass(frozen=True)
class Usual:
    """`same`: values that ask for nothing else than what is done anyway; `reason`: why another one cannot be had."""

    same: tuple[Any, ...]
    reason: str


_WEIGHTS = "the weights of a model are chosen where the server is started"
_RUNS = "trainings are kept under names of this server; /train/ tells what became of the last one"
_MEMORY = "how images are kept and read during a training is fixed"
_TRACKING = "trainings are recorded on this server alone; see the trainer's entry in /info/"
_NOT_A_MASK = "this model draws no mask"

USUAL: dict[str, Usual] = {
    # Values of a mask are those that /info/ names, so there is nothing to restore.
    "restore_label_idx": Usual((True, False), "it is true or false"),
    "largest_cc": Usual((False,), _NOT_A_MASK),
    "result_write_to_file": Usual((True,), "a mask comes as a file"),
    "model_filename": Usual(("",), _WEIGHTS),
    "roi_size": Usual((), "the size of the patches belongs to the model"),
    "sw_batch_size": Usual((1,), "how many patches are drawn at once is fixed"),
    "sw_overlap": Usual((0.25,), "how far patches overlap is fixed"),
    "points": Usual(([],), "this model draws without points"),
    "foreground": Usual(([],), "this model draws without points"),
    "background": Usual(([],), "this model draws without points"),
    "roi": Usual((), "this model draws the whole image"),
    "slice": Usual((), "this model draws the whole image"),
    "name": Usual(("train_01", "model_01", ""), _RUNS),
    "run_id": Usual(("",), _RUNS),
    "max_epochs": Usual((1, 50), "this trainer goes through the images once"),
    "pretrained": Usual((True,), "it is true or, where a trainer can begin anew, false"),
    "early_stop_patience": Usual((-1, 0), "this trainer goes through the images once"),
    "val_split": Usual((0.2,), "a fifth of the patients is kept for the validation"),
    "train_batch_size": Usual((1,), "the size of a batch is fixed"),
    "val_batch_size": Usual((1,), "the size of a batch is fixed"),
    "dataset": Usual(("SmartCacheDataset", "CacheDataset", "PersistentDataset", "Dataset"), _MEMORY),
    "dataloader": Usual(("ThreadDataLoader", "DataLoader"), _MEMORY),
    "tracking": Usual(("None", ""), _TRACKING),
    "tracking_uri": Usual(("",), _TRACKING),
    "tracking_experiment_name": Usual(("",), _TRACKING),
}


def translated(given: Mapping[str, Any], offered: Collection[str]) -> dict[str, Any]:
    """The options in the words of the task that offers them, without those that change nothing.

    Raises:
        HTTPException: 422 with the reason for an option that MONAI Label's own tasks have and this one does not.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in offered or key not in USUAL:
            found[key] = value
        elif key == "max_epochs" and "epochs" in offered:
            found.setdefault("epochs", given.get("epochs", value))
        elif key == "pretrained" and "restart" in offered and isinstance(value, bool):
            found.setdefault("restart", given.get("restart", not value))
        elif value is not None and not _changes_nothing(value, USUAL[key].same):
            raise HTTPException(422, f"Option {key!r} cannot be {str(value)[:60]!r}: {USUAL[key].reason}.")
    return found


def _changes_nothing(value: Any, same: tuple[Any, ...]) -> bool:
    # A client that shows no choice sends the whole list back.
    if isinstance(value, list) and value:
        return all(v in same for v in value)
    return any(value == s and isinstance(value, bool) == isinstance(s, bool) for s in same)
