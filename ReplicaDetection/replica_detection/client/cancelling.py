"""Cancelling of calls: a function is asked between blocks of a file and during a wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from replica_detection.errors import CancelledError

# Seconds between two questions during a wait.
POLL = 0.1

Cancel = Callable[[], bool]


def never() -> bool:
    """For a call that is not cancelled."""
    return False


def check(cancel: Cancel) -> None:
    """Raises CancelledError if the caller cancelled."""
    if cancel():
        raise CancelledError("Cancelled.")


def pause(seconds: float, cancel: Cancel) -> None:
    """Sleeps. Raises CancelledError as soon as the caller cancels."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        check(cancel)
        time.sleep(min(POLL, left))
