"""Training of an encoder on the training cohort, for the feature level."""

from __future__ import annotations

import json
import math
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from replica_detection.embedding.training import train_encoder
from replica_detection.embedding.training_options import KINDS, NETWORKS, EncoderOptions
from replica_detection.networks.weights import SIDECAR
from replica_detection_server.collection import cohorts
from replica_detection_server.errors import ConflictError
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
from replica_detection_server.settings import embeddings
from replica_detection_server.settings.configuration import Configuration

_EPOCHS, _PATIENCE = 200, 30


class TrainEncoder(TrainTask):
    """Trains an encoder, or goes on with an unfinished training; a server started with `embedding trained` uses it."""

    def __init__(self, configuration: Configuration):
        self.configuration = configuration
        self.folder = embeddings.training_folder(configuration)
        super().__init__("Trains an encoder of the training cohort's images, for `--embedding trained`")

    def config(self) -> dict[str, Any]:
        """The options of a client; a list is a choice, its first entry the default."""
        return {
            "kind": list(KINDS),
            "network": list(NETWORKS),
            "epochs": _EPOCHS,
            "restart": False,
            "early_stop_patience": _PATIENCE,
            "device": list(DEVICES),
        }

    def stats(self) -> dict[str, Any]:
        """`best_metric` lies in [0, 1]: see `_quality`; 0 before the first epoch."""
        try:
            best = json.loads((self.folder / SIDECAR).read_text(encoding="utf-8"))
            kind, loss, epoch = str(best["training"]), float(best["validation_loss"]), int(best["epoch"])
            return {"best_metric": _quality(kind, loss), "kind": kind, "epoch": epoch, "validation_loss": loss}
        except (OSError, ValueError, KeyError, TypeError):
            return {"best_metric": 0.0}

    def require_material(self) -> None:
        """Raises ConflictError where the server was started without the images that this training needs."""
        if self.configuration.training is None:
            raise ConflictError("an encoder learns from the training scans: start the server with training")

    def wanted(self, request: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `EncoderOptions`. Raises InvalidRequestError for what cannot be."""
        return {
            "kind": choice(request, "kind", KINDS),
            "network": choice(request, "network", tuple(NETWORKS)),
            "epochs": whole(request, "epochs", _EPOCHS, LARGEST_EPOCHS),
            "device": device(request),
            "patience": patience(request, _PATIENCE),
            "resume": not flag(request, "restart"),
        }

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Raises as `wanted`, `require_material` and `train_encoder`."""
        wanted = self.wanted(request)
        self.require_material()
        cohort = cohorts.training(self.configuration)
        assert cohort is not None
        # Not validated on the server's validation scans: they are the null, and the encoder must not see them.
        report = train_encoder(
            cohort,
            self.folder,
            options=EncoderOptions(profile=self.configuration.profile, **wanted),
            progress=logged("encoder"),
        )
        embeddings.publish(self.configuration)
        return {
            "best_metric": _quality(wanted["kind"], report.best_loss),
            "kind": wanted["kind"],
            "epoch": report.best_epoch,
            "validation_loss": report.best_loss,
            "epochs": len(report.history),
        }


def _quality(kind: str, loss: float) -> float:
    """The validation loss on a scale from 0 to 1, where 1 is the best.

    `contrastive`: the probability that the encoder gives to an image's own altered view among all images of a batch,
    the geometric mean over the batch (NT-Xent is minus its logarithm). `deepssim`: 1 minus the root mean squared error
    of the SSIM.
    """
    if not math.isfinite(loss):
        return 0.0
    return math.exp(-loss) if kind == "contrastive" else max(0.0, 1 - math.sqrt(loss))
