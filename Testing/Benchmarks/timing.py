"""What a benchmark reports, and how it is timed: ratios within one run, because machines and their load differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table. `difference` is the largest one to the reference, in the measure's unit; only a
    difference above `tolerance` is an error, a time never is."""

    what: str
    against: str
    data: str
    ours: str
    reference: str
    ratio: float
    budget: float
    difference: float = 0.0
    tolerance: float = 1e-5

    @property
    def equal(self) -> bool:
        return self.difference <= self.tolerance


def interleaved(
    ours: Callable[[], Any], reference: Callable[[int], Any], pairs: int, repeats: int
) -> tuple[float, float]:
    """Median seconds of one call of `ours`, and of one pair of `reference`, called with 0, 1, ... as the pair.

    The two take turns, so that a slow moment of the machine meets both. The first round does not count.
    """
    mine, theirs = [], []
    pair = 0
    for _ in range(repeats + 1):
        mine.append(_seconds(ours))
        for _ in range(pairs):
            theirs.append(_seconds(lambda pair=pair: reference(pair)))
            pair += 1
    return median(mine[1:]), median(theirs[pairs:])


def in_milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"


def grid_name(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
