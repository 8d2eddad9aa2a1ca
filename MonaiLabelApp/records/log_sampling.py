"""A limit on log lines of one kind in a minute: a flood of refused requests must not push the history out."""

from __future__ import annotations

import threading
import time
from collections import Counter

SECONDS = 60.0
EACH, ALL = 10, 60
# Number of sources counted separately in a minute; further ones are counted together.
SOURCES, NAMED = 1000, 3
OTHERS = "others"


class Sampler:
    """Lets through the first EACH lines of each source in a minute, and ALL of all sources; counts the rest."""

    def __init__(self, what: str, each: int = EACH, all: int = ALL, seconds: float = SECONDS):
        self.what, self.each, self.all, self.seconds = what, each, all, seconds
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._seen: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._passed = 0

    def admits(self, source: str) -> bool:
        """True if the line is to be written."""
        with self._lock:
            if source not in self._seen and len(self._seen) >= SOURCES:
                source = OTHERS
            self._seen[source] += 1
            if self._seen[source] <= self.each and self._passed < self.all:
                self._passed += 1
                return True
            self._held[source] += 1
            return False

    def summary(self, *, now: bool = False) -> str:
        """The counts of lines not written, once the minute is over, or `now`; else "". A new minute begins."""
        with self._lock:
            if not now and time.monotonic() - self._began < self.seconds:
                return ""
            held, self._began, self._passed = self._held, time.monotonic(), 0
            self._seen, self._held = Counter(), Counter()
        if not held:
            return ""
        named = ", ".join(f"{n:,} of {source}" for source, n in held.most_common(NAMED))
        more = f" and {len(held) - NAMED} more" if len(held) > NAMED else ""
        return f"and {held.total():,} more {self.what} in the last minute ({named}{more})"
