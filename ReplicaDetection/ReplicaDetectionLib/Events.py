"""Events between the session and its panels, and what the window says while somebody waits."""

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
    """What somebody waits for; `total` 0: not known how long."""

    text: str
    done: int = 0
    total: int = 0


class Activities:
    """Runs work through the transport, and knows what of it somebody waits for.

    Events:
        changed(): `current` is another.
        failed(str): a message for the reader.
    """

    def __init__(self, transport: Any):
        self.transport = transport
        self.changed, self.failed = Event(), Event()
        self._waited: dict[Any, Activity] = {}

    @property
    def current(self) -> Activity | None:
        """What the window says at present."""
        return next(reversed(self._waited.values()), None)

    def start(
        self,
        text: str,
        work: Callable[[Any], Any],
        done: Callable[[Any], None],
        failed: Callable[[str], None] | None = None,
    ) -> Any:
        """Runs work that somebody waits for."""
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
        """Runs work that nobody waits for; if it fails, nobody is told."""
        return self.transport.run(work, done, lambda message: None)

    def say(self, task: Any, activity: Activity) -> None:
        """Somebody waits for this task, and this is how far it is."""
        self._waited[task] = activity
        self.changed()

    def drop(self, task: Any) -> None:
        """Nobody waits for this task any more."""
        if self._waited.pop(task, None) is not None:
            self.changed()

    def cancel(self) -> None:
        """Gives up everything that somebody waits for."""
        for task in self._waited:
            task.cancel()
        self._waited.clear()
        self.changed()
