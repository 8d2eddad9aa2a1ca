"""The cores that this process may use, and how many threads the libraries below it may take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

# Set in the processes that a runner starts: each of them has one core.
WORKER = "REPLICA_DETECTION_WORKER"

# Variables with the number of threads of the libraries, which most of them read once, when they load.
ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)

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
    number of cores. Libraries that are imported in here have one thread too. Threads may enter side by side: the limits
    end when the last of them leaves. OpenMP alone counts for each thread, so a thread that is started in here and calls
    OpenMP must enter by itself.
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
    from threadpoolctl import ThreadpoolController

    before = ExitStack()
    loaded = ThreadpoolController()
    before.enter_context(loaded.limit(limits=1, user_api="blas"))
    threads = {name: get() for name, (get, _) in _imported().items()}
    known = {library.filepath for library in loaded.lib_controllers}
    variables = {name: os.environ.get(name) for name in ONE_THREAD}
    before.callback(_restore, threads, known, variables)
    for _, set_threads in _imported().values():
        set_threads(1)
    # For what is imported later.
    os.environ.update(dict.fromkeys(variables, "1"))
    return before


def _imported() -> dict[str, tuple[Callable[[], int], Callable[[int], None]]]:
    """Of torch and SimpleITK those that are imported, with what reads and sets their number of threads."""
    found: dict[str, tuple[Callable[[], int], Callable[[int], None]]] = {}
    if torch := sys.modules.get("torch"):
        found["torch"] = torch.get_num_threads, torch.set_num_threads
    if itk := sys.modules.get("SimpleITK"):
        process = itk.ProcessObject
        found["SimpleITK"] = process.GetGlobalDefaultNumberOfThreads, process.SetGlobalDefaultNumberOfThreads
    return found


def _restore(threads: dict[str, int], known: set[str], variables: dict[str, str | None]) -> None:
    """Libraries that were imported meanwhile have all cores from now on."""
    from threadpoolctl import ThreadpoolController

    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for library in ThreadpoolController().lib_controllers:
        if library.filepath not in known:
            library.set_num_threads(usable_cores())
    for name, (_, set_threads) in _imported().items():
        set_threads(threads.get(name, usable_cores()))
