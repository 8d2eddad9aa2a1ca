"""The client with the real server: every method, over HTTP, as a reader with a key."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from replica_detection.client import ReplicaClient
from replica_detection.errors import AccessDeniedError, CancelledError, NotFoundError, ServerError
from replica_detection.readers.rating_tables import read_ratings
from replica_detection.results import schema
from Server import collections_on_disk
from Server.collections_on_disk import ANNA, BERND, COPIED, COPY, NEW, TRAINING, Collections
from Server.running import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def collections(tmp_path_factory) -> Collections:
    return collections_on_disk.make(tmp_path_factory.mktemp("collections"))


@pytest.fixture(scope="module")
def server(collections, tmp_path_factory):
    args = ("--max-upload-mb", "8")
    with collections_on_disk.reviewing(collections, tmp_path_factory.mktemp("server"), args) as running:
        client = ReplicaClient(running.url, key=ANNA)
        job = client.wait(client.start_scoring().id, every=0.2)
        assert job.state == "done", running.log_text()[-3000:]
        print(f"ready after {running.ready_seconds:.1f} s, {running.memory_bytes / 2**20:.0f} MiB")
        yield running


@pytest.fixture
def anna(server: Server) -> ReplicaClient:
    return ReplicaClient(server.url, key=ANNA)


@pytest.fixture
def bernd(server: Server) -> ReplicaClient:
    return ReplicaClient(server.url, key=BERND)


def test_status_names_reader_and_cohorts(anna):
    status = anna.status()
    assert (status.reader, status.authentication) == ("anna", "key")
    assert (status.studies, status.scored, status.training) == (NEW + 1, NEW + 1, TRAINING)
    assert status.max_upload_bytes == 8 * 2**20 and not status.problem
    assert status.index is not None and {m.level for m in status.index.measures} >= {"voxel", "segmentation"}


def test_worklist_page_by_page_is_the_worklist(anna):
    whole = anna.worklist_page(0, 100)
    assert whole.total == NEW + 1 == len(whole.items)
    assert list(anna.worklist(page=2)) == list(whole.items)
    assert whole.items[0].synthetic_id == COPY and whole.items[0].nearest_training_id == COPIED
    assert whole.items[0].verdict == "replica"
    assert [i.synthetic_id for i in anna.worklist(search="COPY")] == [COPY]
    assert [i.synthetic_id for i in anna.worklist(sort="synthetic_id", descending=False)] == sorted(
        item.synthetic_id for item in whole.items
    )


def test_an_upload_is_judged_as_the_same_image_among_the_studies(anna, collections, tmp_path):
    """But for p and q values, which depend on how many are judged; and the name of the file stays here."""
    name = f"{COPY}.nii.gz"
    image = tmp_path / "MUELLER^ANNA.nii.gz"
    image.write_bytes((collections.studies / name).read_bytes())
    sent = anna.compare_file(image, mask=collections.folder / "studies_masks" / name, k=3)
    known = anna.comparison(COPY, k=3)
    assert "MUELLER" not in str(sent)
    assert sent.nearest_training_id == known.nearest_training_id == COPIED
    found = [[replace(m, p_value=None, q_value=None, verdict="") for m in c.measures] for c in (sent, known)]
    assert found[0] == found[1] and len(found[0]) >= 5
    assert all(len(m.neighbors) == 3 and m.neighbors[0].training_id == COPIED for m in known.measures)
    assert next(m for m in known.measures if m.measure == "dice").value == 1


def test_histograms_hold_every_study(anna):
    found = {h.measure: h for h in anna.histograms()}
    assert {"", "ssim", "dice"} <= set(found)
    assert all(len(h.synthetic) == NEW + 1 == len(h.synthetic_ids) for h in found.values())
    assert found["ssim"].synthetic[found["ssim"].synthetic_ids.index(COPY)] == 0


def test_files_arrive_as_they_lie_on_the_server(anna, collections, tmp_path):
    for case, source in ((COPY, collections.studies), (f"train:{COPIED}", collections.training)):
        said: list[tuple[str, int, int]] = []
        path = anna.download_image(case, tmp_path, progress=lambda *a, said=said: said.append(a))
        original = source / f"{case.removeprefix('train:')}.nii.gz"
        assert path.read_bytes() == original.read_bytes()
        assert said[-1] == ("downloading", path.stat().st_size, path.stat().st_size)
    mask = nib.load(anna.download_mask("syn_001", tmp_path))
    given = nib.load(collections.folder / "studies_masks" / "syn_001.nii.gz")
    assert np.asarray(mask.dataobj).sum() == pytest.approx(np.asarray(given.dataobj).sum(), rel=0.2)
    difference = np.asarray(nib.load(anna.difference(COPY, COPIED, tmp_path)).dataobj)
    assert not difference.any() and difference.dtype == np.float32
    assert b"<html" in anna.report(tmp_path).read_bytes()[:1000].lower()


def test_surface_is_a_mesh_with_the_distances_of_its_statistics(anna, tmp_path):
    vtk = pytest.importorskip("vtk")
    found = anna.surface_statistics("syn_000", COPIED)
    assert found.forth.maximum >= found.forth.p95 >= found.forth.mean > 0
    for of, statistics in (("synthetic", found.forth), ("training", found.back)):
        reader = vtk.vtkXMLPolyDataReader()
        reader.SetFileName(str(anna.surface("syn_000", COPIED, tmp_path, of=of)))
        reader.Update()
        array = reader.GetOutput().GetPointData().GetArray("SurfaceDistance")
        assert array.GetNumberOfTuples() == reader.GetOutput().GetNumberOfPoints() > 10
        assert array.GetRange()[1] == pytest.approx(statistics.maximum, rel=1e-4)
    same = anna.surface_statistics(COPY, COPIED)
    assert same.symmetric == schema.SurfaceStatistics(0, 0, 0, same.symmetric.maximum_at)


def test_masks_are_drawn_of_cases_and_of_files(anna, collections, tmp_path):
    assert set(anna.segmenters()) >= {"vessels", "hemorrhage"}
    image = nib.load(collections.training / f"{COPIED}.nii.gz")
    of_case = nib.load(anna.segment("vessels", f"train:{COPIED}", tmp_path))
    of_file = nib.load(anna.segment_file("vessels", collections.training / f"{COPIED}.nii.gz", tmp_path))
    assert of_case.shape == image.shape and np.allclose(of_case.affine, image.affine)
    assert np.array_equal(np.asarray(of_case.dataobj), np.asarray(of_file.dataobj))
    with pytest.raises(NotFoundError, match="kidneys"):
        anna.segment("kidneys", COPY, tmp_path)


def test_ratings_of_two_readers(anna, bernd, tmp_path):
    first = anna.next_case()
    assert first.synthetic_id == COPY
    receipt = anna.rate(COPY, COPIED, 4, reader="somebody else", comment="same vessel tree", rating_id="r-1")
    assert receipt.reader == "anna"
    assert anna.rate(COPY, COPIED, 4, comment="same vessel tree", rating_id="r-1") == receipt
    assert anna.next_case().synthetic_id != COPY and bernd.next_case().synthetic_id == COPY
    assert [i.rating for i in anna.worklist(rated="yes")] == [4] and not list(bernd.worklist(rated="yes"))
    bernd.rate(COPY, COPIED, 3)
    bernd.rate(COPY, COPIED, 1)
    assert [(r.reader, r.rating) for r in anna.ratings(synthetic_id=COPY)] == [("anna", 4), ("bernd", 1)]
    assert [r.rating for r in anna.ratings(reader="bernd", all=True)] == [3, 1]
    assert set(read_ratings(anna.download_ratings(tmp_path))) == set(anna.ratings())
    report = anna.agreement()
    assert report.readers == ("anna", "bernd") and report.pairs[0].percent_agreement == 0


def test_jobs_are_started_once_followed_and_ended(anna):
    job = anna.start_scoring()
    with pytest.raises(ServerError, match=r"is (queued|running)") as error:
        anna.start_scoring()
    assert error.value.status == 409
    assert anna.cancel(job.id).state == anna.wait(job.id).state == "cancelled"
    assert anna.job(job.id) in anna.jobs()
    assert anna.status().scored == NEW + 1, "what was scored before is still there"


def test_refusals_say_what_is_wrong(anna, server, tmp_path):
    for call in (
        lambda: anna.comparison("nobody"),
        lambda: anna.job("nothing"),
        lambda: anna.difference("a", "b", tmp_path),
    ):
        with pytest.raises(NotFoundError, match=r"no (such |synthetic )"):
            call()
    with pytest.raises(ServerError, match="rating has the value 5"):
        anna.rate(COPY, COPIED, 5)
    text = tmp_path / "text.nii.gz"
    text.write_text("no image", encoding="utf-8")
    with pytest.raises(ServerError) as error:
        anna.compare_file(text)
    assert error.value.status == 422 and str(tmp_path) not in error.value.detail
    assert str(server.data) not in error.value.detail


def test_without_the_right_key_nothing_is_told(server, tmp_path):
    """A refused upload as well: its reason arrives although the server did not read all of it."""
    large = collections_on_disk.large_image(tmp_path / "large.nii.gz", 32)
    for client, said in (
        (ReplicaClient(server.url), "asks for a key"),
        (ReplicaClient(server.url, key="a-key-that-nobody-has-here"), "does not accept this key"),
    ):
        for call in (client.status, lambda c=client: c.compare_file(large), lambda c=client: c.rate(COPY, COPIED, 4)):
            with pytest.raises(AccessDeniedError, match=said):
                call()


def test_upload_over_the_limit_is_refused_with_a_reason(anna, tmp_path):
    with pytest.raises(ServerError, match="larger than") as error:
        anna.compare_file(collections_on_disk.large_image(tmp_path / "large.nii.gz", 32))
    assert error.value.status == 413


def test_comparison_can_be_cancelled_and_the_server_goes_on(anna, collections):
    cancelled = threading.Event()
    image = collections.studies / "syn_002.nii.gz"
    with pytest.raises(CancelledError):
        anna.compare_file(image, progress=lambda *_: cancelled.set(), cancel=cancelled.is_set)
    assert anna.compare_file(image).verdict


def test_example_of_the_documentation_runs(server, collections, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).resolve().parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert "http://127.0.0.1:8000" in example and 'key="..."' in example
    monkeypatch.chdir(tmp_path)
    Path("new_image.nii.gz").write_bytes((collections.studies / f"{COPY}.nii.gz").read_bytes())
    exec(example.replace("http://127.0.0.1:8000", server.url).replace('key="..."', f"key={BERND!r}"), {})
    said = capsys.readouterr().out
    assert f"{COPY} replica" in said and f"replica {COPIED}" in said
    review = {path.name for path in Path("review").iterdir()}
    assert review >= {f"{COPY}.nii.gz", f"train%3A{COPIED}.nii.gz", "report.html"}


def test_keys_and_patients_stay_out_of_the_log(server):
    text = server.log_text() + (server.data / "logs" / "server.log").read_text(encoding="utf-8")
    assert ANNA not in text and COPY not in text and "MUELLER" not in text
