"""The cores that this process may use, and how many threads the libraries below it may take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
_before: _State | None = None


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
    number of cores. Libraries that are imported in here have one thread too, and all cores afterwards. Threads may
    enter side by side: the limits end when the last of them leaves. OpenMP alone counts for each thread, so a thread
    that is started in here and calls OpenMP must enter by itself.
    """
    global _held, _before
    with _lock:
        libraries = _libraries()
        own = {name: library.threads() for name, library in libraries.items() if library.of_a_thread}
        if not _held:
            _before = _State.of(libraries)
            for library in libraries.values():
                library.set_threads(1)
            os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        for name in own:
            libraries[name].set_threads(1)
        _held += 1
    try:
        yield
    finally:
        with _lock:
            _held -= 1
            if not _held and _before is not None:
                _before.restore()
            for name, threads in own.items():
                libraries[name].set_threads(threads)


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


@dataclass(frozen=True)
class _Library:
    """A loaded library; `of_a_thread` where each thread has a number of its own."""

    threads: Callable[[], int]
    set_threads: Callable[[int], None]
    of_a_thread: bool = False


def _libraries() -> dict[str, _Library]:
    """Libraries with threads that are loaded now, by file or name; torch after the OpenMP that it sets."""
    from threadpoolctl import ThreadpoolController

    found = {}
    for library in ThreadpoolController().lib_controllers:
        # From 3.8 on, the plain setter leaves OpenBLAS to the thread that set it first; here the last one restores.
        setter = getattr(library, "_real_set_num_threads", library.set_num_threads)
        found[library.filepath] = _Library(library.get_num_threads, setter, library.user_api == "openmp")
    if torch := sys.modules.get("torch"):
        found["torch"] = _Library(torch.get_num_threads, torch.set_num_threads)
    if itk := sys.modules.get("SimpleITK"):
        process = itk.ProcessObject
        found["SimpleITK"] = _Library(process.GetGlobalDefaultNumberOfThreads, process.SetGlobalDefaultNumberOfThreads)
    return found


@dataclass(frozen=True)
class _State:
    """Threads of the libraries and the variables, as they were."""

    threads: dict[str, int]
    variables: dict[str, str | None]

    @classmethod
    def of(cls, libraries: dict[str, _Library]) -> _State:
        threads = {name: library.threads() for name, library in libraries.items()}
        return cls(threads, {name: os.environ.get(name) for name in ONE_THREAD})

    def restore(self) -> None:
        """Libraries that were loaded meanwhile have all cores from now on."""
        for name, value in self.variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for name, library in _libraries().items():
            library.set_threads(self.threads.get(name, usable_cores()))
