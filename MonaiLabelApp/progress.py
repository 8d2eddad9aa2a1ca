"""Progress for people: said now and then, not for every step."""

from __future__ import annotations

import time

from replica_detection.progress import Progress


def seldom(tell: Progress, seconds: float) -> Progress:
    """Passes on what comes `seconds` or more after the last word, and each new stage and its end."""
    last_stage, last_time = "", 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if stage != last_stage or done == total or now - last_time > seconds:
            last_stage, last_time = stage, now
            tell(stage, done, total)

    return progress
