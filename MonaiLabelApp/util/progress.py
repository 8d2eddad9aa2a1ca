"""Progress for people: said now and then, in words, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from replica_detection.progress import Progress


def throttled(tell: Progress, seconds: float) -> Progress:
    """Passes on what comes `seconds` or more after the last word, and each new stage and its end."""
    last_stage, last_time = "", 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if stage != last_stage or done == total or now - last_time > seconds:
            last_stage, last_time = stage, now
            tell(stage, done, total)

    return progress


# The stages of a job as people call them; others are words already.
_STAGES = {
    "preparing": "reading the training scans",
    "fitting": "fitting the embedding to the training scans",
    "null": "comparing real scans with each other",
    "comparing": "comparing the synthetic images",
    "drawing": "drawing the report",
}
# Before this nothing is said of the time that is left.
_SOON_SECONDS = 2.0


class Pace:
    """Progress of a job, and the time that its present stage will take by the pace that it has had.

    Counted from the first word of a stage, for a job that goes on with an earlier one begins far from zero.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.stage, self.done, self.total = "", 0, 0
        self._first, self._began, self._heard = 0, 0.0, 0.0

    def note(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage != self.stage or done < self.done:
            self._first, self._began = done, now
        self.stage, self.done, self.total, self._heard = stage, done, total, now

    @property
    def seconds_left(self) -> float | None:
        """Of the present stage; None where it cannot be told yet."""
        made, took = self.done - self._first, self._heard - self._began
        if made <= 0 or took < _SOON_SECONDS or self.done > self.total:
            return None
        return max(0.0, took / made * (self.total - self.done) - (self._clock() - self._heard))

    @property
    def words(self) -> str:
        """Such as "reading the training scans, 120 of 774, about 4 minutes left"."""
        parts = [_STAGES.get(self.stage, self.stage) or "starting"]
        if self.total:
            parts.append(f"{self.done} of {self.total}")
        if self.seconds_left is not None:
            parts.append(time_left(self.seconds_left))
        return ", ".join(parts)


def time_left(seconds: float) -> str:
    """About how long something will take, as people say it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left"
    if minutes < 90:
        return f"about {minutes} minute{'s' if minutes > 1 else ''} left"
    return f"about {round(minutes / 60)} hours left"
