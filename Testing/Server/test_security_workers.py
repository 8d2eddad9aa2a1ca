"""Computations that hang, die or hoard: they are ended, say so in plain words, and leave the server as it was."""

from __future__ import annotations

import asyncio
import gzip
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import psutil
import requests

from Core.made_up import cohort
from replica_detection.errors import ReplicaDetectionError
from replica_detection_server.computing.queue import Queue, heavy
from replica_detection_server.computing.services import Services
from replica_detection_server.computing.workers import Limits, Result, Workers
from replica_detection_server.errors import RefusedError
from replica_detection_server.incoming.error_responses import answer_of, kind_of, refusal
from replica_detection_server.routes import cases, received_files
from replica_detection_server.routes.received_files import examine
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.stock import datastore, infer, sessions
from replica_detection_server.uploads.limits import UploadLimits
from Server.conftest import until
from Server.made_uploads import nifti
from Server.running import Server, running_server

ODD = Path(__file__).with_name("odd_app")
SECONDS, MEMORY_MB = 10, 1500
MEASURES = "mae,rmse"
FOR_EVER = {"params": '{"seconds": 3000}'}


@pytest.fixture(scope="module")
def collections(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("collections")
    cohort(folder / "training", 6, prefix="trn")
    cohort(folder / "studies", 3, 200, "syn")
    return folder


def started(collections: Path, folder: Path, *args: str):
    return running_server(
        collections / "studies",
        work=folder,
        training=collections / "training",
        conf={"measures": MEASURES},
        hardened=True,
        app=ODD,
        env={"ODD_BASE": "ours"},
        args=args,
    )


@pytest.fixture(scope="module")
def server(collections, tmp_path_factory):
    limits = ("--compute-seconds", str(SECONDS), "--compute-memory-mb", str(MEMORY_MB))
    with started(collections, tmp_path_factory.mktemp("limited"), *limits) as running:
        wait_for_jobs(running)
        yield running


def wait_for_jobs(server: Server) -> None:
    def done() -> bool:
        jobs = requests.get(server.url + "/replica/jobs", timeout=60).json()
        return bool(jobs) and all(job["state"] == "done" for job in jobs)

    until(done, "the index is not made", seconds=120)


def ask(server: Server, model: str, *, upload: bool = False, **how) -> requests.Response:
    """A study, or a file that this request brings."""
    sent = {"files": {"file": ("SECRET^NAME.nii.gz", gzip.compress(nifti()))}} if upload else {}
    params = {"output": "json", **({} if upload else {"image": "syn_000"})}
    return requests.post(f"{server.url}/infer/{model}", params=params, timeout=300, **sent, **how)


def workers_of(server: Server) -> list[psutil.Process]:
    """The processes that compute for a server."""
    found = []
    for process in psutil.Process(server.pid).children():
        try:
            if "replica_detection_server.computing.worker" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def in_background(*calls: Callable[[], requests.Response]) -> tuple[list[threading.Thread], list[requests.Response]]:
    replies: list[requests.Response] = []
    threads = [threading.Thread(target=lambda call=call: replies.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    return threads, replies


def works(server: Server) -> None:
    reply = ask(server, "opens")
    assert reply.status_code == 200 and reply.json()["bytes"] > 0, reply.text


def endless() -> bytes:
    """A small image whose compressed voxels come in millions of empty pieces."""
    whole = nifti()
    return gzip.compress(whole[:352]) + gzip.compress(b"") * 4_000_000 + gzip.compress(whole[352:])


# ------------------------------------------------------------------------------------------------------- one server


@pytest.mark.slow
def test_an_upload_whose_examination_does_not_end(server):
    sent = ("a.nii.gz", endless())
    doors = ("/session/", "files"), ("/datastore/image?image=new", "file")
    calls = [
        lambda path=path, field=field: requests.put(server.url + path, files={field: sent}, timeout=300)
        for path, field in doors
    ]
    threads, replies = in_background(*calls)
    until(lambda: len(workers_of(server)) == 2, "they are not examined apart", seconds=60)
    for thread in threads:
        thread.join(200)
    assert [reply.status_code for reply in replies] == [422, 422]
    assert all(f"longer than the {SECONDS} s" in reply.json()["detail"] for reply in replies)
    assert not list((server.data / "tmp").glob("upload-*")) and not list((server.data / "tmp").glob("session-*"))
    works(server)


@pytest.mark.slow
def test_two_computations_that_hang_are_ended_and_those_behind_them_get_their_answer(server):
    hanging = (lambda: ask(server, "slow", data=FOR_EVER), lambda: ask(server, "slow", upload=True, data=FOR_EVER))
    threads, replies = in_background(*hanging)
    until(lambda: len(workers_of(server)) == 2, "they do not run in processes of their own", seconds=60)
    hung = workers_of(server)
    works(server)
    for thread in threads:
        thread.join(120)
    # What a caller sent is the caller's fault.
    assert sorted(reply.status_code for reply in replies) == [422, 504]
    for reply in replies:
        assert f"longer than the {SECONDS} s" in reply.json()["detail"] and "ended" in reply.json()["detail"]
    until(lambda: not any(process.is_running() for process in hung), "a process that was ended still runs")
    assert not list((server.data / "tmp").glob("upload-*")), "what was sent stays behind"


@pytest.mark.slow
def test_a_process_that_dies_is_an_answer_and_not_the_end(server):
    reply = ask(server, "dies", upload=True)
    assert reply.status_code == 422 and "damaged" in reply.json()["detail"]
    reply = ask(server, "dies")
    assert reply.status_code == 503 and int(reply.headers["Retry-After"]) > 0 and reply.json()["detail"]
    works(server)
    log = server.log_text()
    assert "ended with -9: infer" in log and "SECRET" not in log and "syn_000" not in log


@pytest.mark.slow
def test_a_process_killed_from_outside_in_the_middle(server):
    works(server)
    before = workers_of(server)
    threads, replies = in_background(lambda: ask(server, "slow", data=FOR_EVER))
    until(lambda: any(p.cpu_times().user > 0 for p in workers_of(server)), "nothing computes")
    time.sleep(0.5)
    for process in before:
        process.kill()
    threads[0].join(60)
    assert replies[0].status_code == 503 and "try again" in replies[0].json()["detail"]
    works(server)
    assert not set(before) & set(workers_of(server))


@pytest.mark.slow
def test_memory_without_end(server):
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for process in workers_of(server):
                try:
                    most[0] = max(most[0], process.memory_info().rss)
                except psutil.Error:
                    continue
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    reply = ask(server, "hoards", upload=True)
    stop.set()
    watching.join()
    assert reply.status_code == 422 and f"{MEMORY_MB} MiB" in reply.json()["detail"], reply.text
    assert most[0] < 2 * MEMORY_MB << 20, f"{most[0] >> 20} MiB"
    works(server)


@pytest.mark.slow
def test_awaited_jobs_run_apart_as_well(server):
    """What a training leaves in its process goes with the process."""
    works(server)
    before = workers_of(server)
    reply = requests.post(server.url + "/train/nothing?run_sync=true", timeout=120)
    assert reply.status_code == 200 and reply.json() == {}
    until(lambda: len([p for p in before if p.is_running()]) < len(before), "the process of the training goes on")


@pytest.mark.slow
def test_a_comparison_goes_on_when_other_processes_are_gone(server, collections):
    """The index is opened again by the next one, and nothing of the earlier ones is left."""
    for process in workers_of(server):
        process.kill()
    image = (collections / "studies" / "syn_001.nii.gz").read_bytes()
    reply = requests.post(server.url + "/replica/compare", files={"file": ("x.nii.gz", image)}, timeout=300)
    assert reply.status_code == 200 and reply.json()["nearest_training_id"].startswith("trn"), reply.text
    until(lambda: len(list((server.data / "workers").iterdir())) == len(workers_of(server)), "folders stay behind")


# ---------------------------------------------------------------------------------------------- the end of a server


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_server(collections, tmp_path, number):
    with started(collections, tmp_path) as server:
        wait_for_jobs(server)
        replies: list[requests.Response | requests.RequestException] = []

        def wait_for_answer() -> None:
            try:
                replies.append(ask(server, "slow", data=FOR_EVER))
            except requests.RequestException as error:
                replies.append(error)

        thread = threading.Thread(target=wait_for_answer)
        thread.start()
        until(lambda: bool(workers_of(server)), "nothing computes", seconds=60)
        time.sleep(1)
        processes = workers_of(server)
        server.process.send_signal(number)
        server.process.wait(60)
        thread.join(60)
        until(
            lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes),
            "a process outlives the server",
        )
        if number == signal.SIGTERM:
            # Whoever waits is told at once: the server does not end over a connection that is still open.
            (reply,) = replies
            assert isinstance(reply, requests.Response), reply
            assert (reply.status_code, reply.json()["detail"]) == (503, "The server is stopping.")


# --------------------------------------------------------------------------------------------------------- the parts


@pytest.fixture
def configuration(collections, tmp_path) -> Configuration:
    given = {"training": str(collections / "training"), "data": str(tmp_path / "data"), "measures": MEASURES}
    return Configuration.of(collections / "studies", given)


def test_refusals_of_the_other_process_are_those_of_this_one(configuration):
    """Status, words and headers; a failure is told by its place alone."""
    workers = Workers(configuration, Limits.of(60))
    try:
        with pytest.raises(RefusedError) as unknown:
            workers.call("difference", {"synthetic_id": "none", "training_id": "trn_000"})
        assert (answer_of(unknown.value).status_code, unknown.value.detail) == (
            404,
            "there is no synthetic image 'none'",
        )
        with pytest.raises(RefusedError) as missing:
            workers.call("comparison", {"synthetic_id": "syn_000", "k": 1})
        assert answer_of(missing.value).status_code == 409 and "there is no index" in missing.value.detail
        with pytest.raises(RefusedError) as failed:
            workers.call("agreement", {"ratings": [{"reader": "Smith^John"}] * 2000})
        assert answer_of(failed.value).status_code == 500 and "Smith" not in failed.value.detail
        assert workers.null_job() is None and workers.null_size("any") == 0
        assert workers.call("agreement", {"ratings": []}).value is not None
    finally:
        workers.close()
    with pytest.raises(RefusedError, match="stopping"):
        workers.call("agreement", {"ratings": []})
    until(lambda: not list((configuration.data / "workers").iterdir()), "its folder stays behind")


def test_an_upload_is_examined_in_another_process_with_the_same_words(configuration, tmp_path, monkeypatch):
    services, limits = Services(configuration), UploadLimits.of(1 << 20)
    try:
        good, damaged = tmp_path / "a.nii", tmp_path / "b.nii"
        good.write_bytes(nifti())
        damaged.write_bytes(b"patient")
        examine(services, good, limits)
        for path, allowed in ((damaged, limits), (good, UploadLimits.of(1))):
            with pytest.raises(ReplicaDetectionError) as here:
                examine(None, path, allowed)
            with pytest.raises(RefusedError) as apart:
                examine(services, path, allowed)
            expected = refusal(here.value)
            assert kind_of(apart.value) is kind_of(expected) and apart.value.detail == expected.detail
        series = tmp_path / "series"
        series.mkdir()
        (series / "a.nii").write_bytes(nifti())
        (series / "run.exe").write_bytes(b"x")
        examine(services, series, limits)
        assert [path.name for path in series.iterdir()] == ["a.nii"]
        monkeypatch.setattr(received_files, "EXAMINATION_SECONDS", 1.0)
        (tmp_path / "c.nii.gz").write_bytes(endless())
        with pytest.raises(RefusedError, match="longer than the 1 s") as ended:
            examine(services, tmp_path / "c.nii.gz", UploadLimits.of(1 << 28))
        assert answer_of(ended.value).status_code == 422
    finally:
        services.workers.close()


def test_every_route_that_takes_a_file_takes_a_place_in_the_queue():
    routes = [route for module in (cases, datastore, infer, sessions) for route in module.router.routes]
    taking = [r for r in routes if any("UploadFile" in str(a) for a in r.endpoint.__annotations__.values())]
    assert len(taking) >= 6
    assert [r.path for r in taking if heavy.dependency not in [d.dependency for d in r.dependencies]] == []


def test_the_default_memory_leaves_room_for_two_and_the_server():
    limits = Limits.of()
    assert 0 < limits.memory_bytes <= psutil.virtual_memory().total // 3 and limits.seconds == 600
    assert Limits.of(5, 100) == Limits(5, 100 << 20)


def test_a_result_is_read_once_and_gone(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"made")
    assert Result(file=path).content() == b"made" and not path.exists()


def test_a_stuck_queue_can_be_seen():
    async def scenario() -> tuple[int, float, int, float]:
        queue = Queue(running=2, waiting=1)
        async with queue.slot(), queue.slot():
            await asyncio.sleep(0.05)
            stuck = queue.running, queue.oldest_seconds
        return *stuck, queue.running, queue.oldest_seconds

    running, oldest, then, free = asyncio.run(scenario())
    assert running == 2 and oldest >= 0.04 and (then, free) == (0, 0.0)


def test_one_process_makes_the_null_while_others_wait(configuration, monkeypatch):
    """Else each of the processes would compute it, at half the speed."""
    from replica_detection_server.comparison import tasks

    tasks.build_index(configuration)
    inside, most = [], [0]
    plain = tasks.cohorts.validation

    def slowly(given):
        inside.append(1)
        most[0] = max(most[0], len(inside))
        time.sleep(0.2)
        inside.pop()
        return plain(given)

    monkeypatch.setattr(tasks.cohorts, "validation", slowly)
    index = tasks.open_index(configuration)
    threads = [threading.Thread(target=tasks.detector_for, args=(configuration, index)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_services_start_a_process_ahead_of_the_first_request(configuration):
    from replica_detection_server.comparison import tasks

    tasks.build_index(configuration)
    services = Services(configuration)
    services.start()
    try:
        version = services.engine.required_index().version
        until(lambda: services.workers.null_size(version) > 0, "it prepares nothing", seconds=90)
        described = services.engine.describe_index()
        assert described is not None and described.null_size == services.workers.null_size(version)
    finally:
        services.close()
