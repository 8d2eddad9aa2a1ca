"""Progress in words, with the time that is left, at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable

from replica_detection.progress import Progress


def throttled(tell: Progress, seconds: float) -> Progress:
    """Passes on progress that comes `seconds` or more after the last one, and each new stage and its end."""
    last_stage, last_time = "", 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if stage != last_stage or done == total or now - last_time > seconds:
            last_stage, last_time = stage, now
            tell(stage, done, total)

    return progress


# Words for the stages of a job; other stages are words already.
_STAGES = {
    "preparing": "reading the training scans",
    "fitting": "fitting the embedding to the training scans",
    "null": "comparing real scans with each other",
    "comparing": "comparing the synthetic images",
    "drawing": "drawing the report",
}
# No remaining time is given before this.
_SOON_SECONDS = 2.0


class Pace:
    """Progress of a job, and the remaining time of its present stage at its pace so far.

    Counted from the first report of a stage, because a continued job does not begin at zero.
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
        """Remaining seconds of the present stage; None while they cannot be estimated."""
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
    """A duration in words, rounded."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left"
    if minutes < 90:
        return f"about {minutes} minute{'s' if minutes > 1 else ''} left"
    return f"about {round(minutes / 60)} hours left"
