"""The index as a training task."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from replica_detection_server import work
from replica_detection_server.engine import Engine
from replica_detection_server.lib.progress import logged


class BuildIndex(TrainTask):
    """Makes the index of the training cohort, or adds the cases that it lacks."""

    def __init__(self, engine: Engine):
        self.engine = engine
        super().__init__("Prepares the training cohort for comparisons; adds new cases to what is there")

    def config(self) -> dict[str, Any]:
        return {"rebuild": False}

    def stats(self) -> dict[str, Any]:
        """`best_metric`, which MONAI Label's client shows as a bar, is the share of training files in the index."""
        index = self.engine.training()
        if index is None:
            return {"best_metric": 0.0, "cases": 0}
        cases, left_out = len(index), len(index.problems)
        return {"best_metric": cases / (cases + left_out), "cases": cases, "left_out": left_out}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Raises as `work.build_index`."""
        rebuild = bool(request.get("rebuild", False))
        index = work.build_index(self.engine.configuration, logged("build_index"), rebuild=rebuild)
        return {"cases": len(index), "left_out": len(index.problems), "measures": list(index.measure_names)}
