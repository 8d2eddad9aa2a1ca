"""The routes under /replica over HTTP, against what the core says of the same files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import uuid
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.readers.ratings import Rating
from replica_detection.report.pair_loader import PairLoader
from replica_detection.results import schema
from replica_detection.results.result import DetectionResult
from replica_detection.surfaces.distances import compare_surfaces
from Server.collections_on_disk import COPIED, COPY, NEW, TRAINING, UNSEEN
from Server.conftest import MOVED, MOVED_MM, Served, strict_json

pytestmark = pytest.mark.slow

STUDIES = NEW + 2


@pytest.fixture(scope="module")
def index(served: Served) -> TrainingIndex:
    return TrainingIndex.open(served.server.data / "training.rdindex")


@pytest.fixture(scope="module")
def result(served: Served) -> DetectionResult:
    return DetectionResult.read(served.server.data / "scored")


def rating(**changes) -> dict:
    made = Rating(str(uuid.uuid4()), "reader", "syn_000", COPIED, 2)
    return {**asdict(made), **changes}


def refused(reply, status: int, *words: str) -> None:
    assert reply.status_code == status, f"{reply.status_code} {reply.text[:300]}"
    detail = strict_json(reply)["detail"]
    assert isinstance(detail, str) and all(w in detail for w in words), detail


# -------------------------------------------------------------------------------------------------- status, worklist


def test_status(served, index, result):
    status = schema.from_json(schema.Status, served.json("/replica/status"))
    assert (status.api_version, status.studies, status.scored) == (schema.API_VERSION, STUDIES, STUDIES)
    assert (status.authentication, status.reader, status.problem) == ("none", "", "")
    assert status.index is not None and status.index.version == index.content_id
    assert (status.index.null_kind, status.index.null_size) == (result.run.null.kind, result.run.null.size)
    assert status.index.null_kind == "pooled" and result.run.null.validation == UNSEEN
    assert tuple(m.name for m in status.index.measures) == index.measure_names
    assert {m.threshold is None for m in status.index.measures if m.level == "voxel"} == {False}
    assert status.training == TRAINING == status.index.cases


def test_worklist_is_the_summary_by_falling_score(served, result):
    worklist = schema.from_json(schema.Worklist, served.json("/replica/worklist"))
    assert [i.synthetic_id for i in worklist.items] == [c.synthetic_id for c in result.worklist()]
    for item, row in zip(worklist.items, result.worklist(), strict=True):
        assert (item.verdict, item.score, item.nearest_training_id) == (row.verdict, row.score, row.nearest_training_id)
        assert (item.levels_flagged, item.measures_agreeing) == (row.levels_flagged, row.measures_agreeing)


def test_worklist_in_pages_sorted_and_filtered(served):
    def ids(**query) -> list[str]:
        return [i["synthetic_id"] for i in served.json("/replica/worklist", **query)["items"]]

    everything = ids()
    assert ids(limit=2) + ids(offset=2, limit=100) == everything and ids(offset=100) == []
    assert served.json("/replica/worklist", limit=1)["total"] == STUDIES
    scores = [i["score"] for i in served.json("/replica/worklist", descending=False)["items"]]
    assert scores == sorted(scores) and len(set(scores)) > 2
    assert ids(sort="synthetic_id", descending=False) == sorted(everything)
    flagged = ids(verdict=["replica", "suspicious"])
    assert set(flagged) == set(everything) - set(ids(verdict="novel")) and COPY in flagged
    assert ids(sort="verdict")[: len(ids(verdict="replica"))] == sorted(ids(verdict="replica"))
    assert ids(search="COPY") == [COPY] and ids(search="no such") == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "offset=-1", "sort=comment", "rated=maybe", "verdict=private", "descending=x", "limit=x"],
)
def test_worklist_refuses_what_cannot_be(served, query):
    refused(served("GET", f"/replica/worklist?{query}"), 422, query.partition("=")[0])


def test_next_goes_down_the_worklist_of_each_reader(served):
    order = [i["synthetic_id"] for i in served.json("/replica/worklist")["items"]]
    assert served.json("/replica/next", reader="next")["synthetic_id"] == order[0]
    assert served.json("/replica/next", reader="next", after=order[0])["synthetic_id"] == order[1]
    for case in order:
        found = served.json("/replica/next", reader="next")["synthetic_id"]
        assert found == case
        reply = served("POST", "/replica/ratings", json=rating(reader="next", synthetic_id=case, rating=1))
        assert reply.status_code == 201
        # Without a name: a case that nobody has rated, never again one that somebody has.
        anybody = served("GET", "/replica/next")
        if case != order[-1]:
            assert strict_json(anybody)["synthetic_id"] in order[order.index(case) + 1 :]
    refused(anybody, 404, "nobody has not rated")
    refused(served("GET", "/replica/next?reader=next"), 404, "no case is left")
    assert served.json("/replica/next", reader="someone else")["synthetic_id"] == order[0]
    mine = served.json("/replica/worklist", reader="next", rated="no")
    assert mine["total"] == 0 and served.json("/replica/worklist", reader="next", rated="yes")["total"] == STUDIES
    assert {i["rating"] for i in served.json("/replica/worklist", reader="next")["items"]} == {1}
    assert {i["rating"] for i in served.json("/replica/worklist", reader="someone else")["items"]} == {None}


# -------------------------------------------------------------------------------------------------------- comparisons


def test_comparison_is_the_row_of_the_result(served, result):
    found = schema.from_json(schema.Comparison, served.json(f"/replica/cases/{MOVED}/comparison", k=3))
    row = next(c for c in result.summary if c.synthetic_id == MOVED)
    assert (found.verdict, found.score, found.nearest_training_id) == (row.verdict, row.score, COPIED)
    assert [m.measure for m in found.measures] == [m.measure for m in result.matches_of(MOVED)]
    at = result.neighbors.synthetic_ids.index(MOVED)
    for measure, match in zip(found.measures, result.matches_of(MOVED), strict=True):
        assert (measure.value, measure.p_value, measure.q_value) == (match.value, match.p_value, match.q_value)
        near = [result.neighbors.training_ids[n] for n in result.neighbors.training[measure.measure][at, :3]]
        assert [n.training_id for n in measure.neighbors] == near
        assert measure.neighbors[0].value == match.value and measure.neighbors[0].distance == match.distance == 0


def test_an_image_that_changed_since_scoring_is_compared_anew(served):
    before = served.json("/replica/cases/syn_003/comparison")
    path = served.collections.studies / "syn_003.nii.gz"
    kept = path.read_bytes()
    try:
        path.write_bytes((served.collections.training / f"{COPIED}.nii.gz").read_bytes())
        after = served.json("/replica/cases/syn_003/comparison")
        assert after["nearest_training_id"] == COPIED and after["measures"][0]["distance"] == 0
        path.write_bytes(b"no image")
        refused(served("GET", "/replica/cases/syn_003/comparison"), 422, "syn_003.nii.gz", "gzip")
    finally:
        path.write_bytes(kept)
    # Another time of writing: known by nothing but a new look at the voxels.
    again = served.json("/replica/cases/syn_003/comparison")
    assert again["measures"][0]["neighbors"] == before["measures"][0]["neighbors"]


def upload(served: Served, name: str = "x.nii.gz", content: bytes | None = None, mask: bytes | None = None, **query):
    content = (served.collections.studies / "syn_001.nii.gz").read_bytes() if content is None else content
    files = {"file": (name, content)} | ({} if mask is None else {"mask": ("m.nii.gz", mask)})
    return served("POST", "/replica/compare", files=files, params=query)


def test_an_upload_is_compared_like_a_study_and_forgotten(served):
    mask = (served.collections.folder / "studies_masks" / "syn_001.nii.gz").read_bytes()
    found = strict_json(upload(served, "../../SECRET^NAME.nii.gz", mask=mask, k=4))
    known = served.json("/replica/cases/syn_001/comparison", k=4)
    assert [m["neighbors"] for m in found["measures"]] == [m["neighbors"] for m in known["measures"]]
    assert found["score"] == known["score"] and "SECRET" not in json.dumps(found)
    assert not list((served.server.data / "uploads").iterdir())
    assert served.json("/replica/status")["studies"] == STUDIES


def test_uploads_that_cannot_be_used_are_refused_with_a_reason(served):
    refused(upload(served, "x.exe"), 422, ".nii.gz")
    refused(upload(served, content=b""), 422, "empty")
    refused(upload(served, content=b"rubbish"), 422, "gzip")
    refused(upload(served, k=0), 422, "k:")
    refused(served("POST", "/replica/compare"), 422, "file")
    flat = nib.Nifti1Image(np.random.default_rng(0).random((20, 20)).astype(np.float32), np.eye(4)).to_bytes()
    refused(upload(served, "x.nii", flat), 422, "2D")
    refused(upload(served, mask=nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)).to_bytes()), 422, "mask")
    assert not list((served.server.data / "uploads").iterdir())


def test_histograms_hold_set_and_null(served, result):
    found = [schema.from_json(schema.Histogram, h) for h in served.json("/replica/histograms")]
    assert [h.measure for h in found] == ["", *(m.name for m in result.run.measures)]
    for histogram in found:
        assert len(histogram.synthetic) == len(histogram.synthetic_ids) == STUDIES
        assert len(histogram.null) == result.run.null.size
    overall = dict(zip(found[0].synthetic_ids, found[0].synthetic, strict=True))
    assert max(overall, key=lambda c: overall[c]) in (COPY, MOVED)
    assert found[0].synthetic == tuple(schema.number(e) for e in result.run.evidence)
    mae = next(h for h in found if h.measure == "mae")
    assert dict(zip(mae.synthetic_ids, mae.synthetic, strict=True))[COPY] == 0


# ------------------------------------------------------------------------------------------- masks, surfaces, volumes


def test_masks_are_those_given_in_the_space_of_each_image(served):
    for case, folder in ((MOVED, "studies_masks"), (f"train:{COPIED}", "training_masks")):
        reply = served("GET", f"/replica/masks/{case}")
        found = nib.Nifti1Image.from_bytes(gzip.decompress(reply.content))
        given = nib.load(served.collections.folder / folder / f"{case.removeprefix('train:')}.nii.gz")
        ras = nib.as_closest_canonical(given)
        assert np.array_equal(np.asarray(found.dataobj) > 0, np.asarray(ras.dataobj) > 0)
        assert np.allclose(found.affine, ras.affine)


def read_vtp(content: bytes, path: Path):
    from vtk import vtkXMLPolyDataReader
    from vtk.util.numpy_support import vtk_to_numpy

    path.write_bytes(content)
    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    mesh = reader.GetOutput()
    return vtk_to_numpy(mesh.GetPoints().GetData()), vtk_to_numpy(mesh.GetPointData().GetArray("SurfaceDistance"))


def test_surfaces_lie_over_their_own_image_with_the_distances_of_the_common_grid(served, index, tmp_path):
    pair = PairLoader(index, Cohort.read(served.collections.studies, masks=served.collections.folder / "studies_masks"))
    masks = pair("syn_000", COPIED)
    assert masks is not None and masks.synthetic_mask is not None and masks.training_mask is not None
    wanted = compare_surfaces(masks.synthetic_mask, masks.training_mask, np.diag([*masks.spacing, 1.0]))
    for of, mesh, distances in (
        ("synthetic", wanted.first, wanted.first_to_second),
        ("training", wanted.second, wanted.second_to_first),
    ):
        reply = served("GET", f"/replica/surfaces/syn_000/{COPIED}", params={"of": of})
        points, found = read_vtp(reply.content, tmp_path / f"{of}.vtp")
        # The files' origin is that of the grid, so that mm along its axes are the file's own.
        assert np.allclose(points, mesh.points, atol=1e-3) and np.allclose(found, distances, atol=1e-3)
    said = schema.from_json(schema.SurfaceReply, served.json(f"/replica/surfaces/syn_000/{COPIED}/statistics"))
    for found, want in ((said.forth, wanted.forth), (said.back, wanted.back), (said.symmetric, wanted.symmetric)):
        assert (found.mean, found.p95, found.maximum) == pytest.approx((want.mean, want.percentile_95, want.maximum))
        assert found.maximum_at == pytest.approx(want.position.tolist())


def test_a_copy_that_is_stored_otherwise_has_the_same_surface_elsewhere(served, tmp_path):
    """MOVED is the same anatomy, mirrored in the file and MOVED_MM further to the right."""
    path = f"/replica/surfaces/{MOVED}/train:{COPIED}"
    ours, distances = read_vtp(served("GET", path).content, tmp_path / "a.vtp")
    theirs, _ = read_vtp(served("GET", path, params={"of": "training"}).content, tmp_path / "b.vtp")
    assert np.allclose(ours, theirs + np.array([MOVED_MM, 0, 0]), atol=1e-3) and np.allclose(distances, 0, atol=1e-4)
    said = served.json(f"{path}/statistics")
    assert said["symmetric"]["maximum"] == pytest.approx(0, abs=1e-6)
    mask = nib.load(served.collections.folder / "studies_masks" / f"{MOVED}.nii.gz")
    inside = np.argwhere(np.asarray(mask.dataobj) > 0) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    assert np.abs(ours.min(0) - inside.min(0)).max() < 1.5 and np.abs(ours.max(0) - inside.max(0)).max() < 1.5


def test_difference_is_that_of_the_prepared_images_in_the_space_of_the_synthetic_one(served, index):
    reply = served("GET", f"/replica/difference/{MOVED}/{COPIED}")
    found = nib.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    image = nib.as_closest_canonical(nib.load(served.collections.studies / f"{MOVED}.nii.gz"))
    assert found.get_data_dtype() == np.float32 and np.allclose(found.affine, image.affine)
    assert not np.any(found.dataobj)
    other = served("GET", f"/replica/difference/syn_000/{COPIED}").content
    array = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(other)).dataobj)
    pair = PairLoader(index, Cohort.read(served.collections.studies))("syn_000", COPIED)
    assert pair is not None and np.array_equal(array, pair.synthetic - pair.training)
    assert -1 <= array.min() < 0 < array.max() <= 1


def test_the_training_image_is_moved_onto_its_copy(served, index):
    """An exact copy: nothing has to be moved, and the comparison says so."""
    comparison = schema.from_json(schema.Comparison, served.json(f"/replica/cases/{COPY}/comparison"))
    assert comparison.alignment is not None and comparison.alignment_words == "in place"
    reply = served("GET", f"/replica/aligned/{COPY}/{COPIED}")
    found = nib.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    pair = PairLoader(index, Cohort.read(served.collections.studies))(COPY, COPIED)
    assert pair is not None and np.allclose(np.asarray(found.dataobj), pair.synthetic, atol=0.02)


def test_pairs_that_are_not_there_are_refused(served):
    refused(served("GET", f"/replica/surfaces/unknown/{COPIED}"), 404, "unknown")
    refused(served("GET", "/replica/difference/syn_000/unknown"), 404, "unknown")
    refused(served("GET", "/replica/masks/unknown"), 404)
    refused(served("GET", "/replica/masks/train:unknown"), 404)
    refused(served("GET", f"/replica/surfaces/syn_000/{COPIED}?of=both"), 422)
    refused(served("GET", "/replica/aligned/syn_000/unknown"), 404, "unknown")
    refused(served("GET", f"/replica/aligned/unknown/{COPIED}"), 404, "unknown")
    refused(served("GET", "/replica/cases/..%2f..%2fetc/comparison"), 404)
    refused(served("GET", "/replica/cases/train:" + COPIED + "/comparison"), 404)


def test_a_pair_without_a_mask_has_no_surfaces(served):
    path = served.collections.folder / "studies_masks" / "syn_002.nii.gz"
    kept = path.read_bytes()
    image = nib.load(path)
    try:
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
        for part in ("", "/statistics"):
            reply = served("GET", f"/replica/surfaces/syn_002/{COPIED}{part}")
            refused(reply, 409, "the synthetic image has no mask, or an empty one")
    finally:
        path.write_bytes(kept)


# ------------------------------------------------------------------------------------------------------------ ratings


def test_a_rating_is_stored_once_and_never_changed(served):
    one = rating(reader="once", comment="same sulci\nand vessels", seconds=12.5, blinded=True, index_version="v")
    first, second = (served("POST", "/replica/ratings", json=one) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200) and strict_json(first) == strict_json(second)
    for other in ({"rating": 4}, {"comment": ""}, {"seconds": 13}, {"blinded": False}, {"reader": "twice"}):
        refused(served("POST", "/replica/ratings", json={**one, **other}), 409, one["rating_id"])
    for other in ({"synthetic_id": "syn_001"}, {"training_id": "train_000"}, {"index_version": "w"}):
        refused(served("POST", "/replica/ratings", json={**one, **other}), 409, one["rating_id"])
    stored = served.json("/replica/ratings", reader="once")
    assert stored == [{**one, "created": strict_json(first)["created"]}]
    later = served("POST", "/replica/ratings", json={**one, "rating_id": "", "rating": 4})
    assert later.status_code == 201 and uuid.UUID(strict_json(later)["rating_id"])
    assert [r["rating"] for r in served.json("/replica/ratings", reader="once")] == [4]
    assert [r["rating"] for r in served.json("/replica/ratings", reader="once", all=True)] == [2, 4]
    assert served.json("/replica/worklist", reader="once", rated="yes")["items"][0]["rating"] == 4


def test_a_clock_that_is_ahead_does_not_freeze_a_rating(served):
    said = [(4, "2999-01-01T00:00:00Z"), (1, ""), (2, "1999-01-01T00:00:00Z")]
    for value, created in said:
        made = rating(reader="ahead", rating=value, created=created)
        assert served("POST", "/replica/ratings", json=made).status_code == 201
        assert [r["rating"] for r in served.json("/replica/ratings", reader="ahead")] == [value]
        assert served.json("/replica/worklist", reader="ahead", rated="yes")["items"][0]["rating"] == value
    kept = served.json("/replica/ratings", reader="ahead", all=True)
    assert [r["rating"] for r in kept] == [4, 1, 2] and kept[0]["created"].startswith("2999")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rating": 5}, "whole number"),
        ({"rating": "best"}, "rating"),
        ({"rating": 2.5}, "rating"),
        ({"rating": 2.0}, "rating must be a whole number"),
        ({"rating": "2"}, "rating must be a whole number"),
        ({"rating": True}, "rating must be a whole number"),
        ({"rating": None}, "must be a whole number"),
        ({"rating": 10**30}, "whole number"),
        ({"seconds": "1"}, "seconds must be a number"),
        ({"seconds": True}, "seconds must be a number"),
        ({"seconds": 86_401}, "a day"),
        ({"seconds": 1e308}, "a day"),
        ({"blinded": 1}, "blinded must be true or false"),
        ({"blinded": "true"}, "blinded must be true or false"),
        ({"comment": 5}, "text"),
        ({"seconds": -1}, "seconds"),
        ({"synthetic_id": "unknown"}, "unknown"),
        ({"training_id": "unknown"}, "unknown"),
        ({"training_id": ""}, "training_id"),
        ({"created": "yesterday"}, "yesterday"),
        ({"comment": "x" * 10_001}, "comment"),
        ({"comment": "\x00"}, "comment"),
        ({"reader": "a\nb"}, "reader"),
    ],
)
def test_ratings_that_cannot_be_are_refused_and_not_stored(served, changes, word):
    before = len(served.json("/replica/ratings", all=True))
    refused(served("POST", "/replica/ratings", json=rating(**changes)), 422, word)
    assert len(served.json("/replica/ratings", all=True)) == before


def test_ratings_of_a_request_that_is_no_rating(served):
    for body in (b"", b"[]", b"{", b'{"rating": NaN}', b"null"):
        reply = served("POST", "/replica/ratings", data=body, headers={"Content-Type": "application/json"})
        refused(reply, 422)


def test_ratings_as_a_table(served, tmp_path):
    served("POST", "/replica/ratings", json=rating(reader="table", comment='quote " and, comma'))
    reply = served("GET", "/replica/ratings?reader=table&format=csv")
    assert reply.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert [(r["reader"], r["comment"]) for r in rows] == [("table", 'quote " and, comma')]
    from replica_detection.readers.rating_tables import read_ratings

    (tmp_path / "r.csv").write_bytes(reply.content)
    assert [asdict(r) for r in read_ratings(tmp_path / "r.csv")] == served.json("/replica/ratings", reader="table")


def test_a_table_holds_no_formula_and_gives_the_words_back(served, tmp_path):
    from replica_detection.readers.rating_tables import read_ratings

    comments = ["=HYPERLINK(1)", "+1+1", "-1-1", "@SUM(1)", "\t=1", "\r=1", " '=1", "'=1", "plain", "-1"]
    for number, comment in enumerate(comments):
        made = rating(reader="@formulas", comment=comment, rating=1 + number % 4)
        assert served("POST", "/replica/ratings", json=made).status_code == 201
    reply = served("GET", "/replica/ratings", params={"reader": "@formulas", "format": "csv", "all": True})
    cells = [r["comment"] for r in csv.DictReader(io.StringIO(reply.content.decode(), newline=""))]
    # Behind a tab or a line end as well: a spreadsheet may part the cell there.
    defused = ["'\t'=1" if c == "\t=1" else "'\r'=1" if c == "\r=1" else f"'{c}" for c in comments[:8]]
    assert cells == [*defused, "plain", "-1"]
    (tmp_path / "r.csv").write_bytes(reply.content)
    assert [(r.reader, r.comment) for r in read_ratings(tmp_path / "r.csv")] == [("@formulas", c) for c in comments]


def test_agreement_is_that_of_the_core(served, result):
    from replica_detection.readers.agreement import agreement_report

    for reader, said in (("agree_1", (4, 4, 1, 1)), ("agree_2", (4, 3, 1, 2))):
        for case, value in zip((COPY, MOVED, "syn_000", "syn_001"), said, strict=True):
            made = rating(reader=reader, synthetic_id=case, rating=value)
            assert served("POST", "/replica/ratings", json=made).status_code == 201
    stored = [schema.from_json(Rating, r) for r in served.json("/replica/ratings", all=True)]
    said = served.json("/replica/agreement")
    assert said == schema.to_json(agreement_report(stored, result))
    pair = next(p for p in said["pairs"] if p["readers"] == ["agree_1", "agree_2"])
    assert (pair["cases"], pair["percent_agreement"], pair["replica_agreement"]) == (4, 0.5, 1.0)
    assert served.json("/replica/agreement") == said


# ------------------------------------------------------------------------------------------------------- report, page


def test_report_is_the_page_of_the_result(served):
    reply = served("GET", "/replica/report")
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.content == (served.server.data / "scored" / "report" / "index.html").read_bytes()
    assert COPY in reply.text


def test_the_openapi_page_describes_every_route(served):
    described = served.json("/openapi.json")
    paths = {path for path in described["paths"] if path.startswith("/replica")}
    assert paths == {
        f"/replica/{path}"
        for path in (
            "status",
            "worklist",
            "next",
            "histograms",
            "report",
            "compare",
            "cases/{synthetic_id}/comparison",
            "cases/{synthetic_id}/files",
            "masks/{case_id}",
            "surfaces/{synthetic_id}/{training_id}",
            "surfaces/{synthetic_id}/{training_id}/statistics",
            "difference/{synthetic_id}/{training_id}",
            "aligned/{synthetic_id}/{training_id}",
            "ratings",
            "agreement",
            "jobs",
            "jobs/score",
            "jobs/index",
            "jobs/{job_id}",
        )
    }
    named = described["components"]["schemas"]
    assert {"Status", "Worklist", "Comparison", "Rating", "Job", "AgreementReport", "ErrorReply"} <= set(named)
    answer = described["paths"]["/replica/worklist"]["get"]["responses"]
    assert {"200", "422", "503"} <= set(answer)
