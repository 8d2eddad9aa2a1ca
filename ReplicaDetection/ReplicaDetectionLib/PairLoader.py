"""PairLoader: reads the pair that is wanted on screen, and others ahead of time; no pair is read twice at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ReplicaDetectionLib.CasePair import CasePair
from ReplicaDetectionLib.Events import Activities, Activity
from ReplicaDetectionLib.Sources import PairCache
from ReplicaDetectionLib.Translation import _

Key = tuple[str, str]


class PairLoader:
    """Reads pairs of one source.

    Args:
        activities: told what somebody waits for.
        cache: the source's pairs, keyed by synthetic id and training id ("": the nearest).
        show: called with the wanted pair.
    """

    def __init__(self, activities: Activities, cache: PairCache, show: Callable[[CasePair], None]):
        self._activities, self._cache, self._show = activities, cache, show
        self._running: dict[Key, Any] = {}
        self._wanted: Key | None = None

    def isReady(self, syntheticId: str, trainingId: str = "") -> bool:
        """True if a pair has been read and can be shown at once."""
        return self._cache.ready(syntheticId, trainingId) is not None

    def want(self, syntheticId: str, trainingId: str = "") -> None:
        """Shows this pair once it is read, and gives up any other that was wanted."""
        key = (syntheticId, trainingId)
        if self._wanted not in (None, key):
            self.giveUp()
        self._wanted = key
        ready = self._cache.ready(*key)
        if ready is not None:
            self._arrived(key, ready)
            return
        self._read(key)
        self._activities.say(self._running[key], Activity(_("Reading the case")))

    def ahead(self, syntheticId: str) -> None:
        """Reads a case's nearest pair before somebody asks for it."""
        key = (syntheticId, "")
        if not self.isReady(*key):
            self._read(key)

    def giveUp(self) -> None:
        """Cancels the reading of the wanted pair."""
        task = self._running.pop(self._wanted, None)
        self._wanted = None
        if task is not None:
            task.cancel()
            self._activities.drop(task)

    def cancel(self) -> None:
        """Cancels all reading."""
        self.giveUp()
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    def _read(self, key: Key) -> None:
        if key in self._running:
            return

        def work(task: Any) -> CasePair:
            return self._cache.get(*key, progress=task.progress, cancelled=task.cancelled)

        def failed(message: str) -> None:
            self._ended(key)
            if self._wanted == key:
                self._wanted = None
                self._activities.failed(message)

        def progressed(stage: str, done: int, total: int) -> None:
            if self._wanted == key and key in self._running:
                self._activities.say(self._running[key], Activity(stage, done, total))

        self._running[key] = self._activities.transport.run(
            work, lambda pair: self._arrived(key, pair), failed, progressed
        )

    def _ended(self, key: Key) -> None:
        self._activities.drop(self._running.pop(key, None))

    def _arrived(self, key: Key, pair: CasePair) -> None:
        self._ended(key)
        if self._wanted == key:
            self._wanted = None
            self._show(pair)
