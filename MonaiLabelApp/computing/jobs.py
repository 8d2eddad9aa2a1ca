"""Background jobs: one at a time, each in its own process, with progress; they can be cancelled.

In its own process a job does not slow down the server's answers, frees all memory at its end, and can be ended at any
time: its results are on disk whole or not at all. The process ends with the server, even after a crash.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace

from replica_detection.errors import ReplicaDetectionError
from replica_detection.results.schema import Job, from_json, to_json
from replica_detection.util.files import atomic_write
from replica_detection_server.data_folder.disk_errors import storage_refusal
from replica_detection_server.errors import AlreadyRunningError
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.util.progress import Pace, throttled

logger = logging.getLogger(__name__)

KINDS = ("index", "score")
KEPT = 50
_GRACE_SECONDS = 5.0
_ENDED = ("done", "failed", "cancelled")


@dataclass
class _Entry:
    job: Job
    began: float = 0.0
    process: subprocess.Popen | None = None
    wanted: bool = True
    pace: Pace = field(default_factory=Pace)
    ended: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """The jobs of one server. Their states are kept in `<data>/jobs`, so that a restart still shows what became of
    them, with the last words of each process in `<id>.log`."""

    def __init__(self, configuration: Configuration):
        self.configuration = configuration
        self.folder = configuration.data / "jobs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._waiting: queue.SimpleQueue[_Entry] = queue.SimpleQueue()
        self._entries: dict[str, _Entry] = {}
        self._worker: threading.Thread | None = None
        for job in self._stored():
            if job.state not in _ENDED:
                job = replace(job, state="failed", message="the server was stopped; start the job again")
            entry = _Entry(job)
            entry.ended.set()
            self._entries[job.id] = entry

    def start(self, kind: str) -> Job:
        """Queues a job; it starts when no other runs. Raises AlreadyRunningError for a second one of a kind."""
        with self._lock:
            for entry in self._entries.values():
                if entry.job.kind == kind and entry.job.state not in _ENDED:
                    raise AlreadyRunningError(f"a job of the kind '{kind}' is {entry.job.state}: {entry.job.id}")
            entry = _Entry(Job(uuid.uuid4().hex, kind, "queued"))
            self._entries[entry.job.id] = entry
            self._forget_old()
            self._store()
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="jobs", daemon=True)
                self._worker.start()
            queued = self._now(entry)
        self._waiting.put(entry)
        return queued

    def all(self) -> list[Job]:
        """Oldest first."""
        with self._lock:
            return [self._now(entry) for entry in self._entries.values()]

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            entry = self._entries.get(job_id)
            return None if entry is None else self._now(entry)

    def cancel(self, job_id: str) -> Job | None:
        """Ends a job and waits for its end; one that has ended before stays as it was. None for an unknown id."""
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None:
                return None
            entry.wanted = False
            process = entry.process
            if entry.job.state == "queued":
                self._end(entry, "cancelled")
        if process is not None:
            _end_process(process)
        entry.ended.wait(2 * _GRACE_SECONDS)
        return self.get(job_id)

    def failure(self, kind: str) -> str:
        """The reason why the latest job of a kind failed; "" where it did not."""
        with self._lock:
            latest = [e.job for e in self._entries.values() if e.job.kind == kind]
        return latest[-1].message or "see the server's log" if latest and latest[-1].state == "failed" else ""

    def words(self, *kinds: str) -> str:
        """Stage and progress of the job under way, of the first kind that has one; "" where none has."""
        jobs = {job.kind: job.words for job in self.all() if job.state not in _ENDED}
        return next((jobs[kind] for kind in kinds if kind in jobs), "")

    def close(self) -> None:
        """Ends all jobs that run or wait; called when the server stops."""
        for job in self.all():
            if job.state not in _ENDED:
                self.cancel(job.id)

    def _work(self) -> None:
        while True:
            entry = self._waiting.get()
            with self._lock:
                if not entry.wanted:
                    continue
                entry.began = time.monotonic()
                entry.job = replace(entry.job, state="running", stage="starting")
                try:
                    entry.process = self._process(entry.job)
                except OSError as error:
                    self._end(entry, "failed", f"its process could not be started ({error.strerror})")
                    continue
                logger.info("job %s begun", entry.job.kind)
                self._store()
            message = self._follow(entry)
            code = entry.process.wait()
            with self._lock:
                if not entry.wanted:
                    self._end(entry, "cancelled")
                elif code == 0 and not message:
                    self._end(entry, "done")
                else:
                    self._end(entry, "failed", message or f"its process ended with {code}; see its log")

    def _process(self, job: Job) -> subprocess.Popen:
        with (self.folder / f"{job.id}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "replica_detection_server.computing.jobs", job.kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        assert process.stdin is not None
        # The pipe stays open: its end tells the process that the server is gone.
        with suppress(BrokenPipeError):
            process.stdin.write(self.configuration.to_json() + "\n")
            process.stdin.flush()
        return process

    def _follow(self, entry: _Entry) -> str:
        """Reads the progress that the process reports; returns its failure."""
        assert entry.process is not None and entry.process.stdout is not None
        message = ""
        for line in entry.process.stdout:
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(line)
                if "error" in said:
                    message = str(said["error"])
                else:
                    with self._lock:
                        entry.pace.note(str(said["stage"]), int(said["done"]), int(said["total"]))
                        entry.job = replace(
                            entry.job, stage=str(said["stage"]), done=int(said["done"]), total=int(said["total"])
                        )
        return message

    def _now(self, entry: _Entry) -> Job:
        if entry.job.state == "queued":
            return replace(entry.job, words="waits until another job has ended")
        if entry.job.state != "running":
            return entry.job
        left = entry.pace.seconds_left
        return replace(
            entry.job,
            seconds=round(time.monotonic() - entry.began, 1),
            words=entry.pace.words,
            seconds_left=None if left is None else round(left),
        )

    def _end(self, entry: _Entry, state: str, message: str = "") -> None:
        entry.job = replace(self._now(entry), state=state, message=message, words="", seconds_left=None)
        logger.info("job %s ended after %.0f s: %s", entry.job.kind, entry.job.seconds, state)
        entry.process = None
        entry.ended.set()
        self._store()

    def _forget_old(self) -> None:
        ended = [id for id, entry in self._entries.items() if entry.job.state in _ENDED]
        for id in ended[: max(0, len(self._entries) - KEPT)]:
            del self._entries[id]
            (self.folder / f"{id}.log").unlink(missing_ok=True)

    def _store(self) -> None:
        # A full disk must not keep a job from being ended.
        with suppress(OSError), atomic_write(self.folder / "jobs.json") as f:
            json.dump([to_json(entry.job) for entry in self._entries.values()], f, indent=1)

    def _stored(self) -> list[Job]:
        try:
            return [from_json(Job, j) for j in json.loads((self.folder / "jobs.json").read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return []


def _end_process(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


# ------------------------------------------------------------------------------------------------ inside the process


def main() -> int:
    """One job: its kind on the command line, the configuration in the first line of input, progress as JSON lines."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of a library must not be read as progress
    configuration = Configuration.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    with suppress(AttributeError, OSError):
        os.nice(5)  # the readers' own comparisons go first
    from replica_detection_server.comparison.tasks import TASKS

    def say(**words: object) -> None:
        print(json.dumps(words), file=out, flush=True)

    try:
        tell = throttled(lambda stage, done, total: say(stage=stage, done=done, total=total), 0.2)
        TASKS[sys.argv[1]](configuration, tell)
    except Exception as error:
        storage = storage_refusal(error)
        if storage is None and not isinstance(error, ReplicaDetectionError):
            raise
        say(error=str(error) if storage is None else storage.detail)
        return 1
    return 0


def _end_with_the_server() -> None:
    # Not sys.stdin: its lock would keep the interpreter from ending while this thread waits in it.
    while os.read(0, 4096):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
