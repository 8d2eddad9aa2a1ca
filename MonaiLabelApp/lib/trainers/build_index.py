"""The index as a training task."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from replica_detection_server.comparison import tasks
from replica_detection_server.comparison.engine import Engine
from replica_detection_server.lib.progress import logged
from replica_detection_server.lib.trainers.validation import flag


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
            return {"best_metric": 0.0, "cases": 0, "left_out": 0}
        cases, left_out = len(index), len(index.problems)
        return {"best_metric": cases / (cases + left_out), "cases": cases, "left_out": left_out}

    def wanted(self, request: dict[str, Any]) -> dict[str, Any]:
        """Options of `tasks.build_index`. Raises InvalidRequestError for what cannot be."""
        return {"rebuild": flag(request, "rebuild")}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Raises as `wanted` and `work.build_index`."""
        wanted, tell = self.wanted(request), logged("build_index")
        index = tasks.build_index(self.engine.configuration, tell, **wanted)
        tell("cases in the index", len(index), len(index) + len(index.problems))
        return {"cases": len(index), "left_out": len(index.problems), "measures": list(index.measure_names)}
