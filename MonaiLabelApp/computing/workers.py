"""The processes that compute for requests. One that takes too long or too much memory is ended and replaced.

An image reader that hangs or crashes on a file ends a worker and never the server: the caller gets an answer that says
so, and the place in the queue is free again.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from replica_detection.results.schema import Job, from_json
from replica_detection_server.computing.queue import CALLER_GONE, RUNNING
from replica_detection_server.errors import (
    CallerGoneError,
    FailedError,
    InvalidRequestError,
    TimeLimitError,
    UnavailableError,
)
from replica_detection_server.incoming.error_responses import STATUS
from replica_detection_server.records.redacted_replies import FAILED
from replica_detection_server.settings.configuration import Configuration

logger = logging.getLogger(__name__)

SECONDS = 600.0
START_SECONDS = 120.0
# Seconds in which a computation without a caller may still end by itself: a new process takes longer than most.
GONE_SECONDS = 10.0
POLL_SECONDS = 0.05
RETRY_SECONDS = 5
# The refusals of the processes, by their names.
KINDS = {kind.__name__: kind for kind in STATUS}
LONGEST_LINE = 16 << 10
# Computations that leave much memory in their process.
ONCE = ("train", "scoring")


def default_memory() -> int:
    """A third of the memory of this machine or container: two workers, and the server with the rest."""
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total // 3


@dataclass(frozen=True)
class Limits:
    """Limits of one computation: its time, and the memory of its process."""

    seconds: float
    memory_bytes: int

    @classmethod
    def of(cls, seconds: float = SECONDS, memory_mb: int = 0) -> Limits:
        """`memory_mb` 0: a share of the machine's."""
        return cls(seconds, memory_mb << 20 or default_memory())


@dataclass(frozen=True)
class Result:
    """Result of a computation: `value` is JSON; `file` was made for this result, or is one that a task named."""

    value: Any = None
    file: Path | None = None

    def content(self) -> bytes:
        """The bytes of the file that was made for this result; the file is deleted."""
        assert self.file is not None
        try:
            return self.file.read_bytes()
        finally:
            self.file.unlink(missing_ok=True)


class Workers:
    """Up to `running` processes, each started when the others are busy and kept for the next request.

    Args:
        configuration: what the server was started with.
        limits: of each computation.
    """

    def __init__(self, configuration: Configuration, limits: Limits, running: int = RUNNING):
        self.configuration, self.limits, self.running = configuration, limits, running
        self._changed = threading.Condition()
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._closed = False
        self._sizes: dict[str, int] = {}

    def start(self) -> None:
        """Starts the first one, so that it is warm when it is needed. Returns at once."""
        with self._changed:
            if not self._all and not self._closed:
                self._idle.append(self._started())

    def call(
        self, task: str, arguments: dict[str, Any], *, uploaded: bool = False, seconds: float | None = None
    ) -> Result:
        """Has a process compute one of `computations.COMPUTATIONS` and waits for it.

        Args:
            uploaded: True if it reads a file that the caller sent: a failure is then the fault of the file.
            seconds: a shorter limit than that of each computation.

        Raises:
            RefusedError: what the computation refuses. InvalidRequestError, UnavailableError or TimeLimitError where
                it was ended or its process died, CallerGoneError where the caller went away, FailedError where it
                failed, with a line in the log.
        """
        gone = CALLER_GONE.get()
        limit = self.limits.seconds if seconds is None else min(seconds, self.limits.seconds)
        worker = self._take(gone)
        answered = False
        try:
            said = self._ask(worker, task, arguments, uploaded, gone, limit)
            file = worker.handed_over(Path(said["file"])) if said.get("file") else None
            answered = True
        finally:
            # Much memory is not given back to the system, and would count against the next.
            if not answered or task in ONCE or worker.memory_bytes() > self.limits.memory_bytes // 2:
                worker.end()
            with self._changed:
                if worker.is_alive and not self._closed:
                    self._idle.append(worker)
                else:
                    self._all.remove(worker)
                self._changed.notify()
        if "refused" in said:
            kind, detail, retry_after = said["refused"]
            raise KINDS[kind](detail, retry_after)
        if "failed" in said:
            logger.error("failed: %s", said["failed"])
            raise FailedError(FAILED)
        return Result(said["value"], file)

    def null_job(self) -> Job | None:
        """The null while a process computes it, as a job for progress bars."""
        with self._changed:
            jobs = [worker.null for worker in self._all if worker.null is not None and worker.is_alive]
        return max(jobs, key=lambda job: job.done, default=None)

    def null_size(self, version: str) -> int:
        """Cases of the null of an index; 0 while it is unknown."""
        return self._sizes.get(version, 0)

    def close(self) -> None:
        """Ends all processes; a caller that waits for one is told that the server stops."""
        with self._changed:
            self._closed = True
            workers, self._idle = list(self._all), []
            self._changed.notify_all()
        for worker in workers:
            worker.end()

    def _take(self, gone: Callable[[], bool] | None) -> _Worker:
        with self._changed:
            while True:
                if self._closed:
                    _stopping()
                while self._idle:
                    worker = self._idle.pop()
                    if worker.is_alive:
                        return worker
                    self._all.remove(worker)
                if len(self._all) < self.running:
                    return self._started()
                self._changed.wait(1.0)
                if gone is not None and gone():
                    raise CallerGoneError

    def _started(self) -> _Worker:
        folder = self.configuration.data / "workers"
        if not self._all:
            shutil.rmtree(folder, ignore_errors=True)  # what an earlier server left
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        worker = _Worker(self.configuration, folder, self._sizes)
        self._all.append(worker)
        return worker

    def _ask(
        self,
        worker: _Worker,
        task: str,
        arguments: dict[str, Any],
        uploaded: bool,
        gone: Callable[[], bool] | None,
        seconds: float,
    ) -> dict[str, Any]:
        """The answer; a process without one within the limits is ended."""
        asked = time.monotonic()
        look, gone_since = asked + 1.0, 0.0
        worker.ask(task, arguments)
        while True:
            said = worker.said(POLL_SECONDS)
            now = time.monotonic()
            if said is None:
                pass
            elif "ended" in said:
                if self._closed:
                    _stopping()
                _died(worker, task, uploaded)
            elif "memory" in said:
                self._too_much(worker, task)
            else:
                return said
            if now > (asked + START_SECONDS if worker.began is None else worker.began + seconds):
                worker.end()
                if worker.began is None:
                    _not_started(task)
                _too_long(task, uploaded, seconds)
            if worker.memory_bytes() > self.limits.memory_bytes:
                self._too_much(worker, task)
            if gone is not None and now > look:
                look = now + 1.0
                gone_since = (gone_since or now) if gone() else 0.0
                if gone_since and now > gone_since + GONE_SECONDS:
                    worker.end()
                    raise CallerGoneError

    def _too_much(self, worker: _Worker, task: str) -> NoReturn:
        worker.end()
        limit = f"{self.limits.memory_bytes >> 20} MiB"
        logger.warning("a computation was ended beyond %s of memory: %s", limit, task)
        raise InvalidRequestError(f"This needs more memory than the {limit} that one computation may take.")


class _Worker:
    """One process, its private folder for temporary files, and its output."""

    def __init__(self, configuration: Configuration, folder: Path, sizes: dict[str, int]):
        self.folder = Path(tempfile.mkdtemp(prefix="worker-", dir=folder))
        self.began: float | None = None
        self.null: Job | None = None
        self._sizes = sizes
        self._ended = False
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # Output of libraries may name a patient: it goes into a private folder that is deleted with the process.
        with (self.folder / "words.log").open("wb") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "replica_detection_server.computing.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                encoding="utf-8",
                env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.folder))},
                start_new_session=True,
            )
        self._memory = psutil.Process(self._process.pid)
        self._write(configuration.to_json())
        threading.Thread(target=self._listen, name="worker", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    def ask(self, task: str, arguments: dict[str, Any]) -> None:
        self.began = None
        text = json.dumps(arguments)
        if len(text) > LONGEST_LINE:  # a pipe takes so much at once and no more
            path = self.folder / "arguments.json"
            path.write_text(text, encoding="utf-8")
            text = json.dumps(str(path))
        self._write(f'{{"task": {json.dumps(task)}, "arguments": {text}}}')

    def said(self, seconds: float) -> dict[str, Any] | None:
        """The answer, or `ended`; None where neither comes in time."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def memory_bytes(self) -> int:
        """Memory of the process alone, without files that are mapped and shared."""
        try:
            found = self._memory.memory_info()
        except psutil.Error:
            return 0
        return int(found.rss - getattr(found, "shared", 0))

    def handed_over(self, path: Path) -> Path:
        """A result that outlives the process; a file that is not its own stays where it is."""
        if not path.resolve().is_relative_to(self.folder.resolve()):
            return path
        return Path(shutil.move(path, Path(tempfile.gettempdir()) / path.name))

    def end(self) -> None:
        """Ends it and what it started, at once."""
        self._ended = True
        if self._process.poll() is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL) if os.name == "posix" else self._process.kill()

    def exit_code(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(5)
        return None

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: its output says so as well
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):  # the last line of a process that was ended
                self._hear(json.loads(line))
        self._answers.put({"ended": True})
        self.exit_code()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _hear(self, said: dict[str, Any]) -> None:
        if "began" in said:
            self.began = time.monotonic()
        elif "null" in said:
            self.null = None if said["null"] is None else from_json(Job, said["null"])
            if said["size"]:
                self._sizes[said["version"]] = said["size"]
        else:
            self._answers.put(said)


def _died(worker: _Worker, task: str, uploaded: bool) -> NoReturn:
    code = worker.exit_code()
    logger.error("the process of a computation ended with %s: %s", code, task)
    if worker.began is None:
        _not_started(task)
    if uploaded:
        detail = "The process that read this file ended at it: the file is damaged, or too large for this server."
        raise InvalidRequestError(detail)
    detail = "The process that computed this ended unexpectedly; try again."
    raise UnavailableError(detail, RETRY_SECONDS)


def _too_long(task: str, uploaded: bool, seconds: float) -> NoReturn:
    limit = f"{seconds:g} s"
    logger.warning("a computation was ended after %s: %s", limit, task)
    advice = " Start it without run_sync." if task in ONCE else ""
    detail = f"This took longer than the {limit} that one computation may take, and was ended.{advice}"
    raise InvalidRequestError(detail) if uploaded else TimeLimitError(detail)


def _not_started(task: str) -> NoReturn:
    logger.error("the process of a computation did not start: %s", task)
    raise UnavailableError("The process that computes could not be started; try again later.", RETRY_SECONDS)


def _stopping() -> NoReturn:
    raise UnavailableError("The server is stopping.", RETRY_SECONDS)
