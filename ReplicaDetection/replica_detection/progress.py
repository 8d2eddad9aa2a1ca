"""Progress reports of long work, as a callback."""

from __future__ import annotations

from collections.abc import Callable

# progress(stage, done, total): called often and cheaply; `stage` is a word for people such as "preparing".
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Says nothing."""
