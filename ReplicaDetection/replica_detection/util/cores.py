"""The cores that this process may use, and how many threads the libraries below it may take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock
from typing import Any

# Set in the processes that a runner starts: each of them has one core.
WORKER = "REPLICA_DETECTION_WORKER"

# Environment of a process that has one core. Most libraries read theirs once, when they load.
ONE_THREAD = {
    WORKER: "1",
    **dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS",
            "NUMBA_NUM_THREADS",
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
        ),
        "1",
    ),
}

_lock = Lock()
_held = 0
_on_one_core = 0
_before = ExitStack()


@cache
def usable_cores() -> int:
    """Number of cores that this process may use, at least 1, as it stands at the first call.

    Affinity and the CPU quota of the cgroup (versions 1 and 2) are respected, and so is LOKY_MAX_CPU_COUNT in the
    environment.
    """
    from loky import cpu_count

    return int(cpu_count())


def kernel_threads() -> int:
    """Number of threads that a pool of this process may have: `usable_cores()`, or 1 in a worker of a runner, where the
    other cores belong to other workers."""
    return 1 if _on_one_core or os.environ.get(WORKER) else usable_cores()


@contextmanager
def one_thread() -> Iterator[None]:
    """Holds BLAS, OpenMP, torch and SimpleITK to one thread each; afterwards they have as many as before.

    A matrix product that is split over other threads can round otherwise: what runs in here gives the same bits on any
    number of cores. torch and SimpleITK count where they are imported already. Threads may enter side by side: the
    limits end when the last of them leaves. OpenMP alone counts for each thread, so a thread that is started in here
    and calls OpenMP must enter by itself.
    """
    from threadpoolctl import threadpool_limits

    global _held, _before
    with _lock:
        if not _held:
            _before = _limit_process()
        _held += 1
    try:
        with threadpool_limits(1, "openmp"):
            yield
    finally:
        with _lock:
            _held -= 1
            if not _held:
                _before.close()


@contextmanager
def one_core() -> Iterator[None]:
    """`one_thread`, and `kernel_threads()` is 1 in the whole process: for a task whose process has one core."""
    global _on_one_core
    with _lock:
        _on_one_core += 1
    try:
        with one_thread():
            yield
    finally:
        with _lock:
            _on_one_core -= 1


def _limit_process() -> ExitStack:
    """Limits what counts for the whole process; closing the stack restores it."""
    from threadpoolctl import threadpool_limits

    before = ExitStack()
    before.enter_context(threadpool_limits(1, "blas"))
    if "torch" in sys.modules:
        torch: Any = sys.modules["torch"]
        before.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
    if "SimpleITK" in sys.modules:
        itk: Any = sys.modules["SimpleITK"].ProcessObject
        before.callback(itk.SetGlobalDefaultNumberOfThreads, itk.GetGlobalDefaultNumberOfThreads())
        itk.SetGlobalDefaultNumberOfThreads(1)
    return before
