"""Work in this process, in worker processes and on a real dask cluster: the same results, whatever is killed."""

import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import work_items

from replica_detection import errors
from replica_detection.errors import ConfigurationError, InputError, WorkersLostError
from replica_detection.util.cores import WORKER, kernel_threads
from replica_detection.workers import InProcess, Runner, runner_for
from replica_detection.workers.cluster import Cluster, local_cluster
from replica_detection.workers.processes import Processes

PLACES = ["process", "processes", "cluster"]
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(params=PLACES)
def runner(request) -> Iterator[Runner]:
    if request.param == "cluster":
        yield request.getfixturevalue("cluster")
        return
    with InProcess() if request.param == "process" else Processes(2) as opened:
        yield opened


def in_order(pairs) -> list:
    return [result for _, result in sorted(pairs)]


def test_every_item_comes_back_with_its_position(runner):
    assert sorted(runner.map(work_items.square, range(11))) == [(n, n * n) for n in range(11)]
    assert list(runner.map(work_items.square, [])) == []


def test_bits_are_the_same_everywhere(runner):
    assert in_order(runner.map(work_items.bits, range(4))) == [
        result for _, result in InProcess().map(work_items.bits, range(4))
    ]


def test_items_are_read_as_they_are_needed(runner):
    read = []

    def items():
        for n in range(40):
            read.append(n)
            yield n

    ahead = []
    for done, _ in enumerate(runner.map(work_items.square, items()), 1):
        ahead.append(len(read) - done)
    assert len(read) == 40
    assert max(ahead) < 2 * runner.places


def test_an_error_arrives_whole_and_stops_the_rest(runner):
    read = []

    def items():
        for n in range(500):
            read.append(n)
            yield n

    with pytest.raises(InputError) as caught:
        list(runner.map(work_items.fails_at_five, items()))
    assert vars(caught.value) == vars(InputError("scan.nii.gz", "is empty", "Leave it out")) | {
        k: v for k, v in vars(caught.value).items() if k == "__notes__"
    }
    assert len(read) < 50
    # What was cancelled leaves nothing behind.
    assert in_order(runner.map(work_items.square, range(5))) == [0, 1, 4, 9, 16]


def test_a_function_of_a_script_and_a_closure_travel(runner):
    offset = 7
    assert in_order(runner.map(lambda number: number + offset, range(5))) == [7, 8, 9, 10, 11]


def test_a_worker_keeps_the_function_through_a_call(runner):
    calls = in_order(runner.map(work_items.Counter(), range(12)))
    most = {pid: max(n for p, n in calls if p == pid) for pid, _ in calls}
    assert sum(most.values()) == 12
    assert len(most) <= runner.places


def test_relative_paths_mean_the_same_everywhere(runner, tmp_path, monkeypatch):
    (tmp_path / "here").touch()
    monkeypatch.chdir(tmp_path)
    assert in_order(runner.map(lambda name: Path(name).exists(), ["here", "there", "here"])) == [True, False, True]


def test_an_error_that_no_pickle_carries_is_told_in_words(cluster):
    for runner in (Processes(2), cluster):
        with pytest.raises(RuntimeError, match="NotPortableError: 1 and 2"):
            list(runner.map(work_items.fails_without_pickle, range(3)))


def test_libraries_have_one_thread_in_workers(cluster):
    with Processes(2) as processes:
        for runner in (processes, cluster):
            assert in_order(runner.map(work_items.threads, range(2))) == [{1}, {1}]


@posix
@pytest.mark.parametrize("place", PLACES[1:])
def test_a_killed_worker_changes_nothing(place, request):
    runner = request.getfixturevalue("cluster") if place == "cluster" else Processes(2)
    found = []
    for position, (result, pid) in runner.map(work_items.pid_after_a_while, range(24)):
        found.append((position, result, pid))
        if len(found) == 5:
            os.kill(pid, signal.SIGKILL)
    assert sorted((position, result) for position, result, _ in found) == [(n, n * n) for n in range(24)]
    assert len({pid for *_, pid in found}) >= 2


@posix
def test_an_item_that_kills_its_worker_again_and_again_ends_the_run(caplog):
    with Processes(2) as runner, pytest.raises(WorkersLostError, match=r"3 times while they worked at items .*3"):
        list(runner.map(work_items.kills_its_worker, range(6)))
    assert "A worker process was killed" in caplog.text


@posix
def test_a_worker_that_is_killed_while_it_waits_for_work_is_no_loss():
    with Processes(2) as runner:
        pids = {pid for _, (_, pid) in runner.map(work_items.pid_after_a_while, range(4))}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert in_order(runner.map(work_items.square, range(4))) == [0, 1, 4, 9]


def test_the_pool_is_there_for_the_next_runner():
    def pids():
        with Processes(2) as runner:
            return {pid for _, (_, pid) in runner.map(work_items.pid_after_a_while, range(8))}

    assert pids() & pids()


def test_processes_work_from_another_thread():
    found = []

    def work():
        with Processes(2) as runner:
            found.extend(in_order(runner.map(work_items.square, range(6))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("kind", [k for _, k in inspect.getmembers(errors, inspect.isclass)])
def test_errors_come_out_of_a_pickle_as_they_went_in(kind):
    words = {"status": 404, "detail": "no case"} if issubclass(kind, errors.ServerError) else {}
    if kind is errors.ServerBusyError:
        words = {"detail": "busy", "retry_after": 3.0}
    values = ("a.nii.gz", "is empty", "Leave it out") if issubclass(kind, InputError) else ("words",)
    error = kind(*values, **words)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_the_runner_for_a_number(monkeypatch):
    monkeypatch.delenv(WORKER, raising=False)
    monkeypatch.setattr("replica_detection.util.cores.usable_cores", lambda: 3)
    assert isinstance(runner_for(1, 100), InProcess)
    assert isinstance(runner_for(8, 1), InProcess)
    assert isinstance(runner_for(None, 0), InProcess)
    assert [runner_for(w, 100).places for w in (None, 2, 8)] == [3, 2, 8]
    assert runner_for(8, 5).places == 5
    monkeypatch.setenv(WORKER, "1")
    assert isinstance(runner_for(None, 100), InProcess)


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, "many", "host:8786", "http://host:8786"])
def test_what_is_no_number_and_no_address_is_refused(workers):
    with pytest.raises(ConfigurationError, match=str(workers)):
        runner_for(workers, 10)


@pytest.mark.parametrize("workers", [0, True, "2"])
def test_a_local_cluster_needs_a_number(workers):
    with pytest.raises(ConfigurationError, match=str(workers)), local_cluster(workers):
        pass


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("replica_detection.workers.cluster.CONNECT_SECONDS", 0.3)
    with pytest.raises(ConfigurationError, match=r"No dask scheduler answers at tcp://127\.0\.0\.1:9 "):
        runner_for("tcp://127.0.0.1:9", 10)


def test_a_cluster_needs_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match=r'pip install "replica-detection\[distributed\]"'):
        runner_for("tcp://127.0.0.1:9", 10)


def test_an_address_is_a_runner(cluster):
    with runner_for(cluster.address, 1) as runner:
        assert isinstance(runner, Cluster)
        assert runner.places == 2
        assert in_order(runner.map(work_items.square, range(3))) == [0, 1, 4]
    assert cluster.dashboard.startswith("http://127.0.0.1:")


def test_every_worker_must_see_the_paths_and_have_this_version(cluster, tmp_path, monkeypatch):
    cluster.check([tmp_path])
    with pytest.raises(
        InputError, match=r"worker tcp://127\.0\.0\.1:.* does not see it.*same path on every worker"
    ) as caught:
        cluster.check([tmp_path, tmp_path / "index"])
    assert caught.value.path == str(tmp_path / "index")
    monkeypatch.setattr("replica_detection.workers.cluster.__version__", "0.0.1")
    with pytest.raises(ConfigurationError, match=r"Worker tcp://.* has replica-detection .*, this process 0\.0\.1"):
        cluster.check([tmp_path])


def started(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, start_new_session=True)


def soon(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@posix
def test_a_scheduler_that_dies_is_told_at_once(tmp_path):
    file = tmp_path / "scheduler.json"
    at_home = ("--host", "127.0.0.1", "--scheduler-file", str(file))
    scheduler = started("-m", "distributed.cli.dask_scheduler", *at_home, "--port", "0", "--dashboard-address", ":0")
    worker = None
    try:
        assert soon(lambda: file.exists() and b"address" in file.read_bytes())
        # Two threads: each of their tasks has one core all the same.
        worker = started(
            "-m", "distributed.cli.dask_worker", *at_home, "--nthreads", "2", "--no-nanny", "--no-dashboard"
        )
        address = json.loads(file.read_text(encoding="utf-8"))["address"]
        with runner_for(address, 1) as runner:
            assert runner.places == 2
            results = runner.map(lambda n: (time.sleep(0.05), kernel_threads(), os.getpid()), range(10_000))
            for _ in range(4):
                assert next(results)[1] == (None, 1, worker.pid)
            begun = time.monotonic()
            scheduler.kill()
            with pytest.raises(WorkersLostError, match="run the same command again"):
                list(results)
            assert time.monotonic() - begun < 30
        assert soon(lambda: worker.poll() is not None)
    finally:
        for process in filter(None, (scheduler, worker)):
            process.kill()
            process.wait()


SCRIPT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may be started without it
from replica_detection.workers.cluster import local_cluster
from replica_detection.workers.processes import Processes
print("once", flush=True)
def work(seconds):
    time.sleep(seconds)
    return os.getpid()
with Processes(2) if sys.argv[1] == "processes" else local_cluster(2) as runner:
    for _, pid in runner.map(work, [0.2, 0.2, *[600.0] * 4]):
        print(pid, flush=True)
"""


@posix
@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_process(place, sent, tmp_path):
    script = tmp_path / "script.py"
    # No guard of __main__: a worker that ran the script anew would print.
    script.write_text(SCRIPT, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), place],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "once\n"
        pids = {int(process.stdout.readline()) for _ in range(2)}
        # As a terminal does it: Ctrl-C reaches the workers too.
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
        begun = time.monotonic()
        rest, said = process.communicate(timeout=60)
        assert time.monotonic() - begun < 30
        assert rest == ""
        if sent == signal.SIGINT:
            assert said.count("Traceback") == said.count("KeyboardInterrupt") == 1
        assert soon(lambda: not any(map(alive, pids)))
    finally:
        process.kill()
        process.wait()


def alive(pid: int) -> bool:
    """False for a process that has ended and waits to be collected, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc").is_dir():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
