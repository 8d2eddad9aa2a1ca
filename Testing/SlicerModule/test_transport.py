"""Background work: off the window's thread, cancellable, and alive where the event loop holds Python's lock."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time

import pytest

from qtbench.fixtures import slicer_app, wait  # noqa: F401
from replica_detection.errors import ReplicaDetectionError


@pytest.fixture
def transport(slicer_app):  # noqa: F811
    from ReplicaDetectionLib.Transport import Transport

    made = Transport()
    yield made
    made.close()


class Heard:
    """What came back, and on which thread."""

    def __init__(self):
        self.done, self.failed, self.progress, self.threads = [], [], [], set()

    def on_done(self, value):
        self.done.append(value)
        self.threads.add(threading.current_thread())

    def on_failed(self, message):
        self.failed.append(message)
        self.threads.add(threading.current_thread())

    def on_progress(self, *values):
        self.progress.append(values)


def test_work_runs_elsewhere_and_its_outcome_comes_back_to_the_window(transport):
    heard = Heard()
    transport.run(lambda task: threading.current_thread(), heard.on_done, heard.on_failed)
    wait(lambda: heard.done)
    assert heard.done[0] is not threading.main_thread()
    assert heard.threads == {threading.main_thread()}
    assert not heard.failed


def test_errors_for_people_keep_their_words(transport):
    heard = Heard()

    def work(task):
        raise ReplicaDetectionError("no answer from http://127.0.0.1:1")

    transport.run(work, heard.on_done, heard.on_failed)
    wait(lambda: heard.failed)
    assert heard.failed == ["no answer from http://127.0.0.1:1"]


def test_faults_of_the_program_are_told_too(transport):
    heard = Heard()
    transport.run(lambda task: 1 / 0, heard.on_done, heard.on_failed)
    wait(lambda: heard.failed)
    assert "ZeroDivisionError" in heard.failed[0]


def test_an_outcome_that_cannot_be_shown_is_a_failure(transport):
    heard = Heard()
    transport.run(lambda task: 0, lambda value: 1 / value, heard.on_failed)
    wait(lambda: heard.failed)
    assert "ZeroDivisionError" in heard.failed[0]


def test_progress_comes_through_and_never_after_the_end(transport):
    heard = Heard()

    def work(task):
        for i in range(50):
            task.progress("reading", i, 50)
            time.sleep(0.002)
        return "done"

    transport.run(work, lambda value: heard.progress.append(value), heard.on_failed, heard.on_progress)
    wait(lambda: "done" in heard.progress)
    assert 1 < len(heard.progress) <= 51
    assert heard.progress[-1] == "done"
    assert all(p[0] == "reading" for p in heard.progress[:-1])


def test_a_cancelled_task_says_nothing_and_ends(transport):
    heard, ended = Heard(), threading.Event()

    def work(task):
        while not task.cancelled():
            time.sleep(0.002)
        ended.set()
        return "too late"

    task = transport.run(work, heard.on_done, heard.on_failed)
    assert transport.busy
    task.cancel()
    assert not transport.busy
    assert ended.wait(5)
    wait(lambda: not transport._timer.active)
    assert not heard.done
    assert not heard.failed


def test_nothing_ticks_while_nothing_runs(transport):
    heard = Heard()
    assert not transport._timer.active
    transport.run(lambda task: 1, heard.on_done, heard.on_failed)
    assert transport._timer.active
    wait(lambda: heard.done)
    assert not transport._timer.active


def test_the_window_ticks_on_while_work_computes(transport):
    from PySide6 import QtCore

    heard, ticks = Heard(), []
    timer = QtCore.QTimer()
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    timer.start(10)

    def work(task):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:  # pure Python: the worst case for the lock
            sum(range(1000))

    transport.run(work, heard.on_done, heard.on_failed)
    wait(lambda: heard.done)
    timer.stop()
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    assert len(ticks) > 10
    assert max(gaps) < 0.25


def test_work_gets_on_where_the_event_loop_holds_the_lock(transport):
    """PythonQt without full thread support keeps Python's lock while the event loop waits; a C function called through
    PyDLL does the same. Each step here waits for a moment, as each read of a socket does, and then needs the lock."""
    heard, steps, ticks = Heard(), [], 0

    def work(task):
        for i in range(200):
            time.sleep(0.0001)
            steps.append(i)
        return "done"

    holding = ctypes.PyDLL(None)
    transport.run(work, heard.on_done, heard.on_failed)
    transport._timer.stop()  # here the test is the event loop
    while not heard.done and ticks < 300:
        holding.usleep(20_000)
        transport._tick()
        ticks += 1
    assert heard.done == ["done"]
    assert steps == list(range(200))
    # Without handing the lock over there is one step a tick, that is 3 MB/s of a download at most.
    assert ticks < 60


def test_closing_cancels_everything(transport):
    heard, seen = Heard(), []

    def work(task):
        while not task.cancelled():
            time.sleep(0.002)
        seen.append("cancelled")

    for _ in range(3):
        transport.run(work, heard.on_done, heard.on_failed)
    transport.close()
    end = time.monotonic() + 5
    while len(seen) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    assert seen == ["cancelled"] * 3
    assert not heard.done
