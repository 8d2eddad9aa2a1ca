"""Cores of the process and threads of the libraries."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import SimpleITK
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from replica_detection.util.cores import WORKER, kernel_threads, one_core, one_thread, usable_cores


@pytest.fixture
def three_threads(monkeypatch):
    """Every library has three threads, so that there is something to restore on any machine."""
    monkeypatch.delenv(WORKER, raising=False)
    with threadpool_limits(3):
        torch.set_num_threads(3)
        itk = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
        yield
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(itk)
        torch.set_num_threads(usable_cores())


def threads() -> set[int]:
    found = {library["num_threads"] for library in threadpool_info()}
    return found | {torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()}


def in_python(code: str, **environment: str) -> str:
    run = [sys.executable, "-c", code]
    return subprocess.run(run, check=True, capture_output=True, text=True, env={**os.environ, **environment}).stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_counts():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += (
        "from replica_detection.util.cores import usable_cores, kernel_threads; print(usable_cores(), kernel_threads())"
    )
    assert in_python(code, LOKY_MAX_CPU_COUNT="64").split() == ["1", "1"]
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_libraries_have_one_thread_and_then_what_they_had(three_threads):
    before = dict(os.environ)
    assert threads() == {3}
    with one_thread():
        assert threads() == {1}
    assert threads() == {3}
    assert dict(os.environ) == before


def test_an_error_restores_too(three_threads):
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert threads() == {3}


def test_limits_last_until_the_last_thread_leaves(three_threads):
    first_left, second_in = threading.Event(), threading.Event()
    seen = []

    def second():
        with one_thread():
            second_in.set()
            first_left.wait(20)
            seen.append(threads())

    thread = threading.Thread(target=second)
    with one_thread():
        thread.start()
        second_in.wait(20)
    first_left.set()
    thread.join()
    assert seen == [{1}]
    assert threads() == {3}


def test_what_is_imported_inside_has_one_thread_too():
    code = """
from replica_detection.util.cores import one_thread, usable_cores
def threads():
    from threadpoolctl import threadpool_info
    return {torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads(),
            *(library["num_threads"] for library in threadpool_info())}
with one_thread():
    import SimpleITK, torch
    assert threads() == {1}, threads()
assert threads() == {usable_cores()}, threads()
"""
    in_python(code)


def test_kernels_have_one_thread_in_a_worker_alone(monkeypatch):
    monkeypatch.delenv(WORKER, raising=False)
    assert kernel_threads() == usable_cores()
    with one_core():
        assert kernel_threads() == 1
    assert kernel_threads() == usable_cores()
    monkeypatch.setenv(WORKER, "1")
    assert kernel_threads() == 1


def test_a_product_is_the_same_on_any_number_of_threads():
    a, b = np.random.default_rng(0).standard_normal((2, 300, 300)).astype(np.float32)
    with threadpool_limits(1):
        expected = a @ b
    with threadpool_limits(4), one_thread():
        assert (a @ b).tobytes() == expected.tobytes()
