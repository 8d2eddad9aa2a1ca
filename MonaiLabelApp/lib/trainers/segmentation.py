"""Training of a segmentation network on the training cohort's masks."""

from __future__ import annotations

import json
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from replica_detection.segmentation.training import train_segmentation
from replica_detection.segmentation.training_options import NETWORKS, SegmentationOptions
from replica_detection_server.collection import cohorts
from replica_detection_server.errors import ConflictError, InvalidRequestError
from replica_detection_server.lib.infers.segmentation import TRAINED
from replica_detection_server.lib.progress import logged
from replica_detection_server.lib.trainers.validation import (
    DEVICES,
    LARGEST_EPOCHS,
    choice,
    device,
    flag,
    patience,
    whole,
)
from replica_detection_server.settings.configuration import Configuration

_EPOCHS, _PATCH, _PATIENCE = 100, 64, 10
_LARGEST_PATCH = 512


class TrainSegmentation(TrainTask):
    """Trains a network, or goes on with an unfinished training; the task `segmentation` then uses it."""

    def __init__(self, configuration: Configuration):
        self.configuration = configuration
        self.folder = configuration.models / TRAINED
        super().__init__("Trains a network to draw the masks of the training cohort")

    def config(self) -> dict[str, Any]:
        """The options of a client; a list is a choice, its first entry the default."""
        return {
            "network": list(NETWORKS),
            "epochs": _EPOCHS,
            "patch": _PATCH,
            "restart": False,
            "early_stop_patience": _PATIENCE,
            "device": list(DEVICES),
        }

    def stats(self) -> dict[str, Any]:
        """`best_metric` is the mean validation Dice of the best epoch, 0 before the first."""
        try:
            network = json.loads((self.folder / "network.json").read_text(encoding="utf-8"))
            dice = {str(k): float(v) for k, v in network["validation_dice"].items()}
            return {"best_metric": sum(dice.values()) / len(dice), "epoch": int(network["epoch"]), "dice": dice}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            return {"best_metric": 0.0}

    def require_material(self) -> None:
        """Raises ConflictError where the server was started without the images that this training needs."""
        if self.configuration.training is None or self.configuration.training_masks is None:
            raise ConflictError("training needs masks: start the server with training and training_masks")

    def wanted(self, request: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `SegmentationOptions`. Raises InvalidRequestError for what cannot be."""
        network = choice(request, "network", tuple(NETWORKS))
        patch, divisor = whole(request, "patch", _PATCH, _LARGEST_PATCH), NETWORKS[network][2]
        if patch % divisor or patch < 2 * divisor:
            raise InvalidRequestError(f"patch is {patch}: {network} takes multiples of {divisor} from {2 * divisor} on")
        return {
            "network": network,
            "epochs": whole(request, "epochs", _EPOCHS, LARGEST_EPOCHS),
            "patch": (patch, patch, patch),
            "device": device(request),
            "patience": patience(request, _PATIENCE),
            "resume": not flag(request, "restart"),
        }

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Raises as `wanted`, `require_material` and `train_segmentation`."""
        wanted = self.wanted(request)
        self.require_material()
        cohort = cohorts.training(self.configuration)
        assert cohort is not None
        report = train_segmentation(
            cohort,
            self.folder,
            options=SegmentationOptions(profile=self.configuration.profile, **wanted),
            progress=logged("segmentation"),
        )
        return {"best_metric": float(report.best_dice), "epoch": report.best_epoch, "dice": dict(report.dice)}
