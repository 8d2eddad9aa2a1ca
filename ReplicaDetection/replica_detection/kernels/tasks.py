"""Runs many small tasks on all cores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from replica_detection.util.cores import kernel_threads


def run(kernel: Callable[..., None], tasks: int, *arguments: Any) -> None:
    """Call `kernel(first, end, ...)` over all tasks on all cores, in small portions that idle workers take.

    The kernel must release the GIL and write each task's result to a place of its own: results then never depend on
    the number of cores. numba's own `prange` deals tasks out beforehand and then waits for the slowest core, which
    costs severalfold on a machine with other work; some of its threading layers break on two callers or after a fork.
    """
    if not tasks:
        return
    workers = min(kernel_threads(), tasks)
    step = max(1, tasks // (16 * workers))
    portions = iter(range(0, tasks, step))

    def work() -> None:
        for first in portions:
            kernel(first, min(first + step, tasks), *arguments)

    with ThreadPoolExecutor(workers) as pool:
        for worker in [pool.submit(work) for _ in range(workers)]:
            worker.result()
