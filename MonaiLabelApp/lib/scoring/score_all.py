"""Scoring of all synthetic images, for clients that speak MONAI Label's protocol alone."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from replica_detection.results.result import VERDICTS
from replica_detection_server.comparison import tasks
from replica_detection_server.lib.progress import logged
from replica_detection_server.settings.configuration import Configuration


class ScoreAll(ScoringMethod):
    """Compares every study with the training cohort.

    MONAI Label runs it in a process that has another copy of the app and keeps only the last lines of what it prints.
    The result is therefore the folder of scores; the running server reads it from there.
    """

    def __init__(self, configuration: Configuration):
        self.configuration = configuration
        super().__init__("Compares all synthetic images with the training cohort; see /replica/worklist")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Number of images by verdict. Raises as `tasks.score`."""
        result = tasks.score(self.configuration, logged("score_all"))
        return {"scored": len(result.summary), **{v: result.count(v) for v in VERDICTS}}
