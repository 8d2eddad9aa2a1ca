"""Events between the session and its panels, and the work that the user waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Event:
    """Calls its listeners, in the order in which they were added."""

    def __init__(self) -> None:
        self._listeners: list[Callable] = []

    def connect(self, listener: Callable) -> None:
        self._listeners.append(listener)

    def __call__(self, *values: Any) -> None:
        for listener in list(self._listeners):
            listener(*values)


@dataclass(frozen=True)
class Activity:
    """Work that the user waits for, `done` of `total` steps; `total` is 0 if the number of steps is unknown."""

    text: str
    done: int = 0
    total: int = 0


class Activities:
    """Runs work through the transport, and keeps the work that the user waits for.

    Events:
        changed(): `current` changed.
        failed(str): a message for the reader.
    """

    def __init__(self, transport: Any):
        self.transport = transport
        self.changed, self.failed = Event(), Event()
        self._waited: dict[Any, Activity] = {}

    @property
    def current(self) -> Activity | None:
        """The activity that the window shows, None if nobody waits."""
        return next(reversed(self._waited.values()), None)

    def start(
        self,
        text: str,
        work: Callable[[Any], Any],
        done: Callable[[Any], None],
        failed: Callable[[str], None] | None = None,
    ) -> Any:
        """Runs work that the user waits for."""
        task: Any = None

        def ended(receiver: Callable) -> Callable:
            def call(value: Any) -> None:
                self.drop(task)
                receiver(value)

            return call

        def progressed(stage: str, count: int, total: int) -> None:
            if task in self._waited:
                self.say(task, Activity(stage, count, total))

        task = self.transport.run(work, ended(done), ended(failed or self.failed), progressed)
        self.say(task, Activity(text))
        return task

    def quietly(self, work: Callable[[Any], Any], done: Callable[[Any], None]) -> Any:
        """Runs work that nobody waits for. If it fails, no message appears."""
        return self.transport.run(work, done, lambda message: None)

    def say(self, task: Any, activity: Activity) -> None:
        """Shows a task as one that the user waits for, with its progress."""
        self._waited[task] = activity
        self.changed()

    def drop(self, task: Any) -> None:
        """Removes a task from those that the user waits for."""
        if self._waited.pop(task, None) is not None:
            self.changed()

    def cancel(self) -> None:
        """Cancels everything that the user waits for."""
        for task in self._waited:
            task.cancel()
        self._waited.clear()
        self.changed()
