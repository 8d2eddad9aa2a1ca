"""The strategy `most_replica_like`: the case that a reader should look at next."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from replica_detection.readers.worklist import next_unrated
from replica_detection.results import wording
from replica_detection_server.computing.services import Services


class MostReplicaLike(Strategy):
    """The case with the highest score that this reader (without a name: anybody) has not rated; cases without a score
    come last."""

    def __init__(self, services: Services):
        self.services = services
        super().__init__("The most replica-like case that you have not rated yet")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The case's id, with score, verdict, its reason and nearest training case, under names that MONAI Label leaves
        alone.

        `client_id` is the reader. None where no case is left.
        """
        reader = str(request.get("client_id") or "")
        item = next_unrated(self.services.worklist(reader), reader, str(request.get("after") or ""))
        if item is None:
            return None
        note = self.services.unscored_words() if item.score is None else ""
        return {
            **({"replica_note": note} if note else {}),
            "id": item.synthetic_id,
            "replica_score": item.score,
            "replica_verdict": item.verdict,
            "replica_reason": wording.reason(item),
            "nearest_training_id": item.nearest_training_id,
        }
