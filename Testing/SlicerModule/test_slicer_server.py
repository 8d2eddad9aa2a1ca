"""The whole way: a real server on phantom data, the module's logic over it, and the rating is on the server."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import made_collection
import numpy as np
import pytest
import slicer

from bench.pictures import keep
from replica_detection.errors import AccessDeniedError, NotFoundError, ServerError
from replica_detection.readers.ratings import Rating
from ReplicaDetectionLib.Blinding import Blinding
from ReplicaDetectionLib.FolderSource import FolderSource
from ReplicaDetectionLib.ServerSource import ServerSource
from ReplicaDetectionLib.Sources import LoadCancelled

pytest.importorskip("monailabel", reason="the server's packages are not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Server"))

KEYS = {"Dr A": "key-of-a-0123456789abcdefgh", "Dr B": "key-of-b-0123456789abcdefgh"}
ROLES = {"Dr A": "reader", "Dr B": "reviewer"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return made_collection.judge(made_collection.make_files(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def server(collection, tmp_path_factory):
    from running import running_server

    work = tmp_path_factory.mktemp("server")
    keys = work / "keys"
    keys.write_text("".join(f"{name}:{key} role={ROLES[name]}\n" for name, key in KEYS.items()), encoding="utf-8")
    keys.chmod(0o600)
    folders = {name: collection.folder(name) for name in ("validation", "training_masks", "validation_masks")}
    with running_server(
        collection.folder("synthetic"),
        work=work,
        training=collection.folder("training"),
        index=collection.root / "training.rdindex",
        hardened=True,
        conf={"masks": collection.folder("synthetic_masks"), "api-key-file": keys, **folders},
    ) as running:
        client = ServerSource(running.url, KEYS["Dr A"]).client
        job = client.wait(client.start_scoring().id)
        assert job.state == "done", (job, running.log_text()[-2000:])
        yield running


@pytest.fixture
def source(server) -> ServerSource:
    return ServerSource(server.url, KEYS["Dr A"])


@pytest.fixture
def reviewer(server) -> ServerSource:
    return ServerSource(server.url, KEYS["Dr B"])


def test_from_the_list_to_the_rating(source, reviewer, logic, layouts, collection, tmp_path):
    status = source.status()
    assert status.reader == "Dr A" and status.studies == 5 and status.scored == 5
    item = source.next("Dr A")
    assert item.synthetic_id == "synthetic_0" and item.verdict == "replica"
    told = []
    pair = source.pair(item.synthetic_id, progress=lambda stage, done, total: told.append(stage))
    assert told[0] == "Comparing" and told[-1] == "Done"
    assert pair.training.id == "train_2" and pair.surfaces is not None
    blinding = Blinding(Blinding.newKey())
    logic.showPair(pair, blinding)
    keep(layouts.picture(), "server_blinded")
    assert logic.surfaces.available and logic.surfaces.jumpToLargest() is None
    rating = Rating(
        str(uuid.uuid4()), "", pair.synthetic.id, pair.training.id, 4, "same head", True, 12.5, "", status.index.version
    )
    receipt = source.saveRating(rating)
    assert receipt.reader == "Dr A"
    assert source.saveRating(rating) == receipt
    logic.reveal()
    stored = [r for r in reviewer.ratings() if r.reader == "Dr A"]
    assert [(r.synthetic_id, r.training_id, r.rating, r.comment, r.blinded) for r in stored] == [
        ("synthetic_0", "train_2", 4, "same head", True)
    ]
    assert source.next("Dr A").synthetic_id != "synthetic_0"
    assert source.worklist(rated="yes", reader="Dr A").items[0].rating == 4
    scene, page = logic.writeReport(tmp_path, {"S Axial": layouts.view("ReplicaFirstAxial").picture()}, stored[0])
    assert scene.is_file() and "Rating 4" in page.read_text(encoding="utf-8")


def test_a_novel_case_shows_its_distances(source, logic, layouts):
    item = source.worklist(sort="score", descending=False).items[0]
    pair = source.pair(item.synthetic_id)
    logic.showPair(pair)
    peak = logic.surfaces.jumpToLargest()
    keep(layouts.picture(), "server_novel")
    assert peak is not None and peak.distance > 1
    heat = slicer.util.arrayFromModelPointData(logic.surfaces._models[peak.row], "SurfaceDistance")
    assert heat.max() == pytest.approx(peak.distance, rel=1e-5)


def test_server_and_folder_show_the_same(source, collection):
    folder = FolderSource(collection.result)
    assert [i.synthetic_id for i in source.worklist().items] == [i.synthetic_id for i in folder.worklist().items]
    for ids in (("synthetic_0", ""), ("synthetic_3", "train_5")):
        a, b = source.pair(*ids), folder.pair(*ids)
        np.testing.assert_array_equal(a.synthetic.array, b.synthetic.array)
        np.testing.assert_array_equal(a.training.array, b.training.array)
        np.testing.assert_allclose(a.placement, b.placement, atol=1e-6)
        np.testing.assert_allclose(a.surfaces.synthetic.points, b.surfaces.synthetic.points, atol=1e-4)
        for one, other in zip(a.surfaces.compared, b.surfaces.compared, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
        measures = {m.measure: m.distance for m in a.comparison.measures}
        assert measures == pytest.approx({m.measure: m.distance for m in b.comparison.measures}, rel=1e-6)
    named = {h.measure: h for h in source.histograms()}
    assert set(named) == {h.measure for h in folder.histograms()}


def test_the_server_says_how_images_were_put_on_the_grid(source, collection):
    told = source.status().index.preparation
    if told is None:
        pytest.skip("a server that does not say; its images are put by the grid alone")
    assert told == FolderSource(collection.result).status().index.preparation


def test_an_image_of_ones_own_is_compared_and_shown(source, collection, logic):
    image = collection.folder("validation") / "val_3.nii.gz"
    mask = collection.folder("validation_masks") / "val_3.nii.gz"
    assert source.comparesImages and source.remote
    before = source.status().studies
    comparison = source.compareImage(str(image), str(mask))
    assert comparison.verdict in ("novel", "suspicious") and len(comparison.measures) > 3
    pair = source.pairWith(comparison, str(image), mask=str(mask))
    assert pair.training.id == comparison.nearest_training_id and pair.surfaces is not None
    logic.showPair(pair)
    assert logic.surfaces.statistics()[2].maximum > 0
    without = source.pairWith(comparison, str(image))
    assert without.surfaces is None and without.surfaces_problem == "The synthetic image has no mask."
    assert source.status().studies == before


def test_a_wrong_key_an_unknown_case_and_a_closed_port_are_told_apart(server):
    with pytest.raises(AccessDeniedError):
        ServerSource(server.url, "wrong-key-0123456789abcdefgh").worklist()
    with pytest.raises(NotFoundError, match="nobody"):
        ServerSource(server.url, KEYS["Dr A"]).pair("nobody")
    with pytest.raises(ServerError):
        ServerSource("http://127.0.0.1:9", KEYS["Dr A"]).status()


def test_a_case_that_nobody_waits_for_is_not_loaded(source):
    calls = []

    def cancelled() -> bool:
        calls.append(None)
        return len(calls) > 1

    with pytest.raises((LoadCancelled, ServerError)):
        source.pair("synthetic_1", cancelled=cancelled)


def test_readers_agree_over_the_server(source, reviewer):
    """Only who may see the ratings of all is told; a reader learns whom to ask, and still sees the own ones."""
    for each, value in ((source, 2), (reviewer, 3)):
        for n in (3, 4):
            each.saveRating(Rating(str(uuid.uuid4()), "", f"synthetic_{n}", "train_1", value))
    with pytest.raises(AccessDeniedError, match="ask a reviewer"):
        source.agreement()
    assert (source.status().sees_all_ratings, reviewer.status().sees_all_ratings) == (False, True)
    assert {r.reader for r in source.ratings()} == {"Dr A"}
    report = reviewer.agreement()
    assert {"Dr A", "Dr B"} <= set(report.readers) and report.pairs[0].percent_agreement == 0
