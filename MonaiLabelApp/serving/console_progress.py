"""Progress of background work on the console of `serve`, with the next step at its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from replica_detection.results.schema import Job
from replica_detection_server.computing.services import Services

_SECONDS = 30.0
_NAMES = {"index": "The index", "score": "The scoring", "null": "The comparison"}
_SCORE = "Next: score the collection with POST /replica/jobs/score, or start_scoring() of the Python client."


class ConsoleProgress:
    """Lines of progress: at each new stage of a job, every 30 s, and at its end.

    No line names a file, because the output may be kept as a log.
    """

    def __init__(self, services: Services, say: Callable[[str], None], seconds: float = _SECONDS):
        self.services, self._say, self._seconds = services, say, seconds
        self._told: dict[str, tuple[str, str, float]] = {}

    def run(self, every: float = 1.0, stop: threading.Event | None = None) -> None:
        """Prints progress until `stop` is set."""
        stop = stop or threading.Event()
        while not stop.wait(every):
            self.look()

    def look(self) -> None:
        """Prints what is new."""
        null = self.services.workers.null_job()
        jobs = {job.id: job for job in (*self.services.jobs.all(), *((null,) if null is not None else ()))}
        for job in jobs.values():
            if job.state in ("queued", "running"):
                self._progress(job)
        for id, (kind, _, _) in list(self._told.items()):
            job = jobs.get(id, Job(id, kind, "done"))
            if job.state not in ("queued", "running"):
                del self._told[id]
                self._say(self._end(job))

    def _progress(self, job: Job) -> None:
        _, stage, told = self._told.get(job.id, ("", "", 0.0))
        now = time.monotonic()
        if job.id not in self._told or stage != job.stage or now - told > self._seconds:
            self._told[job.id] = (job.kind, job.stage, now)
            self._say(f"{_NAMES.get(job.kind, job.kind)}: {job.words}.")

    def _end(self, job: Job) -> str:
        name = _NAMES.get(job.kind, job.kind)
        if job.state == "failed":
            return f"{name} could not be made. GET /replica/status and /replica/jobs say why."
        if job.state == "cancelled":
            return f"{name}: cancelled."
        hint = f" {_SCORE}" if job.kind == "index" and self.services.engine.scored() is None else ""
        return f"{name} is ready.{hint}"
