"""A server that begins without an index: jobs of ours and of MONAI Label, whose results the running server must see."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import requests

from Core import made_masks, made_up
from replica_detection.client import ReplicaClient
from replica_detection.errors import ServerError
from replica_detection.results.result import DetectionResult
from Server import collections_on_disk
from Server.collections_on_disk import COPIED, COPY, NEW, TRAINING, Collections
from Server.conftest import Served, checksums, conf, real_scans, until
from Server.running import running_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def collections(tmp_path_factory) -> Collections:
    return collections_on_disk.make(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def fresh(collections, tmp_path_factory):
    """The tests below use it in their order: it has no index, then one, then scores."""
    work = tmp_path_factory.mktemp("fresh_server")
    before = checksums(*real_scans(collections))
    pairs = {key: value for key, value in conf(collections).items() if key != "validation"}
    pairs.pop("validation_masks")
    with running_server(collections.studies, work=work, training=collections.training, conf=pairs) as server:
        yield Served(server, collections, before)
    assert server.process.returncode is not None


@pytest.fixture
def client(fresh: Served) -> ReplicaClient:
    return ReplicaClient(fresh.server.url)


def test_the_index_is_made_at_once_and_its_progress_told(fresh, client):
    until(lambda: bool(client.jobs()), "no job makes the index")
    job = client.jobs()[0]
    assert job.kind == "index" and (client.status().index is None) == (client.job(job.id).state != "done")
    stages = set()
    assert client.wait(job.id, every=0.05, progress=lambda stage, done, total: stages.add(stage)).state == "done"
    assert stages & {"preparing", "null"}, stages
    status = client.status()
    assert status.index is not None and status.index.cases == status.training == TRAINING and not status.problem
    assert status.scored == 0 and {i.verdict for i in client.worklist()} == {""}


def test_before_scoring_one_is_compared_at_a_time_and_the_collection_is_refused(fresh, client):
    assert client.comparison(COPY).nearest_training_id == COPIED
    for path in ("/replica/histograms", "/replica/report"):
        reply = fresh("GET", path)
        assert reply.status_code == 409 and "/replica/jobs/score" in reply.json()["detail"]


def test_scores_of_a_job_of_monai_label_reach_the_server_and_no_rating_is_lost(fresh, client):
    """Its process has an app of its own, and writes no word into the list that the server keeps of the studies."""
    url = fresh.server.url
    assert requests.post(f"{url}/scoring/score_all", timeout=30).json()["status"] in ("SUBMITTED", "RUNNING")
    rated, stop = [], threading.Event()

    def rate() -> None:
        own = ReplicaClient(url)
        while not stop.is_set():
            rated.append(own.rate("syn_000", COPIED, 1 + len(rated) % 4, reader="busy").rating_id)
            own_note = {"info": f'{{"note-{len(rated)}": true}}'}
            assert requests.put(f"{url}/datastore/image/info?image=syn_001", data=own_note, timeout=30).ok

    rating = threading.Thread(target=rate)
    rating.start()
    try:
        until(lambda: fresh.json("/scoring/")["status"] == "DONE", "the job does not end", seconds=120)
    finally:
        stop.set()
        rating.join()
    assert client.status().scored == NEW + 1
    assert {r.rating_id for r in client.ratings(reader="busy", all=True)} == set(rated) and rated
    info = fresh.json("/datastore/image/info", image="syn_001")
    assert all(f"note-{n + 1}" in info for n in range(len(rated)))
    assert client.worklist_page(0, 1).items[0].synthetic_id == COPY
    found = DetectionResult.read(fresh.server.data / "scored")
    assert {c.synthetic_id: c.verdict for c in found.summary} == {i.synthetic_id: i.verdict for i in client.worklist()}


def test_a_second_job_of_a_kind_is_refused_and_a_cancelled_one_leaves_the_old_scores(fresh, client):
    before = checksums(fresh.server.data / "scored")
    first = client.start_scoring()
    with pytest.raises(ServerError, match="score"):
        client.start_scoring()
    until(lambda: client.job(first.id).stage in ("comparing", "null", "starting"), "it does not start")
    ended = client.cancel(first.id)
    assert ended.state == "cancelled" and ended == client.job(first.id)
    assert client.cancel(first.id) == ended, "ending it twice is harmless"
    assert checksums(fresh.server.data / "scored") == before and client.status().scored == NEW + 1
    assert fresh("DELETE", "/replica/jobs/unknown").status_code == 404


def test_jobs_wait_for_each_other(fresh, client):
    index, score = (fresh("POST", f"/replica/jobs/{kind}") for kind in ("index", "score"))
    assert index.status_code == score.status_code == 202
    second = client.wait(score.json()["id"], every=0.1)
    assert second.state == "done" and client.job(index.json()["id"]).state == "done"
    assert second.seconds > 0 and second.total >= second.done > 0


def test_new_training_cases_change_the_index_and_the_server_follows(fresh, client, collections):
    before = client.status().index
    assert before is not None
    mask = made_masks.blobs(999, 1, made_up.SHAPE)[0]
    made_up.write(collections.training / "later.nii.gz", made_up.volume(999))
    made_up.write(collections.folder / "training_masks" / "later.nii.gz", mask)
    made_up.write(collections.studies / "later_copy.nii.gz", made_up.volume(999))
    made_up.write(collections.folder / "studies_masks" / "later_copy.nii.gz", mask)
    assert client.wait(client.start_indexing().id, every=0.1).state == "done"
    after = client.status().index
    assert after is not None and (after.cases, after.version != before.version) == (TRAINING + 1, True)
    # Scored against the old index: the comparison is made anew, and says so by its version.
    until(lambda: client.status().studies == NEW + 2, "the new study is not listed")
    found = client.comparison("later_copy")
    assert (found.nearest_training_id, found.index_version) == ("later", after.version)
    assert client.comparison(COPY).index_version == after.version
    assert client.worklist_page().index_version == before.version
    item = next(i for i in client.worklist() if i.synthetic_id == "later_copy")
    assert (item.verdict, item.score) == ("", None) and list(client.worklist())[-1] == item


def test_a_job_of_monai_label_can_extend_the_index_as_well(fresh, client, collections):
    made_up.write(collections.training / "latest.nii.gz", made_up.volume(1000))
    made_up.write(collections.folder / "training_masks" / "latest.nii.gz", made_masks.blobs(7, 1, made_up.SHAPE)[0])
    assert requests.post(f"{fresh.server.url}/train/build_index", json={}, timeout=30).status_code == 200
    until(lambda: fresh.json("/train/")["status"] == "DONE", "the job does not end", seconds=120)
    assert client.status().training == TRAINING + 2


def test_nothing_but_the_new_scans_came_into_the_folders_of_real_scans(fresh, collections):
    now = checksums(*real_scans(collections))
    added = {"later.nii.gz", "latest.nii.gz"}
    assert {path: sha for path, sha in now.items() if Path(path).name not in added} == fresh.before


def test_jobs_end_with_the_server_and_are_told_of_by_the_next(collections, tmp_path):
    import psutil

    with running_server(collections.studies, work=tmp_path, training=collections.training) as server:
        client = ReplicaClient(server.url)
        until(lambda: any(j.state == "running" for j in client.jobs()), "no job makes the index")
        job = client.jobs()[0]
        child = next(
            p for p in psutil.Process(server.pid).children() if "replica_detection_server.computing.jobs" in p.cmdline()
        )
        server.process.kill()
        server.process.wait()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the job outlives the server")
    from replica_detection_server.computing.jobs import Jobs
    from replica_detection_server.settings.configuration import Configuration

    given = {"training": str(collections.training), "data": str(tmp_path / "data")}
    jobs = Jobs(Configuration.of(collections.studies, given))
    known = jobs.get(job.id)
    assert known is not None and known.state == "failed" and "start the job again" in known.message
    assert known.words == "" and job.words
    assert (known.id, known.kind) == (job.id, job.kind)


def test_why_an_index_cannot_be_made_is_told_wherever_it_is_needed(tmp_path):
    studies = made_up.cohort(tmp_path / "studies", 1)
    broken = tmp_path / "training"
    broken.mkdir()
    (broken / "bad.nii.gz").write_bytes(b"no image at all")
    with running_server(studies, work=tmp_path, training=broken) as server:
        client = ReplicaClient(server.url)
        until(lambda: bool(client.jobs()) and client.jobs()[0].state == "failed", "it does not fail", seconds=60)
        why = "holds no image that can be used"
        assert why in client.jobs()[0].message and why in client.status().problem
        with pytest.raises(ServerError, match=why):
            client.comparison("case_000")
        assert requests.get(f"{server.url}/info/", timeout=10).ok
