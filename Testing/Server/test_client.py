"""The client against a server with a script: what it sends, what it makes of bad answers, what it never does."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from email.utils import format_datetime

import pytest

from replica_detection.client import ReplicaClient
from replica_detection.errors import (
    AccessDeniedError,
    CancelledError,
    ConfigurationError,
    ConnectionLostError,
    InputError,
    NotFoundError,
    ServerBusyError,
    ServerError,
    UnexpectedAnswerError,
    UnreachableError,
)
from replica_detection.readers.ratings import Rating
from replica_detection.results import schema
from Server.scripted import Asked, Held, breaks, refuses_unread, says, scripted, truncated

STATUS = schema.to_json(schema.Status(schema.API_VERSION, "0.1.0", 3, 2, 5, "none", "", 1000))
COMPARISON = schema.to_json(schema.Comparison("file", "novel", 0.1, "t1", (), (), (), "v"))
RECEIPT = schema.to_json(schema.RatingReceipt("r", "anna", "2026-01-01T00:00:00+00:00"))
BUSY = says({"detail": "too many requests wait"}, 503, Retry_After="0")
KEY = "a-key-of-a-test"


def client(server, **options) -> ReplicaClient:
    return ReplicaClient(server.url, **{"timeout": 5.0, "long_timeout": 5.0, **options})


# ------------------------------------------------------------------------------------------------------ what is sent


def test_each_call_asks_for_its_page():
    item = schema.to_json(schema.WorklistItem("s1"))
    job = schema.to_json(schema.Job("j1", "score", "running"))
    zero = schema.SurfaceStatistics(0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    agreement = schema.to_json(schema.AgreementReport((), 0, 0, (), ()))
    calls = [
        (STATUS, lambda c: c.status(), "GET /replica/status"),
        (item, lambda c: c.next_case(reader="anna", after="s0"), "GET /replica/next?reader=anna&after=s0"),
        (COMPARISON, lambda c: c.comparison("s 1/ü", k=3), "GET /replica/cases/s%201%2F%C3%BC/comparison?k=3"),
        ([], lambda c: c.histograms(), "GET /replica/histograms"),
        (
            schema.to_json(schema.SurfaceReply(zero, zero, zero)),
            lambda c: c.surface_statistics("s", "t"),
            "GET /replica/surfaces/s/t/statistics",
        ),
        ([], lambda c: c.ratings(reader="anna", all=True), "GET /replica/ratings?reader=anna&all=true"),
        (agreement, lambda c: c.agreement(), "GET /replica/agreement"),
        (job, lambda c: c.start_scoring(), "POST /replica/jobs/score"),
        (job, lambda c: c.start_indexing(), "POST /replica/jobs/index"),
        ([job], lambda c: c.jobs(), "GET /replica/jobs"),
        (job, lambda c: c.job("j1"), "GET /replica/jobs/j1"),
        (job, lambda c: c.cancel("j1"), "DELETE /replica/jobs/j1"),
    ]
    with scripted(*(says(answer) for answer, *_ in calls)) as server:
        for _, call, _ in calls:
            call(client(server))
    assert [f"{a.method} {a.target}" for a in server.asked] == [expected for *_, expected in calls]


def test_worklist_goes_through_all_pages_once():
    """Between two pages a case was scored and moved behind the others: it comes once, and none is lost at the end."""
    items = [schema.WorklistItem(f"s{n}") for n in range(5)]
    pages = [(0, items[:2]), (2, [items[1], items[2]]), (4, [items[3]]), (5, [])]
    answers = [says(schema.to_json(schema.Worklist(6, offset, tuple(page)))) for offset, page in pages]
    with scripted(*answers) as server:
        found = list(client(server).worklist(page=2, sort="score", verdict=("replica", "suspicious"), rated="no"))
    assert [item.synthetic_id for item in found] == ["s0", "s1", "s2", "s3"]
    assert server.asked[1].target == (
        "/replica/worklist?offset=2&limit=2&sort=score&verdict=replica&verdict=suspicious&rated=no"
    )


def test_rating_is_sent_again_under_the_same_id():
    with scripted(BUSY, breaks, says(RECEIPT, 201)) as server:
        receipt = client(server).rate("s1", "t1", 4, comment="Gefäßbaum", seconds=2.5, index_version="v")
    sent = [schema.from_json(Rating, json.loads(asked.body)) for asked in server.asked]
    assert receipt == schema.from_json(schema.RatingReceipt, RECEIPT)
    assert len(sent) == 3 and len(set(sent)) == 1
    assert sent[0] == Rating(sent[0].rating_id, "", "s1", "t1", 4, "Gefäßbaum", False, 2.5, "", "v")
    assert len(sent[0].rating_id) == 36


def test_key_goes_into_the_header_and_nowhere_else(caplog):
    caplog.set_level(logging.DEBUG)
    with scripted(says({"detail": "no"}, 403)) as server:
        one = client(server, key=KEY)
        with pytest.raises(AccessDeniedError) as error:
            one.status()
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{server.asked[0].target}{error.value}{error.value!r}{one!r}{one}{caplog.text}"


def parts_of(asked: Asked) -> dict[str | None, tuple[str | None, bytes]]:
    """Field, file name and content of a form, read by the standard library's own parser of mail."""
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + asked.body)
    assert isinstance(message, EmailMessage) and not message.defects
    return {
        part.get_param("name", header="content-disposition"): (part.get_filename(), part.get_payload(decode=True))
        for part in message.iter_parts()
    }


def test_upload_arrives_whole_without_the_name_of_the_file(tmp_path):
    image, mask = tmp_path / "MUELLER^ANNA 1950.nii.gz", tmp_path / "mask.nrrd"
    image.write_bytes(bytes(range(256)) * 4000)
    mask.write_bytes(b"\r\n--x\r\n")
    said = []
    with scripted(BUSY, says(COMPARISON)) as server:
        client(server).compare_file(image, mask=mask, k=7, progress=lambda *a: said.append(a))
    assert server.asked[1].target == "/replica/compare?k=7"
    for asked in server.asked:
        assert b"MUELLER" not in asked.body
        assert parts_of(asked) == {
            "file": ("file.nii.gz", image.read_bytes()),
            "mask": ("mask.nrrd", mask.read_bytes()),
        }
    total = image.stat().st_size + mask.stat().st_size
    assert said[-1] == ("uploading", total, total) and said == [("uploading", d, total) for _, d, _ in said]


def test_masks_of_cases_and_of_files(tmp_path):
    image = tmp_path / "MUELLER.nrrd"
    image.write_bytes(b"voxels")
    info = {"models": {"vessels": {"type": "segmentation"}, "replica_matches": {"type": "others"}}}
    with scripted(says(info), says(b"mask")) as server:
        assert client(server).segmenters() == ("vessels",)
        of_case = client(server).segment("vessels", "train:t1", tmp_path)
        of_file = client(server).segment_file("vessels", image, tmp_path)
    assert [f"{a.method} {a.target}" for a in server.asked] == [
        "GET /info/",
        "POST /infer/vessels?output=image&image=train%3At1",
        "POST /infer/vessels?output=image",
    ]
    assert parts_of(server.asked[2]) == {"file": ("file.nrrd", b"voxels")}
    assert (of_case.name, of_file.name) == ("train%3At1_vessels.nii.gz", "MUELLER_vessels.nii.gz")
    assert of_case.read_bytes() == of_file.read_bytes() == b"mask"
    with scripted(says([])) as server, pytest.raises(UnexpectedAnswerError):
        client(server).segmenters()


@pytest.mark.parametrize("name", ["MUELLER.IMA", "00000042", "1.2.840.1"])
def test_dicom_is_sent_as_such_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    with scripted(says(COMPARISON)) as server:
        client(server).compare_file(tmp_path / name)
    assert parts_of(server.asked[0])["file"][0] == "file.dcm"


@pytest.mark.parametrize("name", ["folder", "header.mhd", "missing.nii.gz"])
def test_what_cannot_be_sent_is_said_before_anything_is(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "header.mhd").write_text("ElementDataFile = x.raw", encoding="utf-8")
    with scripted(says(COMPARISON)) as server, pytest.raises(InputError, match=name):
        client(server).compare_file(tmp_path / name)
    assert not server.asked


def test_light_client_needs_no_third_party_package():
    code = (
        "import sys, replica_detection.client; print([m for m in sys.modules if m in ('numpy', 'requests', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------- bad answers


def test_busy_is_tried_again_as_late_as_asked():
    with scripted(says({}, 503, Retry_After="1"), BUSY, says(STATUS)) as server:
        start = time.monotonic()
        assert client(server).status().studies == 3
        assert time.monotonic() - start >= 1
    assert len(server.asked) == 3


def test_busy_to_the_end_is_an_error_with_the_servers_words():
    with scripted(BUSY) as server, pytest.raises(ServerBusyError, match="too many requests wait") as error:
        client(server, retries=2).status()
    assert (error.value.status, error.value.detail, error.value.retry_after) == (503, "too many requests wait", 0)
    assert len(server.asked) == 3


def test_time_to_try_again_may_be_a_date_or_nonsense():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    for value, low, high in ((soon, 35, 40), ("soon", None, None), ("²", None, None)):
        with scripted(says({}, 503, Retry_After=value)) as server, pytest.raises(ServerBusyError) as error:
            client(server, retries=0).status()
        pause = error.value.retry_after
        assert pause is None if low is None else low <= pause <= high


def test_broken_connection_is_tried_again_only_where_that_does_no_harm():
    with scripted(breaks, says(STATUS)) as server:
        assert client(server).status().studies == 3
    with scripted(breaks) as server, pytest.raises(ConnectionLostError):
        client(server).start_scoring()
    assert len(server.asked) == 1


def test_silence_ends_after_the_timeout():
    released = threading.Event()
    with scripted(Held(says(STATUS), released)) as server:
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=r"did not answer within 0\.3 seconds"):
            client(server, timeout=0.3).status()
        assert time.monotonic() - start < 2
        released.set()
    assert len(server.asked) == 1


def test_silence_within_an_answer_ends_too():
    def stalls(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")
        released.wait(20)

    released = threading.Event()
    with scripted(stalls) as server, pytest.raises(UnreachableError, match="did not answer"):
        client(server, timeout=0.3).status()
    released.set()


def test_no_server_is_said_at_once():
    with scripted(says(STATUS)) as server:
        url = server.url
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=r"cannot be reached: Connection refused\. Check that the server runs"):
        ReplicaClient(url).status()
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(b"<html>Please log in</html>"), "no JSON: <html>Please log in"),
        (says({**STATUS, "api_version": schema.API_VERSION + 1}), "speaks version 2"),
        (says([]), "speaks version None"),
        (says({**STATUS, "studies": "many"}), "Status.studies: expected int"),
        (lambda handler: handler.wfile.write(b"+OK POP3 ready\r\n"), "no HTTP: .OK POP3"),
        (says({}, 302, Location="/replica/status"), "without end"),
    ],
)
def test_another_kind_of_server_is_recognised(answer, said):
    with scripted(answer) as server, pytest.raises(UnexpectedAnswerError, match=said):
        client(server).status()


def test_lists_are_checked_too():
    with scripted(says({"detail": "x"})) as server, pytest.raises(UnexpectedAnswerError, match="expected a list"):
        client(server).jobs()


@pytest.mark.parametrize(
    ("status", "detail", "kind", "said"),
    [
        (401, "wrong key", AccessDeniedError, "asks for a key: wrong key."),
        (403, "not yours", AccessDeniedError, "refused this: not yours."),
        (404, "no case 's1'", NotFoundError, "refused this: no case 's1'."),
        (409, "it runs already", ServerError, "refused this: it runs already."),
        (413, "too large.", ServerError, "refused this: too large."),
        (500, "a disk\r\nis full\x1b[2J", ServerError, "failed: a disk is full"),
        (422, [{"loc": ["query", "k"], "msg": "must be positive"}], ServerError, "query.k: must be positive."),
        (400, None, ServerError, "400 Bad Request."),
    ],
)
def test_refusals_carry_the_servers_words(status, detail, kind, said):
    answer = {} if detail is None else {"detail": detail}
    with scripted(says(answer, status)) as server, pytest.raises(kind) as error:
        client(server).status()
    assert error.value.status == status and said in str(error.value) and str(error.value).isprintable()
    assert type(error.value) is kind
    assert pickle.loads(pickle.dumps(error.value)).status == status
    assert len(server.asked) == 1


def test_a_refused_key_is_called_so():
    said = "does not accept this key: unknown"
    with scripted(says({"detail": "unknown"}, 401)) as server, pytest.raises(AccessDeniedError, match=said):
        client(server, key=KEY).status()


def test_upload_that_is_refused_before_it_was_read_gives_the_reason(tmp_path):
    image = tmp_path / "large.nii"
    image.write_bytes(bytes(64 * 2**20))
    said = "larger than 1 MB"
    with scripted(refuses_unread(413, said)) as server, pytest.raises(ServerError, match=said) as error:
        client(server, retries=0).compare_file(image)
    assert error.value.status == 413


# --------------------------------------------------------------------------------------------- where a call may lead


def test_redirect_within_the_server_is_followed_and_one_to_another_is_not():
    with scripted(says(STATUS)) as other, scripted(says({}, 307, Location="/replica/here?x=1"), says(STATUS)) as server:
        assert client(server, key=KEY).status().studies == 3
        assert server.asked[1].target == "/replica/here?x=1"
        for away in (other.url, server.url.replace("http:", "https:"), "//127.0.0.1:1/x", "http://[bad"):
            server.steps[:] = [says({}, 307, Location=away)]
            with pytest.raises(UnexpectedAnswerError, match=r"sends on to http|redirect to no address"):
                client(server, key=KEY).status()
        assert not other.asked


def test_a_rating_is_never_sent_on():
    with (
        scripted(says({}, 307, Location="/elsewhere")) as server,
        pytest.raises(UnexpectedAnswerError, match="sends on"),
    ):
        client(server).rate("s", "t", 1)
    assert len(server.asked) == 1


def test_proxy_of_the_environment_is_not_used(monkeypatch):
    with scripted(says(STATUS)) as server, scripted(says({}, 500)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert client(server).status().studies == 3
    assert not proxy.asked


def test_path_of_a_gateway_stands_before_each_page():
    with scripted(says(STATUS)) as server:
        ReplicaClient(server.url + "/replicas/").status()
    assert server.asked[0].target == "/replicas/replica/status"


@pytest.mark.parametrize("url", ["http://server:8000", "http://10.1.2.3", "http://127.0.0.1.example.org"])
def test_key_is_not_sent_in_the_clear_to_another_machine(url):
    with pytest.raises(ConfigurationError, match="https") as error:
        ReplicaClient(url, key=KEY)
    assert KEY not in str(error.value)
    ReplicaClient(url)
    ReplicaClient(url, key=KEY, allow_insecure=True)
    ReplicaClient(url.replace("http:", "https:"), key=KEY)


def test_key_may_be_sent_in_the_clear_within_this_machine():
    for host in ("127.0.0.1", "localhost", "[::1]", "127.8.8.8"):
        ReplicaClient(f"http://{host}:8000", key=KEY)


@pytest.mark.parametrize(
    "url",
    ["", "server:8000", "ftp://server", "http://", "http://a:b@server", "http://server?x=1", "http://server:99999",
     "http://server/\nX: 1", "http://ser ver", "http://[::1", "http://sérver"],
)  # fmt: skip
def test_addresses_that_are_none(url):
    with pytest.raises(ConfigurationError, match=r"[Aa]ddress"):
        ReplicaClient(url)


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX-Evil: 1", "ключ"])
def test_keys_that_are_none(key):
    with pytest.raises(ConfigurationError, match="copy it again") as error:
        ReplicaClient("http://127.0.0.1", key=key)
    assert not key or key not in str(error.value)


# --------------------------------------------------------------------------------------------------------------- files


def test_download_is_named_by_us_and_not_by_the_server(tmp_path):
    body = bytes(range(256)) * 5000
    said = []
    for name in ('attachment; filename="../../evil.nii.gz"', "attachment; filename*=utf-8''..%2F..%2Fevil.NII.GZ"):
        with scripted(says(body, Content_Disposition=name)) as server:
            path = client(server).download_image("train:s1", tmp_path, progress=lambda *a: said.append(a))
        assert path == tmp_path / "train%3As1.nii.gz" and path.read_bytes() == body
        assert server.asked[0].target == "/datastore/image?image=train%3As1"
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert said[-1] == ("downloading", len(body), len(body)) and len(said) > 4


def test_ids_that_climb_stay_in_the_folder(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    with scripted(says(b"x", Content_Disposition='inline; filename="a.nrrd"')) as server:
        for case in ("../../up", "..", "a/b", "a\\b", "/etc/passwd"):
            assert client(server).download_image(case, folder).parent == folder
        assert client(server).surface("..", "../t", folder).parent == folder
        assert client(server).download_mask("train:..", folder).parent == folder
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("call", "target", "name"),
    [
        (lambda c, to: c.download_mask("s", to), "/replica/masks/s", "s_mask.nii.gz"),
        (lambda c, to: c.surface("s", "t", to, of="training"), "/replica/surfaces/s/t?of=training", "s_t_training.vtp"),
        (lambda c, to: c.difference("s", "t", to), "/replica/difference/s/t", "s_t_difference.nii.gz"),
        (lambda c, to: c.aligned("s", "t", to), "/replica/aligned/s/t", "s_t_aligned.nii.gz"),
        (lambda c, to: c.report(to), "/replica/report", "report.html"),
        (lambda c, to: c.download_ratings(to), "/replica/ratings?format=csv", "ratings.csv"),
    ],
)
def test_each_file_has_its_page_and_name(tmp_path, call, target, name):
    with scripted(says(b"content")) as server:
        assert call(client(server), tmp_path) == tmp_path / name
        assert call(client(server), tmp_path / "mine") == tmp_path / "mine"
    assert server.asked[0].target == target and (tmp_path / "mine").read_bytes() == b"content"


def test_a_file_never_gets_the_extension_of_another_format(tmp_path):
    with scripted(says(b"x", Content_Disposition='inline; filename="a.nrrd"')) as server:
        with pytest.raises(InputError, match=r"'\.nrrd'"):
            client(server).download_image("s", tmp_path / "s.nii.gz")
        client(server).download_image("s", tmp_path / "s.nrrd")
    unknown = says(b"x", Content_Disposition='inline; filename="a.exe"')
    with scripted(unknown) as server, pytest.raises(UnexpectedAnswerError, match="unknown format"):
        client(server).download_image("s", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["s.nrrd"]


def test_truncated_download_is_tried_again_and_leaves_nothing_half_done(tmp_path):
    old = tmp_path / "s.nii.gz"
    old.write_bytes(b"the old one")
    broken = r"broke (off after 4 of 8|the connection)"
    with scripted(truncated(b"half", 8)) as server, pytest.raises(ConnectionLostError, match=broken):
        client(server, retries=1).download_mask("s", old)
    assert len(server.asked) == 2 and old.read_bytes() == b"the old one"
    with scripted(truncated(b"half", 8), says(b"whole")) as server:
        client(server).download_mask("s", old)
    assert old.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [old]


def test_file_that_cannot_be_written_is_no_fault_of_the_server(tmp_path):
    with scripted(says(b"x")) as server, pytest.raises(InputError, match="cannot be written"):
        client(server).download_mask("s", tmp_path / "missing" / "s.nii.gz")


# ---------------------------------------------------------------------------------------------------------- cancelling


def test_waiting_for_an_answer_can_be_cancelled():
    released, cancelled = threading.Event(), threading.Event()
    with scripted(Held(says(COMPARISON), released)) as server:
        threading.Timer(0.2, cancelled.set).start()
        start = time.monotonic()
        with pytest.raises(CancelledError):
            client(server).comparison("s", cancel=cancelled.is_set)
        assert time.monotonic() - start < 2
        released.set()


def test_waiting_to_try_again_can_be_cancelled():
    cancelled = threading.Event()
    with scripted(says({}, 503, Retry_After="30")) as server:
        threading.Timer(0.2, cancelled.set).start()
        start = time.monotonic()
        with pytest.raises(CancelledError):
            client(server).comparison("s", cancel=cancelled.is_set)
        assert time.monotonic() - start < 2


def test_transfers_can_be_cancelled(tmp_path):
    image = tmp_path / "s.nii"
    image.write_bytes(bytes(2**22))
    cancelled = threading.Event()
    with scripted(says(COMPARISON)) as server, pytest.raises(CancelledError):
        client(server).compare_file(image, progress=lambda *_: cancelled.set(), cancel=cancelled.is_set)
    assert not server.asked
    cancelled.clear()
    with scripted(says(bytes(2**22))) as server, pytest.raises(CancelledError):
        client(server).download_mask("s", tmp_path, progress=lambda *_: cancelled.set(), cancel=cancelled.is_set)
    assert [p.name for p in tmp_path.iterdir()] == ["s.nii"]


def test_a_job_is_waited_for_and_its_progress_told():
    states = [
        schema.Job("j", "score", state, "comparing", n, 2) for n, state in enumerate(("queued", "running", "done"))
    ]
    said = []
    with scripted(*(says(schema.to_json(job)) for job in states)) as server:
        done = client(server).wait("j", progress=lambda *a: said.append(a), every=0.01)
    assert done.state == "done" and said == [("comparing", n, 2) for n in range(3)]


def test_one_client_serves_many_threads():
    with scripted(says(STATUS)) as server:
        one, found = client(server), []
        threads = [threading.Thread(target=lambda: found.extend(one.status() for _ in range(10))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 80 == len(server.asked)


@pytest.mark.parametrize("name", ["a.nii.gz", "below/A.NRRD", "a.png"])
def test_a_folder_with_other_images_is_not_sent(tmp_path, name):
    """Else the answer would be that of the series alone."""
    (tmp_path / "1.dcm").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    with scripted(says(COMPARISON)) as server:
        assert client(server).compare_file(tmp_path).verdict == "novel"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match="holds other images too"):
            client(server).compare_file(tmp_path)
    assert len(server.asked) == 1


def test_a_broken_connection_without_tls_asks_about_https():
    """So a server that expects TLS ends one that speaks none; with TLS the question would mislead."""
    with scripted(breaks) as server, pytest.raises(ConnectionLostError, match=r"Does the server expect https://\?$"):
        client(server, retries=0).status()
