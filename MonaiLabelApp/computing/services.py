"""The parts that the tasks and the routes of one server share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from replica_detection.errors import ReplicaDetectionError
from replica_detection.readers.rating_store import RatingStore
from replica_detection.readers.ratings import Rating, latest
from replica_detection.readers.worklist import with_ratings
from replica_detection.results.schema import AgreementReport, WorklistItem, from_json, to_json
from replica_detection.results.views import worklist_item
from replica_detection_server.comparison.engine import Engine
from replica_detection_server.computing.jobs import Jobs
from replica_detection_server.computing.workers import Limits, Workers
from replica_detection_server.incoming.error_responses import refusal
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.settings.launch_settings import current
from replica_detection_server.util.caching import LruCache


@dataclass(frozen=True)
class Services:
    """Made once for a process. Ratings, jobs and workers exist only in the server, not in its worker processes."""

    configuration: Configuration

    @cached_property
    def engine(self) -> Engine:
        # A scoring makes the index first where there is none.
        return Engine(
            self.configuration,
            lambda: self.jobs.failure("index"),
            lambda version: self.workers.null_size(version),
            lambda: self.jobs.words("index", "score"),
        )

    @cached_property
    def workers(self) -> Workers:
        given = current()
        limits = Limits.of() if given is None else Limits.of(given.compute_seconds, given.compute_memory_mb)
        return Workers(self.configuration, limits)

    @cached_property
    def ratings(self) -> RatingStore:
        self.configuration.data.mkdir(parents=True, exist_ok=True)
        return RatingStore(self.configuration.data / "ratings.sqlite")

    @cached_property
    def jobs(self) -> Jobs:
        return Jobs(self.configuration)

    @cached_property
    def _agreement(self) -> LruCache[AgreementReport]:
        return LruCache(1)

    def worklist(self, reader: str = "", ratings: Iterable[Rating] | None = None) -> list[WorklistItem]:
        """All synthetic images, with the ratings of a reader.

        Args:
            ratings: those that the asking one may see, in the order in which they arrived; None: all.
        """
        scored = self.engine.scored()
        rows = scored.rows if scored is not None else {}
        items = (worklist_item(rows[id]) if id in rows else WorklistItem(id) for id in self.engine.studies().ids)
        return with_ratings(items, latest(self.ratings.all() if ratings is None else ratings), reader)

    def unscored_words(self) -> str:
        """The reason why a case has no score yet, and what to do; "" where the collection is scored."""
        try:
            self.engine.required_scores()
        except ReplicaDetectionError as error:
            return refusal(error).detail
        return ""

    def agreement(self) -> AgreementReport:
        """Agreement of the readers. It takes seconds, so the last answer is kept until a rating or score is new."""
        ratings, scored = self.ratings.all(), self.engine.scored()
        return self._agreement.get(
            (len(ratings), "" if scored is None else scored.result.run.created),
            lambda: from_json(
                AgreementReport, self.workers.call("agreement", {"ratings": [to_json(r) for r in ratings]}).value
            ),
        )

    def start(self) -> None:
        """Starts building the index where it is missing or unusable, and a process for comparisons.

        An index that cannot be used and has no training scans to rebuild it is reported by the routes that need it.
        """
        if self.engine.training() is None and self.configuration.training is not None:
            self.jobs.start("index")
        self.workers.start()

    def close(self) -> None:
        """Ends all background work."""
        self.workers.close()
        self.jobs.close()


@cache
def services_of(configuration: Configuration) -> Services:
    """The services of this process: MONAI Label's app in it has the same ones."""
    return Services(configuration)
