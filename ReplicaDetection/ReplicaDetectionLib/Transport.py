"""Transport: work that may take long, off the window's thread. The one file of the module with threads in it.

A task runs in a thread of its own and touches neither Qt nor MRML; what it reports waits in a queue that a timer of the
window's thread empties. Slicer's event loop may hold Python's lock while it waits, and then no other thread of Python
runs: so, as long as a task is under way, each tick of the timer sleeps for a moment, which hands the lock over.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import qt

from replica_detection.errors import ReplicaDetectionError

TICK_MS = 20
# Of each tick; the window stays free for the rest of it.
YIELD_SECONDS = 0.004


class Task:
    """One piece of work: `progress` and `cancelled` are for the work itself, `cancel` for the window."""

    def __init__(self, reports: queue.SimpleQueue, done: Callable, failed: Callable, progressed: Callable | None):
        self._reports, self._cancel = reports, threading.Event()
        self.done, self.failed, self.progressed = done, failed, progressed

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tells how far the work is; from the task's thread."""
        if self.progressed is not None:
            self._reports.put((self, "progressed", (stage, done, total)))

    def cancelled(self) -> bool:
        """True once the task was cancelled; asked from the task's thread."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Stops all reports of this task; its thread ends at its next step or time-out."""
        self._cancel.set()


class Transport:
    """Runs tasks and calls back on the thread that made it."""

    def __init__(self):
        self._reports: queue.SimpleQueue = queue.SimpleQueue()
        self._running: set[Task] = set()
        self._timer = qt.QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.connect("timeout()", self._tick)

    @property
    def busy(self) -> bool:
        """True while a task runs that was not cancelled."""
        return any(not task.cancelled() for task in self._running)

    def run(
        self,
        work: Callable[[Task], Any],
        done: Callable[[Any], None],
        failed: Callable[[str], None],
        progressed: Callable[[str, int, int], None] | None = None,
    ) -> Task:
        """Starts `work(task)` in a thread.

        Args:
            done: called with what `work` returned.
            failed: called with a message for the reader of the screen.
            progressed: called with what `work` told `task.progress`; of several reports in one tick, the last.
        """
        task = Task(self._reports, done, failed, progressed)
        self._running.add(task)
        # A daemon: a server that never answers must not keep the application from ending.
        threading.Thread(target=self._work, args=(task, work), name="ReplicaDetection", daemon=True).start()
        if not self._timer.active:
            self._timer.start()
        return task

    def close(self) -> None:
        """Cancels everything and stops the timer."""
        for task in self._running:
            task.cancel()
        self._timer.stop()

    def _work(self, task: Task, work: Callable[[Task], Any]) -> None:
        try:
            outcome = ("done", (work(task),))
        except ReplicaDetectionError as error:
            outcome = ("failed", (str(error),))
        except Exception as error:  # a fault of the program must not end in silence
            logging.exception("Replica Detection: a task failed")
            outcome = ("failed", (f"{type(error).__name__}: {error}",))
        self._reports.put((task, *outcome))

    def _tick(self) -> None:
        if self._reports.empty():
            time.sleep(YIELD_SECONDS)
        latest: dict[Task, tuple] = {}
        while not self._reports.empty():
            task, kind, values = self._reports.get()
            if kind == "progressed":
                latest[task] = values
                continue
            latest.pop(task, None)
            self._running.discard(task)
            self._call(task, getattr(task, kind), values)
        for task, values in latest.items():
            self._call(task, task.progressed, values)
        if not self._running:
            self._timer.stop()

    def _call(self, task: Task, receiver: Callable, values: tuple) -> None:
        """Calls a receiver. An error in it counts as a failure of the task; the timer continues in any case."""
        if task.cancelled():
            return
        try:
            receiver(*values)
        except Exception as error:
            logging.exception("Replica Detection: the outcome of a task could not be shown")
            if receiver is not task.failed:
                self._call(task, task.failed, (f"{type(error).__name__}: {error}",))
