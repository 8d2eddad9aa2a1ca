"""The app under MONAI Label's own launch, with MONAI Label's own client where stock clients go."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from replica_detection.io.volume import read_volume
from replica_detection.segmentation import SEGMENTERS, make_segmenter
from Server.collections_on_disk import COPIED, COPY, NEW
from Server.conftest import MOVED, Served, checksums, real_scans, strict_json, until
from Server.made_uploads import metaimage, nrrd, voxels
from Server.running import APP

pytestmark = pytest.mark.slow

STUDIES = NEW + 2


@pytest.fixture
def stock(served: Served, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(served.server.url, tmpdir=str(tmp_path), client_id="stock-reader")


def test_a_stock_client_sees_every_segmenter_of_the_core(stock):
    info = stock.info()
    for name in set(SEGMENTERS) - {"network"}:
        labels = {label: value for value, label in make_segmenter(name).labels.items()}
        assert info["models"][name]["type"] == "segmentation" and info["models"][name]["labels"] == labels
    assert info["models"]["replica_matches"]["type"] == "others"
    assert "segmentation" not in info["models"], "no network was trained yet"
    assert set(info["trainers"]) == {"segmentation", "encoder", "build_index"} and set(info["scoring"]) == {"score_all"}
    assert set(info["strategies"]) == {"most_replica_like"}
    assert info["datastore"]["total"] == STUDIES, "training cases are no studies"
    # MONAI Label's client for Slicer multiplies it by 100.
    assert all(isinstance(stats["best_metric"], float) for stats in info["train_stats"].values())
    assert info["train_stats"]["build_index"]["best_metric"] == 1.0


def test_a_stock_client_gets_a_mask_and_no_file_is_lost(stock, served):
    before = checksums(served.collections.studies)
    file, params = stock.infer("vessels", "syn_001", {})
    image = read_volume(served.collections.studies / "syn_001.nii.gz")
    found = read_volume_or_empty(file)
    assert np.array_equal(found, make_segmenter("vessels").segment(image)) and params["label_names"] == {"vessels": 1}
    assert checksums(served.collections.studies) == before
    until(lambda: not list((served.server.data.parent / "tmp").glob("replica-*")), "the result stays behind")


def test_inference_of_a_training_case_leaves_it_where_it_is(stock, served):
    assert stock.infer("vessels", f"train:{COPIED}", {})[1]["label_names"] == {"vessels": 1}
    with pytest.raises(MONAILabelClientException, match="read only"):
        stock.infer("vessels", f"train:{COPIED}", {"save_label": True, "label_tag": "final"})
    until(lambda: not list((served.server.data.parent / "tmp").glob("replica-*")), "the result stays behind")
    assert checksums(*real_scans(served.collections)) == served.before


def test_the_extension_of_a_mask_can_be_chosen_among_those_that_can_be_written(stock):
    assert stock.infer("vessels", "syn_001", {"result_extension": ".nrrd"})[0].endswith(".nrrd")
    with pytest.raises(MONAILabelClientException, match=r"cannot be written; use one of \.nii\.gz"):
        stock.infer("vessels", "syn_001", {"result_extension": "/../x.sh"})


def test_matches_come_with_a_file_that_is_new(stock, served):
    """MONAI Label's client for Slicer cannot take a reply without one, and the server deletes what it sent."""
    file, params = stock.infer("replica_matches", COPY, {"k": 2})
    assert params["nearest_training_id"] == COPIED and params["verdict"] == "replica"
    assert [len(m["neighbors"]) for m in params["measures"]] == [2] * len(params["measures"])
    assert not np.any(read_volume_or_empty(file)), "a copy minus its original is 0 everywhere"
    other, _ = stock.infer("replica_matches", "syn_000", {})
    assert np.any(read_volume_or_empty(other))
    assert (served.collections.studies / f"{COPY}.nii.gz").is_file()


def test_matches_of_an_upload(stock, served, tmp_path):
    upload = tmp_path / "mine.nii.gz"
    upload.write_bytes((served.collections.studies / "syn_002.nii.gz").read_bytes())
    _, params = stock.infer("replica_matches", "", {}, file=str(upload))
    known = served.json("/replica/cases/syn_002/comparison")
    found, wanted = (
        {m["measure"]: m["neighbors"][:3] for m in c["measures"] if m["level"] == "voxel"} for c in (params, known)
    )
    assert found == wanted and {"mae", "ncc_aligned"} <= set(found)
    assert all(m["distance"] is None for m in params["measures"] if m["level"] == "segmentation"), "it has no mask"
    assert served.server.data.parent not in upload.parents and not list((served.server.data / "uploads").glob("*"))


def test_the_next_sample_is_the_most_replica_like_that_the_reader_has_not_rated(stock, served):
    order = [item["synthetic_id"] for item in served.json("/replica/worklist")["items"]]
    first = stock.next_sample("most_replica_like", {})
    assert first["id"] == order[0] and {order[0], order[1]} == {COPY, MOVED}
    assert first["replica_verdict"] == "replica" and first["nearest_training_id"] == COPIED
    rating = {"rating_id": "", "reader": "stock-reader", "synthetic_id": order[0], "training_id": COPIED, "rating": 4}
    assert served("POST", "/replica/ratings", json=rating).status_code == 201
    assert stock.next_sample("most_replica_like", {})["id"] == order[1]
    assert MONAILabelClient(served.server.url, client_id="other").next_sample("most_replica_like", {})["id"] == order[0]


def test_images_and_masks_of_both_collections_are_downloaded_as_they_lie_on_the_disk(stock, served):
    for case, folder in ((MOVED, "studies"), (f"train:{COPIED}", "training")):
        name = f"{case.removeprefix('train:')}.nii.gz"
        reply = served("GET", "/datastore/image", params={"image": case})
        assert reply.content == (served.collections.folder / folder / name).read_bytes()
    mask = Path(stock.download_label(f"train:{COPIED}", "final"))
    assert mask.read_bytes() == (served.collections.folder / "training_masks" / f"{COPIED}.nii.gz").read_bytes()


def test_a_label_is_kept_beside_the_studies_and_comes_back(stock, served, tmp_path):
    label = served.collections.folder / "studies_masks" / "syn_003.nii.gz"
    stock.save_label("syn_003", str(label), "final")
    assert Path(stock.download_label("syn_003", "final")).read_bytes() == label.read_bytes()
    ids = {item["synthetic_id"] for item in served.json("/replica/worklist")["items"]}
    assert len(ids) == STUDIES, "a label is no study"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/infer/unknown?image=syn_000", 404),
        ("POST", "/infer/vessels?image=unknown", 404),
        ("POST", "/infer/vessels?image=train:unknown", 404),
        ("POST", "/infer/segmentation?image=syn_000", 404),
        ("POST", "/activelearning/random", 404),
        ("DELETE", f"/datastore/image?id=train:{COPIED}", 403),
        ("DELETE", f"/datastore/label?id=train:{COPIED}&tag=final", 403),
        ("DELETE", "/datastore/image?id=unknown", 404),
        ("DELETE", "/datastore/label?id=syn_000&tag=../../outside", 404),
        ("PUT", f"/datastore/image/info?image=train:{COPIED}", 403),
        ("PUT", "/datastore/image/info?image=unknown", 404),
        ("PUT", "/datastore/label/info?label=syn_000&tag=none", 404),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(served, method, path, status):
    how = {"data": {"info": "{}"}} if path.endswith(("info", "unknown", "none", COPIED)) and method == "PUT" else {}
    reply = served(method, path, **how)
    assert reply.status_code == status and strict_json(reply)["detail"], reply.text


@pytest.mark.parametrize("image", ["../outside/evil", "/etc/evil", f"train:{COPIED}", "syn_000", "a b", "x.nii.gz", ""])
def test_an_image_is_never_written_outside_or_over_another(served, image):
    """With an empty id the name of the file counts, which is that of a study here."""
    before = checksums(served.collections.studies, *real_scans(served.collections))
    reply = served("PUT", "/datastore/image", params={"image": image}, files={"file": ("syn_000.nii.gz", b"new")})
    assert 400 <= reply.status_code < 500 and strict_json(reply)["detail"]
    assert checksums(served.collections.studies, *real_scans(served.collections)) == before


@pytest.mark.parametrize("tag", ["../../outside", "a/b", "..", "x" * 100])
def test_a_label_is_never_written_outside(served, tag):
    before = checksums(served.collections.folder / "studies")
    reply = served(
        "PUT", "/datastore/label", params={"image": "syn_000", "tag": tag}, files={"label": ("l.nii.gz", b"new")}
    )
    assert reply.status_code == 422 and checksums(served.collections.folder / "studies") == before


def test_an_upload_that_names_a_file_of_the_machine_is_refused(served, tmp_path):
    """Through MONAI Label's own routes, which look at nothing."""
    (tmp_path / "secret").write_bytes(voxels().tobytes())
    for name, content in (
        ("x.mha", metaimage(file=str(tmp_path / "secret"))),
        ("x.nrrd", nrrd(f"data file: {tmp_path / 'secret'}\n")),
    ):
        reply = served("POST", "/infer/vessels", params={"output": "json"}, files={"file": (name, content)})
        assert reply.status_code == 422 and "itself" in strict_json(reply)["detail"], reply.text
        session = served("PUT", "/session/", files={"files": (name, content)}).json()["session_id"]
        reply = served("POST", "/infer/vessels", params={"output": "json", "session_id": session})
        assert reply.status_code == 422 and "itself" in strict_json(reply)["detail"], reply.text


def test_no_other_file_of_the_machine_is_an_image(served):
    path = served.collections.training / f"{COPIED}.nii.gz"
    for params in ({"image": str(path)}, {"image": "syn_000", "params": json.dumps({"image": str(path)})}):
        body = {"params": params.pop("params", "{}")}
        reply = served("POST", "/infer/vessels", params={**params, "output": "json"}, data=body)
        assert reply.status_code == 404, reply.text


def test_nothing_is_scored_at_the_start_although_monai_label_would(served):
    assert served("GET", "/scoring/").status_code == 404
    assert served.json("/replica/jobs") == []


def test_inference_over_all_images_works_without_a_gpu(served):
    reply = served("POST", "/batch/infer/vessels", params={"images": "all", "run_sync": True})
    assert reply.status_code == 200 and len(strict_json(reply)) == STUDIES
    for study in strict_json(reply):
        label = served("GET", "/datastore/label", params={"label": study, "tag": "original"})
        assert label.status_code == 200 and len(label.content) > 100


def test_the_plain_launch_says_what_it_leaves_open(served):
    assert "`replica-detection serve`" in served.server.log_text() and "authentication" in served.server.log_text()


def test_the_folder_of_the_app_stays_clean(served):
    """MONAI Label makes folders in it, which git must not see."""
    found = subprocess.run(
        ["git", "status", "--porcelain", "--ignored=no", "--", "model", "logs", "bin"],
        cwd=APP,
        capture_output=True,
        encoding="utf-8",
    )
    if found.returncode:
        pytest.skip("no git checkout")
    assert found.stdout == "" and (APP / "logs").is_dir()


def read_volume_or_empty(path: str) -> np.ndarray:
    """An image that may have one value everywhere, which `read_volume` refuses."""
    if path.endswith(".nrrd"):
        return read_volume(path).array
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj)
