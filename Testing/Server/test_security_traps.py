"""Each trap of MONAI Label's server, against its own launch and against ours.

The same test runs twice: `stock` is MONAI Label with an app of its own kind, where it proves that the trap is real;
`ours` is `replica-detection serve`, where the trap is closed. docs/server-security.md lists them.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import stat
import tarfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import numpy as np
import requests

from Core.made_dicom import dicom_dataset, save_dicom
from Core.made_up import cohort
from Server.collections_on_disk import image_bytes
from Server.conftest import until
from Server.running import Server, running_server

pytestmark = pytest.mark.slow

ODD = Path(__file__).with_name("odd_app")
EVIL = "http://evil.example"
UPLOAD_MB = 2
IMAGE = image_bytes()


@dataclass(frozen=True)
class Launched:
    """A server with its folders; `outside` is beside them and must stay as it is."""

    kind: str
    server: Server
    outside: Path
    temporary: Path

    @property
    def ours(self) -> bool:
        return self.kind == "ours"

    def __call__(self, method: str, path: str, **how) -> requests.Response:
        return requests.request(method, self.server.url + path, timeout=30, **how)

    def infer(self, model: str, image: str = "syn_000", **how) -> requests.Response:
        params = {"image": image, "output": "json", **how.pop("params", {})}
        return self("POST", f"/infer/{model}", params=params, **how)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohorts")
    cohort(folder / "training", 6, prefix="trn")
    return folder


def _launched(kind: str, cohorts: Path, folder: Path) -> Iterator[Launched]:
    studies = cohort(folder / "studies", 3, 200, "syn")
    work = folder / "work"
    work.mkdir()
    outside = folder / "outside"
    outside.mkdir()
    (outside / "canary.nii.gz").write_bytes(b"alive")
    # MONAI Label reads settings from here, and this one keeps it from starting.
    if kind == "ours":
        (work / ".env").write_text(
            'MONAI_LABEL_CORS_ORIGINS=["http://evil.example"]\nMONAI_LABEL_SESSIONS=false\n', encoding="utf-8"
        )
    allowed = {"MONAI_LABEL_CORS_ORIGINS": '["http://evil.example"]'} if kind == "ours" else {}
    # Python runs one sitecustomize: here it must be the caller's, not that of the tests, which stands first.
    paths = os.environ["PYTHONPATH"].partition(os.pathsep)[2]
    with running_server(
        studies,
        work=work,
        training=cohorts / "training",
        data=folder / "data",
        # Nothing here depends on them. The usual ones fit the embedding, here with all its views: see `paths`.
        conf={"measures": "mae,ssim"},
        hardened=kind == "ours",
        app=ODD if kind == "ours" else _writable(ODD, folder / "app"),
        env={"ODD_BASE": kind, "PYTHONPATH": paths, **allowed},
        args=("--max-upload-mb", str(UPLOAD_MB), "--queue", "1") if kind == "ours" else (),
    ) as server:
        temporary = folder / "data" / "tmp" if kind == "ours" else work / "tmp"
        launched = Launched(kind, server, outside, temporary)
        _wait_for_jobs(launched)
        yield launched


@pytest.fixture(scope="module")
def ours(cohorts, tmp_path_factory):
    yield from _launched("ours", cohorts, tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def stock(cohorts, tmp_path_factory):
    yield from _launched("stock", cohorts, tmp_path_factory.mktemp("stock"))


@pytest.fixture(params=["stock", "ours"])
def at(request) -> Launched:
    return request.getfixturevalue(request.param)


def _slice(number: int) -> bytes:
    file = io.BytesIO()
    save_dicom(dicom_dataset(np.full((4, 5), number, np.int16), ImagePositionPatient=[0, 0, number]), file)
    return file.getvalue()


def _writable(app: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "main.py").write_bytes((app / "main.py").read_bytes())
    return folder


def _wait_for_jobs(launched: Launched) -> None:
    while launched.ours and any(j["state"] in ("queued", "running") for j in launched("GET", "/replica/jobs").json()):
        time.sleep(0.2)


def _eventually(holds: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


# ------------------------------------------------------------------------------------------------ who may send what


def test_other_origins(at):
    reply = at("GET", "/info/", headers={"Origin": EVIL})
    if at.ours:
        assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers
    else:
        assert reply.headers["access-control-allow-origin"] == EVIL
        assert reply.headers["access-control-allow-credentials"] == "true"


def test_preflight_of_other_origins(at):
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "DELETE"}
    reply = at("OPTIONS", "/datastore/image?id=syn_000", headers=asked)
    assert (reply.status_code == 200) != at.ours
    assert ("access-control-allow-origin" in reply.headers) != at.ours


def test_simple_posts_of_other_pages(at):
    """No preflight comes before such a request."""
    reply = at("POST", "/infer/opens?image=syn_000&output=json", headers={"Origin": EVIL}, data={"params": "{}"})
    assert reply.status_code == (403 if at.ours else 200)


def test_dns_rebinding(at):
    assert at("GET", "/info/", headers={"Host": "evil.example"}).status_code == (421 if at.ours else 200)


def test_page_without_foreign_scripts(at):
    page = at("GET", "/").text
    assert ("//cdn." in page) != at.ours
    assert at("GET", "/docs").status_code == (404 if at.ours else 200)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/logs/?lines=5&text=true"),
        ("GET", "/ohif/"),
        ("GET", "/proxy/dicom/x"),
        ("POST", "/infer/wsi/opens?image=syn_000"),
        ("PUT", "/model/opens"),
        ("DELETE", "/model/opens"),
        ("GET", "/static/favicon.ico"),
    ],
)
def test_closed_doors(at, method, path):
    how = {"files": {"file": ("x.pt", b"x")}} if method == "PUT" else {}
    reply = at(method, path, **how)
    if at.ours:
        assert reply.status_code in (404, 405) and reply.json()["detail"]
    else:
        # There is a door: what is behind it may fail.
        assert reply.status_code not in (404, 405) or "NOT Found" in reply.text or "OHIF" in reply.text


# ------------------------------------------------------------------------------------------ files outside the folders


def test_image_written_outside(at):
    sent = {"file": ("x.nii.gz", b"dead")}
    reply = at("PUT", "/datastore/image", params={"image": "../outside/evil"}, files=sent)
    assert (at.outside / "evil.nii.gz").exists() != at.ours
    if at.ours:
        assert reply.status_code == 422


def test_label_written_outside(at):
    sent = {"label": ("x.nii.gz", b"dead")}
    at("PUT", "/datastore/label", params={"image": "syn_000", "tag": "../../outside/tag"}, files=sent)
    assert (at.outside / "tag").exists() != at.ours


def test_image_read_from_anywhere(at):
    reply = at.infer("opens", str(at.outside / "canary.nii.gz"))
    if at.ours:
        assert reply.status_code == 422
    else:
        assert reply.json() == {"bytes": 5}


@pytest.mark.parametrize("image", ["canary.nii.gz", "../outside/canary.nii.gz", "datastore_v2.json", "labels"])
def test_image_read_by_a_relative_path(ours, image):
    assert ours.infer("opens", image).status_code in (404, 422)


def test_image_named_in_the_parameters(at):
    sent = {"params": json.dumps({"image": str(at.outside / "canary.nii.gz")})}
    reply = at.infer("opens", data=sent)
    if at.ours:
        assert reply.status_code == 422 and "image" in reply.json()["detail"]
    else:
        assert reply.json() == {"bytes": 5}


def test_model_named_in_the_parameters(at):
    reply = at.infer("opens", data={"params": json.dumps({"model": "not_a_number"})})
    assert reply.status_code == (422 if at.ours else 500)


@pytest.mark.parametrize("extension", ["/../../evil.nii", "../evil", ".exe", 5, None])
def test_extension_of_the_result(ours, extension):
    """MONAI Label's writer makes it the end of the name of a temporary file."""
    before = _listed(ours.outside.parent)
    reply = ours.infer("vessels", data={"params": json.dumps({"result_extension": extension})})
    assert reply.status_code == (200 if extension is None else 422)
    assert _listed(ours.outside.parent) == before


def test_batch_over_any_path(at):
    """`images` in the body takes the place of the choice in the query."""
    asked = {"images": [str(at.outside / "canary.nii.gz")], "multi_gpu": False, "device": "cpu"}
    reply = at("POST", "/batch/infer/opens?run_sync=true", json=asked)
    if at.ours:
        assert reply.status_code == 404
    else:
        assert next(iter(reply.json().values()))["params"] == {"bytes": 5}


def test_code_of_the_caller_in_a_job(at):
    """`bundle_path` joins PYTHONPATH of the job's process, which runs what lies there as its first deed."""
    code = at.outside.parent / "code"
    code.mkdir(exist_ok=True)
    mark = at.outside.parent / "was-run"
    (code / "sitecustomize.py").write_text(f"open({str(mark)!r}, 'w').close()", encoding="utf-8")
    reply = at("POST", "/train/nothing", json={"bundle_path": str(code)})
    assert _eventually(mark.exists, 1 if at.ours else 15) != at.ours
    if at.ours:
        assert reply.status_code == 422 and "bundle_path" in reply.json()["detail"]
    else:
        at("DELETE", "/train/")


def test_archive_that_climbs(at):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo(str(at.outside / "slipped.txt"))
        member.size = 4
        tar.addfile(member, io.BytesIO(b"dead"))
    sent = {"files": ("x.tar.gz", archive.getvalue())}
    reply = at("PUT", "/session/?uncompress=true", files=sent)
    assert (at.outside / "slipped.txt").exists() != at.ours
    if at.ours:
        assert reply.status_code == 422 and "path" in reply.json()["detail"]


def test_result_that_is_the_image_itself(at):
    """MONAI Label removes the file of a result once it is sent."""
    image = at.server.studies / "syn_002.nii.gz"
    reply = at.infer("itself", "syn_002", params={"output": "image"})
    assert reply.status_code == 200 and reply.content
    time.sleep(0.2)
    assert image.exists() == at.ours


def test_upload_without_an_id(at):
    """MONAI Label guesses one from the file's name: two files, one id."""
    for name in ("sub.01.nii.gz", "sub.02.nii.gz"):
        reply = at("PUT", "/datastore/image", files={"file": (name, b"x")})
        assert reply.status_code == (422 if at.ours else 200)
    if not at.ours:
        assert "sub" in at("GET", "/datastore/?output=all").json()["objects"]


def test_upload_over_an_image(at):
    image = at.server.studies / "syn_001.nii.gz"
    before = image.read_bytes()
    reply = at("PUT", "/datastore/image?image=syn_001", files={"file": ("x.nii.gz", gzip.compress(IMAGE))})
    assert (image.read_bytes() == before) == at.ours
    if at.ours:
        assert reply.status_code == 409
    image.write_bytes(before)


# ------------------------------------------------------------------------------------------------- answers and logs


WITHOUT_REFUSAL = ("/infer/opens?image=none", "/activelearning/random")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/infer/none?image=syn_000", 404),
        ("POST", "/infer/opens?image=none", 404),
        ("POST", "/infer/opens", 422),
        ("POST", "/infer/opens?image=syn_000&output=image", 422),
        ("POST", "/infer/opens?image=syn_000&output=dicom_seg", 422),
        ("POST", "/activelearning/none", 404),
        ("POST", "/activelearning/random", 404),
        ("POST", "/scoring/none?run_sync=true", 404),
        ("POST", "/train/none?run_sync=true", 404),
        ("POST", "/batch/infer/none?run_sync=true", 404),
        ("GET", "/datastore/dataset", 404),
        ("HEAD", "/datastore/image?image=syn_000&check_sum=CRC:1234", 422),
        ("PUT", "/datastore/image/info?image=none", 404),
        ("DELETE", "/datastore/image?id=none", 404),
    ],
)
def test_bare_500(at, method, path, status):
    reply = at(method, path)
    if at.ours:
        assert reply.status_code == status
        assert method == "HEAD" or isinstance(reply.json()["detail"], str)
    else:
        # 200 where MONAI Label opens the working folder for an unknown image, or has a strategy of this name.
        assert reply.status_code == 500 or (reply.status_code == 200 and path in WITHOUT_REFUSAL)


def test_failing_task(at):
    reply = at.infer("fails")
    assert reply.status_code == 500
    assert "Smith" not in reply.text
    if not at.ours:  # its log is written just after the reply
        until(lambda: "Smith^John" in at.server.log_text(), "MONAI Label no longer logs what a task says")
    else:
        assert "Smith^John" not in at.server.log_text()
        assert reply.json()["detail"] and "RuntimeError at main.py" in at.server.log_text()


def test_refusals_of_tasks_arrive(at):
    reply = at.infer("refuses")
    assert (reply.status_code, reply.json()["detail"]) == (409, "not now")


def test_result_without_a_number(at):
    reply = at.infer("not_a_number")
    if at.ours:
        assert reply.json() == {"score": None, "deep": [{"inf": None}]}
    else:
        assert reply.status_code == 500


def test_notes_that_poison_the_list(ours):
    """MONAI Label stores NaN and then answers 500 to every call for the list of images."""
    for info in ('{"a": NaN}', '{"a": "\\ud800"}', "[1]", "{", "null"):
        assert ours("PUT", "/datastore/image/info?image=syn_000", data={"info": info}).status_code == 422
    assert ours("GET", "/datastore/?output=all").status_code == 200


def test_folders_in_replies(at):
    folder = str(at.server.studies)
    session = at("PUT", "/session/", files={"files": ("x.nii", IMAGE)}).json()["session_id"]
    replies = [
        at("POST", "/activelearning/first", json={}),
        at("GET", f"/session/{session}"),
        at("GET", "/datastore/image/info?image=syn_000"),
    ]
    said = [r.text for r in replies]
    place = str(at.server.studies.parent)
    assert all(r.status_code == 200 for r in replies)
    assert any(place in text or folder in text for text in said) != at.ours


def test_images_in_the_log(at):
    at.infer("opens", "syn_000")
    at("PUT", "/datastore/label?image=syn_000&tag=final", files={"label": ("x.nii", IMAGE)})
    at("GET", "/datastore/image?image=syn_000")
    text = at.server.log_text()
    assert ("syn_000" in text) != at.ours
    assert (str(at.server.studies) in text) != at.ours
    if at.ours:
        assert "POST /infer/{model} 200" in text
        assert "syn_000" not in "".join(p.read_text(encoding="utf-8") for p in (at.server.data / "logs").iterdir())


def test_leftovers_of_failing_requests(at):
    before = set(at.temporary.rglob("*"))
    for _ in range(3):
        at.infer("fails", "", files={"file": ("x.nii", IMAGE)})
        at.infer("no_json", params={"output": "json"})
    left = {p for p in at.temporary.rglob("*") if p.is_file()} - before
    assert bool(left) != at.ours, left


def test_private_folders(ours):
    for name in ("", "sessions", "tmp", "logs"):
        assert stat.S_IMODE((ours.server.data / name).stat().st_mode) == 0o700


def test_stock_uploads_lie_open_in_the_temporary_folder(stock):
    """Why ours has a folder of its own: what a file of MONAI Label may be read by."""
    stock.infer("fails", "", files={"file": ("x.nii.gz", b"patient")})
    modes = {stat.S_IMODE(p.stat().st_mode) for p in stock.temporary.iterdir() if p.is_file()}
    assert any(mode & stat.S_IROTH for mode in modes)


# -------------------------------------------------------------------------------------------------- sizes and queues


def _endless(sent: list[int], limit: int = 64 << 20):
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.nii.gz"\r\n\r\n'
    while sent[0] < limit:
        sent[0] += 1 << 20
        yield bytes(1 << 20)
    yield b"\r\n--b--\r\n"


def test_upload_without_end(at):
    """Chunked: no Content-Length says how much will come."""
    sent = [0]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = at("PUT", "/datastore/image?image=large", data=_endless(sent), headers=headers)
    assert reply.status_code == (413 if at.ours else 200)
    assert (at.server.studies / "large.nii.gz").exists() != at.ours
    if at.ours:
        assert str(UPLOAD_MB + 1) in reply.json()["detail"]


def test_upload_beyond_the_limit(ours):
    large = {"file": ("x.nii", image_bytes((UPLOAD_MB + 2) << 20))}
    assert ours("PUT", "/datastore/image?image=large", files=large).status_code == 413
    assert ours.infer("opens", "", files=large).status_code == 413
    fits = {"file": ("x.nii", image_bytes(UPLOAD_MB << 20))}
    assert ours.infer("opens", "", files=fits).json() == {"bytes": UPLOAD_MB << 20}
    beyond = {"file": ("x.nii", image_bytes((UPLOAD_MB << 20) + 1))}
    assert ours.infer("opens", "", files=beyond).status_code == 413


def test_large_bodies_where_no_file_is_expected(ours):
    assert ours("POST", "/replica/ratings", data=bytes(2 << 20)).status_code == 413
    assert ours("POST", "/activelearning/first", data=bytes(2 << 20)).status_code == 413


def test_archive_that_grows(ours):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("1.dcm", bytes(40 << 20))
    reply = ours("PUT", "/session/?uncompress=true", files={"files": ("x.zip", archive.getvalue())})
    assert reply.status_code == 422 and "unpacks to more than" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("/infer/slow?image=syn_000&output=json", {}),
        ("/scoring/sleeping?run_sync=true", {}),
        ("/train/nothing?run_sync=true", {}),
        ("/batch/infer/slow?run_sync=true", {"json": {"multi_gpu": False, "device": "cpu", "max_batch_size": 1}}),
        ("/activelearning/first", {"json": {"client_id": "r"}}),
    ],
)
def test_others_while_one_computes(at, path, how):
    if "activelearning" in path:
        how = {} if at.ours else {"json": {"after": 3}}
    thread = threading.Thread(target=at, args=("POST", path), kwargs=how)
    thread.start()
    time.sleep(0.5)
    start = time.perf_counter()
    at("GET", "/info/")
    waited = time.perf_counter() - start
    thread.join()
    assert (waited > 1.5) != at.ours, f"{waited:.2f} s"
    print(f"{at.kind}: /info/ answered after {waited * 1000:.0f} ms while {path} ran")


def test_full_queue(ours):
    """Two compute, one waits, the rest is told when to come back."""
    found: list[requests.Response] = []
    threads = [threading.Thread(target=lambda: found.append(ours.infer("slow"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.status_code for r in found) == [200, 200, 200, 503, 503]
    refused = [r for r in found if r.status_code == 503]
    assert all(int(r.headers["Retry-After"]) > 0 and r.json()["detail"] for r in refused)
    assert ours.infer("opens").status_code == 200


# ------------------------------------------------------------------------------------------------------------ sessions


def test_session_ids_cannot_be_guessed(at):
    id = at("PUT", "/session/", files={"files": ("x.nii", IMAGE)}).json()["session_id"]
    assert uuid.UUID(id).version == (4 if at.ours else 1)


@pytest.mark.parametrize("id", ["..%2f..%2foutside", "..", "%2e%2e", "x", "a" * 36])
def test_sessions_by_path(ours, id):
    for method in ("GET", "DELETE"):
        connection = http.client.HTTPConnection("127.0.0.1", ours.server.port, timeout=10)
        connection.request(method, f"/session/{id}")  # as it is: other clients shorten the path
        assert connection.getresponse().status in (400, 422)
        connection.close()
    assert (ours.outside / "canary.nii.gz").read_bytes() == b"alive"


def test_session_of_a_series(ours):
    series = [("files", (f"IM{n:04d}", _slice(n))) for n in range(3)]
    made = ours("PUT", "/session/", files=series)
    assert made.status_code == 200
    assert ours("GET", f"/session/{made.json()['session_id']}?image=true").status_code == 422
    assert ours("DELETE", f"/session/{made.json()['session_id']}").status_code == 200
    assert ours("GET", f"/session/{made.json()['session_id']}").status_code == 404


def test_session_as_the_image_of_an_inference(ours):
    id = ours("PUT", "/session/", files={"files": ("x.nii", IMAGE)}).json()["session_id"]
    assert ours.infer("opens", "", params={"session_id": id}).json() == {"bytes": len(IMAGE)}
    gone = id[:-1] + ("0" if id[-1] != "0" else "1")
    assert ours.infer("opens", "", params={"session_id": gone}).status_code == 404


# ------------------------------------------------------------------------------------- last: these end a stock server


def test_reload(at):
    """Afterwards MONAI Label's server has another app object, which asks itself and waits for ever."""
    assert at("POST", "/reload").status_code == (404 if at.ours else 200)


def test_poisoned_list_at_stock(stock):
    assert stock("PUT", "/datastore/image/info?image=syn_000", data={"info": '{"a": NaN}'}).status_code == 200
    assert stock("GET", "/datastore/?output=all").status_code == 500


def _listed(folder: Path) -> list[str]:
    parts = ("work", "data/tmp", "data/logs")
    found = (os.path.relpath(p, folder) for p in folder.rglob("*"))
    return sorted(p for p in found if not p.startswith(parts))
