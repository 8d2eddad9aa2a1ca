"""What readers are told: how far the index is, what is wrong with a request, and nothing that others slipped in.

One server for all; the process that makes its index is held until the tests of that time are through.
"""

from __future__ import annotations

import json
import re
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import psutil
import requests
from pydantic import BaseModel

from Core import made_up
from replica_detection_server.collection import client_notes
from replica_detection_server.collection.datastore import StudiesAndTraining
from replica_detection_server.errors import RefusedError
from replica_detection_server.incoming.error_responses import answer_of
from replica_detection_server.util.json_values import plain
from Server.collections_on_disk import image_bytes
from Server.conftest import strict_json, until
from Server.running import Server, running_server

pytestmark = pytest.mark.slow

TRAINING, STUDIES = 4, 3
# Of a Python object, of pydantic, of a folder.
NOT_FOR_PEOPLE = re.compile(r"pydantic|Input should|Value error|<class|object at 0x|deque\(|PosixPath|\[type=|/tmp/")


@dataclass
class Making:
    """A server and the process that makes its index, which is stopped until `go_on`."""

    server: Server
    process: psutil.Process

    def __call__(self, method: str, path: str, **how) -> requests.Response:
        return requests.request(method, self.server.url + path, timeout=60, **how)

    def json(self, path: str, **params):
        reply = self("GET", path, params=params)
        assert reply.status_code == 200, reply.text[:500]
        return strict_json(reply)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        until(lambda: self.json("/replica/status")["index"] is not None, "no index", seconds=120)
        until(lambda: not self.json("/replica/status")["jobs"], "the job does not end", seconds=120)


@pytest.fixture(scope="module")
def making(tmp_path_factory) -> Iterator[Making]:
    folder = tmp_path_factory.mktemp("readers")
    made_up.cohort(folder / "training", TRAINING, prefix="trn")
    made_up.cohort(folder / "studies", STUDIES, 200, "syn")
    conf = {"measures": "mae,ssim"}
    with running_server(
        folder / "studies", work=folder, training=folder / "training", hardened=True, conf=conf
    ) as server:
        found: list[psutil.Process] = []

        def held() -> bool:
            for child in psutil.Process(server.pid).children(recursive=True):
                if child.cmdline()[-1:] == ["index"]:
                    child.send_signal(signal.SIGSTOP)
                    found.append(child)
            return bool(found)

        until(held, "no process makes the index", seconds=60)
        made = Making(server, found[0])
        try:
            yield made
        finally:
            if found[0].is_running():
                found[0].send_signal(signal.SIGCONT)


def detail(reply: requests.Response) -> str:
    found = strict_json(reply)["detail"]
    assert isinstance(found, str) and not NOT_FOR_PEOPLE.search(found), found
    return found


# ---------------------------------------------------------------------------------- while the index is made (in order)

IMAGE = {"file": ("x.nii", image_bytes())}
NEED_THE_INDEX = [
    ("GET", "/replica/cases/syn_000/comparison", {}),
    ("POST", "/replica/compare", {"files": IMAGE}),
    ("GET", "/replica/surfaces/syn_000/trn_000", {}),
    ("GET", "/replica/surfaces/syn_000/trn_000/statistics", {}),
    ("GET", "/replica/difference/syn_000/trn_000", {}),
    ("GET", "/replica/aligned/syn_000/trn_000", {}),
    ("GET", "/replica/masks/syn_000", {}),
    ("GET", "/replica/masks/train:trn_000", {}),
    ("GET", "/replica/histograms", {}),
    ("GET", "/replica/report", {}),
    ("GET", "/datastore/image?image=train:trn_000", {}),
    ("HEAD", "/datastore/image?image=train:trn_000", {}),
    ("GET", "/datastore/image/info?image=train:trn_000", {}),
    ("GET", "/datastore/label?label=train:trn_000&tag=final", {}),
    ("POST", "/infer/replica_matches?image=syn_000&output=json", {}),
    ("POST", "/infer/vessels?image=train:trn_000", {}),
    (
        "POST",
        "/replica/ratings",
        {"json": {"rating_id": "", "reader": "a", "synthetic_id": "syn_000", "training_id": "trn_000", "rating": 1}},
    ),
]


@pytest.mark.parametrize(("method", "path", "how"), NEED_THE_INDEX, ids=[f"{m} {p}" for m, p, _ in NEED_THE_INDEX])
def test_what_needs_the_index_says_how_far_it_is(making, method, path, how):
    reply = making(method, path, **how)
    assert reply.status_code == 503 and reply.headers["Retry-After"] == "5"
    if method != "HEAD":
        assert re.search(r"the index is being made: (starting|reading the training scans)", detail(reply)), reply.text
        assert detail(reply).endswith("; try again after that")


def test_status_and_jobs_say_it_in_words(making):
    status = making.json("/replica/status")
    words = status["index_words"]
    assert words.startswith(("starting", "reading the training scans")) and not status["problem"]
    assert [job["words"] for job in status["jobs"]] == [words] == [job["words"] for job in making.json("/replica/jobs")]
    queued = strict_json(making("POST", "/replica/jobs/score"))
    assert queued["words"] == "waits until another job has ended"
    assert strict_json(making("DELETE", f"/replica/jobs/{queued['id']}"))["words"] == ""


def test_the_next_sample_says_why_it_has_no_score(making):
    found = strict_json(making("POST", "/activelearning/most_replica_like", json={}))
    assert found["id"] == "syn_000" and found["replica_note"].startswith("the index is being made: ")


def test_the_console_says_it_too_and_what_to_do_next(making):
    until(lambda: "The index: starting" in making.server.log_text(), "nothing is told", seconds=20)
    making.go_on()
    ready = "The index is ready. Next: score the collection with POST /replica/jobs/score"
    until(lambda: ready in " ".join(making.server.log_text().split()), "its end is not told", seconds=20)
    told = [line for line in making.server.log_text().splitlines() if line.startswith("The index")]
    assert len(told) < 12, "a flood"
    assert making.json("/replica/status")["index_words"] == ""
    found = strict_json(making("POST", "/activelearning/most_replica_like", json={}))
    assert found["replica_note"] == "the collection is not scored yet: POST /replica/jobs/score"


# ------------------------------------------------------------------------------------------------------------- notes


def test_notes_are_kept_and_given_back_as_at_monai_label(making):
    put = making("PUT", "/datastore/image/info?image=syn_001", data={"info": json.dumps({"quality": {"grade": 3}})})
    assert put.status_code == 200 and put.text == "null"
    making("PUT", "/datastore/image/info?image=syn_001", data={"info": json.dumps({"seen": [1, 2]})}).raise_for_status()
    info = making.json("/datastore/image/info", image="syn_001")
    assert (info["quality"], info["seen"], info["name"], info["user"]) == (
        {"grade": 3},
        [1, 2],
        "syn_001.nii.gz",
        "admin",
    )
    again = making("PUT", "/datastore/image/info?image=syn_001", data={"info": json.dumps({**info, "seen": 4})})
    assert again.status_code == 200, "what was read may be sent back"
    assert making.json("/datastore/image/info", image="syn_001")["seen"] == 4
    listed = making.json("/datastore/", output="all")["objects"]["syn_001"]["image"]
    assert listed["info"]["quality"] == {"grade": 3}


EVIL = {
    "id": "../../etc/passwd",
    "name": "/etc/passwd",
    "replica_score": 1.0,
    "replica_verdict": "replica",
    "replica_reason": "identical",
    "nearest_training_id": "x",
    "path": "/etc/passwd",
    "ts": 0,
    "strategy": "x",
    "score": 2,
    "verdict": "replica",
    "checksum": "x",
    "session": "x",
    "label": "x",
    "notes": {},
}


@pytest.mark.parametrize("name", EVIL)
def test_no_note_takes_the_place_of_what_the_server_says(making, name):
    before = strict_json(making("POST", "/activelearning/most_replica_like", json={}))
    for method, path, how in (
        ("PUT", f"/datastore/image/info?image={before['id']}", {"data": {"info": json.dumps({name: EVIL[name]})}}),
        ("PUT", "/datastore/image?image=new", {"data": {"params": json.dumps({name: EVIL[name]})}, "files": IMAGE}),
        (
            "PUT",
            f"/datastore/label?image={before['id']}",
            {"data": {"params": json.dumps({name: EVIL[name]})}, "files": {"label": ("x.nii", image_bytes())}},
        ),
    ):
        reply = making(method, path, **how)
        assert reply.status_code == 422 and name in detail(reply)
    assert strict_json(making("POST", "/activelearning/most_replica_like", json={})) == before


def test_notes_of_others_stand_apart_in_the_next_sample(making):
    sample = strict_json(making("POST", "/activelearning/most_replica_like", json={}))
    note = {"PatientID": "steered", "next": True}
    making("PUT", f"/datastore/image/info?image={sample['id']}", data={"info": json.dumps(note)}).raise_for_status()
    after = strict_json(making("POST", "/activelearning/most_replica_like", json={}))
    assert {**after, "notes": {}} == {**sample, "notes": {}} and note.items() <= after["notes"].items()


def test_notes_that_lie_in_the_file_already_replace_nothing(tmp_path):
    """As an earlier version, or another program, may have left them."""
    (tmp_path / "s.nii.gz").write_bytes(b"s")
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final" / "s.nii.gz").write_bytes(b"l")
    store = StudiesAndTraining(tmp_path, tmp_path / "volumes", lambda: None, watch=True)
    super(StudiesAndTraining, store).update_image_info("s", {**EVIL, "mine": 1})
    super(StudiesAndTraining, store).update_label_info("s", "final", {**EVIL, "mine": 2})
    known = {"name": "s.nii.gz", "ts": 0}
    found = store.get_image_info("s")
    assert found.pop("path") == str((tmp_path / "s.nii.gz").resolve()) and found == {**known, "mine": 1}
    assert store.get_label_info("s", "final") == {**known, "mine": 2}
    listed = store.json()["objects"]["s"]
    assert listed["image"]["info"] == {**known, "mine": 1}
    assert listed["labels"]["final"]["info"] == {**known, "mine": 2}


def test_notes_are_bounded_all_together(tmp_path):
    (tmp_path / "s.nii.gz").write_bytes(b"s")
    store = StudiesAndTraining(tmp_path, tmp_path / "volumes", lambda: None, watch=True)
    store.update_image_info("s", {"first": "x" * (client_notes.LARGEST_BYTES // 2)})
    deep: object = 1
    for _ in range(client_notes.DEEPEST + 1):
        deep = [deep]
    for over in (
        {"second": "é" * (client_notes.LARGEST_BYTES // 4)},
        {f"n{n}": 0 for n in range(client_notes.MOST)},
        {"x" * (client_notes.LONGEST_NAME + 1): 0},
        {"deep": deep},
    ):
        with pytest.raises(RefusedError) as refused:
            store.update_image_info("s", over)
        assert answer_of(refused.value).status_code == 422
    assert set(store.get_image_info("s")) == {"first", "name", "path", "ts"}
    store.update_image_info("s", {"first": ""})
    store.update_image_info("s", {"second": "x" * (client_notes.LARGEST_BYTES // 2)})


# ------------------------------------------------------------------------------------------------ faults of a request


@pytest.mark.parametrize(
    ("method", "path", "how", "words"),
    [
        ("GET", "/replica/worklist?limit=x", {}, "limit: must be a whole number"),
        ("GET", "/replica/worklist?limit=0", {}, "limit: must be 1 or more"),
        ("GET", "/replica/worklist?limit=1001", {}, "limit: must be 1000 or less"),
        ("GET", "/replica/worklist?descending=x", {}, "descending: must be true or false"),
        ("GET", "/replica/worklist?sort=x", {}, "sort: must be one of score, synthetic_id, verdict, rating"),
        (
            "GET",
            "/replica/worklist?verdict=novel&verdict=x",
            {},
            "verdict: must be one of replica, suspicious, undecided, novel, undefined",
        ),
        ("GET", f"/replica/worklist?search={'x' * 201}", {}, "search: may have at most 200 letters"),
        ("GET", "/replica/ratings?format=x", {}, "format: must be one of json, csv"),
        ("POST", "/replica/compare", {}, "file: is missing"),
        ("POST", "/replica/compare", {"data": {"file": "text"}}, "file: must be a file"),
        ("POST", "/replica/compare?k=0", {"files": IMAGE}, "k: must be 1 or more"),
        ("POST", "/replica/ratings", {"json": [1]}, "the request: must be a JSON object"),
        ("POST", "/replica/ratings", {"json": {}}, "rating_id: is missing; reader: is missing; "),
        (
            "POST",
            "/replica/ratings",
            {
                "json": {
                    "rating_id": 1,
                    "reader": [],
                    "synthetic_id": {},
                    "training_id": "t",
                    "rating": 2.5,
                    "seconds": "x",
                    "blinded": "perhaps",
                }
            },
            "rating_id: must be text; reader: must be text; synthetic_id: must be text; "
            "rating: must be a whole number; blinded: must be true or false; seconds: must be a number",
        ),
        ("GET", "/datastore/?output=x", {}, "output: must be one of train, stats, all"),
        ("GET", "/datastore/image?image=a%2Fb", {}, "image: has letters or a form that are not possible here"),
        (
            "PUT",
            "/datastore/image?image=an%20%C3%A9",
            {"files": IMAGE},
            "image: use letters A to Z, digits, '.', '_' and",
        ),
        ("PUT", "/datastore/image?image=nul", {"files": IMAGE}, "image: cannot be a file name"),
        ("PUT", "/datastore/label?image=syn_000&tag=con", {"files": {"label": IMAGE["file"]}}, "tag: cannot be a file"),
        ("POST", "/infer/vessels?image=a%2Fb", {}, "image: has letters or a form that are not possible here"),
        ("POST", "/infer/vessels?image=syn_000&output=x", {}, "output: must be one of image, json, all, dicom_seg"),
        ("POST", "/activelearning/most_replica_like", {"json": [1]}, "the request: must be a JSON object"),
        ("POST", "/scoring/score_all?run_sync=x", {"json": {}}, "run_sync: must be true or false"),
        ("POST", "/infer/replica_matches?image=syn_000", {"data": {"params": '{"k": {"a": 1}}'}}, "k must be a whole"),
        (
            "POST",
            "/train/encoder?run_sync=true",
            {"json": {"kind": {"a": [1]}}},
            "kind must be one of contrastive, deepssim",
        ),
        ("POST", "/train/encoder?run_sync=true", {"json": {"epochs": [None]}}, "epochs must be a whole number"),
    ],
)
def test_faults_of_a_request_are_said_in_words(making, method, path, how, words):
    reply = making(method, path, **how)
    assert reply.status_code == 422, reply.text[:300]
    assert words in detail(reply) and "body" not in detail(reply)


# --------------------------------------------------------------------------------------------------- jobs, odd values


def test_the_lines_of_a_job_are_a_list(making):
    making("POST", "/train/build_index", json={}).raise_for_status()
    until(lambda: making.json("/train/")["status"] not in ("SUBMITTED", "RUNNING"), "it does not end", seconds=120)
    for job in (making.json("/train/"), making.json("/train/", all="true")[0]):
        assert job["status"] == "DONE" and isinstance(job["details"], list) and job["details"]
        assert all(re.fullmatch(r"[\w ]+: [\d,]+ of [\d,]+", line) for line in job["details"]), job["details"]


# What no reader has any use for: times and processes of log lines, modules, source.
OF_PROGRAMMERS = re.compile(
    r"Traceback|File \"|line \d|\.py|lib/|<app>|\[INFO\]|\[ERROR\]|MainThread|replica_detection[._]"
)


def test_a_failed_job_says_why_in_words(making):
    """A training that goes on with another; what the job printed for programmers is on the disk."""

    def ended(**options) -> dict:
        making("POST", "/train/encoder", json=options).raise_for_status()
        until(lambda: making.json("/train/")["status"] not in ("SUBMITTED", "RUNNING"), "it does not end", seconds=120)
        return making.json("/train/")

    done = ended(epochs=1)
    assert done["status"] == "DONE" and done["details"]
    job = ended(epochs=1, kind="deepssim")
    assert job["status"] == "ERROR" and set(job) == {"id", "status", "request", "start_ts", "end_ts", "details"}
    assert job["details"][-1].startswith("failed: ") and "jobs.log" not in job["details"][-1], job
    for path in ("/train/", "/train/?all=true"):
        assert not OF_PROGRAMMERS.search(making("GET", path).text)
    log = making.server.data / "logs" / "jobs.log"
    assert "Traceback" in log.read_text(encoding="utf-8") and log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("/train/encoder", {"epochs": -1}, "epochs is -1: it must lie between 1 and 10000"),
        ("/train/encoder", {"epochs": "x"}, "epochs must be a whole number"),
        ("/train/encoder", {"epochs": 1.5}, "epochs must be a whole number"),
        ("/train/encoder", {"max_epochs": 10**12}, "epochs is 1000000000000"),
        ("/train/encoder", {"kind": "../../x"}, "kind is '../../x': it must be one of contrastive, deepssim"),
        ("/train/encoder", {"network": "none"}, "network is 'none'"),
        ("/train/encoder", {"restart": "false"}, "restart must be true or false"),
        ("/train/encoder", {"early_stop_patience": -2}, "early_stop_patience is -2"),
        ("/train/encoder", {"device": "tpu"}, "device is 'tpu'"),
        ("/train/segmentation", {"epochs": 0}, "epochs is 0"),
        ("/train/segmentation", {"patch": 13}, "patch is 13"),
        ("/train/segmentation", {"patch": 8192}, "patch is 8192"),
        ("/train/build_index", {"rebuild": "no"}, "rebuild must be true or false"),
        ("/batch/infer/vessels", {"max_workers": 99}, "a whole number from 0 to 8"),
        ("/batch/infer/vessels", {"max_workers": True}, "a whole number from 0 to 8"),
        ("/batch/infer/vessels", {"max_batch_size": -1}, "a whole number from 0 to 1000000"),
        ("/batch/infer/vessels", {"result_extension": ".png"}, "use one of .nii.gz"),
        ("/batch/infer/replica_matches", {"k": "many"}, "a whole number"),
        ("/scoring/score_all", {"epochs": 3}, "Unknown option 'epochs'"),
    ],
)
def test_options_that_cannot_be_start_no_job(making, path, options, words):
    before = {kind: making("GET", kind).text for kind in ("/train/?all=true", "/batch/infer?all=true")}
    reply = making("POST", path, json=options)
    assert reply.status_code == 422 and words in detail(reply), reply.text
    assert {kind: making("GET", kind).text for kind in before} == before


def _job_ids(making: Making) -> list[str]:
    return [job["id"] for job in making.json("/replica/jobs")]


NOT_UNDERSTOOD = [
    ("application/json", b"[1,2]"),
    ("application/json", b'"x"'),
    ("application/json", b"true"),
    ("text/plain", b"info={}"),
    ("application/octet-stream", b"{}"),
    ("", b'{"a": 1}'),
]


@pytest.mark.parametrize(("kind", "body"), NOT_UNDERSTOOD)
def test_no_route_passes_over_what_it_does_not_understand(making, kind, body):
    """Every route that takes something, from the server's own list."""
    filled = {"model": "build_index", "method": "score_all", "strategy": "most_replica_like"}
    jobs = _job_ids(making)
    tried = 0
    for path, methods in making.json("/openapi.json")["paths"].items():
        for method in {"post", "put"} & set(methods):
            given = path.format_map({**filled, "model": "vessels" if "infer" in path else "build_index"})
            query = {"image": "syn_000", "label": "syn_000", "tag": "final"}
            reply = making(method, given, params=query, data=body, headers={"Content-Type": kind})
            assert reply.status_code in (415, 422), (method, given, reply.status_code, reply.text)
            detail(reply)
            tried += 1
    assert tried > 10 and _job_ids(making) == jobs


@pytest.mark.parametrize(
    "path",
    [
        "/train/build_index",
        "/scoring/score_all",
        "/batch/infer/vessels",
        "/activelearning/most_replica_like",
        "/replica/jobs/score",
        "/replica/jobs/index",
        "/replica/ratings",
    ],
)
def test_a_form_where_json_is_taken_is_refused(making, path):
    jobs = _job_ids(making)
    reply = making("POST", path, data={"rebuild": "true"})
    assert reply.status_code == 422 and detail(reply)
    assert _job_ids(making) == jobs


def test_a_form_without_its_field_is_refused(making):
    reply = making("PUT", "/datastore/image/info?image=syn_000", data={"inof": '{"a": 1}'})
    assert reply.status_code == 422 and "info" in detail(reply)


class Colour(Enum):
    red = "red"


class Model(BaseModel):
    a: int = 1


@dataclass
class Pair:
    a: object
    b: object


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (deque(["a", 1]), ["a", 1]),
        ({"d": deque([deque()])}, {"d": [[]]}),
        (frozenset([1]), [1]),
        ({1: 2}.keys(), [1]),
        (range(2), [0, 1]),
        (Colour.red, "red"),
        ({Colour.red: {(1, 2): None}, None: True}, {'"red"': {"[1, 2]": None}, "null": True}),
        (Pair(Path("/secret/a"), Model()), {"a": "a", "b": {"a": 1}}),
        (b"abc", "abc"),
        (Decimal("1.5"), "1.5"),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01 00:00:00+00:00"),
        (object(), None),
        (len, None),
        (Pair, None),
        (np.array([1.5, np.nan]), [1.5, None]),
        (np.float32(np.inf), None),
        (np.int64(3), 3),
    ],
)
def test_no_notation_of_python_in_an_answer(value, expected):
    assert plain(value) == expected and json.loads(json.dumps(plain(value), allow_nan=False)) == expected


# ------------------------------------------------------------------------------------------------------ the next case


def test_without_a_name_the_next_case_is_one_that_nobody_has_rated(making):
    """Nothing is scored here: all scores are equal, and ties go by id."""
    order = [f"syn_{n:03d}" for n in range(STUDIES)]
    assert [i["synthetic_id"] for i in making.json("/replica/worklist")["items"]] == order
    for case, reader in zip(order, ("", "anna", ""), strict=True):
        assert making.json("/replica/next")["synthetic_id"] == case
        assert strict_json(making("POST", "/activelearning/most_replica_like", json={}))["id"] == case
        rating = {"rating_id": "", "reader": reader, "synthetic_id": case, "training_id": "trn_000", "rating": 1}
        assert making("POST", "/replica/ratings", json=rating).status_code == 201
    reply = making("GET", "/replica/next")
    assert reply.status_code == 404 and "nobody" in detail(reply)
    assert strict_json(making("POST", "/activelearning/most_replica_like", json={})) == {}
    assert making.json("/replica/next", reader="anna")["synthetic_id"] == order[0]
