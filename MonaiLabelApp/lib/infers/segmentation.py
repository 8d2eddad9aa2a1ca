"""Every segmenter of the core as an ordinary segmentation task, so that stock clients list and use it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from replica_detection.errors import ReplicaDetectionError
from replica_detection_server.collection.cohorts import Files, state_of
from replica_detection_server.collection.task_files import fresh_file, read_image, result_suffix
from replica_detection_server.settings.configuration import Configuration

# The name of the network that the trainer `segmentation` makes.
TRAINED = "segmentation"


class Segmentation(InferTask):
    """Draws the mask of one image.

    Args:
        segmenter: the name by which the core makes it.
        needs: a file without which it cannot be used yet; the task is not listed before it is there.
    """

    def __init__(self, segmenter: str, description: str, needs: Path | None = None):
        self.segmenter, self.needs = segmenter, needs
        super().__init__(
            InferType.SEGMENTATION, {}, 3, description, {"result_extension": ".nii.gz", "largest_cc": False}
        )

    def is_valid(self) -> bool:
        return self._labels() is not None

    def info(self) -> dict[str, Any]:
        self.labels = self._labels() or {}
        return dict(super().info())

    def _labels(self) -> dict[str, int] | None:
        """Value of each label by name; None where the segmenter cannot be made (yet)."""
        if self.needs is not None and not self.needs.is_file():
            return None
        # Needed for every page of the app: a network's file is only read again when it has changed.
        return _labels_of(self.segmenter, state_of([self.needs] if self.needs else []))

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The mask in a fresh file, which the server deletes once it is sent.

        `params` may choose `result_extension`, `result_dtype`, and with `largest_cc` the largest connected part of each
        label alone. Raises InputError for an image that cannot be read, ConfigurationError for one that the segmenter
        cannot work on, InvalidRequestError for an extension that cannot be written.
        """
        import numpy as np

        from replica_detection.io.volume import write_volume
        from replica_detection.segmentation import make_segmenter
        from replica_detection.segmentation.base import largest_component

        suffix = result_suffix(request)
        segmenter = make_segmenter(self.segmenter)
        volume = read_image(request["image"])
        mask = segmenter.segment(volume)
        if request.get("largest_cc"):
            for value in segmenter.labels:
                mask = np.where((mask == value) & ~largest_component(mask == value), 0, mask)
        with fresh_file(suffix) as path:
            write_volume(path, mask.astype(request.get("result_dtype") or mask.dtype), volume.affine)
        size = float(np.prod(volume.spacing)) / 1000
        found = {name: round(np.count_nonzero(mask == value) * size, 4) for value, name in segmenter.labels.items()}
        names = {name: value for value, name in segmenter.labels.items()}
        return str(path), {"label_names": names, "volume_ml": found}


@lru_cache(maxsize=32)
def _labels_of(segmenter: str, _state: Files) -> dict[str, int] | None:
    from replica_detection.segmentation import make_segmenter

    try:
        return {name: value for value, name in make_segmenter(segmenter).labels.items()}
    except ReplicaDetectionError:
        return None


def segmentation_tasks(configuration: Configuration) -> dict[str, InferTask]:
    """A task for each segmenter that needs no file of its own, for the one of the launch, and for a trained network."""
    from replica_detection.segmentation import SEGMENTERS, make_segmenter

    tasks: dict[str, InferTask] = {}
    for name in SEGMENTERS:
        try:
            make_segmenter(name)
        except ReplicaDetectionError:
            continue
        tasks[name] = Segmentation(name, f"Mask by the segmenter '{name}'")
    chosen = configuration.segment
    if chosen is not None and chosen not in tasks:
        tasks[chosen.partition(":")[0]] = Segmentation(chosen, "Mask by the segmenter of this server's index")
    folder = configuration.models / TRAINED
    weights = folder / "best.safetensors"
    tasks[TRAINED] = Segmentation(f"network:{folder}", "Mask by the network that was trained on this server", weights)
    return tasks
