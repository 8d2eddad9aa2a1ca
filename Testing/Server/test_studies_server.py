"""A hardened server over a folder of odd names, links and DICOM series, asked as readers ask it."""

from __future__ import annotations

import gzip
import io
import os
import sys
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import requests

from Core import made_up
from Core.made_dicom import write_series
from replica_detection.client import ReplicaClient
from replica_detection.errors import InputError, ServerError
from replica_detection.io.volume import read_mask, read_volume
from Server.collections_on_disk import image_bytes
from Server.conftest import checksums, strict_json
from Server.running import Server, running_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such files"),
]

KEY = "key-of-anna-for-these-tests"
SECRET, PATIENT = "not-for-readers", "Smith^John"
ACCENT = "Müller"


@dataclass(frozen=True)
class Odd:
    server: Server
    folder: Path
    client: ReplicaClient

    def __call__(self, method: str, path: str, **how) -> requests.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return requests.request(method, self.server.url + path, timeout=120, headers=headers, **how)

    @property
    def studies(self) -> Path:
        return self.folder / "studies"


def write_as_dicom(image: Path, folder: Path, **elements) -> None:
    """A scan as somebody else would export it: a file for each slice, with whom it shows."""
    volume = read_volume(image)
    stack = np.rint(volume.array[::-1, ::-1]).astype(np.int16).transpose(2, 1, 0)
    step = [float(size) for size in volume.spacing]
    places = [(0.0, 0.0, step[2] * n) for n in range(len(stack))]
    how = {"PixelSpacing": step[:2], "SliceThickness": step[2], "PatientID": PATIENT, "PatientName": PATIENT}
    write_series(folder, stack, places, RescaleIntercept=0, **{**how, **elements})


def a_folder_of_studies(folder: Path, training: Path) -> None:
    made_up.cohort(folder, 3, 200, "syn")
    (folder / "syn_000.nii.gz").rename(folder / unicodedata.normalize("NFD", f"{ACCENT}.nii.gz"))
    (folder / "syn_001.nii.gz").rename(folder / "UPPER.NII.GZ")
    (folder / "syn_002.nii.gz").rename(folder / "plain.nii.gz")
    write_as_dicom(training / "trn_003.nii.gz", folder / "copied", SeriesInstanceUID="1.1")
    secret = folder.parent / "elsewhere" / "secret.nii.gz"
    secret.parent.mkdir()
    secret.write_text(SECRET, encoding="utf-8")
    (folder / "link.nii.gz").symlink_to(secret)
    (folder / "linked.nii.gz").symlink_to(
        made_up.write(folder.parent / "shared" / f"{PATIENT}.nii.gz", made_up.volume(400))
    )
    for tag in ("final", "original"):
        (folder / "labels" / tag).mkdir(parents=True)
    (folder / "labels" / "final" / "plain.nii.gz").symlink_to(secret)
    (folder / "labels" / "original" / "plain.nii.gz").touch()
    (folder / "empty.nii.gz").touch()
    (folder / os.fsdecode(b"bytes\xff.nii.gz")).write_bytes(b"content")
    os.mkfifo(folder / "pipe.nii.gz")
    (folder / "datastore_v2.json").write_bytes(b'{"name": "new-dataset", "objects": {"UPP')


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    made_up.cohort(folder / "training", 6, prefix="trn")
    made_up.cohort(folder / "unseen", 8, 100, prefix="new")
    a_folder_of_studies(folder / "studies", folder / "training")
    keys = folder / "keys"
    keys.write_text(f"anna:{KEY} role=admin\n", encoding="utf-8")
    keys.chmod(0o600)
    before = checksums(folder / "elsewhere")
    with running_server(
        folder / "studies",
        work=folder,
        training=folder / "training",
        conf={"validation": folder / "unseen", "measures": "mae,rmse", "api_key_file": keys},
        hardened=True,
        args=("--allow-links-to", str(folder / "shared")),
    ) as server:
        client = ReplicaClient(server.url, key=KEY)
        for job in client.jobs():
            assert client.wait(job.id, every=0.1).state == "done", server.log_text()[-3000:]
        yield Odd(server, folder, client)
    assert checksums(folder / "elsewhere") == before


def test_the_start_says_what_is_served_and_what_is_not(odd):
    said = " ".join(odd.server.log_text().split())
    assert "5 studies, 1 of them DICOM series." in said
    for words in ("link that leads out of the folder: 'link.nii.gz'", "empty file: 'empty.nii.gz'", "--allow-links-to"):
        assert words in said, said
    assert "'pipe.nii.gz'" in said and r"bytes\udcff" in said and "datastore_v2.json.damaged-" in said
    log = (odd.server.data / "logs" / "server.log").read_text(encoding="utf-8")
    assert "link.nii.gz" not in log and "1 x link that leads out of the folder" in log and "damaged-" in log
    assert len(list(odd.studies.glob("datastore_v2.json.damaged-*"))) == 1


def test_all_lists_agree_and_readers_learn_reasons_without_names(odd):
    kept = {ACCENT, "UPPER", "plain", "copied", "linked"}
    listed = strict_json(odd("GET", "/datastore/", params={"output": "all"}))["objects"]
    assert set(listed) == kept == {item.synthetic_id for item in odd.client.worklist()}
    status = odd.client.status()
    assert status.studies == 5 == strict_json(odd("GET", "/datastore/"))["total"]
    assert {item.reason: item.count for item in status.left_out}["link that leads out of the folder"] == 1
    text = odd("GET", "/replica/status").text
    assert str(odd.folder) not in text and "link.nii" not in text and "pipe.nii" not in text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_either_form_name_the_same_study(odd, form, tmp_path):
    name = unicodedata.normalize(form, ACCENT)
    reply = odd("GET", "/datastore/image", params={"image": name})
    assert reply.status_code == 200 and reply.content == next(odd.studies.glob("M*.nii.gz")).read_bytes()
    assert odd.client.comparison(name).synthetic_id == ACCENT
    assert odd("GET", "/datastore/image/info", params={"image": name}).status_code == 200


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_every_call_takes_either_form_of_accents(odd, form):
    name, reader = unicodedata.normalize(form, ACCENT), "anna"
    assert odd("GET", f"/replica/cases/{name}/comparison").status_code == 200
    for search in (name, name.upper(), name[:-2]):
        page = strict_json(odd("GET", "/replica/worklist", params={"search": search}))
        assert [item["synthetic_id"] for item in page["items"]] == [ACCENT], search
    rating = {"rating_id": "", "reader": reader, "synthetic_id": name, "training_id": "train:trn_003", "rating": 2}
    reply = odd("POST", "/replica/ratings", json=rating)
    assert reply.status_code == 201, reply.text
    stored = strict_json(odd("GET", "/replica/ratings", params={"synthetic_id": name}))
    assert [r["synthetic_id"] for r in stored] == [ACCENT]


def test_extensions_in_capitals_are_served(odd):
    assert odd("GET", "/datastore/image?image=UPPER").content == (odd.studies / "UPPER.NII.GZ").read_bytes()
    assert odd.client.comparison("UPPER").measures


def test_a_link_into_a_named_folder_is_a_study_of_its_own_name(odd):
    reply = odd("GET", "/datastore/image?image=linked")
    assert reply.content == (odd.folder / "shared" / f"{PATIENT}.nii.gz").read_bytes()
    assert "linked.nii.gz" in reply.headers["content-disposition"] and PATIENT not in str(reply.headers)


@pytest.mark.parametrize("name", ["link", "empty", "pipe", "bytes\ufffd", "link.nii.gz", "labels"])
def test_what_is_no_study_is_not_found_anywhere(odd, name):
    asked = [
        odd("GET", "/datastore/image", params={"image": name}),
        odd("HEAD", "/datastore/image", params={"image": name}),
        odd("GET", f"/replica/cases/{name}/comparison"),
        odd("GET", f"/replica/cases/{name}/files"),
        odd("POST", "/infer/replica_matches", params={"image": name, "output": "json"}),
    ]
    assert [reply.status_code for reply in asked] == [404] * len(asked), [r.text[:200] for r in asked]


def test_a_study_that_becomes_a_link_is_not_served_any_more(odd):
    path = odd.studies / "turned.nii.gz"
    made_up.write(path, made_up.volume(300))
    assert odd("GET", "/datastore/image?image=turned").content == path.read_bytes()
    path.unlink()
    path.symlink_to(odd.folder / "elsewhere" / "secret.nii.gz")
    try:
        for reply in (odd("GET", "/datastore/image?image=turned"), odd("GET", "/replica/cases/turned/files")):
            assert reply.status_code == 404 and SECRET not in reply.text
    finally:
        path.unlink()


def test_empty_and_linked_labels_are_none(odd):
    assert strict_json(odd("GET", "/datastore/"))["completed"] == 0
    for tag in ("final", "original"):
        reply = odd("GET", "/datastore/label", params={"label": "plain", "tag": tag})
        assert reply.status_code == 404 and SECRET not in reply.text
        assert odd("HEAD", "/datastore/label", params={"image": "plain", "tag": tag}).status_code == 404


def test_a_refused_upload_leaves_no_file(odd):
    before = {path.name for path in odd.studies.rglob("*")}
    empty = odd("PUT", "/datastore/image?image=fresh", files={"file": ("a.nii.gz", b"")})
    assert empty.status_code == 422
    taken = odd("PUT", "/datastore/image?image=upper", files={"file": ("a.nii.gz", gzip.compress(image_bytes()))})
    assert taken.status_code == 409
    over_a_link = odd("PUT", "/datastore/image?image=link", files={"file": ("a.nii.gz", gzip.compress(image_bytes()))})
    assert over_a_link.status_code in (409, 422)
    assert {path.name for path in odd.studies.rglob("*")} == before


def test_a_series_is_a_study_for_every_client(odd, tmp_path):
    item = next(item for item in odd.client.worklist() if item.synthetic_id == "copied")
    assert item.synthetic_id == "copied"
    found = odd.client.comparison("copied")
    assert found.nearest_training_id == "trn_003" and all(m.value < 0.01 for m in found.measures)
    path = odd.client.download_image("copied", tmp_path)
    assert path.name == "copied.nii.gz"
    sent, original = read_volume(path), read_volume(odd.folder / "training" / "trn_003.nii.gz")
    assert np.allclose(sent.array, np.rint(original.array)[::-1, ::-1]) and np.allclose(sent.spacing, original.spacing)
    assert odd("HEAD", "/datastore/image?image=copied").status_code == 200
    packed = odd.client.download_files("copied", tmp_path)
    with zipfile.ZipFile(packed) as archive:
        kept = [archive.read(name) for name in archive.namelist()]
    assert packed.name == "copied.zip" and kept == [p.read_bytes() for p in sorted((odd.studies / "copied").iterdir())]
    assert odd.client.difference("copied", "trn_003", tmp_path).is_file()
    matches = odd("POST", "/infer/replica_matches", params={"image": "copied", "output": "json"})
    answer = strict_json(matches)
    assert (answer["synthetic_id"], answer["nearest_training_id"]) == ("copied", "trn_003")
    assert read_mask(odd.client.segment("vessels", "copied", tmp_path), sent).shape == sent.array.shape
    for reply in (odd("GET", "/datastore/?output=all"), odd("GET", "/replica/worklist"), matches):
        assert PATIENT not in reply.text


def test_a_label_of_a_series_is_saved_and_given_back(odd, tmp_path):
    content = odd.client.segment("vessels", "copied", tmp_path).read_bytes()
    sent = odd("PUT", "/datastore/label?image=copied&tag=final", files={"label": ("x.nii.gz", content)})
    assert sent.status_code == 200, sent.text
    assert odd("GET", "/datastore/label?label=copied&tag=final").content == content
    assert strict_json(odd("GET", "/datastore/"))["completed"] == 1
    assert odd("DELETE", "/datastore/label?id=copied&tag=final").status_code == 200
    assert odd("GET", "/datastore/label?label=copied&tag=final").status_code == 404


def test_the_collection_is_scored_with_its_series(odd):
    """And a case is found in the scores by either form of its name."""
    done = odd.client.wait(odd.client.start_scoring().id, every=0.2)
    assert done.state == "done", done
    first = next(iter(odd.client.worklist()))
    assert (first.synthetic_id, first.nearest_training_id) == ("copied", "trn_003") and odd.client.status().scored == 5
    for form in ("NFC", "NFD"):
        assert odd.client.comparison(unicodedata.normalize(form, ACCENT)).synthetic_id == ACCENT
    report = odd("GET", "/replica/report").text
    assert "copied" in report and PATIENT not in report and str(odd.folder / "studies" / "link") not in report


@pytest.mark.parametrize("kind", ["folder", "zip", "curl", "session"])
def test_an_uploaded_series_is_compared(odd, kind, tmp_path):
    folder = tmp_path / PATIENT
    write_as_dicom(odd.folder / "training" / "trn_001.nii.gz", folder)
    (folder / "notes.txt").write_text(PATIENT, encoding="utf-8")
    packed = tmp_path / "series.ZIP"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"{PATIENT}/{path.name}")
    if kind in ("folder", "zip"):
        found = odd.client.compare_file(folder if kind == "folder" else packed)
        assert found.nearest_training_id == "trn_001" and all(m.value < 0.01 for m in found.measures)
        return
    if kind == "curl":
        reply = odd("POST", "/replica/compare", files={"file": ("a.zip", packed.read_bytes())})
    else:
        files = {"files": ("a.zip", packed.read_bytes())}
        (folder / "notes.txt").unlink()
        session = strict_json(odd("PUT", "/session/?uncompress=true", files=files))["session_id"]
        reply = odd("POST", "/infer/replica_matches", params={"session_id": session, "output": "json"})
    assert strict_json(reply)["nearest_training_id"] == "trn_001" and PATIENT not in reply.text


def test_uploads_that_are_not_one_series_are_refused_in_words(odd, tmp_path):
    def packed(*names: str) -> bytes:
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w") as archive:
            for name in names:
                archive.writestr(name, (tmp_path / Path(name).name).read_bytes())
        return written.getvalue()

    for n in (1, 2):
        write_as_dicom(odd.folder / "training" / f"trn_00{n}.nii.gz", tmp_path / f"s{n}", SeriesInstanceUID=f"1.{n}")
        (tmp_path / f"s{n}" / "000.dcm").rename(tmp_path / f"{n}.dcm")
    (tmp_path / "x.txt").write_text("text", encoding="utf-8")
    for content, words in (
        (packed("x.txt"), "holds no image"),
        (packed("1.dcm", "2.dcm"), "2 images or DICOM series instead of one"),
        (b"PK\x03\x04 damaged", "zip"),
        (packed("1.dcm")[:200], "zip"),
    ):
        reply = odd("POST", "/replica/compare", files={"file": ("a.zip", content)})
        assert reply.status_code == 422 and words in strict_json(reply)["detail"], reply.text
    assert odd("PUT", "/datastore/image?image=z", files={"file": ("a.zip", packed("1.dcm"))}).status_code == 422
    uploads = odd.server.data / "uploads"
    assert not uploads.exists() or not list(uploads.iterdir())
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="without a DICOM file"):
        odd.client.compare_file(tmp_path / "none")
    with pytest.raises(ServerError, match="instead of one"):
        odd.client.compare_file(tmp_path)
